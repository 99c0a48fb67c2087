//! The schema's migrations, and whether a database has the schema that this gateway needs.
//!
//! All tables are in the current schema of the database, the first of the search path, so that one database can hold
//! several installations.

use std::{sync::LazyLock, time::Duration};

use sqlx::{
    Connection as _, PgConnection, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use super::{
    Result, StoreError,
    audit::{AuditEntry, operator_audit_insert},
    connect_options,
};
use angarium_domain::audit::{Action, Actor};

/// The schema's history; append-only.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migrations = EMBEDDED.iter().map(|&(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(migrations.collect())
});

/// The version, name and text of each file in `migrations/`.
const EMBEDDED: &[(i64, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// The cause that keeps the gateway from working with a reachable database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("the database has no schema: run `angarium migrate`")]
    NoSchema,
    #[error(
        "the database's schema is at version {has}, and this version of the gateway needs {needs}: run `angarium migrate`"
    )]
    OldSchema { has: i64, needs: i64 },
    #[error(
        "migration {version} of the database is not this gateway's migration {version}, so its tables may differ: use \
         the gateway that made the schema, or a new database"
    )]
    OtherSchema { version: i64 },
    #[error(
        "the login role may not act as `angarium_app` and `angarium_worker`: grant it both, \
         `grant angarium_app, angarium_worker to <role>`"
    )]
    NoMembership,
    #[error(
        "the role `angarium_app` would see all tenants: it must not be a superuser, have BYPASSRLS, or be a member of \
         `angarium_worker`"
    )]
    OpenRole,
}

/// A migration that was run: its version and the hash of its text.
type AppliedMigration = (i64, Vec<u8>);

/// Brings the schema to this version, and returns its version. `url` names a role that may create roles and tables. A
/// schema of a later binary stays as it is: it serves this one too, and a way back must not fail here.
pub async fn migrate(url: &str, by: &Actor) -> Result<std::result::Result<i64, NotReady>> {
    let mut connection = PgConnection::connect_with(&connect_options(url)?).await?;
    schema_enter(&mut connection).await?;
    let exists = "select to_regclass('_sqlx_migrations') is not null";
    let applied = match sqlx::query_scalar(exists).fetch_one(&mut connection).await? {
        true => applied_migrations(&mut connection).await?,
        false => Vec::new(),
    };
    if let Some(version) = foreign_migration(&applied) {
        return Ok(Err(NotReady::OtherSchema { version }));
    }
    let before = applied.last().map(|(version, _)| *version);
    let version = match MIGRATIONS.run(&mut connection).await {
        Ok(()) => newest_migration(),
        Err(MigrateError::VersionMissing(later)) if later > newest_migration() => later,
        Err(MigrateError::Execute(error)) => return Err(error.into()),
        Err(other) => return Err(StoreError::Failed(sqlx::Error::Migrate(Box::new(other)))),
    };
    if before != Some(version) {
        let entry = AuditEntry::new(Action::SchemaMigrated, version)
            .before(serde_json::json!({ "version": before }))
            .after(serde_json::json!({ "version": version }));
        operator_audit_insert(&mut connection, by, &entry).await?;
    }
    connection.close().await?;
    Ok(Ok(version))
}

/// Leaves nothing but the current schema in the search path. Functions that run as their owner keep the path that they
/// were made with, so they use no other schema, and no table that their caller made for itself.
async fn schema_enter(db: &mut PgConnection) -> Result<()> {
    sqlx::query("select set_config('search_path', coalesce(quote_ident(current_schema()) || ', pg_temp', ''), false)")
        .execute(db)
        .await?;
    Ok(())
}

/// Returns whether the gateway can work with this database. It is asked before a pool is, because a pool's connections
/// enter a role and would only report that none could be had.
pub async fn readiness(url: &str) -> Result<std::result::Result<(), NotReady>> {
    let options = connect_options(url)?;
    let connecting = PgConnection::connect_with(&options);
    let mut connection = tokio::time::timeout(Duration::from_secs(5), connecting)
        .await
        .map_err(|_| StoreError::Unavailable(sqlx::Error::PoolTimedOut))??;
    let row: (bool, bool, bool) = sqlx::query_as(
        "select to_regclass('lease') is not null,
           coalesce(bool_and(pg_has_role(current_user, oid, 'member')) and count(*) = 2, false),
           coalesce(bool_or(rolname = 'angarium_app' and (rolbypassrls or exists (
             select from pg_roles worker
             where worker.rolname = 'angarium_worker' and pg_has_role(pg_roles.oid, worker.oid, 'member')))), false)
         from pg_roles where rolname in ('angarium_app', 'angarium_worker')",
    )
    .fetch_one(&mut connection)
    .await?;
    let ready = match row {
        (false, ..) => Err(NotReady::NoSchema),
        (true, false, _) => Err(NotReady::NoMembership),
        (true, true, true) => Err(NotReady::OpenRole),
        (true, true, false) => match readable_migrations(&mut connection).await? {
            Some(applied) => fits(&applied),
            None => Ok(()),
        },
    };
    connection.close().await?;
    Ok(ready)
}

/// Returns the migrations of the database; `None` if the worker may not read them.
async fn readable_migrations(db: &mut PgConnection) -> Result<Option<Vec<AppliedMigration>>> {
    let may_know =
        "select coalesce(has_table_privilege('angarium_worker', to_regclass('_sqlx_migrations'), 'select'), false)";
    if !sqlx::query_scalar::<_, bool>(may_know).fetch_one(&mut *db).await? {
        return Ok(None);
    }
    sqlx::query("set role angarium_worker").execute(&mut *db).await?;
    applied_migrations(db).await.map(Some)
}

/// Returns the migrations that were run, in their order.
async fn applied_migrations(db: &mut PgConnection) -> Result<Vec<AppliedMigration>> {
    let sql = "select version, checksum from _sqlx_migrations where success order by version";
    Ok(sqlx::query_as(sql).fetch_all(db).await?)
}

/// A later schema serves an earlier binary, since migrations only add; an earlier schema serves no later binary, and one
/// with another history serves none.
fn fits(applied: &[AppliedMigration]) -> std::result::Result<(), NotReady> {
    if let Some(version) = foreign_migration(applied) {
        return Err(NotReady::OtherSchema { version });
    }
    let (has, needs) = (applied.last().map_or(0, |(version, _)| *version), newest_migration());
    if has < needs { Err(NotReady::OldSchema { has, needs }) } else { Ok(()) }
}

/// Returns the first migration whose text is another one in this binary.
fn foreign_migration(applied: &[AppliedMigration]) -> Option<i64> {
    let is_foreign = |(version, checksum): &&AppliedMigration| {
        MIGRATIONS.iter().any(|it| it.version == *version && it.checksum[..] != checksum[..])
    };
    applied.iter().find(is_foreign).map(|(version, _)| *version)
}

/// The newest migration of this binary.
fn newest_migration() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}
