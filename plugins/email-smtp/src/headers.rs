//! The headers beside those that the gateway writes.

use angarium_provider::{Delivery, Kv, Outcome, code, is_header_name};

use crate::addresses::check_no_control;

/// A line of a header has at most 998 octets (RFC 5322, 2.1.1); the gateway folds at spaces.
const MAX_VALUE: usize = 8192;

/// The delivery's own headers, then those for unsubscribing.
pub fn build(delivery: &Delivery) -> Result<Vec<Kv>, Outcome> {
    let mut headers = Vec::with_capacity(delivery.headers.len() + 2);
    for header in &delivery.headers {
        check(header)?;
        headers.push(header.clone());
    }
    if let Some(list) = delivery.param("list_unsubscribe") {
        headers.extend(unsubscribe(list)?);
    }
    Ok(headers)
}

fn check(header: &Kv) -> Result<(), Outcome> {
    let field = format!("headers.{}", header.name.escape_debug());
    if !is_header_name(&header.name) {
        return Err(invalid(&field, "must be a header's name"));
    }
    if is_structured(&header.name.to_ascii_lowercase()) {
        return Err(invalid(&field, "is not allowed: the gateway writes it from the message's own fields"));
    }
    if header.value.len() > MAX_VALUE {
        return Err(invalid(&field, "must have at most 8192 bytes"));
    }
    check_no_control(&header.value, &field)
}

/// Whether the gateway writes this header itself, or servers on the way do, or it frames the MIME form.
fn is_structured(name: &str) -> bool {
    const STRUCTURED: [&str; 17] = [
        "from",
        "sender",
        "reply-to",
        "to",
        "cc",
        "bcc",
        "subject",
        "date",
        "message-id",
        "mime-version",
        "return-path",
        "received",
        "dkim-signature",
        "authentication-results",
        "list-unsubscribe",
        "list-unsubscribe-post",
        "delivered-to",
    ];
    STRUCTURED.contains(&name)
        || name.starts_with("content-")
        || name.starts_with("resent-")
        || name.starts_with("arc-")
}

/// `List-Unsubscribe` (RFC 2369), and the promise that a bare POST unsubscribes where there is an
/// `https:` URL (RFC 8058).
fn unsubscribe(list: &str) -> Result<Vec<Kv>, Outcome> {
    let urls: Vec<&str> = list.split_whitespace().map(bare_url).collect();
    if urls.is_empty() || !urls.iter().all(|url| is_unsubscribe_url(url)) {
        return Err(invalid(
            "params.list_unsubscribe",
            "must be an https: URL, a mailto: URL or both, separated by a space",
        ));
    }
    let value = urls.iter().map(|url| format!("<{url}>")).collect::<Vec<_>>().join(", ");
    let mut headers = vec![Kv::new("List-Unsubscribe", value)];
    if urls.iter().any(|url| url.starts_with("https://")) {
        headers.push(Kv::new("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"));
    }
    Ok(headers)
}

/// Accepts the header's own form, `<url>, <url>`, too.
fn bare_url(word: &str) -> &str {
    let word = word.trim_end_matches(',');
    word.strip_prefix('<').and_then(|url| url.strip_suffix('>')).unwrap_or(word)
}

fn is_unsubscribe_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("mailto:"));
    rest.is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"".contains(&byte))
    })
}

fn invalid(field: &str, fault: &str) -> Outcome {
    Outcome::rejected_permanent(code::INVALID_CONTENT, format!("`{field}` {fault}"))
}
