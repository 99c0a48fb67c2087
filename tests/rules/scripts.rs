//! Scripts: refused, promoted, obeyed, rolled back, and switched off.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    sink::{Reply, Sink},
};

async fn with_two() -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    for uid in ["a", "b"] {
        gateway.connection(uid, "webhook", json!({"url": sink.url(&format!("/{uid}"))}), json!({})).await;
    }
    gateway.route("webhook", json!({"candidates": [{"connection": "a"}, {"connection": "b"}]})).await;
    (gateway, sink)
}

/// Adds a version and makes it live.
async fn live(gateway: &TestGateway, name: &str, source: &str) -> i64 {
    let path = format!("/v1/scripts/{name}");
    let made = gateway.post(&format!("{path}/versions"), &json!({"source": source})).await.expect(201);
    assert_eq!(made["state"], "draft");
    let version = made["version"].as_i64().unwrap();
    let live = gateway.post(&format!("{path}/promote"), &json!({"version": version})).await.expect(200);
    assert_eq!(live["state"], "live");
    version
}

fn hook() -> Value {
    json!({"channel": "webhook", "content": {"payload": {}}})
}

#[tokio::test]
async fn a_version_that_does_not_compile_or_fails_its_cases_is_refused() {
    let gateway = TestGateway::start().await;
    let add = async |body: Value| gateway.post("/v1/scripts/checks/versions", &body).await.expect(422);
    let refused = add(json!({"source": "fn admit(message) {\n    let x = ;\n}"})).await;
    let error = &refused["errors"][0];
    assert_eq!((&error["pointer"], &error["code"]), (&json!("/source"), &json!("does_not_compile")));
    assert!(error["detail"].as_str().unwrap().starts_with("line 2, column 13: "), "{error}");
    let source = "fn admit(message) { refuse(\"no\") }";
    let cases = json!([
        {"name": "refused", "hook": "admit", "message": {"channel": "sms"}, "expect": {"action": "refuse"}},
        {"name": "allowed", "hook": "admit", "message": {"channel": "sms"}, "expect": {"action": "allow"}},
    ]);
    let refused = add(json!({"source": source, "cases": cases})).await;
    let errors = refused["errors"].as_array().unwrap();
    assert_eq!(
        (errors.len(), &errors[0]["pointer"], &errors[0]["code"]),
        (1, &json!("/cases/1"), &json!("case_failed"))
    );
    gateway.call(Method::GET, "/v1/scripts/checks/versions", None).await.expect(404);
    let made = json!({"source": source, "cases": [cases[0]]});
    assert_eq!(gateway.post("/v1/scripts/checks/versions", &made).await.expect(201)["version"], 1);
}

#[tokio::test]
async fn admit_refuses_holds_and_is_rolled_back_at_once() {
    let (gateway, _sink) = with_two().await;
    live(&gateway, "gate", "fn admit(message) { refuse(\"closed by one\") }").await;
    let refused = gateway.post("/v1/messages", &hook()).await.expect(422);
    assert_eq!(refused["code"], "refused_by_rule");
    assert!(refused["detail"].as_str().unwrap().contains("closed by one"), "{refused}");
    let hold = "fn admit(message) { #{action: \"hold\", at: add_seconds(now(), 3600), priority: \"urgent\"} }";
    assert_eq!(live(&gateway, "gate", hold).await, 2);
    let held = gateway.post("/v1/messages", &hook()).await.expect(202);
    assert_eq!((&held["state"], &held["priority"]), (&json!("scheduled"), &json!("urgent")));
    let id = held["id"].as_str().unwrap();
    let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
    let word = &decision["ruling"]["scripts"][0];
    assert_eq!(
        (&word["script"], &word["version"], &word["answer"]["action"]),
        (&json!("gate"), &json!(2), &json!("hold"))
    );
    let back = gateway.post("/v1/scripts/gate/rollback", &json!({})).await.expect(200);
    assert_eq!((&back["version"], &back["state"]), (&json!(1), &json!("live")));
    gateway.post("/v1/messages", &hook()).await.expect(422);
    gateway.call(Method::DELETE, "/v1/scripts/gate", None).await.expect(204);
    gateway.post("/v1/messages", &hook()).await.expect(202);
    let audit = gateway.get("/v1/audit").await;
    let last: Vec<_> = audit["data"].as_array().unwrap().iter().take(2).map(|it| it["action"].clone()).collect();
    assert_eq!(last, ["script.retired", "script.rolled_back"]);
}

#[tokio::test]
async fn route_orders_removes_and_adds_candidates() {
    let (gateway, sink) = with_two().await;
    gateway.connection("c", "webhook", json!({"url": sink.url("/c")}), json!({})).await;
    live(&gateway, "order", "fn route(message, candidates) { [\"c\", \"b\"] }").await;
    sink.answers("/c", [Reply::status(503)]);
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await["state"], "sent");
    assert_eq!(gateway.attempts(&id).await, ["c:rejected_transient", "b:accepted"]);
    assert_eq!(sink.received_at("/a").len(), 0);
}

#[tokio::test]
async fn a_script_that_fails_leaves_the_route_and_is_switched_off() {
    let (gateway, sink) = with_two().await;
    live(&gateway, "bad", "fn route(message, candidates) { throw \"not today\" }").await;
    let mut ids = Vec::new();
    for _ in 0..21 {
        let id = gateway.send(&hook()).await;
        assert_eq!(gateway.settled(&id).await["state"], "sent");
        ids.push(id);
    }
    assert_eq!(sink.received_at("/a").len(), 21);
    let attempts = gateway.attempt_list(&ids[0]).await;
    assert!(attempts[0]["detail"].as_str().unwrap().contains("not today"), "{attempts:?}");
    let last = gateway.attempt_list(&ids[20]).await;
    assert!(!last[0]["detail"].as_str().unwrap_or_default().contains("not today"), "it is asked no more");
    eventually("the event", || async {
        let mut found = false;
        for id in &ids {
            let events = gateway.get(&format!("/v1/messages/{id}/events")).await;
            found |= events["data"].as_array().unwrap().iter().any(|it| it["type"] == "script.switched_off");
        }
        found.then_some(())
    })
    .await;
}

#[tokio::test]
async fn retry_is_left_to_a_script_once_there_is_one() {
    let (gateway, sink) = with_two().await;
    let spec = json!({"candidates": [{"connection": "a"}], "retry": {"type": "custom", "rule": "patience",
        "otherwise": {"type": "linear", "delay_ms": 60000, "max_attempts": 5}}});
    let route = json!({"channel": "webhook", "spec": spec});
    gateway.post("/v1/routes", &route).await.expect(422);
    let source = "fn retry(attempt) { if attempt.number < 3 { retry_after(0.05) } else { give_up(\"enough\") } }";
    live(&gateway, "patience", source).await;
    gateway.route("webhook", spec).await;
    sink.answers("/a", [Reply::status(503), Reply::status(503), Reply::status(503), Reply::status(503)]);
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await["state"], "failed");
    assert_eq!(gateway.attempts(&id).await.len(), 3);
}
