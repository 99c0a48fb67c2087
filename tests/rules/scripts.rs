//! Scripts: refused, activated, obeyed, rolled back, and switched off.

use reqwest::Method;
use serde_json::{Value, json};

use super::live;
use crate::support::{
    database::eventually,
    gateway::TestGateway,
    messages::hook,
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

#[tokio::test]
async fn a_version_that_does_not_compile_or_fails_its_cases_is_refused() {
    let gateway = TestGateway::start().await;
    let add = async |body: Value| gateway.post("/v1/scripts/checks/versions", &body).await.expect(422);
    let refused = add(json!({"source": "fn admit(message) {\n    let x = ;\n}"})).await;
    let error = &refused["errors"][0];
    assert_eq!((&error["pointer"], &error["code"]), (&json!("/source"), &json!("does_not_compile")));
    assert!(error["detail"].as_str().unwrap().starts_with("must compile: line 2, column 13: "), "{error}");
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
    let refused = gateway.post("/v1/messages", &hook()).await.problem(422);
    assert_eq!(refused.code, "refused_by_rule");
    assert!(refused.detail.contains("closed by one"), "{refused}");
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
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["c:rejected_transient", "b:accepted"]);
    assert_eq!(sink.received_at("/a").len(), 0);
    // The script's answer, and its effect.
    let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
    let plan = &decision["decisions"][1]["plan"];
    let word = &plan["scripts"][0];
    assert_eq!((&word["script"], &word["version"], &word["hook"]), (&json!("order"), &json!(1), &json!("route")));
    assert_eq!(word["answer"]["candidates"][0]["connection"], "c");
    assert_eq!(plan["candidates"].as_array().unwrap().len(), 1, "c was asked already: {plan}");
}

#[tokio::test]
async fn a_script_that_was_switched_off_is_asked_again_on_every_node_once_it_is_reset() {
    let (gateway, sink) = (TestGateway::with(2, "").await, Sink::start().await);
    gateway.webhook(&sink, "/a").await;
    live(&gateway, "bad", "fn route(message, candidates) { throw \"not today\" }").await;
    let other = gateway.nodes[1].as_ref().unwrap().address();
    let script = async || {
        let request = crate::support::gateway::client().get(format!("http://{other}/v1/scripts/bad"));
        request.bearer_auth(&gateway.key).send().await.unwrap().json::<Value>().await.unwrap()
    };
    eventually("the script on the other node", || async {
        (script().await["hooks"] == json!(["route"])).then_some(())
    })
    .await;
    for _ in 0..20 {
        gateway.settled(&gateway.send_to(1, &hook()).await).await;
    }
    let off = script().await;
    assert!(off["off_since"].is_string() && off["origin"] == "tenant", "{off}");
    let reset = gateway.post("/v1/scripts/bad/reset", &json!({})).await.expect(200);
    assert_eq!((&reset["version"], &reset["off_since"]), (&json!(1), &Value::Null));
    eventually("its reset on the other node", || async { script().await["off_since"].is_null().then_some(()) }).await;
    let id = gateway.send_to(1, &hook()).await;
    gateway.settled(&id).await;
    assert!(gateway.attempt_list(&id).await[0].detail().contains("not today"));
    assert_eq!(gateway.get("/v1/audit").await["data"][0]["action"], "script.reset");
    gateway.post("/v1/scripts/none/reset", &json!({})).await.expect(404);
    gateway.call(Method::GET, "/v1/scripts/none", None).await.expect(404);
}

#[tokio::test]
async fn a_script_that_fails_leaves_the_route_and_is_switched_off() {
    let (gateway, sink) = with_two().await;
    live(&gateway, "bad", "fn route(message, candidates) { throw \"not today\" }").await;
    let mut ids = Vec::new();
    for _ in 0..21 {
        let id = gateway.send(&hook()).await;
        assert_eq!(gateway.settled(&id).await.state, "sent");
        ids.push(id);
    }
    assert_eq!(sink.received_at("/a").len(), 21);
    let attempts = gateway.attempt_list(&ids[0]).await;
    assert!(attempts[0].detail().contains("not today"), "{attempts:?}");
    let last = gateway.attempt_list(&ids[20]).await;
    assert!(!last[0].detail().contains("not today"), "it is asked no more");
    eventually("the event", || async {
        let mut found = false;
        for id in &ids {
            found |= gateway.event_types(id).await.iter().any(|kind| kind == "script.switched_off");
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
    assert_eq!(gateway.settled(&id).await.state, "failed");
    assert_eq!(gateway.attempts(&id).await.len(), 3);
}
