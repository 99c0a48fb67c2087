//! The providers that serve on this node: the runtime's components, with the hosts that the
//! operator granted to each.
//!
//! The database says which component of a provider is active; every node follows it. A change is written there first
//! and then applied by [`Providers::sync`], on the node that made it as on all others. Each look compares the node's
//! providers with the database, so that any difference disappears.

mod activation;

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::activation::{Activation, Grants, Installation};
use crate::{node::config::FolderGrant, node::telemetry};
use angarium_domain::{
    audit::{Action, Actor},
    ids::TenantId,
};
use angarium_runtime::{AdmissionError, Component, QuarantineScope, Quarantined, Registry, Runtime};
use angarium_store::{
    Connection as Db, Store, StoreError,
    audit::{AuditEntry, operator_audit_insert},
    provider::{
        StoredComponent, StoredProvider, component_bytes, component_delete, component_digests, component_granted,
        component_insert, component_list, component_quarantine, provider_activate, provider_delete, provider_grant,
        provider_list, provider_lock, provider_use_count, tenant_quarantine_lift, tenant_quarantine_put,
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
    /// The component was refused; nothing was stored.
    #[error(transparent)]
    Refused(#[from] AdmissionError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no provider `{0}`")]
    Unknown(String),
    #[error("there is no version before the present one to go back to")]
    NoPrevious,
    /// The descriptor doesn't declare these.
    #[error("must be declared by the provider (got {})", list(.0))]
    Undeclared(Vec<String>),
    #[error("version {given} is lower than {serving}; a downgrade must be allowed explicitly (`allow_downgrade`)")]
    Downgrade { given: String, serving: String },
    /// The wait for another component's grants.
    #[error(
        "the provider was granted {} for another component; say whether this one gets that too (`grants=keep`) or \
         nothing yet (`grants=none`)",
        list(.0)
    )]
    GrantsUnconfirmed(Vec<String>),
    /// The same version is there with other bytes.
    #[error(
        "version {version} of the provider is installed already with other bytes (SHA-256 {digest}): give the new build \
         another version, or say that it may stand beside that one (`replace`)"
    )]
    VersionTaken { version: String, digest: String },
    #[error("the provider has no version with the SHA-256 `{0}`; `angarium provider get` lists them")]
    UnknownVersion(String),
    /// Deliveries would stand still.
    #[error(
        "{connections} enabled connections are accounts at the provider, and nothing would leave through them: disable or \
         delete them, let another version serve, or say that it is to go anyway (`force`)"
    )]
    InUse { connections: i64 },
    #[error("the folder of providers {} can't be read: {error}; `providers.folder` names it", path.display())]
    Folder { path: PathBuf, error: io::Error },
    #[error("the admission of a component ended without an answer")]
    Lost,
}

fn list(hosts: &[String]) -> String {
    hosts.iter().map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", ")
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
    /// No provider serves before [`Providers::load`].
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

    /// Puts the components that the database has as active into service, then the folder's.
    ///
    /// # Errors
    /// When the database or the folder can't be read. A component that is refused is logged and
    /// passed over: the others serve.
    pub async fn load(&self, folder: Option<&Path>, grant: FolderGrant) -> Result<(), ProviderError> {
        self.sync().await?;
        if let Some(folder) = folder {
            for path in components(folder)? {
                self.install_file(&path, grant).await?;
            }
            self.sync().await?;
        }
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

    /// Installs a component; with an activation it serves from now on, on every node, and leaves any quarantine.
    ///
    /// # Errors
    /// When the component is refused, or may not take the place of what serves, or the database
    /// fails. Nothing is stored then.
    pub async fn install(&self, bytes: Bytes, how: Installation, by: &Actor) -> Result<String, ProviderError> {
        let component = self.admit(bytes.clone()).await?;
        let descriptor = component.descriptor();
        let mut txn = self.store.worker().await?;
        component_insert(&mut txn, component.digest(), descriptor, &bytes).await?;
        let provider = locked(provider_lock(&mut txn, &descriptor.name).await?, &descriptor.name)?;
        let versions = component_list(&mut txn, &descriptor.name).await?;
        let new = versions.iter().find(|version| version.digest == component.digest());
        let new = new.ok_or_else(|| ProviderError::Unknown(descriptor.name.clone()))?;
        if !how.replace
            && let Some(taken) = activation::same_version(&versions, new)
        {
            let (version, digest) = (taken.descriptor.version.clone(), taken.digest.clone());
            return Err(ProviderError::VersionTaken { version, digest });
        }
        let entry = match how.activation {
            None => AuditEntry::new(Action::ProviderInstalled, &descriptor.name).after(shown(new, None)),
            Some(activation) => put_forward(&mut txn, activation, &provider, &versions, new).await?,
        };
        operator_audit_insert(&mut txn, by, &entry).await?;
        txn.commit().await.map_err(StoreError::from)?;
        if how.activation.is_some() {
            self.sync().await?;
        }
        Ok(descriptor.name.clone())
    }

    /// Puts an installed version in service, out of any quarantine.
    ///
    /// # Errors
    /// When there is no such version, or it may not take the place of what serves, or the database fails.
    pub async fn activate(
        &self,
        name: &str,
        digest: &str,
        activation: Activation,
        by: &Actor,
    ) -> Result<(), ProviderError> {
        let mut txn = self.store.worker().await?;
        let provider = locked(provider_lock(&mut txn, name).await?, name)?;
        let versions = component_list(&mut txn, name).await?;
        let version = versions.iter().find(|version| version.digest == digest);
        let version = version.ok_or_else(|| ProviderError::UnknownVersion(digest.to_owned()))?;
        let entry = put_forward(&mut txn, activation, &provider, &versions, version).await?;
        operator_audit_insert(&mut txn, by, &entry).await?;
        txn.commit().await.map_err(StoreError::from)?;
        self.sync().await
    }

    /// Removes a version, or a provider with all of its versions.
    ///
    /// # Errors
    /// When there is no such one, when enabled connections would be left without a version that serves, unless it is
    /// forced, or the database fails.
    pub async fn uninstall(
        &self,
        name: &str,
        digest: Option<&str>,
        force: bool,
        by: &Actor,
    ) -> Result<(), ProviderError> {
        let mut txn = self.store.worker().await?;
        let provider = locked(provider_lock(&mut txn, name).await?, name)?;
        let versions = component_list(&mut txn, name).await?;
        let (gone, left): (Vec<_>, Vec<_>) =
            versions.iter().partition(|version| digest.is_none_or(|digest| version.digest == digest));
        if let (Some(digest), []) = (digest, gone.as_slice()) {
            return Err(ProviderError::UnknownVersion(digest.to_owned()));
        }
        let stays = |kept: &Option<String>| kept.clone().filter(|it| left.iter().any(|version| version.digest == *it));
        let active = stays(&provider.active_digest);
        if !force && (active != provider.active_digest || left.is_empty()) {
            let connections = provider_use_count(&mut txn, name).await?;
            if connections > 0 {
                return Err(ProviderError::InUse { connections });
            }
        }
        provider_activate(&mut txn, name, active.as_deref(), stays(&provider.previous_digest).as_deref()).await?;
        for version in &gone {
            component_delete(&mut txn, &version.digest).await?;
        }
        if left.is_empty() {
            provider_delete(&mut txn, name).await?;
        }
        let before: Vec<_> = gone.iter().map(|version| shown(version, None)).collect();
        let entry = AuditEntry::new(Action::ProviderUninstalled, name)
            .before(json!({"digest": provider.active_digest, "versions": before}))
            .after(json!({ "digest": active }));
        operator_audit_insert(&mut txn, by, &entry).await?;
        txn.commit().await.map_err(StoreError::from)?;
        self.sync().await
    }

    /// Puts the version before in service again; the two change places.
    ///
    /// # Errors
    /// When there is no such provider or no such version, or the database fails.
    pub async fn rollback(&self, name: &str, by: &Actor) -> Result<(), ProviderError> {
        let mut txn = self.store.worker().await?;
        let provider = locked(provider_lock(&mut txn, name).await?, name)?;
        let previous = provider.previous_digest.as_deref().ok_or(ProviderError::NoPrevious)?;
        activate(&mut txn, &provider, previous).await?;
        let entry = AuditEntry::new(Action::ProviderRolledBack, name)
            .before(json!({"digest": provider.active_digest}))
            .after(json!({"digest": previous}));
        operator_audit_insert(&mut txn, by, &entry).await?;
        txn.commit().await.map_err(StoreError::from)?;
        self.sync().await
    }

    /// Sets the hosts of a provider's requests: these and no others.
    ///
    /// # Errors
    /// When there is no such provider, or its versions don't declare a host.
    pub async fn grant(&self, name: &str, hosts: &[String], by: &Actor) -> Result<(), ProviderError> {
        let mut txn = self.store.worker().await?;
        let provider = locked(provider_lock(&mut txn, name).await?, name)?;
        let versions = component_list(&mut txn, name).await?;
        let declared = |host: &&String| versions.iter().any(|version| version.descriptor.hosts.contains(host));
        let undeclared: Vec<_> = hosts.iter().filter(|host| !declared(host)).cloned().collect();
        if !undeclared.is_empty() {
            return Err(ProviderError::Undeclared(undeclared));
        }
        provider_grant(&mut txn, name, hosts).await?;
        if let Some(active) = &provider.active_digest {
            component_granted(&mut txn, active).await?;
        }
        let entry = AuditEntry::new(Action::ProviderGranted, name)
            .before(json!({"granted_hosts": provider.granted_hosts}))
            .after(json!({"digest": provider.active_digest, "granted_hosts": hosts}));
        operator_audit_insert(&mut txn, by, &entry).await?;
        txn.commit().await.map_err(StoreError::from)?;
        self.sync().await
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

    async fn admit(&self, bytes: Bytes) -> Result<Arc<Component>, ProviderError> {
        let runtime = Arc::clone(&self.runtime);
        let admitted = tokio::task::spawn_blocking(move || runtime.admit(&bytes)).await;
        Ok(admitted.map_err(|_| ProviderError::Lost)??)
    }

    /// Installs a file of the folder. A file that the database knows already changes nothing: an operator may have
    /// rolled it back since. A component that may not replace the one that serves is left alone, at each start again.
    async fn install_file(&self, path: &Path, grant: FolderGrant) -> Result<(), ProviderError> {
        let bytes =
            tokio::fs::read(path).await.map_err(|error| ProviderError::Folder { path: path.to_owned(), error })?;
        let mut txn = self.store.worker().await?;
        let known = component_bytes(&mut txn, &hex::encode(Sha256::digest(&bytes))).await?.is_some();
        txn.commit().await.map_err(StoreError::from)?;
        if known {
            return Ok(());
        }
        let grants = match grant {
            FolderGrant::None => None,
            FolderGrant::Declared => Some(Grants::Declared),
        };
        let activation = Some(Activation { allow_downgrade: false, grants });
        let by = Actor::gateway("providers.folder");
        match self.install(bytes.into(), Installation { activation, replace: false }, &by).await {
            Ok(_) => Ok(()),
            Err(
                error @ (ProviderError::Refused(_)
                | ProviderError::VersionTaken { .. }
                | ProviderError::Downgrade { .. }
                | ProviderError::GrantsUnconfirmed(_)),
            ) => {
                tracing::error!(file = %path.display(), %error,
                    "a component of the folder is not installed; `angarium provider install` can say more than the folder");
                Ok(())
            }
            Err(error) => Err(error),
        }
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

/// Puts a version in service with its allowed grants; returns the action.
async fn put_forward(
    db: &mut Db,
    activation: Activation,
    provider: &StoredProvider,
    versions: &[StoredComponent],
    new: &StoredComponent,
) -> Result<AuditEntry, ProviderError> {
    let granted = activation::decide(activation, provider, versions, new)?;
    let mut entry = AuditEntry::new(Action::ProviderActivated, &provider.name).after(shown(new, Some(&granted.hosts)));
    let before = versions.iter().find(|version| Some(&version.digest) == provider.active_digest.as_ref());
    entry.before = before.map(|before| shown(before, Some(&provider.granted_hosts)));
    activate(db, provider, &new.digest).await?;
    if granted.hosts != provider.granted_hosts {
        provider_grant(db, &provider.name, &granted.hosts).await?;
    }
    if granted.given {
        component_granted(db, &new.digest).await?;
    }
    Ok(entry)
}

/// Puts a version in service, out of any quarantine. The row's version grows even if it served already, so that every
/// node starts over with it.
async fn activate(db: &mut Db, provider: &StoredProvider, digest: &str) -> Result<(), StoreError> {
    component_quarantine(db, digest, None).await?;
    tenant_quarantine_lift(db, digest).await?;
    let previous = match provider.active_digest.as_deref() {
        Some(active) if active == digest => provider.previous_digest.as_deref(),
        active => active,
    };
    provider_activate(db, &provider.name, Some(digest), previous).await
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

/// Returns a version in the form of audit entries.
fn shown(version: &StoredComponent, granted: Option<&[String]>) -> Value {
    let descriptor = &version.descriptor;
    let secrets: Vec<_> = descriptor.secrets.iter().map(|secret| &secret.name).collect();
    json!({
        "digest": version.digest, "version": descriptor.version,
        "declared_hosts": descriptor.hosts, "secrets": secrets, "granted_hosts": granted,
    })
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

/// The folder's components, by name.
fn components(folder: &Path) -> Result<Vec<PathBuf>, ProviderError> {
    let unreadable = |error| ProviderError::Folder { path: folder.to_owned(), error };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
