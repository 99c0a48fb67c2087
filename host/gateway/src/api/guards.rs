//! A connection's guards in the API: its settings, and its circuit breaker by hand.

use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{ConnectionsWrite, Tenant},
    draft::Draft,
    fields,
    json::Json,
    problem::Problem,
    request::UrlPath,
};
use crate::{
    app::breakers::{self, BreakerView},
    engine::guards::Sight,
};
use angarium_domain::breaker::{Breaker, Cause, Phase};

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
    state: Phase,
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

impl BreakerAnswer {
    pub fn new(breaker: Option<Breaker>, sight: Option<Sight>) -> Self {
        let tally = sight.map(|sight| sight.tally).unwrap_or_default();
        let (failure_rate, consecutive_failures) = (tally.failure_rate(), tally.consecutive);
        let Some(breaker) = breaker else {
            let (since, opened_until, cause, detail) = (None, None, None, None);
            let state = Phase::Closed;
            return Self { state, since, opened_until, cause, detail, failure_rate, consecutive_failures };
        };
        Self {
            state: breaker.phase,
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
    responses((status = 200, description = "The present state.", body = BreakerAnswer)))]
pub async fn set_breaker(
    tenant: Tenant<ConnectionsWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(action, mut fields): Draft<BreakerAction>,
) -> Result<Json<BreakerAnswer>, Problem> {
    if let Some(reason) = &action.reason {
        fields::plain(&mut fields, "reason", reason, 256);
    }
    fields.finish()?;
    let open = matches!(action.action, ByHand::Open);
    let view = breakers::set(&app, &tenant.principal(), &name, open, action.reason).await?;
    let BreakerView { breaker, sight } = view;
    Ok(Json(BreakerAnswer::new(breaker, sight)))
}
