//! Dead letters: deliveries that ended without success and wait for a person.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    delivery::DeliveryState,
    ids::{ConnectionId, RouteId},
};

/// Which dead letters.
///
/// A member that this version does not know is refused: a node of an older version would replay more
/// than was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterFilter {
    pub states: Vec<DeliveryState>,
    /// The channel of the last attempt; the next four members are also of the last attempt.
    pub channel: Option<String>,
    pub connection: Option<ConnectionId>,
    pub provider: Option<String>,
    pub route: Option<RouteId>,
    /// The provider's, or the gateway's word for it.
    pub code: Option<String>,
    /// Those that ended at this time or later.
    pub since: Option<Timestamp>,
    /// Only those that ended before this time.
    pub until: Option<Timestamp>,
    pub recipient: Option<String>,
    pub reference: Option<String>,
}

impl Default for DeadLetterFilter {
    /// All of them.
    fn default() -> Self {
        Self {
            states: DeliveryState::DEAD.to_vec(),
            channel: None,
            connection: None,
            provider: None,
            route: None,
            code: None,
            since: None,
            until: None,
            recipient: None,
            reference: None,
        }
    }
}

/// The default states of a replay: without those that may have been sent already.
#[must_use]
pub fn certainly_unsent() -> Vec<DeliveryState> {
    DeliveryState::DEAD.into_iter().filter(|state| *state != DeliveryState::Unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_sent_is_asked_for_by_name() {
        assert_eq!(certainly_unsent().len(), DeliveryState::DEAD.len() - 1);
        assert!(!certainly_unsent().contains(&DeliveryState::Unknown));
    }
}
