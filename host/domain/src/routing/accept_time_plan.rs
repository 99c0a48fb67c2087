//! The plan of a message's first attempt, made when the message is accepted.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::Plan;
use crate::{ids::ConnectionId, route::RouteSpec};

/// The lifetime of the plan: a delivery that waits longer may meet other conditions. Breakers and limits are asked when
/// it goes in any case.
const LIFETIME: Duration = Duration::from_secs(10);

/// The plan of a delivery's first attempt, made before the delivery is written.
#[derive(Debug)]
pub struct AcceptTimePlan {
    pub plan: Plan,
    /// The plan's first connection, if it may be asked without an intent; it is on record with the message.
    pub first: Option<ConnectionId>,
    /// The route as scripts changed it, if they did.
    pub by_scripts: Option<Box<RouteSpec>>,
    /// The scripts' answers about the candidates, as JSON.
    pub scripts: Option<Box<RawValue>>,
    /// The scripts' faults.
    pub faults: Vec<String>,
    /// The delivery's turn among those of its route.
    pub turn: u64,
    /// The reading of the tenant's configuration that it was made with; it is valid with no other.
    pub config: u64,
    pub at: Instant,
}

impl AcceptTimePlan {
    /// Whether it may be followed with this reading of the configuration.
    #[must_use]
    pub fn holds(&self, config: u64, now: Instant) -> bool {
        self.config == config && now.saturating_duration_since(self.at) < LIFETIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_for_its_configuration_and_for_ten_seconds() {
        let at = Instant::now();
        let plan = Plan { strategy: "primary", candidates: Vec::new(), skipped: Vec::new(), instead: None };
        let (scripts, faults) = (None, Vec::new());
        let plan = AcceptTimePlan { plan, first: None, by_scripts: None, scripts, faults, turn: 0, config: 7, at };
        assert!(plan.holds(7, at + LIFETIME / 2));
        assert!(!plan.holds(8, at));
        assert!(!plan.holds(7, at + LIFETIME));
    }
}
