//! Cancelling, and trying again by hand.

use serde_json::json;

use crate::support::{
    gateway::TestGateway,
    messages::hook,
    sink::{Reply, Sink},
};

#[tokio::test]
async fn what_waits_can_be_canceled_and_never_leaves() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let body = json!({"channel": "webhook", "content": {"payload": {}}, "send_at": "2099-01-01T00:00:00Z"});
    let id = gateway.send(&body).await;
    let canceled = gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(200);
    assert_eq!(canceled["state"], "canceled");
    let again = gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(200);
    assert_eq!(again["state"], "canceled");
    assert_eq!(gateway.db.sql("select count(*) from queue").await.trim(), "0");
    assert!(sink.received().is_empty());
}

#[tokio::test]
async fn what_has_ended_cannot_be_canceled() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let id = gateway.send(&hook()).await;
    gateway.settled(&id).await;
    gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(409);
    gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(409);
}

#[tokio::test]
async fn a_failed_message_is_tried_again_by_hand() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(410), Reply::status(200)]);
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    let opened = gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
    assert_eq!(opened["state"], "queued");
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let triggers: Vec<_> = gateway.attempt_list(&id).await.iter().map(|it| it.trigger.clone()).collect();
    assert_eq!(triggers, ["scheduled", "manual"]);
}
