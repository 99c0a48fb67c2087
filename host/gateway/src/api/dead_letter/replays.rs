//! `/v1/dead-letters/replays`: jobs that replay all dead letters that match.

use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    super::{
        App,
        auth::{MessagesRead, MessagesWrite, Tenant},
        draft::Draft,
        job::{self, JobAnswer, job_id},
        json::Json,
        page::{Page, PageParams},
        problem::{Problem, ProblemBody},
        request::{Query, UrlPath},
    },
    checked,
    filter::LetterFilter,
    may_name, reason,
};
use crate::app::jobs::{self, JobTask, WantedJob};
use angarium_domain::{dead_letter::certainly_unsent, job::JobAction};

/// The default rate of a replay.
const DEFAULT_RATE: u32 = 50;
const REPLAYS: Option<JobAction> = Some(JobAction::Replay);

/// The dead letters to replay, and the rate.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"filter": {"connection": "primary-smtp"}, "rate_per_second": 20, "reason": "it is back"}))]
pub struct NewReplay {
    /// An empty one means all of them, but those that are `unknown`.
    filter: LetterFilter,
    /// How many become due in a second at most; 50, if left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    rate_per_second: Option<u32>,
    /// The most deliveries, the oldest first.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    limit: Option<i64>,
    /// The reason; the audit has it, with the key.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 500)]
    reason: Option<String>,
}

/// Replay all dead letters that match, at a limited rate.
///
/// The oldest first, each once. It goes on whichever node ends meanwhile; `GET` shows how far it is.
#[utoipa::path(post, path = "/v1/dead-letters/replays", tag = "dead-letters", operation_id = "startReplay",
    request_body = NewReplay,
    responses((status = 202, description = "It has begun.", body = JobAnswer)))]
pub async fn start(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    Draft(new, mut fields): Draft<NewReplay>,
) -> Result<(StatusCode, Json<JobAnswer>), Problem> {
    reason(&mut fields, new.reason.as_deref());
    may_name(&tenant, &new.filter)?;
    let filter = checked(&app, tenant.id, new.filter, certainly_unsent(), fields).await?;
    let wanted = WantedJob {
        task: JobTask::Replay(filter),
        rate_per_second: new.rate_per_second.or(Some(DEFAULT_RATE)),
        most: new.limit,
        reason: new.reason,
    };
    let report = jobs::start(&app, &tenant.principal(), wanted).await?;
    Ok((StatusCode::ACCEPTED, Json(report.into())))
}

/// List replays, the newest first.
#[utoipa::path(get, path = "/v1/dead-letters/replays", tag = "dead-letters", operation_id = "listReplays",
    params(PageParams),
    responses((status = 200, description = "A page.", body = Page<JobAnswer>)))]
pub async fn list(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    query: Query,
) -> Result<Json<Page<JobAnswer>>, Problem> {
    job::page(&app, tenant.id, query, REPLAYS).await
}

/// Show how far a replay is.
#[utoipa::path(get, path = "/v1/dead-letters/replays/{id}", tag = "dead-letters", operation_id = "getReplay",
    params(("id" = String, Path, description = "`job_…`")),
    responses((status = 200, description = "The replay.", body = JobAnswer)))]
pub async fn get(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<JobAnswer>, Problem> {
    Ok(Json(jobs::get(&app, tenant.id, REPLAYS, job_id(&id)?).await?.into()))
}

/// Stop a replay; deliveries that it has opened stay open.
#[utoipa::path(post, path = "/v1/dead-letters/replays/{id}/cancel", tag = "dead-letters", operation_id = "cancelReplay",
    params(("id" = String, Path, description = "`job_…`")),
    responses(
        (status = 200, description = "It has stopped.", body = JobAnswer),
        (status = 409, description = "It has ended.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn cancel(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<JobAnswer>, Problem> {
    let report = jobs::cancel(&app, &tenant.principal(), REPLAYS, job_id(&id)?).await?;
    Ok(Json(JobAnswer::from(report).shown_to(&tenant)))
}
