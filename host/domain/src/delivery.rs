//! One leg of a message: its states, and which may follow which.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The state of a delivery.
// It moves forward only; `docs/states.md` draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Accepted,
    /// Due later: `send_at`.
    Scheduled,
    /// Waits for an attempt, the first or a further one.
    Queued,
    /// A provider took it.
    Sent,
    /// A receipt says that it arrived.
    Delivered,
    Failed,
    Bounced,
    Expired,
    Canceled,
    Suppressed,
    /// No connection could be asked.
    Unroutable,
    /// A request began and no definite answer came.
    Unknown,
}

/// A text that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be the state of a delivery, such as `sent` (got `{0}`)")]
pub struct InvalidState(String);

impl DeliveryState {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Accepted,
        Self::Scheduled,
        Self::Queued,
        Self::Sent,
        Self::Delivered,
        Self::Failed,
        Self::Bounced,
        Self::Expired,
        Self::Canceled,
        Self::Suppressed,
        Self::Unroutable,
        Self::Unknown,
    ];

    /// The states of dead letters.
    pub const DEAD: [Self; 5] = [Self::Failed, Self::Bounced, Self::Expired, Self::Unroutable, Self::Unknown];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Canceled => "canceled",
            Self::Suppressed => "suppressed",
            Self::Unroutable => "unroutable",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the gateway does nothing more of its own accord.
    #[must_use]
    pub const fn is_end(self) -> bool {
        !matches!(self, Self::Accepted | Self::Scheduled | Self::Queued)
    }

    /// Whether a person may ask for another attempt.
    #[must_use]
    pub const fn may_be_retried(self) -> bool {
        matches!(self, Self::Failed | Self::Bounced | Self::Expired | Self::Canceled | Self::Unroutable | Self::Unknown)
    }
}

impl FromStr for DeliveryState {
    type Err = InvalidState;

    fn from_str(text: &str) -> Result<Self, InvalidState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| InvalidState(text.to_owned()))
    }
}
