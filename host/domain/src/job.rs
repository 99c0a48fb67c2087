//! Jobs: replays of dead letters, and actions on many messages.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::delivery::DeliveryState;

/// The action of a job, on each message that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobAction {
    /// Ends messages that have not begun to leave.
    Cancel,
    /// Opens ended messages for another attempt.
    Retry,
    /// Decides about unknown messages.
    Resolve,
}

impl JobAction {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Resolve => "resolve",
        }
    }

    /// Returns the action of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Cancel, Self::Retry, Self::Resolve].into_iter().find(|it| it.as_str() == name)
    }
}

/// A person's decision about a delivery without a definite answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownResolution {
    /// It was taken.
    Sent,
    /// It was not, and is not sent again.
    Failed,
    /// Send it again, through the same connection with the same key.
    Again,
}

impl UnknownResolution {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Again => "again",
        }
    }

    /// Returns the delivery's state after it.
    #[must_use]
    pub const fn state(self) -> DeliveryState {
        match self {
            Self::Sent => DeliveryState::Sent,
            Self::Failed => DeliveryState::Failed,
            Self::Again => DeliveryState::Queued,
        }
    }

    /// Returns the decision of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Sent, Self::Failed, Self::Again].into_iter().find(|it| it.as_str() == name)
    }
}

/// The state of a job: a replay of dead letters, or an action on many messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Running,
    /// All that matched was looked at.
    Finished,
    Canceled,
}

impl JobState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Canceled => "canceled",
        }
    }
}

/// A text that is no state of a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be the state of a job (got `{0}`)")]
pub struct InvalidJobState(String);

impl FromStr for JobState {
    type Err = InvalidJobState;

    fn from_str(text: &str) -> Result<Self, InvalidJobState> {
        let states = [Self::Running, Self::Finished, Self::Canceled];
        states.into_iter().find(|it| it.as_str() == text).ok_or_else(|| InvalidJobState(text.to_owned()))
    }
}
