//! The versions of each provider that serve. The registry lives in memory and reads without a lock; the database has
//! the active versions of all nodes, and its follower calls [`Registry::serve`].
//!
//! A delivery keeps the component that it began with, so a swap disturbs none.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    Component,
    evidence::{Conclusion, FaultEvidence},
};
use angarium_domain::ids::TenantId;

/// The providers, by name.
#[derive(Default)]
pub struct Registry {
    providers: ArcSwap<BTreeMap<String, Arc<Entry>>>,
    /// Held while the map is changed; readers never wait for it.
    changing: Mutex<()>,
}

/// One provider; replaced as a whole when a version changes.
#[derive(Default, Clone)]
struct Entry {
    active: Option<Version>,
    previous: Option<Version>,
    quarantined: BTreeSet<String>,
}

/// A version with what speaks against it since it came into service.
#[derive(Clone)]
struct Version {
    component: Arc<Component>,
    evidence: Arc<FaultEvidence>,
}

impl Version {
    fn new(component: Arc<Component>) -> Self {
        Self { component, evidence: Arc::default() }
    }
}

/// The scope of a quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuarantineScope {
    /// One tenant, whose deliveries it failed, for this time; others saw no fault, or too few.
    Tenant(TenantId, Duration),
    /// All tenants, until the version is activated again.
    All,
}

/// The consequence of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub digest: String,
    pub scope: QuarantineScope,
    /// The version that serves in its place; without one, nothing does.
    pub restored: Option<String>,
}

/// One provider's versions on this node.
#[derive(Debug, Clone)]
pub struct Listed {
    pub name: String,
    pub active: Option<Arc<Component>>,
    pub previous: Option<Arc<Component>>,
    /// Digests of the versions that were taken from all.
    pub quarantined: Vec<String>,
    /// The most faults in a row that one tenant met in the active version.
    pub faults: u32,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the version that serves now, regardless of tenants in quarantine.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Component>> {
        Some(Arc::clone(&self.providers.load().get(name)?.active.as_ref()?.component))
    }

    /// Returns the version that serves a tenant: the active one, or the previous one while that is in quarantine for
    /// the tenant.
    #[must_use]
    pub fn get_for(&self, name: &str, tenant: TenantId, now: Instant) -> Option<Arc<Component>> {
        Some(Arc::clone(&self.providers.load().get(name)?.serving(tenant, now)?.component))
    }

    /// Puts a version in service under its descriptor's name, with another one behind it. All evidence against them,
    /// for one tenant or for all, is forgotten, and so are other versions.
    pub fn serve(&self, active: Arc<Component>, previous: Option<Arc<Component>>) {
        self.change(&active.descriptor().name.clone(), |entry| {
            for component in previous.iter().chain([&active]) {
                entry.quarantined.remove(component.digest());
            }
            entry.active = Some(Version::new(active));
            entry.previous = previous.map(Version::new);
        });
    }

    /// Takes a provider out of service, and forgets its versions. Whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut providers = BTreeMap::clone(&self.providers.load());
        let removed = providers.remove(name).is_some();
        self.providers.store(Arc::new(providers));
        removed
    }

    /// Every provider, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        self.providers.load().iter().map(|(name, entry)| entry.listed(name)).collect()
    }

    /// Records the end of a tenant's call of a version: `healthy` unless the fault is the component's (see
    /// [`super::CallError::is_the_guests`]). In every quarantine, the tenant gets the previous version from now on, if
    /// there is one.
    pub fn report(
        &self,
        name: &str,
        digest: &str,
        tenant: TenantId,
        healthy: bool,
        now: Instant,
    ) -> Option<Quarantined> {
        let entry = Arc::clone(self.providers.load().get(name)?);
        let version = entry.versions().find(|version| version.component.digest() == digest)?;
        if healthy {
            version.evidence.good(tenant, now);
            return None;
        }
        match version.evidence.fault(tenant, now)? {
            Conclusion::All if entry.serves(digest) => self.quarantine(name, digest),
            Conclusion::All => None,
            Conclusion::Tenant(lasts) => Some(Quarantined {
                digest: digest.to_owned(),
                scope: QuarantineScope::Tenant(tenant, lasts),
                restored: entry.serving(tenant, now).map(|version| version.component.digest().to_owned()),
            }),
        }
    }

    fn quarantine(&self, name: &str, digest: &str) -> Option<Quarantined> {
        self.change(name, |entry| {
            if !entry.serves(digest) {
                // Another thread was first.
                return None;
            }
            entry.quarantined.insert(digest.to_owned());
            entry.active = entry.previous.take();
            let restored = entry.active.as_ref().map(|version| version.component.digest().to_owned());
            Some(Quarantined { digest: digest.to_owned(), scope: QuarantineScope::All, restored })
        })
    }

    /// Changes a copy of one entry, then shows it.
    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Entry) -> T) -> T {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut providers = BTreeMap::clone(&self.providers.load());
        let mut entry = providers.get(name).map(|entry| Entry::clone(entry)).unwrap_or_default();
        let result = change(&mut entry);
        providers.insert(name.to_owned(), Arc::new(entry));
        self.providers.store(Arc::new(providers));
        result
    }
}

impl Entry {
    fn versions(&self) -> impl Iterator<Item = &Version> {
        self.active.iter().chain(&self.previous)
    }

    fn serving(&self, tenant: TenantId, now: Instant) -> Option<&Version> {
        self.versions().find(|version| !version.evidence.withholds_from(tenant, now))
    }

    fn serves(&self, digest: &str) -> bool {
        self.active.as_ref().is_some_and(|active| active.component.digest() == digest)
    }

    fn listed(&self, name: &str) -> Listed {
        let component = |version: &Option<Version>| version.as_ref().map(|it| Arc::clone(&it.component));
        Listed {
            name: name.to_owned(),
            active: component(&self.active),
            previous: component(&self.previous),
            quarantined: self.quarantined.iter().cloned().collect(),
            faults: self.active.as_ref().map_or(0, |version| version.evidence.most_faults()),
        }
    }
}
