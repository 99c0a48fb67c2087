//! A tenant's configuration as this node knows it: connections with their secrets opened, and the active routes. It is
//! read far more often than it changes, so it stays in memory until its version in the database changes.

mod rulebooks;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::rulebooks::Rulebooks;
use crate::{
    clock,
    engine::guards::{Guard, GuardRegistry},
};
use angarium_domain::{
    callback::PublicUrl,
    connection::Connection,
    ids::{ConnectionId, RouteId, TenantId},
    message::Channel,
    route::RouteSpec,
    settings::TenantSettings,
};
use angarium_rules::{rulebook::Rulebook, script::Hook};
use angarium_store::{
    self as store, Store,
    connection::connection_list,
    event::connection_event_insert,
    route::route_active_list,
    script::operator_script_stamp,
    secret::{StoredSecret, secret_list},
    settings::settings_get,
    tenant::{CONFIG_CHANNEL, EVERY_TENANT, tenant_config_recent, tenant_config_version},
};
use angarium_transport::{
    Secrets,
    sealing::{Keyring, SealingError, Secret, SecretPlace},
};

/// A connection that deliveries can go through.
#[derive(Debug)]
pub struct Endpoint {
    pub tenant: TenantId,
    pub connection: Connection,
    /// The connection's config, parsed.
    pub config: serde_json::Value,
    pub secrets: Secrets,
    /// Names of the secrets that are stored, those that cannot be opened among them: a provider that is not told of one
    /// would describe a request without it.
    pub secret_names: Vec<String>,
    /// The URL for the service's callbacks, if others can reach this gateway.
    pub callback_url: Option<String>,
    /// How many requests may be under way through it from this node.
    pub slots: Arc<Semaphore>,
    /// Its circuit breaker and its rate.
    pub guard: Arc<Guard>,
}

/// The version of a route that serves a channel.
#[derive(Debug)]
pub struct ActiveRoute {
    pub id: RouteId,
    pub version: i32,
    pub spec: RouteSpec,
}

/// All that a tenant has set up.
#[derive(Debug, Default)]
pub struct TenantConfig {
    version: i64,
    /// The number of this reading on this node: no two have the same.
    pub reading: u64,
    /// The end of the first secret's overlap: after it, the configuration holds an invalid value.
    fresh_until: Option<Timestamp>,
    pub endpoints: HashMap<ConnectionId, Arc<Endpoint>>,
    pub routes: BTreeMap<Channel, Arc<ActiveRoute>>,
    pub settings: TenantSettings,
    /// The rules and scripts; `None` if there are none.
    pub rulebook: Option<Arc<Rulebook>>,
}

impl Endpoint {
    /// Returns the connection's name for people: its uid, or else its id.
    #[must_use]
    pub fn name(&self) -> String {
        self.connection.uid.clone().unwrap_or_else(|| self.connection.id.to_string())
    }
}

impl TenantConfig {
    /// Returns a connection's name for people, whether it exists or was deleted.
    #[must_use]
    pub fn name_of(&self, connection: ConnectionId) -> String {
        self.endpoints.get(&connection).map_or_else(|| connection.to_string(), |it| it.name())
    }

    /// The connection that an id or a `uid` names.
    #[must_use]
    pub fn connection(&self, id_or_uid: &str) -> Option<&Arc<Endpoint>> {
        match id_or_uid.parse::<ConnectionId>() {
            Ok(id) => self.endpoints.get(&id),
            Err(_) => self.endpoints.values().find(|it| it.connection.uid.as_deref() == Some(id_or_uid)),
        }
    }
}

/// This node's view of a tenant.
#[derive(Clone, Default)]
struct LoadedTenant {
    config: Option<Arc<TenantConfig>>,
    /// How often it changed.
    changes: u64,
    /// The number of changes that it includes.
    as_of: u64,
    /// How often it could not be read.
    failures: u64,
    /// Held by the reading task: all others wait for its result.
    reading: Arc<tokio::sync::Mutex<()>>,
}

/// The scope of a changed configuration.
enum Changed {
    All,
    These(Vec<TenantId>),
}

/// The tenants' configuration as this node knows it.
pub struct TenantConfigs {
    store: Store,
    keyring: Arc<Keyring>,
    slots: Slots,
    guards: Arc<GuardRegistry>,
    public_url: PublicUrl,
    tenants: Mutex<HashMap<TenantId, LoadedTenant>>,
    rulebooks: Rulebooks,
    readings: AtomicU64,
    /// The stamp of operators' scripts at the last look.
    operators: Mutex<Option<String>>,
    /// The connections with a published event about a secret that cannot be opened.
    told_of_secrets: Mutex<HashSet<ConnectionId>>,
}

impl TenantConfigs {
    #[must_use]
    pub fn new(
        store: Store,
        keyring: Arc<Keyring>,
        slots: usize,
        guards: Arc<GuardRegistry>,
        public_url: PublicUrl,
    ) -> Self {
        let (slots, tenants, rulebooks) = (Slots::new(slots), Mutex::default(), Rulebooks::default());
        let (operators, told_of_secrets) = (Mutex::default(), Mutex::default());
        let readings = AtomicU64::default();
        Self { store, keyring, slots, guards, public_url, tenants, rulebooks, readings, operators, told_of_secrets }
    }

    /// Returns a tenant's configuration, from the database if it is not in memory.
    pub async fn tenant(&self, tenant: TenantId) -> store::Result<Arc<TenantConfig>> {
        if let Some(fresh) = self.fresh(tenant) {
            return Ok(fresh);
        }
        // Rare and large: boxed, so that every delivery's future stays small.
        Box::pin(self.read_once(tenant)).await
    }

    /// Reads it unless another task does already: thousands may ask at a time.
    async fn read_once(&self, tenant: TenantId) -> store::Result<Arc<TenantConfig>> {
        let LoadedTenant { reading, failures, .. } = self.known(tenant);
        let turn = reading.lock().await;
        if let Some(fresh) = self.fresh(tenant) {
            return Ok(fresh);
        }
        // While the database is away, tasks do not wait for one another in turn.
        if self.known(tenant).failures > failures {
            drop(turn);
        }
        self.reload(tenant).await
    }

    /// Reads it again: for names in a request that this node does not know yet.
    pub async fn reload(&self, tenant: TenantId) -> store::Result<Arc<TenantConfig>> {
        let as_of = self.known(tenant).changes;
        let read = self.read(tenant).await;
        if let Ok(config) = &read {
            self.tell_of_secrets(tenant, config).await;
        }
        let mut tenants = self.tenants();
        let known = tenants.entry(tenant).or_default();
        match &read {
            // Data that was read before a change is not kept after it.
            Ok(config) if as_of >= known.as_of => (known.config, known.as_of) = (Some(Arc::clone(config)), as_of),
            Ok(_) => {}
            Err(_) => known.failures += 1,
        }
        read
    }

    /// After this, the node knows a tenant's present configuration, or nothing of it. The previous one serves until
    /// then, so that no request waits for a change.
    pub async fn renew(&self, tenant: TenantId) {
        if self.kept(tenant).is_none() {
            // Another task may be reading the state before the change.
            return self.forget(tenant);
        }
        let change = self.change(tenant);
        let reading = self.known(tenant).reading;
        let _reading = reading.lock().await;
        if self.known(tenant).as_of >= change {
            return;
        }
        if let Err(error) = self.reload(tenant).await {
            tracing::warn!(tenant.id = %tenant, %error, "a changed configuration can't be read");
            self.forget(tenant);
        }
    }

    /// Counts a change.
    fn change(&self, tenant: TenantId) -> u64 {
        let mut tenants = self.tenants();
        let known = tenants.entry(tenant).or_default();
        known.changes += 1;
        known.changes
    }

    async fn read(&self, tenant: TenantId) -> store::Result<Arc<TenantConfig>> {
        // A connection's config and its secrets are of one moment: no secret goes to a host that it was not given for.
        let mut txn = self.store.snapshot(tenant).await?;
        let version = tenant_config_version(&mut txn, tenant).await?;
        let connections = connection_list(&mut txn, tenant).await?;
        let secrets = secret_list(&mut txn, tenant).await?;
        let routes = route_active_list(&mut txn, tenant).await?;
        let settings = settings_get(&mut txn, tenant).await?;
        let rulebook = self.rulebooks.read(&mut txn, tenant).await?;
        txn.commit().await?;
        let rulebook = self.rulebooks.of(tenant, rulebook).await;
        let fresh_until = secrets.iter().filter_map(|secret| secret.valid_until).min();
        let mut secrets = self.open_all(tenant, secrets);
        let slots = self.slots.of(tenant, connections.iter().map(|connection| connection.id));
        let guards = self.guards.of(tenant, &connections);
        let endpoints = connections.into_iter().zip(slots).zip(guards).map(|((connection, slots), guard)| {
            let secrets = secrets.remove(&connection.id).unwrap_or_default();
            let callback_url = self.public_url.callback(&connection.callback_token);
            (connection.id, Arc::new(endpoint(tenant, connection, secrets, slots, guard, callback_url)))
        });
        Ok(Arc::new(TenantConfig {
            version,
            reading: self.readings.fetch_add(1, Ordering::Relaxed),
            fresh_until,
            endpoints: endpoints.collect(),
            settings: settings.settings,
            rulebook,
            routes: routes
                .into_iter()
                .map(|(channel, it)| {
                    (channel, Arc::new(ActiveRoute { id: it.route, version: it.version, spec: it.spec }))
                })
                .collect(),
        }))
    }

    /// Whether a tenant's scripts ask about the ends of deliveries; if this is unknown here, they may.
    #[must_use]
    pub fn asks_outcomes(&self, tenant: TenantId) -> bool {
        let asks = |config: Arc<TenantConfig>| config.rulebook.as_ref().is_some_and(|book| book.asks(Hook::OnOutcome));
        self.kept(tenant).is_none_or(asks)
    }

    /// Marks a tenant's configuration to be read before it is used again.
    fn forget(&self, tenant: TenantId) {
        if let Some(known) = self.tenants().get_mut(&tenant) {
            known.changes += 1;
            (known.config, known.as_of) = (None, known.changes);
        }
    }

    /// Follows changes in the database, by notifications and, in case one is lost, by a look each second; `heard` is
    /// called each time.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken, heard: impl Fn(TenantId)) {
        let mut listener = None;
        while !stop.is_cancelled() {
            if let Err(error) = self.watch_once(&mut listener, &stop, &heard).await {
                tracing::warn!(%error, "changes of configuration can't be watched; the next look is in a second");
                listener = None;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn watch_once(
        self: &Arc<Self>,
        listener: &mut Option<store::Listener>,
        stop: &CancellationToken,
        heard: &impl Fn(TenantId),
    ) -> store::Result<()> {
        let listener = match listener {
            Some(listener) => listener,
            none => none.insert(self.store.listen(CONFIG_CHANNEL).await?),
        };
        let changed = tokio::select! {
            () = stop.cancelled() => Changed::These(Vec::new()),
            payload = listener.next() => match payload? {
                all if all == EVERY_TENANT => Changed::All,
                one => Changed::These(one.parse().into_iter().collect()),
            },
            () = tokio::time::sleep(Duration::from_secs(1)) => self.outdated().await?,
        };
        match changed {
            // They may be many: each is read when it is needed.
            Changed::All => self.known_tenants().into_iter().for_each(|tenant| {
                self.forget(tenant);
                heard(tenant);
            }),
            Changed::These(tenants) => {
                tenants.iter().copied().for_each(heard);
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    for tenant in tenants {
                        this.catch_up(tenant).await;
                    }
                });
            }
        }
        Ok(())
    }

    /// Renews an outdated configuration: a change made on this node is already applied.
    async fn catch_up(&self, tenant: TenantId) {
        let known = self.kept(tenant).map(|config| config.version);
        if known.is_none() || self.version(tenant).await.ok() != known {
            self.renew(tenant).await;
        }
    }

    async fn version(&self, tenant: TenantId) -> store::Result<i64> {
        tenant_config_version(&mut *self.store.tenant(tenant).await?, tenant).await
    }

    /// Returns the tenants with an outdated configuration.
    async fn outdated(&self) -> store::Result<Changed> {
        let mut txn = self.store.worker().await?;
        let recent = tenant_config_recent(&mut txn).await?;
        let operators = operator_script_stamp(&mut txn).await?;
        drop(txn);
        if std::mem::replace(&mut *self.operators.lock().unwrap_or_else(PoisonError::into_inner), operators.clone())
            != operators
        {
            return Ok(Changed::All);
        }
        let tenants = self.tenants();
        let outdated = |(tenant, version): &(TenantId, i64)| {
            tenants.get(tenant).and_then(|it| it.config.as_ref()).is_some_and(|it| it.version != *version)
        };
        Ok(Changed::These(recent.into_iter().filter(outdated).map(|(tenant, _)| tenant).collect()))
    }

    /// Opens secrets. A secret with a valid version that cannot be opened is closed, not left out: deliveries that need
    /// it wait.
    fn open_all(&self, tenant: TenantId, stored: Vec<StoredSecret>) -> HashMap<ConnectionId, Secrets> {
        let mut values: BTreeMap<(ConnectionId, String), Result<Vec<Secret>, SealingError>> = BTreeMap::new();
        for it in stored {
            let place = SecretPlace { tenant, connection: it.connection, name: &it.name, version: it.version };
            let value = self.keyring.open(&place, &it.sealed);
            let known = values.entry((it.connection, it.name)).or_insert_with(|| Ok(Vec::new()));
            match (known, value) {
                (Ok(newest_first), Ok(value)) => newest_first.push(value),
                (known @ Ok(_), Err(error)) => *known = Err(error),
                (Err(_), _) => {}
            }
        }
        let mut opened: HashMap<ConnectionId, Secrets> = HashMap::new();
        for ((connection, name), values) in values {
            let secrets = opened.entry(connection).or_default();
            match values {
                Ok(values) => secrets.insert(name, values),
                Err(error) => {
                    tracing::error!(%error, connection.id = %connection, secret = name, "a secret can't be opened");
                    secrets.close(name);
                }
            }
        }
        opened
    }

    /// Records as events which connections have secrets that cannot be opened, and which have none any more; each
    /// change once, as this node sees it.
    async fn tell_of_secrets(&self, tenant: TenantId, config: &TenantConfig) {
        for endpoint in config.endpoints.values() {
            let id = endpoint.connection.id;
            let is_closed = !endpoint.secrets.closed().is_empty();
            if is_closed == self.told_of_secrets().contains(&id) {
                continue;
            }
            let kind = if is_closed { "connection.secrets_unavailable" } else { "connection.secrets_available" };
            let data = serde_json::json!({ "secrets": endpoint.secrets.closed() }).to_string();
            match self.record_of_connection(tenant, id, kind, &data).await {
                Ok(()) if is_closed => drop(self.told_of_secrets().insert(id)),
                Ok(()) => drop(self.told_of_secrets().remove(&id)),
                Err(error) => {
                    tracing::warn!(%error, connection.id = %id, "an event of a connection is not recorded yet")
                }
            }
        }
    }

    async fn record_of_connection(
        &self,
        tenant: TenantId,
        connection: ConnectionId,
        kind: &str,
        data: &str,
    ) -> store::Result<()> {
        let mut txn = self.store.worker().await?;
        connection_event_insert(&mut txn, tenant, connection, kind, data).await?;
        Ok(txn.commit().await?)
    }

    fn told_of_secrets(&self) -> MutexGuard<'_, HashSet<ConnectionId>> {
        self.told_of_secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, tenant: TenantId) -> LoadedTenant {
        self.tenants().entry(tenant).or_default().clone()
    }

    fn kept(&self, tenant: TenantId) -> Option<Arc<TenantConfig>> {
        self.tenants().get(&tenant)?.config.clone()
    }

    fn fresh(&self, tenant: TenantId) -> Option<Arc<TenantConfig>> {
        self.kept(tenant).filter(|it| it.fresh_until.is_none_or(|end| clock::now() < end))
    }

    fn known_tenants(&self) -> Vec<TenantId> {
        let tenants = self.tenants();
        tenants.iter().filter(|(_, it)| it.config.is_some()).map(|(tenant, _)| *tenant).collect()
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, LoadedTenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots of connections, which outlive their configuration: a change must not let twice as many requests through. A
/// sender through a connection holds its slots; if none does, the slots are free.
struct Slots {
    /// Requests under way through one connection, from this node.
    each: usize,
    held: Mutex<HashMap<TenantId, HashMap<ConnectionId, Weak<Semaphore>>>>,
}

impl Slots {
    fn new(each: usize) -> Self {
        Self { each, held: Mutex::default() }
    }

    /// Returns the slots of each of a tenant's connections, in order; unused ones are removed.
    fn of(&self, tenant: TenantId, connections: impl Iterator<Item = ConnectionId>) -> Vec<Arc<Semaphore>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.entry(tenant).or_default();
        known.retain(|_, slots| slots.strong_count() > 0);
        let slots = connections.map(|connection| {
            let standing = known.get(&connection).and_then(Weak::upgrade);
            let slots = standing.unwrap_or_else(|| Arc::new(Semaphore::new(self.each)));
            known.insert(connection, Arc::downgrade(&slots));
            slots
        });
        slots.collect()
    }
}

fn endpoint(
    tenant: TenantId,
    connection: Connection,
    secrets: Secrets,
    slots: Arc<Semaphore>,
    guard: Arc<Guard>,
    callback_url: Option<String>,
) -> Endpoint {
    Endpoint {
        tenant,
        config: serde_json::from_str(connection.config.get()).unwrap_or_default(),
        secret_names: secrets.stored_names().map(str::to_owned).collect(),
        secrets,
        connection,
        slots,
        guard,
        callback_url,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_goes_on_over_a_change_of_configuration() {
        let (slots, tenant, connection) = (Slots::new(2), TenantId::new(), ConnectionId::new());
        let known = slots.of(tenant, [connection].into_iter());
        let sending = Arc::clone(&known[0]);
        let _under_way = sending.try_acquire().unwrap();
        // The configuration is forgotten; the request goes on.
        drop(known);
        let again = slots.of(tenant, [ConnectionId::new(), connection].into_iter());
        assert_eq!((again[0].available_permits(), again[1].available_permits()), (2, 1));
    }

    #[test]
    fn slots_that_nobody_holds_are_let_go() {
        let (slots, tenant) = (Slots::new(1), TenantId::new());
        drop(slots.of(tenant, (0..100).map(|_| ConnectionId::new())));
        let _kept = slots.of(tenant, [ConnectionId::new()].into_iter());
        assert_eq!(slots.held.lock().unwrap()[&tenant].len(), 1);
    }
}
