//! Twilio's reports about a message: its status callbacks, and their signature.
//!
//! The signature is over the URL as Twilio knows it and the form's fields, sorted; the port may or
//! may not be in it, so both are tried. Twilio adds fields without notice: all of them are signed,
//! few of them are read.

use std::collections::BTreeMap;

use angarium_provider::callback::{Callback, Check, Context, Encoding, Event, Hash, Request, Segment, kind};
use angarium_provider::serde_json::json;

use crate::{errors, request};

/// Name of the secret.
pub const CALLBACK_KEY: &str = "callback_key";

const SIGNATURE: &str = "x-twilio-signature";
/// The header that names another algorithm than HMAC-SHA1.
const SETTINGS: &str = "x-twilio-webhooks-signature-settings";

/// The answer that Twilio expects for an incoming message: none.
const NO_ANSWER: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response/>";

type Form = Vec<(String, String)>;

/// A callback, and how to know that it is Twilio's.
pub fn read(ctx: &Context, request: &Request) -> Result<Callback, String> {
    let form = request.form();
    let status = field(&form, "MessageStatus").or_else(|| field(&form, "SmsStatus"));
    let sid = field(&form, "MessageSid").or_else(|| field(&form, "SmsSid"));
    let (Some(status), Some(sid)) = (status, sid) else {
        return Err("it has no `MessageSid` with a `MessageStatus`: this is no status callback of Twilio's".into());
    };
    let signature = request.header(SIGNATURE).unwrap_or_default();
    let check = |url: String| signed(ctx, request, &form, url, signature);
    let callback = Callback::new(check(without_port(&request.url))).or(check(with_port(&request.url)));
    Ok(match event(status, sid, &form, request) {
        Some(event) if event.kind == kind::INBOUND => callback.event(event).reply(200, "text/xml", NO_ANSWER),
        Some(event) => callback.event(event),
        None => callback,
    })
}

fn signed(ctx: &Context, request: &Request, form: &Form, url: String, signature: &str) -> Check {
    let key = if ctx.has_secret(CALLBACK_KEY) { CALLBACK_KEY } else { request::AUTH_TOKEN };
    let settings = request.header(SETTINGS).unwrap_or_default();
    let sha256 = settings.split(',').any(|part| part.trim().eq_ignore_ascii_case("algorithm=HMAC_SHA256"));
    let hash = if sha256 { Hash::Sha256 } else { Hash::Sha1 };
    Check::hmac(hash, key, vec![Segment::Text(url + &sorted(form))], Encoding::Base64, signature)
}

/// Each name with each of its values once, both in order.
fn sorted(form: &Form) -> String {
    let sorted: BTreeMap<(&str, &str), ()> =
        form.iter().map(|(name, value)| ((name.as_str(), value.as_str()), ())).collect();
    sorted.keys().flat_map(|(name, value)| [*name, *value]).collect()
}

/// Returns `None` for a status before Twilio's own `sent`, which has no effect.
fn event(status: &str, sid: &str, form: &Form, request: &Request) -> Option<Event> {
    let kind = match status {
        "sent" => kind::SENT,
        "delivered" => kind::DELIVERED,
        // The carrier could not hand it over.
        "undelivered" => kind::BOUNCED,
        "failed" | "canceled" => kind::FAILED,
        "read" => kind::READ,
        "received" => kind::INBOUND,
        _ => return None,
    };
    let event = Event::new(kind).external_id(sid).delivery(request.query(request::DELIVERY));
    let event = match field(form, "ErrorCode").and_then(|code| code.parse().ok()).filter(|code| *code != 0) {
        Some(error) => event.code(error, errors::unified(error)).message(said(form, error)),
        None if status == "canceled" => event.code("canceled", "canceled"),
        None if matches!(kind, kind::FAILED | kind::BOUNCED) => event.code(status, "rejected"),
        None => event,
    };
    Some(Event { recipient: field(form, "To").map(str::to_owned), ..event }.detail(&detail(status, form)))
}

fn said(form: &Form, error: u32) -> String {
    match field(form, "ErrorMessage") {
        Some(message) => message.to_owned(),
        None => format!("Twilio reported its error {error}"),
    }
}

/// Returns times and names of carriers, and the text of an incoming message.
fn detail(status: &str, form: &Form) -> angarium_provider::serde_json::Value {
    let kept: &[_] = match status {
        "received" => &["From", "Body", "NumMedia"],
        _ => &["RawDlrDoneDate", "ChannelStatusMessage"],
    };
    let mut detail = json!({ "status": status });
    for (name, value) in kept.iter().filter_map(|name| Some((*name, field(form, name)?))) {
        detail[name] = value.into();
    }
    detail
}

fn field<'a>(form: &'a Form, name: &str) -> Option<&'a str> {
    form.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.as_str())
}

/// The scheme with its `://`, the authority, and the rest.
fn parts(url: &str) -> Option<(&str, &str, &str)> {
    let authority = url.find("://")? + 3;
    let end = url[authority..].find(['/', '?', '#']).map_or(url.len(), |at| authority + at);
    Some((&url[..authority], &url[authority..end], &url[end..]))
}

/// Returns the authority's host, if a port follows it; an IPv6 address has its own colons.
fn host(authority: &str) -> Option<&str> {
    let (host, port) = authority.rsplit_once(':')?;
    port.bytes().all(|digit| digit.is_ascii_digit()).then_some(host)
}

fn without_port(url: &str) -> String {
    match parts(url).and_then(|(scheme, authority, rest)| Some((scheme, host(authority)?, rest))) {
        Some((scheme, host, rest)) => format!("{scheme}{host}{rest}"),
        None => url.to_owned(),
    }
}

fn with_port(url: &str) -> String {
    match parts(url).filter(|(_, authority, _)| host(authority).is_none()) {
        Some((scheme, authority, rest)) => {
            let port = if scheme == "https://" { 443 } else { 80 };
            format!("{scheme}{authority}:{port}{rest}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_comes_and_goes() {
        for (with, without) in [
            ("https://gw.example:443/x?y", "https://gw.example/x?y"),
            ("http://gw.example:80", "http://gw.example"),
            ("http://[::1]:80/", "http://[::1]/"),
        ] {
            assert_eq!((with_port(without), without_port(with)), (with.to_owned(), without.to_owned()));
            assert_eq!((with_port(with), without_port(without)), (with.to_owned(), without.to_owned()));
        }
        assert_eq!(without_port("https://gw.example:8443/"), "https://gw.example/");
    }

    #[test]
    fn fields_are_signed_in_order_and_once() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let form = vec![field("b", "2"), field("a", "9"), field("a", "1"), field("a", "9"), field("B", "x")];
        assert_eq!(sorted(&form), "Bxa1a9b2");
    }
}
