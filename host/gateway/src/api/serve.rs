//! The HTTP server: it accepts sockets within limits, reads requests in their strict form and in time, and ends slow
//! ones. It does not know the meaning of a request.

mod bodies;
mod checked_stream;
mod sockets;
mod strict;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Response, header},
};
use futures_util::future::poll_fn;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::TokioIo;
use metrics::counter;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service as _;

pub use self::{bodies::TooSlow, sockets::SocketLimits, strict::StrictRefusal};
use self::{
    bodies::{AnswerBody, RequestBody},
    checked_stream::CheckedStream,
    sockets::{End, RequestPlace, Socket, Sockets},
};
use super::problem::Problem;

/// How often sockets are looked at that may have used up their time.
const SWEEP: Duration = Duration::from_millis(250);
/// After accepting failed, as for want of a file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A lasting shortage is logged so often.
const SAID_AGAIN: Duration = Duration::from_secs(10);
/// The time, and the bytes, for which a closed socket is still read while its client sends: closed on unread bytes, it
/// would lose its answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// The most bytes that hyper keeps of a socket's reads or writes.
const BUFFER: usize = 64 << 10;

/// How the server treats its clients.
#[derive(Debug, Clone, Copy)]
pub struct ServerSettings {
    pub limits: SocketLimits,
    /// How long a request's body may take.
    pub body: Duration,
}

/// The request came by a reserved socket: all others are taken, and only the operator's paths are served.
#[derive(Debug, Clone, Copy)]
pub struct AtLimit;

/// Serves until `stop`, and then the requests that are under way.
pub async fn run(listener: TcpListener, router: Router, settings: ServerSettings, stop: CancellationToken) {
    let sockets = Sockets::new(settings.limits);
    let tasks = TaskTracker::new();
    let mut sweep = interval(SWEEP);
    let mut said = None;
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = sweep.tick() => swept(&sockets),
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    if let Some(place) = admitted(&sockets, address) {
                        let service = Service { router: router.clone(), socket: Arc::clone(&place.socket), body: settings.body };
                        tasks.spawn(converse(stream, place, service));
                    }
                }
                Err(error) => accept_failed(&sockets, &error, &mut said).await,
            },
        }
    }
    drop(listener);
    tasks.close();
    sockets.drain();
    let mut ended = pin!(tasks.wait());
    loop {
        tokio::select! {
            () = &mut ended => return,
            _ = sweep.tick() => swept(&sockets),
        }
    }
}

fn swept(sockets: &Sockets) {
    sockets.sweep();
    let (open, idle) = sockets.usage();
    metrics::gauge!("angarium_http_server_connections", "state" => "busy").set((open - idle) as f64);
    metrics::gauge!("angarium_http_server_connections", "state" => "idle").set(idle as f64);
}

fn admitted(sockets: &Arc<Sockets>, address: SocketAddr) -> Option<RequestPlace> {
    let place = sockets.admit(address.ip());
    let is_reserved = place.as_ref().is_none_or(|place| place.socket.is_reserved);
    if is_reserved {
        refused("connections");
    }
    place
}

/// A socket that its client gave up again is nothing; for want of a descriptor the others make room.
async fn accept_failed(sockets: &Sockets, error: &io::Error, said: &mut Option<Instant>) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        if said.is_none_or(|at| at.elapsed() >= SAID_AGAIN) {
            tracing::warn!(%error, "a connection could not be accepted; some that wait for a request are closed");
            *said = Some(Instant::now());
        }
        refused("descriptors");
        sockets.close_some();
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn refused(reason: &'static str) {
    counter!("angarium_http_server_refused_total", "reason" => reason).increment(1);
}

/// One socket, from its first byte to its last.
async fn converse(stream: TcpStream, place: RequestPlace, service: Service) {
    // Small answers go out at once.
    let _ = stream.set_nodelay(true);
    let socket = Arc::clone(&place.socket);
    let mut stream = CheckedStream::new(stream, Arc::clone(&socket));
    let begins = tokio::select! {
        begins = stream.begins() => begins,
        _ = socket.told() => return,
    };
    if begins {
        // On the heap, so that a socket that says nothing costs little.
        Box::pin(converse_http1(stream, socket, service)).await;
    }
}

async fn converse_http1(stream: CheckedStream, socket: Arc<Socket>, service: Service) {
    // The sweep over all sockets replaces hyper's own timer.
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER).header_read_timeout(None);
    let mut connection = builder.serve_connection(TokioIo::new(stream), service);
    let late = loop {
        tokio::select! {
            // A fault on the way belongs to the client, and the stream reports it.
            _ = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break None,
            end = socket.told() => match end {
                End::Graceful => Pin::new(&mut connection).graceful_shutdown(),
                End::Late => break Some(late()),
                End::Idle | End::Stalled => return,
            },
        }
    };
    let stream = connection.into_parts().io.into_inner();
    let is_unread = stream.is_unread();
    let refusal = stream.refusal().map(|refusal| {
        refused("malformed");
        refusal.problem()
    });
    let mut stream = stream.into_inner();
    if let Some(problem) = late.or(refusal) {
        let _ = timeout(LINGER, stream.write_all(&written(&problem))).await;
    }
    let _ = stream.shutdown().await;
    if is_unread {
        let _ = timeout(LINGER, drop_rest(&mut stream)).await;
    }
}

fn late() -> Problem {
    refused("late");
    Problem::timeout("the request's head must come within `http.header_timeout_ms`")
}

/// A whole answer, for a client that hyper has given up.
fn written(problem: &Problem) -> Vec<u8> {
    let id = format!("req_{:032x}", fastrand::u128(..));
    let body = problem.to_value(&id).to_string();
    let status = problem.status();
    format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nx-request-id: {id}\r\n\
         x-content-type-options: nosniff\r\ncache-control: no-store\r\nconnection: close\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        body.len(),
    )
    .into_bytes()
}

async fn drop_rest(stream: &mut TcpStream) {
    let mut part = [0; 8 << 10];
    let mut left = LINGER_BYTES;
    while let Ok(read @ 1..) = stream.read(&mut part).await {
        left = left.saturating_sub(read);
        if left == 0 {
            return;
        }
    }
}

/// Lets the router answer, and counts the request meanwhile.
struct Service {
    router: Router,
    socket: Arc<Socket>,
    body: Duration,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let under_way = self.socket.begin();
        let (head, body) = request.into_parts();
        let body = RequestBody::new(body, self.body);
        let is_read = body.is_read();
        let mut request = Request::from_parts(head, Body::new(body));
        if self.socket.is_reserved {
            request.extensions_mut().insert(AtLimit);
            // One answer, and the place is free for the next.
            self.socket.end(End::Graceful);
        }
        let answer = self.router.clone().call(request);
        Box::pin(async move {
            let Ok(mut response) = answer.await;
            // The rest of the body is not read: the client may not send its next request after it.
            if !is_read.load(Ordering::Relaxed) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| AnswerBody::new(body, under_way)))
        })
    }
}
