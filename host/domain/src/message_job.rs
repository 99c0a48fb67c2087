//! Jobs that act on many messages.

use serde::{Deserialize, Serialize};

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

/// A person's decision about unknown deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobResolution {
    /// They were taken.
    Sent,
    /// They were not, and are not sent again.
    Failed,
    /// They are sent again, through the same connection with the same key.
    Again,
}

impl JobResolution {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Again => "again",
        }
    }

    /// Returns the decision of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Sent, Self::Failed, Self::Again].into_iter().find(|it| it.as_str() == name)
    }
}
