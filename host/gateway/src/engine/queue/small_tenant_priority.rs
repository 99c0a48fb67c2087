//! Small tenants get priority on a busy node: while a small tenant's request is stored and its messages are sent, the
//! node pauses other tenants' work. Each pause is short, and all pauses are a small part of the time, so that the
//! others lose little.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use super::Capacity;
use angarium_domain::ids::TenantId;

/// The factor by which others hold more than a small tenant …
const TIMES: usize = 8;

/// … and so many deliveries at the least: fewer are soon done.
const MANY: usize = 128;

/// The longest pause: a slow database is no reason to do nothing.
const LONGEST: Duration = Duration::from_millis(10);

/// The others may be put off for a fourth of the time.
const SHARE: u32 = 4;

/// How much of that may gather.
const CREDIT: Duration = Duration::from_millis(20);

/// The time after a small tenant's turn in which others do less at a time.
const LATELY: Duration = Duration::from_secs(1);

/// The state of small-tenant priority on this node.
#[derive(Debug)]
pub struct SmallTenantPriority {
    capacity: Arc<Capacity>,
    state: Mutex<State>,
    /// The time since when a small tenant has priority.
    since: watch::Sender<Option<Instant>>,
    /// Notified each time that a small tenant's priority begins.
    begins: Notify,
}

/// A small tenant has priority while this lives, and no longer than [`LONGEST`].
#[derive(Debug)]
pub struct PriorityGuard {
    small_tenants: Arc<SmallTenantPriority>,
    began: Instant,
}

#[derive(Debug)]
struct State {
    /// How many go before others since the same moment.
    going: usize,
    /// For how long others may still be put off, and as of when.
    credit: Duration,
    as_of: Instant,
}

impl SmallTenantPriority {
    #[must_use]
    pub fn new(capacity: Arc<Capacity>) -> Arc<Self> {
        let state = State { going: 0, credit: CREDIT, as_of: Instant::now() };
        Arc::new(Self { capacity, state: Mutex::new(state), since: watch::channel(None).0, begins: Notify::new() })
    }

    /// Lets a tenant go before others, if it holds little and they hold much.
    #[must_use]
    pub fn claim(self: &Arc<Self>, tenant: TenantId) -> Option<PriorityGuard> {
        if !self.holds_little(tenant) {
            return None;
        }
        let (now, mut state) = (Instant::now(), self.state());
        let current = *self.since.borrow();
        let began = match current.filter(|since| now.duration_since(*since) < LONGEST) {
            Some(since) => since,
            None => {
                if current.is_some() {
                    state.end(LONGEST, now);
                }
                state.gather(now);
                if state.credit.is_zero() {
                    self.since.send_replace(None);
                    return None;
                }
                self.since.send_replace(Some(now));
                self.begins.notify_one();
                now
            }
        };
        state.going += 1;
        drop(state);
        Some(PriorityGuard { small_tenants: Arc::clone(self), began })
    }

    /// Whether a tenant's deliveries may begin now.
    #[must_use]
    pub fn may_begin(&self, tenant: TenantId) -> bool {
        let goes_before = |since: &Option<Instant>| since.is_some_and(|since| since.elapsed() < LONGEST);
        !goes_before(&self.since.borrow()) || self.holds_little(tenant)
    }

    /// Returns the part of `most` that is done at a time: a sixteenth if a small tenant lately had priority, because
    /// work that has begun cannot be paused.
    #[must_use]
    pub fn portion(&self, most: usize) -> usize {
        if self.state().as_of.elapsed() < LATELY { most.div_ceil(16) } else { most }
    }

    /// Waits while a small tenant has priority.
    pub async fn give_way(&self) {
        if self.since.borrow().is_some() {
            // The wait ends with the priority, or after the longest time; the sender belongs to this instance.
            let _ = tokio::time::timeout(LONGEST, self.since.subscribe().wait_for(Option::is_none)).await;
        }
    }

    /// Waits until a small tenant's priority has passed. Only one task may wait here; it misses none of them.
    pub async fn passed(&self) {
        self.begins.notified().await;
        self.give_way().await;
    }

    fn holds_little(&self, tenant: TenantId) -> bool {
        let taken = self.capacity.taken();
        taken >= MANY && self.capacity.held(tenant).saturating_mul(TIMES) <= taken
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends the priority after this time.
    fn end(&mut self, lasted: Duration, now: Instant) {
        *self = Self { going: 0, credit: self.credit.saturating_sub(lasted), as_of: now };
    }

    fn gather(&mut self, now: Instant) {
        self.credit = CREDIT.min(self.credit + now.duration_since(self.as_of) / SHARE);
        self.as_of = now;
    }
}

impl Drop for PriorityGuard {
    fn drop(&mut self) {
        let mut state = self.small_tenants.state();
        if *self.small_tenants.since.borrow() != Some(self.began) {
            // Its turn is over.
            return;
        }
        state.going -= 1;
        if state.going == 0 {
            let now = Instant::now();
            state.end(now.duration_since(self.began).min(LONGEST), now);
            self.small_tenants.since.send_replace(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy_node() -> (Arc<SmallTenantPriority>, TenantId, Vec<super::super::Slot>) {
        let capacity = Capacity::new(1000, usize::MAX);
        let tenant = TenantId::new();
        let places = capacity.take(tenant, &[1; 500]);
        (SmallTenantPriority::new(capacity), tenant, places)
    }

    #[tokio::test]
    async fn who_holds_little_goes_before_who_holds_much() {
        let (small_tenants, busy, _places) = busy_node();
        let few = TenantId::new();
        assert!(small_tenants.claim(busy).is_none());
        assert!(small_tenants.may_begin(busy));
        let (first, second) = (small_tenants.claim(few).unwrap(), small_tenants.claim(few).unwrap());
        assert!(!small_tenants.may_begin(busy) && small_tenants.may_begin(few));
        drop(first);
        assert!(!small_tenants.may_begin(busy));
        drop(second);
        assert!(small_tenants.may_begin(busy));
        small_tenants.give_way().await;
    }

    #[test]
    fn a_node_with_little_to_do_puts_nobody_off() {
        let capacity = Capacity::new(1000, usize::MAX);
        let _places = capacity.take(TenantId::new(), &[1; MANY - 1]);
        assert!(SmallTenantPriority::new(capacity).claim(TenantId::new()).is_none());
    }

    #[tokio::test]
    async fn nobody_is_put_off_for_long() {
        let (small_tenants, busy, _places) = busy_node();
        let going = small_tenants.claim(TenantId::new()).unwrap();
        small_tenants.give_way().await;
        assert!(small_tenants.may_begin(busy), "it goes on, however long the other's request takes");
        let again = small_tenants.claim(TenantId::new()).unwrap();
        assert!(!small_tenants.may_begin(busy), "the next one's is a time of its own");
        drop(going);
        assert!(!small_tenants.may_begin(busy));
        drop(again);
        assert!(small_tenants.may_begin(busy));
    }

    #[test]
    fn the_others_lose_a_part_of_their_time_and_no_more() {
        let mut state = State { going: 0, credit: Duration::ZERO, as_of: Instant::now() };
        let began = state.as_of;
        state.gather(began + Duration::from_millis(8));
        assert_eq!(state.credit, Duration::from_millis(2));
        state.gather(began + Duration::from_secs(9));
        assert_eq!(state.credit, CREDIT);
        let (small_tenants, _, _places) = busy_node();
        small_tenants.state().credit = Duration::ZERO;
        small_tenants.state().as_of = Instant::now() + Duration::from_secs(1);
        assert!(small_tenants.claim(TenantId::new()).is_none());
        assert_eq!(small_tenants.portion(500), 32);
    }
}
