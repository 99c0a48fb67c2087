//! The request that an endpoint gets.

use std::collections::BTreeMap;

use angarium_provider::serde_json;
use angarium_provider::{
    Auth, Context, Delivery, Encoding, HttpMethod, HttpRequest, KeyFormat, NamedSecret, Outcome, Segment, Signature,
    SignatureAlgorithm, SignatureHeader, code, host_of_url, is_header_name,
};
use serde::Deserialize;

/// Name of the secret for `v1`.
pub const HMAC_KEY: &str = "signing_key";
/// Name of the secret for `v1a`.
pub const ED25519_KEY: &str = "signing_key_ed25519";

/// Name of the secret that is the value of the `Authorization` header.
pub const AUTHORIZATION: &str = "authorization";

/// `whsec_` and base64 of 24 to 64 bytes; the host leaves white space around it out.
pub const HMAC_KEY_FORM: &str = "^\\s*whsec_(([A-Za-z0-9+/]{4}){8,20}([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?\
     |([A-Za-z0-9+/]{4}){21}([A-Za-z0-9+/][AQgw]==)?)\\s*$";
/// `whsk_` and base64 of 32 or 64 bytes.
pub const ED25519_KEY_FORM: &str = "^\\s*whsk_(([A-Za-z0-9+/]{4}){10}[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=\
     |([A-Za-z0-9+/]{4}){21}[A-Za-z0-9+/][AQgw]==)\\s*$";

/// Standard Webhooks recommends 15 to 30 seconds.
const DEFAULT_TIMEOUT_MS: u32 = 15_000;

/// A connection's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Used if the delivery names no URL.
    url: Option<String>,
    method: Method,
    content_type: Option<String>,
    /// Sent with every request to the origin of `url`; a delivery's own header of the same name wins.
    headers: BTreeMap<String, String>,
    timeout_ms: Option<u32>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Method {
    #[default]
    Post,
    Put,
    Patch,
}

/// The signed request for a delivery.
pub fn build(ctx: &Context, config: &Config, delivery: &Delivery) -> Result<HttpRequest, Outcome> {
    // Whole seconds, as the signature has them.
    let timestamp = format!("{:.0}", (ctx.now_ms / 1000.0).floor());
    let media_type = config.content_type.as_deref().unwrap_or("application/json");
    let target = target(config, delivery)?;
    let own = config.url.as_deref().is_some_and(|url| has_same_origin(url, target));
    let mut request = HttpRequest::new(config.method.into(), target)
        .timeout_ms(Some(config.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS)))
        .text(media_type, body(delivery)?)
        .header("webhook-id", &delivery.key)
        .header("webhook-timestamp", &timestamp);
    for (name, value) in custom_headers(config, delivery, own)? {
        request = request.header(name, value);
    }
    if own && ctx.has_secret(AUTHORIZATION) {
        request =
            request.auth(Auth::Header(NamedSecret { name: "authorization".into(), secret: AUTHORIZATION.into() }));
    }
    let signatures = signatures(ctx, &delivery.key, &timestamp);
    if signatures.is_empty() {
        return Ok(request);
    }
    Ok(request.auth(Auth::Signatures(SignatureHeader {
        header: "webhook-signature".into(),
        separator: " ".into(),
        signatures,
    })))
}

fn target<'a>(config: &'a Config, delivery: &'a Delivery) -> Result<&'a str, Outcome> {
    let named = delivery.to.first().map(|to| to.value.as_str()).filter(|url| !url.is_empty());
    let url = named.or(config.url.as_deref()).ok_or_else(|| {
        Outcome::rejected_permanent(code::INVALID_RECIPIENT, "`to` must be given, or `url` in the connection's config")
    })?;
    if host_of_url(url).is_none() {
        let message = format!("`{}` must be an http or https URL", if named.is_some() { "to" } else { "url" });
        return Err(Outcome::rejected_permanent(code::INVALID_RECIPIENT, message));
    }
    Ok(url)
}

/// A payload stays as it is, since the receiver's signature check covers its bytes.
fn body(delivery: &Delivery) -> Result<String, Outcome> {
    if let Some(payload) = &delivery.payload {
        return Ok(payload.clone());
    }
    let parts = [("subject", &delivery.subject), ("text", &delivery.text), ("html", &delivery.html)];
    let given: BTreeMap<_, _> = parts.into_iter().filter_map(|(name, part)| Some((name, part.as_ref()?))).collect();
    if given.is_empty() {
        return Err(Outcome::rejected_permanent(code::INVALID_CONTENT, "`payload`, `text` or `html` must be given"));
    }
    // A map of texts always has a JSON form.
    Ok(serde_json::to_string(&given).unwrap_or_default())
}

/// Whether two URLs have the same scheme, host and port, written in the same way. Headers often hold credentials of the
/// endpoint, so a doubtful URL counts as another origin: the gateway reads a URL as browsers do, and this is no parser
/// of that kind.
fn has_same_origin(url: &str, other: &str) -> bool {
    match (origin(url), origin(other)) {
        (Some(own), Some(other)) => own == other,
        _ => false,
    }
}

/// Returns the scheme and the authority in lower case, without the scheme's own port; `None` for an ambiguous URL.
fn origin(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let (scheme, end) = (scheme.to_ascii_lowercase(), rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let authority = rest[..end].to_ascii_lowercase();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let own_port = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    let is_clear = !authority.is_empty() && authority.bytes().all(is_plain);
    is_clear.then(|| (scheme, authority.strip_suffix(own_port).unwrap_or(&authority).to_owned()))
}

/// Returns the connection's headers, if they belong to this origin, with the delivery's on top.
fn custom_headers(config: &Config, delivery: &Delivery, own: bool) -> Result<BTreeMap<String, String>, Outcome> {
    let given = delivery.headers.iter().map(|header| (&header.name, &header.value));
    let mut headers = BTreeMap::new();
    for (name, value) in config.headers.iter().filter(|_| own).chain(given) {
        let name = name.to_ascii_lowercase();
        if let Some(fault) = header_fault(&name, value) {
            return Err(Outcome::rejected_permanent(
                code::INVALID_CONTENT,
                format!("header `{}` {fault}", name.escape_debug()),
            ));
        }
        headers.insert(name, value.clone());
    }
    Ok(headers)
}

fn header_fault(name: &str, value: &str) -> Option<&'static str> {
    if !is_header_name(name) {
        return Some("must have a name that HTTP allows");
    }
    if is_reserved(name) {
        return Some("is not allowed: the gateway sets it");
    }
    value.chars().any(|c| c.is_control() && c != '\t').then_some("must have no control character in its value")
}

/// Whether the header names the sender, frames the body, or is covered by the signature.
fn is_reserved(name: &str) -> bool {
    const RESERVED: [&str; 10] = [
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "keep-alive",
    ];
    RESERVED.contains(&name) || name.starts_with("webhook-") || name.starts_with("proxy-")
}

/// One signature for each kind of key that the connection has: `{id}.{timestamp}.{body}`.
fn signatures(ctx: &Context, id: &str, timestamp: &str) -> Vec<Signature> {
    let kinds = [(HMAC_KEY, SignatureAlgorithm::HmacSha256, "v1,"), (ED25519_KEY, SignatureAlgorithm::Ed25519, "v1a,")];
    kinds
        .into_iter()
        .filter(|(key, ..)| ctx.has_secret(key))
        .map(|(key, algorithm, prefix)| Signature {
            algorithm,
            key: key.into(),
            key_format: KeyFormat::StandardWebhooks,
            message: vec![Segment::Text(format!("{id}.{timestamp}.")), Segment::Body],
            encoding: Encoding::Base64,
            prefix: prefix.into(),
        })
        .collect()
}

impl From<Method> for HttpMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::Post => Self::Post,
            Method::Put => Self::Put,
            Method::Patch => Self::Patch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::has_same_origin;

    #[test]
    fn the_same_origin_is_written_in_the_same_way() {
        let own = "https://hooks.example.org/in?a=1";
        for url in [
            "https://hooks.example.org",
            "https://hooks.example.org/",
            "https://hooks.example.org/other",
            "HTTPS://Hooks.Example.org:443/x",
            "https://hooks.example.org?b",
            "https://hooks.example.org#b@evil.example",
        ] {
            assert!(has_same_origin(own, url), "{url}");
        }
        for url in [
            "http://hooks.example.org/in",
            "https://hooks.example.org:8443/in",
            "https://hooks.example.org.evil.example/in",
            "https://evil.example/https://hooks.example.org/in",
            "https://hooks.example.org@evil.example/in",
            "https://hooks.example.org:443@evil.example/in",
            "https://hooks.example.org\\@evil.example/in",
            "https://evil.example\\@hooks.example.org/in",
            "https://evil.example%2f@hooks.example.org/in",
            "https://hooks.example.org\t.evil.example/in",
            "https:hooks.example.org/in",
            "//hooks.example.org/in",
            "",
        ] {
            assert!(!has_same_origin(own, url), "{url}");
        }
        assert!(!has_same_origin("https://u:p@a.example/", "https://u:p@a.example/"));
        assert!(has_same_origin("http://[::1]:8080/a", "http://[::1]:8080/b"));
    }
}
