//! Delivering, falling back, retrying, and calling the unknown unknown.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::support::{
    gateway::TestGateway,
    sink::{Reply, Sink},
};

fn hook(payload: &Value) -> Value {
    json!({"channel": "webhook", "content": {"payload": payload}})
}

/// Returns an address without a listener.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/", listener.local_addr().unwrap())
}

#[tokio::test]
async fn a_webhook_arrives_and_is_on_record() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let connection = gateway.webhook(&sink, "/in").await;
    let body = r#"{"channel": "webhook", "content": {"payload": {"b":  1.0, "a":[2]}}, "reference": "invoice:7", "metadata": {"mine": true}}"#;
    let id = gateway.send_raw(body).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "sent");
    assert_eq!(view.reference.as_deref(), Some("invoice:7"));
    assert_eq!(view["metadata"], json!({"mine": true}));
    assert_eq!(view.delivery.connection.as_ref(), Some(&connection));
    let received = sink.received_at("/in");
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].body, r#"{"b":  1.0, "a":[2]}"#, "byte for byte as it was sent");
    assert_eq!(gateway.attempts(&id).await, ["hook:accepted"]);
    let attempt = &gateway.attempt_list(&id).await[0];
    assert_eq!((attempt.number, attempt.trigger.as_str()), (1, "scheduled"));
    assert_eq!((attempt.status, attempt["provider"].as_str()), (Some(200), Some("webhook")));
    assert_eq!(gateway.event_types(&id).await, ["message.accepted", "message.sent"]);
    let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
    assert!(decision.to_string().contains(&connection), "{decision}");
}

#[tokio::test]
async fn a_provider_that_is_down_is_passed_over() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("down", "webhook", json!({"url": nobody()}), json!({})).await;
    gateway.connection("up", "webhook", json!({"url": sink.url("/up")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "down"}, {"connection": "up"}]})).await;
    let id = gateway.send(&hook(&json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["down:not_sent", "up:accepted"]);
    let second = &gateway.attempt_list(&id).await[1];
    assert_eq!(second.trigger, "fallback");
    assert_eq!(second.fallback_reason.as_deref(), Some("provider_unavailable"));
}

#[tokio::test]
async fn a_failing_receiver_is_asked_again() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(503), Reply::status(500), Reply::status(200)]);
    let id = gateway.send(&hook(&json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["hook:rejected_transient", "hook:rejected_transient", "hook:accepted"]);
    let ids: Vec<_> = sink.received_at("/in").iter().map(|it| it.header("webhook-id").to_owned()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "the key is the same for every try: {ids:?}");
}

#[tokio::test]
async fn a_refusal_for_good_ends_it() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(410)]);
    let id = gateway.send(&hook(&json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    assert_eq!(gateway.attempts(&id).await, ["hook:rejected_permanent"]);
}

#[tokio::test]
async fn retries_end_with_the_policy() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    let retry = json!({"type": "schedule", "delays_ms": [10, 20]});
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
    sink.answers("/in", [Reply::status(500)]);
    let id = gateway.send(&hook(&json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    assert_eq!(sink.received_at("/in").len(), 3);
}

/// A server that takes the request and closes the connection without an answer.
async fn hangs_up() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
        }
    });
    url
}

#[tokio::test]
async fn a_request_without_an_answer_is_unknown_and_stays_with_its_provider() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("mute", "webhook", json!({"url": hangs_up().await}), json!({})).await;
    gateway.connection("other", "webhook", json!({"url": sink.url("/other")}), json!({})).await;
    let candidates = json!([{"connection": "mute"}, {"connection": "other"}]);
    let retry = json!({"type": "linear", "delay_ms": 10, "max_attempts": 2});
    gateway.route("webhook", json!({"candidates": candidates, "retry": retry})).await;
    let id = gateway.send(&hook(&json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "unknown");
    assert_eq!(gateway.attempts(&id).await, ["mute:unknown", "mute:unknown"]);
    assert!(sink.received().is_empty(), "another provider may not send it too");
}

#[tokio::test]
async fn an_unknown_is_held_where_the_route_says_so() {
    let gateway = TestGateway::start().await;
    gateway.connection("mute", "webhook", json!({"url": hangs_up().await}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "mute"}], "on_unknown": "hold"})).await;
    let id = gateway.send(&hook(&json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "unknown");
    assert_eq!(gateway.attempts(&id).await, ["mute:unknown"]);
}

#[tokio::test]
async fn a_slow_receiver_is_unknown_at_the_deadline() {
    let gateway = TestGateway::with(1, "[dispatch]\ndeadline_ms = 300\n[queue]\nlease_ms = 3000\n").await;
    let sink = Sink::start().await;
    gateway.connection("slow", "webhook", json!({"url": sink.url("/slow")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "slow"}], "on_unknown": "hold"})).await;
    sink.answers("/slow", [Reply::status(200).after(Duration::from_secs(60))]);
    let id = gateway.send(&hook(&json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "unknown");
}

#[tokio::test]
async fn the_egress_guard_refuses_what_is_not_granted_or_not_public() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("inside", "webhook", json!({"url": "http://169.254.169.254/latest/meta-data"}), json!({})).await;
    gateway.connection("up", "webhook", json!({"url": sink.url("/up")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "inside"}, {"connection": "up"}]})).await;
    let id = gateway.send(&hook(&json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let first = &gateway.attempt_list(&id).await[0];
    assert_eq!(
        (first["code"].clone(), first["disposition"].clone()),
        (json!("egress_refused"), json!("rejected_permanent"))
    );
}

#[tokio::test]
async fn a_dry_run_shows_the_request_and_sends_nothing() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let shown = gateway.post("/v1/messages?dry_run=true", &hook(&json!({"canary": 1}))).await.expect(200);
    let text = shown.to_string();
    assert!(text.contains("/in") && text.contains("canary"), "{text}");
    assert!(!text.contains("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "the secret is in {text}");
    let list = gateway.get("/v1/messages").await;
    assert_eq!(list["data"], json!([]));
    assert!(sink.received().is_empty());
}
