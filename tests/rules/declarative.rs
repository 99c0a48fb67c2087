//! Declarative rules: from the API to their effect on messages, on every node.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::{Answer, TestGateway},
    messages::hook,
    sink::{Reply, Sink},
};

/// A gateway with two connections of one route, `a` and `b`, to paths of a sink.
async fn with_two(nodes: usize) -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::with(nodes, "").await, Sink::start().await);
    for uid in ["a", "b"] {
        gateway.connection(uid, "webhook", json!({"url": sink.url(&format!("/{uid}"))}), json!({})).await;
    }
    let spec = json!({"candidates": [{"connection": "a"}, {"connection": "b"}]});
    gateway.route("webhook", spec).await;
    (gateway, sink)
}

async fn rule(gateway: &TestGateway, uid: &str, rule: Value) -> Value {
    gateway.post("/v1/rules", &json!({"uid": uid, "rule": rule})).await.expect(201)
}

fn message(more: Value) -> Value {
    let mut message = hook();
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    message
}

/// `pointer:code` of each bad field, in order.
fn named(answer: Answer) -> Vec<String> {
    let body = answer.expect(422);
    let mut named: Vec<_> = body["errors"].as_array().unwrap().iter().map(pointer_and_code).collect();
    named.sort();
    named
}

fn pointer_and_code(error: &Value) -> String {
    format!("{}:{}", error["pointer"].as_str().unwrap(), error["code"].as_str().unwrap())
}

#[tokio::test]
async fn a_rule_refuses_a_message_by_name_and_nothing_is_stored() {
    let (gateway, sink) = with_two(1).await;
    let then = json!({"refuse": {"reason": "we do not serve it"}});
    let made = rule(
        &gateway,
        "gambling",
        json!({"name": "No gambling", "when": {"industry": {"is": "gambling"}}, "then": then}),
    )
    .await;
    let refused =
        gateway.post("/v1/messages", &message(json!({"contact": {"industry": "Gambling"}}))).await.expect(422);
    assert_eq!(refused["code"], "refused_by_rule");
    let detail = refused["detail"].as_str().unwrap();
    for part in ["No gambling", made["id"].as_str().unwrap(), "we do not serve it"] {
        assert!(detail.contains(part), "{detail}");
    }
    assert_eq!(gateway.get("/v1/messages").await["data"], json!([]));
    let sent = gateway.send(&message(json!({"contact": {"industry": "books"}}))).await;
    assert_eq!(gateway.settled(&sent).await.state, "sent");
    assert_eq!(sink.received_at("/a").len(), 1);
    // The others of the batch are taken.
    let batch = json!({"messages": [message(json!({"contact": {"industry": "gambling"}})), message(json!({}))]});
    let answer = gateway.post("/v1/messages/batch", &batch).await.expect(200);
    assert_eq!([&answer["data"][0]["status"], &answer["data"][1]["status"]], [422, 202]);
}

#[tokio::test]
async fn a_known_idempotency_key_is_answered_as_it_was_whatever_rules_say_now() {
    let (gateway, _sink) = with_two(1).await;
    let keyed = message(json!({"idempotency_key": "k-1"}));
    let first = gateway.send(&keyed).await;
    rule(&gateway, "none", json!({"name": "Nothing", "then": {"refuse": {"reason": "closed"}}})).await;
    let again = gateway.post("/v1/messages", &keyed).await.expect(202);
    assert_eq!(again["id"], json!(first));
    gateway.post("/v1/messages", &message(json!({"idempotency_key": "k-2"}))).await.expect(422);
}

#[tokio::test]
async fn scores_order_the_candidates_and_the_decision_says_why() {
    let (gateway, sink) = with_two(1).await;
    let vip = json!({"name": "Dear ones by b", "priority": 5, "when": {"customer": {"segment": "vip"}},
        "then": {"connections": ["b"], "priority": "high"}});
    rule(&gateway, "vip", vip).await;
    rule(
        &gateway,
        "gold",
        json!({"name": "Gold", "when": {"customer": {"segment": "gold"}}, "then": {"priority": "low"}}),
    )
    .await;
    let id = gateway.send(&message(json!({"contact": {"segment": ["VIP"]}}))).await;
    let view = gateway.settled(&id).await;
    assert_eq!((view.state.as_str(), view.priority.as_str()), ("sent", "high"));
    assert_eq!((sink.received_at("/a").len(), sink.received_at("/b").len()), (0, 1));
    let decision = gateway.get(&format!("/v1/messages/{id}/decision")).await;
    let ruling = &decision["ruling"]["decision"];
    assert_eq!(ruling["candidates"][0]["connection"], "b");
    assert_eq!(ruling["hits"], json!([{"rule": decision["rules"][0]["rule"], "confidence": 0.5}]));
    let rules = decision["rules"].as_array().unwrap();
    let seen: Vec<_> = rules.iter().map(|it| (it["name"].as_str().unwrap(), it["hit"].as_bool().unwrap())).collect();
    assert_eq!(seen, [("Dear ones by b", true), ("Gold", false)]);
    assert!(rules[1]["why"].as_str().unwrap().contains("segment vip is not gold"), "{decision}");
    let reason = decision["decisions"][0]["plan"]["candidates"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("rules give it +0.5;"), "{reason}");

    sink.answers("/b", [Reply::status(503)]);
    let id = gateway.send(&message(json!({"contact": {"segment": "vip"}}))).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["b:rejected_transient", "a:accepted"], "the other one stands in");

    let decision = format!("/v1/messages/{id}/decision");
    let before = gateway.get(&decision).await;
    gateway.call(Method::DELETE, "/v1/rules/vip", None).await.expect(204);
    let after = gateway.get(&decision).await;
    assert!(after["ruling"]["decision"]["hits"][0]["rule"].as_str().unwrap().starts_with("rule_"), "{after}");
    assert_eq!(after["ruling"], before["ruling"], "it names the rules that held, be they deleted");
    let changed = json!({"version": 1, "rule": {"name": "Gold", "then": {"priority": "urgent"}}});
    gateway.call(Method::PUT, "/v1/rules/gold", Some(&changed)).await.expect(200);
    let later = gateway.get(&decision).await;
    assert_eq!((&after["rules"], &later["rules"]), (&before["rules"], &before["rules"]), "as they were then");
}

#[tokio::test]
async fn a_rule_chooses_the_channel_of_a_message_that_names_none() {
    let (gateway, sink) = with_two(1).await;
    let silent = json!({"content": {"payload": {}}, "attributes": {"amount": 750, "currency": "SEK"}});
    assert_eq!(named(gateway.post("/v1/messages", &silent).await), ["/channel:missing"]);
    let large =
        json!({"name": "Large", "when": {"amount": {"min": 500, "currency": "SEK"}}, "then": {"channels": "webhook"}});
    rule(&gateway, "large", large).await;
    let id = gateway.send(&silent).await;
    assert_eq!(gateway.settled(&id).await.channel, "webhook");
    assert_eq!(sink.received_at("/a").len(), 1);
}

#[tokio::test]
async fn a_change_counts_on_every_node_and_an_outdated_one_is_refused() {
    let (gateway, _sink) = with_two(2).await;
    let refusing = |reason: &str| json!({"name": "Closed", "then": {"refuse": {"reason": reason}}});
    rule(&gateway, "closed", refusing("for now")).await;
    let (address, key) = (gateway.nodes[1].as_ref().unwrap().address(), gateway.key.clone());
    let on_the_other = || async {
        let request = crate::support::gateway::client().post(format!("http://{address}/v1/messages")).bearer_auth(&key);
        let answer = request.json(&message(json!({}))).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["detail"].as_str().unwrap_or_default().to_owned()
    };
    eventually("the rule on the other node", || async { on_the_other().await.contains("for now").then_some(()) }).await;
    let changed = json!({"version": 1, "rule": refusing("for good")});
    let put = async |body: &Value| gateway.call(Method::PUT, "/v1/rules/closed", Some(body)).await;
    assert_eq!(put(&changed).await.expect(200)["version"], 2);
    assert_eq!(put(&changed).await.problem(409).code, "version_passed");
    eventually("its change there", || async { on_the_other().await.contains("for good").then_some(()) }).await;
    gateway.call(Method::DELETE, "/v1/rules/closed", None).await.expect(204);
    eventually("its end there", || async { on_the_other().await.is_empty().then_some(()) }).await;
    let audit = gateway.get("/v1/audit").await;
    let actions: Vec<_> = audit["data"].as_array().unwrap().iter().map(|it| it["action"].as_str().unwrap()).collect();
    assert_eq!(actions[..3], ["rule.deleted", "rule.changed", "rule.created"]);
}

#[tokio::test]
async fn a_part_of_a_rule_is_changed_and_the_rest_stays() {
    let (gateway, _sink) = with_two(1).await;
    let refusing =
        json!({"name": "Closed", "when": {"amount": {"min": 1, "max": 9}}, "then": {"refuse": {"reason": "no"}}});
    rule(&gateway, "closed", refusing).await;
    let patch = async |body: Value| gateway.call(Method::PATCH, "/v1/rules/closed", Some(&body)).await;
    let amount = |amount: i64| message(json!({"attributes": {"amount": amount}}));
    gateway.post("/v1/messages", &amount(5)).await.expect(422);
    let off = patch(json!({"version": 1, "rule": {"active": false}})).await.expect(200);
    assert_eq!((&off["version"], &off["rule"]["when"]["amount"]["max"]), (&json!(2), &json!(9)));
    gateway.post("/v1/messages", &amount(5)).await.expect(202);
    assert_eq!(patch(json!({"version": 1, "rule": {"active": true}})).await.problem(409).code, "version_passed");
    let changed = json!({"rule": {"active": null, "when": {"amount": {"max": null}}}});
    patch(changed).await.expect(200);
    gateway.post("/v1/messages", &amount(50)).await.expect(422);
    assert_eq!(
        named(patch(json!({"rule": {"weight": 2, "then": {"refuse": null}}})).await),
        ["/rule/then:invalid", "/rule/weight:out_of_range"]
    );
    assert_eq!(named(patch(json!({"rule": {"wehn": {}}})).await).len(), 1);
}

#[tokio::test]
async fn every_bad_field_is_named() {
    let (gateway, _sink) = with_two(1).await;
    let bad = json!({"name": "x", "weight": 2, "when": {"custom": {"expression": "true && amout > 1"}}, "then": {}});
    let named_fields = named(gateway.post("/v1/rules", &json!({"uid": "rule_x", "rule": bad})).await);
    for field in ["/rule/then:", "/rule/weight:", "/uid:"] {
        assert!(named_fields.iter().any(|it| it.starts_with(field)), "{field} in {named_fields:?}");
    }
    let expression =
        json!({"name": "x", "when": {"custom": {"expression": "true &&\n  amout > 1"}}, "then": {"sender": "x"}});
    let answer = gateway.post("/v1/rules", &json!({"rule": expression})).await.expect(422);
    let error = &answer["errors"][0];
    assert_eq!(pointer_and_code(error), "/rule/when/custom/expression:does_not_compile");
    assert!(error["detail"].as_str().unwrap().starts_with("must compile: line 2, column "), "{error}");
    let amount = json!({"name": "x", "when": {"amount": {"min": "x", "max": 1e30}}, "then": {}});
    let answer = gateway.post("/v1/rules", &json!({"rule": amount})).await;
    let form = answer.body["errors"].as_array().unwrap().iter().find(|it| it["code"] == "wrong_format").unwrap();
    assert!(form["detail"].as_str().unwrap().contains("the form of `129.50`"), "{form}");
    assert_eq!(
        named(answer),
        ["/rule/then:invalid", "/rule/when/amount/max:out_of_range", "/rule/when/amount/min:wrong_format"]
    );
    let message = message(json!({"attributes": {"amount": "much"}, "contact": {"country": "Sweden"}, "context": []}));
    let fields = named(gateway.post("/v1/messages", &message).await);
    assert!(fields.iter().any(|it| it.starts_with("/context:")), "{fields:?}");
    let message = self::message(json!({"attributes": {"amount": "much"}, "contact": {"country": "Sweden"}}));
    assert_eq!(
        named(gateway.post("/v1/messages", &message).await),
        ["/attributes/amount:wrong_format", "/contact/country:wrong_format"]
    );
}

/// Attributes that were stored before rules existed, or by other means, harm nothing.
#[tokio::test]
async fn stored_attributes_that_cannot_be_read_harm_nothing() {
    let (gateway, sink) = with_two(1).await;
    let later = message(json!({"send_at": "2099-01-01T00:00:00Z", "attributes": {"amount": 1}}));
    let id = gateway.send(&later).await;
    let body = r#"{"content": {"payload": {}}, "attributes": {"amount": "much", "currency": 7}, "contact": [1]}"#;
    let update = format!("update message set body = convert_to('{body}', 'UTF8'), send_at = null");
    gateway.db.sql(&update).await;
    rule(&gateway, "all", json!({"name": "All", "when": {"amount": {"min": 1}}, "then": {"connections": ["b"]}})).await;
    gateway.db.sql("update queue set due_at = now()").await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(sink.received_at("/a").len(), 1);
    gateway.get(&format!("/v1/messages/{id}/decision")).await;
}
