//! A tenant's scripts: versions whose sources never change, and whose states do.

use jiff::Timestamp;
use sqlx::PgConnection;

use super::{Result, Store, event::event_insert};
use crate::domain::ids::{MessageId, TenantId};

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
    /// Of recipients, for a canary.
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
    /// Records that a script was switched off for its failures, the last of them at this message.
    pub async fn script_switched_off(
        &self,
        tenant: TenantId,
        message: MessageId,
        script: &str,
        version: i32,
        reason: &str,
    ) -> Result<()> {
        let data = serde_json::json!({ "script": script, "version": version, "detail": reason });
        let mut txn = self.worker().await?;
        event_insert(&mut txn, tenant, message, "script.switched_off", Some(&data.to_string())).await?;
        txn.commit().await?;
        Ok(())
    }
}

/// A live version's name, number and source.
pub type LiveScript = (String, i32, String);

/// The live versions by name, the tenant's own in place of operators' of the same name, and those for the tenant in
/// place of those for all.
pub async fn script_live_list(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<LiveScript>> {
    let rows = sqlx::query_as(
        "select distinct on (name) name, version, source from (
           select name, version, source, 0 as place from script where tenant_id = $1 and state = 'live'
           union all
           select name, version, source, case scope when '' then 2 else 1 end from operator_script
           where live and scope in ('', (select name from tenant where id = $1))
         ) as all_scripts order by name, place",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    Ok(rows)
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

/// Of each script the version that stands: the live one, or the latest; by name, after `after`.
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

/// The versions of a script, the latest first.
pub async fn script_versions(db: &mut PgConnection, tenant: TenantId, name: &str) -> Result<Vec<ScriptRow>> {
    let rows = sqlx::query_as(
        "select name, version, source, cases, state, percentage, created_at from script
         where tenant_id = $1 and name = $2 order by version desc limit 1000",
    )
    .bind(tenant.uuid())
    .bind(name)
    .fetch_all(db)
    .await?;
    Ok(rows)
}

/// Makes a version live, and retires whichever was. `false` where there is no such version.
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

/// What an operators' script is for, and its name.
pub type OperatorScript = (String, String);

/// The operators' scripts that are live.
pub async fn operator_script_list(db: &mut PgConnection) -> Result<Vec<OperatorScript>> {
    Ok(sqlx::query_as("select scope, name from operator_script where live order by scope, name").fetch_all(db).await?)
}

/// Makes a source the live version of an operators' script, unless it is already; tells whether it was not. Two
/// nodes that read the same folder store it once.
pub async fn operator_script_put(db: &mut PgConnection, scope: &str, name: &str, source: &str) -> Result<bool> {
    sqlx::query("select pg_advisory_xact_lock(hashtext('operator_script'))").execute(&mut *db).await?;
    let same: bool = sqlx::query_scalar(
        "select exists (select from operator_script where scope = $1 and name = $2 and live and source = $3)",
    )
    .bind(scope)
    .bind(name)
    .bind(source)
    .fetch_one(&mut *db)
    .await?;
    if same {
        return Ok(false);
    }
    operator_script_retire(&mut *db, scope, name).await?;
    sqlx::query(
        "insert into operator_script (scope, name, version, source, live)
         select $1, $2, coalesce(max(version), 0) + 1, $3, true from operator_script where scope = $1 and name = $2",
    )
    .bind(scope)
    .bind(name)
    .bind(source)
    .execute(db)
    .await?;
    Ok(true)
}

/// Takes an operators' script out of service.
pub async fn operator_script_retire(db: &mut PgConnection, scope: &str, name: &str) -> Result<()> {
    sqlx::query("update operator_script set live = false where scope = $1 and name = $2 and live")
        .bind(scope)
        .bind(name)
        .execute(db)
        .await?;
    Ok(())
}

/// Tells the operators' live scripts from what they were.
pub async fn operator_script_stamp(db: &mut PgConnection) -> Result<Option<String>> {
    let stamp = sqlx::query_scalar(
        "select md5(string_agg(scope || '/' || name || ' ' || version, ',' order by scope, name)) from operator_script
         where live",
    )
    .fetch_one(db)
    .await?;
    Ok(stamp)
}
