//! Assembles the gateway from its configuration, runs it, and drains it: no new work begins, running work ends, and the
//! rest goes to the other nodes.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use metrics::gauge;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::{JoinHandle, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{self, BodyBudget, Browsers, HttpParts, HttpState, ServerSettings, SocketLimits},
    app::{self, App, change::Changes, key_lookup::Keys, providers::folder::install_all},
    engine::admission::{Admission, Outlet},
    engine::callbacks::{self, Callbacks},
    engine::capacity::Capacity,
    engine::dispatch::{Budgets, Dispatcher},
    engine::experiments::Experiments,
    engine::fair_semaphore::FairSemaphore,
    engine::follow_up::FollowUps,
    engine::guards::GuardRegistry,
    engine::ledger::Ledger,
    engine::legs,
    engine::planning::{Planner, RoundRobinCounter},
    engine::queue::{Claimer, Leases, Work, renew},
    engine::recovery,
    engine::rule_runner::{RuleRunner, RuleTimes},
    engine::small_tenant_priority::SmallTenantPriority,
    jobs::job_runner,
    jobs::maintenance,
    node::config::{Config, NodeRole},
    node::health::NodeHealth,
    node::providers::Providers,
    node::rulefolder,
    node::telemetry::{Metrics, Tracer},
    node::tenant_config::TenantConfigs,
};
use angarium_domain::callback::PublicUrl;
use angarium_runtime::{CacheSettings, Runtime, RuntimeSettings};
use angarium_store::{self as store, Store, maintenance::lease_expire_node, statistics::transactions_align};
use angarium_transport::{self as transport, Transport, TransportSettings, byte_budget::ByteBudget, sealing::Keyring};

/// Requests that are under way get this long to end once the gateway stops.
const REQUESTS_END: Duration = Duration::from_secs(10);
/// The time for settling attempts whose deadline is over.
const SETTLING: Duration = Duration::from_secs(5);
/// The time for writing counts at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why the gateway does not start, in a sentence that names the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    fn because(what: &str, error: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

/// The gateway's parts while it runs.
struct Gateway {
    store: Store,
    leases: Arc<Leases>,
    /// Asks everything that takes in work to stop.
    intake: CancellationToken,
    /// Asks everything else to stop, once no work is left.
    rest: CancellationToken,
    /// Breaks off the mails that were not handed over.
    mails: CancellationToken,
    deliveries: TaskTracker,
    /// Writers of admission and ledger: they end by themselves when their last user is gone.
    writers: JoinSet<()>,
    helpers: JoinSet<()>,
    /// Writes the counts of experiments, to the last.
    recorder: JoinHandle<()>,
    tracer: Tracer,
    deadline: Duration,
}

/// Runs the gateway until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// When it can't start; the text names the cause and the remedy.
pub async fn run(config: Config) -> Result<(), StartError> {
    let listener = listen(&config).await?;
    let (gateway, http) = Gateway::start(&config).await?;
    let address = listener.local_addr().map_err(|error| StartError::because("no address", error))?;
    tracing::info!(event = "listening", http.address = %address, node.name = config.node.name, "the gateway is ready");
    let served = tokio::spawn(api::serve(listener, http, server(&config)?, gateway.intake.clone()));
    terminated().await;
    tracing::info!(event = "draining", "the gateway stops: it takes no more work and ends what it has");
    gateway.drain(served).await;
    tracing::info!(event = "stopped", "the gateway has stopped");
    Ok(())
}

/// How clients' connections are treated; those that the process can't open are not counted on.
fn server(config: &Config) -> Result<ServerSettings, StartError> {
    let (files, _) = rlimit::getrlimit(rlimit::Resource::NOFILE)
        .map_err(|error| StartError::because("the limit of open files can't be read", error))?;
    let sockets = config.http.connection_limit(files);
    if config.http.max_connections.is_some_and(|wanted| wanted > sockets) {
        tracing::warn!(
            connections = sockets,
            files,
            "`http.max_connections` is more than half of the files that the process may open: half of them it is"
        );
    }
    let millis = |millis: u32| Duration::from_millis(millis.into());
    Ok(ServerSettings {
        limits: SocketLimits {
            sockets,
            of_address: config.http.connection_limit_per_address(sockets),
            header: millis(config.http.header_timeout_ms),
            idle: millis(config.http.idle_timeout_ms),
        },
        body: millis(config.http.body_timeout_ms),
    })
}

async fn listen(config: &Config) -> Result<TcpListener, StartError> {
    TcpListener::bind(config.http.listen)
        .await
        .map_err(|error| StartError::because(&format!("`http.listen` {} can't be used", config.http.listen), error))
}

impl Gateway {
    async fn start(config: &Config) -> Result<(Self, HttpState), StartError> {
        let metrics = Metrics::start().map_err(|error| StartError::because("metrics", error))?;
        let tracer = Tracer::start(&config.telemetry, &config.node.name);
        let tracer = tracer.map_err(|error| StartError(error.to_string()))?;
        let store = open(config).await?;
        let keyring = config.secrets.keyring().map_err(|error| StartError(error.to_string()))?;
        let keyring = Arc::new(keyring);
        let providers = Arc::new(load_providers(config, &store, &keyring).await?);
        let public_url = PublicUrl::new(config.http.public_url.as_deref());
        let slots = config.dispatch.max_in_flight_per_connection;
        let (guards, keeper) = GuardRegistry::new(store.clone(), config.dispatch.deadline() * 2, slots);
        keeper.look().await.map_err(|error| StartError::because("circuit breakers can't be read", error))?;
        let tenant_configs =
            TenantConfigs::new(store.clone(), Arc::clone(&keyring), slots, Arc::clone(&guards), public_url.clone());
        let tenant_configs = Arc::new(tenant_configs);
        let leases = Leases::new(config.queue.lease());
        // A third for waiting deliveries, one for large contents while requests are made of them, one for arrivals.
        let third = config.dispatch.max_in_flight_bytes / 3;
        let capacity = Capacity::new(config.dispatch.max_in_flight, third);
        let (bytes, arrivals) = (ByteBudget::new(third), ByteBudget::new(third));
        let small_tenants = SmallTenantPriority::new(Arc::clone(&capacity));
        let bell = Arc::new(Notify::new());
        let (handoff, incoming) = mpsc::unbounded_channel::<Vec<Work>>();
        let mut writers = JoinSet::new();
        let mut helpers = JoinSet::new();
        let intake = CancellationToken::new();
        let rest = CancellationToken::new();
        let mails = CancellationToken::new();
        let deliveries = TaskTracker::new();

        let times = RuleTimes {
            message: Duration::from_millis(config.rules.message_time_ms.into()),
            tenant: Duration::from_millis(config.rules.tenant_time_ms.into()),
        };
        let rules = RuleRunner::new(times);
        let (experiments, recorder) = Experiments::new(store.clone(), Arc::clone(&rules));
        let planner = Arc::new(Planner {
            store: store.clone(),
            experiments: Arc::clone(&experiments),
            rules: Arc::clone(&rules),
            providers: Arc::clone(&providers),
            observations: Arc::default(),
            turns: RoundRobinCounter::default(),
        });
        let dispatcher = Arc::new(Dispatcher {
            store: store.clone(),
            tenant_configs: Arc::clone(&tenant_configs),
            rules: Arc::clone(&rules),
            planner: Arc::clone(&planner),
            providers: Arc::clone(&providers),
            transport: Arc::new(transport(config, &bytes, &mails)?),
            ledger: Ledger::start(&store, &leases, &bell, &small_tenants, &mut writers),
            budgets: Budgets::default(),
            bytes: Arc::clone(&bytes),
            semaphore: FairSemaphore::with_priority(
                std::thread::available_parallelism().map_or(2, |cores| 2 * cores.get()),
                Arc::clone(&small_tenants),
            ),
            tracer: tracer.clone(),
            deadline: config.dispatch.deadline(),
            condition_pause: SignedDuration::from_millis(config.rules.condition_interval_ms.into()),
        });
        let callbacks_gate = FairSemaphore::new(callbacks::AT_A_TIME);
        let long_readers = FairSemaphore::new(api::LONG_READERS);
        sample_node(&metrics, &capacity, &leases, &deliveries);
        sample_bytes(&metrics, &capacity, &bytes, &arrivals);
        sample_connections(&metrics, &store, &dispatcher.ledger);
        let dispatches = config.roles.has(NodeRole::Dispatch);
        let outlet = Outlet {
            capacity: Arc::clone(&capacity),
            leases: Arc::clone(&leases),
            handoff: dispatches.then(|| handoff.clone()),
            planner: dispatches.then_some(planner),
            bell: Arc::clone(&bell),
            small_tenants: Arc::clone(&small_tenants),
            arrivals: Arc::clone(&arrivals),
        };
        let admission = Admission::start(
            &store,
            Arc::clone(&tenant_configs),
            Arc::clone(&providers),
            Arc::clone(&experiments),
            Arc::clone(&rules),
            outlet,
            &mut writers,
        );
        if dispatches {
            let claimer = Claimer {
                store: store.clone(),
                capacity,
                leases: Arc::clone(&leases),
                handoff,
                small_tenants: Arc::clone(&small_tenants),
                bell: Arc::clone(&bell),
                poll: config.queue.poll(),
            };
            helpers.spawn(claimer.run(intake.clone()));
            helpers.spawn(recovery::run(store.clone(), Arc::clone(&bell), recovery_pace(config), intake.clone()));
            helpers.spawn(callbacks::sweep(store.clone(), intake.clone()));
            helpers.spawn(legs::sweep(store.clone(), intake.clone()));
            helpers.spawn(job_runner::run(store.clone(), Arc::clone(&bell), intake.clone()));
            helpers.spawn(Arc::clone(&dispatcher.semaphore).run(small_tenants.pauses(), rest.clone()));
            helpers.spawn(Arc::clone(&dispatcher).run(incoming, deliveries.clone()));
            let (store, tenant_configs, admission) = (store.clone(), Arc::clone(&tenant_configs), admission.clone());
            let rules = Arc::clone(&rules);
            helpers
                .spawn(FollowUps { store, tenant_configs, admission, experiments, bytes, rules }.run(intake.clone()));
        }
        if let Some(folder) = config.rules.folder.clone() {
            helpers.spawn(rulefolder::watch(folder, store.clone(), rest.clone()));
        }
        let recorder = tokio::spawn(recorder.run(rest.clone()));
        helpers.spawn(keeper.run(rest.clone()));
        helpers.spawn(renew::run(store.clone(), Arc::clone(&leases), rest.clone()));
        helpers.spawn(maintenance::run(store.clone(), config.retention.clone(), rest.clone()));
        let keys = Arc::new(Keys::new(store.clone()));
        let heard = Arc::clone(&keys);
        helpers.spawn(Arc::clone(&tenant_configs).watch(rest.clone(), move |tenant| heard.forget(tenant)));
        helpers.spawn({
            let (providers, stop) = (Arc::clone(&providers), rest.clone());
            async move { providers.follow(stop).await }
        });
        let callbacks = Callbacks::new(
            store.clone(),
            Arc::clone(&tenant_configs),
            Arc::clone(&providers),
            public_url,
            callbacks_gate,
        );
        let callbacks = Arc::new(callbacks);
        let folders = [("rules.folder", &config.rules.folder), ("providers.folder", &config.providers.folder)];
        let folders = folders.into_iter().filter_map(|(key, path)| Some((key, path.clone()?))).collect();
        let health = Arc::new(NodeHealth::new(store.clone(), Arc::clone(&keyring), folders));
        health.look().await.map_err(|error| StartError::because("the stored secrets cannot be counted", error))?;
        helpers.spawn(Arc::clone(&health).run(rest.clone()));
        let app = App::new(app::Parts {
            changes: Changes::on_node(&store, &keys, &tenant_configs),
            store: store.clone(),
            tenant_configs,
            guards,
            admission,
            dispatcher,
            rules,
            providers,
            callbacks,
            keyring,
            keys,
            bell,
            tracer: tracer.clone(),
            stop: intake.clone(),
        });
        let http = HttpState::new(HttpParts {
            app,
            health,
            metrics,
            serves_tenants: config.roles.has(NodeRole::Api),
            max_body_bytes: config.http.max_body_bytes,
            bodies: Arc::new(BodyBudget::new(config.http.body_bytes_in_flight())),
            answers: Arc::new(BodyBudget::new(config.http.body_bytes_in_flight())),
            long_readers,
            browsers: Browsers::new(&config.http.cors_origins, config.http.is_only_tls()),
        });
        let deadline = config.dispatch.deadline();
        Ok((
            Self { store, leases, intake, rest, mails, deliveries, writers, helpers, recorder, tracer, deadline },
            http,
        ))
    }

    /// Takes no more work, lets running work end, and gives the rest to the other nodes.
    async fn drain(mut self, served: tokio::task::JoinHandle<()>) {
        self.intake.cancel();
        if tokio::time::timeout(REQUESTS_END, served).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        self.deliveries.close();
        let ended = tokio::time::timeout(self.deadline, self.finish()).await.is_ok();
        // A mail may take longer: it is left to other nodes, unless the server may have taken it.
        self.mails.cancel();
        if !ended && tokio::time::timeout(SETTLING, self.finish()).await.is_err() {
            tracing::warn!(
                deliveries = self.deliveries.len(),
                "some deliveries did not end in time; other nodes take them over"
            );
        }
        self.rest.cancel();
        if let Err(error) = self.give_up_leases().await {
            tracing::warn!(%error, "leases could not be given up; they run out");
        }
        if tokio::time::timeout(LAST_WORDS, self.recorder).await.is_err() {
            tracing::warn!("what came of candidates in the last second is not written down");
        }
        self.helpers.shutdown().await;
        self.tracer.stop().await;
        self.store.close().await;
    }

    async fn finish(&mut self) {
        self.deliveries.wait().await;
        while self.writers.join_next().await.is_some() {}
    }

    async fn give_up_leases(&self) -> store::Result<()> {
        if self.leases.standing().is_empty() {
            return Ok(());
        }
        let mut txn = self.store.worker().await?;
        lease_expire_node(&mut txn, self.leases.node).await?;
        txn.commit().await?;
        Ok(())
    }
}

async fn open(config: &Config) -> Result<Store, StartError> {
    let unusable = |error| StartError::because("the database `database.url` names can't be used", error);
    store::readiness(&config.database.url)
        .await
        .map_err(unusable)?
        .map_err(|not_ready| StartError(not_ready.to_string()))?;
    let store = Store::new(&config.database.url, config.database.max_connections).map_err(unusable)?;
    store.partitions_ensure().await.map_err(unusable)?;
    let mut txn = store.worker().await.map_err(unusable)?;
    if transactions_align(&mut txn).await.map_err(unusable)? {
        tracing::warn!(
            "the database was restored from another cluster: its transactions' numbers go on from the statistics' watermark"
        );
    }
    txn.commit().await.map_err(|error| unusable(error.into()))?;
    Ok(store)
}

async fn load_providers(config: &Config, store: &Store, keyring: &Keyring) -> Result<Providers, StartError> {
    let key = keyring.derive("compiled components").map_err(|error| StartError(error.to_string()))?;
    let cache = config.providers.cache_folder.clone().map(|folder| CacheSettings { folder, key });
    let settings = RuntimeSettings { cache, ..RuntimeSettings::default() };
    let runtime = Runtime::new(settings).map_err(|error| StartError(error.to_string()))?;
    let providers = Providers::new(store.clone(), Arc::new(runtime));
    fill(&providers, config, store)
        .await
        .map_err(|error| StartError::because("the providers can't be loaded", error))?;
    Ok(providers)
}

/// Puts the components that the database has as active into service, then the folder's.
async fn fill(providers: &Providers, config: &Config, store: &Store) -> app::Result<()> {
    providers.sync().await?;
    if let Some(folder) = &config.providers.folder {
        install_all(&Changes::bare(store.clone()), providers, folder, config.providers.grant).await?;
    }
    Ok(providers.loaded().await?)
}

fn transport(config: &Config, bytes: &Arc<ByteBudget>, mails: &CancellationToken) -> Result<Transport, StartError> {
    let settings = TransportSettings {
        allow: config.egress.allow.clone(),
        extra_ca_pem: config.tls.ca_pem().map_err(|error| StartError(error.to_string()))?,
        ehlo_name: config.node.ehlo_name.clone(),
        bytes: Arc::clone(bytes),
        stop: mails.clone(),
    };
    Transport::new(settings).map_err(|error| StartError::because("`tls.ca_file`", error))
}

/// Samples the node's state whenever metrics are read.
fn sample_node(metrics: &Metrics, capacity: &Arc<Capacity>, leases: &Arc<Leases>, deliveries: &TaskTracker) {
    metrics.sample(gauge!("angarium_slots_taken"), {
        let capacity = Arc::clone(capacity);
        move || capacity.taken() as f64
    });
    gauge!("angarium_slots_max").set(capacity.capacity() as f64);
    metrics.sample(gauge!("angarium_leases_held"), {
        let leases = Arc::clone(leases);
        move || leases.count() as f64
    });
    let deliveries = deliveries.clone();
    metrics.sample(gauge!("angarium_deliveries_in_flight"), move || deliveries.len() as f64);
}

/// Samples the memory of messages whenever metrics are read.
fn sample_bytes(metrics: &Metrics, capacity: &Arc<Capacity>, contents: &Arc<ByteBudget>, arrivals: &Arc<ByteBudget>) {
    metrics.sample(gauge!("angarium_message_bytes_taken"), {
        let capacity = Arc::clone(capacity);
        move || capacity.taken_bytes() as f64
    });
    gauge!("angarium_message_bytes_max").set(capacity.capacity_bytes() as f64);
    for (budget, of) in [(contents, "contents"), (arrivals, "arrivals")] {
        let (taken, waiting) = (Arc::clone(budget), Arc::clone(budget));
        metrics.sample(gauge!("angarium_large_bytes_taken", "of" => of), move || taken.taken() as f64);
        metrics.sample(gauge!("angarium_large_waiting", "of" => of), move || waiting.waiting() as f64);
        gauge!("angarium_large_bytes_max", "of" => of).set(budget.capacity() as f64);
    }
}

/// Samples the connections to the database and to providers whenever metrics are read.
fn sample_connections(metrics: &Metrics, store: &Store, ledger: &Ledger) {
    for (role, pool) in [(store::DatabaseRole::App, "app"), (store::DatabaseRole::Worker, "worker")] {
        let (busy, idle) = (store.clone(), store.clone());
        metrics.sample(gauge!("angarium_db_connections", "pool" => pool, "state" => "in_use"), move || {
            busy.usage(role).in_use as f64
        });
        metrics.sample(gauge!("angarium_db_connections", "pool" => pool, "state" => "idle"), move || {
            idle.usage(role).idle as f64
        });
        gauge!("angarium_db_connections_max", "pool" => pool).set(store.usage(role).max);
    }
    metrics.sample(gauge!("angarium_http_client_connections"), || transport::usage().0 as f64);
    metrics.sample(gauge!("angarium_http_client_requests"), || transport::usage().1 as f64);
    let ledger = ledger.clone();
    metrics.sample(gauge!("angarium_ledger_writable"), move || f64::from(u8::from(ledger.is_writable())));
}

/// Often enough that a lost worker's deliveries wait for its lease and not for the look.
fn recovery_pace(config: &Config) -> recovery::RecoveryPace {
    let lease = config.queue.lease();
    // Leases are renewed three times in their length.
    recovery::RecoveryPace { pause: (lease / 4).min(Duration::from_secs(1)), renewal: lease / 2 }
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
