//! Routes and their versions. At most one route of a channel is active: a unique index says so.

use jiff::Timestamp;
use sqlx::{FromRow, PgConnection};

use super::{
    Result, StoreError,
    page::{PageRows, one_more, page},
};
use angarium_domain::{
    ids::{RouteId, TenantId},
    message::Channel,
    route::RouteSpec,
};

/// A route without its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRow {
    pub id: RouteId,
    pub uid: Option<String>,
    pub channel: Channel,
    pub active_version: Option<i32>,
    /// The version that a rollback returns to.
    pub previous_version: Option<i32>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A version of a route; it never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteVersion {
    pub route: RouteId,
    pub version: i32,
    pub spec: RouteSpec,
    pub created_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: uuid::Uuid,
    uid: Option<String>,
    channel: String,
    active_version: Option<i32>,
    previous_version: Option<i32>,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
}

impl TryFrom<Row> for RouteRow {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: row.id.into(),
            uid: row.uid,
            channel: row.channel.parse().map_err(unreadable)?,
            active_version: row.active_version,
            previous_version: row.previous_version,
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
        })
    }
}

type VersionRow = (uuid::Uuid, i32, String, jiff_sqlx::Timestamp);

fn version((route, version, spec, created_at): VersionRow) -> Result<RouteVersion> {
    let spec = serde_json::from_str(&spec).map_err(unreadable)?;
    Ok(RouteVersion { route: route.into(), version, spec, created_at: created_at.to_jiff() })
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Failed(sqlx::Error::Decode(Box::new(error)))
}

/// Inserts an inactive route.
pub async fn route_insert(db: &mut PgConnection, tenant: TenantId, route: &RouteRow) -> Result<()> {
    sqlx::query(
        "insert into route (tenant_id, id, uid, channel, created_at, updated_at) values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(tenant.uuid())
    .bind(route.id.uuid())
    .bind(&route.uid)
    .bind(route.channel.as_str())
    .bind(jiff_sqlx::Timestamp::from(route.created_at))
    .bind(jiff_sqlx::Timestamp::from(route.updated_at))
    .execute(db)
    .await?;
    Ok(())
}

/// Inserts the route's next version; the caller holds [`route_lock`].
pub async fn route_version_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    route: RouteId,
    spec: &RouteSpec,
) -> Result<RouteVersion> {
    let spec = serde_json::to_string(spec).map_err(unreadable)?;
    let row = sqlx::query_as(
        "insert into route_version (tenant_id, route_id, version, spec)
         select $1, $2, coalesce(max(version), 0) + 1, $3 from route_version where tenant_id = $1 and route_id = $2
         returning route_id, version, spec, created_at",
    )
    .bind(tenant.uuid())
    .bind(route.uuid())
    .bind(spec)
    .fetch_one(db)
    .await?;
    version(row)
}

/// The route with this id, or with this uid.
pub async fn route_find(
    db: &mut PgConnection,
    tenant: TenantId,
    id: Option<RouteId>,
    uid: &str,
) -> Result<Option<RouteRow>> {
    let row: Option<Row> = sqlx::query_as(
        "select id, uid, channel, active_version, previous_version, created_at, updated_at from route
         where tenant_id = $1 and (id = $2 or uid = $3)",
    )
    .bind(tenant.uuid())
    .bind(id.map(RouteId::uuid))
    .bind(uid)
    .fetch_optional(db)
    .await?;
    row.map(RouteRow::try_from).transpose()
}

/// Reads a route again and locks it for the rest of the transaction.
pub async fn route_lock(db: &mut PgConnection, tenant: TenantId, id: RouteId) -> Result<RouteRow> {
    let row: Row = sqlx::query_as(
        "select id, uid, channel, active_version, previous_version, created_at, updated_at from route
         where tenant_id = $1 and id = $2 for update",
    )
    .bind(tenant.uuid())
    .bind(id.uuid())
    .fetch_one(db)
    .await?;
    RouteRow::try_from(row)
}

/// How many of a route's versions are listed.
const LISTED_VERSIONS: i64 = 20;

/// Returns a page of a tenant's routes, the newest first, beginning after `before`.
pub async fn route_list(
    db: &mut PgConnection,
    tenant: TenantId,
    before: Option<RouteId>,
    limit: u32,
) -> Result<PageRows<RouteRow>> {
    let rows = sqlx::query(
        "select id, uid, channel, active_version, previous_version, created_at, updated_at from route
         where tenant_id = $1 and ($2::uuid is null or id < $2) order by id desc limit $3",
    )
    .bind(tenant.uuid())
    .bind(before.map(RouteId::uuid))
    .bind(one_more(limit))
    .fetch(db);
    page(rows, limit, |row| RouteRow::try_from(Row::from_row(row)?)).await
}

/// The latest versions of these routes, at most [`LISTED_VERSIONS`] of each, each route's newest first.
pub async fn route_versions(db: &mut PgConnection, tenant: TenantId, routes: &[RouteId]) -> Result<Vec<RouteVersion>> {
    let routes: Vec<_> = routes.iter().map(|route| route.uuid()).collect();
    let rows: Vec<VersionRow> = sqlx::query_as(
        "select v.route_id, v.version, v.spec, v.created_at from unnest($2::uuid[]) r (id)
         cross join lateral (select * from route_version v where v.tenant_id = $1 and v.route_id = r.id
           order by v.version desc limit $3) v
         order by v.route_id, v.version desc",
    )
    .bind(tenant.uuid())
    .bind(routes)
    .bind(LISTED_VERSIONS)
    .fetch_all(db)
    .await?;
    rows.into_iter().map(version).collect()
}

/// Returns one version, if it exists.
pub async fn route_version_get(
    db: &mut PgConnection,
    tenant: TenantId,
    route: RouteId,
    number: i32,
) -> Result<Option<RouteVersion>> {
    let row: Option<VersionRow> = sqlx::query_as(
        "select route_id, version, spec, created_at from route_version
         where tenant_id = $1 and route_id = $2 and version = $3",
    )
    .bind(tenant.uuid())
    .bind(route.uuid())
    .bind(number)
    .fetch_optional(db)
    .await?;
    row.map(version).transpose()
}

/// The active version of every channel: what routing works by.
pub async fn route_active_list(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<(Channel, RouteVersion)>> {
    let rows: Vec<(String, uuid::Uuid, i32, String, jiff_sqlx::Timestamp)> = sqlx::query_as(
        "select r.channel, v.route_id, v.version, v.spec, v.created_at from route r
         join route_version v on v.tenant_id = r.tenant_id and v.route_id = r.id and v.version = r.active_version
         where r.tenant_id = $1",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|(channel, route, number, spec, at)| {
            Ok((channel.parse().map_err(unreadable)?, version((route, number, spec, at))?))
        })
        .collect()
}

/// Makes a version the active one, or none; the previously active one becomes the target of a rollback.
pub async fn route_activate(
    db: &mut PgConnection,
    tenant: TenantId,
    route: RouteId,
    active: Option<i32>,
    previous: Option<i32>,
) -> Result<()> {
    sqlx::query(
        "update route set active_version = $3, previous_version = $4, updated_at = now()
         where tenant_id = $1 and id = $2",
    )
    .bind(tenant.uuid())
    .bind(route.uuid())
    .bind(active)
    .bind(previous)
    .execute(db)
    .await?;
    Ok(())
}

/// Takes the channel from whichever other route has it.
pub async fn route_deactivate_others(
    db: &mut PgConnection,
    tenant: TenantId,
    route: RouteId,
    channel: &Channel,
) -> Result<()> {
    sqlx::query(
        "update route set previous_version = active_version, active_version = null, updated_at = now()
         where tenant_id = $1 and channel = $3 and id <> $2 and active_version is not null",
    )
    .bind(tenant.uuid())
    .bind(route.uuid())
    .bind(channel.as_str())
    .execute(db)
    .await?;
    Ok(())
}
