//! The transport over real sockets: peers on loopback that behave and that do not.

mod faults;
mod http;
mod http2;
mod memory;
mod oauth;
mod peers;
mod smtp;
mod tls;

use std::{future::Future, net::SocketAddr, time::Duration};

use angarium_domain::{
    ids::{ConnectionId, TenantId},
    transmission::{Auth, Blob, Fault, FaultKind, HttpRequest, Kv, Method, Reply, Segment, Transmission},
};
use angarium_transport::{
    Call, Hold, HostGrant, Parcel, Secrets, Transport, TransportSettings, byte_budget::BytePermit, sealing::Secret,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

/// The secret that may appear nowhere.
const CANARY: &str = "canary-7f3e9a";

/// A transport that may go to loopback, with a connection's data.
struct Sender {
    transport: Transport,
    secrets: Secrets,
    blobs: Vec<Blob>,
    granted: Vec<String>,
    config: Value,
    deadline: Duration,
    hold: Option<Box<dyn Hold>>,
    ids: (TenantId, ConnectionId),
}

impl Sender {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: TransportSettings) -> Self {
        Self::over(Transport::new(settings).unwrap())
    }

    fn over(transport: Transport) -> Self {
        Self {
            transport,
            secrets: [("canary".to_owned(), vec![Secret::new(CANARY)])].into_iter().collect(),
            blobs: Vec::new(),
            granted: vec!["127.0.0.1".to_owned(), "localhost".to_owned(), "*.example".to_owned()],
            config: json!({}),
            deadline: Duration::from_secs(5),
            hold: None,
            ids: (TenantId::new(), ConnectionId::new()),
        }
    }

    fn secret(mut self, name: &str, value: &str) -> Self {
        self.secrets.insert(name, vec![Secret::new(value)]);
        self
    }

    fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    async fn send(&self, transmission: Transmission) -> Result<Reply, Fault> {
        self.send_under(None, transmission).await
    }

    async fn send_under(&self, permit: Option<BytePermit>, transmission: Transmission) -> Result<Reply, Fault> {
        let call = Call {
            tenant: self.ids.0,
            connection: self.ids.1,
            secrets: &self.secrets,
            grant: HostGrant {
                provider: "test",
                declared: &self.granted,
                granted: &self.granted,
                config: &self.config,
                to: None,
            },
            deadline: Instant::now() + self.deadline,
            hold: self.hold.as_deref(),
            now: "2026-01-02T03:04:05Z".parse().unwrap(),
            trace: None,
        };
        let result = self.transport.perform(Parcel { transmission, blobs: self.blobs.clone(), permit }, &call).await;
        assert!(!format!("{result:?}").contains(CANARY), "the canary is out: {result:?}");
        result
    }

    async fn post(&self, url: &str, auth: Vec<Auth>) -> Result<Reply, Fault> {
        self.send(Transmission::Http(Box::new(post(url, auth)))).await
    }

    async fn fault(&self, url: &str) -> (FaultKind, bool) {
        let fault = self.post(url, vec![Auth::Bearer { secret: "canary".to_owned() }]).await.unwrap_err();
        (fault.kind, fault.may_have_been_sent)
    }
}

fn settings() -> TransportSettings {
    TransportSettings {
        allow: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        ..TransportSettings::default()
    }
}

fn post(url: &str, auth: Vec<Auth>) -> HttpRequest {
    HttpRequest {
        method: Method::Post,
        url: url.to_owned(),
        headers: vec![Kv { name: "Content-Type".to_owned(), value: "application/json".to_owned() }],
        body: vec![Segment::Text(r#"{"a":1}"#.to_owned())],
        auth,
        timeout_ms: None,
    }
}

/// Serves every connection with `handle`; ends with the test's runtime.
pub async fn serve<F, Fut>(handle: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    address
}

/// Reads one HTTP request: its head, and its body by `content-length`.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).await.ok()?;
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(head + String::from_utf8(body).unwrap().as_str())
}

/// Answers each request with this text, and hands the requests over.
async fn answering(
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (seen, requests) = tokio::sync::mpsc::unbounded_channel();
    let answer = std::sync::Arc::new(answer);
    let address = serve(move |mut stream| {
        let (seen, answer) = (seen.clone(), answer.clone());
        async move {
            while let Some(request) = read_request(&mut stream).await {
                let text = answer(&request);
                let _ = seen.send(request);
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, requests)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Answer: Yes\r\n\r\n{body}", body.len())
}
