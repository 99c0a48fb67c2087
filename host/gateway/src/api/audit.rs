//! `/v1/audit`: changes of a tenant's messages, dead letters and rules, with author and reason. `/v1/operator/audit`:
//! changes of providers, which serve all tenants.

use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    App,
    auth::{AuditRead, Operator, Tenant},
    json::Json,
    page::{Page, PageParams, Paging},
    problem::Problem,
    request::{Query, short_text},
};
use crate::app::{
    PageRows,
    audit::{self, AuditFilter, AuditView},
};
use angarium_domain::{
    audit::{Action, InvalidAction},
    ids::AuditId,
};

/// An action of a key or a part of the gateway.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditRecord)]
pub struct AuditAnswer {
    #[schema(example = "aud_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    actor: ActorAnswer,
    #[schema(example = "message.resolved")]
    action: String,
    /// The id of the changed thing; empty if the action concerned all that match.
    subject: String,
    /// The previous value, as far as it changed.
    #[schema(value_type = Option<Object>)]
    before: Option<Box<RawValue>>,
    /// The new value.
    #[schema(value_type = Option<Object>)]
    after: Option<Box<RawValue>>,
    reason: Option<String>,
    /// The request, as its answer's `X-Request-Id` named it.
    request_id: Option<String>,
}

/// The author of a change.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Actor)]
pub struct ActorAnswer {
    /// `api_key`, `user`, `job`, `command_line` or `gateway`.
    #[schema(example = "api_key")]
    kind: String,
    /// The id of the key, user or job; null for a command line and for the gateway.
    #[schema(example = "key_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: Option<String>,
    /// The name then: of the key, of the operating system's user, of the part of the gateway.
    name: String,
}

impl From<AuditView> for AuditAnswer {
    fn from(view: AuditView) -> Self {
        Self {
            id: view.id.to_string(),
            at: view.at,
            actor: ActorAnswer { kind: view.actor_kind, id: view.actor_id, name: view.actor_name },
            action: view.action,
            subject: view.subject,
            before: view.before,
            after: view.after,
            reason: view.reason,
            request_id: view.request,
        }
    }
}

/// List audit entries, the newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", operation_id = "listAudit",
    params(
        PageParams,
        ("subject" = Option<String>, Query, description = "Only entries about this subject: `msg_…`, `dlv_…`, `job_…`."),
        ("action" = Option<String>, Query, description = "Only this action, such as `message.resolved`."),
    ),
    responses((status = 200, description = "A page.", body = Page<AuditAnswer>)))]
pub async fn list(
    tenant: Tenant<AuditRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<AuditAnswer>>, Problem> {
    let (paging, filter) = asked(&mut query);
    query.finish()?;
    Ok(Json(page(audit::list(&app, tenant.id, &filter, paging.after, paging.limit).await?)))
}

/// List audit entries about providers, the newest first.
#[utoipa::path(get, path = "/v1/operator/audit", tag = "audit", operation_id = "listOperatorAudit",
    params(
        PageParams,
        ("subject" = Option<String>, Query, description = "Only entries about this subject: a provider's name."),
        ("action" = Option<String>, Query, description = "Only this action, such as `provider.activated`."),
    ),
    responses((status = 200, description = "A page.", body = Page<AuditAnswer>)))]
pub async fn list_of_operators(
    _: Tenant<Operator>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<AuditAnswer>>, Problem> {
    let (paging, filter) = asked(&mut query);
    query.finish()?;
    Ok(Json(page(audit::list_of_operators(&app, &filter, paging.after, paging.limit).await?)))
}

fn asked(query: &mut Query) -> (Paging<AuditId>, AuditFilter) {
    let paging = Paging::of(query);
    let filter = AuditFilter {
        subject: query.take("subject", short_text),
        action: query.take("action", |text| text.parse::<Action>().map_err(|error: InvalidAction| error.to_string())),
    };
    (paging, filter)
}

fn page(rows: PageRows<AuditView>) -> Page<AuditAnswer> {
    Page::of(rows, |row| row.id.to_string(), AuditAnswer::from)
}
