//! Whether a delivery may be attempted now: before its first attempt, scripts may have it wait or end.

use jiff::Timestamp;

use super::Dispatcher;
use crate::{engine::queue::Work, node::tenant_config::TenantConfig};
use angarium_domain::delivery::DeliveryState;

/// The state of a delivery before an attempt.
#[derive(Debug, PartialEq)]
pub(super) enum Readiness {
    /// It is attempted; with a note for the attempt, if there is one.
    Ready(Option<String>),
    /// It is asked again then.
    Waits(Timestamp),
    /// It ends in this state, with its code and the reason.
    Ends(DeliveryState, &'static str, String),
}

impl Dispatcher {
    /// Asks the message's condition, and then a script that could not be asked at acceptance.
    pub(super) async fn readiness(&self, config: &TenantConfig, work: &Work) -> Readiness {
        match self.condition(config, work).await {
            Readiness::Ready(note) => match self.asked_again(config, work).await {
                Readiness::Ready(_) => Readiness::Ready(note),
                not_ready => not_ready,
            },
            not_ready => not_ready,
        }
    }
}
