//! `/v1/events`: what happens, in the order of time; page by page, or as it happens.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::stream;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    App,
    auth::{MessagesRead, Tenant},
    json::Json,
    message::EventAnswer,
    page::{Page, PageParams, Paging},
    problem::{FieldProblem, Problem},
    request::Query,
};
use crate::{
    app::{
        self,
        events::{self, EventView, first_at},
    },
    clock,
};
use angarium_domain::ids::{EventId, TenantId};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How often a stream looks for more.
const LOOK: Duration = Duration::from_millis(500);
/// A stream is not silent for longer.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A stream ends after this, and its client comes again with its key.
const LIFETIME: Duration = Duration::from_secs(600);
/// The most streams of one node, and of one tenant.
const MOST_STREAMS: usize = 256;
const MOST_STREAMS_OF_TENANT: usize = 16;

/// List events, the oldest first.
///
/// An event is here two seconds after it happened. A message's acceptance is the message itself and no
/// event of this list.
#[utoipa::path(get, path = "/v1/events", tag = "events", operation_id = "listAllEvents",
    params(
        PageParams,
        ("after" = Option<String>, Query, description = "Only events after this: an event's id, or a time."),
        ("type" = Option<String>, Query, description = "Only these types, such as `message.failed`; commas between several."),
    ),
    responses((status = 200, description = "A page.", body = Page<EventAnswer>)))]
pub async fn list(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<EventAnswer>>, Problem> {
    let paging = Paging::<EventId>::of(&mut query);
    let asked = Asked::of(&mut query);
    query.finish()?;
    let after = paging.after.or(asked.after).unwrap_or_else(|| EventId::from(Uuid::nil()));
    let rows = events::list(&app, tenant.id, after, &asked.kinds, paging.limit).await?;
    Ok(Json(Page::of(rows, |row| row.id.to_string(), EventAnswer::from)))
}

/// Follow events as they happen.
///
/// Server-sent events: `id` is the event's, `event` its type, `data` the event as in the list. With the
/// header `Last-Event-ID` a stream goes on where another ended. It ends by itself after ten minutes, and with its key.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events", operation_id = "streamEvents",
    params(
        ("after" = Option<String>, Query, description = "The start: an event's id, or a time; now by default."),
        ("type" = Option<String>, Query, description = "Only these types, such as `message.failed`; commas between several."),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen; it takes precedence over `after`."),
    ),
    responses((status = 200, description = "An endless stream of events.", body = String, content_type = "text/event-stream")))]
pub async fn follow(
    tenant: Tenant<MessagesRead>,
    State(app): State<App>,
    mut query: Query,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = Asked::of(&mut query);
    query.finish()?;
    let after = last_seen(&headers)?.or(asked.after).unwrap_or_else(|| first_at(clock::now()));
    let place = Place::take(tenant.id)
        .ok_or_else(|| Problem::unavailable("this node has as many streams as it may; come again in a moment"))?;
    let follower =
        Follower { app, tenant, asked, after, found: VecDeque::new(), ends: Instant::now() + LIFETIME, place };
    let events = stream::unfold(follower, |mut follower| async move { Some((follower.next().await?, follower)) });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

/// The parameters of a list or a stream.
struct Asked {
    after: Option<EventId>,
    kinds: Vec<String>,
}

impl Asked {
    fn of(query: &mut Query) -> Self {
        Self { after: query.take("after", position), kinds: query.take("type", kinds).unwrap_or_default() }
    }
}

/// An event's id, or a time.
fn position(text: &str) -> Result<EventId, String> {
    let by_time = || text.parse::<Timestamp>().ok().map(first_at);
    let position = text.parse::<EventId>().ok().or_else(by_time);
    position.ok_or_else(|| "must be an event's id, or a time such as `2027-01-31T09:00:00Z`".to_owned())
}

/// Returns the words of a list; an unknown type matches nothing.
fn kinds(text: &str) -> Result<Vec<String>, String> {
    let is_kind = |word: &&str| {
        (1..=64).contains(&word.len()) && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_' | b'.'))
    };
    let words: Vec<&str> = text.split(',').collect();
    match words.len() <= 32 && words.iter().all(is_kind) {
        true => Ok(words.into_iter().map(str::to_owned).collect()),
        false => Err("must list 1 to 32 types such as `message.sent`, with commas between".to_owned()),
    }
}

fn last_seen(headers: &HeaderMap) -> Result<Option<EventId>, Problem> {
    let Some(given) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    match given.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(id) => Ok(Some(id)),
        None => Err(Problem::parameters(vec![FieldProblem {
            pointer: "header/Last-Event-ID".to_owned(),
            code: "invalid".to_owned(),
            detail: "must be the id of an event".to_owned(),
        }])),
    }
}

/// One stream.
struct Follower {
    app: App,
    /// The stream ends with its key.
    tenant: Tenant<MessagesRead>,
    asked: Asked,
    after: EventId,
    found: VecDeque<EventView>,
    ends: Instant,
    /// Given back with the stream.
    place: Place,
}

impl Follower {
    /// The next event; `None` ends the stream, and its client may come again.
    async fn next(&mut self) -> Option<Result<sse::Event, Infallible>> {
        loop {
            let is_over = self.app.stop.is_cancelled() || Instant::now() >= self.ends;
            if is_over || !self.tenant.is_still_allowed(&self.app).await {
                return None;
            }
            if let Some(event) = self.found.pop_front() {
                return Some(Ok(written(event)));
            }
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "a stream of events ends: the database does not answer");
                return None;
            }
            if self.found.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = self.app.stop.cancelled() => return None,
                }
            }
        }
    }

    async fn look(&mut self) -> app::Result<()> {
        let (found, reached) = events::next(&self.app, self.place.tenant, self.after, &self.asked.kinds).await?;
        self.after = reached;
        self.found.extend(found);
        Ok(())
    }
}

fn written(event: EventView) -> sse::Event {
    let (id, kind) = (event.id.to_string(), event.kind.clone());
    // An event is plain data: it always has a JSON form.
    let data = serde_json::to_string(&EventAnswer::from(event)).unwrap_or_default();
    sse::Event::default().id(id).event(kind).data(data)
}

/// A place for a stream on the node; dropping it returns it.
struct Place {
    tenant: TenantId,
}

static PLACES: LazyLock<Mutex<HashMap<TenantId, usize>>> = LazyLock::new(Mutex::default);

impl Place {
    fn take(tenant: TenantId) -> Option<Self> {
        let mut taken = Self::taken();
        let (all, own) = (taken.values().sum::<usize>(), taken.get(&tenant).copied().unwrap_or(0));
        (all < MOST_STREAMS && own < MOST_STREAMS_OF_TENANT).then(|| {
            *taken.entry(tenant).or_default() += 1;
            Self { tenant }
        })
    }

    fn taken() -> MutexGuard<'static, HashMap<TenantId, usize>> {
        PLACES.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = Self::taken();
        if let Some(count) = taken.get_mut(&self.tenant) {
            *count -= 1;
        }
        taken.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_an_id_or_a_time() {
        let (event, time) = (EventId::new(), "2027-01-31T09:00:00Z".parse::<Timestamp>().unwrap());
        assert_eq!(position(&time.to_string()), Ok(first_at(time)));
        assert_eq!(position(&event.to_string()), Ok(event));
        assert!(position("yesterday").is_err());
    }

    #[test]
    fn a_tenant_leaves_streams_to_others_and_gives_them_back() {
        let (one, other) = (TenantId::new(), TenantId::new());
        let held: Vec<_> = (0..MOST_STREAMS_OF_TENANT).map(|_| Place::take(one).unwrap()).collect();
        assert!(Place::take(one).is_none());
        assert!(Place::take(other).is_some());
        drop(held);
        assert!(Place::take(one).is_some());
    }

    #[test]
    fn types_are_words_with_commas() {
        assert_eq!(kinds("message.sent,message.failed").unwrap().len(), 2);
        for bad in ["", "message.sent,", "Message.Sent", "a b", &"a,".repeat(40)] {
            assert!(kinds(bad).is_err(), "{bad}");
        }
    }
}
