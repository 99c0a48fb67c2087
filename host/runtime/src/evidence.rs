//! The evidence against one version of a provider, counted for each tenant apart. Content can make a component fail, so
//! the faults of one tenant's deliveries take the version from that tenant alone; only several tenants, with no good
//! call between them, take it from all. Time is an argument.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use angarium_domain::ids::TenantId;

/// The number of faults in a row that quarantines a version for their tenant.
const FAULTS_TO_QUARANTINE: u32 = 5;
/// The number of tenants that quarantines it for all, without a good call of any in between.
const TENANTS_TO_QUARANTINE: usize = 3;
/// The first quarantine of a tenant lasts so long, each further one in a row twice as long.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// The evidence against one version, since it came into service.
#[derive(Debug, Default)]
pub(super) struct FaultEvidence {
    /// Whether there is a record: almost every call is a good one, and then this is all that is read.
    suspected: AtomicBool,
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    tenants: BTreeMap<TenantId, Record>,
    /// The tenants whose quarantine began since any tenant's last good call.
    votes: BTreeSet<TenantId>,
}

/// The record of one tenant.
#[derive(Debug, Default)]
struct Record {
    /// In a row.
    faults: u32,
    /// Quarantines in a row.
    quarantines: u32,
    until: Option<Instant>,
}

/// The consequence of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conclusion {
    /// The tenant does without the version for so long.
    Tenant(Duration),
    /// The version itself is broken.
    All,
}

impl FaultEvidence {
    /// Whether a tenant does without the version now.
    pub(super) fn withholds_from(&self, tenant: TenantId, now: Instant) -> bool {
        self.is_suspected() && self.records().tenants.get(&tenant).is_some_and(|record| record.is_in_force(now))
    }

    /// A call went well: it speaks for the tenant's own deliveries, and against the version itself being broken.
    pub(super) fn good(&self, tenant: TenantId, now: Instant) {
        if !self.is_suspected() {
            return;
        }
        let mut records = self.records();
        records.votes.clear();
        // A call that began before the quarantine ends nothing.
        if records.tenants.get(&tenant).is_some_and(|record| !record.is_in_force(now)) {
            records.tenants.remove(&tenant);
        }
        self.suspected.store(!records.tenants.is_empty(), Ordering::Relaxed);
    }

    /// A call failed, and the component is to blame.
    pub(super) fn fault(&self, tenant: TenantId, now: Instant) -> Option<Conclusion> {
        let mut records = self.records();
        self.suspected.store(true, Ordering::Relaxed);
        let lasts = records.tenants.entry(tenant).or_default().fault(now)?;
        records.votes.insert(tenant);
        let all = records.votes.len() >= TENANTS_TO_QUARANTINE;
        Some(if all { Conclusion::All } else { Conclusion::Tenant(lasts) })
    }

    /// The most faults in a row of one tenant.
    pub(super) fn most_faults(&self) -> u32 {
        self.records().tenants.values().map(|record| record.faults).max().unwrap_or(0)
    }

    fn is_suspected(&self) -> bool {
        self.suspected.load(Ordering::Relaxed)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn is_in_force(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// How long the quarantine lasts that this fault begins, if it begins one.
    fn fault(&mut self, now: Instant) -> Option<Duration> {
        self.faults = self.faults.saturating_add(1);
        if self.faults < FAULTS_TO_QUARANTINE || self.is_in_force(now) {
            return None;
        }
        let lasts = SHORTEST.saturating_mul(1 << self.quarantines.min(16)).min(LONGEST);
        self.quarantines += 1;
        self.until = Some(now + lasts);
        Some(lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(evidence: &FaultEvidence, tenant: TenantId, count: u32, now: Instant) -> Option<Conclusion> {
        (0..count).fold(None, |led_to, _| evidence.fault(tenant, now).or(led_to))
    }

    #[test]
    fn five_faults_in_a_row_take_it_from_their_tenant_alone() {
        let (evidence, now) = (FaultEvidence::default(), Instant::now());
        let (one, other) = (TenantId::new(), TenantId::new());
        assert_eq!(faults(&evidence, one, 4, now), None);
        evidence.good(other, now);
        assert_eq!(evidence.fault(one, now), Some(Conclusion::Tenant(SHORTEST)), "another's good call resets nothing");
        assert!(evidence.withholds_from(one, now) && !evidence.withholds_from(other, now));
        assert_eq!(faults(&evidence, one, 100, now), None, "calls under way begin no second one");
    }

    #[test]
    fn a_good_call_ends_the_row() {
        let (evidence, now, one) = (FaultEvidence::default(), Instant::now(), TenantId::new());
        for _ in 0..10 {
            assert_eq!(faults(&evidence, one, 4, now), None);
            evidence.good(one, now);
        }
        assert_eq!(evidence.most_faults(), 0);
    }

    #[test]
    fn each_further_quarantine_in_a_row_lasts_twice_as_long() {
        let (evidence, mut now, one) = (FaultEvidence::default(), Instant::now(), TenantId::new());
        let mut lasted = Vec::new();
        for _ in 0..8 {
            let Some(Conclusion::Tenant(lasts)) = faults(&evidence, one, 5, now) else { panic!("no quarantine") };
            evidence.good(one, now);
            assert!(evidence.withholds_from(one, now), "a call that was under way ends no quarantine");
            now += lasts;
            assert!(!evidence.withholds_from(one, now));
            lasted.push(lasts.as_secs());
        }
        assert_eq!(lasted, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        evidence.good(one, now);
        assert_eq!(faults(&evidence, one, 5, now), Some(Conclusion::Tenant(SHORTEST)));
    }

    #[test]
    fn several_tenants_take_it_from_all_unless_somebody_is_well_served() {
        let now = Instant::now();
        let [one, two, three, well] = std::array::from_fn(|_| TenantId::new());
        let evidence = FaultEvidence::default();
        faults(&evidence, one, 5, now);
        faults(&evidence, two, 5, now);
        evidence.good(well, now);
        assert_eq!(faults(&evidence, three, 5, now), Some(Conclusion::Tenant(SHORTEST)));

        let evidence = FaultEvidence::default();
        faults(&evidence, one, 5, now);
        faults(&evidence, two, 5, now);
        assert_eq!(faults(&evidence, three, 5, now), Some(Conclusion::All));
    }
}
