//! Limits the deliveries that this node holds, and the bytes of their messages. A delivery without capacity waits in
//! the database.
//!
//! A tenant may hold a multiple of the free capacity: alone most of it, and less the more tenants there are, so that
//! there is always capacity for one more.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use angarium_domain::ids::TenantId;

/// The factor for new arrivals: they may hold so many times the free capacity, two thirds of the whole.
const BORN: usize = 2;

/// The factor for claimed deliveries: they may hold three quarters. If there is a backlog, new arrivals queue behind
/// it.
const CLAIMED: usize = 3;

/// The capacity for which a tenant with waiting deliveries is claimed for: this number, or a sixteenth, because small
/// claims cost as much as large ones.
const WORTH_IT: usize = 250;

/// The bytes that a claim reserves for a delivery: the size of its message is known only once it is loaded.
const RECKONED: usize = 64 << 10;

/// The number of tenants whose counts are kept before those that hold nothing are forgotten.
const KEPT: usize = 4096;

/// The node's room for deliveries, shared by tenants.
#[derive(Debug)]
pub struct Capacity {
    capacity: Size,
    taken: Taken,
    tenants: Mutex<HashMap<TenantId, Arc<Taken>>>,
}

/// A number of deliveries with their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    deliveries: usize,
    bytes: usize,
}

/// The capacity that is taken.
#[derive(Debug, Default)]
struct Taken {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
}

/// One delivery's capacity; dropping it returns it.
#[derive(Debug)]
pub struct Slot {
    capacity: Arc<Capacity>,
    of_tenant: Arc<Taken>,
    bytes: usize,
}

impl Capacity {
    /// Returns a capacity for this number of deliveries whose messages have this number of bytes together.
    #[must_use]
    pub fn new(deliveries: usize, bytes: usize) -> Arc<Self> {
        let capacity = Size { deliveries, bytes };
        Arc::new(Self { capacity, taken: Taken::default(), tenants: Mutex::default() })
    }

    /// Room for deliveries of a tenant that just came in, by the bytes of each one's message; or none at all.
    #[must_use]
    pub fn reserve(self: &Arc<Self>, tenant: TenantId, each: &[usize]) -> Option<Vec<Slot>> {
        let of_tenant = self.of_tenant(tenant);
        let (held, free) = (of_tenant.size(), self.left());
        // A tenant that holds nothing may always have one, however large.
        let alone = held.deliveries == 0 && each.len() == 1 && free.bytes > 0;
        let fits = each.len() <= most(held.deliveries, free.deliveries, BORN)
            && (alone || each.iter().sum::<usize>() <= most(held.bytes, free.bytes, BORN));
        fits.then(|| self.places(&of_tenant, each))
    }

    /// How many deliveries may be claimed for a tenant for which `taken` were claimed already.
    #[must_use]
    pub fn claimable(&self, tenant: TenantId, taken: usize) -> usize {
        let (held, free) = (self.of_tenant(tenant).size(), self.left());
        let reckoned = taken * RECKONED;
        let by_count = most(held.deliveries + taken, free.deliveries.saturating_sub(taken), CLAIMED);
        let bytes = most(held.bytes + reckoned, free.bytes.saturating_sub(reckoned), CLAIMED);
        let first = usize::from(held.deliveries == 0 && taken == 0 && free.bytes > 0);
        let most = by_count.min((bytes / RECKONED).max(first));
        let worth_it = (self.claimable_at_once() / 16).clamp(1, WORTH_IT);
        if held.deliveries > 0 && most < worth_it { 0 } else { most }
    }

    /// Takes capacity for claimed deliveries of a tenant, by the bytes of each one's message.
    #[must_use]
    pub fn take(self: &Arc<Self>, tenant: TenantId, each: &[usize]) -> Vec<Slot> {
        self.places(&self.of_tenant(tenant), each)
    }

    /// How many more deliveries may be claimed now.
    #[must_use]
    pub fn free(&self) -> usize {
        let left = self.left();
        left.deliveries.min(left.bytes.div_ceil(RECKONED))
    }

    /// How many deliveries fit in all.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity.deliveries
    }

    /// How many bytes of messages fit in all.
    #[must_use]
    pub const fn capacity_bytes(&self) -> usize {
        self.capacity.bytes
    }

    /// How many deliveries are held.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.deliveries.load(Ordering::Acquire)
    }

    /// How many bytes their messages have.
    #[must_use]
    pub fn taken_bytes(&self) -> usize {
        self.taken.bytes.load(Ordering::Relaxed)
    }

    /// How many of the deliveries are a tenant's.
    #[must_use]
    pub fn held(&self, tenant: TenantId) -> usize {
        self.tenants().get(&tenant).map_or(0, |taken| taken.size().deliveries)
    }

    fn left(&self) -> Size {
        Size {
            deliveries: self.capacity.deliveries.saturating_sub(self.taken()),
            bytes: self.capacity.bytes.saturating_sub(self.taken_bytes()),
        }
    }

    fn claimable_at_once(&self) -> usize {
        self.capacity.deliveries.min(self.capacity.bytes / RECKONED)
    }

    fn places(self: &Arc<Self>, of_tenant: &Arc<Taken>, each: &[usize]) -> Vec<Slot> {
        let size = Size { deliveries: each.len(), bytes: each.iter().sum() };
        self.taken.add(size);
        of_tenant.add(size);
        let slot = |bytes: &usize| Slot { capacity: Arc::clone(self), of_tenant: Arc::clone(of_tenant), bytes: *bytes };
        each.iter().map(slot).collect()
    }

    fn of_tenant(&self, tenant: TenantId) -> Arc<Taken> {
        let mut tenants = self.tenants();
        if tenants.len() >= KEPT {
            tenants.retain(|_, taken| Arc::strong_count(taken) > 1);
        }
        Arc::clone(tenants.entry(tenant).or_default())
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<Taken>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how much more a tenant may take that already holds `held`: at most `times` the capacity that is left free. A
/// tenant that holds nothing may always take one.
fn most(held: usize, free: usize, times: usize) -> usize {
    let most = free.saturating_mul(times).saturating_sub(held) / (times + 1);
    most.max(usize::from(held == 0)).min(free)
}

impl Taken {
    fn size(&self) -> Size {
        Size { deliveries: self.deliveries.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    fn add(&self, size: Size) {
        self.deliveries.fetch_add(size.deliveries, Ordering::AcqRel);
        self.bytes.fetch_add(size.bytes, Ordering::Relaxed);
    }

    fn remove_one(&self, bytes: usize) {
        self.deliveries.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.of_tenant.remove_one(self.bytes);
        self.capacity.taken.remove_one(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MUCH: usize = 1 << 40;

    #[test]
    fn a_tenant_alone_gets_most_of_the_room_and_leaves_some() {
        let capacity = Capacity::new(90, MUCH);
        let (one, other) = (TenantId::new(), TenantId::new());
        let held = capacity.reserve(one, &[1; 60]).unwrap();
        assert!(capacity.reserve(one, &[1]).is_none());
        let claimed = capacity.claimable(one, 0);
        assert_eq!(claimed, 7, "a backlog may have more than what comes in");
        let backlog = capacity.take(one, &vec![1; claimed]);
        assert!(capacity.reserve(other, &[1; 10]).is_some());
        drop((held, backlog));
        assert_eq!((capacity.taken(), capacity.taken_bytes()), (0, 0));
        assert!(capacity.reserve(one, &[1; 60]).is_some());
    }

    #[test]
    fn however_many_tenants_hold_what_they_may_there_is_room_for_another() {
        let capacity = Capacity::new(1000, MUCH);
        let mut held = Vec::new();
        for _ in 0..20 {
            let tenant = TenantId::new();
            let most = capacity.claimable(tenant, 0);
            assert!(most > 0, "{} are free", capacity.free());
            held.extend(capacity.take(tenant, &vec![1; most.min(capacity.free() - 1)]));
        }
        assert!(capacity.free() > 0);
    }

    #[test]
    fn a_place_that_is_free_is_claimed_for_whoever_has_nothing() {
        let capacity = Capacity::new(1, MUCH);
        let (one, other) = (TenantId::new(), TenantId::new());
        let held = capacity.reserve(one, &[1]).unwrap();
        assert_eq!(capacity.claimable(other, 0), 0);
        drop(held);
        assert_eq!(capacity.claimable(other, 0), 1);
    }

    #[test]
    fn few_free_places_are_not_worth_a_claim() {
        let capacity = Capacity::new(16_000, MUCH);
        let tenant = TenantId::new();
        let held = capacity.take(tenant, &vec![1; 11_950]);
        assert_eq!(capacity.claimable(tenant, 0), 0);
        drop(held);
        assert_eq!(capacity.claimable(tenant, 0), 12_000);
    }

    #[test]
    fn bytes_are_shared_as_deliveries_are() {
        let capacity = Capacity::new(1000, 90 << 20);
        let (one, other) = (TenantId::new(), TenantId::new());
        let held = capacity.reserve(one, &[1 << 20; 60]).unwrap();
        assert!(capacity.reserve(one, &[1 << 20]).is_none(), "it has two thirds of the bytes");
        assert!(capacity.reserve(other, &[1 << 20; 10]).is_some());
        drop(held);
        assert!(capacity.reserve(one, &[1 << 20]).is_some());
    }

    #[test]
    fn a_tenant_that_holds_nothing_may_have_one_however_large() {
        let capacity = Capacity::new(1000, 1 << 20);
        let (one, other) = (TenantId::new(), TenantId::new());
        let large = capacity.reserve(one, &[3 << 20]).unwrap();
        assert!(capacity.reserve(other, &[1]).is_none());
        assert_eq!((capacity.claimable(other, 0), capacity.free()), (0, 0));
        drop(large);
        assert_eq!(capacity.reserve(other, &[1, 3 << 20]).map(|places| places.len()), None, "but no two");
    }

    #[test]
    fn claims_reckon_with_large_messages() {
        let capacity = Capacity::new(1000, 100 * RECKONED);
        let tenant = TenantId::new();
        assert_eq!(capacity.claimable(tenant, 0), 75);
        let _held = capacity.take(tenant, &[RECKONED; 70]);
        assert_eq!(capacity.free(), 30);
        assert_eq!(capacity.claimable(TenantId::new(), 0), 22);
    }
}
