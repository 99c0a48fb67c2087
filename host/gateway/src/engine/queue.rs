//! The deliveries that this node holds: their leases, and the claims that fill its capacity from the database. It never
//! sends, never decides an outcome, and knows neither rules nor configuration.

mod claim;
mod lease;
pub mod renew;
mod shares;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;

pub use self::{
    claim::Claimer,
    lease::{Lease, Leases},
};
use super::{capacity::Slot, small_tenant_priority::PriorityGuard};
use angarium_domain::{
    attempt::{FallbackReason, PastAttempt, Trigger},
    ids::{DeliveryId, TenantId},
    message::Message,
    recipients::Recipients,
    routing::AcceptTimePlan,
};

/// A delivery that this node holds.
#[derive(Debug)]
pub struct Work {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub message: Arc<Message>,
    pub lease: Arc<Lease>,
    /// When the next attempt was due.
    pub due_at: Timestamp,
    /// The attempts that count, oldest first.
    pub past: Vec<PastAttempt>,
    /// The outcome so far for each recipient of a mail with copies.
    pub recipients: Recipients,
    /// Number of the last attempt.
    pub attempts: u32,
    /// Workers that died while they held it.
    pub deaths: u32,
    /// Why the next attempt is made.
    pub trigger: Trigger,
    /// The reason for trying this channel after another one; for the first attempt.
    pub fallback: Option<FallbackReason>,
    /// Its part of the node's capacity, given back when it is dropped.
    pub slot: Slot,
    /// Pauses other tenants' work until the next outcome, if a small tenant has just sent it.
    pub priority_guard: Option<Arc<PriorityGuard>>,
    /// The plan of its first attempt, decided before it was written.
    pub first_attempt: Option<Box<AcceptTimePlan>>,
}

/// The queue of deliveries that this node holds: dispatch reads the other end.
pub type Handoff = mpsc::UnboundedSender<Vec<Work>>;
