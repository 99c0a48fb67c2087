//! Fills the capacity from the database: claims due deliveries, loads them, and hands them over.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Handoff, Leases, Work, shares::shares};
use crate::engine::{capacity::Capacity, small_tenant_priority::SmallTenantPriority};
use angarium_domain::{
    attempt::Trigger,
    ids::{DeliveryId, MessageId, TenantId},
    message::{Message, Priority},
};
use angarium_store::{
    self as store, Connection, Store,
    attempt::{Past, past_load},
    failpoint,
    message::message_load,
    queue::{Claimed, NewLease, QueueLane, Share, lease_insert, queue_claim, queue_lanes},
};

/// The most deliveries of one claim.
const BATCH: usize = 500;

/// The most tenants' priorities that one walk looks at.
const WALK: usize = 512;

/// The number of rounds in which a claim distributes the remaining capacity.
const ROUNDS: usize = 3;

/// Claims due deliveries as long as there is room.
pub struct Claimer {
    pub store: Store,
    pub capacity: Arc<Capacity>,
    pub leases: Arc<Leases>,
    pub handoff: Handoff,
    pub small_tenants: Arc<SmallTenantPriority>,
    /// Rung when something due was put into the queue, on this node or another.
    pub bell: Arc<Notify>,
    /// How long an idle claimer waits for the bell.
    pub poll: Duration,
}

impl Claimer {
    /// Runs until it is stopped; a failing database is asked again after a pause.
    ///
    /// A claim is never aborted half-way: its deliveries would wait for their lease to end.
    pub async fn run(self, stop: CancellationToken) {
        let mut after = None;
        while !stop.is_cancelled() {
            self.small_tenants.wait().await;
            let more = self.claim(&mut after).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "claiming failed; it goes on when the database answers");
                false
            });
            if !more {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.bell.notified() => {}
                    () = tokio::time::sleep(self.poll) => {}
                }
            }
        }
    }

    /// Claims once, for the tenants after `after` first; returns whether there may be more to claim.
    async fn claim(&self, after: &mut Option<TenantId>) -> store::Result<bool> {
        let limit = self.capacity.free().min(BATCH);
        if limit == 0 {
            return Ok(false);
        }
        let asked_at = Instant::now();
        let mut txn = self.store.worker().await?;
        let walk = Walk::from(&mut txn, *after).await?;
        let Take { claimed, served } = self.take(&mut txn, &walk, limit).await?;
        *after = walk.next(&served, limit);
        if claimed.is_empty() {
            return Ok(!walk.whole);
        }
        let ids: Vec<_> = claimed.iter().map(|it| (it.tenant, it.delivery)).collect();
        let pasts = past_load(&mut txn, &ids).await?;
        let leases = leases_for(&ids, &pasts);
        lease_insert(&mut txn, self.leases.node, self.leases.length, &leases).await?;
        let messages = message_load(&mut txn, &messages_of(&ids, &pasts)).await?;
        failpoint!(ClaimBeforeCommit);
        txn.commit().await?;
        failpoint!(ClaimAfterCommit);
        self.hand_over(&leases, messages, pasts, asked_at);
        Ok(!walk.whole || ids.len() == limit)
    }

    /// Takes the tenants' shares, and shares again what some did not need.
    async fn take(&self, db: &mut Connection, walk: &Walk, limit: usize) -> store::Result<Take> {
        let mut lanes = walk.lanes.clone();
        let mut take = Take::default();
        for round in 0..ROUNDS {
            let taken = |tenant| take.claimed.iter().filter(|it| it.tenant == tenant).count();
            let capacity = |tenant| self.capacity.claimable(tenant, taken(tenant));
            let shares = shares(&lanes, limit - take.claimed.len(), capacity, fastrand::f64());
            if round == 0 {
                take.served = shares.iter().map(|share| share.tenant).collect();
                take.served.dedup();
            }
            if shares.is_empty() {
                break;
            }
            let claimed = queue_claim(db, &shares).await?;
            let gave_less = gave_less(&shares, &claimed);
            lanes.retain(|lane| !gave_less.contains(&(lane.tenant, lane.priority)));
            take.claimed.extend(claimed);
        }
        take.claimed.sort_by_key(|it| (it.priority.rank(), it.delivery.uuid()));
        Ok(take)
    }

    fn hand_over(&self, leases: &[NewLease], messages: Vec<(TenantId, Message)>, pasts: Vec<Past>, asked_at: Instant) {
        let mut pasts: HashMap<_, _> = pasts.into_iter().map(|past| (past.delivery, past)).collect();
        let mut messages: HashMap<_, _> = messages.into_iter().map(|(_, message)| (message.id, message)).collect();
        for lease in leases {
            let of = |(id, _): &(DeliveryId, u32)| Some((*id, message_of(*id, pasts.get(id), &mut messages)?));
            let found: Vec<(DeliveryId, Message)> = lease.deliveries.iter().filter_map(of).collect();
            let each: Vec<_> = found.iter().map(|(_, message)| message.size()).collect();
            let places = self.capacity.take(lease.tenant, &each);
            let held = self.leases.take(lease.tenant, lease.id, found.len(), asked_at);
            let work = found.into_iter().zip(places).map(|((delivery, message), slot)| {
                let mut past = pasts.remove(&delivery);
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
                    recipients: past.as_mut().map(|past| std::mem::take(&mut past.recipients)).unwrap_or_default(),
                    past: past.map(|past| past.counted).unwrap_or_default(),
                    slot,
                    priority_guard: None,
                    first_attempt: None,
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

/// A claim's view of the queue at a time.
struct Walk {
    lanes: Vec<QueueLane>,
    /// Whether that is all there is.
    whole: bool,
}

/// The result of a claim.
#[derive(Default)]
struct Take {
    claimed: Vec<Claimed>,
    /// The tenants that had a share, in the order of the walk.
    served: Vec<TenantId>,
}

impl Walk {
    /// Goes once round, beginning behind `after`, or as far as one walk goes.
    async fn from(db: &mut Connection, after: Option<TenantId>) -> store::Result<Self> {
        let lanes = queue_lanes(db, after, WALK).await?;
        let mut walk = Self::of(lanes);
        if let (true, Some(after)) = (walk.whole, after) {
            let rest = Self::of(queue_lanes(db, None, WALK).await?);
            walk.whole = rest.whole || rest.lanes.last().is_some_and(|lane| lane.tenant > after);
            walk.lanes.extend(rest.lanes.into_iter().filter(|lane| lane.tenant <= after));
        }
        Ok(walk)
    }

    /// The last tenant of a walk that was broken off may have lanes that were not seen: it is the
    /// next walk's.
    fn of(mut lanes: Vec<QueueLane>) -> Self {
        let whole = lanes.len() < WALK;
        if let (false, Some(last)) = (whole, lanes.last().copied()) {
            lanes.retain(|lane| lane.tenant != last.tenant);
        }
        Self { lanes, whole }
    }

    /// Returns the tenant after which the next walk begins: the last one served if there was too little for all, else
    /// the last one seen. If all were seen and served, each goes first in turn.
    fn next(&self, served: &[TenantId], limit: usize) -> Option<TenantId> {
        if served.len() >= limit {
            served.last().copied()
        } else if self.whole {
            served.first().copied().filter(|_| served.len() > 1)
        } else {
            self.lanes.last().map(|lane| lane.tenant)
        }
    }
}

/// Returns the lanes that gave less than their shares: nothing waits there any more.
fn gave_less(shares: &[Share], claimed: &[Claimed]) -> HashSet<(TenantId, Priority)> {
    let mut left: HashMap<_, _> = shares.iter().map(|it| ((it.tenant, it.priority), it.count)).collect();
    for it in claimed {
        left.entry((it.tenant, it.priority)).and_modify(|left| *left -= 1);
    }
    left.into_iter().filter(|(_, left)| *left > 0).map(|(lane, _)| lane).collect()
}

/// Each message once. A delivery without a past is its message's only one.
fn messages_of(claimed: &[(TenantId, DeliveryId)], pasts: &[Past]) -> Vec<(TenantId, MessageId)> {
    let known: HashMap<DeliveryId, MessageId> = pasts.iter().map(|past| (past.delivery, past.message)).collect();
    let message = |id: &DeliveryId| known.get(id).copied().unwrap_or_else(|| id.uuid().into());
    let messages: HashSet<_> = claimed.iter().map(|(tenant, delivery)| (*tenant, message(delivery))).collect();
    messages.into_iter().collect()
}

/// Returns a delivery's message; with several legs, as this one sees it.
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
