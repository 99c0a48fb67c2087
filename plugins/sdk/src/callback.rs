//! Callbacks: a service's later reports, from the request to the events.

use serde::de::DeserializeOwned;

pub use crate::callback_bindings::callbacks::{
    Callback, Check, Context, Encoding, Event, Freshness, Hash, Hmac, KeyFormat, Kv, PublicKeyAlgorithm, Reply,
    Request, Segment, Signature, Token,
};

/// The kinds of events that the gateway knows.
pub mod kind {
    pub const SENT: &str = "sent";
    pub const DELIVERED: &str = "delivered";
    pub const FAILED: &str = "failed";
    pub const BOUNCED: &str = "bounced";
    pub const READ: &str = "read";
    pub const CLICKED: &str = "clicked";
    pub const REPLIED: &str = "replied";
    pub const COMPLAINED: &str = "complained";
    pub const UNSUBSCRIBED: &str = "unsubscribed";
    pub const INBOUND: &str = "inbound";
}

impl Context {
    /// Whether the connection has the secret of that name.
    #[must_use]
    pub fn has_secret(&self, name: &str) -> bool {
        self.secrets.iter().any(|secret| secret == name)
    }
}

impl Request {
    /// The value of a header, by its name in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.as_str())
    }

    /// The first value of a query parameter.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        let query = self.url.split_once('?')?.1.split('#').next()?;
        form_decode(query.as_bytes()).into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The fields of an `application/x-www-form-urlencoded` body, in their order.
    #[must_use]
    pub fn form(&self) -> Vec<(String, String)> {
        form_decode(&self.body)
    }

    /// A JSON body; `None` if it is another.
    #[must_use]
    pub fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}

impl Callback {
    /// A callback that is believed if this check passes, and is answered with 204.
    #[must_use]
    pub fn new(check: Check) -> Self {
        Self {
            checks: vec![check],
            freshness: None,
            events: Vec::new(),
            reply: Reply { status: 204, content_type: String::new(), body: String::new() },
            ext: "{}".into(),
        }
    }

    /// Adds an alternative check.
    #[must_use]
    pub fn or(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// Adds an event.
    #[must_use]
    pub fn event(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }

    /// When it was signed, and how long after that it is still believed.
    #[must_use]
    pub fn signed_at(mut self, signed_at_ms: f64, tolerance_ms: f64) -> Self {
        self.freshness = Some(Freshness { signed_at_ms, tolerance_ms });
        self
    }

    /// Sets the answer to the service.
    #[must_use]
    pub fn reply(mut self, status: u16, content_type: &str, body: impl Into<String>) -> Self {
        self.reply = Reply { status, content_type: content_type.into(), body: body.into() };
        self
    }
}

impl Check {
    /// An HMAC with the secret of that name, whose bytes are the key. `expected` is the received signature.
    #[must_use]
    pub fn hmac(hash: Hash, key: &str, message: Vec<Segment>, encoding: Encoding, expected: &str) -> Self {
        let (key, expected) = (key.into(), expected.into());
        Self::Hmac(Hmac { hash, key, key_format: KeyFormat::Raw, message, encoding, expected })
    }

    /// A secret that the service repeats.
    #[must_use]
    pub fn token(secret: &str, given: &str) -> Self {
        Self::Token(Token { secret: secret.into(), given: given.into() })
    }
}

impl Event {
    /// An event of that kind; see [`kind`].
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self {
            kind: kind.into(),
            delivery: None,
            external_id: None,
            recipient: None,
            at_ms: None,
            code: String::new(),
            unified_code: String::new(),
            message: String::new(),
            detail: "{}".into(),
        }
    }

    /// The delivery's id, which came back.
    #[must_use]
    pub fn delivery(mut self, id: Option<String>) -> Self {
        self.delivery = id;
        self
    }

    /// The service's id of the message.
    #[must_use]
    pub fn external_id(mut self, id: impl Into<String>) -> Self {
        self.external_id = Some(id.into());
        self
    }

    /// The service's own code, and the gateway's word for it.
    #[must_use]
    pub fn code(mut self, code: impl ToString, unified_code: &str) -> Self {
        self.code = code.to_string();
        self.unified_code = unified_code.into();
        self
    }

    /// One sentence for a person.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Adds further data worth keeping: an object.
    #[must_use]
    pub fn detail(mut self, detail: &serde_json::Value) -> Self {
        self.detail = detail.to_string();
        self
    }
}

/// Reads `application/x-www-form-urlencoded` (WHATWG URL, section 5.1).
fn form_decode(text: &[u8]) -> Vec<(String, String)> {
    let fields = text.split(|byte| *byte == b'&').filter(|field| !field.is_empty());
    fields
        .map(|field| {
            let at = field.iter().position(|byte| *byte == b'=');
            let (name, value) = at.map_or((field, &[][..]), |at| (&field[..at], &field[at + 1..]));
            (decoded(name), decoded(value))
        })
        .collect()
}

fn decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        let body = "To=%2B4670+1&Body=a%26b%3D%C3%BC&empty=&bare&odd=%zz%4".into();
        let form = Request { body, ..Request::default() }.form();
        let expected = [("To", "+4670 1"), ("Body", "a&b=ü"), ("empty", ""), ("bare", ""), ("odd", "%zz%4")];
        assert_eq!(form, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_query_and_a_header_are_found() {
        let request = Request {
            url: "https://gw.example/v1/callbacks/t?x=1&delivery=dlv_7#part".into(),
            headers: vec![Kv { name: "x-signature".into(), value: "s".into() }],
            ..Request::default()
        };
        assert_eq!(request.query("delivery").as_deref(), Some("dlv_7"));
        assert_eq!(request.query("y"), None);
        assert_eq!(request.header("X-Signature"), Some("s"));
    }
}
