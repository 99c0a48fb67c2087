//! One tenant's backlog beside another's ten messages; urgent messages beside others. The tests assert orders and
//! counts; the benchmark `fairness` has the times.

use serde_json::{Value, json};

use crate::support::{
    gateway::{ALL_SCOPES, TestGateway},
    sink::{Reply, Sink},
};

/// Room for few, so that the backlog is a long one.
const CONFIG: &str = "[dispatch]\nmax_in_flight = 64\n[queue]\npoll_ms = 20\n";
const BACKLOG: usize = 20_000;
const FEW: usize = 10;
/// The most deliveries before the last of the ten: those under way, and a claim or two.
const BEFORE: usize = 300;

fn batch(count: usize, priority: &str, send_at: Option<jiff::Timestamp>) -> Value {
    let mut message = json!({"channel": "webhook", "priority": priority, "content": {"payload": {"is": priority}}});
    if let Some(at) = send_at {
        message["send_at"] = json!(at.to_string());
    }
    json!({"messages": vec![message; count]})
}

/// Starts a backlog of one tenant that goes out to a slow receiver; the other tenant is `gateway.key`'s.
async fn backlog() -> (TestGateway, Sink) {
    let (mut gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    sink.answers("/many", [Reply::status(200).after(std::time::Duration::from_millis(10))]);
    gateway.webhook(&sink, "/many").await;
    for _ in 0..BACKLOG / 1_000 {
        gateway.post("/v1/messages/batch", &batch(1_000, "normal", None)).await.expect(200);
    }
    gateway.key = gateway.key_of("two", ALL_SCOPES);
    gateway.webhook(&sink, "/few").await;
    sink.arrived(100).await;
    (gateway, sink)
}

/// Sends the few, and returns how many of the others came from then on until the last of them.
async fn overtaken_by(gateway: &TestGateway, sink: &Sink) -> usize {
    gateway.post("/v1/messages/batch", &batch(FEW, "normal", None)).await.expect(200);
    let accepted = sink.received().len();
    crate::support::database::eventually("the few", || async { (sink.received_at("/few").len() == FEW).then_some(()) })
        .await;
    let last = sink.received().iter().rposition(|it| it.path == "/few").unwrap();
    (last + 1).saturating_sub(accepted + FEW)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_one_tenant_does_not_delay_ten_messages_of_another() {
    let (gateway, sink) = backlog().await;
    let before = overtaken_by(&gateway, &sink).await;
    assert!(before < BEFORE, "{before} of {BACKLOG} came before the last of {FEW}");
}

/// The node that takes them in dispatches nothing: they go the way through the queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_in_the_queue_does_not_delay_ten_messages_that_are_queued_behind_it() {
    let (mut gateway, sink) = backlog().await;
    let door = gateway.new_node_as(&["api"]).await;
    gateway.nodes.insert(0, Some(door));
    let before = overtaken_by(&gateway, &sink).await;
    assert!(before < BEFORE, "{before} of {BACKLOG} came before the last of {FEW}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pressing_go_first_and_the_others_are_not_starved() {
    const HIGH: usize = 600;
    const LOW: usize = 200;
    let (gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(200).after(std::time::Duration::from_millis(5))]);
    let at = angarium::clock::now() + jiff::SignedDuration::from_secs(2);
    gateway.post("/v1/messages/batch", &batch(LOW, "low", Some(at))).await.expect(200);
    gateway.post("/v1/messages/batch", &batch(HIGH, "high", Some(at))).await.expect(200);
    let received = sink.arrived(HIGH + LOW).await;
    let is_low: Vec<bool> = received.iter().map(|it| it.body.ends_with(br#"{"is":"low"}"#)).collect();
    // While both wait, one of five is low: here as many as a few claims.
    for (at, window) in is_low[..400].chunks(100).enumerate() {
        let low = window.iter().filter(|low| **low).count();
        assert!((5..=40).contains(&low), "{low} low ones of the {at}th hundred");
    }
}
