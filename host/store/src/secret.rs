//! Connections' secrets, encrypted. `sealing` opens them.

use jiff::Timestamp;
use sqlx::{FromRow, PgConnection, Row as _, postgres::PgRow};

use super::Result;
use angarium_domain::ids::{ConnectionId, TenantId};
use angarium_domain::sealed::Sealed;

/// A version of a secret, as stored.
#[derive(Debug, Clone)]
pub struct StoredSecret {
    pub connection: ConnectionId,
    pub name: String,
    pub version: i32,
    pub sealed: Sealed,
    pub created_at: Timestamp,
    /// The end of a rotation's overlap; `None` for the current value.
    pub valid_until: Option<Timestamp>,
}

row! {
    struct Row {
        connection_id: uuid::Uuid,
        name: String,
        version: i32,
        key_id: String,
        wrapped_key: Vec<u8>,
        ciphertext: Vec<u8>,
        created_at: jiff_sqlx::Timestamp,
        valid_until: Option<jiff_sqlx::Timestamp>,
    }
}

impl From<Row> for StoredSecret {
    fn from(row: Row) -> Self {
        Self {
            connection: row.connection_id.into(),
            name: row.name,
            version: row.version,
            sealed: Sealed { key_id: row.key_id, wrapped_key: row.wrapped_key, ciphertext: row.ciphertext },
            created_at: row.created_at.to_jiff(),
            valid_until: row.valid_until.map(jiff_sqlx::Timestamp::to_jiff),
        }
    }
}

/// A secret's name and current version: all that anybody sees of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName {
    pub connection: ConnectionId,
    pub name: String,
    pub version: i32,
    pub created_at: Timestamp,
}

/// Inserts a version.
pub async fn secret_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    connection: ConnectionId,
    name: &str,
    version: i32,
    sealed: &Sealed,
) -> Result<()> {
    sqlx::query(
        "insert into secret (tenant_id, connection_id, name, version, key_id, wrapped_key, ciphertext)
         values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant.uuid())
    .bind(connection.uuid())
    .bind(name)
    .bind(version)
    .bind(&sealed.key_id)
    .bind(&sealed.wrapped_key)
    .bind(&sealed.ciphertext)
    .execute(db)
    .await?;
    Ok(())
}

/// The version that a new value of this secret takes; the connection's row is locked by the caller.
pub async fn secret_next_version(
    db: &mut PgConnection,
    tenant: TenantId,
    connection: ConnectionId,
    name: &str,
) -> Result<i32> {
    Ok(sqlx::query_scalar(
        "select coalesce(max(version), 0) + 1 from secret where tenant_id = $1 and connection_id = $2 and name = $3",
    )
    .bind(tenant.uuid())
    .bind(connection.uuid())
    .bind(name)
    .fetch_one(db)
    .await?)
}

/// Ends the versions before `version` once `overlap_seconds` have passed; one that ends sooner
/// anyway is left at that.
pub async fn secret_retire(
    db: &mut PgConnection,
    tenant: TenantId,
    connection: ConnectionId,
    name: &str,
    version: i32,
    overlap_seconds: i32,
) -> Result<()> {
    sqlx::query(
        "update secret set valid_until = least(valid_until, now() + make_interval(secs => $5))
         where tenant_id = $1 and connection_id = $2 and name = $3 and version < $4",
    )
    .bind(tenant.uuid())
    .bind(connection.uuid())
    .bind(name)
    .bind(version)
    .bind(f64::from(overlap_seconds))
    .execute(db)
    .await?;
    Ok(())
}

/// Returns some secrets of any tenant under another key than `key_id`, locked until the transaction ends; rows that
/// others have locked are skipped.
pub async fn secret_lock_of_other_keys(
    db: &mut PgConnection,
    key_id: &str,
    limit: i64,
) -> Result<Vec<(TenantId, StoredSecret)>> {
    struct Owned {
        tenant_id: uuid::Uuid,
        row: Row,
    }
    impl FromRow<'_, PgRow> for Owned {
        fn from_row(row: &PgRow) -> sqlx::Result<Self> {
            Ok(Self { tenant_id: row.try_get("tenant_id")?, row: Row::from_row(row)? })
        }
    }
    let rows: Vec<Owned> = sqlx::query_as(
        "select tenant_id, connection_id, name, version, key_id, wrapped_key, ciphertext, created_at, valid_until
         from secret where key_id <> $1 order by tenant_id, connection_id, name, version
         limit $2 for update skip locked",
    )
    .bind(key_id)
    .bind(limit)
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|it| (it.tenant_id.into(), it.row.into())).collect())
}

/// Replaces the wrapping of a version's data key; its value's ciphertext stays.
pub async fn secret_rewrap(
    db: &mut PgConnection,
    tenant: TenantId,
    secret: &StoredSecret,
    sealed: &Sealed,
) -> Result<()> {
    sqlx::query(
        "update secret set key_id = $5, wrapped_key = $6
         where tenant_id = $1 and connection_id = $2 and name = $3 and version = $4",
    )
    .bind(tenant.uuid())
    .bind(secret.connection.uuid())
    .bind(&secret.name)
    .bind(secret.version)
    .bind(&sealed.key_id)
    .bind(&sealed.wrapped_key)
    .execute(db)
    .await?;
    Ok(())
}

/// How many secrets of any tenant stand on another key than `key_id`.
pub async fn secret_count_of_other_keys(db: &mut PgConnection, key_id: &str) -> Result<i64> {
    Ok(sqlx::query_scalar("select count(*) from secret where key_id <> $1").bind(key_id).fetch_one(db).await?)
}

/// How many secrets are stored, and how many of them stand on keys that a node does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SecretTally {
    pub all: i64,
    pub closed: i64,
}

/// Counts the currently valid secrets of all tenants; `keys` are those of this node.
pub async fn secret_tally(db: &mut PgConnection, keys: &[String]) -> Result<SecretTally> {
    let (all, closed) = sqlx::query_as(
        "select count(*), count(*) filter (where key_id <> all ($1))
         from secret where valid_until is null or valid_until > now()",
    )
    .bind(keys)
    .fetch_one(db)
    .await?;
    Ok(SecretTally { all, closed })
}

/// Deletes secrets whose overlap is over.
pub async fn secret_delete_expired(db: &mut PgConnection, tenant: TenantId, connection: ConnectionId) -> Result<()> {
    sqlx::query("delete from secret where tenant_id = $1 and connection_id = $2 and valid_until <= now()")
        .bind(tenant.uuid())
        .bind(connection.uuid())
        .execute(db)
        .await?;
    Ok(())
}

/// Deletes every version of a secret.
pub async fn secret_delete(
    db: &mut PgConnection,
    tenant: TenantId,
    connection: ConnectionId,
    name: &str,
) -> Result<()> {
    sqlx::query("delete from secret where tenant_id = $1 and connection_id = $2 and name = $3")
        .bind(tenant.uuid())
        .bind(connection.uuid())
        .bind(name)
        .execute(db)
        .await?;
    Ok(())
}

/// Every version that is valid now, of all of a tenant's connections, the newest of each first.
pub async fn secret_list(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<StoredSecret>> {
    let rows: Vec<Row> = sqlx::query_as(
        "select connection_id, name, version, key_id, wrapped_key, ciphertext, created_at, valid_until
         from secret where tenant_id = $1 and (valid_until is null or valid_until > now())
         order by connection_id, name, version desc",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(StoredSecret::from).collect())
}

/// The names of all of a connection's secrets that have a version which is valid now, or was not yet deleted.
pub async fn secret_names_of(db: &mut PgConnection, tenant: TenantId, connection: ConnectionId) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("select distinct name from secret where tenant_id = $1 and connection_id = $2 order by name")
        .bind(tenant.uuid())
        .bind(connection.uuid())
        .fetch_all(db)
        .await?)
}

/// The names of these connections' secrets with their current versions.
pub async fn secret_names(
    db: &mut PgConnection,
    tenant: TenantId,
    connections: &[ConnectionId],
) -> Result<Vec<SecretName>> {
    let connections: Vec<_> = connections.iter().map(|connection| connection.uuid()).collect();
    let rows: Vec<(uuid::Uuid, String, i32, jiff_sqlx::Timestamp)> = sqlx::query_as(
        "select connection_id, name, version, created_at from secret
         where tenant_id = $1 and connection_id = any($2) and valid_until is null order by connection_id, name",
    )
    .bind(tenant.uuid())
    .bind(connections)
    .fetch_all(db)
    .await?;
    let name = |(connection, name, version, created_at): (uuid::Uuid, _, _, jiff_sqlx::Timestamp)| SecretName {
        connection: connection.into(),
        name,
        version,
        created_at: created_at.to_jiff(),
    };
    Ok(rows.into_iter().map(name).collect())
}
