//! Kept connections, and requests over them.
//!
//! A request that waits for its answer holds only hyper's end of its connection, because ten thousand may wait at a
//! time. The pool decides nothing about an answer, and never repeats a request of which a byte may have left, unless
//! the other side says that it has processed none of it: HTTP/2 can (RFC 9113, 8.7).

use std::{
    collections::HashMap,
    error::Error as _,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use http_body::Body as _;
use hyper::{
    Request, Response, Uri,
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    header::{HOST, HeaderValue},
    http::uri::{Authority, PathAndQuery, Scheme},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{task::AbortHandle, time::Instant};

use super::{
    connect::{ConnectError, Connector, Wire},
    http::{MAX_ANSWER, MAX_ANSWER_HEADER_COUNT, MAX_ANSWER_HEADERS, WatchedBody},
};

/// Open connections of all clients, and requests that wait for their answer.
static OPEN: AtomicUsize = AtomicUsize::new(0);
static WAITING: AtomicUsize = AtomicUsize::new(0);
/// Connections by HTTP/2 that were ever opened.
static OPENED: AtomicUsize = AtomicUsize::new(0);

/// The time for which an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept for each host.
const IDLE_PER_HOST: usize = 1024;
/// How often a connection by HTTP/2 with requests under way is asked for a sign of life, and how long one may take. One that
/// is cut off would otherwise swallow every request until the system gives it up, a quarter of an hour later.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// The longest body that is kept for another try, should the other side refuse the request unread. A longer one leaves
/// memory as it is written.
const REPEATABLE: u64 = 64 * 1024;
/// The most interim answers before an answer.
const MOST_INTERIM_ANSWERS: usize = 16;
/// How long a kept connection may take to be ready: it has answered, so that only its task must run.
const READY_TIMEOUT: Duration = Duration::from_millis(100);

/// Connections that are opened alike and may be shared. Cheap to clone.
#[derive(Clone)]
pub(super) struct PooledClient(Arc<Pool>);

struct Pool {
    connector: Connector,
    kept: Mutex<HashMap<Origin, Kept>>,
    swept: AtomicBool,
}

/// Scheme, host and port: requests with the same ones share connections.
type Origin = (Option<Scheme>, Option<Authority>);

/// The connections of one origin.
#[derive(Default)]
struct Kept {
    /// HTTP/1.1: the last that was used is the first that is taken.
    idle: Vec<(Instant, Http1)>,
    /// HTTP/2: one shared connection.
    shared: Option<(Instant, Http2)>,
    /// The other side asked for HTTP/1.1 in place of HTTP/2. HTTP/2 is tried again once no connection is left.
    http1: bool,
}

enum Line {
    Http1(Http1),
    Http2(Http2),
}

/// One end of an HTTP/2 connection.
#[derive(Clone)]
struct Http2 {
    sender: http2::SendRequest<WatchedBody>,
    /// The number that distinguishes it from its replacement.
    number: usize,
}

/// One end of an HTTP/1.1 connection. hyper continues to write a dropped request for as long as the other side delays
/// it: dropping this end also closes such a connection with its unwritten data.
struct Http1 {
    sender: http1::SendRequest<WatchedBody>,
    connection: AbortHandle,
}

impl Drop for Http1 {
    fn drop(&mut self) {
        // A connection that is ready has nothing to write, and closes by its protocol.
        if !self.sender.is_ready() {
            self.connection.abort();
        }
    }
}

/// Counts one more, as long as it lives.
struct Counted(&'static AtomicUsize);

impl Counted {
    fn new(count: &'static AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The process's open HTTP connections, and its requests that wait for their answer.
pub fn usage() -> (usize, usize) {
    (OPEN.load(Ordering::Relaxed), WAITING.load(Ordering::Relaxed))
}

/// The reason for a missing answer.
#[derive(Debug)]
pub(super) enum PoolFailure {
    /// There is no connection; nothing was sent.
    Connect(ConnectError),
    /// The connection failed.
    Exchange(hyper::Error),
    /// The other side said that it has processed none of the request (RFC 9113, 8.7).
    Refused(hyper::Error),
}

/// A connection whose answer is being read. Dropped, it closes an HTTP/1.1 connection.
pub(super) struct InUse {
    pool: Arc<Pool>,
    origin: Origin,
    line: Line,
    _waiting: Counted,
}

impl PooledClient {
    pub(super) fn new(connector: Connector) -> Self {
        Self(Arc::new(Pool { connector, kept: Mutex::default(), swept: AtomicBool::new(false) }))
    }

    /// Sends a request over a kept connection or a new one; `begun` says whether some of it may have left. It is sent
    /// again only if its connection turned out closed before any of it was written, or if the other side has processed
    /// none of it; over at most two new connections.
    pub(super) async fn request(
        &self,
        mut request: Box<Request<WatchedBody>>,
        begun: &AtomicBool,
    ) -> Result<(Response<Incoming>, InUse), PoolFailure> {
        let target = request.uri().clone();
        let origin = (target.scheme().cloned(), target.authority().cloned());
        let (mut opened, mut refused) = (0, false);
        loop {
            // A refusal is answered by a new connection.
            let kept = if refused { None } else { self.0.take(&origin).await };
            let line = match kept {
                Some(line) => line,
                // Large and soon over: boxed, so that a request that waits is small.
                None => {
                    opened += 1;
                    Box::pin(self.0.open(&origin, &target)).await?
                }
            };
            let copy = line.copy_of(&request);
            let mut in_use =
                InUse { pool: self.0.clone(), origin: origin.clone(), line, _waiting: Counted::new(&WAITING) };
            let mut error = match in_use.line.send(request, &target).await {
                Ok(response) => return Ok((response, in_use)),
                Err(error) => error,
            };
            let unsent = error.take_message().map(Box::new);
            let error = error.into_error();
            let refusal = refusal(&error).filter(|_| unsent.is_none());
            refused = refusal.is_some();
            if let Some(reason) = refusal {
                in_use.forget(reason);
                begun.store(false, Ordering::Relaxed);
            }
            request = match unsent.or_else(|| copy.filter(|_| refused)) {
                Some(again) if opened < 2 => again,
                _ if refused => return Err(PoolFailure::Refused(error)),
                _ => return Err(PoolFailure::Exchange(error)),
            };
        }
    }
}

/// Returns the reason if the other side says that it has processed nothing of the request: REFUSED_STREAM,
/// HTTP_1_1_REQUIRED, or a GOAWAY whose last stream comes before this one. A fault that this end finds is none.
fn refusal(error: &hyper::Error) -> Option<h2::Reason> {
    let found = std::iter::successors(error.source(), |error| (*error).source())
        .find_map(|error| error.downcast_ref::<h2::Error>())?;
    let unprocessed = [h2::Reason::REFUSED_STREAM, h2::Reason::HTTP_1_1_REQUIRED];
    let reason = found.reason().filter(|reason| found.is_go_away() || unprocessed.contains(reason))?;
    found.is_remote().then_some(reason)
}

impl InUse {
    /// Keeps the connection for the next request: the answer has been read to its end.
    pub(super) fn keep(self) {
        let Line::Http1(line) = self.line else { return };
        if line.sender.is_closed() {
            return;
        }
        let mut kept = self.pool.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = &mut kept.entry(self.origin).or_default().idle;
        if idle.len() < IDLE_PER_HOST {
            idle.push((Instant::now(), line));
        }
    }

    /// Gives this connection to no other request, if it is shared, and no other of its kind if the other side wants
    /// HTTP/1.1.
    fn forget(&self, reason: h2::Reason) {
        let Line::Http2(line) = &self.line else { return };
        let mut kept = self.pool.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.entry(self.origin.clone()).or_default();
        kept.http1 |= reason == h2::Reason::HTTP_1_1_REQUIRED;
        kept.shared.take_if(|(_, shared)| shared.number == line.number);
    }
}

impl Line {
    async fn send(
        &mut self,
        mut request: Box<Request<WatchedBody>>,
        target: &Uri,
    ) -> Result<Response<Incoming>, TrySendError<Request<WatchedBody>>> {
        match self {
            Self::Http1(line) => {
                *request.uri_mut() = target.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")).into();
                if let Some(host) = target.authority().and_then(|it| HeaderValue::from_str(it.as_str()).ok()) {
                    request.headers_mut().insert(HOST, host);
                }
                limit_interim_answers(&mut request, line.connection.clone());
                line.sender.try_send_request(*request).await
            }
            Self::Http2(line) => {
                *request.uri_mut() = target.clone();
                request.headers_mut().remove(HOST);
                line.sender.try_send_request(*request).await
            }
        }
    }

    /// Returns a copy of the request to send again if the other side refuses it unread, which HTTP/1.1 cannot.
    fn copy_of(&self, request: &Request<WatchedBody>) -> Option<Box<Request<WatchedBody>>> {
        let may_be_refused = matches!(self, Self::Http2(_));
        let is_short = request.body().size_hint().upper().is_some_and(|size| size <= REPEATABLE);
        (may_be_refused && is_short).then(|| Box::new(request.clone()))
    }
}

impl Pool {
    /// A kept connection that can take a request.
    async fn take(&self, origin: &Origin) -> Option<Line> {
        loop {
            let mut line = self.pop(origin)?;
            let ready = match &mut line {
                Line::Http1(line) => {
                    matches!(tokio::time::timeout(READY_TIMEOUT, line.sender.ready()).await, Ok(Ok(())))
                }
                Line::Http2(_) => true,
            };
            if ready {
                return Some(line);
            }
        }
    }

    fn pop(&self, origin: &Origin) -> Option<Line> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get_mut(origin)?;
        kept.forget_the_stale();
        if let Some((used, line)) = &mut kept.shared {
            *used = Instant::now();
            return Some(Line::Http2(line.clone()));
        }
        kept.idle.pop().map(|(_, line)| Line::Http1(line))
    }

    async fn open(self: &Arc<Self>, origin: &Origin, target: &Uri) -> Result<Line, PoolFailure> {
        self.sweep();
        let http1 = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(origin).is_some_and(|it| it.http1);
        let wire = self.connector.open(target.clone(), http1).await.map_err(PoolFailure::Connect)?;
        if wire.inner().is_http2() {
            return self.open_http2(origin, wire).await.map_err(PoolFailure::Exchange);
        }
        let (sender, connection) = http1_builder().handshake(wire).await.map_err(PoolFailure::Exchange)?;
        // The request on a connection gets the cause of the connection's end. As a block of its own it would be held
        // twice.
        let open = Counted::new(&OPEN);
        let connection = tokio::spawn(connection.map(move |_| drop(open))).abort_handle();
        Ok(Line::Http1(Http1 { sender, connection }))
    }

    async fn open_http2(&self, origin: &Origin, wire: TokioIo<Wire>) -> hyper::Result<Line> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(SIGN_OF_LIFE)
            .keep_alive_timeout(SIGN_OF_LIFE)
            .max_header_list_size(MAX_ANSWER_HEADERS as u32)
            .initial_stream_window_size(MAX_ANSWER as u32)
            .handshake(wire)
            .await?;
        let open = Counted::new(&OPEN);
        tokio::spawn(connection.map(move |_| drop(open)));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.entry(origin.clone()).or_default();
        kept.forget_the_stale();
        let line = Http2 { sender, number: OPENED.fetch_add(1, Ordering::Relaxed) };
        // The first connection stays.
        let (_, shared) = kept.shared.get_or_insert((Instant::now(), line));
        Ok(Line::Http2(shared.clone()))
    }

    /// Starts the task that closes unused connections, once; it ends with the pool.
    fn sweep(self: &Arc<Self>) {
        if self.swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let pool: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_TIMEOUT / 3).await;
                let Some(pool) = pool.upgrade() else { return };
                let mut kept = pool.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.retain(|_, kept| {
                    kept.forget_the_stale();
                    kept.shared.is_some() || !kept.idle.is_empty()
                });
            }
        });
    }
}

/// Drops the connection if interim answers (RFC 9110, section 15.2) come without end: none of them counts towards a
/// limit on sizes, and reading them keeps a worker busy.
fn limit_interim_answers(request: &mut Request<WatchedBody>, connection: AbortHandle) {
    let seen = AtomicUsize::new(0);
    hyper::ext::on_informational(request, move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == MOST_INTERIM_ANSWERS {
            connection.abort();
        }
    });
}

/// Servers in the field write heads that RFC 9112 does not allow; the status still decides, so the readable parts of
/// such a head are used.
fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(MAX_ANSWER_HEADERS)
        .max_headers(MAX_ANSWER_HEADER_COUNT)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    builder
}

impl Kept {
    /// Removes closed and long unused connections. The longest idle come first.
    fn forget_the_stale(&mut self) {
        let stale =
            self.idle.iter().take_while(|(since, line)| since.elapsed() > IDLE_TIMEOUT || line.sender.is_closed());
        let stale = stale.count();
        self.idle.drain(..stale);
        if self.shared.as_ref().is_some_and(|(used, line)| used.elapsed() > IDLE_TIMEOUT || line.sender.is_closed()) {
            self.shared = None;
        }
    }
}
