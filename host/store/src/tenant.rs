//! Tenants, and the version of each one's configuration that the nodes' caches watch.

use jiff::Timestamp;
use sqlx::PgConnection;

use super::{Result, Store, StoreError};
use angarium_domain::ids::TenantId;

/// The channel on which a change of a tenant's configuration is announced; the payload is the
/// tenant's UUID.
pub const CONFIG_CHANNEL: &str = "angarium_config";

/// The payload of a change for all tenants.
pub const EVERY_TENANT: &str = "*";

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRow {
    pub id: TenantId,
    pub name: String,
    /// How long its messages are kept: a class of the configuration.
    pub retention_class: String,
    pub created_at: Timestamp,
}

type Row = (uuid::Uuid, String, String, jiff_sqlx::Timestamp);

fn tenant((id, name, retention_class, created_at): Row) -> TenantRow {
    TenantRow { id: id.into(), name, retention_class, created_at: created_at.to_jiff() }
}

/// Inserts a tenant; its name is unique.
pub async fn tenant_insert(db: &mut PgConnection, id: TenantId, name: &str) -> Result<TenantRow> {
    let row =
        sqlx::query_as("insert into tenant (id, name) values ($1, $2) returning id, name, retention_class, created_at")
            .bind(id.uuid())
            .bind(name)
            .fetch_one(db)
            .await?;
    Ok(tenant(row))
}

/// All tenants, by name.
pub async fn tenant_list(db: &mut PgConnection) -> Result<Vec<TenantRow>> {
    let rows =
        sqlx::query_as("select id, name, retention_class, created_at from tenant order by name").fetch_all(db).await?;
    Ok(rows.into_iter().map(tenant).collect())
}

/// The tenant of that name.
pub async fn tenant_find(db: &mut PgConnection, name: &str) -> Result<Option<TenantRow>> {
    let row = sqlx::query_as("select id, name, retention_class, created_at from tenant where name = $1")
        .bind(name)
        .fetch_optional(db)
        .await?;
    Ok(row.map(tenant))
}

/// Puts a tenant into another retention class.
pub async fn tenant_classify(db: &mut PgConnection, id: TenantId, class: &str) -> Result<TenantRow> {
    let row = sqlx::query_as(
        "update tenant set retention_class = $2 where id = $1 returning id, name, retention_class, created_at",
    )
    .bind(id.uuid())
    .bind(class)
    .fetch_one(db)
    .await?;
    Ok(tenant(row))
}

/// Marks the tenant's configuration as changed, in the transaction that changes it.
pub async fn tenant_config_bump(db: &mut PgConnection, tenant: TenantId) -> Result<()> {
    sqlx::query(
        "insert into tenant_config (tenant_id) values ($1)
         on conflict (tenant_id) do update set version = tenant_config.version + 1, changed_at = now()",
    )
    .bind(tenant.uuid())
    .execute(db)
    .await?;
    Ok(())
}

/// The most bytes that a tenant's configuration in service may come to: every node holds it in memory.
pub const MOST_CONFIG: i64 = 32 << 20;

/// Counts a change that may add to a tenant's configuration in service.
///
/// # Errors
/// [`StoreError::ConfigTooLarge`] if it exceeds [`MOST_CONFIG`] now.
pub async fn tenant_config_grow(db: &mut PgConnection, tenant: TenantId) -> Result<()> {
    let bytes: i64 = sqlx::query_scalar(
        "select coalesce(sum(bytes), 0)::bigint from (
           select octet_length(config) as bytes from connection where tenant_id = $1 and deleted_at is null
           union all
           select active_bytes from document where tenant_id = $1
           union all
           select octet_length(v.body) from experiment e
             join document_version v on v.tenant_id = e.tenant_id and v.kind = e.kind and v.document_id = e.document_id
               and v.version = e.version
             where e.tenant_id = $1 and e.ended_at is null
         ) parts",
    )
    .bind(tenant.uuid())
    .fetch_one(&mut *db)
    .await?;
    if bytes > MOST_CONFIG {
        return Err(StoreError::ConfigTooLarge { bytes });
    }
    tenant_config_bump(db, tenant).await
}

impl Store {
    /// Announces a committed change of a tenant's configuration to all nodes. It is outside the transaction: a
    /// notification takes a lock that every commit of the database waits for.
    pub async fn announce_config(&self, tenant: TenantId) -> Result<()> {
        sqlx::query("select pg_notify($1, $2)")
            .bind(CONFIG_CHANNEL)
            .bind(tenant.uuid().to_string())
            .execute(&self.worker)
            .await?;
        Ok(())
    }
}

impl Store {
    /// Announces a committed change for all tenants to all nodes.
    pub async fn announce_config_of_all(&self) -> Result<()> {
        sqlx::query("select pg_notify($1, $2)").bind(CONFIG_CHANNEL).bind(EVERY_TENANT).execute(&self.worker).await?;
        Ok(())
    }
}

/// The version of a tenant's configuration; 0 when it has none yet.
pub async fn tenant_config_version(db: &mut PgConnection, tenant: TenantId) -> Result<i64> {
    let version = sqlx::query_scalar("select version from tenant_config where tenant_id = $1")
        .bind(tenant.uuid())
        .fetch_optional(db)
        .await?;
    Ok(version.unwrap_or(0))
}

/// The versions that changed in the last minute: longer than any transaction that changes one.
pub async fn tenant_config_recent(db: &mut PgConnection) -> Result<Vec<(TenantId, i64)>> {
    let rows: Vec<(uuid::Uuid, i64)> =
        sqlx::query_as("select tenant_id, version from tenant_config where changed_at > now() - interval '1 minute'")
            .fetch_all(db)
            .await?;
    Ok(rows.into_iter().map(|(tenant, version)| (tenant.into(), version)).collect())
}
