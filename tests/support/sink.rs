//! A receiver of HTTP requests on a real socket: it keeps all it gets and answers as told.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri},
};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub at: Instant,
}

impl Received {
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }
}

/// The answer of a path.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
    pub after: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: vec![], body: String::new(), after: Duration::ZERO }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.after = delay;
        self
    }
}

#[derive(Default)]
struct Inner {
    received: Mutex<Vec<Received>>,
    /// The next answers of a path; the last one stays.
    replies: Mutex<HashMap<String, VecDeque<Reply>>>,
    arrived: tokio::sync::Notify,
}

/// The receiver. Its server ends with the test's runtime.
#[derive(Clone)]
pub struct Sink {
    inner: Arc<Inner>,
    pub address: SocketAddr,
}

impl Sink {
    pub async fn start() -> Self {
        let inner = Arc::new(Inner::default());
        let app = Router::new().fallback(receive).layer(DefaultBodyLimit::disable()).with_state(Arc::clone(&inner));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, address }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The answers of a path, in order; the last one stays. Without any, 200.
    pub fn answers(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        self.inner.replies.lock().unwrap().insert(path.to_owned(), replies.into_iter().collect());
    }

    pub fn received(&self) -> Vec<Received> {
        self.inner.received.lock().unwrap().clone()
    }

    pub fn received_at(&self, path: &str) -> Vec<Received> {
        self.received().into_iter().filter(|it| it.path == path).collect()
    }

    /// Waits until this number of requests has come.
    pub async fn arrived(&self, count: usize) -> Vec<Received> {
        let arrived = async {
            loop {
                let notified = self.inner.arrived.notified();
                let received = self.received();
                if received.len() >= count {
                    return received;
                }
                notified.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), arrived).await.expect("the requests arrive within 30 s")
    }
}

async fn receive(
    State(inner): State<Arc<Inner>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap, String) {
    let path = uri.path().to_owned();
    let received = Received { method, path: path.clone(), headers, body, at: Instant::now() };
    inner.received.lock().unwrap().push(received);
    inner.arrived.notify_waiters();
    let reply = next_reply(&inner, &path);
    tokio::time::sleep(reply.after).await;
    let headers = reply.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    (StatusCode::from_u16(reply.status).unwrap(), headers, reply.body)
}

fn next_reply(inner: &Inner, path: &str) -> Reply {
    let mut replies = inner.replies.lock().unwrap();
    match replies.get_mut(path) {
        Some(queue) if queue.len() > 1 => queue.pop_front().unwrap(),
        Some(queue) => queue.front().cloned().unwrap_or_else(|| Reply::status(200)),
        None => Reply::status(200),
    }
}
