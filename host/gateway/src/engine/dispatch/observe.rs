//! The memory of what attempts came to, for the next plans.

use std::time::Instant;

use super::Dispatcher;
use crate::engine::{observations::Sighting, planning::country};
use angarium_domain::{attempt::Attempt, message::Message, price};

impl Dispatcher {
    /// Remembers the result of an attempt.
    pub(super) fn observe(&self, message: &Message, attempt: &Attempt) {
        let Some(origin) = &attempt.origin else { return };
        let sighting = Sighting {
            connection: origin.connection,
            country: country(message),
            verdict: &attempt.verdict,
            at_recipient: origin.at_recipient,
            took: attempt.finished_at.duration_since(attempt.started_at).try_into().unwrap_or_default(),
            units: price::units(message),
        };
        self.planner.observations.record(&sighting, Instant::now());
    }
}
