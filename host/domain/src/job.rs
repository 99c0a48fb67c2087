//! Jobs: actions on many messages, and replays of many dead letters.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::delivery::DeliveryState;

/// The action of a job, on each message or dead letter that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobAction {
    /// Ends messages that have not begun to leave.
    Cancel,
    /// Opens ended messages for another attempt.
    Retry,
    /// Decides about unknown messages.
    Resolve,
    /// Opens dead letters for another attempt.
    Replay,
}

impl JobAction {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Resolve => "resolve",
            Self::Replay => "replay",
        }
    }

    /// Returns the action of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Cancel, Self::Retry, Self::Resolve, Self::Replay].into_iter().find(|it| it.as_str() == name)
    }

    /// Whether a message in this state can allow the action. One that was sent, or may have been, can still wait for a
    /// receipt that decides about its next channel: that is canceled.
    #[must_use]
    pub const fn may_take(self, state: DeliveryState) -> bool {
        match self {
            Self::Cancel => !state.is_end() || matches!(state, DeliveryState::Sent | DeliveryState::Unknown),
            Self::Retry => !matches!(state, DeliveryState::Sent | DeliveryState::Delivered),
            Self::Resolve | Self::Replay => true,
        }
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

/// The state of a job.
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

/// Returns the most that a job's next step acts on: a fifth of a second's at its rate, no more than is `left` of its
/// limit, and no more than `most`.
#[must_use]
pub fn step_size(rate_per_second: Option<u32>, left: Option<i64>, most: u32) -> u32 {
    let by_rate = rate_per_second.map_or(most, |rate| rate.div_ceil(5));
    let left = left.map_or(u32::MAX, |left| u32::try_from(left.max(0)).unwrap_or(u32::MAX));
    by_rate.min(left).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_short_and_acts_on_something() {
        assert_eq!([1, 5, 6, 1000].map(|rate| step_size(Some(rate), None, 200)), [1, 1, 2, 200]);
        assert_eq!(step_size(Some(1000), None, 20), 20);
        assert_eq!(step_size(None, None, 20), 20);
    }

    #[test]
    fn a_step_keeps_to_the_limit() {
        assert_eq!([3, 0, -1].map(|left| step_size(Some(50), Some(left), 200)), [3, 0, 0]);
        assert_eq!(step_size(None, Some(i64::MAX), 20), 20);
    }

    #[test]
    fn every_action_has_its_name() {
        for name in ["cancel", "retry", "resolve", "replay"] {
            assert_eq!(JobAction::named(name).map(JobAction::as_str), Some(name));
        }
    }
}
