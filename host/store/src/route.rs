//! Routes beside what all documents share: at most one of a channel is active, and a unique index says so.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Result, StoreError, document::document_find, message::corrupt};
use angarium_domain::{
    document::DocumentKind,
    ids::{RouteId, TenantId},
    message::Channel,
    route::RouteSpec,
};

/// A version of a route.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteVersion {
    pub route: RouteId,
    pub version: i32,
    pub spec: RouteSpec,
}

/// Returns the id of the route with this uid.
pub async fn route_named(db: &mut PgConnection, tenant: TenantId, uid: &str) -> Result<Option<RouteId>> {
    Ok(document_find(db, tenant, DocumentKind::Route, None, uid).await?.map(|it| it.id.into()))
}

/// Returns the active version of every channel: what routing works by.
pub async fn route_active_list(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<(Channel, RouteVersion)>> {
    let rows: Vec<(String, Uuid, i32, String)> = sqlx::query_as(
        "select d.channel, d.id, v.version, v.body from document d
         join document_version v on v.tenant_id = d.tenant_id and v.kind = d.kind and v.document_id = d.id
           and v.version = d.active_version
         where d.tenant_id = $1 and d.kind = 'route'",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    let read = |(channel, route, version, spec): (String, Uuid, i32, String)| {
        let channel = channel.parse().map_err(|error| StoreError::Failed(sqlx::Error::Decode(Box::new(error))))?;
        let spec = serde_json::from_str(&spec).map_err(corrupt)?;
        Ok((channel, RouteVersion { route: route.into(), version, spec }))
    };
    rows.into_iter().map(read).collect()
}

/// Locks all routes of a channel, in the order of their ids, until the transaction ends: those that put one of them in
/// service wait for each other here, before they lock anything else.
pub async fn route_channel_lock(db: &mut PgConnection, tenant: TenantId, channel: &str) -> Result<()> {
    sqlx::query("select from document where tenant_id = $1 and kind = 'route' and channel = $2 order by id for update")
        .bind(tenant.uuid())
        .bind(channel)
        .execute(db)
        .await?;
    Ok(())
}

/// Takes the channel from the other route that has it, and returns that route's id and the version that was active.
pub async fn route_channel_take(
    db: &mut PgConnection,
    tenant: TenantId,
    route: RouteId,
    channel: &str,
) -> Result<Option<(RouteId, i32)>> {
    let row: Option<(Uuid, i32)> = sqlx::query_as(
        "update document set previous_version = active_version, active_version = null, active_bytes = 0,
           updated_at = now()
         where tenant_id = $1 and kind = 'route' and channel = $3 and id <> $2 and active_version is not null
         returning id, previous_version",
    )
    .bind(tenant.uuid())
    .bind(route.uuid())
    .bind(channel)
    .fetch_optional(db)
    .await?;
    Ok(row.map(|(id, version)| (id.into(), version)))
}
