//! `/v1/health/providers`: how a tenant's connections fare.

use std::{collections::HashMap, time::Instant};

use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    auth::{ConnectionsRead, Tenant},
    guards::BreakerAnswer,
    json::Json,
    message::DispositionName,
    page::{Page, Paging},
    problem::Problem,
    request::Query,
    statistics::LatencyAnswer,
};
use crate::{clock, engine::guards::LeftAlone};
use angarium_domain::{
    connection::Connection,
    ids::{ConnectionId, TenantId},
    provider::Disposition,
    routing::SkipReason,
    statistics::{Figures, StatisticsWindow},
};
use angarium_store::{
    self as store, Connection as Db,
    breaker::breaker_list,
    connection::connection_page,
    provider::{
        StoredComponent, StoredProvider, TenantQuarantine, component_list, provider_get, tenant_quarantine_list,
    },
    statistics::{FailureCount, failure_list, window_list},
};

/// How a connection fares.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConnectionHealth)]
pub struct HealthAnswer {
    #[schema(example = "conn_0192f0c1a2b37c4d8e5f60718293a4b5")]
    connection: String,
    uid: Option<String>,
    enabled: bool,
    provider: ProviderHealth,
    /// Up to now; the present bucket counts, so each is shorter than it says by less than a minute, and the last by less
    /// than an hour.
    windows: WindowsAnswer,
    /// The last attempt that was not accepted.
    last_error: Option<LastErrorAnswer>,
    breaker: BreakerAnswer,
    /// The stored secrets that the answering node cannot open: nothing leaves through the connection until the node has
    /// their key again, or they are set again.
    unavailable_secrets: Vec<String>,
    /// Endpoints that messages named and that the node that answers leaves alone for now, at most 20 and those for longest
    /// first. They name recipients: empty for a key without `messages:read`.
    endpoints: Vec<EndpointAnswer>,
}

/// An endpoint that is left alone.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EndpointLeftAlone)]
pub struct EndpointAnswer {
    /// Scheme, host and port.
    #[schema(example = "https://hooks.example.org:443")]
    origin: String,
    /// `circuit_open` or `rate_limited`.
    #[schema(value_type = String)]
    reason: SkipReason,
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
    /// Why its breaker is open.
    detail: Option<String>,
}

/// The provider that a connection is an account at.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderHealth {
    name: String,
    /// The version that serves; null: none does, and nothing leaves through the connection.
    version: Option<String>,
    /// Its versions that failed too often and were taken out of service.
    quarantined: Vec<QuarantineAnswer>,
}

/// A version that was taken out of service.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Quarantine)]
pub struct QuarantineAnswer {
    version: String,
    digest: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// The time until which it does not serve this tenant; null if it serves no tenant until an operator activates it
    /// again.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    reason: Option<String>,
}

/// The attempts of some time.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = HealthWindows)]
pub struct WindowsAnswer {
    #[serde(rename = "5m")]
    minutes: WindowAnswer,
    #[serde(rename = "1h")]
    hour: WindowAnswer,
    #[serde(rename = "24h")]
    day: WindowAnswer,
}

/// The attempts of some time.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = HealthWindow)]
pub struct WindowAnswer {
    attempts: i64,
    /// The accepted part of the attempts that say something about the connection; null if there were none. Failures of
    /// the message, its recipient, an endpoint that the message named, or the gateway are left out.
    success_rate: Option<f64>,
    latency_ms: Option<LatencyAnswer>,
}

/// An attempt that was not accepted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LastError)]
pub struct LastErrorAnswer {
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    #[schema(example = "dlv_0192f0c1a2b37c4d8e5f60718293a4b5")]
    delivery: String,
    /// Its number among the delivery's attempts.
    attempt: u32,
    #[schema(value_type = DispositionName)]
    disposition: Disposition,
    /// HTTP status or SMTP code.
    status: Option<i32>,
    code: Option<String>,
    unified_code: Option<String>,
    /// The provider's text, which may name the recipient: null for a key without `messages:read`, and once the
    /// message's content was purged.
    detail: Option<String>,
}

/// Show how each connection fares, the newest first.
#[utoipa::path(get, path = "/v1/health/providers", tag = "statistics", operation_id = "getProviderHealth",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 250, description = "50 by default."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page."),
    ),
    responses((status = 200, description = "A page.", body = Page<HealthAnswer>)))]
pub async fn providers(
    tenant: Tenant<ConnectionsRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<HealthAnswer>>, Problem> {
    let paging = Paging::<ConnectionId>::of(&mut query);
    query.finish()?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let page = connection_page(&mut txn, tenant.id, paging.after, paging.limit).await?;
    let connections = &page.rows;
    let ids: Vec<_> = connections.iter().map(|it| it.id).collect();
    let providers = providers_of(&mut txn, tenant.id, connections).await?;
    let mut windows = windows_of(window_list(&mut txn, tenant.id, &ids).await?);
    let failures = failure_list(&mut txn, tenant.id, &ids).await?;
    let mut failures: HashMap<_, _> = failures.into_iter().map(|it| (it.connection, it)).collect();
    let breakers = breaker_list(&mut txn, tenant.id, &ids).await?;
    let mut breakers: HashMap<_, _> = breakers.into_iter().map(|it| (it.connection, it.breaker)).collect();
    let config = app.tenant_configs.tenant(tenant.id).await?;
    let closed = |id| config.endpoints.get(&id).map_or_else(Vec::new, |it| it.secrets.closed().to_vec());
    let endpoints = |connection| {
        let known = tenant.reads_messages().then(|| app.guards.left_alone(tenant.id, connection));
        endpoints(known.unwrap_or_default())
    };
    let view = |connection: Connection| HealthAnswer {
        endpoints: endpoints(connection.id),
        connection: connection.id.to_string(),
        unavailable_secrets: closed(connection.id),
        provider: providers[&connection.provider].clone(),
        windows: windows.remove(&connection.id).unwrap_or_default(),
        last_error: failures
            .remove(&connection.id)
            .map(|failure| LastErrorAnswer::new(failure, tenant.reads_messages())),
        uid: connection.uid,
        enabled: connection.enabled,
        breaker: BreakerAnswer::new(breakers.remove(&connection.id), app.guards.sight(tenant.id, connection.id)),
    };
    Ok(Json(Page::of(page, |row| row.id.to_string(), view)))
}

/// The most endpoints that are listed as not asked.
const MOST_ENDPOINTS: usize = 20;

fn endpoints(left_alone: Vec<LeftAlone>) -> Vec<EndpointAnswer> {
    let (now, here) = (clock::now(), Instant::now());
    let answer = |it: LeftAlone| EndpointAnswer {
        origin: it.origin,
        reason: it.skip,
        until: now.checked_add(it.until.saturating_duration_since(here)).unwrap_or(Timestamp::MAX),
        detail: Some(it.detail).filter(|detail| !detail.is_empty()),
    };
    left_alone.into_iter().take(MOST_ENDPOINTS).map(answer).collect()
}

/// Each provider once, as it serves this tenant.
async fn providers_of(
    db: &mut Db,
    tenant: TenantId,
    connections: &[Connection],
) -> store::Result<HashMap<String, ProviderHealth>> {
    let mut providers = HashMap::new();
    let own = tenant_quarantine_list(db, Some(tenant)).await?;
    for Connection { provider: name, .. } in connections {
        if providers.contains_key(name) {
            continue;
        }
        let serving = provider_get(db, name).await?.and_then(|provider| serving(provider, &own));
        let versions = component_list(db, name).await?;
        let serving = versions.iter().find(|it| Some(&it.digest) == serving.as_ref());
        let health = ProviderHealth {
            name: name.clone(),
            version: serving.map(|it| it.descriptor.version.clone()),
            quarantined: versions.into_iter().filter_map(|version| quarantine(version, &own)).collect(),
        };
        providers.insert(name.clone(), health);
    }
    Ok(providers)
}

/// The digest of the version that serves a tenant with these quarantines.
fn serving(provider: StoredProvider, own: &[TenantQuarantine]) -> Option<String> {
    let kept = [Some(provider.active_digest?), provider.previous_digest];
    kept.into_iter().flatten().find(|digest| own.iter().all(|it| it.digest != *digest))
}

fn quarantine(component: StoredComponent, own: &[TenantQuarantine]) -> Option<QuarantineAnswer> {
    let of_tenant = own.iter().find(|it| it.digest == component.digest);
    Some(QuarantineAnswer {
        at: component.quarantined_at.or(of_tenant.map(|it| it.began_at))?,
        until: of_tenant.filter(|_| component.quarantined_at.is_none()).map(|it| it.until),
        reason: component.quarantine_reason.or(of_tenant.map(|it| it.reason.clone())),
        version: component.descriptor.version,
        digest: component.digest,
    })
}

fn windows_of(rows: Vec<(ConnectionId, StatisticsWindow, Figures)>) -> HashMap<ConnectionId, WindowsAnswer> {
    let mut windows: HashMap<ConnectionId, WindowsAnswer> = HashMap::new();
    for (connection, window, figures) in rows {
        let of_connection = windows.entry(connection).or_default();
        let place = match window {
            StatisticsWindow::FiveMinutes => &mut of_connection.minutes,
            StatisticsWindow::Hour => &mut of_connection.hour,
            StatisticsWindow::Day => &mut of_connection.day,
        };
        *place = WindowAnswer {
            attempts: figures.attempts,
            success_rate: figures.acceptance_rate(),
            latency_ms: LatencyAnswer::of(&figures.latency),
        };
    }
    windows
}

impl LastErrorAnswer {
    fn new(failure: FailureCount, with_detail: bool) -> Self {
        Self {
            at: failure.at,
            delivery: failure.delivery.to_string(),
            attempt: failure.number,
            disposition: failure.disposition,
            status: failure.status,
            code: failure.code,
            unified_code: failure.unified_code,
            detail: failure.detail.filter(|_| with_detail),
        }
    }
}
