//! `/v1/dead-letters`: what ended without success, until a person has dealt with it.

mod filter;
pub mod replays;

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
    message::{AttemptAnswer, MessageAnswer},
    page::{Page, PageParams, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::app::message_actions::{
    MessageActions,
    dead_letter::{self, DeadLetter, LetterId},
};
use angarium_domain::{
    dead_letter::DeadLetterFilter,
    delivery::DeliveryState,
    ids::{DeliveryId, TenantId},
    key::Scope,
};
use filter::LetterFilterParams;

pub use filter::LetterFilter;

/// The longest reason, in characters.
pub const MOST_REASON: usize = 500;

/// A delivery that ended without success.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub struct DeadLetterAnswer {
    /// The delivery's.
    #[schema(example = "dlv_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    #[schema(example = "msg_0192f0c1a2b37c4d8e5f60718293a4b5")]
    message: String,
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

/// List dead letters, those of the newest messages first.
///
/// A delivery that ended as `failed`, `bounced`, `expired`, `unroutable` or `unknown` is a dead letter until it is
/// replayed, discarded or resolved, or a receipt says that it arrived.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead-letters", operation_id = "listDeadLetters",
    params(PageParams, LetterFilterParams),
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

const LETTER: &str = "dead letter";

fn letter_id(text: &str) -> Result<LetterId, Problem> {
    let delivery = text.parse().map(LetterId::Delivery);
    delivery.or_else(|_| text.parse().map(LetterId::Message)).map_err(|_| Problem::not_found(LETTER))
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
