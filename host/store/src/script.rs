//! Scripts beside what all documents share: the live ones, operators' files, and breakers' resets.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use sqlx::PgConnection;

use super::{Result, Store, event::event_insert};
use angarium_domain::ids::{MessageId, TenantId};

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
           select d.uid as name, v.version, v.body as source, 0 as place from document d
             join document_version v on v.tenant_id = d.tenant_id and v.kind = d.kind and v.document_id = d.id
               and v.version = d.active_version
             where d.tenant_id = $1 and d.kind = 'script'
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

row! {
    /// A tenant's script that is in service and imports something.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Importer {
        /// The tenant's name.
        pub tenant: String,
        pub name: String,
        pub source: String,
        /// JSON.
        pub cases: Option<String>,
    }
}

/// Returns all importers: a change of a module must break none.
pub async fn script_importers(db: &mut PgConnection) -> Result<Vec<Importer>> {
    let rows = sqlx::query_as(
        "select t.name as tenant, d.uid as name, v.body as source, v.cases from document d
         join tenant t on t.id = d.tenant_id
         join document_version v on v.tenant_id = d.tenant_id and v.kind = d.kind and v.document_id = d.id
           and (v.version = d.active_version or exists (
             select from experiment e where e.tenant_id = d.tenant_id and e.kind = d.kind and e.document_id = d.id
               and e.version = v.version and e.ended_at is null))
         where d.kind = 'script' and v.body like '%import%' order by t.name, d.uid",
    );
    Ok(rows.fetch_all(db).await?)
}

/// An operators' script that a tenant's messages are asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorScriptRow {
    pub name: String,
    pub version: i32,
    pub source: String,
    pub created_at: Timestamp,
}

/// Returns the operators' scripts for a tenant's messages: those for the tenant in place of those for all, except those
/// that a live one of its own replaces.
pub async fn operator_script_in_service(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<OperatorScriptRow>> {
    let rows: Vec<(String, i32, String, jiff_sqlx::Timestamp)> = sqlx::query_as(
        "select distinct on (o.name) o.name, o.version, o.source, o.created_at
         from operator_script o
         where o.kind = 'script' and o.live and o.scope in ('', (select name from tenant where id = $1))
           and not exists (select from document d where d.tenant_id = $1 and d.kind = 'script' and d.uid = o.name
             and d.active_version is not null)
         order by o.name, o.scope = ''",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    let row = |(name, version, source, created_at): (String, i32, String, jiff_sqlx::Timestamp)| OperatorScriptRow {
        name,
        version,
        source,
        created_at: created_at.to_jiff(),
    };
    Ok(rows.into_iter().map(row).collect())
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
