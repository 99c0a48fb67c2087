//! `/v1/dead-letters`: what ended without success, until a person has dealt with it.

mod filter;

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{MessagesRead, MessagesWrite, Tenant},
    draft::Draft,
    fields::{Fields, plain},
    json::Json,
    message::{AttemptAnswer, MessageAnswer, StateName},
    page::{Page, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::app::message_actions::{
    MessageActions,
    dead_letter::{self, DeadLetter, LetterId, Replay, WantedReplay},
};
use angarium_domain::{
    dead_letter::{DeadLetterFilter, certainly_unsent},
    delivery::DeliveryState,
    ids::{DeliveryId, JobId, TenantId},
    key::Scope,
};
use filter::{LetterFilter, LetterFilterParams};

/// The longest reason, in characters.
pub const MOST_REASON: usize = 500;
/// The default rate of a replay.
const DEFAULT_RATE: u32 = 50;
const HIGHEST_RATE: u32 = 1_000;
/// More than a ledger holds.
const MOST_REPLAYED: i64 = 1_000_000_000;

/// A delivery that ended without success.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub struct DeadLetterAnswer {
    /// The delivery's.
    #[schema(example = "dlv_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    #[schema(example = "msg_0192f0c1a2b37c4d8e5f60718293a4b5")]
    message: String,
    #[schema(value_type = StateName)]
    state: DeliveryState,
    channel: String,
    /// Null if the connection names it, or if the content was purged.
    to: Option<String>,
    reference: Option<String>,
    /// Attempts so far.
    attempts: u32,
    /// Of the last attempt, as the next six are.
    connection: Option<String>,
    connection_uid: Option<String>,
    route: Option<String>,
    provider: Option<String>,
    code: Option<String>,
    unified_code: Option<String>,
    detail: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
    /// After this time it is not sent any more.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// The time of the purge: after it nothing is left to send.
    #[schema(value_type = Option<String>, format = DateTime)]
    content_purged_at: Option<Timestamp>,
    /// The time of the discard: after it the delivery is off the list.
    #[schema(value_type = Option<String>, format = DateTime)]
    discarded_at: Option<Timestamp>,
    discard_reason: Option<String>,
    /// Every attempt, the oldest first; only where one dead letter is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<AttemptAnswer>>,
}

/// The options of a replay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "the address was corrected at the provider's"}))]
pub struct ReplayRequest {
    /// The reason; the audit has it, with the key.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 500)]
    reason: Option<String>,
}

/// The options of a discard.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "the customer has called"}))]
pub struct DiscardRequest {
    /// The reason; the audit has it, with the key.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// The dead letters to discard, and the reason.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"filter": {"channel": "sms", "until": "2027-01-31T09:00:00Z"}, "reason": "the campaign is over"}))]
pub struct NewDiscard {
    /// An empty one means all of them.
    filter: LetterFilter,
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// The result of a discard.
#[derive(Debug, Serialize, ToSchema)]
pub struct Discarded {
    discarded: usize,
    /// Whether more match: one request discards 10,000 at most.
    more: bool,
}

/// The dead letters to replay, and the rate.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewReplay, example = json!({"filter": {"connection": "primary-smtp"}, "rate_per_second": 20, "reason": "it is back"}))]
pub struct ReplayOrder {
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

/// A replay of dead letters, and how far it is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Replay)]
pub struct ReplayAnswer {
    #[schema(example = "job_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    /// `running`, `finished` or `canceled`.
    #[schema(example = "running")]
    state: &'static str,
    /// Its `until` is the time of the request at the latest: what fails again is not met again.
    filter: LetterFilter,
    rate_per_second: u32,
    limit: Option<i64>,
    reason: Option<String>,
    /// How many matched when it was asked for.
    matched: i64,
    /// How many it has opened for another attempt, each once.
    replayed: i64,
    /// The number of skipped ones: they have expired, their content was purged, or another action came first.
    skipped: i64,
    /// The present states of those that it opened and that were not opened again since.
    #[schema(example = json!({"sent": 940, "queued": 3}))]
    outcomes: BTreeMap<String, i64>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
}

/// List dead letters, those of the newest messages first.
///
/// A delivery that ended as `failed`, `bounced`, `expired`, `unroutable` or `unknown` is a dead letter until it is
/// replayed, discarded or resolved, or a receipt says that it arrived.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead-letters", operation_id = "listDeadLetters",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 250, description = "50 by default."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page."),
        LetterFilterParams,
    ),
    responses((status = 200, description = "A page.", body = Page<DeadLetterAnswer>)))]
pub async fn list(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<DeadLetterAnswer>>, Problem> {
    let paging = Paging::<DeliveryId>::of(&mut query);
    let filter = LetterFilter::of(&mut query).into_domain(&app, tenant.id, DeliveryState::DEAD.to_vec()).await?;
    for problem in filter.as_ref().err().into_iter().flatten() {
        query.refuse(problem.pointer.trim_start_matches('/'), problem.detail.clone());
    }
    query.finish()?;
    let filter = filter.unwrap_or_default();
    let rows = dead_letter::list(&app, tenant.id, &filter, paging.after, paging.limit).await?;
    Ok(Json(Page::of(rows, |row| row.delivery.to_string(), DeadLetterAnswer::from)))
}

/// Show a dead letter, discarded or not, with every attempt.
#[utoipa::path(get, path = "/v1/dead-letters/{id}", tag = "dead-letters", operation_id = "getDeadLetter",
    params(("id" = String, Path, description = "`dlv_…`, or the message's `msg_…`")),
    responses((status = 200, description = "The dead letter.", body = DeadLetterAnswer)))]
pub async fn get(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<DeadLetterAnswer>, Problem> {
    let (letter, attempts) = dead_letter::get(&app, tenant.id, letter_id(&id)?).await?;
    let history = attempts.into_iter().map(|attempt| AttemptAnswer::new(letter.message, attempt)).collect();
    Ok(Json(DeadLetterAnswer { history: Some(history), ..letter.into() }))
}

/// Open a dead letter for another attempt, now.
///
/// Its attempts so far stay on record and no longer count. One that is `unknown` goes to the same connection again, with
/// the same key.
#[utoipa::path(post, path = "/v1/dead-letters/{id}/replay", tag = "dead-letters", operation_id = "replayDeadLetter",
    params(("id" = String, Path, description = "`dlv_…`, or the message's `msg_…`")),
    request_body = ReplayRequest,
    responses(
        (status = 202, description = "Another attempt is due now: its message.", body = MessageAnswer),
        (status = 409, description = "It has expired, or its content was purged.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn replay(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
    Draft(new, mut fields): Draft<ReplayRequest>,
) -> Result<(StatusCode, Json<MessageAnswer>), Problem> {
    reason(&mut fields, new.reason.as_deref());
    fields.finish()?;
    let by = tenant.principal();
    let actions = MessageActions::new(&app, &by);
    let view = actions.replay(letter_id(&id)?, new.reason.as_deref()).await?;
    Ok((StatusCode::ACCEPTED, Json(MessageAnswer::from(view).shown_to(&tenant))))
}

/// Take a dead letter off the list; it stays on record, and can still be replayed by its id.
#[utoipa::path(post, path = "/v1/dead-letters/{id}/discard", tag = "dead-letters", operation_id = "discardDeadLetter",
    params(("id" = String, Path, description = "`dlv_…`, or the message's `msg_…`")),
    request_body = DiscardRequest,
    responses(
        (status = 200, description = "The dead letter is off the list.", body = DeadLetterAnswer),
        (status = 409, description = "It was discarded before.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn discard(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
    Draft(new, mut fields): Draft<DiscardRequest>,
) -> Result<Json<DeadLetterAnswer>, Problem> {
    reason(&mut fields, Some(&new.reason));
    fields.finish()?;
    let by = tenant.principal();
    let letter = MessageActions::new(&app, &by).discard(letter_id(&id)?, &new.reason).await?;
    let answer = DeadLetterAnswer::from(letter);
    Ok(Json(if tenant.reads_messages() { answer } else { DeadLetterAnswer { to: None, detail: None, ..answer } }))
}

/// Take all dead letters off the list that match, 10,000 at most: ask again while there are more.
#[utoipa::path(post, path = "/v1/dead-letters/discards", tag = "dead-letters", operation_id = "discardDeadLetters",
    request_body = NewDiscard,
    responses((status = 200, description = "The dead letters are off the list.", body = Discarded)))]
pub async fn discard_all(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    Draft(new, mut fields): Draft<NewDiscard>,
) -> Result<Json<Discarded>, Problem> {
    reason(&mut fields, Some(&new.reason));
    may_name(&tenant, &new.filter)?;
    let filter = checked(&app, tenant.id, new.filter, DeliveryState::DEAD.to_vec(), fields).await?;
    let by = tenant.principal();
    let (discarded, more) = MessageActions::new(&app, &by).discard_all(&filter, &new.reason).await?;
    Ok(Json(Discarded { discarded, more }))
}

/// Refuses a recipient in the filter of a key that may not read any: the count would tell whether it is there.
fn may_name<P>(tenant: &Tenant<P>, filter: &LetterFilter) -> Result<(), Problem> {
    if filter.names_recipient() && !tenant.reads_messages() {
        return Err(Problem::forbidden(Scope::MessagesRead.as_str()));
    }
    Ok(())
}

/// Replay all dead letters that match, at a limited rate.
///
/// The oldest first, each once. It goes on whichever node ends meanwhile; `GET` shows how far it is.
#[utoipa::path(post, path = "/v1/dead-letters/replays", tag = "dead-letters", operation_id = "startReplay",
    request_body = ReplayOrder,
    responses((status = 202, description = "It has begun.", body = ReplayAnswer)))]
pub async fn start_replay(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    Draft(new, mut fields): Draft<ReplayOrder>,
) -> Result<(StatusCode, Json<ReplayAnswer>), Problem> {
    reason(&mut fields, new.reason.as_deref());
    let rate_per_second = new.rate_per_second.unwrap_or(DEFAULT_RATE);
    let rate_fits = (1..=HIGHEST_RATE).contains(&rate_per_second);
    fields.check(rate_fits, "rate_per_second", "out_of_range", || format!("must be 1 to {HIGHEST_RATE}"));
    let limit_fits = new.limit.is_none_or(|limit| (1..=MOST_REPLAYED).contains(&limit));
    fields.check(limit_fits, "limit", "out_of_range", || format!("must be 1 to {MOST_REPLAYED}"));
    may_name(&tenant, &new.filter)?;
    let filter = checked(&app, tenant.id, new.filter, certainly_unsent(), fields).await?;
    let wanted = WantedReplay { filter, rate_per_second, most: new.limit, reason: new.reason };
    let by = tenant.principal();
    let replay = MessageActions::new(&app, &by).start_replay(wanted).await?;
    Ok((StatusCode::ACCEPTED, Json(ReplayAnswer::new(replay, BTreeMap::new()))))
}

/// List replays, the newest first.
#[utoipa::path(get, path = "/v1/dead-letters/replays", tag = "dead-letters", operation_id = "listReplays",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 250, description = "50 by default."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page."),
    ),
    responses((status = 200, description = "A page.", body = Page<ReplayAnswer>)))]
pub async fn list_replays(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<ReplayAnswer>>, Problem> {
    let paging = Paging::<JobId>::of(&mut query);
    query.finish()?;
    let page = dead_letter::list_replays(&app, tenant.id, paging.after, paging.limit).await?;
    let view = |(replay, outcomes)| ReplayAnswer::new(replay, outcomes);
    Ok(Json(Page::of(page, |(replay, _)| replay.id.to_string(), view)))
}

/// Show how far a replay is.
#[utoipa::path(get, path = "/v1/dead-letters/replays/{id}", tag = "dead-letters", operation_id = "getReplay",
    params(("id" = String, Path, description = "`job_…`")),
    responses((status = 200, description = "The replay.", body = ReplayAnswer)))]
pub async fn get_replay(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<ReplayAnswer>, Problem> {
    let (replay, outcomes) = dead_letter::get_replay(&app, tenant.id, job_id(&id)?).await?;
    Ok(Json(ReplayAnswer::new(replay, outcomes)))
}

/// Stop a replay; deliveries that it has opened stay open.
#[utoipa::path(post, path = "/v1/dead-letters/replays/{id}/cancel", tag = "dead-letters", operation_id = "cancelReplay",
    params(("id" = String, Path, description = "`job_…`")),
    responses(
        (status = 200, description = "It has stopped.", body = ReplayAnswer),
        (status = 409, description = "It has ended.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn cancel_replay(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<ReplayAnswer>, Problem> {
    let by = tenant.principal();
    let (replay, outcomes) = MessageActions::new(&app, &by).cancel_replay(job_id(&id)?).await?;
    Ok(Json(ReplayAnswer::new(replay, outcomes)))
}

const LETTER: &str = "dead letter";
const REPLAY: &str = "replay";

fn letter_id(text: &str) -> Result<LetterId, Problem> {
    let delivery = text.parse().map(LetterId::Delivery);
    delivery.or_else(|_| text.parse().map(LetterId::Message)).map_err(|_| Problem::not_found(LETTER))
}

fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| Problem::not_found(REPLAY))
}

fn reason(fields: &mut Fields, reason: Option<&str>) {
    if let Some(reason) = reason {
        plain(fields, "reason", reason, MOST_REASON);
    }
}

/// The filter of a body in which nothing is wrong.
async fn checked(
    app: &App,
    tenant: TenantId,
    filter: LetterFilter,
    states: Vec<DeliveryState>,
    mut fields: Fields,
) -> Result<DeadLetterFilter, Problem> {
    let filter = filter.into_domain(app, tenant, states).await?;
    for problem in filter.as_ref().err().into_iter().flatten() {
        fields.elsewhere(format!("/filter{}", problem.pointer), &problem.code, problem.detail.clone());
    }
    fields.finish()?;
    Ok(filter.unwrap_or_default())
}

impl From<DeadLetter> for DeadLetterAnswer {
    fn from(letter: DeadLetter) -> Self {
        Self {
            id: letter.delivery.to_string(),
            message: letter.message.to_string(),
            state: letter.state,
            channel: letter.channel,
            to: Some(letter.recipient).filter(|to| !to.is_empty()),
            reference: letter.reference,
            attempts: letter.attempts,
            connection: letter.connection.map(|id| id.to_string()),
            connection_uid: letter.connection_uid,
            route: letter.route.map(|id| id.to_string()),
            provider: letter.provider,
            code: letter.code,
            unified_code: letter.unified_code,
            detail: letter.detail,
            created_at: letter.created_at,
            finished_at: letter.finished_at,
            expires_at: letter.expires_at,
            content_purged_at: letter.content_purged_at,
            discarded_at: letter.discarded_at,
            discard_reason: letter.discard_reason,
            history: None,
        }
    }
}

impl ReplayAnswer {
    fn new(replay: Replay, outcomes: BTreeMap<String, i64>) -> Self {
        Self {
            id: replay.id.to_string(),
            state: replay.state.as_str(),
            filter: replay.filter.into(),
            rate_per_second: replay.rate_per_second,
            limit: replay.most,
            reason: replay.reason,
            matched: replay.matched,
            replayed: replay.replayed,
            skipped: replay.skipped,
            outcomes,
            created_at: replay.created_at,
            started_at: replay.started_at,
            finished_at: replay.finished_at,
        }
    }
}
