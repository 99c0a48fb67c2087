//! `/v1/messages`: the view of a message, and dry runs.

use serde_json::{Value, json};

use crate::support::{gateway::TestGateway, sink::Sink};

#[tokio::test]
async fn a_message_tells_what_became_of_it_and_why() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let connection = gateway.webhook(&sink, "/in").await;
    let body = json!({"channel": "webhook", "content": {"payload": [1]}, "priority": "high", "metadata": {"a": 1}});
    let accepted = gateway.post("/v1/messages", &body).await.expect(202);
    assert_eq!((&accepted["state"], &accepted["priority"]), (&json!("queued"), &json!("high")));
    let id = accepted["id"].as_str().unwrap();
    let sent = gateway.settled(id).await;
    assert_eq!(sent["delivery"]["connection"], json!(connection));
    assert_eq!(sent["metadata"], json!({"a": 1}));
    let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
    assert_eq!(decision["decisions"][0]["connection"], json!(connection));
    assert!(decision["decisions"][0]["plan"].is_object(), "{decision}");
    assert_eq!(gateway.event_types(id).await.last().unwrap(), "message.sent");
}

#[tokio::test]
async fn a_dry_run_shows_the_request_and_sends_nothing() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let body = json!({"channel": "webhook", "content": {"payload": {"n": 1}}});
    let shown = gateway.post("/v1/messages?dry_run=true", &body).await.expect(200);
    assert!(shown["plan"].is_object(), "{shown}");
    assert!(shown["requests"][0].to_string().contains(&sink.url("/in")), "{shown}");
    assert!(!shown.to_string().contains("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "a secret is shown: {shown}");
    assert!(sink.received().is_empty());
    assert_eq!(gateway.get("/v1/messages").await["data"], json!([]));
}

#[tokio::test]
async fn a_planned_message_is_scheduled() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let body = json!({"channel": "webhook", "content": {"payload": 1}, "send_at": "2099-01-01T00:00:00+01:00"});
    let accepted = gateway.post("/v1/messages", &body).await.expect(202);
    assert_eq!((&accepted["state"], &accepted["send_at"]), (&json!("scheduled"), &json!("2098-12-31T23:00:00Z")));
    let shown: Value = gateway.get(&format!("/v1/messages/{}", accepted["id"].as_str().unwrap())).await;
    assert_eq!(shown, accepted);
}
