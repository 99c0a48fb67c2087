//! Which version of each provider serves. It lives in memory and reads without a lock; the
//! database says what is active across nodes, and whoever follows it calls here.
//!
//! A delivery keeps the component that it began with, so a swap disturbs none.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::Component;

/// So many faults in a row, and a version is quarantined.
const FAULTS_TO_QUARANTINE: u32 = 5;

/// The providers, by name.
#[derive(Default)]
pub struct Registry {
    providers: ArcSwap<BTreeMap<String, Arc<Entry>>>,
    /// Held by whoever changes the map; readers never wait for it.
    changing: Mutex<()>,
}

/// One provider; replaced as a whole when a version changes.
#[derive(Default)]
struct Entry {
    active: Option<Arc<Component>>,
    previous: Option<Arc<Component>>,
    quarantined: BTreeSet<String>,
    /// Of the active version, since its last good call.
    faults: AtomicU32,
}

/// What [`Registry::install`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installed {
    /// The first version of this provider serves.
    First,
    /// It serves in place of this digest, which is kept for a rollback.
    Replaced(String),
    /// It served already.
    Unchanged,
    /// It is quarantined here; [`Registry::release`] lifts that.
    Quarantined,
}

/// What a report led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub digest: String,
    /// The version that serves again; without one, nothing does.
    pub restored: Option<String>,
}

/// One provider, as the API shows it.
#[derive(Debug, Clone)]
pub struct Listed {
    pub name: String,
    pub active: Option<Arc<Component>>,
    pub previous: Option<Arc<Component>>,
    /// Digests.
    pub quarantined: Vec<String>,
    /// Faults in a row of the active version.
    pub faults: u32,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The version that serves now.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Component>> {
        self.providers.load().get(name)?.active.clone()
    }

    /// Puts a version in service under its descriptor's name, and keeps the one before it.
    pub fn install(&self, component: Arc<Component>) -> Installed {
        self.change(&component.descriptor().name.clone(), |entry| {
            if entry.quarantined.contains(component.digest()) {
                return Installed::Quarantined;
            }
            if entry.serves(component.digest()) {
                return Installed::Unchanged;
            }
            let replaced = entry.active.replace(component);
            let installed =
                replaced.as_ref().map_or(Installed::First, |old| Installed::Replaced(old.digest().to_owned()));
            entry.previous = replaced.or_else(|| entry.previous.take());
            installed
        })
    }

    /// Puts the version before in service; the two change places. Gives what serves now, or
    /// nothing if there is none to go back to.
    pub fn rollback(&self, name: &str) -> Option<Arc<Component>> {
        self.change(name, |entry| {
            let restored = entry.previous.take()?;
            entry.previous = entry.active.replace(Arc::clone(&restored));
            Some(restored)
        })
    }

    /// Takes a provider out of service, and forgets its versions. Whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut providers = BTreeMap::clone(&self.providers.load());
        let removed = providers.remove(name).is_some();
        self.providers.store(Arc::new(providers));
        removed
    }

    /// Lifts a quarantine, so that the version can be installed again. Whether there was one.
    pub fn release(&self, name: &str, digest: &str) -> bool {
        self.change(name, |entry| entry.quarantined.remove(digest))
    }

    /// Every provider, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        self.providers.load().iter().map(|(name, entry)| entry.listed(name)).collect()
    }

    /// Takes note of how a call of this version ended: `healthy` unless the fault speaks against
    /// the component (see [`super::CallError::is_the_guests`]). The fifth fault in a row
    /// quarantines the version and puts the one before it back, in one step.
    pub fn report(&self, name: &str, digest: &str, healthy: bool) -> Option<Quarantined> {
        let entry = self.providers.load().get(name).filter(|entry| entry.serves(digest))?.clone();
        if healthy {
            entry.recovered();
            return None;
        }
        let faults = entry.faults.fetch_add(1, Ordering::Relaxed) + 1;
        if faults < FAULTS_TO_QUARANTINE { None } else { self.quarantine(name, digest) }
    }

    fn quarantine(&self, name: &str, digest: &str) -> Option<Quarantined> {
        self.change(name, |entry| {
            if !entry.serves(digest) {
                // Another thread came first.
                return None;
            }
            entry.quarantined.insert(digest.to_owned());
            entry.active = entry.previous.take();
            let restored = entry.active.as_ref().map(|component| component.digest().to_owned());
            Some(Quarantined { digest: digest.to_owned(), restored })
        })
    }

    /// Changes a copy of one entry, then shows it. The count of faults begins anew with another
    /// version.
    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Entry) -> T) -> T {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut providers = BTreeMap::clone(&self.providers.load());
        let mut entry = providers.get(name).map(|entry| entry.copy()).unwrap_or_default();
        let before = entry.active.clone();
        let result = change(&mut entry);
        if !same(before.as_ref(), entry.active.as_ref()) {
            entry.faults = AtomicU32::new(0);
        }
        if !entry.is_empty() {
            providers.insert(name.to_owned(), Arc::new(entry));
            self.providers.store(Arc::new(providers));
        }
        result
    }
}

impl Entry {
    fn serves(&self, digest: &str) -> bool {
        self.active.as_ref().is_some_and(|active| active.digest() == digest)
    }

    fn is_empty(&self) -> bool {
        self.active.is_none() && self.previous.is_none() && self.quarantined.is_empty()
    }

    /// Reads first: almost every call is a good one, and a write would take the cache line from
    /// the other cores.
    fn recovered(&self) {
        if self.faults.load(Ordering::Relaxed) != 0 {
            self.faults.store(0, Ordering::Relaxed);
        }
    }

    fn copy(&self) -> Self {
        Self {
            active: self.active.clone(),
            previous: self.previous.clone(),
            quarantined: self.quarantined.clone(),
            faults: AtomicU32::new(self.faults.load(Ordering::Relaxed)),
        }
    }

    fn listed(&self, name: &str) -> Listed {
        Listed {
            name: name.to_owned(),
            active: self.active.clone(),
            previous: self.previous.clone(),
            quarantined: self.quarantined.iter().cloned().collect(),
            faults: self.faults.load(Ordering::Relaxed),
        }
    }
}

fn same(a: Option<&Arc<Component>>, b: Option<&Arc<Component>>) -> bool {
    a.map(|component| component.digest()) == b.map(|component| component.digest())
}
