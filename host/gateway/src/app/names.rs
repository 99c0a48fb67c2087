//! Names in filters: the id of a resource, or the uid of one that exists.

use super::{App, Result};
use angarium_domain::ids::{ConnectionId, RouteId, TenantId};
use angarium_store::{connection::connection_find, route::route_named, tenant::tenant_find};

/// Returns a connection's id, also of one that was deleted, or the id of the connection with this uid.
pub async fn connection_id(app: &App, tenant: TenantId, name: &str) -> Result<Option<ConnectionId>> {
    if let Ok(id) = name.parse() {
        return Ok(Some(id));
    }
    let mut txn = app.store.tenant(tenant).await?;
    Ok(connection_find(&mut txn, tenant, None, name).await?.map(|it| it.id))
}

/// Returns a route's id, also of one that was deleted, or the id of the route with this uid.
pub async fn route_id(app: &App, tenant: TenantId, name: &str) -> Result<Option<RouteId>> {
    if let Ok(id) = name.parse() {
        return Ok(Some(id));
    }
    let mut txn = app.store.tenant(tenant).await?;
    Ok(route_named(&mut txn, tenant, name).await?)
}

/// Returns the id of the tenant with this name: for operators.
pub async fn tenant_id(app: &App, name: &str) -> Result<Option<TenantId>> {
    Ok(tenant_find(&mut *app.store.worker().await?, name).await?.map(|tenant| tenant.id))
}
