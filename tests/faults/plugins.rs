//! A provider that misbehaves is contained, named in the attempt, and leaves others untouched.

use serde_json::{Value, json};

use crate::support::{database::eventually, gateway::TestGateway, sink::Sink};

async fn misbehaving() -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("bad", "fixture", json!({"url": sink.url("/bad")}), json!({})).await;
    gateway.connection("good", "webhook", json!({"url": sink.url("/good")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "bad"}, {"connection": "good"}]})).await;
    (gateway, sink)
}

#[tokio::test]
async fn each_misbehaviour_is_named_and_the_next_candidate_serves() {
    let (gateway, _sink) = misbehaving().await;
    // Four at a time, so that the fixture is not quarantined before all are seen.
    let modes =
        [("trap", "plugin_trap"), ("spin", "plugin_deadline"), ("grow", "plugin_memory"), ("huge", "plugin_output")];
    for (mode, code) in modes {
        let id = gateway.send(&json!({"channel": "webhook", "content": {"text": mode}})).await;
        assert_eq!(gateway.settled(&id).await.state, "sent", "{mode}");
        let attempts = gateway.attempt_list(&id).await;
        assert_eq!(attempts[0]["code"], code, "{mode}: {}", attempts[0]);
        assert_eq!(gateway.attempts(&id).await[1], "good:accepted");
    }
}

#[tokio::test]
async fn a_host_that_was_not_declared_is_refused() {
    let (gateway, _sink) = misbehaving().await;
    let id = gateway.send(&json!({"channel": "webhook", "content": {"text": "undeclared-host"}})).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let first = &gateway.attempt_list(&id).await[0];
    assert_eq!(first.code.as_deref(), Some("egress_refused"), "{first}");
    assert!(first.detail().contains("does not declare"), "{first}");
}

#[tokio::test]
async fn a_version_that_always_traps_is_quarantined_and_says_so() {
    let (gateway, _sink) = misbehaving().await;
    for _ in 0..5 {
        let id = gateway.send(&json!({"channel": "webhook", "content": {"text": "trap"}})).await;
        gateway.settled(&id).await;
    }
    let id = gateway.send(&json!({"channel": "webhook", "content": {"text": "trap"}})).await;
    gateway.settled(&id).await;
    assert_eq!(gateway.attempts(&id).await, ["good:accepted"], "the quarantined version is passed over");
    let provider = gateway.get("/v1/providers/fixture").await;
    assert!(provider["versions"][0]["quarantined_until"].is_string(), "{provider}");
    let reason = "it failed five times in a row over";
    assert!(
        provider["versions"][0]["quarantine_reason"].as_str().unwrap().contains("five times in a row"),
        "{provider}"
    );
    // The reason is shown wherever it keeps a message from leaving.
    let connection = gateway.shown_connection("bad").await;
    assert!(connection.warnings[0].detail.contains(reason), "{connection}");
    let pinned = json!({"channel": "webhook", "connection": "bad", "content": {"text": "hello"}});
    let pinned = gateway.send(&pinned).await;
    let attempt = eventually("an attempt", || async { gateway.attempt_list(&pinned).await.into_iter().next() }).await;
    assert!(attempt.detail().contains(reason), "{attempt}");
    let fixture = gateway.health_of("bad").await;
    assert_eq!(
        (&fixture["provider"]["version"], fixture["provider"]["quarantined"].as_array().unwrap().len()),
        (&Value::Null, 1)
    );
}

#[tokio::test]
async fn other_deliveries_go_out_while_a_plugin_spins_and_eats_memory() {
    let (gateway, sink) = misbehaving().await;
    let mut ids = Vec::new();
    for mode in ["spin", "grow", "recurse", "log-flood"] {
        ids.push(gateway.send(&json!({"channel": "webhook", "content": {"text": mode}})).await);
        for _ in 0..10 {
            let other = json!({"channel": "webhook", "connection": "good", "content": {"payload": {}}});
            ids.push(gateway.send(&other).await);
        }
    }
    for id in ids {
        assert_eq!(gateway.settled(&id).await.state, "sent");
    }
    assert!(sink.received_at("/good").len() >= 40);
}
