//! A provider's descriptor and its judgement of an answer, independent of any version of the WIT.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    redaction::Redactor,
    transmission::{Kv, Mailbox, Transmission},
};

/// A secret that a provider's connections have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretSpec {
    pub name: String,
    /// One sentence for the person that enters the value.
    pub purpose: String,
    pub required: bool,
}

/// How a repeated hand-off is recognised on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deduplication {
    /// It is not: the intent is committed before the first byte.
    None,
    /// By the delivery's key.
    Key,
}

/// A provider's description, after validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Descriptor {
    pub name: String,
    pub version: String,
    pub summary: String,
    pub channels: Vec<String>,
    /// JSON Schema of a connection's `config`.
    pub config_schema: serde_json::Value,
    pub secrets: Vec<SecretSpec>,
    /// Host patterns: an exact name, `*.example.com`, `{config.field}`, `{to}`.
    pub hosts: Vec<String>,
    pub deduplication: Deduplication,
    pub cost_model: serde_json::Value,
    pub max_batch: u32,
    pub ext: serde_json::Value,
}

impl Descriptor {
    /// Whether its service signs no callbacks, so that the callback URL is the only secret.
    #[must_use]
    pub fn has_unsigned_callbacks(&self) -> bool {
        self.ext.get("unsigned_callbacks").and_then(serde_json::Value::as_bool) == Some(true)
    }

    /// Whether its requests go to the URL that a message is addressed to.
    #[must_use]
    pub fn asks_recipients(&self) -> bool {
        self.hosts.iter().any(|pattern| pattern == "{to}")
    }
}

/// All input of a guest that is not deterministic, as data.
#[derive(Debug, Clone, PartialEq)]
pub struct CallContext {
    /// Milliseconds since the epoch.
    pub now_ms: f64,
    /// 1 for the first attempt of the delivery.
    pub attempt: u32,
    pub seed: [u8; 32],
    /// Names of the secrets that the connection has.
    pub secrets: Vec<String>,
    /// Where the service can call back, for a provider that reads callbacks.
    pub callback_url: Option<String>,
    /// Hides the connection's secrets in the guest's log; no guest sees it.
    pub redactor: Arc<Redactor>,
}

/// A blob as a guest sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct BlobInfo {
    pub id: u32,
    pub name: String,
    pub media_type: String,
    pub size: f64,
    pub content_id: Option<String>,
}

/// A delivery as a guest sees it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Item {
    pub id: String,
    /// Stable for this delivery on this connection.
    pub key: String,
    pub channel: String,
    pub sender: Option<Mailbox>,
    pub reply_to: Vec<Mailbox>,
    pub to: Vec<Mailbox>,
    pub cc: Vec<Mailbox>,
    pub bcc: Vec<Mailbox>,
    pub subject: Option<String>,
    pub text: Option<String>,
    pub html: Option<String>,
    pub payload: Option<String>,
    pub headers: Vec<Kv>,
    pub params: Vec<Kv>,
    pub media_urls: Vec<String>,
    pub blobs: Vec<BlobInfo>,
}

/// The meaning of a provider's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    Accepted,
    /// Never again here; another provider may.
    RejectedPermanent,
    /// Again after a backoff, or after the provider's `Retry-After`.
    RejectedTransient,
    /// As transient, and no attempt is consumed.
    Throttled,
    /// Permanent for this connection.
    AuthFailed,
    /// Nothing left: DNS, connect, TLS or the egress guard stopped it.
    NotSent,
    /// It may or may not have been taken.
    Unknown,
}

impl Disposition {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Accepted,
        Self::RejectedPermanent,
        Self::RejectedTransient,
        Self::Throttled,
        Self::AuthFailed,
        Self::NotSent,
        Self::Unknown,
    ];

    /// The word in the API and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::RejectedPermanent => "rejected_permanent",
            Self::RejectedTransient => "rejected_transient",
            Self::Throttled => "throttled",
            Self::AuthFailed => "auth_failed",
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
        }
    }
}

/// A text that names no disposition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a disposition, such as `accepted` (got `{0}`)")]
pub struct InvalidDisposition(String);

impl FromStr for Disposition {
    type Err = InvalidDisposition;

    fn from_str(text: &str) -> Result<Self, InvalidDisposition> {
        Self::ALL
            .into_iter()
            .find(|disposition| disposition.as_str() == text)
            .ok_or_else(|| InvalidDisposition(text.to_owned()))
    }
}

/// An amount of money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Money)]
pub struct Cost {
    /// Millionths of the currency's unit.
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64, example = 7900)]
    pub micros: i64,
    /// ISO 4217; one for all of a route.
    #[schema(pattern = "^[A-Z]{3}$", example = "USD")]
    pub currency: String,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.micros as f64 / 1e6, self.currency)
    }
}

/// A provider's judgement of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    pub disposition: Disposition,
    /// The provider's own code.
    pub code: String,
    /// The gateway's vocabulary: see the contract's `outcome`.
    pub unified_code: String,
    pub message: String,
    pub external_id: Option<String>,
    pub retry_after_ms: Option<f64>,
    pub cost: Option<Cost>,
    pub units: Option<u32>,
}

/// The guest's next request.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Send { transmission: Transmission, state: Vec<u8> },
    Wait { ms: f64, state: Vec<u8> },
    Done(Vec<Judgement>),
}
