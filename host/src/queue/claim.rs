//! Fills the room from the database: claims what is due, loads it, and hands it over.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Handoff, Leases, Room, Work};
use crate::{
    domain::{
        attempt::Trigger,
        ids::{DeliveryId, MessageId, TenantId},
        message::Message,
    },
    failpoint::failpoint,
    store::{
        self, Store,
        attempt::{Past, past_load},
        message::message_load,
        queue::{NewLease, lease_insert, queue_claim},
    },
};

/// The most deliveries of one claim.
const BATCH: usize = 500;

/// Claims due deliveries as long as there is room.
pub struct Claimer {
    pub store: Store,
    pub room: Arc<Room>,
    pub leases: Arc<Leases>,
    pub handoff: Handoff,
    /// Rung when something due was put into the queue, on this node or another.
    pub bell: Arc<Notify>,
    /// How long an idle claimer waits for the bell.
    pub poll: Duration,
}

impl Claimer {
    /// Runs until it is told to stop; a failing database is asked again after a pause.
    ///
    /// A claim is never broken off half-way: what it took would wait for its lease to end.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let idle = match self.claim().await {
                Ok(count) => count < BATCH / 2,
                Err(error) => {
                    tracing::warn!(%error, "claiming failed; it goes on when the database answers");
                    true
                }
            };
            if idle {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.bell.notified() => {}
                    () = tokio::time::sleep(self.poll) => {}
                }
            }
        }
    }

    /// One claim; tells how many deliveries it found.
    async fn claim(&self) -> store::Result<usize> {
        let limit = self.room.free().min(BATCH);
        if limit == 0 {
            return Ok(0);
        }
        let asked_at = Instant::now();
        let mut txn = self.store.worker().await?;
        let claimed = queue_claim(&mut txn, limit as i64, per_tenant(limit), &self.room.saturated()).await?;
        if claimed.is_empty() {
            return Ok(0);
        }
        let pasts = past_load(&mut txn, &claimed).await?;
        let leases = leases_for(&claimed, &pasts);
        lease_insert(&mut txn, self.leases.node, self.leases.length, &leases).await?;
        let messages = message_load(&mut txn, &messages_of(&claimed, &pasts)).await?;
        failpoint!(ClaimBeforeCommit);
        txn.commit().await?;
        failpoint!(ClaimAfterCommit);
        self.hand_over(&leases, messages, pasts, asked_at);
        Ok(claimed.len())
    }

    fn hand_over(&self, leases: &[NewLease], messages: Vec<(TenantId, Message)>, pasts: Vec<Past>, asked_at: Instant) {
        let mut pasts: HashMap<_, _> = pasts.into_iter().map(|past| (past.delivery, past)).collect();
        let mut messages: HashMap<_, _> = messages.into_iter().map(|(_, message)| (message.id, message)).collect();
        for lease in leases {
            let of = |(id, _): &(DeliveryId, u32)| Some((*id, message_of(*id, pasts.get(id), &mut messages)?));
            let found: Vec<(DeliveryId, Message)> = lease.deliveries.iter().filter_map(of).collect();
            let places = self.room.take(lease.tenant, found.len());
            let held = self.leases.take(lease.tenant, lease.id, found.len(), asked_at);
            let work = found.into_iter().zip(places).map(|((delivery, message), place)| {
                let past = pasts.remove(&delivery);
                let next = past.as_ref().and_then(|past| past.next_attempt_at);
                Work {
                    tenant: lease.tenant,
                    delivery,
                    due_at: next.unwrap_or_else(|| message.due_at()),
                    message: Arc::new(message),
                    lease: Arc::clone(&held),
                    attempts: past.as_ref().map_or(0, |past| past.attempts),
                    deaths: past.as_ref().map_or(0, |past| past.deaths),
                    trigger: past.as_ref().map_or(Trigger::Scheduled, next_trigger),
                    fallback: past.as_ref().filter(|past| past.attempts == 0).and_then(|past| past.begun_by),
                    past: past.map(|past| past.counted).unwrap_or_default(),
                    place,
                }
            });
            // The other end closes only when the node stops; recovery then takes the lease.
            let _ = self.handoff.send(work.collect());
        }
    }
}

fn next_trigger(past: &Past) -> Trigger {
    past.trigger.as_deref().and_then(|text| text.parse().ok()).unwrap_or(Trigger::Retry)
}

/// Half of a claim at most is one tenant's; what is left over serves the others.
fn per_tenant(limit: usize) -> i64 {
    limit.div_ceil(2) as i64
}

/// Each message once. A delivery without a past is its message's only one.
fn messages_of(claimed: &[(TenantId, DeliveryId)], pasts: &[Past]) -> Vec<(TenantId, MessageId)> {
    let known: HashMap<DeliveryId, MessageId> = pasts.iter().map(|past| (past.delivery, past.message)).collect();
    let message = |id: &DeliveryId| known.get(id).copied().unwrap_or_else(|| id.uuid().into());
    let messages: HashSet<_> = claimed.iter().map(|(tenant, delivery)| (*tenant, message(delivery))).collect();
    messages.into_iter().collect()
}

/// A delivery's message; where that has several legs, as this one sees it.
fn message_of(id: DeliveryId, past: Option<&Past>, messages: &mut HashMap<MessageId, Message>) -> Option<Message> {
    match past.and_then(|past| Some((past.message, past.begun_at?))) {
        Some((message, begun_at)) => Some(messages.get(&message)?.as_leg(id.leg_of(message), begun_at)),
        None => messages.remove(&id.uuid().into()),
    }
}

fn leases_for(claimed: &[(TenantId, DeliveryId)], pasts: &[Past]) -> Vec<NewLease> {
    let attempts: HashMap<DeliveryId, u32> = pasts.iter().map(|past| (past.delivery, past.attempts)).collect();
    let mut by_tenant: HashMap<TenantId, Vec<(DeliveryId, u32)>> = HashMap::new();
    for (tenant, delivery) in claimed {
        let attempts = attempts.get(delivery).copied().unwrap_or(0);
        by_tenant.entry(*tenant).or_default().push((*delivery, attempts));
    }
    by_tenant.into_iter().map(|(tenant, deliveries)| NewLease { tenant, id: Uuid::now_v7(), deliveries }).collect()
}
