//! A request to a connection's callback URL: as it came, and as its provider reads it.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    receipt::Receipt,
    redaction::Redactor,
    transmission::{KeyFormat, Kv},
};

/// The beginning of a callback's path; the connection's token follows.
pub const CALLBACK_PATH: &str = "/v1/callbacks/";

/// The address at which others reach this gateway; empty if it is not configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublicUrl(Option<String>);

impl PublicUrl {
    /// Such as `https://angarium.example.org`, with or without a slash at its end.
    #[must_use]
    pub fn new(base: Option<&str>) -> Self {
        Self(base.map(|base| base.trim_end_matches('/').to_owned()))
    }

    /// The beginning of every address of the gateway, as others know it.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The whole callback URL of a token, where one can be told.
    #[must_use]
    pub fn callback(&self, token: &str) -> Option<String> {
        self.0.as_ref().map(|base| format!("{base}{CALLBACK_PATH}{token}"))
    }

    /// The same, or its path alone.
    #[must_use]
    pub fn callback_or_path(&self, token: &str) -> String {
        self.callback(token).unwrap_or_else(|| format!("{CALLBACK_PATH}{token}"))
    }

    /// A request's URL as the other side knows it. Where no base is set it is a guess by the `Host`
    /// header.
    #[must_use]
    pub fn of_request(&self, host: &str, path_and_query: &str) -> String {
        match &self.0 {
            Some(base) => format!("{base}{path_and_query}"),
            None => format!("http://{host}{path_and_query}"),
        }
    }
}

/// A request as it came, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackRequest {
    pub method: String,
    pub url: String,
    /// Names in lower case.
    pub headers: Vec<Kv>,
    pub body: Bytes,
}

/// The provider's input beside the request and its connection's config.
#[derive(Debug, Clone, PartialEq)]
pub struct CallbackContext {
    /// Milliseconds since the epoch.
    pub now_ms: f64,
    /// Names of the secrets that the connection has.
    pub secrets: Vec<String>,
    /// Hides the connection's secrets in the guest's log; no guest sees it.
    pub redactor: Arc<Redactor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicKeyAlgorithm {
    Ed25519,
    EcdsaP256Sha256,
}

/// How a signature that came is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureEncoding {
    Hex,
    Base64,
    Base64Url,
}

/// A piece of the signed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signed {
    Text(String),
    Bytes(Vec<u8>),
    /// The request's body as it came.
    Body,
}

/// A signature as it came, over these pieces, and the key that is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Name of the secret.
    pub key: String,
    pub key_format: KeyFormat,
    pub message: Vec<Signed>,
    pub encoding: SignatureEncoding,
    pub expected: String,
}

/// A check that proves a request to be the service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallbackCheck {
    Hmac(Hash, Claim),
    Signature(PublicKeyAlgorithm, Claim),
    /// A secret that the other side repeats.
    Token {
        secret: String,
        given: String,
    },
    /// Nothing does; only for a provider that says so of itself.
    Unsigned,
}

/// When a request was signed, and how far from now that may be. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Freshness {
    pub signed_at_ms: f64,
    pub tolerance_ms: f64,
}

/// The answer to the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackReply {
    pub status: u16,
    /// Empty for none.
    pub content_type: String,
    pub body: String,
}

/// A callback as its provider reads it. Nothing of it is believed before one of the checks passes.
#[derive(Debug, Clone, PartialEq)]
pub struct Callback {
    pub checks: Vec<CallbackCheck>,
    pub freshness: Option<Freshness>,
    pub receipts: Vec<Receipt>,
    pub reply: CallbackReply,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_url_is_whole_where_others_can_find_the_gateway() {
        let set = PublicUrl::new(Some("https://gw.example/angarium/"));
        assert_eq!(set.callback("t").as_deref(), Some("https://gw.example/angarium/v1/callbacks/t"));
        assert_eq!(
            set.of_request("inner:8080", "/v1/callbacks/t?a=%20"),
            "https://gw.example/angarium/v1/callbacks/t?a=%20"
        );
        let unset = PublicUrl::default();
        assert_eq!((unset.callback("t"), unset.callback_or_path("t").as_str()), (None, "/v1/callbacks/t"));
        assert_eq!(unset.of_request("inner:8080", "/x"), "http://inner:8080/x");
    }
}
