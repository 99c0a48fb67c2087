//! Provider components and which of them serves. The operator's, shared by all tenants: these
//! queries run as the worker role.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::PgConnection;

use super::{Result, StoreError};
use angarium_domain::{ids::TenantId, provider::Descriptor};

/// A component as stored, without its bytes.
#[derive(Debug, Clone)]
pub struct StoredComponent {
    /// SHA-256 of its bytes, hexadecimal.
    pub digest: String,
    pub descriptor: Descriptor,
    pub created_at: Timestamp,
    pub quarantined_at: Option<Timestamp>,
    pub quarantine_reason: Option<String>,
    /// Whether the provider's grants were given to it, or it was said that it may keep them.
    pub granted: bool,
}

/// A version's quarantine for a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantQuarantine {
    pub tenant: TenantId,
    pub digest: String,
    pub began_at: Timestamp,
    pub until: Timestamp,
    pub reason: String,
}

/// A provider: which of its components serves, and which hosts are granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredProvider {
    pub name: String,
    pub active_digest: Option<String>,
    /// The digest that a rollback returns to.
    pub previous_digest: Option<String>,
    pub granted_hosts: Vec<String>,
    /// Grows with each change, so that other nodes see it.
    pub version: i64,
    pub updated_at: Timestamp,
}

row! {
    struct ProviderRow {
        name: String,
        active_digest: Option<String>,
        previous_digest: Option<String>,
        granted_hosts: Vec<String>,
        version: i64,
        updated_at: jiff_sqlx::Timestamp,
    }
}

impl From<ProviderRow> for StoredProvider {
    fn from(row: ProviderRow) -> Self {
        Self {
            name: row.name,
            active_digest: row.active_digest,
            previous_digest: row.previous_digest,
            granted_hosts: row.granted_hosts,
            version: row.version,
            updated_at: row.updated_at.to_jiff(),
        }
    }
}

row! {
    struct ComponentRow {
        digest: String,
        descriptor: String,
        created_at: jiff_sqlx::Timestamp,
        quarantined_at: Option<jiff_sqlx::Timestamp>,
        quarantine_reason: Option<String>,
        granted: bool,
    }
}

impl TryFrom<ComponentRow> for StoredComponent {
    type Error = StoreError;

    fn try_from(row: ComponentRow) -> Result<Self> {
        Ok(Self {
            digest: row.digest,
            descriptor: serde_json::from_str(&row.descriptor)
                .map_err(|error| StoreError::Failed(sqlx::Error::Decode(Box::new(error))))?,
            created_at: row.created_at.to_jiff(),
            quarantined_at: row.quarantined_at.map(jiff_sqlx::Timestamp::to_jiff),
            quarantine_reason: row.quarantine_reason,
            granted: row.granted,
        })
    }
}

/// Stores a component and registers its provider; existing ones stay as they are.
pub async fn component_insert(
    db: &mut PgConnection,
    digest: &str,
    descriptor: &Descriptor,
    component: &[u8],
) -> Result<()> {
    let text =
        serde_json::to_string(descriptor).map_err(|error| StoreError::Failed(sqlx::Error::Encode(Box::new(error))))?;
    sqlx::query(
        "insert into provider_component (digest, name, version, descriptor, component) values ($1, $2, $3, $4, $5)
         on conflict (digest) do nothing",
    )
    .bind(digest)
    .bind(&descriptor.name)
    .bind(&descriptor.version)
    .bind(text)
    .bind(component)
    .execute(&mut *db)
    .await?;
    sqlx::query("insert into provider (name) values ($1) on conflict (name) do nothing")
        .bind(&descriptor.name)
        .execute(db)
        .await?;
    Ok(())
}

/// A component's bytes.
pub async fn component_bytes(db: &mut PgConnection, digest: &str) -> Result<Option<Vec<u8>>> {
    Ok(sqlx::query_scalar("select component from provider_component where digest = $1")
        .bind(digest)
        .fetch_optional(db)
        .await?)
}

/// The SHA-256 of every component that is installed, hexadecimal.
pub async fn component_digests(db: &mut PgConnection) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("select digest from provider_component").fetch_all(db).await?)
}

/// A provider's components, the newest first.
pub async fn component_list(db: &mut PgConnection, name: &str) -> Result<Vec<StoredComponent>> {
    let rows: Vec<ComponentRow> = sqlx::query_as(
        "select digest, descriptor, created_at, quarantined_at, quarantine_reason, granted
         from provider_component where name = $1 order by created_at desc, digest",
    )
    .bind(name)
    .fetch_all(db)
    .await?;
    rows.into_iter().map(StoredComponent::try_from).collect()
}

/// Forgets a component that serves nowhere and is no provider's previous one.
pub async fn component_delete(db: &mut PgConnection, digest: &str) -> Result<()> {
    sqlx::query("delete from tenant_quarantine where digest = $1").bind(digest).execute(&mut *db).await?;
    sqlx::query("delete from provider_component where digest = $1").bind(digest).execute(db).await?;
    Ok(())
}

/// Deletes a provider whose components are gone.
pub async fn provider_delete(db: &mut PgConnection, name: &str) -> Result<()> {
    sqlx::query("delete from provider where name = $1").bind(name).execute(db).await?;
    Ok(())
}

/// How many enabled connections of all tenants are accounts at a provider.
pub async fn provider_use_count(db: &mut PgConnection, name: &str) -> Result<i64> {
    let sql = "select count(*) from connection where provider = $1 and enabled and deleted_at is null";
    Ok(sqlx::query_scalar(sql).bind(name).fetch_one(db).await?)
}

/// All providers, by name.
pub async fn provider_list(db: &mut PgConnection) -> Result<Vec<StoredProvider>> {
    let rows: Vec<ProviderRow> = sqlx::query_as(
        "select name, active_digest, previous_digest, granted_hosts, version, updated_at from provider order by name",
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(StoredProvider::from).collect())
}

/// One provider.
pub async fn provider_get(db: &mut PgConnection, name: &str) -> Result<Option<StoredProvider>> {
    let row: Option<ProviderRow> = sqlx::query_as(
        "select name, active_digest, previous_digest, granted_hosts, version, updated_at
         from provider where name = $1",
    )
    .bind(name)
    .fetch_optional(db)
    .await?;
    Ok(row.map(StoredProvider::from))
}

/// Reads a provider and locks it for the rest of the transaction.
pub async fn provider_lock(db: &mut PgConnection, name: &str) -> Result<Option<StoredProvider>> {
    let row: Option<ProviderRow> = sqlx::query_as(
        "select name, active_digest, previous_digest, granted_hosts, version, updated_at
         from provider where name = $1 for update",
    )
    .bind(name)
    .fetch_optional(db)
    .await?;
    Ok(row.map(StoredProvider::from))
}

/// Sets which component serves and which a rollback returns to.
pub async fn provider_activate(
    db: &mut PgConnection,
    name: &str,
    active: Option<&str>,
    previous: Option<&str>,
) -> Result<()> {
    sqlx::query(
        "update provider set active_digest = $2, previous_digest = $3, version = version + 1, updated_at = now()
         where name = $1",
    )
    .bind(name)
    .bind(active)
    .bind(previous)
    .execute(db)
    .await?;
    Ok(())
}

/// Replaces the granted hosts.
pub async fn provider_grant(db: &mut PgConnection, name: &str, hosts: &[String]) -> Result<()> {
    sqlx::query("update provider set granted_hosts = $2, version = version + 1, updated_at = now() where name = $1")
        .bind(name)
        .bind(hosts)
        .execute(db)
        .await?;
    Ok(())
}

/// Marks a component as quarantined, or lifts it with `None`.
pub async fn component_quarantine(db: &mut PgConnection, digest: &str, reason: Option<&str>) -> Result<()> {
    sqlx::query(
        "update provider_component set quarantine_reason = $2,
           quarantined_at = case when $2::text is null then null else coalesce(quarantined_at, now()) end
         where digest = $1",
    )
    .bind(digest)
    .bind(reason)
    .execute(db)
    .await?;
    Ok(())
}

/// Remembers that the provider's grants were given to this component.
pub async fn component_granted(db: &mut PgConnection, digest: &str) -> Result<()> {
    sqlx::query("update provider_component set granted = true where digest = $1").bind(digest).execute(db).await?;
    Ok(())
}

/// Writes down that a component does not serve a tenant for so long from now on; those quarantines
/// of the tenant that are over are forgotten.
pub async fn tenant_quarantine_put(
    db: &mut PgConnection,
    tenant: TenantId,
    digest: &str,
    lasts: Duration,
    reason: &str,
) -> Result<()> {
    sqlx::query("delete from tenant_quarantine where tenant_id = $1 and until < now()")
        .bind(tenant.uuid())
        .execute(&mut *db)
        .await?;
    sqlx::query(
        "insert into tenant_quarantine (tenant_id, digest, until, reason)
         values ($1, $2, now() + $3 * interval '1 second', $4)
         on conflict (tenant_id, digest) do update set until = greatest(tenant_quarantine.until, excluded.until)",
    )
    .bind(tenant.uuid())
    .bind(digest)
    .bind(lasts.as_secs_f64())
    .bind(reason)
    .execute(db)
    .await?;
    Ok(())
}

/// The quarantines of a tenant that are in force, or of all tenants.
pub async fn tenant_quarantine_list(db: &mut PgConnection, tenant: Option<TenantId>) -> Result<Vec<TenantQuarantine>> {
    row! {
        struct Row {
            tenant_id: uuid::Uuid,
            digest: String,
            began_at: jiff_sqlx::Timestamp,
            until: jiff_sqlx::Timestamp,
            reason: String,
        }
    }
    let rows: Vec<Row> = sqlx::query_as(
        "select tenant_id, digest, began_at, until, reason from tenant_quarantine
         where until > now() and ($1::uuid is null or tenant_id = $1) order by tenant_id, digest",
    )
    .bind(tenant.map(TenantId::uuid))
    .fetch_all(db)
    .await?;
    let quarantine = |row: Row| TenantQuarantine {
        tenant: row.tenant_id.into(),
        digest: row.digest,
        began_at: row.began_at.to_jiff(),
        until: row.until.to_jiff(),
        reason: row.reason,
    };
    Ok(rows.into_iter().map(quarantine).collect())
}

/// Ends a component's quarantines, whichever tenants' they are.
pub async fn tenant_quarantine_lift(db: &mut PgConnection, digest: &str) -> Result<()> {
    sqlx::query("delete from tenant_quarantine where digest = $1").bind(digest).execute(db).await?;
    Ok(())
}
