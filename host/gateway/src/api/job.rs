//! `/v1/message-jobs`: work on many messages or dead letters that goes on after its request.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{MessagesRead, MessagesWrite, Tenant},
    dead_letter::{LetterFilter, MOST_REASON},
    draft::Draft,
    fields::{Fields, plain},
    json::Json,
    message::filter::Filter,
    page::{Page, PageParams, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::app::{
    jobs::{self, Job, JobReport, JobTask, WantedJob},
    messages::MessageFilter,
};
use angarium_domain::{
    delivery::DeliveryState,
    ids::{JobId, MessageId, TenantId},
    job::{JobAction, UnknownResolution},
    key::Scope,
};

/// The most messages that a job lists.
const MOST_LISTED: usize = 1000;

/// The action of a job on messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageJobAction {
    /// Ends messages that have not begun to leave.
    Cancel,
    /// Opens ended messages for another attempt.
    Retry,
    /// Decides about unknown messages.
    Resolve,
}

/// An action on the messages that match a filter, or on those that are listed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"action": "cancel", "filter": {"state": "scheduled", "reference": "campaign-7"}, "reason": "the offer has ended"}))]
pub struct NewMessageJob {
    action: MessageJobAction,
    /// With at least one member; not together with `messages`.
    #[serde(default)]
    filter: Option<Filter>,
    /// Ids of messages; not together with `filter`.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 1000)]
    messages: Option<Vec<String>>,
    /// The decision about unknown messages; with `resolve` alone.
    #[serde(default)]
    resolution: Option<UnknownResolution>,
    /// How many messages it acts on in a second at most; left out, as many as it can.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    rate_per_second: Option<u32>,
    /// The most messages that it acts on, the oldest first.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    limit: Option<i64>,
    /// The reason; the audit has it, with the key.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// A job, and its progress.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobAnswer {
    #[schema(example = "job_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    action: JobAction,
    /// `running`, `finished` or `canceled`.
    #[schema(example = "running")]
    state: &'static str,
    /// What it acts on; null where it lists `messages`, and to a key that may not read messages. Its `until` is the time
    /// of the request at the latest: what fails again is not met again.
    filter: Option<JobFilter>,
    /// The messages that it lists; null where it has a filter, and to a key that may not read messages.
    messages: Option<Vec<String>>,
    resolution: Option<UnknownResolution>,
    /// Null: as many as it can.
    rate_per_second: Option<u32>,
    limit: Option<i64>,
    reason: Option<String>,
    /// How many messages or dead letters matched when it was asked for.
    matched: i64,
    /// How many it has acted on, each once.
    done: i64,
    /// How many it left alone, because their state did not allow the action.
    skipped: i64,
    /// The present states of the deliveries that a replay opened and that were not opened again since; null for an
    /// action on messages.
    #[schema(example = json!({"sent": 940, "queued": 3}))]
    outcomes: Option<BTreeMap<String, i64>>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
}

/// The filter of a job: of messages, or of the dead letters of a replay.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum JobFilter {
    Messages(Filter),
    DeadLetters(LetterFilter),
}

/// The answer to a dry run.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageJobPreview {
    /// How many messages match now.
    matched: i64,
}

/// Act on many messages: cancel, retry or resolve them.
///
/// The job goes through the messages from the oldest on, each once, on whichever node runs; messages that are accepted
/// later are not met. With `dry_run` nothing begins: the answer counts the messages that match.
#[utoipa::path(post, path = "/v1/message-jobs", tag = "messages", operation_id = "startMessageJob",
    params(("dry_run" = Option<bool>, Query, description = "Count the messages that match, and begin nothing.")),
    request_body = NewMessageJob,
    responses(
        (status = 202, description = "The job has begun.", body = JobAnswer),
        (status = 200, description = "A dry run: the count.", body = MessageJobPreview),
    ))]
pub async fn start(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    mut query: Query,
    draft: Result<Draft<NewMessageJob>, Problem>,
) -> Result<Response, Problem> {
    let dry_run = query.flag("dry_run");
    query.finish()?;
    let Draft(new, mut fields) = draft?;
    plain(&mut fields, "reason", &new.reason, MOST_REASON);
    let resolves = new.action == MessageJobAction::Resolve;
    fields.check(new.resolution.is_some() == resolves, "resolution", "contradiction", || {
        "must be given with the action `resolve`, and is only allowed with it".to_owned()
    });
    let NewMessageJob { action, filter, messages, resolution, rate_per_second, limit, reason } = new;
    if filter.as_ref().is_some_and(Filter::tells_content) && !tenant.reads_messages() {
        return Err(Problem::forbidden(Scope::MessagesRead.as_str()));
    }
    let filter = match (filter, messages) {
        (Some(filter), None) => {
            fields.check(!filter.is_empty(), "filter", "empty", || "must have at least one member".to_owned());
            check_state(action, filter.state(), &mut fields);
            let filter = filter.into_domain(&app, tenant.id).await?;
            for problem in filter.as_ref().err().into_iter().flatten() {
                fields.elsewhere(format!("/filter{}", problem.pointer), &problem.code, problem.detail.clone());
            }
            filter.unwrap_or_default()
        }
        (None, Some(messages)) => MessageFilter { ids: ids(&messages, &mut fields), ..MessageFilter::default() },
        _ => {
            fields.check(false, "filter", "contradiction", || {
                "must be given where `messages` is not, and is not allowed together with it".to_owned()
            });
            MessageFilter::default()
        }
    };
    fields.finish()?;
    let task = match (action, resolution) {
        (MessageJobAction::Cancel, _) => JobTask::Cancel(filter),
        (MessageJobAction::Retry, _) => JobTask::Retry(filter),
        (MessageJobAction::Resolve, resolution) => {
            JobTask::Resolve(filter, resolution.unwrap_or(UnknownResolution::Failed))
        }
    };
    if dry_run {
        let matched = jobs::count(&app, tenant.id, &task).await?;
        return Ok(Json(MessageJobPreview { matched }).into_response());
    }
    let wanted = WantedJob { task, rate_per_second, most: limit, reason: Some(reason) };
    let report = jobs::start(&app, &tenant.principal(), wanted).await?;
    Ok((StatusCode::ACCEPTED, Json(JobAnswer::from(report))).into_response())
}

/// List jobs, the newest first: actions on messages, and replays of dead letters.
#[utoipa::path(get, path = "/v1/message-jobs", tag = "messages", operation_id = "listMessageJobs",
    params(PageParams),
    responses((status = 200, description = "A page.", body = Page<JobAnswer>)))]
pub async fn list(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    query: Query,
) -> Result<Json<Page<JobAnswer>>, Problem> {
    page(&app, tenant.id, query, None).await
}

/// Returns the page of jobs that a query asks for; with an `action`, of the jobs with that one.
pub async fn page(
    app: &App,
    tenant: TenantId,
    mut query: Query,
    action: Option<JobAction>,
) -> Result<Json<Page<JobAnswer>>, Problem> {
    let paging = Paging::<JobId>::of(&mut query);
    query.finish()?;
    let page = jobs::list(app, tenant, action, paging.after, paging.limit).await?;
    Ok(Json(Page::of(page, |report| report.job.id.to_string(), JobAnswer::from)))
}

/// Show the progress of a job.
#[utoipa::path(get, path = "/v1/message-jobs/{id}", tag = "messages", operation_id = "getMessageJob",
    params(("id" = String, Path, description = "`job_…`")),
    responses((status = 200, description = "The job.", body = JobAnswer)))]
pub async fn get(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<JobAnswer>, Problem> {
    Ok(Json(jobs::get(&app, tenant.id, None, job_id(&id)?).await?.into()))
}

/// Stop a job; its actions so far stay.
#[utoipa::path(post, path = "/v1/message-jobs/{id}/cancel", tag = "messages", operation_id = "cancelMessageJob",
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
    let report = jobs::cancel(&app, &tenant.principal(), None, job_id(&id)?).await?;
    Ok(Json(JobAnswer::from(report).shown_to(&tenant)))
}

/// Reads a job's id from a path.
pub fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| Problem::not_found("job"))
}

/// Refuses a state in which no message allows the action: the job would only skip.
fn check_state(action: MessageJobAction, state: Option<DeliveryState>, fields: &mut Fields) {
    let Some(state) = state else { return };
    let action = JobAction::from(action);
    fields.within("filter", |fields| {
        fields.check(action.may_take(state), "state", "contradiction", || {
            format!(
                "must be a state in which a message allows the action `{}` (got `{}`)",
                action.as_str(),
                state.as_str()
            )
        });
    });
}

fn ids(messages: &[String], fields: &mut Fields) -> Vec<MessageId> {
    let fits = (1..=MOST_LISTED).contains(&messages.len());
    fields.check(fits, "messages", "out_of_range", || {
        format!("must list 1 to {MOST_LISTED} messages (got {})", messages.len())
    });
    let mut ids = BTreeSet::new();
    for (place, text) in messages.iter().enumerate() {
        match text.parse() {
            Ok(id) => drop(ids.insert(id)),
            Err(_) => fields.elsewhere(
                format!("/messages/{place}"),
                "wrong_format",
                "must be the id of a message, `msg_…`".to_owned(),
            ),
        }
    }
    ids.into_iter().collect()
}

impl From<MessageJobAction> for JobAction {
    fn from(action: MessageJobAction) -> Self {
        match action {
            MessageJobAction::Cancel => Self::Cancel,
            MessageJobAction::Retry => Self::Retry,
            MessageJobAction::Resolve => Self::Resolve,
        }
    }
}

impl JobAnswer {
    /// Returns the part of it that may be shown to a key that stopped the job.
    #[must_use]
    pub fn shown_to<P>(self, tenant: &Tenant<P>) -> Self {
        if tenant.reads_messages() { self } else { Self { filter: None, messages: None, ..self } }
    }
}

impl From<JobReport> for JobAnswer {
    fn from(JobReport { job, outcomes }: JobReport) -> Self {
        let Job { task, .. } = job;
        let (action, resolution) = (task.action(), task.resolution());
        let (filter, messages) = match task {
            JobTask::Replay(filter) => (Some(JobFilter::DeadLetters(filter.into())), None),
            JobTask::Cancel(filter) | JobTask::Retry(filter) | JobTask::Resolve(filter, _) => {
                match filter.ids.as_slice() {
                    [] => (Some(JobFilter::Messages(filter.into())), None),
                    ids => (None, Some(ids.iter().map(ToString::to_string).collect())),
                }
            }
        };
        Self {
            id: job.id.to_string(),
            action,
            state: job.state.as_str(),
            outcomes: (action == JobAction::Replay).then_some(outcomes),
            filter,
            messages,
            resolution,
            rate_per_second: job.rate_per_second,
            limit: job.most,
            reason: job.reason,
            matched: job.matched,
            done: job.done,
            skipped: job.skipped,
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }
}
