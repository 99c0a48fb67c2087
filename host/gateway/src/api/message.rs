//! `/v1/messages`

mod channels;
pub mod content;
pub mod filter;
mod fingerprint;
mod new;
mod view;

use std::{iter, time::Instant};

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
    fields::Fields,
    json::{Json, read_apart},
    page::{Page, PageParams, Paging},
    problem::{FieldProblem, Problem, ProblemBody},
    request::{Query, RequestId, Trace, UrlPath},
};
use crate::{
    app::message_actions::{MessageActions, Reschedule},
    app::messages::{self, MessageDecisions},
    clock,
    engine::admission::{AdmitError, Admitted},
    engine::dispatch::{LegPreview, Preview, PreviewRequest},
    engine::planning::Planned,
    engine::rule_runner::patience,
    node::telemetry::Side,
    node::tenant_config::TenantConfig,
};
use angarium_domain::{
    ids::{BatchId, ConnectionId, MessageId, TenantId},
    legs::MOST as MOST_LEGS,
    message::{self, Idempotency, Priority},
    rule_input::RuleInput,
};
use angarium_rules::{
    ruling::{Failed, MessageRefusal},
    script::{Given, Hook},
};
use filter::{Filter, FilterParams};
use new::{MessageContext, Unfit};
pub use new::{MessageRequest, PriorityName};
use view::DecisionAnswer;
pub use view::{AttemptAnswer, CostAnswer, DispositionName, EventAnswer, MessageAnswer, StateName};

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
    Draft(new, fields): Draft<MessageRequest>,
) -> Result<Response, Problem> {
    let dry_run = query.flag("dry_run");
    query.finish()?;
    let config = knowing(&app, tenant.id, new.pinned_to()).await?;
    let asks = if dry_run { Asks::ToTry } else { Asks::ToSend(patience(1)) };
    let read = domain(&app, tenant.id, (new, fields), header_key, &config, asks).await;
    let mut new = match read {
        Ok(new) => new,
        Err(unread) if dry_run => return Err(unread.into()),
        Err(unread) => return Ok(accepted(&answered_before(&app, tenant.id, unread).await?)),
    };
    if dry_run {
        let _permit = app.admission.permit(tenant.id, std::slice::from_ref(&new))?;
        if let Some(book) = &config.rulebook {
            let given = Given { now: clock::now(), chance: fastrand::f64() };
            let admit = || app.rules.as_for_a_message(|| book.rehearsal().admit(&mut new.message, &given).refused).0;
            let refused = app.rules.try_out(tenant.id, admit).await;
            refused.map_or(Ok(()), |refused| Err(AdmitError::Refused(refused)))?;
        }
        let problems = app.admission.content_problems(tenant.id, &config, &new);
        if !problems.is_empty() {
            return Err(AdmitError::Content(problems).into());
        }
        let (Preview { plan, requests }, legs) = app.dispatcher.preview(tenant.id, &new).await?;
        return Ok(Json(DryRun { plan, requests, legs }).into_response());
    }
    let mut span = app.tracer.child("accept", Side::Internal, trace.context());
    new.message.body.trace = span.context().cloned();
    let admitted = app.admission.admit(tenant.id, vec![new]).await.pop().unwrap_or(Err(AdmitError::Unavailable));
    let admitted = admitted?;
    span.set(|| {
        [
            ("tenant.id", tenant.id.to_string().into()),
            ("message.id", admitted.message.id.to_string().into()),
            ("message.replayed", admitted.replayed.into()),
        ]
    });
    Ok(accepted(&admitted))
}

fn accepted(admitted: &Admitted) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(MessageAnswer::accepted(&admitted.message))).into_response();
    if admitted.replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// Returns the message that was accepted under the key, if the repeated one cannot be taken now: it may have expired,
/// or its connection be gone.
async fn answered_before(app: &App, tenant: TenantId, unread: Unread) -> Result<Admitted, Problem> {
    let known = match &unread.stands_for {
        Some(key) => app.admission.replayed(tenant, key).await?,
        None => None,
    };
    known.ok_or_else(|| unread.into())
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
    /// Finds the messages that were accepted now: `GET /v1/messages?batch=…`.
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
    let parsed = read_apart(&http, tenant.id, length, read).await?;
    let pinned: Vec<&str> = parsed.iter().flatten().flat_map(|draft| draft.0.pinned_to()).collect();
    let config = knowing(&app, tenant.id, pinned).await?;
    let mut checked = Vec::with_capacity(parsed.len());
    let asks = Asks::ToSend(patience(parsed.len()));
    for (place, draft) in parsed.into_iter().enumerate() {
        checked.push(match draft {
            Ok(Draft(new, fields)) => {
                let key = header_key.as_ref().filter(|_| !new.has_key()).map(|key| format!("{key}:{place}"));
                match domain(&app, tenant.id, (new, fields), key, &config, asks).await {
                    Ok(new) => Checked::Good(Box::new(new)),
                    Err(unread) => answered_before(&app, tenant.id, unread).await.into(),
                }
            }
            Err(problem) => Checked::Bad(problem),
        });
        // Others are let through between.
        tokio::task::coop::consume_budget().await;
    }
    let (mut good, slots) = apart(checked);
    let mut span = app.tracer.child("accept", Side::Internal, trace.context());
    span.set(|| [("tenant.id", tenant.id.to_string().into()), ("messages", (good.len() as i64).into())]);
    let batch = BatchId::new();
    for new in &mut good {
        new.message.body.trace = span.context().cloned();
        new.message.batch = Some(batch);
    }
    let mut admitted = app.admission.admit(tenant.id, good).await.into_iter();
    let data = slots.into_iter().map(|slot| match slot {
        Slot::Bad(problem) => BatchResult::refused(&problem, id.as_str()),
        Slot::Known(admitted) => BatchResult::accepted(&admitted),
        Slot::Open => match admitted.next().unwrap_or(Err(AdmitError::Unavailable)) {
            Ok(admitted) => BatchResult::accepted(&admitted),
            Err(error) => BatchResult::refused(&Problem::from(error), id.as_str()),
        },
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

/// A message of a batch, once it was read.
enum Checked {
    Good(Box<message::NewMessage>),
    Known(Admitted),
    Bad(Problem),
}

impl From<Result<Admitted, Problem>> for Checked {
    fn from(answered: Result<Admitted, Problem>) -> Self {
        answered.map_or_else(Self::Bad, Self::Known)
    }
}

/// The source of a batch's result.
enum Slot {
    /// It is still to be accepted.
    Open,
    Known(Admitted),
    Bad(Problem),
}

/// The good ones, and for each in order where its result comes from.
fn apart(checked: Vec<Checked>) -> (Vec<message::NewMessage>, Vec<Slot>) {
    let mut good = Vec::with_capacity(checked.len());
    let slot = |one| match one {
        Checked::Good(new) => {
            good.push(*new);
            Slot::Open
        }
        Checked::Known(admitted) => Slot::Known(admitted),
        Checked::Bad(problem) => Slot::Bad(problem),
    };
    let slots = checked.into_iter().map(slot).collect();
    (good, slots)
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
    let filter = Filter::of(&mut query);
    query.finish()?;
    let filter = filter.into_domain(&app, tenant.id).await?.map_err(Problem::parameters)?;
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
    #[schema(value_type = Option<PriorityName>)]
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

/// The reason for asking rules about a message's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// It is sent, and waits until then for the tenant's time.
    ToSend(Instant),
    /// It is tried out.
    ToTry,
}

/// Why a message can't be taken as it is.
#[derive(Debug)]
pub struct Unread {
    problem: Problem,
    /// Its idempotency key, and the message behind it.
    stands_for: Option<Box<Idempotency>>,
}

impl From<Unread> for Problem {
    fn from(unread: Unread) -> Self {
        unread.problem
    }
}

/// The message that a client describes, if all of it holds. One without a channel has it from the tenant's rules.
pub async fn domain(
    app: &App,
    tenant: TenantId,
    (new, fields): (MessageRequest, Fields),
    header_key: Option<String>,
    config: &TenantConfig,
    asks: Asks,
) -> Result<message::NewMessage, Unread> {
    let book = config.rulebook.as_ref().filter(|_| new.wants_channel());
    let runs = book.is_some_and(|book| book.may_run(Hook::Route));
    let read = move || read(new, fields, header_key, config);
    match (runs, asks) {
        (false, _) => read(),
        (true, Asks::ToSend(until)) => app.rules.ask_once(tenant, until, read).await,
        (true, Asks::ToTry) => app.rules.try_out(tenant, || app.rules.as_for_a_message(read).0).await,
    }
}

fn read(
    new: MessageRequest,
    fields: Fields,
    header_key: Option<String>,
    config: &TenantConfig,
) -> Result<message::NewMessage, Unread> {
    let connection = |name: &str| -> Option<ConnectionId> { Some(config.connection(name)?.connection.id) };
    let given = Given { now: clock::now(), chance: fastrand::f64() };
    let channel = |input: &RuleInput| config.rulebook.as_ref()?.channel(input, &given);
    let condition = |name: &str| config.rulebook.as_ref().is_some_and(|book| book.has_condition(name));
    let around = MessageContext {
        now: given.now,
        header_key,
        connection: &connection,
        channel: &channel,
        condition: &condition,
    };
    new.into_domain(fields, around)
        .map_err(|Unfit { fields, stands_for }| Unread { problem: Problem::fields(fields.into_problems()), stands_for })
}

/// Returns the tenant's configuration, read again if it lacks a connection that a message names: another node may just
/// have created it.
pub async fn knowing<'a>(
    app: &App,
    tenant: TenantId,
    pinned: impl IntoIterator<Item = &'a str>,
) -> Result<std::sync::Arc<TenantConfig>, Problem> {
    let config = app.tenant_configs.tenant(tenant).await?;
    if pinned.into_iter().all(|name| config.connection(name).is_some()) {
        return Ok(config);
    }
    Ok(app.tenant_configs.reload(tenant).await?)
}

impl From<AdmitError> for Problem {
    fn from(error: AdmitError) -> Self {
        match &error {
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
