//! All the SQL, one file a table or aggregate; one function a query, named `noun_verb`, the
//! connection first. The caller owns the transaction. Nothing here decides anything.

#[macro_use]
mod row;

pub mod api_key;
pub mod attempt;
pub mod audit;
pub mod breaker;
pub mod connection;
pub mod dead_letter;
pub mod delivery;
pub mod document;
pub mod event;
pub mod experiment;
pub mod failpoint;
pub mod follow_up;
pub mod job;
pub mod legs;
pub mod maintenance;
pub mod message;
pub mod message_search;
pub mod ordering;
pub mod page;
pub mod provider;
pub mod queue;
pub mod rate;
pub mod receipt;
pub mod retention;
pub mod route;
pub mod rule;
mod schema;
pub mod script;
pub mod secret;
pub mod settings;
pub mod statistics;
pub mod task_lease;
pub mod tenant;
pub mod time;
pub mod transition;

use std::{str::FromStr, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection as _, Executor, PgConnection, PgPool, Postgres,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use uuid::Uuid;

use crate::failpoint::Injected;
use angarium_domain::ids::TenantId;

pub use schema::{NotReady, migrate, readiness};

/// A connection to the database, as every query takes it: a transaction lends one.
pub use sqlx::PgConnection as Connection;

/// The database's reason for not doing a request.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be reached, or does not take writes: try again later.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// It has no space for the request: try again once an operator has made some.
    #[error("the database's disk is full: {0}")]
    Full(#[source] sqlx::Error),
    /// A unique key or a check refused the row; the constraint's name says which.
    #[error("the database refused the row: {constraint}")]
    Conflict { constraint: String },
    /// A tenant's configuration in service would be larger than it may be.
    #[error("the tenant's configuration comes to {bytes} bytes")]
    ConfigTooLarge { bytes: i64 },
    #[error("the database failed: {0}")]
    Failed(#[source] sqlx::Error),
}

/// A transaction; it rolls back when it is dropped.
pub type Transaction<'a> = sqlx::Transaction<'a, Postgres>;

/// The error of a connection that broke with an unknown effect.
#[must_use]
pub fn lost_connection() -> sqlx::Error {
    sqlx::Error::WorkerCrashed
}

impl StoreError {
    /// Whether the same may work later: by itself, or by an operator's hand.
    #[must_use]
    pub const fn passes(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_))
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if let sqlx::Error::Database(refusal) = &error {
            if let Some(constraint) = refusal.constraint() {
                return Self::Conflict { constraint: constraint.to_owned() };
            }
            return match refusal.code().as_deref() {
                Some("53100") => Self::Full(error),
                Some(code) if is_passing(code) => Self::Unavailable(error),
                _ => Self::Failed(error),
            };
        }
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Self::Unavailable(error),
            other => Self::Failed(other),
        }
    }
}

/// A failpoint simulates a connection that broke there.
impl From<Injected> for StoreError {
    fn from(_: Injected) -> Self {
        Self::Unavailable(lost_connection())
    }
}

/// SQLSTATE classes that pass by themselves or by an operator's hand: connection exceptions (08),
/// a read-only database (25006), no resources such as memory (53), a server that is starting or
/// stopping (57P), I/O errors (58), a serialisation failure or deadlock (40).
fn is_passing(code: &str) -> bool {
    ["08", "53", "57P", "58", "40"].iter().any(|class| code.starts_with(class)) || code == "25006"
}

/// Which of the two roles a connection runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseRole {
    /// A tenant's request: row-level security shows it one tenant, or none.
    App,
    /// Queue, dispatch and ledger: crosses tenants.
    Worker,
}

impl DatabaseRole {
    const fn name(self) -> &'static str {
        match self {
            Self::App => "angarium_app",
            Self::Worker => "angarium_worker",
        }
    }
}

/// The way to the database: a pool for tenants' requests, one for the gateway's own work.
#[derive(Debug, Clone)]
pub struct Store {
    options: PgConnectOptions,
    app: PgPool,
    worker: PgPool,
    holder: Uuid,
}

impl Store {
    /// Prepares both pools; nothing is connected before the first use.
    pub fn new(url: &str, max_connections: u32) -> Result<Self> {
        let options = connect_options(url)?;
        Ok(Self {
            app: pool(&options, DatabaseRole::App, max_connections),
            worker: pool(&options, DatabaseRole::Worker, max_connections),
            options,
            holder: Uuid::new_v4(),
        })
    }

    /// This process, as the holder of leases of tasks.
    #[must_use]
    pub const fn holder(&self) -> Uuid {
        self.holder
    }

    /// A transaction that sees one tenant.
    ///
    /// It is begun in a task of its own: a request that is dropped while it waits must not hand
    /// a connection with an open transaction back to the pool (sqlx #4385).
    pub async fn tenant(&self, tenant: TenantId) -> Result<Transaction<'static>> {
        self.begin(tenant, "begin").await
    }

    /// Begins a read-only transaction of one tenant whose statements all see the same moment: a result of several rows
    /// is consistent.
    pub async fn snapshot(&self, tenant: TenantId) -> Result<Transaction<'static>> {
        self.begin(tenant, "begin isolation level repeatable read, read only").await
    }

    async fn begin(&self, tenant: TenantId, statement: &str) -> Result<Transaction<'static>> {
        let (pool, statement) = (self.app.clone(), begin_as(tenant, statement));
        uncancelled(async move { Ok(pool.begin_with(AssertSqlSafe(statement)).await?) }).await
    }

    /// A transaction as the worker role.
    pub async fn worker(&self) -> Result<Transaction<'static>> {
        let pool = self.worker.clone();
        uncancelled(async move { Ok(pool.begin().await?) }).await
    }

    /// A connection of its own, outside the pools, for a task that keeps it.
    pub async fn session(&self, role: DatabaseRole) -> Result<DatabaseSession> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        enter_role(&mut connection, role).await?;
        Ok(DatabaseSession(connection))
    }

    /// Listens for notifications on a connection of its own.
    pub async fn listen(&self, channel: &str) -> Result<Listener> {
        let mut listener = PgListener::connect_with(&self.worker).await?;
        listener.listen(channel).await?;
        Ok(Listener(listener))
    }

    /// Whether the database takes writes now.
    pub async fn check_writable(&self) -> Result<()> {
        let mut connection = self.worker.acquire().await?;
        let read_only: bool =
            sqlx::query_scalar("select pg_is_in_recovery() or current_setting('transaction_read_only')::bool")
                .fetch_one(&mut *connection)
                .await?;
        if read_only { Err(StoreError::Unavailable(sqlx::Error::PoolClosed)) } else { Ok(()) }
    }

    /// The connections of a role's pool now.
    #[must_use]
    pub fn usage(&self, role: DatabaseRole) -> PoolUsage {
        let pool = match role {
            DatabaseRole::App => &self.app,
            DatabaseRole::Worker => &self.worker,
        };
        let (open, idle) = (pool.size() as usize, pool.num_idle());
        PoolUsage { in_use: open.saturating_sub(idle), idle, max: pool.options().get_max_connections() }
    }

    /// Closes both pools.
    pub async fn close(&self) {
        self.app.close().await;
        self.worker.close().await;
    }
}

/// How many connections a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUsage {
    pub in_use: usize,
    pub idle: usize,
    pub max: u32,
}

/// A connection that one task keeps.
#[derive(Debug)]
pub struct DatabaseSession(PgConnection);

impl DatabaseSession {
    /// Returns the memory of a large statement.
    pub fn shrink(&mut self) {
        self.0.shrink_buffers();
    }

    /// Begins a transaction; it rolls back when it is dropped.
    pub async fn begin(&mut self) -> Result<Transaction<'_>> {
        Ok(self.0.begin().await?)
    }

    /// Begins a transaction that sees one tenant.
    pub async fn begin_as(&mut self, tenant: TenantId) -> Result<Transaction<'_>> {
        Ok(self.0.begin_with(AssertSqlSafe(begin_as(tenant, "begin"))).await?)
    }
}

/// Notifications of one channel.
#[derive(Debug)]
pub struct Listener(PgListener);

impl Listener {
    /// The next notification's payload.
    pub async fn next(&mut self) -> Result<String> {
        Ok(self.0.recv().await?.payload().to_owned())
    }
}

/// Returns a statement that begins a transaction and sets its tenant, in one round trip.
fn begin_as(tenant: TenantId, begin: &str) -> String {
    format!("{begin}; set local angarium.tenant = '{}'", tenant.uuid())
}

/// Sets another tenant for the rest of the transaction.
pub async fn tenant_set(db: &mut PgConnection, tenant: TenantId) -> Result<()> {
    sqlx::query("select set_config('angarium.tenant', $1, true)").bind(tenant.uuid().to_string()).execute(db).await?;
    Ok(())
}

/// A transaction that writes, as the database names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionId(String);

/// Returns the name of the transaction under way, so that it can be asked after should its COMMIT not be answered.
pub async fn transaction_id(db: &mut PgConnection) -> Result<TransactionId> {
    let id = sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(db).await?;
    Ok(TransactionId(id))
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionEnd {
    Committed,
    /// Or never begun: nothing of it is there.
    Aborted,
    /// The server has not noticed yet that its client is gone.
    Open,
}

/// Returns the end of a transaction, asked on another connection.
pub async fn transaction_end(db: &mut PgConnection, id: &TransactionId) -> Result<TransactionEnd> {
    let asked = sqlx::query_scalar("select pg_xact_status($1::text::xid8)").bind(&id.0).fetch_one(db).await;
    let status: Option<String> = match asked {
        // A number that this server has not reached: it took over from one that was ahead.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("22023") => None,
        asked => asked?,
    };
    Ok(match status.as_deref() {
        Some("committed") => TransactionEnd::Committed,
        Some("in progress") => TransactionEnd::Open,
        _ => TransactionEnd::Aborted,
    })
}

fn connect_options(url: &str) -> Result<PgConnectOptions> {
    Ok(PgConnectOptions::from_str(url)?
        .application_name("angarium")
        // The few statements of the hot path are planned once; hash and merge joins only ever
        // came from statistics of empty tables.
        .options([
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("jit", "off"),
            // A node that freezes within a transaction holds its locks no longer than this.
            ("idle_in_transaction_session_timeout", "30s"),
        ]))
}

fn pool(options: &PgConnectOptions, role: DatabaseRole, max_connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(Duration::from_secs(2))
        .after_connect(move |connection, _| Box::pin(enter_role(connection, role)))
        // Ends everything that a dropped future left open, so that no later statement joins it, and returns the memory
        // of large rows, which a connection otherwise keeps. A rollback alone would be a warning in the database's log
        // each time; in a transaction that has failed, the error closes the connection.
        .after_release(|connection, _| {
            Box::pin(async move {
                connection.execute("begin; rollback").await?;
                connection.shrink_buffers();
                Ok(true)
            })
        })
        .connect_lazy_with(options.clone())
}

async fn enter_role(connection: &mut PgConnection, role: DatabaseRole) -> Result<(), sqlx::Error> {
    connection.execute("set client_min_messages = error").await?;
    sqlx::query("select set_config('role', $1, false)").bind(role.name()).execute(connection).await?;
    Ok(())
}

async fn uncancelled<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unavailable(sqlx::Error::WorkerCrashed)),
    }
}
