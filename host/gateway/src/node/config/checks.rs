//! Checks of settings' texts, and of what several settings must hold together.

use super::{Config, given::GivenSettings};

pub fn database_url(text: &str) -> Result<(), String> {
    let is_postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
    require(is_postgres, || "must be `postgres://user:password@host/database`; DATABASE_URL serves as well".to_owned())
}

/// `http` or `https`, a host, perhaps a port and a path; no user, query or fragment.
pub fn base_url(text: &str) -> Result<(), String> {
    let without_user = |url: url::Url| url.username().is_empty() && url.password().is_none();
    require(http_url(text).is_some_and(without_user), || {
        format!(
            "must be a base URL, such as `https://angarium.example.org`: a scheme and a host, perhaps a port and a \
             path (got `{text}`)"
        )
    })
}

/// As [`base_url`]; a user may be named, and what was given is not repeated, since it may hold a password.
pub fn collector_url(text: &str) -> Result<(), String> {
    require(http_url(text).is_some(), || "must be the URL of a collector, such as `http://127.0.0.1:4318`".to_owned())
}

/// `http` or `https`, a host, and a port where it is not the scheme's own: as browsers write it.
pub fn origin(text: &str) -> Result<(), String> {
    let is_origin = |url: url::Url| url.origin().ascii_serialization() == text;
    require(!text.contains('*') && http_url(text).is_some_and(is_origin), || {
        format!(
            "must be an origin as browsers write it, such as `https://console.example.org`: a scheme and a host in lower \
             case, perhaps a port, and nothing after it; `*` and `null` are not allowed (got `{text}`)"
        )
    })
}

fn http_url(text: &str) -> Option<url::Url> {
    let url = url::Url::parse(text).ok()?;
    let is_base = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none()
        && text.is_ascii();
    is_base.then_some(url)
}

/// Empty, or labels of letters, digits and hyphens (RFC 5321's `Domain`).
pub fn host_name(text: &str) -> Result<(), String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    require(text.is_empty() || text.len() <= 253 && text.split('.').all(label), || {
        format!("must be the name of a host, such as `mail.example.org`: letters, digits, `-` and dots (got `{text}`)")
    })
}

pub fn node_name(text: &str) -> Result<(), String> {
    require(!text.is_empty(), || "must not be empty: name this process".to_owned())
}

pub fn share(text: &str) -> Result<(), String> {
    require(text.parse().is_ok_and(|share: f64| (0.0..=1.0).contains(&share)), || {
        format!("must be a number from 0 to 1 (got `{text}`)")
    })
}

/// A filter of the log: levels, and modules with levels.
///
/// `tracing` takes a word that is not a level for a module, so a misspelled level would silence everything.
pub fn log_filter(text: &str) -> Result<(), String> {
    let is_level = |word: &str| !word.is_empty() && word.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    let alone = |word: &&str| !word.contains(['=', '[', ']', '{', '}']) && !is_level(word);
    if let Some(word) = text.split(',').map(str::trim).find(alone) {
        return Err(format!(
            "must consist of levels (off, error, warn, info, debug, trace) and modules with levels, such as \
             `info,angarium=debug` (got `{word}`)"
        ));
    }
    let filter = tracing_subscriber::EnvFilter::try_new(text);
    filter.map(drop).map_err(|error| format!("must be a filter of `tracing`, such as `info,angarium=debug`: {error}"))
}

/// Checks requirements on several settings together. Settings that are invalid by themselves are left out.
pub fn relations(config: &Config, given: &mut GivenSettings) {
    if config.database.url.is_empty() && given.is_sound(&["database.url"]) {
        given.refuse("database.url", "must be set: `postgres://user:password@host/database`, or set DATABASE_URL");
    }
    let body = config.http.max_body_bytes.saturating_mul(2);
    let bodies = config.http.body_bytes_in_flight();
    if bodies < body && given.is_sound(&["http.max_body_bytes", "http.max_body_bytes_in_flight"]) {
        given.refuse(
            "http.max_body_bytes_in_flight",
            format!("must be at least twice `http.max_body_bytes`: {body} (got {bodies})"),
        );
    }
    let (deadline, lease) = (config.dispatch.deadline_ms.saturating_mul(3), config.queue.lease_ms);
    if lease < deadline && given.is_sound(&["dispatch.deadline_ms", "queue.lease_ms"]) {
        given.refuse(
            "queue.lease_ms",
            format!(
                "must be at least three times `dispatch.deadline_ms`: {deadline} (got {lease}); a shorter lease could end \
                 during a slow send"
            ),
        );
    }
}

fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
