//! Connections. One that was deleted keeps its row, since attempts refer to it.

use serde_json::value::RawValue;
use sqlx::{FromRow, PgConnection};

use super::{
    Result, StoreError,
    page::{PageRows, one_more, page},
};
use angarium_domain::{
    connection::Connection,
    guards::Guards,
    ids::{ConnectionId, RouteId, TenantId},
};

row! {
    struct Row {
        id: uuid::Uuid,
        uid: Option<String>,
        name: String,
        provider: String,
        config: String,
        enabled: bool,
        guards: Option<String>,
        callback_token: String,
        created_at: jiff_sqlx::Timestamp,
        updated_at: jiff_sqlx::Timestamp,
    }
}

impl TryFrom<Row> for Connection {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: row.id.into(),
            uid: row.uid,
            name: row.name,
            provider: row.provider,
            config: RawValue::from_string(row.config)
                .map_err(|error| StoreError::Failed(sqlx::Error::Decode(Box::new(error))))?,
            enabled: row.enabled,
            guards: match row.guards.as_deref() {
                None => Guards::default(),
                Some(json) => serde_json::from_str(json)
                    .map_err(|error| StoreError::Failed(sqlx::Error::Decode(Box::new(error))))?,
            },
            callback_token: row.callback_token,
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
        })
    }
}

/// Inserts a connection; its uid is unique among the tenant's living ones.
pub async fn connection_insert(db: &mut PgConnection, tenant: TenantId, connection: &Connection) -> Result<()> {
    sqlx::query(
        "insert into connection (tenant_id, id, uid, name, provider, config, enabled, created_at, updated_at,
           callback_token, guards)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(tenant.uuid())
    .bind(connection.id.uuid())
    .bind(&connection.uid)
    .bind(&connection.name)
    .bind(&connection.provider)
    .bind(connection.config.get())
    .bind(connection.enabled)
    .bind(jiff_sqlx::Timestamp::from(connection.created_at))
    .bind(jiff_sqlx::Timestamp::from(connection.updated_at))
    .bind(&connection.callback_token)
    .bind(stored(&connection.guards))
    .execute(db)
    .await?;
    Ok(())
}

/// Writes the changeable parts of a connection.
pub async fn connection_update(db: &mut PgConnection, tenant: TenantId, connection: &Connection) -> Result<()> {
    sqlx::query(
        "update connection set uid = $3, name = $4, config = $5, enabled = $6, updated_at = $7, guards = $8
         where tenant_id = $1 and id = $2 and deleted_at is null",
    )
    .bind(tenant.uuid())
    .bind(connection.id.uuid())
    .bind(&connection.uid)
    .bind(&connection.name)
    .bind(connection.config.get())
    .bind(connection.enabled)
    .bind(jiff_sqlx::Timestamp::from(connection.updated_at))
    .bind(stored(&connection.guards))
    .execute(db)
    .await?;
    Ok(())
}

/// Returns the stored form of guards; defaults are not stored, so that later defaults apply.
fn stored(guards: &Guards) -> Option<String> {
    // Plain data always has a JSON form.
    (*guards != Guards::default()).then(|| serde_json::to_string(guards).unwrap_or_default())
}

/// The living connection with this id, or with this uid.
pub async fn connection_find(
    db: &mut PgConnection,
    tenant: TenantId,
    id: Option<ConnectionId>,
    uid: &str,
) -> Result<Option<Connection>> {
    let row: Option<Row> = sqlx::query_as(
        "select id, uid, name, provider, config, enabled, guards, callback_token, created_at, updated_at from connection
         where tenant_id = $1 and (id = $2 or uid = $3) and deleted_at is null",
    )
    .bind(tenant.uuid())
    .bind(id.map(ConnectionId::uuid))
    .bind(uid)
    .fetch_optional(db)
    .await?;
    row.map(Connection::try_from).transpose()
}

/// Returns the connections whose callbacks the tokens bring. It is asked before any tenant is known.
pub async fn connections_of_tokens(
    db: &mut PgConnection,
    tokens: &[String],
) -> Result<Vec<(String, (TenantId, ConnectionId))>> {
    let found: Vec<(String, uuid::Uuid, uuid::Uuid)> = sqlx::query_as(
        "select callback_token, tenant_id, id from connection where callback_token = any($1) and deleted_at is null",
    )
    .bind(tokens)
    .fetch_all(db)
    .await?;
    Ok(found.into_iter().map(|(token, tenant, id)| (token, (tenant.into(), id.into()))).collect())
}

/// Locks a living connection for the rest of the transaction: changes of it, and of routes that
/// name it, wait for one another. `false` when there is none.
pub async fn connection_lock(db: &mut PgConnection, tenant: TenantId, id: ConnectionId) -> Result<bool> {
    let found: Option<i32> = sqlx::query_scalar(
        "select 1 from connection where tenant_id = $1 and id = $2 and deleted_at is null for update",
    )
    .bind(tenant.uuid())
    .bind(id.uuid())
    .fetch_optional(db)
    .await?;
    Ok(found.is_some())
}

const LISTED: &str = "select id, uid, name, provider, config, enabled, guards, callback_token, created_at, updated_at
   from connection where tenant_id = $1 and id < $2 and deleted_at is null order by id desc limit $3";

/// All of a tenant's living connections, the newest first.
pub async fn connection_list(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<Connection>> {
    let rows: Vec<Row> =
        sqlx::query_as(LISTED).bind(tenant.uuid()).bind(uuid::Uuid::max()).bind(i64::MAX).fetch_all(db).await?;
    rows.into_iter().map(Connection::try_from).collect()
}

/// Returns a page of a tenant's living connections, the newest first, beginning after `before`.
pub async fn connection_page(
    db: &mut PgConnection,
    tenant: TenantId,
    before: Option<ConnectionId>,
    limit: u32,
) -> Result<PageRows<Connection>> {
    let rows = sqlx::query(LISTED)
        .bind(tenant.uuid())
        .bind(before.map_or(uuid::Uuid::max(), ConnectionId::uuid))
        .bind(one_more(limit))
        .fetch(db);
    page(rows, limit, |row| Connection::try_from(Row::from_row(row)?)).await
}

/// Marks a connection as deleted and forgets its secrets, its breaker and its rate.
pub async fn connection_delete(db: &mut PgConnection, tenant: TenantId, id: ConnectionId) -> Result<()> {
    sqlx::query("update connection set deleted_at = now(), updated_at = now() where tenant_id = $1 and id = $2")
        .bind(tenant.uuid())
        .bind(id.uuid())
        .execute(&mut *db)
        .await?;
    for table in ["secret", "breaker", "rate_schedule"] {
        let sql = format!("delete from {table} where tenant_id = $1 and connection_id = $2");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(tenant.uuid()).bind(id.uuid()).execute(&mut *db).await?;
    }
    Ok(())
}

/// The active routes that name a connection.
pub async fn connection_routes(db: &mut PgConnection, tenant: TenantId, id: ConnectionId) -> Result<Vec<RouteId>> {
    let rows: Vec<uuid::Uuid> = sqlx::query_scalar(
        "select d.id from document d
         join document_version v on v.tenant_id = d.tenant_id and v.kind = d.kind and v.document_id = d.id
           and v.version = d.active_version
         where d.tenant_id = $1 and d.kind = 'route' and (v.body::jsonb -> 'candidates') @> jsonb_build_array(jsonb_build_object('connection', $2::text))
         order by d.id",
    )
    .bind(tenant.uuid())
    .bind(id.to_string())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(RouteId::from).collect())
}
