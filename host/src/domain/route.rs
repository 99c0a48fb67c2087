//! A channel's routing configuration: candidates, strategy, retry policy, fallback.

use serde::{Deserialize, Serialize};

use super::{ids::ConnectionId, retry::RetryPolicy};

/// How the candidates are ordered. Each is one pure function in `routing`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// As the route lists them: the first serves, the others stand in.
    #[default]
    Primary,
}

/// What to do when a request began and no definite answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// Again on the same connection with the same key.
    Retry,
    /// Wait for a receipt or a person.
    Hold,
}

impl OnUnknown {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Hold => "hold",
        }
    }
}

/// One connection of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    pub connection: ConnectionId,
}

/// A version of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// 1 to 20, each connection once.
    pub candidates: Vec<Candidate>,
    #[serde(default)]
    pub strategy: Strategy,
    #[serde(default)]
    pub retry: RetryPolicy,
    /// Whether the next candidate serves at once when one did not take the delivery.
    #[serde(default = "yes")]
    pub fallback: bool,
    /// Left out: `retry` where the provider recognises a repetition, `hold` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown: Option<OnUnknown>,
}

const fn yes() -> bool {
    true
}

impl RouteSpec {
    /// What a message that names its own connection is routed by.
    #[must_use]
    pub fn pinned(connection: ConnectionId) -> Self {
        Self {
            candidates: vec![Candidate { connection }],
            strategy: Strategy::Primary,
            retry: RetryPolicy::default(),
            fallback: false,
            on_unknown: None,
        }
    }
}
