//! How many deliveries this node holds at most. What finds no room waits in the database.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::domain::ids::TenantId;

/// The node's room for deliveries, shared by tenants: no tenant fills more than three quarters.
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

    /// Room for `count` deliveries of a tenant, or none at all.
    #[must_use]
    pub fn reserve(self: &Arc<Self>, tenant: TenantId, count: usize) -> Option<Vec<Place>> {
        let of_tenant = self.of_tenant(tenant);
        let fits = self.taken() + count <= self.capacity && of_tenant.load(Ordering::Relaxed) + count <= self.share();
        fits.then(|| self.places(&of_tenant, count))
    }

    /// Room for what was claimed within [`Room::free`], whoever's it is.
    #[must_use]
    pub fn take(self: &Arc<Self>, tenant: TenantId, count: usize) -> Vec<Place> {
        self.places(&self.of_tenant(tenant), count)
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

    /// The tenants that have their share: nothing more is claimed for them now.
    #[must_use]
    pub fn saturated(&self) -> Vec<TenantId> {
        let mut tenants = self.tenants();
        tenants.retain(|_, count| Arc::strong_count(count) > 1);
        tenants.iter().filter(|(_, count)| count.load(Ordering::Relaxed) >= self.share()).map(|(id, _)| *id).collect()
    }

    fn share(&self) -> usize {
        (self.capacity / 4 * 3).max(1)
    }

    fn places(self: &Arc<Self>, of_tenant: &Arc<AtomicUsize>, count: usize) -> Vec<Place> {
        self.taken.fetch_add(count, Ordering::AcqRel);
        of_tenant.fetch_add(count, Ordering::Relaxed);
        (0..count).map(|_| Place { room: Arc::clone(self), of_tenant: Arc::clone(of_tenant) }).collect()
    }

    fn of_tenant(&self, tenant: TenantId) -> Arc<AtomicUsize> {
        Arc::clone(self.tenants().entry(tenant).or_default())
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
    fn a_tenant_leaves_room_for_others() {
        let room = Room::new(8);
        let (one, other) = (TenantId::new(), TenantId::new());
        let held = room.reserve(one, 6).unwrap();
        assert!(room.reserve(one, 1).is_none());
        assert_eq!(room.saturated(), [one]);
        assert!(room.reserve(other, 3).is_none(), "the whole room is full");
        assert!(room.reserve(other, 2).is_some());
        drop(held);
        assert_eq!(room.taken(), 0);
        assert!(room.saturated().is_empty());
        assert!(room.reserve(one, 6).is_some());
    }
}
