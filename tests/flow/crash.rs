//! Gateways that are killed while they work: no accepted message is lost, none ends twice, and possible duplicates are
//! labelled.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    audit::audit,
    gateway::TestGateway,
    load::Load,
    messages::hook,
    seed,
    sink::{Reply, Sink},
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";
const NODES: usize = 3;

/// How often a node is killed: 50, or as `ANGARIUM_TEST_KILLS` says.
fn kills() -> usize {
    std::env::var("ANGARIUM_TEST_KILLS").ok().and_then(|it| it.parse().ok()).unwrap_or(50)
}

/// The second candidate was asked when its worker died: the first, back by then, must not send too.
#[tokio::test]
async fn what_a_lost_worker_asked_is_asked_of_nobody_else() {
    let (mut gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
    sink.answers("/first", [Reply::status(503), Reply::status(200)]);
    sink.answers("/second", [Reply::status(200).after(Duration::from_secs(60)), Reply::status(200)]);
    gateway.connection("first", "webhook", json!({"url": sink.url("/first")}), json!({})).await;
    gateway.connection("second", "webhook", json!({"url": sink.url("/second")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "first"}, {"connection": "second"}]})).await;
    let id = gateway.send(&hook()).await;
    sink.arrived(2).await;
    gateway.kill(0);
    let node = gateway.new_node().await;
    gateway.nodes[0] = Some(node);
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let attempts = gateway.attempts(&id).await;
    assert_eq!(attempts, ["first:rejected_transient", "second:unknown", "second:accepted"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_gateways_lose_nothing_and_label_every_duplicate() {
    let (mut gateway, sink) = (TestGateway::with(NODES, CONFIG).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let load = Load::start(&gateway, 4);
    let mut random = seed::rng();
    for _ in 0..kills() {
        tokio::time::sleep(Duration::from_millis(random.u64(20..200))).await;
        let victim = random.usize(0..NODES);
        let address = gateway.nodes[victim].as_ref().unwrap().address();
        gateway.kill(victim);
        load.leave(address);
        let node = gateway.new_node().await;
        load.join(node.address());
        gateway.nodes[victim] = Some(node);
    }
    let accepted = load.stop().await;
    assert!(accepted.len() > kills(), "the load was real: {} messages", accepted.len());
    audit(&gateway, &sink, &accepted).await;
}
