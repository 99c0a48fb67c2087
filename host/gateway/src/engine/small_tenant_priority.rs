//! Small tenants get priority. While a tenant with at most 1/8 of a busy node's deliveries is sending, the node pauses
//! other tenants' work, for at most 10 ms at a time and 25 % of the time. A node is busy with 128 deliveries or more.
//!
//! Admission tells that a tenant is sending and hands the guard on with the deliveries; the guard ends when their
//! outcomes are handed to the ledger. During a pause dispatch begins no other tenant's delivery, and claims and the
//! ledger's writers wait before their next batch. This module never looks at a message and never waits for a database.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout_at};

use super::capacity::Capacity;
use angarium_domain::ids::TenantId;

/// A small tenant has at most this part of the node's deliveries.
const PART: usize = 8;

/// A node with fewer deliveries is not busy: they are soon done.
const BUSY: usize = 128;

/// The longest pause: a slow database is no reason to do nothing.
const LONGEST: Duration = Duration::from_millis(10);

/// One part in so many of the time may be pauses.
const SHARE: u32 = 4;

/// The most time for pauses that accumulates.
const CREDIT: Duration = Duration::from_millis(20);

/// The time after a pause in which others work in small batches.
const LATELY: Duration = Duration::from_secs(1);

/// The priority of small tenants on this node.
#[derive(Debug)]
pub struct SmallTenantPriority {
    capacity: Arc<Capacity>,
    /// Notifies when a pause begins or ends.
    state: watch::Sender<State>,
}

/// A small tenant is sending while this lives.
#[derive(Debug)]
pub struct PriorityGuard {
    small_tenants: Arc<SmallTenantPriority>,
    pause: Instant,
}

/// The node's pauses, for the task that begins what they held back.
#[derive(Debug)]
pub struct Pauses(watch::Receiver<State>);

#[derive(Debug)]
struct State {
    /// The beginning of the current pause. It outlives the longest pause until its guards are gone or another begins.
    pause: Option<Instant>,
    /// The guards of that pause.
    guards: usize,
    /// The time left for pauses, as of a moment.
    credit: Duration,
    as_of: Instant,
}

impl SmallTenantPriority {
    #[must_use]
    pub fn new(capacity: Arc<Capacity>) -> Arc<Self> {
        let state = State { pause: None, guards: 0, credit: CREDIT, as_of: Instant::now() };
        Arc::new(Self { capacity, state: watch::Sender::new(state) })
    }

    /// Notes that a tenant begins to send; a guard if it has priority.
    #[must_use]
    pub fn sending(self: &Arc<Self>, tenant: TenantId) -> Option<PriorityGuard> {
        if !self.is_small(tenant) {
            return None;
        }
        let (now, mut joined) = (Instant::now(), None);
        self.state.send_if_modified(|state| {
            let before = state.pause;
            joined = state.join(now);
            state.pause != before
        });
        joined.map(|pause| PriorityGuard { small_tenants: Arc::clone(self), pause })
    }

    /// Whether a tenant's deliveries may begin now.
    #[must_use]
    pub fn may_begin(&self, tenant: TenantId) -> bool {
        self.state.borrow().pauses_until(Instant::now()).is_none() || self.is_small(tenant)
    }

    /// Waits until a pause is over, if there is one now.
    pub async fn wait(&self) {
        wait(&mut self.state.subscribe()).await;
    }

    /// Returns how much of `most` is done at a time: a sixteenth if there was a pause lately, since work that has begun
    /// cannot be paused.
    #[must_use]
    pub fn batch(&self, most: usize) -> usize {
        if self.state.borrow().as_of.elapsed() < LATELY { most.div_ceil(16) } else { most }
    }

    /// Returns this node's pauses from now on.
    #[must_use]
    pub fn pauses(&self) -> Pauses {
        Pauses(self.state.subscribe())
    }

    fn is_small(&self, tenant: TenantId) -> bool {
        let taken = self.capacity.taken();
        taken >= BUSY && self.capacity.held(tenant).saturating_mul(PART) <= taken
    }
}

impl Pauses {
    /// Waits until another pause has ended. It misses none, however short.
    pub async fn ended(&mut self) {
        // The sender lives as long as the node.
        let _ = self.0.changed().await;
        wait(&mut self.0).await;
    }
}

async fn wait(state: &mut watch::Receiver<State>) {
    let until = state.borrow().pauses_until(Instant::now());
    if let Some(until) = until {
        // The wait ends with the pause, and at its longest time at the latest.
        let _ = timeout_at(until.into(), state.wait_for(|it| it.pause.is_none())).await;
    }
}

impl State {
    /// The latest end of the pause at this time, if there is one.
    fn pauses_until(&self, now: Instant) -> Option<Instant> {
        self.pause.map(|began| began + LONGEST).filter(|until| *until > now)
    }

    /// Joins the current pause, or begins one if there is time left for the longest one. Returns its beginning.
    fn join(&mut self, now: Instant) -> Option<Instant> {
        if self.pauses_until(now).is_none() {
            if self.pause.is_some() {
                self.end(LONGEST, now);
            }
            self.accumulate(now);
            self.pause = (self.credit >= LONGEST).then_some(now);
        }
        self.guards += usize::from(self.pause.is_some());
        self.pause
    }

    /// Gives back a guard of the pause that began then. Returns whether the pause ended.
    fn leave(&mut self, pause: Instant, now: Instant) -> bool {
        if self.pause != Some(pause) {
            return false;
        }
        self.guards -= 1;
        let ends = self.guards == 0;
        if ends {
            self.end(now.duration_since(pause).min(LONGEST), now);
        }
        ends
    }

    fn end(&mut self, lasted: Duration, now: Instant) {
        *self = Self { pause: None, guards: 0, credit: self.credit.saturating_sub(lasted), as_of: now };
    }

    fn accumulate(&mut self, now: Instant) {
        self.credit = CREDIT.min(self.credit + now.duration_since(self.as_of) / SHARE);
        self.as_of = now;
    }
}

impl Drop for PriorityGuard {
    fn drop(&mut self) {
        let (pause, now) = (self.pause, Instant::now());
        self.small_tenants.state.send_if_modified(|state| state.leave(pause, now));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::engine::capacity::Slot;

    fn busy_node() -> (Arc<SmallTenantPriority>, TenantId, Vec<Slot>) {
        let capacity = Capacity::new(1000, usize::MAX);
        let tenant = TenantId::new();
        let slots = capacity.take(tenant, &[1; 500]);
        (SmallTenantPriority::new(capacity), tenant, slots)
    }

    #[test]
    fn a_small_tenant_pauses_a_large_one_until_its_last_guard_is_gone() {
        let (small_tenants, large, _slots) = busy_node();
        let small = TenantId::new();
        assert!(small_tenants.sending(large).is_none());
        assert!(small_tenants.may_begin(large));
        let (first, second) = (small_tenants.sending(small).unwrap(), small_tenants.sending(small).unwrap());
        assert!(!small_tenants.may_begin(large) && small_tenants.may_begin(small));
        drop(first);
        assert!(!small_tenants.may_begin(large));
        drop(second);
        assert!(small_tenants.may_begin(large));
        assert!(small_tenants.wait().now_or_never().is_some());
    }

    #[test]
    fn a_node_with_few_deliveries_pauses_nobody() {
        let capacity = Capacity::new(1000, usize::MAX);
        let _slots = capacity.take(TenantId::new(), &[1; BUSY - 1]);
        assert!(SmallTenantPriority::new(capacity).sending(TenantId::new()).is_none());
    }

    #[tokio::test]
    async fn a_pause_ends_however_long_the_small_tenant_sends() {
        let (small_tenants, large, _slots) = busy_node();
        let slow = small_tenants.sending(TenantId::new()).unwrap();
        small_tenants.wait().await;
        assert!(small_tenants.may_begin(large));
        assert!(small_tenants.wait().now_or_never().is_some(), "the next batch does not wait again");
        let next = small_tenants.sending(TenantId::new()).unwrap();
        assert!(!small_tenants.may_begin(large), "the next pause has its own time");
        drop(slow);
        assert!(!small_tenants.may_begin(large));
        drop(next);
        assert!(small_tenants.may_begin(large));
    }

    #[tokio::test]
    async fn a_pause_that_was_over_before_the_wait_is_not_missed() {
        let (small_tenants, _, _slots) = busy_node();
        let mut pauses = small_tenants.pauses();
        assert!(pauses.ended().now_or_never().is_none());
        drop(small_tenants.sending(TenantId::new()).unwrap());
        assert!(pauses.ended().now_or_never().is_some());
        assert!(pauses.ended().now_or_never().is_none());
    }

    #[test]
    fn pauses_take_a_quarter_of_the_time_and_no_more() {
        let start = Instant::now();
        let mut state = State { pause: None, guards: 0, credit: Duration::ZERO, as_of: start };
        assert_eq!(state.join(start), None, "there is no time left for pauses");
        let mut now = start;
        let mut paused = Duration::ZERO;
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            if let Some(pause) = state.join(now) {
                now += Duration::from_millis(30);
                assert!(state.leave(pause, now));
                paused += LONGEST;
            }
        }
        assert!(paused > LONGEST && paused * SHARE <= now.duration_since(start), "{paused:?}");
        state.accumulate(now + Duration::from_secs(9));
        assert_eq!(state.credit, CREDIT);
    }

    #[test]
    fn others_work_in_small_batches_after_a_pause() {
        let (small_tenants, _, _slots) = busy_node();
        drop(small_tenants.sending(TenantId::new()).unwrap());
        assert_eq!(small_tenants.batch(500), 32);
    }
}
