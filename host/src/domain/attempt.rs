//! One try through one connection, as the ledger keeps it.

use std::{str::FromStr, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ids::{AttemptId, ConnectionId, RouteId},
    overrides::Source,
    provider::{Cost, Disposition},
};

/// Why an attempt was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// It was due: the first one.
    Scheduled,
    /// The retry policy.
    Retry,
    /// The candidate before it did not take the delivery.
    Fallback,
    /// A person asked for it.
    Manual,
    /// The worker that held the delivery was lost.
    Recovery,
}

impl Trigger {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Retry => "retry",
            Self::Fallback => "fallback",
            Self::Manual => "manual",
            Self::Recovery => "recovery",
        }
    }
}

/// A text that names no trigger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a trigger of an attempt")]
pub struct InvalidTrigger(String);

impl FromStr for Trigger {
    type Err = InvalidTrigger;

    fn from_str(text: &str) -> Result<Self, InvalidTrigger> {
        [Self::Scheduled, Self::Retry, Self::Fallback, Self::Manual, Self::Recovery]
            .into_iter()
            .find(|trigger| trigger.as_str() == text)
            .ok_or_else(|| InvalidTrigger(text.to_owned()))
    }
}

/// Why another candidate was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackReason {
    /// It answered, and did not take the delivery.
    PrimaryFailed,
    /// It did not answer, or its plugin failed.
    ProviderUnavailable,
    /// It is asked as often as it may be, or said that it is asked too often.
    RateLimited,
    /// Its circuit breaker is open.
    CircuitOpen,
    /// It would have cost more than the ceiling.
    CostThreshold,
    /// It succeeds less often than the route asks for.
    QualityThreshold,
    /// The message's channel before this one did not deliver it.
    ChannelFailed,
    /// No receipt came for what was sent by the channel before this one.
    NoReceipt,
}

impl FallbackReason {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrimaryFailed => "primary_failed",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::RateLimited => "rate_limited",
            Self::CircuitOpen => "circuit_open",
            Self::CostThreshold => "cost_threshold",
            Self::QualityThreshold => "quality_threshold",
            Self::ChannelFailed => "channel_failed",
            Self::NoReceipt => "no_receipt",
        }
    }
}

/// What an attempt came to, whoever judged it: the provider, or the host where no answer came.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub disposition: Disposition,
    /// HTTP status or SMTP code, where there was an answer.
    pub status: Option<u16>,
    pub code: String,
    pub unified_code: String,
    pub detail: String,
    pub external_id: Option<String>,
    pub retry_after_ms: Option<u64>,
    pub cost: Option<Cost>,
    pub units: Option<u32>,
    /// Where the tenant understands it otherwise than the provider.
    pub overridden: Option<Overridden>,
}

/// What a provider said itself, where an override says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overridden {
    pub said: Disposition,
    pub by: Source,
}

/// Who made an attempt possible: the provider's build and the route's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub connection: ConnectionId,
    pub provider: Arc<str>,
    /// `None` where the worker that knew was lost.
    pub provider_version: Option<Arc<str>>,
    pub provider_digest: Option<Arc<str>>,
    pub route: Option<(RouteId, i32)>,
}

/// A finished attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    pub id: AttemptId,
    /// 1 for the first of its delivery.
    pub number: u32,
    pub trigger: Trigger,
    /// `None` when no candidate could be asked.
    pub origin: Option<Origin>,
    /// The plan it followed, as JSON.
    pub plan: Arc<str>,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub verdict: Verdict,
    /// Why this candidate was asked in place of the one before it.
    pub fallback_reason: Option<FallbackReason>,
    /// Time in the plugin, microseconds.
    pub plugin_micros: u32,
    /// Peak memory of the plugin, bytes.
    pub plugin_memory: u64,
}

/// What routing remembers of an earlier attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastAttempt {
    pub connection: Option<ConnectionId>,
    pub disposition: Disposition,
    pub trigger: Trigger,
    pub started_at: Timestamp,
    /// Whether the delivery waited after it: the next attempt begins a round.
    pub round_closed: bool,
}
