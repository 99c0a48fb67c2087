//! One try through one connection, as the ledger keeps it.

use std::{str::FromStr, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ids::{AttemptId, ConnectionId, RouteId},
    overrides::OverrideSource,
    provider::{Cost, Disposition},
    recipients::Recipients,
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
#[error("must be the trigger of an attempt, such as `retry` (got `{0}`)")]
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
    /// No receipt arrived for the message on the channel before this one.
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

/// The result of an attempt, as judged by the provider, or by the host if no answer came.
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
    /// The provider's own verdict, if the tenant overrides it.
    pub overridden: Option<Overridden>,
}

/// The provider's own classification, where an override replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overridden {
    pub said: Disposition,
    pub by: OverrideSource,
}

/// A secret of the connection is stored and cannot be opened.
pub const SECRET_UNAVAILABLE: &str = "secret_unavailable";
/// The operator did not grant the host that the provider declares.
pub const HOST_NOT_GRANTED: &str = "host_not_granted";

/// Whether a code names what only the operator can mend: nothing left, and the delivery waits without consuming an attempt.
#[must_use]
pub fn waits_for_operator(disposition: Disposition, code: &str) -> bool {
    disposition == Disposition::NotSent && [SECRET_UNAVAILABLE, HOST_NOT_GRANTED].contains(&code)
}

/// Unified codes that refuse the message or its recipient.
const OF_THE_MESSAGE: &[&str] =
    &["invalid_recipient", "unsubscribed", "invalid_content", "too_large", "not_found", "gone", "expired"];
/// Unified codes for refusals and lacks of this gateway itself.
const OF_THE_GATEWAY: &[&str] =
    &["provider_missing", "attachments_unavailable", "egress_refused", "invalid_transmission"];
/// Unified codes of a definite no that may pass.
const REFUSALS: &[&str] = &["unauthorized", "forbidden", "rejected"];

impl Verdict {
    /// Whether the refusal concerns the message or its recipient: any connection would refuse it.
    #[must_use]
    pub fn blames_message(&self) -> bool {
        let refused = matches!(self.disposition, Disposition::RejectedPermanent | Disposition::RejectedTransient);
        refused && OF_THE_MESSAGE.contains(&self.unified_code.as_str())
    }

    /// Whether the gateway or its operator is at fault, not the other side.
    #[must_use]
    pub fn blames_gateway(&self) -> bool {
        self.waits_for_operator() || OF_THE_GATEWAY.contains(&self.code.as_str())
    }

    /// Whether the other side decided against the message, rather than failed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self.disposition {
            Disposition::RejectedPermanent | Disposition::AuthFailed => true,
            Disposition::RejectedTransient => self.blames_message() || REFUSALS.contains(&self.unified_code.as_str()),
            Disposition::Accepted | Disposition::Throttled | Disposition::NotSent | Disposition::Unknown => false,
        }
    }

    /// Whether the verdict counts for the connection or against it; `None` if the fault lies with the recipient, the
    /// message or this gateway. `at_recipient`: an endpoint that the message named answered, and each of its failures
    /// is its own.
    #[must_use]
    pub fn is_success(&self, at_recipient: bool) -> Option<bool> {
        if self.disposition == Disposition::Accepted {
            return Some(true);
        }
        (!self.blames_gateway() && !self.blames_message() && !at_recipient).then_some(false)
    }

    /// Whether the attempt only waits for the operator.
    #[must_use]
    pub fn waits_for_operator(&self) -> bool {
        waits_for_operator(self.disposition, &self.code)
    }
}

/// The provider's build and the route's version behind an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub connection: ConnectionId,
    pub provider: Arc<str>,
    /// `None` if the worker that knew it was lost.
    pub provider_version: Option<Arc<str>>,
    pub provider_digest: Option<Arc<str>>,
    pub route: Option<(RouteId, i32)>,
    /// Whether the message named the endpoint that was asked, rather than the connection.
    pub at_recipient: bool,
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
    /// The result for each recipient, if the attempt went to several or to some of several.
    pub recipients: Recipients,
    /// Whether a further transaction may at once take the recipients that were too many for this one.
    pub further: bool,
}

impl Attempt {
    /// Whether it speaks for the connection or against it; `None` if it says nothing of it.
    #[must_use]
    pub fn is_success(&self) -> Option<bool> {
        self.verdict.is_success(self.origin.as_ref()?.at_recipient)
    }
}

/// The parts of an earlier attempt that routing remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastAttempt {
    pub connection: Option<ConnectionId>,
    pub disposition: Disposition,
    /// Whether it only waits for the operator ([`waits_for_operator`]): it consumes no attempt.
    pub waits_for_operator: bool,
    pub trigger: Trigger,
    pub started_at: Timestamp,
    /// Whether the delivery waited after it: the next attempt begins a round.
    pub round_closed: bool,
}
