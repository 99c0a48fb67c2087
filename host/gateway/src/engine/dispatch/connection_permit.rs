//! The way into a connection: a slot of this node's, memory for a large content, and its guard's permit. A refused
//! delivery without another candidate waits, a moment in memory and longer in the queue.

use std::time::{Duration, Instant};

use tokio::sync::SemaphorePermit;

use super::{Dispatcher, bounds};
use crate::{
    clock,
    engine::guards::{GuardPass, GuardRefusal, PATIENCE},
    engine::planning::RoutePlan,
    engine::queue::Work,
    node::telemetry,
    node::tenant_config::{Endpoint, TenantConfig},
};
use angarium_domain::{
    attempt::{Trigger, Verdict},
    delivery::DeliveryState,
    ids::ConnectionId,
    message::Message,
    outcome::{Limit, Outcome},
    provider::Disposition,
    routing::Plan,
};
use angarium_transport::byte_budget::BytePermit;

/// The connection that a delivery asks next.
pub(super) struct PermitRequest {
    pub connection: ConnectionId,
    /// Whether its guard would let the delivery pass now; if it does not after all, another may be asked. Otherwise
    /// there is no other candidate, and the delivery waits for it.
    pub is_free: bool,
    /// The origin of the endpoint that the message names, if it does.
    pub origin: Option<String>,
}

/// The result of a permit request.
pub(super) enum PermitAnswer<'a> {
    In(ConnectionPermit<'a>),
    Refused(GuardRefusal),
    /// The process ends, or the delivery is no longer this node's.
    Closed,
}

/// A place in a connection, given back when it is dropped.
pub(super) struct ConnectionPermit<'a> {
    _slot: SemaphorePermit<'a>,
    pass: GuardPass,
    /// For the content of a large message.
    permit: Option<BytePermit>,
}

impl ConnectionPermit<'_> {
    /// The permit for the message's content, which the attempt gives back when that has left.
    pub(super) const fn permit(&mut self) -> Option<BytePermit> {
        self.permit.take()
    }

    /// Reports the attempt's result to the guard.
    pub(super) fn record(self, verdict: &Verdict) {
        self.pass.record(verdict);
    }
}

impl Dispatcher {
    /// Returns the plan's first candidate, or else the one whose guard lets a delivery pass soonest.
    pub(super) fn wanted(&self, plan: &Plan, config: &TenantConfig, message: &Message) -> Option<PermitRequest> {
        let origin = |connection| self.planner.named_origin(&config.endpoints[&connection], message);
        if let Some(candidate) = plan.candidates.first() {
            let connection = candidate.connection;
            return Some(PermitRequest { connection, is_free: true, origin: origin(connection) });
        }
        let now = Instant::now();
        let held = plan.skipped.iter().filter(|skipped| skipped.reason.is_a_guard()).map(|it| it.connection);
        let held = held.map(|connection| PermitRequest { connection, is_free: false, origin: origin(connection) });
        held.min_by_key(|it| config.endpoints[&it.connection].guard.opens_at(it.origin.as_deref(), now))
    }

    /// Enters a connection. The guard is asked last: its permit is used at once.
    pub(super) async fn enter<'a>(
        &self,
        work: &Work,
        endpoint: &'a Endpoint,
        wanted: &PermitRequest,
    ) -> PermitAnswer<'a> {
        // Closed only when the process ends.
        let Ok(slot) = endpoint.slots.acquire().await else { return PermitAnswer::Closed };
        let Ok(permit) = self.permit(work).await else { return PermitAnswer::Closed };
        self.ledger.writable().await;
        let patience = if wanted.is_free { Duration::ZERO } else { PATIENCE };
        match endpoint.guard.enter(wanted.origin.as_deref(), patience).await {
            Ok(pass) => PermitAnswer::In(ConnectionPermit { _slot: slot, pass, permit }),
            Err(refusal) => PermitAnswer::Refused(refusal),
        }
    }

    /// Puts a delivery back until its connection may be asked, or until it expires. A retry by hand
    /// waits as long as it takes; any other no longer than its route says, or deliveries live.
    pub(super) fn put_off(
        &self,
        work: Work,
        config: &TenantConfig,
        planned: &RoutePlan<'_>,
        wanted: &PermitRequest,
        refusal: GuardRefusal,
    ) {
        let guard = &config.endpoints[&wanted.connection].guard;
        let wait = guard.put_off(wanted.origin.as_deref(), refusal).saturating_duration_since(Instant::now());
        let at = clock::now().checked_add(wait).unwrap_or(jiff::Timestamp::MAX);
        let limit = bounds(&work, &planned.route.spec).limit(at);
        if let Some(limit) = limit.filter(|limit| *limit != Limit::Expiry && work.trigger != Trigger::Manual) {
            let unknown = work.past.last().is_some_and(|last| last.disposition == Disposition::Unknown);
            let state = if unknown { DeliveryState::Unknown } else { DeliveryState::Failed };
            let code = refusal.skip.fallback_reason().map_or("no_candidate", |reason| reason.as_str());
            let why = format!("{}; {limit}", self.why_nobody(work.tenant, config, &planned.plan));
            return self.close(work, Outcome::End(state), code, &why, planned.describe());
        }
        if let Some(reason) = refusal.skip.fallback_reason() {
            telemetry::deferred(reason);
        }
        // A message that expires first ends then, and is not kept waiting.
        let at = work.message.expires_at.map_or(at, |expires_at| at.min(expires_at));
        self.ledger.defer(work, at);
    }
}
