//! Stopping, and the housework.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    messages::hook,
    sink::{Reply, Sink},
};

#[tokio::test]
async fn sigterm_ends_what_is_under_way_and_leaves_no_lease() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(200).after(Duration::from_millis(700))]);
    let id = gateway.send(&hook()).await;
    sink.arrived(1).await;
    let node = gateway.nodes[0].take().unwrap();
    tokio::task::spawn_blocking(move || node.stop()).await.unwrap().expect("it stops by itself");
    let state = gateway.db.sql("select state from delivery").await;
    assert_eq!(state.trim(), "sent", "{id}");
    assert_eq!(gateway.db.sql("select count(*) from lease").await.trim(), "0");
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn the_housework_is_done() {
    let gateway = TestGateway::start().await;
    eventually("the queue's measure", || async {
        let metrics = gateway.call(reqwest::Method::GET, "/metrics", None).await.body;
        metrics.as_str().unwrap().contains("angarium_queue_depth").then_some(())
    })
    .await;
    let log = std::fs::read_to_string(gateway.nodes[0].as_ref().unwrap().log()).unwrap();
    assert!(!log.contains("housework failed"), "{log}");
}

#[tokio::test]
async fn a_disabled_connection_is_waited_for() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let connection = gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    let retry = json!({"type": "linear", "delay_ms": 300, "max_attempts": 100});
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
    let path = format!("/v1/connections/{connection}");
    gateway.call(reqwest::Method::PATCH, &path, Some(&json!({"enabled": false}))).await.expect(200);
    let id = gateway.send(&hook()).await;
    eventually("the wait", || async {
        let attempts = gateway.attempt_list(&id).await;
        attempts.iter().any(|it| it["code"] == "no_candidate").then_some(())
    })
    .await;
    gateway.call(reqwest::Method::PATCH, &path, Some(&json!({"enabled": true}))).await.expect(200);
    assert_eq!(gateway.settled(&id).await.state, "sent");
}
