//! Kept connections, and requests over them.
//!
//! A request that waits for its answer holds hyper's end of its connection and nothing else, since
//! ten thousand may wait at a time. The pool decides nothing about an answer, and never repeats a
//! request of which a byte may have left.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
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
    http::{MAX_ANSWER, MAX_ANSWER_HEADERS, WatchedBody},
};

/// Open connections of all clients, and requests that wait for their answer.
static OPEN: AtomicUsize = AtomicUsize::new(0);
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// How long a connection is kept that nobody uses.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept for each host.
const IDLE_PER_HOST: usize = 1024;
/// How long a kept connection may take to be ready: it has answered, so that only its task must run.
const READY_TIMEOUT: Duration = Duration::from_millis(100);

/// Connections that are opened alike and may be shared. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client(Arc<Pool>);

struct Pool {
    connector: Connector,
    kept: Mutex<HashMap<Origin, Kept>>,
    swept: AtomicBool,
}

/// Scheme, host and port: who shares a connection.
type Origin = (Option<Scheme>, Option<Authority>);

/// The connections of one origin.
#[derive(Default)]
struct Kept {
    /// HTTP/1.1: the last that was used is the first that is taken.
    idle: Vec<(Instant, Http1)>,
    /// HTTP/2: one for everybody.
    shared: Option<(Instant, http2::SendRequest<WatchedBody>)>,
}

enum Line {
    Http1(Http1),
    Http2(http2::SendRequest<WatchedBody>),
}

/// One end of an HTTP/1.1 connection. hyper goes on writing a request that was given up for as long as the other side
/// keeps it waiting: with this end, such a connection and what it has still to write go too.
struct Http1 {
    sender: http1::SendRequest<WatchedBody>,
    connection: AbortHandle,
}

impl Drop for Http1 {
    fn drop(&mut self) {
        // One that is ready has nothing to write, and closes as its protocol says.
        if !self.sender.is_ready() {
            self.connection.abort();
        }
    }
}

/// One more, as long as it is there.
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

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no connection; nothing was sent.
    Connect(ConnectError),
    /// The connection failed.
    Exchange(hyper::Error),
}

/// A connection whose answer is being read. Dropped, it closes an HTTP/1.1 connection.
pub(super) struct InUse {
    pool: Arc<Pool>,
    origin: Origin,
    line: Line,
    _waiting: Counted,
}

impl Client {
    pub(super) fn new(connector: Connector) -> Self {
        Self(Arc::new(Pool { connector, kept: Mutex::default(), swept: AtomicBool::new(false) }))
    }

    /// Sends a request over a kept connection or a new one. It is sent again only if the kept
    /// connection that it was given turned out closed before any of it was written.
    pub(super) async fn request(
        &self,
        mut request: Box<Request<WatchedBody>>,
    ) -> Result<(Response<Incoming>, InUse), Failure> {
        let target = request.uri().clone();
        let origin = (target.scheme().cloned(), target.authority().cloned());
        loop {
            let (line, kept) = match self.0.take(&origin).await {
                Some(line) => (line, true),
                // Large and soon over: boxed, so that a request that waits is small.
                None => (Box::pin(self.0.open(&origin, &target)).await?, false),
            };
            let mut in_use =
                InUse { pool: self.0.clone(), origin: origin.clone(), line, _waiting: Counted::new(&WAITING) };
            match in_use.line.send(request, &target).await {
                Ok(response) => return Ok((response, in_use)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if kept => request = Box::new(unsent),
                    _ => return Err(Failure::Exchange(error.into_error())),
                },
            }
        }
    }
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
                line.sender.try_send_request(*request).await
            }
            Self::Http2(line) => {
                *request.uri_mut() = target.clone();
                request.headers_mut().remove(HOST);
                line.try_send_request(*request).await
            }
        }
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

    async fn open(self: &Arc<Self>, origin: &Origin, target: &Uri) -> Result<Line, Failure> {
        self.sweep();
        let wire = self.connector.open(target.clone()).await.map_err(Failure::Connect)?;
        if wire.inner().is_http2() {
            return self.open_http2(origin, wire).await.map_err(Failure::Exchange);
        }
        let (sender, connection) =
            http1::Builder::new().max_buf_size(MAX_ANSWER_HEADERS).handshake(wire).await.map_err(Failure::Exchange)?;
        // What ends a connection is told to the request that is on it. As a block of its own it would be held twice.
        let open = Counted::new(&OPEN);
        let connection = tokio::spawn(connection.map(move |_| drop(open))).abort_handle();
        Ok(Line::Http1(Http1 { sender, connection }))
    }

    async fn open_http2(&self, origin: &Origin, wire: TokioIo<Wire>) -> hyper::Result<Line> {
        let (line, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_ANSWER_HEADERS as u32)
            .initial_stream_window_size(MAX_ANSWER as u32)
            .handshake(wire)
            .await?;
        let open = Counted::new(&OPEN);
        tokio::spawn(connection.map(move |_| drop(open)));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.entry(origin.clone()).or_default();
        kept.forget_the_stale();
        // Whoever came first has the one that stays.
        let (_, shared) = kept.shared.get_or_insert((Instant::now(), line));
        Ok(Line::Http2(shared.clone()))
    }

    /// Starts the task that closes what nobody uses, once; it ends with the pool.
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

impl Kept {
    /// Forgets what is closed or was not used for long. The longest idle come first.
    fn forget_the_stale(&mut self) {
        let stale =
            self.idle.iter().take_while(|(since, line)| since.elapsed() > IDLE_TIMEOUT || line.sender.is_closed());
        let stale = stale.count();
        self.idle.drain(..stale);
        if self.shared.as_ref().is_some_and(|(used, line)| used.elapsed() > IDLE_TIMEOUT || line.is_closed()) {
            self.shared = None;
        }
    }
}
