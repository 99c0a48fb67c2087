//! Experiments with scripts and rules: shadows that change nothing, canaries that stay with their recipients, activation
//! and the way back.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use super::{add, live};
use crate::support::{
    database::eventually,
    gateway::TestGateway,
    sink::{Reply, Sink},
};

async fn with_two(nodes: usize) -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::with(nodes, "").await, Sink::start().await);
    for uid in ["a", "b"] {
        gateway.connection(uid, "webhook", json!({"url": sink.url(&format!("/{uid}"))}), json!({})).await;
    }
    let spec = json!({"candidates": [{"connection": "a"}, {"connection": "b"}]});
    gateway.route("webhook", spec).await;
    (gateway, sink)
}

/// A message to one of many recipients: each has an address of its own.
fn to(sink: &Sink, recipient: usize) -> Value {
    json!({"channel": "webhook", "to": sink.url(&format!("/to/{recipient}")), "content": {"payload": {}}})
}

async fn version_met(gateway: &TestGateway, message: &str) -> i64 {
    let decision = gateway.get(&format!("/v1/messages/{message}/decision")).await;
    decision["ruling"]["scripts"][0]["version"].as_i64().unwrap()
}

async fn actions(gateway: &TestGateway, count: usize) -> Vec<Value> {
    let audit = gateway.get("/v1/audit").await;
    audit["data"].as_array().unwrap().iter().take(count).map(|it| it["action"].clone()).collect()
}

#[tokio::test]
async fn a_canary_stays_with_its_recipients_and_is_counted_beside_what_is_live() {
    let (gateway, sink) = with_two(1).await;
    live(&gateway, "gate", "fn admit(message) { #{priority: \"high\"} }").await;
    let second = add(&gateway, "gate", "fn admit(message) { #{priority: \"low\"} }").await;
    let path = "/v1/scripts/gate/experiment";
    let canary =
        |version: i64, percentage: i64| json!({"version": version, "mode": "canary", "percentage": percentage});
    let bad = gateway.post(path, &canary(second, 100)).await.problem(422);
    assert_eq!(bad.errors[0].pointer, "/percentage");
    let bad = gateway.post(path, &canary(1, 50)).await.problem(422);
    assert_eq!((bad.errors[0].pointer.as_str(), bad.errors[0].code.as_str()), ("/version", "already_live"));
    let begun = gateway.post(path, &canary(second, 50)).await.expect(200);
    assert_eq!((&begun["mode"], &begun["percentage"]), (&json!("canary"), &json!(50)));

    let mut met = BTreeMap::new();
    for recipient in 0..20 {
        let id = gateway.send(&to(&sink, recipient)).await;
        let view = gateway.settled(&id).await;
        let version = version_met(&gateway, &id).await;
        let said = if version == 1 { "high" } else { "low" };
        assert_eq!(view["priority"], said, "the version that is named is the one that decided");
        met.insert(recipient, version);
    }
    let canaries = met.values().filter(|it| **it == second).count();
    assert!((1..20).contains(&canaries), "{met:?}");
    gateway.post(path, &canary(second, 80)).await.expect(200);
    for (recipient, before) in &met {
        let id = gateway.send(&to(&sink, *recipient)).await;
        gateway.settled(&id).await;
        let now = version_met(&gateway, &id).await;
        assert!(*before == 1 || now == second, "whoever was in stays in: {recipient}");
    }
    let fares = eventually("the counts", || async {
        let fares = gateway.get("/v1/scripts/gate/experiment").await;
        let asked = fares["variant"]["asked"].as_i64().unwrap() + fares["live"]["asked"].as_i64().unwrap();
        let sent = |arm: &str| fares[arm]["deliveries"]["sent"].as_i64().unwrap_or_default();
        (asked == 40 && sent("variant") + sent("live") == 40).then_some(fares)
    })
    .await;
    assert!(fares["variant"]["asked"].as_i64().unwrap() >= 2 * canaries as i64, "{fares}");
    assert_eq!(fares["variant"]["asked"], fares["variant"]["deliveries"]["sent"], "{fares}");
    assert_eq!(fares["version"], second);
}

#[tokio::test]
async fn a_canary_decides_about_retries_of_its_messages_too() {
    let (gateway, sink) = with_two(1).await;
    gateway.without_breaker("a").await;
    live(&gateway, "patience", "fn retry(attempt) { retry_after(0.05) }").await;
    let second = add(&gateway, "patience", "fn retry(attempt) { give_up(\"at once\") }").await;
    let spec = json!({"candidates": [{"connection": "a"}], "retry": {"type": "custom", "rule": "patience",
        "otherwise": {"type": "linear", "delay_ms": 60000, "max_attempts": 5}}});
    gateway.route("webhook", spec).await;
    gateway
        .post("/v1/scripts/patience/experiment", &json!({"version": second, "mode": "canary", "percentage": 50}))
        .await
        .expect(200);
    let mut attempts = [0, 0];
    for recipient in 0..12 {
        sink.answers(&format!("/to/{recipient}"), [Reply::status(503), Reply::status(200)]);
        let id = gateway.send(&to(&sink, recipient)).await;
        let view = gateway.settled(&id).await;
        let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
        let canary = decision["ruling"]["canaries"][0]["version"] == second;
        assert_eq!(view["state"], if canary { "failed" } else { "sent" }, "{decision}");
        assert_eq!(gateway.attempts(&id).await.len(), if canary { 1 } else { 2 });
        attempts[usize::from(canary)] += 1;
    }
    assert!(attempts.iter().all(|it| *it > 0), "{attempts:?}");
}

#[tokio::test]
async fn a_shadow_changes_nothing_and_records_just_the_differences() {
    let (gateway, sink) = with_two(1).await;
    live(&gateway, "gate", "fn admit(message) { #{priority: \"high\"} }").await;
    let source =
        "fn admit(message) { if message.reference == \"odd\" { return refuse(\"odd\"); } #{priority: \"high\"} }
        fn route(message, candidates) { [\"b\"] }";
    let second = add(&gateway, "gate", source).await;
    gateway.post("/v1/scripts/gate/experiment", &json!({"version": second, "mode": "shadow"})).await.expect(200);
    assert_eq!(gateway.get("/v1/scripts/gate/versions").await["data"][0]["state"], "shadow");
    let even = gateway.send(&to(&sink, 0)).await;
    let mut message = to(&sink, 1);
    message["reference"] = json!("odd");
    let odd = gateway.send(&message).await;
    for id in [&even, &odd] {
        let view = gateway.settled(id).await;
        assert_eq!((view.state.as_str(), view.priority.as_str()), ("sent", "high"));
        assert_eq!(gateway.attempts(id).await, ["a:accepted"]);
    }
    let list = eventually("the differences", || async {
        let list = gateway.get("/v1/scripts/gate/experiment/differences").await["data"].clone();
        (list.as_array().unwrap().len() == 3).then_some(list)
    })
    .await;
    let of = |hook: &str, message: &str| {
        let found = list.as_array().unwrap().iter().find(|it| it["hook"] == hook && it["message"] == message);
        found.cloned().unwrap_or_else(|| panic!("no difference of {hook} at {message}: {list}"))
    };
    let admit = of("admit", &odd);
    assert_eq!(admit["live"], json!({"priority": "high"}));
    assert_eq!(admit["variant"]["refused"]["reason"], "odd");
    assert_eq!(of("route", &even)["variant"], json!({"candidates": ["b"]}));
    of("route", &odd);
    let fares = gateway.get("/v1/scripts/gate/experiment").await;
    assert_eq!((&fares["variant"]["asked"], &fares["different"]), (&json!(4), &json!(3)), "{fares}");

    let access = [gateway.url(""), gateway.key.clone()];
    let printed = |verb: &str| {
        let arguments = ["scripts", "experiment", verb, "gate", "--url", &access[0], "--key", &access[1]];
        gateway.settings().command_line(&arguments).unwrap()
    };
    assert!(printed("show").contains("shadow") && printed("differences").contains(&odd));

    // The failure counts only for the variant itself.
    let third = add(&gateway, "gate", "fn admit(message) { throw \"broken\" }").await;
    gateway.post("/v1/scripts/gate/experiment", &json!({"version": third, "mode": "shadow"})).await.expect(200);
    assert_eq!(
        gateway.get("/v1/scripts/gate/experiment/differences").await["data"],
        json!([]),
        "another variant begins anew"
    );
    let id = gateway.send(&to(&sink, 2)).await;
    assert_eq!(gateway.settled(&id).await.priority, "high");
    eventually("the fault", || async {
        (gateway.get("/v1/scripts/gate/experiment").await["variant"]["faults"] == 1).then_some(())
    })
    .await;
    // A purge of the message also purges its differences.
    gateway.call(Method::DELETE, &format!("/v1/messages/{id}/content"), None).await.expect(200);
    assert_eq!(gateway.get("/v1/scripts/gate/experiment/differences").await["data"], json!([]));
    gateway.call(Method::DELETE, "/v1/scripts/gate/experiment", None).await.expect(204);
    gateway.call(Method::DELETE, "/v1/scripts/gate/experiment", None).await.expect(404);
    assert!(!gateway.get("/v1/scripts/gate/experiment").await["ended_at"].is_null());
    assert_eq!(
        actions(&gateway, 4).await,
        ["script.experiment_ended", "message.content_purged", "script.experiment_begun", "script.version_added"]
    );
}

#[tokio::test]
async fn a_shadow_is_asked_when_messages_go_and_what_follows_them_too() {
    let (gateway, sink) = with_two(1).await;
    live(&gateway, "office", "fn condition(context) { true }").await;
    let source = "fn condition(context) { context.message.reference != \"odd\" }
        fn on_outcome(delivery) { if delivery.state == \"sent\" { #{text: \"thanks\", tags: [\"thanked\"]} } }";
    let second = add(&gateway, "office", source).await;
    gateway.post("/v1/scripts/office/experiment", &json!({"version": second, "mode": "shadow"})).await.expect(200);
    let mut message = to(&sink, 0);
    message["condition"] = json!("office");
    message["reference"] = json!("odd");
    let id = gateway.send(&message).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let list = eventually("the differences", || async {
        let list = gateway.get("/v1/scripts/office/experiment/differences").await["data"].clone();
        (list.as_array().unwrap().len() == 2).then_some(list)
    })
    .await;
    let of = |hook: &str| list.as_array().unwrap().iter().find(|it| it["hook"] == hook && it["message"] == id).cloned();
    let condition = of("condition").unwrap_or_else(|| panic!("none of the condition: {list}"));
    assert_eq!((&condition["live"], &condition["variant"]), (&json!({"goes": true}), &json!({"goes": false})));
    let end = of("on_outcome").unwrap_or_else(|| panic!("none of the end: {list}"));
    assert_eq!((&end["live"], &end["variant"]["follows"]["office"]["tags"]), (&json!({}), &json!(["thanked"])));
    assert_eq!(gateway.db.sql("select count(*) from message").await.trim(), "1", "nothing followed");
}

#[tokio::test]
async fn a_variant_is_activated_and_rolled_back_on_every_node_at_once() {
    let (gateway, sink) = with_two(2).await;
    live(&gateway, "gate", "fn admit(message) { #{priority: \"high\"} }").await;
    let second = add(&gateway, "gate", "fn admit(message) { #{priority: \"low\"} }").await;
    gateway
        .post("/v1/scripts/gate/experiment", &json!({"version": second, "mode": "canary", "percentage": 1}))
        .await
        .expect(200);
    let met = async |node: usize, version: i64| {
        eventually("the version on every node", || async {
            let id = gateway.send_to(node, &to(&sink, 7)).await;
            (version_met(&gateway, &id).await == version).then_some(())
        })
        .await;
    };
    let live = gateway.post("/v1/scripts/gate/activate", &json!({"version": second})).await.expect(200);
    assert_eq!(live["state"], "live");
    assert!(!gateway.get("/v1/scripts/gate/experiment").await["ended_at"].is_null(), "the experiment ends");
    met(0, second).await;
    met(1, second).await;
    gateway.post("/v1/scripts/gate/rollback", &json!({})).await.expect(200);
    met(0, 1).await;
    met(1, 1).await;
    assert_eq!(actions(&gateway, 3).await, ["script.rolled_back", "script.activated", "script.experiment_begun"]);
}

#[tokio::test]
async fn a_rule_is_tried_activated_and_rolled_back() {
    let (gateway, sink) = with_two(1).await;
    let rule = |priority: &str, connection: &str| json!({"name": "All", "then": {"priority": priority, "connections": [connection]}});
    let made = gateway.post("/v1/rules", &json!({"uid": "all", "rule": rule("high", "a")})).await.expect(201);
    let versions = "/v1/rules/all/versions";
    let bad = gateway.post(versions, &json!({"rule": {"name": "All", "then": {}}})).await.problem(422);
    assert_eq!(bad.errors[0].pointer, "/rule/then");
    let bad = gateway.post(versions, &json!({})).await.problem(422);
    assert_eq!(bad.errors[0].pointer, "/rule");
    let experiment = "/v1/rules/all/experiment";
    let shadow = json!({"version": 2, "mode": "shadow"});
    let bad = gateway.post(experiment, &shadow).await.expect(422);
    assert_eq!(
        (&bad["errors"][0]["pointer"], &bad["errors"][0]["code"]),
        (&json!("/version"), &json!("unknown_version"))
    );
    gateway.call(Method::DELETE, experiment, None).await.expect(404);
    let added = gateway.post(versions, &json!({"rule": rule("low", "b")})).await.expect(201);
    assert_eq!((&added["version"], &added["activated_at"]), (&json!(2), &Value::Null));
    assert_eq!(gateway.get("/v1/rules/all").await["version"], 1, "a version counts for nothing until it is activated");
    let compared = gateway.get("/v1/rules/all/versions/2/compare").await;
    assert_eq!(
        compared["differences"],
        json!([
            {"pointer": "/then/connections/0/connection", "before": "a", "after": "b"},
            {"pointer": "/then/priority", "before": "high", "after": "low"},
        ])
    );
    for (bad, pointer) in [
        (json!({"version": 1, "mode": "shadow"}), "/version"),
        (json!({"version": 2, "mode": "canary"}), "/percentage"),
        (json!({"version": 2, "mode": "shadow", "percentage": 5}), "/percentage"),
    ] {
        let bad = gateway.post(experiment, &bad).await.expect(422);
        assert_eq!(bad["errors"][0]["pointer"], pointer, "{bad}");
    }
    let begun = gateway.post(experiment, &shadow).await.expect(200);
    assert_eq!((&begun["live_version"], &begun["mode"]), (&json!(1), &json!("shadow")));
    let id = gateway.send(&to(&sink, 0)).await;
    assert_eq!(gateway.settled(&id).await.priority, "high");
    assert_eq!(gateway.attempts(&id).await, ["a:accepted"]);
    let list = eventually("the difference", || async {
        let list = gateway.get("/v1/rules/all/experiment/differences").await["data"].clone();
        (list.as_array().unwrap().len() == 1).then_some(list)
    })
    .await;
    assert_eq!((&list[0]["message"], &list[0]["hook"]), (&json!(id), &json!("admit")));
    assert_eq!(list[0]["live"], json!({"priority": "high", "connections": ["a"]}));
    assert_eq!(list[0]["variant"], json!({"priority": "low", "connections": ["b"]}));

    // Another rule's variant has to wait for its turn.
    gateway.post("/v1/rules", &json!({"uid": "other", "rule": rule("normal", "a")})).await.expect(201);
    gateway.post("/v1/rules/other/versions", &json!({"rule": rule("low", "b")})).await.expect(201);
    let second = gateway.post("/v1/rules/other/experiment", &shadow).await.problem(409);
    assert_eq!(second.code, "another_experiment");
    gateway.call(Method::DELETE, "/v1/rules/other", None).await.expect(204);

    // The same version as a canary.
    gateway.post(experiment, &json!({"version": 2, "mode": "canary", "percentage": 50})).await.expect(200);
    let mut low = 0;
    for recipient in 0..20 {
        let id = gateway.send(&to(&sink, recipient)).await;
        let view = gateway.settled(&id).await;
        let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
        let canary = decision["ruling"]["canaries"][0]["of"] == made["id"];
        assert_eq!(view["priority"], if canary { "low" } else { "high" });
        assert_eq!(decision["rules"].as_array().unwrap().len(), 1, "either is explained: {decision}");
        low += usize::from(canary);
    }
    assert!((1..20).contains(&low), "{low}");

    let activate = "/v1/rules/all/activate";
    let passed = gateway.post(activate, &json!({"version": 2, "replaces": 2})).await.problem(409);
    assert_eq!(passed.code, "version_passed");
    let active = gateway.post(activate, &json!({"version": 2, "replaces": 1})).await.expect(200);
    assert_eq!((&active["version"], &active["rule"]["then"]["priority"]), (&json!(2), &json!("low")));
    assert!(!gateway.get(experiment).await["ended_at"].is_null(), "the experiment ends");
    let id = gateway.send(&to(&sink, 0)).await;
    assert_eq!(gateway.settled(&id).await.priority, "low");
    let back = gateway.post("/v1/rules/all/rollback", &json!({})).await.expect(200);
    assert_eq!((&back["version"], &back["rule"]["then"]["priority"]), (&json!(1), &json!("high")));
    assert_eq!((&back["previous_version"], &back["latest_version"]), (&json!(2), &json!(2)), "the two change places");
    let id = gateway.send(&to(&sink, 0)).await;
    assert_eq!(gateway.settled(&id).await.priority, "high");
    assert_eq!(actions(&gateway, 3).await, ["rule.rolled_back", "rule.activated", "rule.experiment_begun"]);

    // A variant that was compared with another version than it would replace is not activated.
    gateway.post(experiment, &shadow).await.expect(200);
    gateway.call(Method::PUT, "/v1/rules/all", Some(&json!({"rule": rule("urgent", "a")}))).await.expect(200);
    assert_eq!(gateway.post(activate, &json!({"version": 2})).await.problem(409).code, "version_passed");
    gateway.call(Method::DELETE, experiment, None).await.expect(204);
    assert_eq!(gateway.post(activate, &json!({"version": 2})).await.expect(200)["previous_version"], 3);
}
