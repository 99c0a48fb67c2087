//! The providers that serve on this node: the runtime's components, with the hosts that the
//! operator granted to each.
//!
//! The database says which component of a provider is active; every node follows it. A change is
//! written there first and then taken up by [`Providers::sync`], on the node that made it as on
//! all others.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    config::FolderGrant,
    runtime::{AdmissionError, Component, Quarantined, Registry, Runtime},
    store::{
        Store, StoreError,
        provider::{
            StoredProvider, component_bytes, component_digests, component_insert, component_list, component_quarantine,
            provider_activate, provider_grant, provider_list, provider_lock,
        },
    },
    telemetry,
};

/// How often a node looks for changes that other nodes made.
const LOOK: Duration = Duration::from_secs(1);

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
    #[error("the provider doesn't declare {}", .0.iter().map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", "))]
    Undeclared(Vec<String>),
    #[error("the folder of providers {} can't be read: {error}; `providers.folder` names it", path.display())]
    Folder { path: PathBuf, error: io::Error },
    #[error("the admission of a component ended without an answer")]
    Lost,
}

/// The providers of this node.
pub struct Providers {
    store: Store,
    runtime: Arc<Runtime>,
    registry: Registry,
    grants: ArcSwap<HashMap<String, Arc<[String]>>>,
    /// The version of each provider's row that was taken up.
    seen: Mutex<HashMap<String, i64>>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    loaded: AtomicBool,
    quarantines: mpsc::UnboundedSender<(String, Quarantined)>,
    quarantined: Mutex<Option<mpsc::UnboundedReceiver<(String, Quarantined)>>>,
}

impl Providers {
    /// No provider serves before [`Providers::load`].
    #[must_use]
    pub fn new(store: Store, runtime: Arc<Runtime>) -> Self {
        let (quarantines, quarantined) = mpsc::unbounded_channel();
        Self {
            store,
            runtime,
            registry: Registry::new(),
            grants: ArcSwap::default(),
            seen: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            loaded: AtomicBool::new(false),
            quarantines,
            quarantined: Mutex::new(Some(quarantined)),
        }
    }

    /// The version of a provider that serves now.
    #[must_use]
    pub fn serving(&self, name: &str) -> Option<Serving> {
        let component = self.registry.get(name)?;
        let granted = self.grants.load().get(name).cloned().unwrap_or_default();
        Some(Serving { component, granted })
    }

    /// Whether the first look at the database and the folder is over.
    #[must_use]
    pub fn are_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Takes note of how a call of this version ended; a version that fails five times in a row is
    /// quarantined, and the one before it serves again.
    pub fn report(&self, serving: &Serving, healthy: bool) {
        let name = &serving.component.descriptor().name;
        if let Some(quarantined) = self.registry.report(name, serving.component.digest(), healthy) {
            tracing::error!(
                provider.name = name,
                provider.digest = quarantined.digest,
                restored = quarantined.restored,
                "a provider version is quarantined: it failed five times in a row"
            );
            metrics::counter!("angarium_quarantines_total", "provider" => name.clone()).increment(1);
            // Nobody listens any more only while the node ends.
            let _ = self.quarantines.send((name.clone(), quarantined));
        }
    }

    /// Brings what the database says is active into service, then the folder's components.
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

    /// Follows the database and writes quarantines down, until it is told to stop.
    pub async fn follow(&self, stop: CancellationToken) {
        let taken = self.quarantined.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut quarantined) = taken else { return };
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some((name, found)) = quarantined.recv() => {
                    if let Err(error) = self.quarantine(&name, &found).await {
                        tracing::warn!(provider.name = name, %error, "a quarantine is not written down; it is tried again");
                        tokio::time::sleep(LOOK).await;
                        let _ = self.quarantines.send((name, found));
                    }
                }
                _ = ticks.tick() => {
                    if let Err(error) = self.sync().await {
                        tracing::warn!(%error, "changes of providers can't be read; the next look is in a second");
                    }
                }
            }
        }
    }

    /// Takes a component in; with `activate` it serves from now on, on every node.
    ///
    /// # Errors
    /// When the component is refused, or the database fails.
    pub async fn install(&self, bytes: Bytes, activate: bool) -> Result<String, ProviderError> {
        let component = self.admit(bytes.clone()).await?;
        let descriptor = component.descriptor();
        let mut txn = self.store.worker().await?;
        component_insert(&mut txn, component.digest(), descriptor, &bytes).await?;
        if activate {
            component_quarantine(&mut txn, component.digest(), None).await?;
            let provider = locked(provider_lock(&mut txn, &descriptor.name).await?, &descriptor.name)?;
            let active = provider.active_digest.as_deref();
            if active != Some(component.digest()) {
                provider_activate(&mut txn, &descriptor.name, Some(component.digest()), active).await?;
            }
        }
        txn.commit().await.map_err(StoreError::from)?;
        if activate {
            self.registry.release(&descriptor.name, component.digest());
            self.sync().await?;
        }
        Ok(descriptor.name.clone())
    }

    /// Puts the version before in service again; the two change places.
    ///
    /// # Errors
    /// When there is no such provider or no such version, or the database fails.
    pub async fn rollback(&self, name: &str) -> Result<(), ProviderError> {
        let mut txn = self.store.worker().await?;
        let provider = locked(provider_lock(&mut txn, name).await?, name)?;
        let previous = provider.previous_digest.as_deref().ok_or(ProviderError::NoPrevious)?;
        component_quarantine(&mut txn, previous, None).await?;
        provider_activate(&mut txn, name, Some(previous), provider.active_digest.as_deref()).await?;
        txn.commit().await.map_err(StoreError::from)?;
        self.registry.release(name, previous);
        self.sync().await
    }

    /// Says to which hosts a provider's requests may go: these and no others.
    ///
    /// # Errors
    /// When there is no such provider, or its versions don't declare a host.
    pub async fn grant(&self, name: &str, hosts: &[String]) -> Result<(), ProviderError> {
        let mut txn = self.store.worker().await?;
        locked(provider_lock(&mut txn, name).await?, name)?;
        let versions = component_list(&mut txn, name).await?;
        let declared = |host: &&String| versions.iter().any(|version| version.descriptor.hosts.contains(host));
        let undeclared: Vec<_> = hosts.iter().filter(|host| !declared(host)).cloned().collect();
        if !undeclared.is_empty() {
            return Err(ProviderError::Undeclared(undeclared));
        }
        provider_grant(&mut txn, name, hosts).await?;
        txn.commit().await.map_err(StoreError::from)?;
        self.sync().await
    }

    /// Takes up what changed in the database since the last look.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn sync(&self) -> Result<(), ProviderError> {
        let _looking = self.looking.lock().await;
        let mut txn = self.store.worker().await?;
        let providers = provider_list(&mut txn).await?;
        txn.commit().await.map_err(StoreError::from)?;
        for provider in providers.iter().filter(|provider| !self.has_seen(provider)) {
            self.take_up(provider).await?;
            self.seen().insert(provider.name.clone(), provider.version);
        }
        Ok(())
    }

    async fn take_up(&self, provider: &StoredProvider) -> Result<(), ProviderError> {
        let mut grants = HashMap::clone(&self.grants.load());
        grants.insert(provider.name.clone(), provider.granted_hosts.clone().into());
        self.grants.store(Arc::new(grants));
        let Some(active) = &provider.active_digest else {
            self.registry.remove(&provider.name);
            return Ok(());
        };
        if self.registry.get(&provider.name).is_some_and(|component| component.digest() == active) {
            return Ok(());
        }
        // The one before first, so that it stands behind the active one.
        let previous = provider.previous_digest.as_ref().filter(|_| self.registry.get(&provider.name).is_none());
        for digest in previous.into_iter().chain([active]) {
            match self.stored(digest).await {
                Ok(component) => {
                    self.registry.release(&provider.name, digest);
                    // An alert sees a first event only if its series is there before.
                    metrics::counter!("angarium_quarantines_total", "provider" => provider.name.clone()).absolute(0);
                    for channel in &component.descriptor().channels {
                        drop(telemetry::lane(channel, &provider.name));
                    }
                    self.registry.install(component);
                    tracing::info!(
                        provider.name = provider.name,
                        provider.digest = digest,
                        "a provider version serves"
                    );
                }
                Err(ProviderError::Store(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(provider.name = provider.name, provider.digest = digest, %error,
                        "a stored provider version can't be loaded; what served before still does");
                }
            }
        }
        Ok(())
    }

    async fn stored(&self, digest: &str) -> Result<Arc<Component>, ProviderError> {
        let mut txn = self.store.worker().await?;
        let bytes = component_bytes(&mut txn, digest).await?;
        txn.commit().await.map_err(StoreError::from)?;
        let bytes = bytes.ok_or_else(|| ProviderError::Unknown(digest.to_owned()))?;
        let component = self.admit(bytes.into()).await?;
        if component.digest() == digest { Ok(component) } else { Err(ProviderError::Unknown(digest.to_owned())) }
    }

    /// Forgets the compiled code of what is no longer installed.
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

    /// A file that the database knows already changes nothing: an operator may have gone back from
    /// it since.
    async fn install_file(&self, path: &Path, grant: FolderGrant) -> Result<(), ProviderError> {
        let bytes =
            tokio::fs::read(path).await.map_err(|error| ProviderError::Folder { path: path.to_owned(), error })?;
        let mut txn = self.store.worker().await?;
        let known = component_bytes(&mut txn, &hex::encode(Sha256::digest(&bytes))).await?.is_some();
        txn.commit().await.map_err(StoreError::from)?;
        if known {
            return Ok(());
        }
        match self.install(bytes.into(), true).await {
            Ok(name) if grant == FolderGrant::Declared => self.grant_declared(&name).await,
            Ok(_) => Ok(()),
            Err(ProviderError::Refused(error)) => {
                tracing::error!(file = %path.display(), %error, "a component of the folder is refused");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn grant_declared(&self, name: &str) -> Result<(), ProviderError> {
        match self.registry.get(name) {
            Some(component) => self.grant(name, &component.descriptor().hosts).await,
            None => Ok(()),
        }
    }

    /// Writes a quarantine down, so that other nodes and the next start know of it.
    async fn quarantine(&self, name: &str, found: &Quarantined) -> Result<(), ProviderError> {
        let mut txn = self.store.worker().await?;
        let provider = locked(provider_lock(&mut txn, name).await?, name)?;
        component_quarantine(&mut txn, &found.digest, Some("it failed five times in a row")).await?;
        if provider.active_digest.as_deref() == Some(found.digest.as_str()) {
            let versions = component_list(&mut txn, name).await?;
            let sound = |digest: &&String| {
                versions.iter().any(|version| version.digest == **digest && version.quarantined_at.is_none())
            };
            let restored = found.restored.as_ref().filter(sound);
            provider_activate(&mut txn, name, restored.map(String::as_str), None).await?;
        }
        txn.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    fn has_seen(&self, provider: &StoredProvider) -> bool {
        self.seen().get(&provider.name) == Some(&provider.version)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<String, i64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
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
