//! `/v1/messages`

mod channels;
pub mod content;
pub mod filter;
mod fingerprint;
mod new;
mod view;

use std::iter;

use axum::{
    extract::{FromRequestParts, State},
    http::{HeaderName, HeaderValue, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    App, HttpState,
    auth::{MessagesRead, MessagesWrite, Tenant},
    draft::{self, Draft},
    json::{Json, read_apart},
    page::{Page, PageParams, Paging},
    problem::{FieldProblem, Problem, ProblemBody},
    request::{Query, RequestId, Trace, UrlPath},
};
use crate::{
    app::message_actions::{MessageActions, Reschedule},
    app::messages::{self, MessageDecisions},
    app::sending::{self, AdmitError, Admitted, LegPreview, Planned, Preview, PreviewRequest},
};
use angarium_domain::{ids::MessageId, legs::MOST as MOST_LEGS, message::Priority};
use angarium_rules::ruling::{Failed, MessageRefusal};
use filter::{Filter, FilterParams};
pub use new::{ClientMessage, MessageRequest};
use view::DecisionAnswer;
pub use view::{AttemptAnswer, CostAnswer, EventAnswer, MessageAnswer};

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Send a message.
///
/// It is durable once the answer is there, and leaves as its route says. With `dry_run` nothing is
/// stored or sent: the answer shows the decision and the requests that would leave.
#[utoipa::path(post, path = "/v1/messages", tag = "messages", operation_id = "createMessage",
    params(
        ("dry_run" = Option<bool>, Query, description = "Show what would leave, and send nothing."),
        ("Idempotency-Key" = Option<String>, Header, description = "The same as the field `idempotency_key`.", max_length = 255),
    ),
    request_body = MessageRequest,
    responses(
        (status = 202, description = "It was accepted.", body = MessageAnswer,
            headers(("Idempotency-Replayed" = String, description = "`true` if the key was known: this is the first answer again."))),
        (status = 200, description = "A dry run: the requests that would leave.", body = DryRun),
    ))]
pub async fn create(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    mut query: Query,
    trace: Trace,
    HeaderKey(header_key): HeaderKey<255>,
    Draft(request, fields): Draft<MessageRequest>,
) -> Result<Response, Problem> {
    let dry_run = query.flag("dry_run");
    query.finish()?;
    let message = ClientMessage { request, fields, header_key };
    if dry_run {
        let (Preview { plan, requests }, legs) = sending::dry_run(&app, tenant.id, message).await?;
        return Ok(Json(DryRun { plan, requests, legs }).into_response());
    }
    Ok(accepted(&sending::send(&app, tenant.id, message, trace.context()).await?))
}

fn accepted(admitted: &Admitted) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(MessageAnswer::accepted(&admitted.message))).into_response();
    if admitted.replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// The answer to a dry run.
#[derive(Debug, Serialize, ToSchema)]
pub struct DryRun {
    /// The candidates in order, with the reasons and the scripts' answers; null if no route serves the channel.
    #[schema(value_type = Option<Object>)]
    plan: Option<Planned>,
    /// The first request of each candidate, secrets redacted, or why there is none.
    #[schema(value_type = Vec<Object>)]
    requests: Vec<PreviewRequest>,
    /// The same for each of a message's `channels`, with its `leg` and `channel`; above is the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>, required = false)]
    legs: Vec<LegPreview>,
}

/// Messages to be sent together.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "`Batch` reads it; this describes it in the document")]
#[schema(example = json!({"messages": [
    {"to": "ann@example.org", "channel": "email", "idempotency_key": "invoice-7",
        "content": {"from": "shop@example.com", "subject": "Your invoice", "text": "Thank you."}},
    {"to": "+14155550123", "channel": "sms", "idempotency_key": "code-8", "content": {"text": "Your code is 1234"}}
]}))]
pub struct NewBatch {
    /// 1 to 1000; each has its own result.
    #[schema(min_items = 1, max_items = 1000)]
    messages: Vec<MessageRequest>,
}

/// The same as it is read: each message is checked separately, so that a fault of one does not affect the others.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    #[schema(value_type = Vec<serde_json::Value>, min_items = 1, max_items = 1000)]
    messages: Vec<Box<RawValue>>,
}

/// The result for each message, in order.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchAnswer {
    /// Finds the messages that were accepted now: `GET /v1/messages?batch=…`. Of a repeated request, whose messages were
    /// all accepted before, it is the first one's.
    #[schema(example = "batch_0192f0c1a2b37c4d8e5f60718293a4b5")]
    batch: String,
    data: Vec<BatchResult>,
}

/// The result for one message: `message` or `error`.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResult {
    /// The status of the answer to a separate request.
    #[schema(example = 202)]
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<MessageAnswer>,
    /// The idempotency key was known: the first answer again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ProblemBody>)]
    error: Option<serde_json::Value>,
}

/// The header `Idempotency-Key` with a limited length, checked before the body.
pub struct HeaderKey<const MOST: usize>(Option<String>);

impl<const MOST: usize> FromRequestParts<HttpState> for HeaderKey<MOST> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Self, Problem> {
        let key = new::header_key(&parts.headers, MOST);
        key.map(Self).map_err(|fields| Problem::parameters(fields.into_problems()))
    }
}

/// Send up to 1,000 messages.
///
/// Each message has its own result: a fault of one does not affect the others.
#[utoipa::path(post, path = "/v1/messages/batch", tag = "messages", operation_id = "createMessages",
    params(
        ("Idempotency-Key" = Option<String>, Header, max_length = 250,
            description = "For messages without an `idempotency_key`: the first one gets this with `:0` appended, the second with `:1`, and so on."),
    ),
    request_body = NewBatch,
    responses((status = 200, description = "The result for each message.", body = BatchAnswer)))]
pub async fn create_batch(
    tenant: Tenant<MessagesWrite>,
    State(http): State<HttpState>,
    query: Query,
    id: RequestId,
    trace: Trace,
    HeaderKey(header_key): HeaderKey<250>,
    Json(batch): Json<Batch>,
) -> Result<Json<BatchAnswer>, Problem> {
    query.finish()?;
    let app = http.app.clone();
    let length = batch.messages.iter().map(|raw| raw.get().len()).sum();
    let read = move || {
        Ok(batch.messages.iter().map(|raw| draft::read::<MessageRequest>(raw.get().as_bytes())).collect::<Vec<_>>())
    };
    let mut messages = Vec::new();
    let mut unread = Vec::new();
    for (place, draft) in read_apart(&http, tenant.id, length, read).await?.into_iter().enumerate() {
        unread.push(match draft {
            Ok(Draft(request, fields)) => {
                let key = header_key.as_ref().filter(|_| !request.has_key()).map(|key| format!("{key}:{place}"));
                messages.push(ClientMessage { request, fields, header_key: key });
                None
            }
            Err(problem) => Some(problem),
        });
    }
    let (batch, answers) = sending::send_batch(&app, tenant.id, messages, trace.context()).await?;
    let mut answers = answers.into_iter();
    let data = unread.into_iter().map(|unread| {
        let answer = || answers.next().unwrap_or(Err(AdmitError::Unavailable)).map_err(Problem::from);
        match unread.map_or_else(answer, Err) {
            Ok(admitted) => BatchResult::accepted(&admitted),
            Err(problem) => BatchResult::refused(&problem, id.as_str()),
        }
    });
    Ok(Json(BatchAnswer { batch: batch.to_string(), data: data.collect() }))
}

impl BatchResult {
    fn accepted(admitted: &Admitted) -> Self {
        Self {
            status: 202,
            message: Some(MessageAnswer::accepted(&admitted.message)),
            replayed: admitted.replayed,
            error: None,
        }
    }

    fn refused(problem: &Problem, request_id: &str) -> Self {
        let error = Some(problem.to_value(request_id));
        Self { status: problem.status().as_u16(), message: None, replayed: false, error }
    }
}

/// List messages, the newest first.
#[utoipa::path(get, path = "/v1/messages", tag = "messages", operation_id = "listMessages",
    params(PageParams, FilterParams),
    responses((status = 200, description = "A page.", body = Page<MessageAnswer>)))]
pub async fn list(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<MessageAnswer>>, Problem> {
    let paging = Paging::<MessageId>::of(&mut query);
    let filter = Filter::of(&mut query).into_domain(&app, tenant.id).await?;
    let filter = query.finish_with(filter)?;
    let rows = messages::list(&app, tenant.id, &filter, paging.after, paging.limit).await?;
    Ok(Json(Page::of(rows, |row| row.message.id.to_string(), MessageAnswer::from)))
}

/// Show a message and its state.
#[utoipa::path(get, path = "/v1/messages/{id}", tag = "messages", operation_id = "getMessage",
    params(("id" = String, Path, description = "`msg_…`")),
    responses((status = 200, description = "The message.", body = MessageAnswer)))]
pub async fn get(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<MessageAnswer>, Problem> {
    Ok(Json(messages::get(&app, tenant.id, message_id(&id)?).await?.into()))
}

/// Show every attempt of a message, the oldest first.
#[utoipa::path(get, path = "/v1/messages/{id}/attempts", tag = "messages", operation_id = "listAttempts",
    params(("id" = String, Path, description = "`msg_…`")),
    responses((status = 200, description = "All of them.", body = Page<AttemptAnswer>)))]
pub async fn attempts(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<Page<AttemptAnswer>>, Problem> {
    let id = message_id(&id)?;
    let attempts = messages::attempts(&app, tenant.id, id).await?;
    let answer = |attempt| AttemptAnswer::new(id, attempt);
    Ok(Json(Page::whole(attempts.into_iter().map(answer).collect())))
}

/// Show what happened to a message, the oldest first.
#[utoipa::path(get, path = "/v1/messages/{id}/events", tag = "messages", operation_id = "listEvents",
    params(("id" = String, Path, description = "`msg_…`")),
    responses((status = 200, description = "The whole message.", body = Page<EventAnswer>)))]
pub async fn events(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<Page<EventAnswer>>, Problem> {
    let (view, events) = messages::events(&app, tenant.id, message_id(&id)?).await?;
    let accepted = EventAnswer::accepted(&view.message);
    Ok(Json(Page::whole(iter::once(accepted).chain(events.into_iter().map(EventAnswer::from)).collect())))
}

/// Show the decisions about a message: the rules' answers, for each attempt the route, the candidates and the reasons,
/// and the follow-ups of its end.
#[utoipa::path(get, path = "/v1/messages/{id}/decision", tag = "messages", operation_id = "getDecision",
    params(("id" = String, Path, description = "`msg_…`")),
    responses((status = 200, description = "One decision an attempt.", body = DecisionAnswer)))]
pub async fn decision(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<DecisionAnswer>, Problem> {
    let MessageDecisions { view, rules, attempts, events } =
        messages::decisions(&app, tenant.id, message_id(&id)?).await?;
    Ok(Json(DecisionAnswer::new(&view.message, rules, attempts, events)))
}

/// New values for a waiting message; what is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MessagePatch, example = json!({"send_at": "2027-02-01T09:00:00Z", "priority": "high"}))]
pub struct MessagePatch {
    /// Null: as soon as possible.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Option<Timestamp>>,
    /// Null: it never expires.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Option<Timestamp>>,
    #[serde(default)]
    priority: Option<Priority>,
}

/// Tells a member that is null from one that is left out.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

/// Move a waiting message to another time, another end or another priority.
///
/// It must not have been attempted, and must have no `ordering_key`.
#[utoipa::path(patch, path = "/v1/messages/{id}", tag = "messages", operation_id = "rescheduleMessage",
    params(("id" = String, Path, description = "`msg_…`")),
    request_body = MessagePatch,
    responses(
        (status = 200, description = "The message as it is now.", body = MessageAnswer),
        (status = 409, description = "The message was attempted, or has an ordering key.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn reschedule(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
    Json(patch): Json<MessagePatch>,
) -> Result<Json<MessageAnswer>, Problem> {
    let id = message_id(&id)?;
    if patch.send_at.is_none() && patch.expires_at.is_none() && patch.priority.is_none() {
        return Err(Problem::field("", "empty", "must have `send_at`, `expires_at` or `priority`"));
    }
    let to = Reschedule { send_at: patch.send_at, expires_at: patch.expires_at, priority: patch.priority };
    let view = MessageActions::new(&app, &tenant.principal()).reschedule(id, to).await?;
    Ok(Json(MessageAnswer::from(view).shown_to(&tenant)))
}

/// Cancel a message that has not begun to leave.
#[utoipa::path(post, path = "/v1/messages/{id}/cancel", tag = "messages", operation_id = "cancelMessage",
    params(("id" = String, Path, description = "`msg_…`")),
    responses(
        (status = 200, description = "It is canceled.", body = MessageAnswer),
        (status = 409, description = "The message can no longer be canceled.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn cancel(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<MessageAnswer>, Problem> {
    let id = message_id(&id)?;
    let view = MessageActions::new(&app, &tenant.principal()).cancel(id).await?;
    Ok(Json(MessageAnswer::from(view).shown_to(&tenant)))
}

/// Try a message again by hand that has ended without success.
#[utoipa::path(post, path = "/v1/messages/{id}/retry", tag = "messages", operation_id = "retryMessage",
    params(
        ("id" = String, Path, description = "`msg_…`"),
        ("leg" = Option<u8>, Query, minimum = 0, maximum = 15,
            description = "The channel of several; by default the last that was tried, or with `mode: all` each that failed."),
    ),
    responses(
        (status = 202, description = "Another attempt is due now.", body = MessageAnswer),
        (status = 409, description = "The message waits already, has succeeded, or its content was purged.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn retry(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
    mut query: Query,
) -> Result<(StatusCode, Json<MessageAnswer>), Problem> {
    let leg = query.take("leg", leg_number);
    query.finish()?;
    let id = message_id(&id)?;
    let view = MessageActions::new(&app, &tenant.principal()).retry(id, leg).await?;
    Ok((StatusCode::ACCEPTED, Json(MessageAnswer::from(view).shown_to(&tenant))))
}

/// Take a message's content out of the ledger: recipient, content, attachments and the attempts' free text.
///
/// The record of its delivery stays. The message must have ended, and cannot be tried again afterwards.
#[utoipa::path(delete, path = "/v1/messages/{id}/content", tag = "messages", operation_id = "purgeMessage",
    params(("id" = String, Path, description = "`msg_…`")),
    responses(
        (status = 200, description = "It is gone.", body = MessageAnswer),
        (status = 409, description = "The message has not ended.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn purge(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<MessageAnswer>, Problem> {
    let view = MessageActions::new(&app, &tenant.principal()).purge(message_id(&id)?).await?;
    Ok(Json(MessageAnswer::from(view).shown_to(&tenant)))
}

fn leg_number(text: &str) -> Result<u8, String> {
    text.parse()
        .ok()
        .filter(|leg| usize::from(*leg) < MOST_LEGS)
        .ok_or_else(|| "must be a number from 0 to 15".to_owned())
}

fn missing() -> Problem {
    Problem::not_found("message")
}

fn message_id(text: &str) -> Result<MessageId, Problem> {
    text.parse().map_err(|_| missing())
}

impl From<AdmitError> for Problem {
    fn from(error: AdmitError) -> Self {
        match &error {
            AdmitError::Invalid(problems) => Self::fields(problems.clone()),
            AdmitError::NoRoute { leg: None, .. } => Self::field("/channel", "no_route", error.to_string()),
            AdmitError::NoRoute { leg: Some(leg), .. } => {
                Self::field(format!("/channels/{leg}/channel"), "no_route", error.to_string())
            }
            AdmitError::Content(problems) => Self::fields(
                problems.iter().map(|it| FieldProblem::new(&it.pointer, it.code, it.detail.as_str())).collect(),
            ),
            AdmitError::Unsendable(_) => Self::field("", "unsendable", error.to_string()),
            AdmitError::Refused(MessageRefusal { failed: None, .. }) => Self::refused_by_rule(error.to_string()),
            AdmitError::Refused(MessageRefusal { failed: Some(Failed::Fault), .. }) => {
                Self::rule_failed(error.to_string())
            }
            AdmitError::Refused(MessageRefusal { failed: Some(Failed::NoTime), .. }) => {
                Self::rules_busy(&error.to_string())
            }
            AdmitError::KeyReused => Self::field("/idempotency_key", "key_reused", error.to_string()),
            AdmitError::Unavailable | AdmitError::Busy => Self::unavailable(&error.to_string()),
            AdmitError::DiskFull => Self::disk_full(),
            AdmitError::Failed(_) => Self::internal(&error),
        }
    }
}
