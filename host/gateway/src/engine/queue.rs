//! The deliveries that this node holds: its capacity in memory, its leases, and the claims that fill the capacity from
//! the database. It never sends and never decides an outcome.

mod capacity;
mod claim;
mod lease;
pub mod renew;
mod shares;
mod small_tenant_priority;

use std::{sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::mpsc;

pub use self::{
    capacity::{Capacity, Slot},
    claim::Claimer,
    lease::{Lease, Leases},
    small_tenant_priority::{PriorityGuard, SmallTenantPriority},
};
use crate::node::tenant_config::TenantConfig;
use angarium_domain::{
    attempt::{FallbackReason, PastAttempt, Trigger},
    ids::{ConnectionId, DeliveryId, TenantId},
    message::Message,
    recipients::Recipients,
    route::RouteSpec,
    routing::Plan,
};
use angarium_rules::{rulebook::JudgedMessage, ruling::HookRecord};

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
    /// Why this channel is tried, where another one was before it; of the first attempt.
    pub fallback: Option<FallbackReason>,
    /// Its room in memory, given back when it is dropped.
    pub slot: Slot,
    /// It goes before others' until it was attempted.
    pub before_others: Option<Arc<PriorityGuard>>,
    /// The plan of its first attempt, decided before it was written.
    pub first_attempt: Option<Box<AcceptTimePlan>>,
}

/// The plan of a delivery's first attempt, decided before the delivery was written.
#[derive(Debug)]
pub struct AcceptTimePlan {
    pub plan: Plan,
    /// The plan's first, where it is handed to it without an intent: that is on record with the message.
    pub first: Option<ConnectionId>,
    /// The route as scripts want it, where scripts had a say.
    pub by_scripts: Option<Box<RouteSpec>>,
    /// The scripts' answers about the candidates.
    pub hook_records: Vec<HookRecord>,
    /// The scripts' faults.
    pub faults: Vec<String>,
    /// The delivery's turn among those of its route.
    pub turn: u64,
    /// The configuration of the decision; the plan is valid only with it.
    pub config: Arc<TenantConfig>,
    pub at: Instant,
}

/// Plans the first attempt of a message, if any candidate can be asked.
pub trait FirstAttemptPlanner: Send + Sync {
    /// Returns the plan of a message that is about to be accepted; `None` if it is not to be decided before the message
    /// is due, or if no connection can be asked.
    fn plan_first<'a>(
        &'a self,
        tenant: TenantId,
        config: &'a Arc<TenantConfig>,
        message: &'a Message,
        known: JudgedMessage,
    ) -> BoxFuture<'a, Option<AcceptTimePlan>>;
}

/// Where deliveries go that this node holds: dispatch reads the other end.
pub type Handoff = mpsc::UnboundedSender<Vec<Work>>;
