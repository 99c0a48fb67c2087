//! One cluster a run, a database a test, cloned from a migrated template.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use angarium_domain::{
    audit::Actor,
    ids::{DeliveryId, TenantId},
};
use angarium_store::{
    self as store, Store,
    queue::{QueueLane, Share, queue_claim, queue_lanes},
    tenant::tenant_insert,
};
use tokio::sync::OnceCell;
use xtask::database::{Cluster, Options};

const TEMPLATE: &str = "angarium_template";

static CLUSTER: OnceCell<Arc<Cluster>> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The run's cluster; it ends with the process.
async fn cluster() -> &'static Arc<Cluster> {
    CLUSTER
        .get_or_init(|| async {
            let (cluster, url) = tokio::task::spawn_blocking(start).await.unwrap().expect("the cluster starts");
            migrate(&url).await;
            Arc::new(cluster)
        })
        .await
}

/// The data folder outlives a run: databases of the last one are dropped first.
fn start() -> anyhow::Result<(Cluster, String)> {
    let cluster = Cluster::start(Options::tests(xtask::project::root()))?;
    let left = cluster.execute("postgres", "select datname from pg_database where datname like 'test\\_%'")?;
    for name in left.lines().map(str::trim).chain([TEMPLATE]) {
        cluster.drop_database(name)?;
    }
    let url = cluster.create_database(TEMPLATE, None)?;
    Ok((cluster, url))
}

/// Makes the tables, as `angarium migrate` does.
pub async fn migrate(url: &str) {
    let migrated = store::migrate(url, &Actor::command_line("tests")).await;
    migrated.expect("the migrations run").expect("the schema is this gateway's");
}

/// A folder for a new server, for a test that changes roles: they belong to a cluster, and others use the tests' one.
/// Declare it before the server, so that it goes after it.
pub fn server_folder() -> tempfile::TempDir {
    // Root's server runs as another user.
    tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().expect("the folder can be made")
}

/// A test's own database.
pub struct Database {
    pub name: String,
    pub url: String,
    pub store: Store,
    pub cluster: Arc<Cluster>,
}

impl Database {
    pub async fn new() -> Self {
        let cluster = cluster().await;
        let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = name.clone();
        let url = tokio::task::spawn_blocking(move || cluster.create_database(&made, Some(TEMPLATE)))
            .await
            .unwrap()
            .expect("the template can be cloned");
        let store = Store::new(&url, 8).expect("the URL is valid");
        Self { name, url, store, cluster: Arc::clone(cluster) }
    }

    /// A database on a server of its own, for a test that breaks the server.
    pub async fn alone(options: Options) -> Self {
        let name = "broken".to_owned();
        let made = name.clone();
        let (cluster, url) = tokio::task::spawn_blocking(move || {
            let cluster = Cluster::start_private(&options)?;
            cluster.drop_database(&made)?;
            let url = cluster.create_database(&made, None)?;
            anyhow::Ok((cluster, url))
        })
        .await
        .unwrap()
        .expect("a server of its own starts");
        migrate(&url).await;
        let store = Store::new(&url, 8).expect("the URL is valid");
        Self { name, url, store, cluster: Arc::new(cluster) }
    }

    /// A database on a new server in this folder, made as operators are told to: its owner, which migrates, is no
    /// superuser, and nodes log in by another role.
    pub async fn of_an_owner(folder: &tempfile::TempDir) -> Self {
        let name = "owned".to_owned();
        let options = Options::alone(&folder.path().join("data"));
        let cluster = tokio::task::spawn_blocking(move || {
            let cluster = Cluster::start_private(&options)?;
            cluster.execute("postgres", "create role keeper login createrole; create role server login")?;
            cluster.execute("postgres", "create database owned owner keeper")?;
            anyhow::Ok(cluster)
        })
        .await
        .unwrap()
        .expect("a server of its own starts");
        let by = |role: &str| cluster.url("owned").replace("user=postgres", &format!("user={role}"));
        migrate(&by("keeper")).await;
        cluster.execute("owned", "grant angarium_app, angarium_worker to server").expect("the grant is made");
        let url = by("server");
        let store = Store::new(&url, 8).expect("the URL is valid");
        Self { name, url, store, cluster: Arc::new(cluster) }
    }

    /// Stops the server, as its operator would.
    pub async fn stop_server(&self) {
        let cluster = Arc::clone(&self.cluster);
        tokio::task::spawn_blocking(move || cluster.stop()).await.unwrap().expect("the server stops");
    }

    /// Starts the server again, whatever ended it.
    pub async fn start_server(&self) {
        let cluster = Arc::clone(&self.cluster);
        tokio::task::spawn_blocking(move || cluster.start_again()).await.unwrap().expect("the server starts again");
    }

    /// Runs SQL that may fail, as the superuser.
    pub async fn try_sql(&self, sql: &str) -> anyhow::Result<String> {
        let (cluster, name, sql) = (Arc::clone(&self.cluster), self.name.clone(), sql.to_owned());
        tokio::task::spawn_blocking(move || cluster.execute(&name, &sql)).await.unwrap()
    }

    /// A tenant with this name.
    pub async fn tenant(&self, name: &str) -> TenantId {
        let mut txn = self.store.worker().await.unwrap();
        let tenant = tenant_insert(&mut txn, TenantId::new(), name).await.unwrap();
        txn.commit().await.unwrap();
        tenant.id
    }

    /// Runs SQL as the cluster's superuser, past row-level security; answers what `psql` prints.
    pub async fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).await.expect("the SQL runs")
    }
}

/// Takes due deliveries out of the queue, up to this number of each tenant and priority.
pub async fn claim_due(db: &mut store::Connection, most: usize) -> Vec<(TenantId, DeliveryId)> {
    let lanes = queue_lanes(db, None, 1000).await.unwrap().into_iter().filter(|lane| lane.due);
    let share = |lane: QueueLane| Share { tenant: lane.tenant, priority: lane.priority, count: most };
    let claimed = queue_claim(db, &lanes.map(share).collect::<Vec<_>>()).await.unwrap();
    claimed.into_iter().map(|it| (it.tenant, it.delivery)).collect()
}

/// Waits until `done` answers something, for at most half a minute.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut done: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(it) = done().await {
            return it;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen within 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
