//! Ordering keys: one after another with the same key, and no key waits for another.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::ToSpan;
use serde_json::{Value, json};

use crate::support::{
    audit::audit,
    database::eventually,
    gateway::{TestGateway, client},
    seed,
    sink::{Reply, Sink},
};

fn message(sink: &Sink, key: &str, number: usize) -> Value {
    let payload = json!({"key": key, "number": number});
    let to = sink.url(&format!("/{key}"));
    json!({"channel": "webhook", "to": to, "ordering_key": key, "content": {"payload": payload}})
}

/// The numbers that came with this key, in the order in which they came.
fn numbers(sink: &Sink, key: &str) -> Vec<u64> {
    let received = sink.received_at(&format!("/{key}"));
    received.iter().map(|it| serde_json::from_slice::<Value>(&it.body).unwrap()["number"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_stuck_one_stops_its_key_and_no_other() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/stuck", [Reply::status(200).after(Duration::from_secs(3)), Reply::status(200)]);
    let stuck = (0..3).map(|number| message(&sink, "stuck", number));
    let free = (0..5).map(|number| message(&sink, "free", number));
    let batch: Vec<_> = stuck.chain(free).collect();
    gateway.post("/v1/messages/batch", &json!({"messages": batch})).await.expect(200);
    eventually("the other key's five", || async { (numbers(&sink, "free").len() == 5).then_some(()) }).await;
    assert_eq!(numbers(&sink, "stuck"), [0], "the second waits for the first");
    sink.arrived(8).await;
    assert_eq!((numbers(&sink, "stuck"), numbers(&sink, "free")), (vec![0, 1, 2], vec![0, 1, 2, 3, 4]));
}

#[tokio::test]
async fn a_key_waits_while_its_first_is_tried_again_and_goes_on_when_that_has_failed() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/k", (0..5).map(|_| Reply::status(503)).chain([Reply::status(200)]));
    let first = gateway.send(&message(&sink, "k", 0)).await;
    let second = gateway.send(&message(&sink, "k", 1)).await;
    let sent = gateway.settled(&second).await;
    assert_eq!((sent.state.as_str(), sent.ordering_key.as_deref()), ("sent", Some("k")));
    assert_eq!(gateway.settled(&first).await.state, "failed");
    assert_eq!(numbers(&sink, "k"), [0, 0, 0, 0, 0, 1]);
    assert_eq!(gateway.db.sql("select count(*) from ordering").await.trim(), "0", "nothing is left of a key");
}

#[tokio::test]
async fn cancelling_passes_the_turn_on_and_a_retry_by_hand_joins_the_end() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let mut later = message(&sink, "k", 0);
    later["send_at"] = json!((angarium::clock::now() + 1.hour()).to_string());
    let first = gateway.send(&later).await;
    let mut ids = Vec::new();
    for number in 1..4 {
        ids.push(gateway.send(&message(&sink, "k", number)).await);
    }
    let cancel = |id: &str| format!("/v1/messages/{id}/cancel");
    gateway.post(&cancel(&ids[0]), &json!({})).await.expect(200);
    assert!(numbers(&sink, "k").is_empty(), "the first has its turn until it is sent, though that is in an hour");

    // The second is held in the receiver's hand while the one that was canceled comes back.
    sink.answers("/k", [Reply::status(200).after(Duration::from_secs(2)), Reply::status(200)]);
    gateway.post(&cancel(&first), &json!({})).await.expect(200);
    sink.arrived(1).await;
    gateway.post(&format!("/v1/messages/{}/retry", ids[0]), &json!({})).await.expect(202);
    sink.arrived(3).await;
    assert_eq!(numbers(&sink, "k"), [2, 3, 1]);
}

#[tokio::test]
async fn a_job_sends_a_key_s_messages_again_in_their_order() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let webhook = gateway.webhook(&sink, "/in").await;
    gateway.without_breaker(&webhook).await;
    sink.answers("/k", (0..12).map(|_| Reply::status(410)).chain([Reply::status(200)]));
    let batch: Vec<_> = (0..12).map(|number| message(&sink, "k", number)).collect();
    let batch = gateway.post("/v1/messages/batch", &json!({"messages": batch})).await.expect(200);
    sink.arrived(12).await;
    eventually("all failed", || async {
        (gateway.list("/v1/messages?state=failed&limit=250").await.len() == 12).then_some(())
    })
    .await;
    let retry = json!({"action": "retry", "filter": {"state": "failed", "batch": batch["batch"]}, "reason": "mended"});
    let job = gateway.post("/v1/message-jobs", &retry).await.expect(202);
    let job = gateway.ended_job(job["id"].as_str().unwrap()).await;
    assert_eq!((job.matched, job.done, job.skipped), (12, 12, 0), "{job}");
    sink.arrived(24).await;
    assert_eq!(numbers(&sink, "k"), (0..12).chain(0..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_key_has_one_to_256_characters() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    for bad in [String::new(), "x".repeat(257), "a\nb".to_owned()] {
        let mut wrong = message(&sink, "k", 0);
        wrong["ordering_key"] = json!(bad);
        let problem = gateway.post("/v1/messages", &wrong).await.problem(422);
        assert_eq!(problem.errors[0].pointer, "/ordering_key", "{problem}");
    }
}

const KEYS: usize = 20;
const EACH: usize = 50;
const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";

/// Clients that send the messages of their key one after another, to whichever node answers.
struct Clients {
    addresses: Mutex<Vec<SocketAddr>>,
    token: String,
    accepted: Mutex<HashMap<String, String>>,
}

impl Clients {
    async fn send_all(self: Arc<Self>, sink: Sink, key: String) {
        let client = client();
        for number in 0..EACH {
            let idempotency = format!("{key}-{number}");
            let body = message(&sink, &key, number);
            let id = loop {
                if let Some(id) = self.try_send(&client, &idempotency, &body).await {
                    break id;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            self.accepted.lock().unwrap().insert(id, idempotency);
        }
    }

    async fn try_send(&self, client: &reqwest::Client, idempotency: &str, body: &Value) -> Option<String> {
        let address = {
            let addresses = self.addresses.lock().unwrap();
            addresses[fastrand::usize(0..addresses.len())]
        };
        let request = client.post(format!("http://{address}/v1/messages")).bearer_auth(&self.token);
        let request = request.header("idempotency-key", idempotency).timeout(Duration::from_secs(5)).json(body);
        let answer = request.send().await.ok()?;
        let accepted = answer.status() == 202;
        let body: Value = answer.json().await.ok()?;
        accepted.then(|| body["id"].as_str().unwrap().to_owned())
    }
}

/// Most are taken at once, some are slow, and some are refused for now.
fn moods(random: &mut fastrand::Rng) -> Vec<Reply> {
    let mood = |_| match random.u8(0..10) {
        0 | 1 => Reply::status(503),
        2 => Reply::status(200).after(Duration::from_millis(random.u64(5..60))),
        _ => Reply::status(200),
    };
    (0..EACH).map(mood).chain([Reply::status(200)]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_by_two_nodes_through_retries_and_kills() {
    let (mut gateway, sink) = (TestGateway::with(2, CONFIG).await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    let retry = json!({"type": "linear", "delay_ms": 20, "max_attempts": 50});
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
    let addresses = gateway.nodes.iter().flatten().map(|node| node.address()).collect();
    let (token, accepted) = (gateway.key.clone(), Mutex::default());
    let clients = Arc::new(Clients { addresses: Mutex::new(addresses), token, accepted });
    let mut random = seed::rng();
    let sending: Vec<_> = (0..KEYS)
        .map(|key| {
            sink.answers(&format!("/key{key}"), moods(&mut random));
            tokio::spawn(Arc::clone(&clients).send_all(sink.clone(), format!("key{key}")))
        })
        .collect();
    for (victim, after) in [(0, KEYS * EACH / 5), (1, KEYS * EACH / 2)] {
        sink.arrived(after).await;
        let address = gateway.nodes[victim].as_ref().unwrap().address();
        gateway.kill(victim);
        let node = gateway.new_node().await;
        clients.addresses.lock().unwrap().retain(|it| *it != address);
        clients.addresses.lock().unwrap().push(node.address());
        gateway.nodes[victim] = Some(node);
    }
    for key in sending {
        key.await.unwrap();
    }
    let accepted = clients.accepted.lock().unwrap().clone();
    assert_eq!(accepted.len(), KEYS * EACH);
    // Nothing is lost, and every duplicate is labelled.
    audit(&gateway, &sink, &accepted).await;
    for key in 0..KEYS {
        let came = numbers(&sink, &format!("key{key}"));
        assert!(came.is_sorted(), "key{key}: {came:?}");
        let mut once = came.clone();
        once.dedup();
        assert_eq!(once, (0..EACH as u64).collect::<Vec<_>>(), "key{key}");
    }
    assert_eq!(gateway.db.sql("select count(*) from ordering_line").await.trim(), "0");
}
