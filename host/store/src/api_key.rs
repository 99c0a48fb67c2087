//! API keys. A key's text is never here: only its hash and the hint that people see.

use sqlx::{FromRow, PgConnection, Row as _, postgres::PgRow};

use super::Result;
use angarium_domain::{
    ids::{KeyId, TenantId},
    key::ApiKey,
};

row! {
    struct Row {
        tenant_id: uuid::Uuid,
        id: uuid::Uuid,
        name: String,
        hint: String,
        scopes: Vec<String>,
        created_at: jiff_sqlx::Timestamp,
        expires_at: Option<jiff_sqlx::Timestamp>,
        revoked_at: Option<jiff_sqlx::Timestamp>,
    }
}

struct Hashed {
    hash: Vec<u8>,
    key: Row,
}

impl FromRow<'_, PgRow> for Hashed {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self { hash: row.try_get("hash")?, key: Row::from_row(row)? })
    }
}

impl From<Row> for ApiKey {
    /// A scope that this version doesn't know opens nothing.
    fn from(row: Row) -> Self {
        Self {
            tenant: row.tenant_id.into(),
            id: row.id.into(),
            name: row.name,
            hint: row.hint,
            scopes: row.scopes.iter().filter_map(|scope| scope.parse().ok()).collect(),
            created_at: row.created_at.to_jiff(),
            expires_at: row.expires_at.map(jiff_sqlx::Timestamp::to_jiff),
            revoked_at: row.revoked_at.map(jiff_sqlx::Timestamp::to_jiff),
        }
    }
}

/// Inserts a key with its hash.
pub async fn api_key_insert(db: &mut PgConnection, key: &ApiKey, hash: &[u8; 32]) -> Result<()> {
    let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    sqlx::query(
        "insert into api_key (tenant_id, id, name, hash, hint, scopes, created_at, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(key.tenant.uuid())
    .bind(key.id.uuid())
    .bind(&key.name)
    .bind(hash.as_slice())
    .bind(&key.hint)
    .bind(scopes)
    .bind(jiff_sqlx::Timestamp::from(key.created_at))
    .bind(key.expires_at.map(jiff_sqlx::Timestamp::from))
    .execute(db)
    .await?;
    Ok(())
}

/// A tenant's keys, the oldest first.
pub async fn api_key_list(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<ApiKey>> {
    let rows: Vec<Row> = sqlx::query_as(
        "select tenant_id, id, name, hint, scopes, created_at, expires_at, revoked_at
         from api_key where tenant_id = $1 order by id",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(ApiKey::from).collect())
}

/// Returns a key of whichever tenant, locked until the transaction ends.
pub async fn api_key_get(db: &mut PgConnection, id: KeyId) -> Result<Option<ApiKey>> {
    let row: Option<Row> = sqlx::query_as(
        "select tenant_id, id, name, hint, scopes, created_at, expires_at, revoked_at
         from api_key where id = $1 for update",
    )
    .bind(id.uuid())
    .fetch_optional(db)
    .await?;
    Ok(row.map(ApiKey::from))
}

/// The keys with these hashes, of whichever tenants: only for authentication.
pub async fn api_keys_find(db: &mut PgConnection, hashes: &[[u8; 32]]) -> Result<Vec<([u8; 32], ApiKey)>> {
    let hashes: Vec<&[u8]> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
    let rows: Vec<Hashed> = sqlx::query_as(
        "select hash, tenant_id, id, name, hint, scopes, created_at, expires_at, revoked_at
         from api_key where hash = any($1)",
    )
    .bind(hashes)
    .fetch_all(db)
    .await?;
    let with_hash = |row: Hashed| Some((<[u8; 32]>::try_from(row.hash).ok()?, ApiKey::from(row.key)));
    Ok(rows.into_iter().filter_map(with_hash).collect())
}

/// Revokes a key, once; `None` when there is none.
pub async fn api_key_revoke(db: &mut PgConnection, id: KeyId) -> Result<Option<ApiKey>> {
    let row: Option<Row> = sqlx::query_as(
        "update api_key set revoked_at = coalesce(revoked_at, now()) where id = $1
         returning tenant_id, id, name, hint, scopes, created_at, expires_at, revoked_at",
    )
    .bind(id.uuid())
    .fetch_optional(db)
    .await?;
    Ok(row.map(ApiKey::from))
}
