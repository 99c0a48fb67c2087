//! A tenant's scripts: versions whose sources never change, and whose states do.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use sqlx::PgConnection;

use super::{Result, Store, event::event_insert};
use angarium_domain::{
    experiment::ExperimentMode,
    ids::{MessageId, TenantId},
};

/// A version of a script.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ScriptRow {
    pub name: String,
    pub version: i32,
    pub source: String,
    /// JSON.
    pub cases: Option<String>,
    /// `draft`, `shadow`, `canary`, `live` or `retired`.
    pub state: String,
    /// The share of recipients, for a canary.
    pub percentage: Option<i16>,
    created_at: jiff_sqlx::Timestamp,
}

impl ScriptRow {
    #[must_use]
    pub fn created_at(&self) -> Timestamp {
        self.created_at.to_jiff()
    }
}

impl Store {
    /// Records an event of a script or a rule at this message.
    pub async fn script_event(
        &self,
        tenant: TenantId,
        message: MessageId,
        kind: &str,
        data: &serde_json::Value,
    ) -> Result<()> {
        let mut txn = self.worker().await?;
        event_insert(&mut txn, tenant, message, kind, Some(&data.to_string())).await?;
        txn.commit().await?;
        Ok(())
    }
}

/// The kind of an operators' file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScriptKind {
    Script,
    /// A source that scripts import.
    Module,
}

impl ScriptKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Script => "script",
            Self::Module => "module",
        }
    }
}

/// A live version's name, number and source, and whether it is operators'.
pub type LiveScript = (String, i32, String, bool);

/// The live versions by name, the tenant's own in place of operators' of the same name, and those for the tenant in
/// place of those for all.
pub async fn script_live_list(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<LiveScript>> {
    let rows = sqlx::query_as(
        "select distinct on (name) name, version, source, place > 0 from (
           select name, version, source, 0 as place from script where tenant_id = $1 and state = 'live'
           union all
           select name, version, source, case scope when '' then 2 else 1 end from operator_script
           where kind = 'script' and live and scope in ('', (select name from tenant where id = $1))
         ) as all_scripts order by name, place",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    Ok(rows)
}

/// Returns the modules that a tenant's scripts can import: sources by name, those for the tenant in place of those for
/// all.
pub async fn module_list(db: &mut PgConnection, tenant: TenantId) -> Result<BTreeMap<String, String>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select distinct on (name) name, source from operator_script
         where kind = 'module' and live and scope in ('', (select name from tenant where id = $1))
         order by name, scope = ''",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().collect())
}

/// How often each of a tenant's scripts was switched on again by hand.
pub async fn script_resets(db: &mut PgConnection, tenant: TenantId) -> Result<HashMap<String, i32>> {
    let rows: Vec<(String, i32)> = sqlx::query_as("select name, number from script_reset where tenant_id = $1")
        .bind(tenant.uuid())
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().collect())
}

/// Makes every node reset its breaker of a script.
pub async fn script_reset(db: &mut PgConnection, tenant: TenantId, name: &str) -> Result<()> {
    sqlx::query(
        "insert into script_reset (tenant_id, name, number) values ($1, $2, 1)
         on conflict (tenant_id, name) do update set number = script_reset.number + 1",
    )
    .bind(tenant.uuid())
    .bind(name)
    .execute(db)
    .await?;
    Ok(())
}

/// A tenant's script that is in service and imports something.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Importer {
    /// The tenant's name.
    pub tenant: String,
    pub name: String,
    pub source: String,
    /// JSON.
    pub cases: Option<String>,
}

/// Returns all importers: a change of a module must break none.
pub async fn script_importers(db: &mut PgConnection) -> Result<Vec<Importer>> {
    let rows = sqlx::query_as(
        "select t.name as tenant, s.name, s.source, s.cases from script s join tenant t on t.id = s.tenant_id
         where s.state in ('live', 'canary', 'shadow') and s.source like '%import%' order by t.name, s.name",
    );
    Ok(rows.fetch_all(db).await?)
}

/// Adds a version as a draft, and tells its number. Two at a time conflict, and one is refused.
pub async fn script_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    name: &str,
    source: &str,
    cases: Option<&str>,
) -> Result<i32> {
    let version = sqlx::query_scalar(
        "insert into script (tenant_id, name, version, source, cases)
         select $1, $2, coalesce(max(version), 0) + 1, $3, $4 from script where tenant_id = $1 and name = $2
         returning version",
    )
    .bind(tenant.uuid())
    .bind(name)
    .bind(source)
    .bind(cases)
    .fetch_one(db)
    .await?;
    Ok(version)
}

/// How many scripts a tenant has.
pub async fn script_count(db: &mut PgConnection, tenant: TenantId) -> Result<i64> {
    let count = sqlx::query_scalar("select count(distinct name) from script where tenant_id = $1").bind(tenant.uuid());
    Ok(count.fetch_one(db).await?)
}

/// Returns the standing version of each script: the live one, or the latest; by name, after `after`.
pub async fn script_list(db: &mut PgConnection, tenant: TenantId, after: &str, limit: u32) -> Result<Vec<ScriptRow>> {
    let rows = sqlx::query_as(
        "select distinct on (name) name, version, source, cases, state, percentage, created_at from script
         where tenant_id = $1 and name > $2 order by name, state <> 'live', version desc limit $3",
    )
    .bind(tenant.uuid())
    .bind(after)
    .bind(i64::from(limit))
    .fetch_all(db)
    .await?;
    Ok(rows)
}

/// Returns the operators' scripts for a tenant's messages: those for the tenant in place of those for all, except those
/// that a live one of its own replaces.
pub async fn operator_script_in_service(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<ScriptRow>> {
    let rows = sqlx::query_as(
        "select distinct on (o.name) o.name, o.version, o.source, null::text as cases, 'live' as state,
           null::smallint as percentage, o.created_at
         from operator_script o
         where o.kind = 'script' and o.live and o.scope in ('', (select name from tenant where id = $1))
           and not exists (select from script s where s.tenant_id = $1 and s.name = o.name and s.state = 'live')
         order by o.name, o.scope = ''",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    Ok(rows)
}

/// The latest 50 versions of a script and those in service, the latest first.
pub async fn script_versions(db: &mut PgConnection, tenant: TenantId, name: &str) -> Result<Vec<ScriptRow>> {
    let rows = sqlx::query_as(
        "select name, version, source, cases, state, percentage, created_at from script
         where tenant_id = $1 and name = $2 and (state in ('shadow', 'canary', 'live') or version >
           (select max(version) - 50 from script where tenant_id = $1 and name = $2))
         order by version desc",
    )
    .bind(tenant.uuid())
    .bind(name)
    .fetch_all(db)
    .await?;
    Ok(rows)
}

/// Makes a version live, and retires the previous one. `false` if the version does not exist.
pub async fn script_promote(db: &mut PgConnection, tenant: TenantId, name: &str, version: i32) -> Result<bool> {
    script_retire(db, tenant, name).await?;
    let done = sqlx::query(
        "update script set state = 'live', percentage = null, live_at = clock_timestamp()
         where tenant_id = $1 and name = $2 and version = $3",
    )
    .bind(tenant.uuid())
    .bind(name)
    .bind(version)
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The version that was live before the one that is, or last, where none is.
pub async fn script_previous(db: &mut PgConnection, tenant: TenantId, name: &str) -> Result<Option<i32>> {
    let version = sqlx::query_scalar(
        "select version from script where tenant_id = $1 and name = $2 and state = 'retired'
         order by live_at desc nulls last limit 1",
    )
    .bind(tenant.uuid())
    .bind(name)
    .fetch_optional(db)
    .await?;
    Ok(version)
}

/// Makes a version the variant, in place of the previous one. `false` if the version does not exist, or is live.
pub async fn script_try(
    db: &mut PgConnection,
    tenant: TenantId,
    name: &str,
    version: i32,
    mode: ExperimentMode,
) -> Result<bool> {
    script_try_end(db, tenant, name).await?;
    let done = sqlx::query(
        "update script set state = $4, percentage = $5
         where tenant_id = $1 and name = $2 and version = $3 and state <> 'live'",
    )
    .bind(tenant.uuid())
    .bind(name)
    .bind(version)
    .bind(mode.as_str())
    .bind(mode.percentage().map(i16::from))
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The candidate is none any more.
pub async fn script_try_end(db: &mut PgConnection, tenant: TenantId, name: &str) -> Result<()> {
    sqlx::query(
        "update script set state = case when live_at is null then 'draft' else 'retired' end, percentage = null
         where tenant_id = $1 and name = $2 and state in ('shadow', 'canary')",
    )
    .bind(tenant.uuid())
    .bind(name)
    .execute(db)
    .await?;
    Ok(())
}

/// Takes the live version out of service; tells which it was.
pub async fn script_retire(db: &mut PgConnection, tenant: TenantId, name: &str) -> Result<Option<i32>> {
    let version = sqlx::query_scalar(
        "update script set state = 'retired' where tenant_id = $1 and name = $2 and state = 'live' returning version",
    )
    .bind(tenant.uuid())
    .bind(name)
    .fetch_optional(db)
    .await?;
    Ok(version)
}

/// An operators' file that is in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorScript {
    pub kind: ScriptKind,
    /// The tenant's name that it is for; empty for all.
    pub scope: String,
    pub name: String,
    pub source: String,
}

/// The operators' scripts and modules that are live.
pub async fn operator_script_list(db: &mut PgConnection) -> Result<Vec<OperatorScript>> {
    let rows: Vec<(bool, String, String, String)> = sqlx::query_as(
        "select kind = 'module', scope, name, source from operator_script where live order by kind, scope, name",
    )
    .fetch_all(db)
    .await?;
    let live = |(is_module, scope, name, source)| {
        let kind = if is_module { ScriptKind::Module } else { ScriptKind::Script };
        OperatorScript { kind, scope, name, source }
    };
    Ok(rows.into_iter().map(live).collect())
}

/// Locks operators' scripts until the transaction's end: two nodes that read the same folder store it once.
pub async fn operator_script_lock(db: &mut PgConnection) -> Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtext('operator_script'))").execute(db).await?;
    Ok(())
}

/// Makes a source the live version of an operators' script or module.
pub async fn operator_script_put(db: &mut PgConnection, put: &OperatorScript) -> Result<()> {
    operator_script_retire(&mut *db, put.kind, &put.scope, &put.name).await?;
    sqlx::query(
        "insert into operator_script (kind, scope, name, version, source, live)
         select $1, $2, $3, coalesce(max(version), 0) + 1, $4, true from operator_script
         where kind = $1 and scope = $2 and name = $3",
    )
    .bind(put.kind.as_str())
    .bind(&put.scope)
    .bind(&put.name)
    .bind(&put.source)
    .execute(db)
    .await?;
    Ok(())
}

/// Takes an operators' script or module out of service.
pub async fn operator_script_retire(db: &mut PgConnection, kind: ScriptKind, scope: &str, name: &str) -> Result<()> {
    sqlx::query("update operator_script set live = false where kind = $1 and scope = $2 and name = $3 and live")
        .bind(kind.as_str())
        .bind(scope)
        .bind(name)
        .execute(db)
        .await?;
    Ok(())
}

/// Returns a stamp of the operators' live scripts that changes with them.
pub async fn operator_script_stamp(db: &mut PgConnection) -> Result<Option<String>> {
    let stamp = sqlx::query_scalar(
        "select md5(string_agg(kind || ' ' || scope || '/' || name || ' ' || version, ',' order by kind, scope, name))
         from operator_script where live",
    )
    .fetch_one(db)
    .await?;
    Ok(stamp)
}
