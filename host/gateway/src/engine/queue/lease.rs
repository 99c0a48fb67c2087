//! The leases of this node. A lease's id is the fencing epoch: its row must stand for an outcome to
//! be written, and the node's own clock, started before the row was written, tells when to stop
//! sending under it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use uuid::Uuid;

use angarium_domain::ids::TenantId;

/// A hold on a batch of deliveries of one tenant.
#[derive(Debug)]
pub struct Lease {
    pub id: Uuid,
    pub tenant: TenantId,
    /// Deliveries without an outcome.
    outstanding: AtomicU32,
    origin: Instant,
    /// Milliseconds after `origin`; 0 once it is lost.
    valid_until: AtomicU64,
}

impl Lease {
    /// Whether a send that ends by `deadline` may begin under it.
    #[must_use]
    pub fn covers(&self, deadline: Instant) -> bool {
        self.origin + Duration::from_millis(self.valid_until.load(Ordering::Acquire)) > deadline
    }

    /// Whether it is not renewed any more: others have its deliveries, or will.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.valid_until.load(Ordering::Acquire) == 0
    }

    /// Counts one delivery as settled; true for the last one: the lease's row can go.
    #[must_use]
    pub fn settle_one(&self) -> bool {
        self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1
    }

    fn prolong(&self, from: Instant, length: Duration) {
        let until = from.duration_since(self.origin) + length;
        self.valid_until.store(millis(until), Ordering::Release);
    }

    fn lose(&self) {
        self.valid_until.store(0, Ordering::Release);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// All leases of this node.
#[derive(Debug)]
pub struct Leases {
    /// This process; a restart is another node.
    pub node: Uuid,
    pub length: Duration,
    held: Mutex<HashMap<Uuid, Arc<Lease>>>,
}

impl Leases {
    #[must_use]
    pub fn new(length: Duration) -> Arc<Self> {
        Arc::new(Self { node: Uuid::now_v7(), length, held: Mutex::default() })
    }

    /// Records a lease whose row was requested at `asked_at`, for this number of deliveries.
    #[must_use]
    pub fn take(&self, tenant: TenantId, id: Uuid, deliveries: usize, asked_at: Instant) -> Arc<Lease> {
        let lease = Arc::new(Lease {
            id,
            tenant,
            outstanding: AtomicU32::new(u32::try_from(deliveries).unwrap_or(u32::MAX)),
            origin: asked_at,
            valid_until: AtomicU64::new(millis(self.length)),
        });
        self.held().insert(id, Arc::clone(&lease));
        lease
    }

    /// Removes leases whose rows are gone.
    pub fn forget(&self, leases: &[(TenantId, Uuid)]) {
        let mut held = self.held();
        for (_, id) in leases {
            held.remove(id);
        }
    }

    /// How many leases stand.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held().len()
    }

    /// Lets a lease run out, so that recovery finds its unsettled deliveries.
    pub fn give_up(&self, lease: Uuid) {
        if let Some(lease) = self.held().remove(&lease) {
            lease.lose();
        }
    }

    /// The leases that stand, to be renewed.
    #[must_use]
    pub fn standing(&self) -> Vec<(TenantId, Uuid)> {
        self.held().values().map(|lease| (lease.tenant, lease.id)).collect()
    }

    /// Takes note of a renewal asked for at `asked_at`: the renewed ones last longer, those asked
    /// for but not renewed are lost. Tells how many are.
    pub fn renewed(&self, asked_at: Instant, asked: &[(TenantId, Uuid)], renewed: &[Uuid]) -> usize {
        let renewed: HashSet<_> = renewed.iter().collect();
        let mut held = self.held();
        let mut lost = 0;
        for (_, id) in asked {
            match held.get(id) {
                Some(lease) if renewed.contains(id) => lease.prolong(asked_at, self.length),
                Some(lease) => {
                    lease.lose();
                    held.remove(id);
                    lost += 1;
                }
                None => {}
            }
        }
        lost
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Lease>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_covers_what_ends_before_it_does() {
        let leases = Leases::new(Duration::from_secs(10));
        let start = Instant::now();
        let lease = leases.take(TenantId::new(), Uuid::now_v7(), 1, start);
        assert!(lease.covers(start + Duration::from_secs(9)));
        assert!(!lease.covers(start + Duration::from_secs(11)));
        leases.renewed(start + Duration::from_secs(5), &leases.standing(), &[lease.id]);
        assert!(lease.covers(start + Duration::from_secs(11)));
    }

    #[test]
    fn a_lease_that_was_not_renewed_covers_nothing() {
        let leases = Leases::new(Duration::from_secs(10));
        let start = Instant::now();
        let lease = leases.take(TenantId::new(), Uuid::now_v7(), 1, start);
        assert_eq!(leases.renewed(start, &leases.standing(), &[]), 1);
        assert!(!lease.covers(start) && lease.is_lost());
        assert!(leases.standing().is_empty());
    }

    #[test]
    fn the_last_settlement_ends_it() {
        let leases = Leases::new(Duration::from_secs(10));
        let lease = leases.take(TenantId::new(), Uuid::now_v7(), 2, Instant::now());
        assert!(!lease.settle_one());
        assert!(lease.settle_one());
    }
}
