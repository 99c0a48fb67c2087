//! `/v1/health/providers`: how a tenant's connections fare.

use std::time::Instant;

use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    auth::{ConnectionsRead, Tenant},
    guards::BreakerAnswer,
    json::Json,
    page::{Page, PageParams, Paging},
    problem::Problem,
    request::Query,
    statistics::LatencyAnswer,
};
use crate::{
    app::health::{self, ConnectionHealth, LastFailure, ProviderState, QuarantinedVersion},
    clock,
    engine::guards::LeftAlone,
};
use angarium_domain::{
    ids::ConnectionId,
    provider::Disposition,
    routing::SkipReason,
    statistics::{Figures, StatisticsWindow},
};

/// How a connection fares.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConnectionHealth)]
pub struct HealthAnswer {
    #[schema(example = "conn_0192f0c1a2b37c4d8e5f60718293a4b5")]
    connection: String,
    uid: Option<String>,
    enabled: bool,
    provider: ProviderHealthAnswer,
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
#[schema(as = ProviderHealth)]
pub struct ProviderHealthAnswer {
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
    params(PageParams),
    responses((status = 200, description = "A page.", body = Page<HealthAnswer>)))]
pub async fn providers(
    tenant: Tenant<ConnectionsRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<HealthAnswer>>, Problem> {
    let paging = Paging::<ConnectionId>::of(&mut query);
    query.finish()?;
    let page = health::list(&app, tenant.id, paging.after, paging.limit).await?;
    let view = |health| HealthAnswer::new(health, tenant.reads_messages());
    Ok(Json(Page::of(page, |row| row.connection.id.to_string(), view)))
}

impl HealthAnswer {
    fn new(health: ConnectionHealth, reads_messages: bool) -> Self {
        let ConnectionHealth { connection, sight, .. } = health;
        Self {
            connection: connection.id.to_string(),
            uid: connection.uid,
            enabled: connection.enabled,
            provider: health.provider.into(),
            windows: windows_of(health.windows),
            last_error: health.failure.map(|failure| LastErrorAnswer::new(failure, reads_messages)),
            breaker: BreakerAnswer::new(health.breaker, sight),
            unavailable_secrets: health.unavailable_secrets,
            endpoints: endpoints(if reads_messages { health.left_alone } else { Vec::new() }),
        }
    }
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

impl From<ProviderState> for ProviderHealthAnswer {
    fn from(state: ProviderState) -> Self {
        let quarantined = state.quarantined.into_iter().map(QuarantineAnswer::from).collect();
        Self { name: state.name, version: state.version, quarantined }
    }
}

impl From<QuarantinedVersion> for QuarantineAnswer {
    fn from(found: QuarantinedVersion) -> Self {
        let QuarantinedVersion { version, digest, at, until, reason } = found;
        Self { version, digest, at, until, reason }
    }
}

fn windows_of(figures: Vec<(StatisticsWindow, Figures)>) -> WindowsAnswer {
    let mut windows = WindowsAnswer::default();
    for (window, figures) in figures {
        let place = match window {
            StatisticsWindow::FiveMinutes => &mut windows.minutes,
            StatisticsWindow::Hour => &mut windows.hour,
            StatisticsWindow::Day => &mut windows.day,
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
    fn new(failure: LastFailure, with_detail: bool) -> Self {
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
