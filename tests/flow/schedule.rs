//! Messages that are due later, or no longer.

use jiff::{Timestamp, ToSpan};
use serde_json::json;

use crate::support::{gateway::TestGateway, sink::Sink};

#[expect(clippy::disallowed_methods, reason = "a test speaks to a gateway that reads the clock")]
fn now() -> Timestamp {
    Timestamp::now()
}

#[tokio::test]
async fn a_message_waits_for_its_time() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let send_at = now() + 1500.milliseconds();
    let body = json!({"channel": "webhook", "content": {"payload": {}}, "send_at": send_at});
    let accepted = gateway.post("/v1/messages", &body).await.expect(202);
    assert_eq!(accepted["state"], "scheduled");
    let view = gateway.settled(accepted["id"].as_str().unwrap()).await;
    assert_eq!(view.state, "sent");
    let attempts = gateway.attempt_list(&view.id).await;
    let started: Timestamp = attempts[0]["started_at"].as_str().unwrap().parse().unwrap();
    assert!(started >= send_at, "{started} is before {send_at}");
}

#[tokio::test]
async fn a_message_that_expires_before_it_can_be_sent_is_not_sent() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    let retry = json!({"type": "linear", "delay_ms": 5000, "max_attempts": 5});
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
    sink.answers("/in", [crate::support::sink::Reply::status(503)]);
    let body = json!({"channel": "webhook", "content": {"payload": {}}, "expires_at": now() + 2.seconds()});
    let id = gateway.send(&body).await;
    assert_eq!(gateway.settled(&id).await.state, "expired");
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn an_urgent_message_overtakes_a_backlog() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let send_at = now() + 2.seconds();
    let message = |priority: &str, name: &str| json!({"channel": "webhook", "content": {"payload": {"name": name}}, "send_at": send_at, "priority": priority});
    let mut messages = vec![message("low", "low"); 900];
    messages.push(message("urgent", "urgent"));
    gateway.post("/v1/messages/batch", &json!({"messages": messages})).await.expect(200);
    let received = sink.arrived(901).await;
    let place = received.iter().position(|it| it.body.windows(6).any(|part| part == b"urgent")).unwrap();
    assert!(place < 600, "the urgent one came as number {place}");
}
