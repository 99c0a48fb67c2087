//! Memory of a node is limited in bytes, with a share for each tenant: large messages leave memory while their
//! deliveries wait, and none is lost.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    rules::live,
    support::{
        database::eventually,
        gateway::{ALL_SCOPES, TestGateway},
        process,
        sink::{Reply, Sink},
    },
};

/// The most memory that a node may have used, in bytes.
const MOST: usize = 600 << 20;
const MESSAGES: usize = 120;

/// An endpoint that reads whole requests and sends nothing, until it is released.
#[derive(Clone, Default)]
struct Silent {
    answers: Arc<AtomicBool>,
    /// The webhook ids of the requests that were read to their ends, by whether they were answered.
    read: Arc<Mutex<[HashSet<String>; 2]>>,
}

impl Silent {
    /// Starts it, and returns its URL.
    async fn start() -> (Self, String) {
        let silent = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/silent", listener.local_addr().unwrap());
        let this = silent.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(this.clone().serve(stream));
            }
        });
        (silent, url)
    }

    async fn serve(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some(id) = read_request(&mut stream).await {
            let answers = self.answers.load(Ordering::Relaxed);
            self.read.lock().unwrap()[usize::from(answers)].insert(id);
            if !answers {
                return std::future::pending().await;
            }
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
                return;
            }
        }
    }

    fn read(&self, answered: bool) -> usize {
        self.read.lock().unwrap()[usize::from(answered)].len()
    }
}

/// Returns the webhook id of a request that was read to its end and not kept.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut id, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("webhook-id") => id = value.to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            Some(_) => {}
            None if line.trim().is_empty() && !id.is_empty() => break,
            None => {}
        }
    }
    let read = tokio::io::copy(&mut (&mut *stream).take(length), &mut tokio::io::sink()).await.ok()?;
    (read == length).then_some(id)
}

/// Returns a webhook with this number of bytes.
fn large(bytes: usize) -> Value {
    json!({"channel": "webhook", "content": {"payload": "x".repeat(bytes)}})
}

/// About the largest payload that is accepted and that a request can be made of, in bytes.
async fn largest(gateway: &TestGateway) -> usize {
    for halves in (1..16).rev() {
        let bytes = halves << 19;
        let answer = gateway.post("/v1/messages?dry_run=true", &large(bytes)).await;
        if answer.status == 200 && answer.body["requests"][0]["request"].is_object() {
            return bytes;
        }
    }
    panic!("not even half a MiB is accepted");
}

/// The most memory that a node has used since it was started.
pub(super) fn peak(gateway: &TestGateway, node: usize) -> usize {
    let process = gateway.nodes[node].as_ref().expect("a living node").process();
    let bytes = process::peak_memory(process);
    println!("node {node} has used up to {} MiB", bytes >> 20);
    bytes
}

/// Waits until something is so, for at most four minutes: a development build takes its time with large contents.
async fn at_last(what: &str, so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(240);
    while !so() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A webhook connection of the gateway's tenant to that URL, asked again soon and often.
async fn webhook(gateway: &TestGateway, url: &str) {
    let connection = gateway.connection("hook", "webhook", json!({"url": url}), json!({})).await;
    gateway.without_breaker(&connection).await;
    let budget = json!({"share": 1, "min_per_second": 1000});
    let retry = json!({"type": "linear", "delay_ms": 200, "max_attempts": 50, "budget": budget});
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
}

/// Sends messages of a tenant, four at a time, and returns their ids.
async fn send_all(gateway: &TestGateway, message: &Value, count: usize) -> Vec<String> {
    stream::iter(0..count).map(|_| gateway.send(message)).buffer_unordered(4).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_to_a_silent_endpoint_leave_memory_and_none_is_lost() {
    let config = "[dispatch]\ndeadline_ms = 4000\n[queue]\nlease_ms = 12000\npoll_ms = 50\n";
    let mut gateway = TestGateway::with(1, config).await;
    let ((silent, url), sink) = (Silent::start().await, Sink::start().await);
    webhook(&gateway, &url).await;
    let bytes = largest(&gateway).await;
    println!("{MESSAGES} webhooks of {} KiB", bytes >> 10);
    let ids = send_all(&gateway, &large(bytes), MESSAGES).await;

    let one = std::mem::take(&mut gateway.key);
    gateway.key = gateway.key_of("two", ALL_SCOPES);
    gateway.webhook(&sink, "/small").await;
    let small = json!({"channel": "webhook", "content": {"payload": {"is": "small"}}});
    for id in send_all(&gateway, &small, 20).await {
        assert_eq!(gateway.settled(&id).await.state, "sent", "another tenant's messages pass");
    }
    gateway.key = one;
    at_last("every one of them being tried", || silent.read(false) == MESSAGES).await;
    assert!(peak(&gateway, 0) < MOST);

    gateway.kill(0);
    silent.answers.store(true, Ordering::Relaxed);
    gateway.take_over().await;
    at_last("every one of them arriving", || silent.read(true) == MESSAGES).await;
    for id in ids {
        assert_eq!(gateway.settled(&id).await.state, "sent");
    }
    assert!(peak(&gateway, 0) < MOST);
}

/// A tenant's unread requests stay in memory until the deadline, and take only a part of the memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_reads_nothing_leaves_memory_for_others() {
    let config = "[dispatch]\nmax_in_flight_bytes = 100663296\ndeadline_ms = 120000\n[queue]\nlease_ms = 360000\n";
    let mut gateway = TestGateway::with(1, config).await;
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    webhook(&gateway, &format!("http://{}/deaf", deaf.local_addr().unwrap())).await;
    let bytes = largest(&gateway).await.min(2 << 20);
    let ids = send_all(&gateway, &large(bytes), 40).await;
    // Connections are accepted and kept: their senders wait.
    let (stream, _) = deaf.accept().await.unwrap();
    let kept = tokio::spawn(async move {
        let mut kept = vec![stream];
        while let Ok((stream, _)) = deaf.accept().await {
            kept.push(stream);
        }
    });
    let one = std::mem::take(&mut gateway.key);
    gateway.key = gateway.key_of("two", ALL_SCOPES);
    let sink = Sink::start().await;
    gateway.webhook(&sink, "/large").await;
    let id = gateway.send(&large(bytes)).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(sink.received_at("/large")[0].body.len(), bytes + 2);
    gateway.key = one;
    for id in &ids {
        let state = gateway.message(id).await["state"].clone();
        assert_eq!(state, "queued", "nothing of the other's has ended before");
    }
    assert!(peak(&gateway, 0) < MOST);
    kept.abort();
    // It would wait for their deadline.
    gateway.kill(0);
}

#[tokio::test]
async fn a_backlog_of_large_messages_is_looked_at_without_their_contents() {
    let gateway = TestGateway::start().await;
    let (silent, url) = Silent::start().await;
    webhook(&gateway, &url).await;
    silent.answers.store(true, Ordering::Relaxed);
    let mut message = large(largest(&gateway).await);
    message["send_at"] = json!("2099-01-01T00:00:00Z");
    let ids = send_all(&gateway, &message, 100).await;
    let before = peak(&gateway, 0);
    let listed = stream::iter(0..8).map(|_| gateway.get("/v1/messages?limit=250")).buffer_unordered(8);
    let listed: Vec<Value> = listed.collect().await;
    assert!(listed.iter().all(|page| page["data"].as_array().is_some_and(|page| page.len() == ids.len())));
    let backtest = json!({"rules": [], "since": "2000-01-01T00:00:00Z"});
    gateway.post("/v1/rules/backtest", &backtest).await;
    assert!(peak(&gateway, 0) < before + (64 << 20));
    assert!(before < MOST);
}

/// The same bytes arrive whichever way the content went: at once, after a restart, by a further channel, and once more.
#[tokio::test]
async fn a_large_content_arrives_whole_at_once_and_in_the_end() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(503), Reply::status(200)]);
    let payload = json!({"b": "é".repeat(100_000), "a": 1});
    let whole = payload.to_string();
    let id = gateway.send(&json!({"channel": "webhook", "content": {"payload": payload}})).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let legs = json!([
        {"channel": "webhook", "content": {"payload": "short"}},
        {"channel": "webhook", "content": {"payload": payload}},
    ]);
    let id = gateway.send(&json!({"channels": legs, "mode": "all"})).await;
    sink.arrived(4).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let soon = (angarium::clock::now() + jiff::SignedDuration::from_secs(1)).to_string();
    let id = gateway.send(&json!({"channel": "webhook", "content": {"payload": payload}, "send_at": soon})).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let received = sink.received();
    assert_eq!((received.len(), received.iter().filter(|it| it.body == whole.as_bytes()).count()), (5, 4));
}

#[tokio::test]
async fn a_large_message_is_followed_by_its_whole_content_and_purged_with_its_excerpt() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("a", "webhook", json!({"url": sink.url("/a")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "a"}], "retry": {"type": "none"}})).await;
    sink.answers("/a", [Reply::status(503), Reply::status(200)]);
    let source = "fn on_outcome(delivery) { if delivery.state == \"failed\" { #{priority: \"high\"} } }";
    live(&gateway, "again", source).await;
    let text = format!("secret {}", "x".repeat(100_000));
    let id = gateway.send(&json!({"channel": "webhook", "content": {"text": text}})).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    let received = sink.arrived(2).await;
    assert_eq!(received[0].body.len(), received[1].body.len(), "what follows has the whole of it");
    assert_eq!(gateway.db.sql("select count(*) from message where excerpt is not null").await.trim(), "2");
    eventually("what follows to be done", || async {
        (gateway.db.sql("select count(*) from follow_up").await.trim() == "0").then_some(())
    })
    .await;
    gateway.call(Method::DELETE, &format!("/v1/messages/{id}/content"), None).await.expect(200);
    assert_eq!(gateway.db.sql("select count(*) from message where excerpt is not null").await.trim(), "1");
}
