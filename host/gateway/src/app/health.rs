//! The health of a tenant's connections: their providers, rates, last errors and breakers.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{App, PageRows, Result};
use crate::engine::guards::{LeftAlone, Sight};
use angarium_domain::{
    breaker::Breaker,
    connection::Connection,
    ids::{ConnectionId, TenantId},
    statistics::{Figures, StatisticsWindow},
};
use angarium_store::{
    Connection as Db,
    breaker::breaker_list,
    connection::connection_page,
    provider::{
        StoredComponent, StoredProvider, TenantQuarantine, component_list, provider_get, tenant_quarantine_list,
    },
    statistics::{failure_list, window_list},
};

pub use angarium_store::statistics::LastFailure;

/// A connection with its health.
pub struct ConnectionHealth {
    pub connection: Connection,
    pub provider: ProviderState,
    /// The figures of each window with attempts.
    pub windows: Vec<(StatisticsWindow, Figures)>,
    /// The last attempt that was not accepted.
    pub failure: Option<LastFailure>,
    pub breaker: Option<Breaker>,
    /// This node's observations.
    pub sight: Option<Sight>,
    /// The stored secrets that this node can't open.
    pub unavailable_secrets: Vec<String>,
    /// The endpoints that messages named and this node leaves alone for now.
    pub left_alone: Vec<LeftAlone>,
}

/// A provider as it serves a tenant.
#[derive(Debug, Clone)]
pub struct ProviderState {
    pub name: String,
    /// The version that serves.
    pub version: Option<String>,
    /// Its versions that failed too often and were taken out of service.
    pub quarantined: Vec<QuarantinedVersion>,
}

/// A version that was taken out of service.
#[derive(Debug, Clone)]
pub struct QuarantinedVersion {
    pub version: String,
    pub digest: String,
    pub at: Timestamp,
    /// The end of a quarantine for this tenant alone.
    pub until: Option<Timestamp>,
    pub reason: Option<String>,
}

/// Returns a page of the tenant's connections with their health, the newest first, from behind `after`.
pub async fn list(
    app: &App,
    tenant: TenantId,
    after: Option<ConnectionId>,
    limit: u32,
) -> Result<PageRows<ConnectionHealth>> {
    let mut txn = app.store.tenant(tenant).await?;
    let PageRows { rows, more } = connection_page(&mut txn, tenant, after, limit).await?;
    let ids: Vec<_> = rows.iter().map(|it| it.id).collect();
    let providers = providers_of(&mut txn, tenant, &rows).await?;
    let mut windows: HashMap<_, Vec<_>> = HashMap::new();
    for (connection, window, figures) in window_list(&mut txn, tenant, &ids).await? {
        windows.entry(connection).or_default().push((window, figures));
    }
    let failures = failure_list(&mut txn, tenant, &ids).await?;
    let mut failures: HashMap<_, _> = failures.into_iter().map(|it| (it.connection, it)).collect();
    let breakers = breaker_list(&mut txn, tenant, &ids).await?;
    let mut breakers: HashMap<_, _> = breakers.into_iter().map(|it| (it.connection, it.breaker)).collect();
    let config = app.tenant_configs.tenant(tenant).await?;
    let closed = |id| config.endpoints.get(&id).map_or_else(Vec::new, |it| it.secrets.closed().to_vec());
    let health = |connection: Connection| ConnectionHealth {
        provider: providers[&connection.provider].clone(),
        windows: windows.remove(&connection.id).unwrap_or_default(),
        failure: failures.remove(&connection.id),
        breaker: breakers.remove(&connection.id),
        sight: app.guards.sight(tenant, connection.id),
        unavailable_secrets: closed(connection.id),
        left_alone: app.guards.left_alone(tenant, connection.id),
        connection,
    };
    Ok(PageRows { rows: rows.into_iter().map(health).collect(), more })
}

/// Each provider once, as it serves this tenant.
async fn providers_of(
    db: &mut Db,
    tenant: TenantId,
    connections: &[Connection],
) -> Result<HashMap<String, ProviderState>> {
    let mut providers = HashMap::new();
    let own = tenant_quarantine_list(db, Some(tenant)).await?;
    for Connection { provider: name, .. } in connections {
        if providers.contains_key(name) {
            continue;
        }
        let serving = provider_get(db, name).await?.and_then(|provider| serving(provider, &own));
        let versions = component_list(db, name).await?;
        let serving = versions.iter().find(|it| Some(&it.digest) == serving.as_ref());
        let state = ProviderState {
            name: name.clone(),
            version: serving.map(|it| it.descriptor.version.clone()),
            quarantined: versions.into_iter().filter_map(|version| quarantined(version, &own)).collect(),
        };
        providers.insert(name.clone(), state);
    }
    Ok(providers)
}

/// The digest of the version that serves a tenant with these quarantines.
fn serving(provider: StoredProvider, own: &[TenantQuarantine]) -> Option<String> {
    let kept = [Some(provider.active_digest?), provider.previous_digest];
    kept.into_iter().flatten().find(|digest| own.iter().all(|it| it.digest != *digest))
}

fn quarantined(component: StoredComponent, own: &[TenantQuarantine]) -> Option<QuarantinedVersion> {
    let of_tenant = own.iter().find(|it| it.digest == component.digest);
    Some(QuarantinedVersion {
        at: component.quarantined_at.or(of_tenant.map(|it| it.began_at))?,
        until: of_tenant.filter(|_| component.quarantined_at.is_none()).map(|it| it.until),
        reason: component.quarantine_reason.or(of_tenant.map(|it| it.reason.clone())),
        version: component.descriptor.version,
        digest: component.digest,
    })
}
