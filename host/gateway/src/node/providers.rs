//! The providers that serve on this node: the runtime's components, with the hosts that the
//! operator granted to each.
//!
//! The database says which component of a provider is active; every node follows it. A change is written there first
//! and then applied by [`Providers::sync`], on the node that made it as on all others. Each look compares the node's
//! providers with the database, so that any difference disappears.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::node::telemetry;
use angarium_domain::{
    audit::{Action, Actor},
    ids::TenantId,
};
use angarium_runtime::{AdmissionError, Component, QuarantineScope, Quarantined, Registry, Runtime};
use angarium_store::{
    Connection as Db, Store, StoreError,
    audit::{AuditEntry, operator_audit_insert},
    provider::{
        StoredProvider, component_bytes, component_digests, component_list, component_quarantine, provider_activate,
        provider_list, provider_lock, tenant_quarantine_put,
    },
};

/// How often a node looks for changes that other nodes made.
const LOOK: Duration = Duration::from_secs(1);
/// A version that could not be loaded is tried again after a second, then after twice as long each
/// time up to this, since each try may compile it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const FIVE_IN_A_ROW: &str = "it failed five times in a row";

/// A provider's active version with its grants: what one attempt works with, to its end.
#[derive(Debug, Clone)]
pub struct Serving {
    pub component: Arc<Component>,
    /// Host patterns that the operator granted.
    pub granted: Arc<[String]>,
}

/// Why a provider was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The component was refused.
    #[error(transparent)]
    Refused(#[from] AdmissionError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no provider `{0}`")]
    Unknown(String),
    #[error("the admission of a component ended without an answer")]
    Lost,
}

/// The providers of this node.
pub struct Providers {
    store: Store,
    runtime: Arc<Runtime>,
    registry: Registry,
    /// The state beside the components.
    kept: ArcSwap<HashMap<String, Kept>>,
    /// The applied state of each provider's row.
    taken_up: Mutex<HashMap<String, TakenUp>>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    loaded: AtomicBool,
    /// Quarantines that are not written down yet, the oldest first.
    quarantines: Mutex<VecDeque<FoundQuarantine>>,
    /// Rung when there is one.
    found: Notify,
}

/// The part of a provider's row that a node keeps.
#[derive(Clone)]
struct Kept {
    granted: Arc<[String]>,
    /// The reason for which none of its versions serves.
    absence: Arc<str>,
}

/// A node's view of a provider's row.
#[derive(Clone, Copy)]
struct TakenUp {
    version: i64,
    failure: Option<LoadFailure>,
}

/// The active version could not be loaded.
#[derive(Clone, Copy)]
struct LoadFailure {
    pause: Duration,
    again: Instant,
}

/// A quarantine that this node has found, with the version of the provider's row at that time: a later change of the
/// row takes precedence.
#[derive(Clone)]
struct FoundQuarantine {
    name: String,
    version: i64,
    quarantined: Quarantined,
}

impl Providers {
    /// No provider serves before [`Providers::sync`].
    #[must_use]
    pub fn new(store: Store, runtime: Arc<Runtime>) -> Self {
        Self {
            store,
            runtime,
            registry: Registry::new(),
            kept: ArcSwap::default(),
            taken_up: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            loaded: AtomicBool::new(false),
            quarantines: Mutex::default(),
            found: Notify::new(),
        }
    }

    /// Returns the version of a provider that serves now, for calls without a tenant's delivery.
    #[must_use]
    pub fn serving(&self, name: &str) -> Option<Serving> {
        self.with_grants(name, self.registry.get(name)?)
    }

    /// The version that serves a tenant's deliveries: another one, or none, while the active version
    /// is in quarantine for the tenant.
    #[must_use]
    pub fn serving_for(&self, name: &str, tenant: TenantId) -> Option<Serving> {
        self.with_grants(name, self.registry.get_for(name, tenant, Instant::now())?)
    }

    fn with_grants(&self, name: &str, component: Arc<Component>) -> Option<Serving> {
        let granted = self.kept.load().get(name).map(|kept| Arc::clone(&kept.granted)).unwrap_or_default();
        Some(Serving { component, granted })
    }

    /// Why no version of a provider serves a tenant, for people.
    #[must_use]
    pub fn absence(&self, name: &str, tenant: TenantId) -> String {
        if let Some(active) = self.registry.get(name)
            && self.registry.get_for(name, tenant, Instant::now()).is_none()
        {
            let version = &active.descriptor().version;
            return format!(
                "version {version} of the provider is in quarantine for this tenant: {FIVE_IN_A_ROW} over its deliveries"
            );
        }
        self.kept
            .load()
            .get(name)
            .map_or_else(|| "the provider is not installed".to_owned(), |it| it.absence.to_string())
    }

    /// Whether the first look at the database and the folder is over.
    #[must_use]
    pub fn are_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Takes note of whether a tenant's attempt speaks for the version or against it. A version that
    /// fails five times in a row is in quarantine for the tenant, and one that does so for several
    /// tenants, while it serves none, for all.
    pub fn report(&self, serving: &Serving, tenant: TenantId, sound: bool) {
        let name = &serving.component.descriptor().name;
        let digest = serving.component.digest();
        let Some(quarantined) = self.registry.report(name, digest, tenant, sound, Instant::now()) else { return };
        match quarantined.scope {
            QuarantineScope::Tenant(tenant, lasts) => {
                tracing::warn!(
                    provider.name = name,
                    provider.digest = digest,
                    tenant.id = %tenant,
                    lasts_s = lasts.as_secs(),
                    restored = quarantined.restored,
                    "a provider version is in quarantine for one tenant: it failed five times in a row over its deliveries"
                );
                metrics::counter!("angarium_tenant_quarantines_total", "provider" => name.clone()).increment(1);
            }
            QuarantineScope::All => {
                tracing::error!(
                    provider.name = name,
                    provider.digest = digest,
                    restored = quarantined.restored,
                    "a provider version is quarantined: it failed five times in a row for several tenants"
                );
                metrics::counter!("angarium_quarantines_total", "provider" => name.clone()).increment(1);
            }
        }
        let version = self.taken_up().get(name).map_or(0, |known| known.version);
        self.quarantines().push_back(FoundQuarantine { name: name.clone(), version, quarantined });
        self.found.notify_one();
    }

    /// Ends the start: artifacts of components that are gone are removed, and the node may serve.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn loaded(&self) -> Result<(), ProviderError> {
        self.prune().await?;
        self.loaded.store(true, Ordering::Release);
        Ok(())
    }

    /// Follows the database and writes quarantines, until it is stopped.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.found.notified() => {}
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.sync().await {
                tracing::warn!(%error, "changes of providers can't be read or written; the next look is in a second");
            }
        }
    }

    /// Writes this node's findings, and applies the database's state.
    ///
    /// # Errors
    /// When the database can't be read or written.
    pub async fn sync(&self) -> Result<(), ProviderError> {
        let _looking = self.looking.lock().await;
        self.write_quarantines().await?;
        let mut txn = self.store.worker().await?;
        let providers = provider_list(&mut txn).await?;
        txn.commit().await.map_err(StoreError::from)?;
        for provider in providers.iter().filter(|provider| self.is_behind(provider, Instant::now())) {
            self.take_up(provider).await?;
        }
        self.let_go(&providers);
        Ok(())
    }

    /// Takes uninstalled providers out of service.
    fn let_go(&self, providers: &[StoredProvider]) {
        let is_there = |name: &String| providers.iter().any(|provider| provider.name == *name);
        let gone: Vec<_> = self.taken_up().keys().filter(|name| !is_there(name)).cloned().collect();
        for name in gone {
            self.registry.remove(&name);
            self.taken_up().remove(&name);
            self.change_kept(|kept| drop(kept.remove(&name)));
            tracing::info!(provider.name = name, "a provider serves no more: it was uninstalled");
        }
    }

    /// Whether this node does other than a provider's row says, and is to look into it now.
    fn is_behind(&self, provider: &StoredProvider, now: Instant) -> bool {
        match self.taken_up().get(&provider.name) {
            Some(known) if known.version == provider.version => match known.failure {
                Some(failure) => now >= failure.again,
                None => {
                    let serving = self.registry.get(&provider.name);
                    serving.as_ref().map(|component| component.digest()) != provider.active_digest.as_deref()
                }
            },
            Some(_) | None => true,
        }
    }

    async fn take_up(&self, provider: &StoredProvider) -> Result<(), ProviderError> {
        // The grants are there before the component that they are meant for.
        let absence = self.why_none_serves(provider).await?;
        self.keep(provider, absence);
        let failure = match self.put_in_service(provider).await {
            Ok(()) => None,
            Err(ProviderError::Store(error)) => return Err(error.into()),
            Err(error) => {
                self.keep(provider, format!("the provider's active version cannot be loaded: {error}"));
                let pause = self.pause_after_failure(provider);
                tracing::error!(
                    provider.name = provider.name,
                    provider.digest = provider.active_digest,
                    %error,
                    again_in_s = pause.as_secs(),
                    "the active version of a provider can't be loaded; what served before still does"
                );
                Some(LoadFailure { pause, again: Instant::now() + pause })
            }
        };
        self.taken_up().insert(provider.name.clone(), TakenUp { version: provider.version, failure });
        Ok(())
    }

    /// Why no version of an installed provider is active, for people.
    async fn why_none_serves(&self, provider: &StoredProvider) -> Result<String, ProviderError> {
        if provider.active_digest.is_some() {
            return Ok("no version of the provider serves on this node yet".to_owned());
        }
        let mut txn = self.store.worker().await?;
        let versions = component_list(&mut txn, &provider.name).await?;
        txn.commit().await.map_err(StoreError::from)?;
        let taken = versions.iter().filter_map(|version| Some((version.quarantined_at?, version)));
        Ok(match taken.max_by_key(|(at, _)| *at) {
            Some((_, version)) => format!(
                "version {} of the provider is in quarantine: {}",
                version.descriptor.version,
                version.quarantine_reason.as_deref().unwrap_or("it failed")
            ),
            None => "no version of the provider is activated".to_owned(),
        })
    }

    fn keep(&self, provider: &StoredProvider, absence: String) {
        let kept = Kept { granted: provider.granted_hosts.clone().into(), absence: absence.into() };
        self.change_kept(|all| drop(all.insert(provider.name.clone(), kept)));
    }

    fn change_kept(&self, change: impl FnOnce(&mut HashMap<String, Kept>)) {
        let mut kept = HashMap::clone(&self.kept.load());
        change(&mut kept);
        self.kept.store(Arc::new(kept));
    }

    fn pause_after_failure(&self, provider: &StoredProvider) -> Duration {
        let known = self.taken_up().get(&provider.name).copied().filter(|known| known.version == provider.version);
        known.and_then(|known| known.failure).map_or(LOOK, |failure| (failure.pause * 2).min(LONGEST_PAUSE))
    }

    async fn put_in_service(&self, provider: &StoredProvider) -> Result<(), ProviderError> {
        let Some(active) = &provider.active_digest else {
            self.registry.remove(&provider.name);
            return Ok(());
        };
        let previous = match &provider.previous_digest {
            Some(digest) => self.behind_the_active(provider, digest).await?,
            None => None,
        };
        match self.version(&provider.name, active).await {
            Ok(component) => {
                prepare_metrics(provider, &component);
                self.registry.serve(component, previous);
                tracing::info!(provider.name = provider.name, provider.digest = active, "a provider version serves");
                Ok(())
            }
            Err(error) => {
                if let Some(previous) = previous.filter(|_| self.registry.get(&provider.name).is_none()) {
                    self.registry.serve(previous, None);
                }
                Err(error)
            }
        }
    }

    /// The version before the active one; without it there is no more than nothing to fall back to.
    async fn behind_the_active(
        &self,
        provider: &StoredProvider,
        digest: &str,
    ) -> Result<Option<Arc<Component>>, ProviderError> {
        match self.version(&provider.name, digest).await {
            Ok(component) => Ok(Some(component)),
            Err(ProviderError::Store(error)) => Err(error.into()),
            Err(error) => {
                tracing::error!(provider.name = provider.name, provider.digest = digest, %error,
                    "the version of a provider before the active one can't be loaded");
                Ok(None)
            }
        }
    }

    /// A version: as it is here already, or from the database.
    async fn version(&self, name: &str, digest: &str) -> Result<Arc<Component>, ProviderError> {
        let here = self.registry.list().into_iter().find(|listed| listed.name == name);
        let here = here.into_iter().flat_map(|listed| [listed.active, listed.previous]).flatten();
        match here.into_iter().find(|component| component.digest() == digest) {
            Some(component) => Ok(component),
            None => self.stored(digest).await,
        }
    }

    async fn stored(&self, digest: &str) -> Result<Arc<Component>, ProviderError> {
        let mut txn = self.store.worker().await?;
        let bytes = component_bytes(&mut txn, digest).await?;
        txn.commit().await.map_err(StoreError::from)?;
        let bytes = bytes.ok_or_else(|| ProviderError::Unknown(digest.to_owned()))?;
        let component = self.admit(bytes.into()).await?;
        if component.digest() == digest { Ok(component) } else { Err(ProviderError::Unknown(digest.to_owned())) }
    }

    /// Removes the compiled code of components that are no longer installed.
    async fn prune(&self) -> Result<(), ProviderError> {
        let mut txn = self.store.worker().await?;
        let installed = component_digests(&mut txn).await?.into_iter().collect();
        txn.commit().await.map_err(StoreError::from)?;
        let runtime = Arc::clone(&self.runtime);
        tokio::task::spawn_blocking(move || runtime.prune(&installed)).await.map_err(|_| ProviderError::Lost)
    }

    /// Checks and compiles a component, off the async workers.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn admit(&self, bytes: Bytes) -> Result<Arc<Component>, ProviderError> {
        let runtime = Arc::clone(&self.runtime);
        let admitted = tokio::task::spawn_blocking(move || runtime.admit(&bytes)).await;
        Ok(admitted.map_err(|_| ProviderError::Lost)??)
    }

    /// Writes the found quarantines, so that people, other nodes and the next start know of them.
    async fn write_quarantines(&self) -> Result<(), ProviderError> {
        loop {
            let Some(found) = self.quarantines().front().cloned() else { return Ok(()) };
            match self.write_quarantine(&found).await {
                Ok(()) => {}
                Err(ProviderError::Store(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(provider.name = found.name, %error, "a quarantine can't be written down");
                }
            }
            self.quarantines().pop_front();
        }
    }

    async fn write_quarantine(&self, found: &FoundQuarantine) -> Result<(), ProviderError> {
        let FoundQuarantine { name, version, quarantined } = found;
        let mut txn = self.store.worker().await?;
        let provider = locked(provider_lock(&mut txn, name).await?, name)?;
        if provider.version != *version {
            tracing::info!(
                provider.name = name,
                provider.digest = quarantined.digest,
                "a quarantine is void: the provider was changed meanwhile"
            );
            return Ok(());
        }
        match quarantined.scope {
            QuarantineScope::Tenant(tenant, lasts) => {
                tenant_quarantine_put(&mut txn, tenant, &quarantined.digest, lasts, FIVE_IN_A_ROW).await?;
            }
            QuarantineScope::All => quarantine(&mut txn, &provider, quarantined).await?,
        }
        txn.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    fn taken_up(&self) -> MutexGuard<'_, HashMap<String, TakenUp>> {
        self.taken_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quarantines(&self) -> MutexGuard<'_, VecDeque<FoundQuarantine>> {
        self.quarantines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a version from all tenants, and lets the one serve that was restored here, if it is sound.
async fn quarantine(db: &mut Db, provider: &StoredProvider, found: &Quarantined) -> Result<(), StoreError> {
    component_quarantine(db, &found.digest, Some("it failed five times in a row for several tenants")).await?;
    let versions = component_list(db, &provider.name).await?;
    let sound = |digest: &&String| {
        versions.iter().any(|version| version.digest == **digest && version.quarantined_at.is_none())
    };
    let restored = found.restored.as_ref().filter(sound);
    provider_activate(db, &provider.name, restored.map(String::as_str), None).await?;
    let entry = AuditEntry::new(Action::ProviderQuarantined, &provider.name)
        .before(json!({"digest": found.digest}))
        .after(json!({"digest": restored}));
    operator_audit_insert(db, &Actor::gateway("quarantine"), &entry).await
}

/// An alert sees a first event only if its series is there before.
fn prepare_metrics(provider: &StoredProvider, component: &Component) {
    for counter in ["angarium_quarantines_total", "angarium_tenant_quarantines_total"] {
        metrics::counter!(counter, "provider" => provider.name.clone()).absolute(0);
    }
    for channel in &component.descriptor().channels {
        drop(telemetry::lane(channel, &provider.name));
    }
}

fn locked(provider: Option<StoredProvider>, name: &str) -> Result<StoredProvider, ProviderError> {
    provider.ok_or_else(|| ProviderError::Unknown(name.to_owned()))
}
