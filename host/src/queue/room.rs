//! How many deliveries this node holds at most. What finds no room waits in the database.
//!
//! A tenant may hold a multiple of what is free: alone most of the room, and less of it the more
//! tenants there are, so that there is always room for one more.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::domain::ids::TenantId;

/// What just came in may hold so many times what is free: two thirds of the room.
const BORN: usize = 2;

/// What is claimed may hold more, three quarters: where there is a backlog, what comes in then goes
/// behind it.
const CLAIMED: usize = 3;

/// A tenant that has something here is claimed for only when there is room for so many, or for a
/// sixteenth: claims of a few cost as much as of many.
const WORTH_IT: usize = 250;

/// So many tenants' counts are kept before those that hold nothing are forgotten.
const KEPT: usize = 4096;

/// The node's room for deliveries, shared by tenants.
#[derive(Debug)]
pub struct Room {
    capacity: usize,
    taken: AtomicUsize,
    tenants: Mutex<HashMap<TenantId, Arc<AtomicUsize>>>,
}

/// One delivery's room; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    of_tenant: Arc<AtomicUsize>,
}

impl Room {
    #[must_use]
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, taken: AtomicUsize::new(0), tenants: Mutex::default() })
    }

    /// Room for `count` deliveries of a tenant that just came in, or none at all.
    #[must_use]
    pub fn reserve(self: &Arc<Self>, tenant: TenantId, count: usize) -> Option<Vec<Place>> {
        let of_tenant = self.of_tenant(tenant);
        let fits = count <= self.most(of_tenant.load(Ordering::Relaxed), self.free(), BORN);
        fits.then(|| self.places(&of_tenant, count))
    }

    /// How many deliveries may be claimed for a tenant for which `taken` were claimed already.
    #[must_use]
    pub fn claimable(&self, tenant: TenantId, taken: usize) -> usize {
        let held = self.of_tenant(tenant).load(Ordering::Relaxed);
        let most = self.most(held + taken, self.free().saturating_sub(taken), CLAIMED);
        if held > 0 && most < (self.capacity / 16).clamp(1, WORTH_IT) { 0 } else { most }
    }

    /// Room for what was claimed, whoever's it is.
    #[must_use]
    pub fn take(self: &Arc<Self>, tenant: TenantId, count: usize) -> Vec<Place> {
        self.places(&self.of_tenant(tenant), count)
    }

    /// How many more somebody may have who holds so many: then it is `times` as much as what is left
    /// free. Who has nothing may always have one.
    fn most(&self, held: usize, free: usize, times: usize) -> usize {
        let most = (times * free).saturating_sub(held) / (times + 1);
        most.max(usize::from(held == 0)).min(free)
    }

    /// How many deliveries still fit.
    #[must_use]
    pub fn free(&self) -> usize {
        self.capacity.saturating_sub(self.taken())
    }

    /// How many deliveries fit in all.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many deliveries are held.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// How many of them are a tenant's.
    #[must_use]
    pub fn held(&self, tenant: TenantId) -> usize {
        self.tenants().get(&tenant).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn places(self: &Arc<Self>, of_tenant: &Arc<AtomicUsize>, count: usize) -> Vec<Place> {
        self.taken.fetch_add(count, Ordering::AcqRel);
        of_tenant.fetch_add(count, Ordering::Relaxed);
        (0..count).map(|_| Place { room: Arc::clone(self), of_tenant: Arc::clone(of_tenant) }).collect()
    }

    fn of_tenant(&self, tenant: TenantId) -> Arc<AtomicUsize> {
        let mut tenants = self.tenants();
        if tenants.len() >= KEPT {
            tenants.retain(|_, count| Arc::strong_count(count) > 1);
        }
        Arc::clone(tenants.entry(tenant).or_default())
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<AtomicUsize>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of_tenant.fetch_sub(1, Ordering::Relaxed);
        self.room.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_alone_gets_most_of_the_room_and_leaves_some() {
        let room = Room::new(90);
        let (one, other) = (TenantId::new(), TenantId::new());
        let held = room.reserve(one, 60).unwrap();
        assert!(room.reserve(one, 1).is_none());
        let claimed = room.claimable(one, 0);
        assert_eq!(claimed, 7, "a backlog may have more than what comes in");
        let backlog = room.take(one, claimed);
        assert!(room.reserve(other, 10).is_some());
        drop((held, backlog));
        assert_eq!(room.taken(), 0);
        assert!(room.reserve(one, 60).is_some());
    }

    #[test]
    fn however_many_tenants_hold_what_they_may_there_is_room_for_another() {
        let room = Room::new(1000);
        let mut held = Vec::new();
        for _ in 0..20 {
            let tenant = TenantId::new();
            let most = room.claimable(tenant, 0);
            assert!(most > 0, "{} are free", room.free());
            held.extend(room.take(tenant, most.min(room.free() - 1)));
        }
        assert!(room.free() > 0);
    }

    #[test]
    fn a_place_that_is_free_is_claimed_for_whoever_has_nothing() {
        let room = Room::new(1);
        let (one, other) = (TenantId::new(), TenantId::new());
        let held = room.reserve(one, 1).unwrap();
        assert_eq!(room.claimable(other, 0), 0);
        drop(held);
        assert_eq!(room.claimable(other, 0), 1);
    }

    #[test]
    fn few_free_places_are_not_worth_a_claim() {
        let room = Room::new(16_000);
        let tenant = TenantId::new();
        let held = room.take(tenant, 11_950);
        assert_eq!(room.claimable(tenant, 0), 0);
        drop(held);
        assert_eq!(room.claimable(tenant, 0), 12_000);
    }
}
