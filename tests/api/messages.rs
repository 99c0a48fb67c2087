//! `/v1/messages`: the view of a message, and dry runs.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{database::eventually, gateway::TestGateway, sink::Sink};

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

#[tokio::test]
async fn what_a_client_escapes_silences_no_events() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let metadata = json!({"e\u{0}": "x\u{0}y"});
    let strange = json!({"channel": "webhook", "content": {"payload": {"a": "x\u{0}y"}}, "metadata": &metadata,
        "attributes": {"a": "\u{0}"}, "contact": {"id": "\u{0}"}, "context": {"\u{0}": "1"}});
    let strange = gateway.send(&strange).await;
    gateway.settled(&strange).await;
    let half = gateway.send_raw(r#"{"channel":"webhook","content":{"payload":"\ud800"}}"#).await;
    gateway.settled(&half).await;
    let after = gateway.send(&json!({"channel": "webhook", "content": {"payload": 1}})).await;
    gateway.settled(&after).await;
    let events = eventually("the events of all three", || async {
        let events = gateway.list("/v1/events?type=message.sent&limit=250").await;
        (events.len() == 3).then_some(events)
    })
    .await;
    assert_eq!((&events[0]["metadata"], &events[2]["message"]), (&metadata, &json!(after)));
    for message in [&strange, &half] {
        assert_eq!(gateway.event_types(message).await.last().unwrap(), "message.sent");
        gateway.get(&format!("/v1/messages/{message}/decision")).await;
    }
    // What a provider says may have it too, and stays no obstacle to a purge.
    let written = format!(
        r#"update event set data = '{{"detail": "x", "provider": {{"a": "\\\u0000\u0000"}}}}' where message_id = '{}'"#,
        strange.replace("msg_", "")
    );
    gateway.db.sql(&written).await;
    gateway.call(Method::DELETE, &format!("/v1/messages/{strange}/content"), None).await.expect(200);
    let event = gateway.list("/v1/events?type=message.sent&limit=250").await.swap_remove(0);
    assert_eq!(event["data"], json!({"provider": {"a": "\\\u{fffd}\u{fffd}"}}), "{event}");
}
