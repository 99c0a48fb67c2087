//! `/v1/message-jobs`: actions on many messages at once.

use std::collections::BTreeSet;

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
    dead_letter::MOST_REASON,
    draft::Draft,
    fields::{Fields, plain},
    json::Json,
    message::filter::Filter,
    page::{Page, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::app::{
    message_jobs::{self, MessageJob, WantedJob},
    messages::MessageFilter,
};
use angarium_domain::{
    ids::{JobId, MessageId},
    job::{JobAction, UnknownResolution},
    key::Scope,
};

/// The most messages that a job lists.
const MOST_LISTED: usize = 1000;

/// An action on the messages that match a filter, or on those that are listed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"action": "cancel", "filter": {"state": "scheduled", "reference": "campaign-7"}, "reason": "the offer has ended"}))]
pub struct NewMessageJob {
    action: JobAction,
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
    /// The reason; the audit has it, with the key.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// A job on messages, and its progress.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MessageJob)]
pub struct MessageJobAnswer {
    #[schema(example = "job_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    action: JobAction,
    /// `running`, `finished` or `canceled`.
    #[schema(example = "running")]
    state: &'static str,
    resolution: Option<UnknownResolution>,
    reason: String,
    /// How many messages matched when it was asked for.
    matched: i64,
    /// How many messages it has acted on, each once.
    done: i64,
    /// How many messages it left alone, because their state did not allow the action.
    skipped: i64,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
}

/// The answer to a dry run.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageJobPreview {
    /// How many messages match now.
    matched: i64,
}

/// Act on many messages: cancel, retry or resolve them.
///
/// The job goes through the messages from the newest on, each once, on whichever node runs; messages that are accepted
/// later are not met. With `dry_run` nothing begins: the answer counts the messages that match.
#[utoipa::path(post, path = "/v1/message-jobs", tag = "messages", operation_id = "startMessageJob",
    params(("dry_run" = Option<bool>, Query, description = "Count the messages that match, and begin nothing.")),
    request_body = NewMessageJob,
    responses(
        (status = 202, description = "The job has begun.", body = MessageJobAnswer),
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
    let resolves = new.action == JobAction::Resolve;
    fields.check(new.resolution.is_some() == resolves, "resolution", "contradiction", || {
        "must be given with the action `resolve`, and is only allowed with it".to_owned()
    });
    let NewMessageJob { action, filter, messages, resolution, reason } = new;
    if filter.as_ref().is_some_and(Filter::tells_content) && !tenant.reads_messages() {
        return Err(Problem::forbidden(Scope::MessagesRead.as_str()));
    }
    let filter = match (filter, messages) {
        (Some(filter), None) => {
            fields.check(!filter.is_empty(), "filter", "empty", || "must have at least one member".to_owned());
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
    if dry_run {
        let matched = message_jobs::count(&app, tenant.id, &filter).await?;
        return Ok(Json(MessageJobPreview { matched }).into_response());
    }
    let wanted = WantedJob { action, filter, resolution, reason };
    let job = message_jobs::start(&app, &tenant.principal(), wanted).await?;
    Ok((StatusCode::ACCEPTED, Json(MessageJobAnswer::from(job))).into_response())
}

/// List jobs on messages, the newest first.
#[utoipa::path(get, path = "/v1/message-jobs", tag = "messages", operation_id = "listMessageJobs",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 250, description = "50 by default."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page."),
    ),
    responses((status = 200, description = "A page.", body = Page<MessageJobAnswer>)))]
pub async fn list(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<MessageJobAnswer>>, Problem> {
    let paging = Paging::<JobId>::of(&mut query);
    query.finish()?;
    let page = message_jobs::list(&app, tenant.id, paging.after, paging.limit).await?;
    Ok(Json(Page::of(page, |job| job.id.to_string(), MessageJobAnswer::from)))
}

/// Show the progress of a job on messages.
#[utoipa::path(get, path = "/v1/message-jobs/{id}", tag = "messages", operation_id = "getMessageJob",
    params(("id" = String, Path, description = "`job_…`")),
    responses((status = 200, description = "The job.", body = MessageJobAnswer)))]
pub async fn get(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<MessageJobAnswer>, Problem> {
    Ok(Json(message_jobs::get(&app, tenant.id, job_id(&id)?).await?.into()))
}

/// Stop a job on messages; its actions so far stay.
#[utoipa::path(post, path = "/v1/message-jobs/{id}/cancel", tag = "messages", operation_id = "cancelMessageJob",
    params(("id" = String, Path, description = "`job_…`")),
    responses(
        (status = 200, description = "It has stopped.", body = MessageJobAnswer),
        (status = 409, description = "It has ended.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn cancel(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<MessageJobAnswer>, Problem> {
    Ok(Json(message_jobs::cancel(&app, &tenant.principal(), job_id(&id)?).await?.into()))
}

fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| Problem::not_found("job"))
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

impl From<MessageJob> for MessageJobAnswer {
    fn from(job: MessageJob) -> Self {
        Self {
            id: job.id.to_string(),
            action: job.action,
            state: job.state.as_str(),
            resolution: job.resolution,
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
