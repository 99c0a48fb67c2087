//! A tenant's settings: one row, which is not there before something is set.

use jiff::Timestamp;
use sqlx::PgConnection;

use super::{Result, StoreError};
use angarium_domain::{ids::TenantId, settings::TenantSettings};

/// Settings as they stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredSettings {
    /// 0 before anything was set.
    pub version: i64,
    pub settings: TenantSettings,
    pub updated_at: Option<Timestamp>,
}

type Row = (i64, String, jiff_sqlx::Timestamp);

fn stored((version, settings, updated_at): Row) -> Result<StoredSettings> {
    let settings = serde_json::from_str(&settings).map_err(unreadable)?;
    Ok(StoredSettings { version, settings, updated_at: Some(updated_at.to_jiff()) })
}

fn unreadable(error: serde_json::Error) -> StoreError {
    StoreError::Failed(sqlx::Error::Decode(Box::new(error)))
}

/// The settings of a tenant.
pub async fn settings_get(db: &mut PgConnection, tenant: TenantId) -> Result<StoredSettings> {
    let row: Option<Row> =
        sqlx::query_as("select version, settings, updated_at from tenant_settings where tenant_id = $1")
            .bind(tenant.uuid())
            .fetch_optional(db)
            .await?;
    row.map_or_else(|| Ok(StoredSettings::default()), stored)
}

/// Replaces the settings of a tenant; `None` when they are not of the version `after` any more.
pub async fn settings_put(
    db: &mut PgConnection,
    tenant: TenantId,
    settings: &TenantSettings,
    after: Option<i64>,
) -> Result<Option<StoredSettings>> {
    let row: Option<Row> = sqlx::query_as(
        "insert into tenant_settings as s (tenant_id, version, settings)
         select $1, 1, $2 where coalesce($3, 0) = 0
           or exists (select from tenant_settings where tenant_id = $1)
         on conflict (tenant_id) do update set
           version = s.version + 1, settings = excluded.settings, updated_at = now()
         where $3::bigint is null or s.version = $3
         returning version, settings, updated_at",
    )
    .bind(tenant.uuid())
    .bind(serde_json::to_string(settings).map_err(unreadable)?)
    .bind(after)
    .fetch_optional(db)
    .await?;
    row.map(stored).transpose()
}
