//! One tenant makes every attack at once; another does not notice.
//!
//! Counts and memory are asserted. Times are printed: they are met on a release build and a quiet machine.

use std::{
    collections::HashMap,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::support::{
    gateway::{ALL_SCOPES, TestGateway, client},
    messages::hook,
    process,
    sink::{Reply, Sink},
};

/// How long the attack lasts.
const ATTACK: Duration = Duration::from_secs(30);
/// The other tenant's messages, a second.
const RATE: u32 = 20;
/// The most memory of the node, in MiB.
const MEMORY_MIB: usize = 600;

/// The attacking tenant: a key, the gateway's address, and a flag that ends it.
#[derive(Clone)]
struct Attacker {
    client: reqwest::Client,
    url: String,
    key: String,
    stop: Arc<AtomicBool>,
    answers: Arc<Answers>,
}

/// The answers to the attacker.
#[derive(Default)]
struct Answers {
    taken: AtomicUsize,
    refused: AtomicUsize,
    failed: AtomicUsize,
    none: AtomicUsize,
}

impl Attacker {
    async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Option<Value> {
        let request = self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        let request = request.header("content-type", "application/json").body(body);
        let Ok(response) = request.send().await else {
            self.answers.none.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let count = match response.status() {
            status if status.is_success() => &self.answers.taken,
            StatusCode::INTERNAL_SERVER_ERROR => &self.answers.failed,
            _ => &self.answers.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
        response.json().await.ok()
    }

    async fn post(&self, path: &str, body: &Value) -> Option<Value> {
        self.call(Method::POST, path, body.to_string().into_bytes()).await
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Repeats a step until the attack ends.
    async fn repeat<F: Future>(self, step: impl Fn(Self, usize) -> F) {
        let mut turn = 0;
        while self.goes_on() {
            step(self.clone(), turn).await;
            turn += 1;
        }
    }
}

/// The address that the attacker comes from.
const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A connection from the attacker's address.
async fn connect(to: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind((FROM, 0).into()).ok()?;
    socket.connect(to).await.ok()
}

/// Accepts connections, reads their bytes, and never answers.
async fn silent_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    format!("http://{address}/silent")
}

/// Answers every request with a body without end.
async fn endless_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                let chunk = [b"1000\r\n".as_slice(), &[b'a'; 4096], b"\r\n"].concat();
                while stream.write_all(&chunk).await.is_ok() {}
            });
        }
    });
    format!("http://{address}/endless")
}

/// Sets the attacker's connections, routes, rules and scripts up.
async fn arm(gateway: &TestGateway, attacker: &Attacker, slow: &Sink) {
    slow.answers("/slow", [Reply::status(503).after(Duration::from_millis(300))]);
    let targets = [
        ("silent", json!({"url": silent_endpoint().await})),
        ("endless", json!({"url": endless_endpoint().await})),
        ("slow", json!({"url": slow.url("/slow")})),
    ];
    for (uid, config) in targets {
        let body = json!({"uid": uid, "provider": "webhook", "config": config});
        gateway.call_as(&attacker.key, Method::POST, "/v1/connections", Some(&body)).await.expect(201);
    }
    let retry = json!({"type": "linear", "delay_ms": 50, "max_attempts": 5});
    let spec = json!({"candidates": [{"connection": "slow"}, {"connection": "endless"}], "retry": retry});
    let route = json!({"uid": "all", "channel": "webhook", "spec": spec});
    gateway.call_as(&attacker.key, Method::POST, "/v1/routes", Some(&route)).await.expect(201);
    let activate = json!({"version": 1});
    gateway.call_as(&attacker.key, Method::POST, "/v1/routes/all/activate", Some(&activate)).await.expect(200);
    for nth in 0..100 {
        let expression = format!("let n = {nth}; for i in 0..20000 {{ n += i % 7; }} n == 1");
        let rule =
            json!({"name": format!("slow {nth}"), "when": {"expression": expression}, "then": {"priority": "high"}});
        attacker.post("/v1/rules", &json!({"rule": rule})).await;
    }
}

fn bomb() -> &'static str {
    "fn admit(message) { let f = |a| { a }; loop { f = f.curry(f, f, f, f, f, f, f, f); } }"
}

/// Starts each way of attack; all of them end when the flag is set.
fn attack(attacker: &Attacker, address: SocketAddr, callback: String) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let large =
        json!({"channel": "webhook", "connection": "silent", "content": {"payload": {"x": "y".repeat(6 << 20)}}});
    let quotes =
        json!({"channel": "webhook", "connection": "silent", "content": {"payload": {"text": "\"".repeat(5 << 20)}}});
    let many: serde_json::Map<_, _> = (0..200_000).map(|nth| (format!("f{nth}"), json!(nth))).collect();
    let unknown = Value::Object(many);
    let small = json!({"channel": "webhook", "content": {"payload": {"n": 1}}});
    let batch = json!({"messages": vec![small.clone(); 1_000]});
    let bodies =
        [("/v1/messages", large), ("/v1/messages", quotes), ("/v1/messages", unknown), ("/v1/messages/batch", batch)];
    for (path, body) in bodies {
        let body = body.to_string().into_bytes();
        for _ in 0..2 {
            let body = body.clone();
            tasks.spawn(attacker.clone().repeat(move |attacker, _| {
                let body = body.clone();
                async move { drop(attacker.call(Method::POST, path, body).await) }
            }));
        }
    }
    tasks.spawn(attacker.clone().repeat(|attacker, turn| async move {
        let name = format!("bomb-{}", turn % 8);
        attacker.post(&format!("/v1/scripts/{name}/versions"), &json!({"source": bomb()})).await;
        attacker.post(&format!("/v1/scripts/{name}/activate"), &json!({"version": 1})).await;
        let message = hook();
        attacker.post("/v1/rules/evaluate", &json!({"message": message})).await;
        let since = "2020-01-01T00:00:00Z";
        let rule = json!({"name": "any", "when": {"expression": "loop { }"}, "then": {"priority": "low"}});
        attacker.post("/v1/rules/backtest", &json!({"rules": [{"rule": rule}], "since": since})).await;
    }));
    tasks.spawn(attacker.clone().repeat(|attacker, turn| async move {
        let url = format!("http://127.0.0.1:9/{turn}");
        let body = json!({"config": {"url": url}}).to_string().into_bytes();
        attacker.call(Method::PATCH, "/v1/connections/endless", body).await;
        attacker.call(Method::GET, "/v1/messages?limit=250", vec![]).await;
        attacker.call(Method::GET, "/v1/statistics", vec![]).await;
    }));
    for _ in 0..4 {
        tasks.spawn(attacker.clone().repeat(|mut attacker, turn| async move {
            attacker.key = format!("ak_{:0>43}", fastrand::u64(..) ^ turn as u64);
            attacker.call(Method::GET, "/v1/messages", vec![]).await;
        }));
    }
    for _ in 0..20 {
        let streams = attacker.clone();
        tasks.spawn(async move {
            let stream = streams.client.get(format!("{}/v1/events/stream", streams.url)).bearer_auth(&streams.key);
            let _held = stream.send().await;
            while streams.goes_on() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let half = move |head: String| async move {
        let mut stream = connect(address).await?;
        stream.write_all(head.as_bytes()).await.ok()?;
        stream.write_all(&vec![b'x'; 64 << 10]).await.ok()?;
        Some(stream)
    };
    let holds = attacker.clone();
    tasks.spawn(async move {
        let mut held = Vec::new();
        for nth in 0..1_500 {
            let head = match nth % 3 {
                0 => String::new(),
                1 => format!("POST {callback} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"),
                _ => "POST /v1/messages HTTP/1.1\r\nhost: x\r\n".to_owned(),
            };
            let stream = if head.is_empty() { connect(address).await } else { half(head).await };
            held.extend(stream);
            if !holds.goes_on() {
                return;
            }
        }
        while holds.goes_on() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    tasks
}

/// The fate of the other tenant's messages.
struct Sent {
    /// The times from the request to the receiver's door.
    times: Vec<Duration>,
    ids: Vec<String>,
    failures: Vec<String>,
}

/// Sends at a steady rate until `end`.
async fn victim(gateway: &TestGateway, sink: &Sink, end: Instant) -> Sent {
    let (client, mut tasks) = (client(), JoinSet::new());
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut sent = 0;
    while Instant::now() < end {
        ticks.tick().await;
        let body = json!({"channel": "webhook", "content": {"payload": {"nth": sent}}});
        let request = client.post(gateway.url("/v1/messages")).bearer_auth(&gateway.key).json(&body);
        tasks.spawn(async move {
            let began = Instant::now();
            let response = request.send().await.map_err(|error| format!("{error:?}"))?;
            let (status, body) = (response.status(), response.json::<Value>().await.unwrap_or_default());
            let id = body["id"].as_str().filter(|_| status == StatusCode::ACCEPTED);
            id.map(|id| (sent, began, id.to_owned())).ok_or_else(|| format!("{status}: {body}"))
        });
        sent += 1;
    }
    let (mut began, mut ids, mut failures) = (HashMap::new(), Vec::new(), Vec::new());
    while let Some(result) = tasks.join_next().await {
        match result.unwrap() {
            Ok((nth, at, id)) => {
                began.insert(nth, at);
                ids.push(id);
            }
            Err(failure) => failures.push(failure),
        }
    }
    let received = received_all(sink, began.len()).await;
    let nth = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["nth"].as_u64().unwrap();
    let times = received.iter().filter_map(|it| Some(it.at - *began.get(&nth(&it.body))?)).collect();
    Sent { times, ids, failures }
}

async fn received_all(sink: &Sink, count: usize) -> Vec<crate::support::sink::Received> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while sink.received().len() < count {
        assert!(Instant::now() < deadline, "{} of {count} have come", sink.received().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sink.received()
}

/// Asks `/livez` on and on; the longest time of an answer.
async fn lives(gateway: &TestGateway, end: Instant) -> Duration {
    let (client, mut longest) = (client(), Duration::ZERO);
    while Instant::now() < end {
        let asked = Instant::now();
        let answer = client.get(gateway.url("/livez")).send().await.expect("the node lives");
        assert_eq!(answer.status(), StatusCode::OK);
        longest = longest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_attacks_in_every_way_at_once_is_not_noticed_by_another() {
    let (gateway, sink, slow) = (TestGateway::start().await, Sink::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let attacker = Attacker {
        client: reqwest::Client::builder().no_proxy().local_address(Some(FROM.into())).build().unwrap(),
        url: gateway.url(""),
        key: gateway.key_of("attacker", ALL_SCOPES),
        stop: Arc::default(),
        answers: Arc::default(),
    };
    arm(&gateway, &attacker, &slow).await;
    let node = gateway.nodes[0].as_ref().unwrap();
    let mut tasks = attack(&attacker, node.address(), "/v1/callbacks/none".to_owned());
    let end = Instant::now() + ATTACK;
    let (Sent { mut times, ids, failures }, livez) = tokio::join!(victim(&gateway, &sink, end), lives(&gateway, end));
    attacker.stop.store(true, Ordering::Relaxed);
    // Tasks still under way, such as a backtest over all sent messages, are aborted.
    tasks.shutdown().await;
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let peak = process::peak_memory(node.process()) >> 20;
    let answers = &attacker.answers;
    println!(
        "standing attack: {} messages of the other tenant, p50 {:?}, p99 {:?}; /livez at most {livez:?}; {peak} MiB at most; \
         the attacker was answered 2xx {:?}, 4xx or 503 {:?}, 500 {:?}, nothing {:?}",
        times.len(),
        at(0.5),
        at(0.99),
        answers.taken,
        answers.refused,
        answers.failed,
        answers.none
    );
    assert!(failures.is_empty(), "{} of the other tenant's requests failed, such as {:?}", failures.len(), failures[0]);
    assert_eq!(sink.received().len(), times.len(), "each message came once");
    for id in &ids {
        assert_eq!(gateway.settled(id).await.state, "sent", "{id}");
    }
    assert_eq!(answers.failed.load(Ordering::Relaxed), 0, "the attacker found a fault of the gateway's own");
    assert!(peak < MEMORY_MIB, "{peak} MiB");
}
