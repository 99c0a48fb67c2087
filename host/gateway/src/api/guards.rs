//! A connection's guards in the API: its settings, and its circuit breaker by hand.

use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{ConnectionsWrite, Tenant},
    connection::named,
    draft::Draft,
    fields::{self, Fields},
    json::Json,
    problem::Problem,
    request::UrlPath,
};
use crate::engine::guards::{Sight, breaker_take, look};
use angarium_domain::{
    breaker::{Breaker, BreakerStep, Cause, Phase},
    guards as domain,
    ids::{ConnectionId, TenantId},
};
use angarium_store::{Connection as Db, StoreError};

/// The limits on asking a connection.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Guards {
    /// Members that are left out have their defaults.
    #[serde(default)]
    breaker: Option<BreakerPolicy>,
    /// Left out: as fast as it goes.
    #[serde(default)]
    rate_limit: Option<RateLimit>,
}

/// When a connection is no longer asked, and how it is found to work again.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakerPolicy {
    /// True, if left out. Without it only a person opens the breaker.
    #[serde(default)]
    enabled: Option<bool>,
    /// How far back answers count for the failure rate; 60000, if left out.
    #[serde(default)]
    #[schema(minimum = 1000, maximum = 3_600_000)]
    window_ms: Option<u64>,
    /// Fewer answers than these have no failure rate; 20, if left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 100_000)]
    min_requests: Option<u32>,
    /// At such a part of failures it opens; 0.5, if left out.
    #[serde(default)]
    #[schema(minimum = 0.01, maximum = 1)]
    failure_rate: Option<f64>,
    /// After so many failures, one upon the other, it opens; 20, if left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 100_000)]
    consecutive_failures: Option<u32>,
    /// How long it stays open, twice as long each time that its probes fail; 30000, if left out.
    #[serde(default)]
    #[schema(minimum = 100, maximum = 3_600_000)]
    open_ms: Option<u64>,
    /// How many deliveries try it afterwards, by all nodes together: when all of them go well it closes. 3, if left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 100)]
    probes: Option<u32>,
}

/// How often a connection is asked, by all nodes together.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    #[schema(minimum = 0.001, maximum = 100_000, example = 10)]
    per_second: f64,
    /// How many at once after a pause; left out, as many as in a second.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 100_000)]
    burst: Option<u32>,
}

impl Guards {
    /// Returns the guards, and reports each invalid field.
    pub fn checked(self, fields: &mut Fields) -> domain::Guards {
        let breaker = self.breaker.unwrap_or_default().filled();
        let rate_limit = self.rate_limit.map(|limit| {
            let whole = domain::RateLimit::per_second(limit.per_second);
            domain::RateLimit { burst: limit.burst.unwrap_or(whole.burst), ..whole }
        });
        fields.within("guards", |fields| {
            fields.within("breaker", |fields| out_of_range(fields, &breaker.problems()));
            fields.within("rate_limit", |fields| out_of_range(fields, &rate_limit.map_or(vec![], |it| it.problems())));
        });
        domain::Guards { breaker, rate_limit }
    }
}

fn out_of_range(fields: &mut Fields, problems: &[(&str, &str)]) {
    for (field, remedy) in problems {
        fields.check(false, field, "out_of_range", || format!("must be {remedy}"));
    }
}

impl BreakerPolicy {
    fn filled(self) -> domain::BreakerPolicy {
        let default = domain::BreakerPolicy::default();
        domain::BreakerPolicy {
            enabled: self.enabled.unwrap_or(default.enabled),
            window_ms: self.window_ms.unwrap_or(default.window_ms),
            min_requests: self.min_requests.unwrap_or(default.min_requests),
            failure_rate: self.failure_rate.unwrap_or(default.failure_rate),
            consecutive_failures: self.consecutive_failures.unwrap_or(default.consecutive_failures),
            open_ms: self.open_ms.unwrap_or(default.open_ms),
            probes: self.probes.unwrap_or(default.probes),
        }
    }
}

impl From<domain::Guards> for Guards {
    fn from(guards: domain::Guards) -> Self {
        let breaker = guards.breaker;
        Self {
            breaker: Some(BreakerPolicy {
                enabled: Some(breaker.enabled),
                window_ms: Some(breaker.window_ms),
                min_requests: Some(breaker.min_requests),
                failure_rate: Some(breaker.failure_rate),
                consecutive_failures: Some(breaker.consecutive_failures),
                open_ms: Some(breaker.open_ms),
                probes: Some(breaker.probes),
            }),
            rate_limit: guards
                .rate_limit
                .map(|limit| RateLimit { per_second: limit.per_second, burst: Some(limit.burst) }),
        }
    }
}

/// An action of a person on a circuit breaker.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"action": "open", "reason": "the service is moved tonight"}))]
pub struct BreakerAction {
    action: ByHand,
    /// A text for people; the event carries it.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 256)]
    reason: Option<String>,
}

/// The action.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ByHand {
    /// Nothing goes through it until it is closed.
    Open,
    /// All goes through it again.
    Close,
}

/// A circuit breaker.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Breaker)]
pub struct BreakerAnswer {
    state: BreakerState,
    /// Null: it has never opened.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// While it is open: when it is tried again. Null: when a person closes it.
    #[schema(value_type = Option<String>, format = DateTime)]
    opened_until: Option<Timestamp>,
    /// While it is not closed, why: `consecutive_failures`, `failure_rate`, `auth_failed`, `probe_failed` or `manual`.
    cause: Option<&'static str>,
    /// The same in words.
    detail: Option<String>,
    /// The observations of the answering node within the breaker's window; null if it has none.
    failure_rate: Option<f64>,
    /// The failures that the node that answers has seen since the last success.
    consecutive_failures: u32,
}

/// The state of a circuit breaker.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// All goes through.
    Closed,
    /// Nothing does.
    Open,
    /// A few deliveries try it.
    HalfOpen,
}

impl BreakerAnswer {
    pub fn new(breaker: Option<Breaker>, sight: Option<Sight>) -> Self {
        let tally = sight.map(|sight| sight.tally).unwrap_or_default();
        let (failure_rate, consecutive_failures) = (tally.failure_rate(), tally.consecutive);
        let Some(breaker) = breaker else {
            let (since, opened_until, cause, detail) = (None, None, None, None);
            let state = BreakerState::Closed;
            return Self { state, since, opened_until, cause, detail, failure_rate, consecutive_failures };
        };
        Self {
            state: match breaker.phase {
                Phase::Closed => BreakerState::Closed,
                Phase::Open => BreakerState::Open,
                Phase::HalfOpen => BreakerState::HalfOpen,
            },
            since: (breaker.epoch > 0).then_some(breaker.since),
            opened_until: breaker.opened_until,
            cause: breaker.cause.map(Cause::as_str),
            detail: Some(breaker.detail).filter(|detail| !detail.is_empty()),
            failure_rate,
            consecutive_failures,
        }
    }
}

/// Open or close a connection's circuit breaker by hand.
///
/// A breaker that a person opens stays open until a person closes it.
#[utoipa::path(post, path = "/v1/connections/{connection}/breaker", tag = "connections", operation_id = "setBreaker",
    params(("connection" = String, Path, description = "`conn_…` or its uid")),
    request_body = BreakerAction,
    responses((status = 200, description = "As it is now.", body = BreakerAnswer)))]
pub async fn set_breaker(
    tenant: Tenant<ConnectionsWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(action, mut fields): Draft<BreakerAction>,
) -> Result<Json<BreakerAnswer>, Problem> {
    if let Some(reason) = &action.reason {
        fields::plain(&mut fields, "reason", reason, 256);
    }
    if let Some(problem) = fields.into_problem() {
        return Err(problem);
    }
    let mut txn = app.store.tenant(tenant.id).await?;
    let connection = named(&mut txn, tenant.id, &name).await?;
    let open = matches!(action.action, ByHand::Open);
    let reason = action.reason.unwrap_or_else(|| "by hand".to_owned());
    let step = BreakerStep::ByHand { open, reason };
    let (stored, _) = breaker_take(&mut txn, tenant.id, connection.id, step, &connection.guards.breaker).await?;
    txn.commit().await.map_err(StoreError::from)?;
    // Deliveries sent after the answer must see the change: one that was refused meanwhile would wait long for nothing.
    if let Err(error) = look(&app.store, &app.guards).await {
        tracing::warn!(connection.id = %connection.id, %error, "this node learns of a changed circuit breaker later");
    }
    announce(&app, connection.id).await;
    let sight = app.guards.sight(tenant.id, connection.id);
    Ok(Json(BreakerAnswer::new(Some(stored.breaker), sight)))
}

/// The secret of a connection was replaced: one that was open since it was refused is tried at once.
pub async fn mended(
    db: &mut Db,
    tenant: TenantId,
    connection: ConnectionId,
    policy: &domain::BreakerPolicy,
) -> Result<(), Problem> {
    breaker_take(db, tenant, connection, BreakerStep::Mended, policy).await?;
    Ok(())
}

/// Tells all nodes to look; they do so each second anyway.
pub async fn announce(app: &App, connection: ConnectionId) {
    if let Err(error) = app.store.announce_breaker(connection).await {
        tracing::warn!(connection.id = %connection, %error, "a change of a circuit breaker is not announced");
    }
}
