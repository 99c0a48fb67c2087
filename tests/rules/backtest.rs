//! Backtests: what would have become of messages that were really sent.

use reqwest::Method;
use serde_json::{Value, json};

use super::live;
use crate::support::{
    gateway::TestGateway,
    sink::{Reply, Sink},
};

/// Starts a gateway whose route asks `a` and then `b`.
async fn with_two() -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    for uid in ["a", "b"] {
        gateway.connection(uid, "webhook", json!({"url": sink.url(&format!("/{uid}"))}), json!({})).await;
    }
    gateway.route("webhook", json!({"candidates": [{"connection": "a"}, {"connection": "b"}]})).await;
    (gateway, sink)
}

fn message(segment: &str) -> Value {
    json!({"channel": "webhook", "content": {"payload": {}}, "contact": {"segment": segment}})
}

async fn sent(gateway: &TestGateway, message: &Value) -> String {
    let id = gateway.send(message).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    id
}

fn rule(segment: &str, then: Value) -> Value {
    json!({"name": format!("For {segment}"), "when": {"customer": {"segment": segment}}, "then": then})
}

const SINCE: &str = "2020-01-01T00:00:00Z";

#[tokio::test]
async fn a_backtest_reports_what_would_have_become_of_sent_messages() {
    let (gateway, sink) = with_two().await;
    gateway.without_breaker("a").await;
    let stands = rule("gold", json!({"priority": "high", "sender": "ACME"}));
    gateway.post("/v1/rules", &json!({"uid": "gold", "rule": stands})).await.expect(201);
    // A delivery that asks `a` first is served by `b` in the end.
    sink.answers("/a", [Reply::status(503), Reply::status(200)]);
    let mut vips = vec![sent(&gateway, &message("vip")).await];
    for _ in 0..2 {
        vips.push(sent(&gateway, &message("vip")).await);
    }
    let gold = sent(&gateway, &message("gold")).await;
    let purged = sent(&gateway, &message("vip")).await;
    gateway.call(Method::DELETE, &format!("/v1/messages/{purged}/content"), None).await.expect(200);

    let tried = json!([
        {"rule": rule("vip", json!({"connections": ["b"]}))},
        {"of": "gold", "rule": rule("gold", json!({"refuse": {"reason": "not today"}}))},
    ]);
    let answer = gateway.post("/v1/rules/backtest", &json!({"rules": tried, "since": SINCE})).await.expect(200);
    assert_eq!((&answer["looked_at"], &answer["purged"], &answer["changed"]), (&json!(5), &json!(1), &json!(4)));
    assert_eq!((&answer["complete"], &answer["refused"]), (&json!(true), &json!({"newly": 1, "no_longer": 0})));
    let place = |name: &str| json!({"channel": "webhook", "connection": name, "provider": "webhook"});
    assert_eq!(
        answer["moves"],
        json!([
            {"from": place("a"), "to": place("b"), "count": 3},
            {"from": place("a"), "to": null, "count": 1},
        ])
    );
    // Nothing is billed here; how often each went well is on record: `a` three times of four, `b` the once.
    assert_eq!(answer["cost"], json!({"by_currency": [], "unknown": 4}));
    let rate = &answer["delivery_rate"];
    assert_eq!((&rate["messages"], &rate["unknown"], &rate["after"]), (&json!(3), &json!(0), &json!(1.0)));
    assert!((rate["before"].as_f64().unwrap() - 0.75).abs() < 1e-9, "{rate}");
    let examples = answer["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 4);
    let of = |id: &str| examples.iter().find(|it| it["message"] == id).unwrap();
    assert_eq!(of(&vips[0])["after"]["connection"], "b");
    assert_eq!(of(&gold)["before"]["priority"], "high");
    assert_eq!(of(&gold)["before"]["sender"], "ACME", "what a rule had given it is taken off again");
    assert_eq!(of(&gold)["after"]["refused"]["reason"], "not today");
    // Nothing has happened.
    assert_eq!(gateway.list("/v1/rules").await.len(), 1);
    assert_eq!(gateway.list("/v1/messages").await.len(), 5);

    // The command line says it in words.
    let file = gateway.settings().folder.join("tried.json");
    std::fs::write(&file, tried.to_string()).unwrap();
    let arguments = ["rules", "backtest", "--rule", file.to_str().unwrap(), "--since", "1d"];
    let access = [gateway.url(""), gateway.key.clone()];
    let arguments = [&arguments[..], &["--url", &access[0], "--key", &access[1]]].concat();
    let printed = gateway.settings().command_line(&arguments).unwrap();
    for part in ["webhook b (webhook)", "refused", "unknown", "0.7500", &gold] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let fewer = json!({"rules": tried, "since": SINCE, "limit": 2});
    let answer = gateway.post("/v1/rules/backtest", &fewer).await.expect(200);
    assert_eq!((&answer["looked_at"], &answer["complete"]), (&json!(2), &json!(false)), "the latest two");
}

#[tokio::test]
async fn a_script_is_backtested_beside_the_one_that_is_live() {
    let (gateway, _sink) = with_two().await;
    live(&gateway, "gate", "fn admit(message) { #{priority: \"high\", attributes: #{seen: true}} }").await;
    let id = sent(&gateway, &message("vip")).await;
    let backtest = async |source: &str| {
        let body = json!({"script": {"name": "gate", "source": source}, "since": SINCE});
        gateway.post("/v1/rules/backtest", &body).await
    };
    let same = "fn admit(message) { #{priority: \"high\", attributes: #{seen: true}} }";
    assert_eq!(backtest(same).await.expect(200)["changed"], 0);
    let other = "fn admit(message) { #{priority: if \"seen\" in message.attributes { \"urgent\" } else { \"low\" }} }
        fn route(message, candidates) { [\"b\"] }";
    let answer = backtest(other).await.expect(200);
    assert_eq!(answer["examples"][0]["message"], id);
    assert_eq!(
        answer["examples"][0]["before"],
        json!({"attributes": {"seen": true}, "connection": "a", "priority": "high"})
    );
    assert_eq!(answer["examples"][0]["after"], json!({"connection": "b", "priority": "low"}));
    let failing = backtest("fn admit(message) { throw \"no\" }").await.expect(200);
    assert_eq!((&failing["failed"], &failing["changed"]), (&json!(1), &json!(1)));
    let bad = backtest("fn admit(message) { let }").await.problem(422);
    assert_eq!(bad.errors[0].pointer, "/script/source");
}

#[tokio::test]
async fn a_rule_that_chose_the_channel_is_tried_as_if_it_had_not() {
    let (gateway, sink) = with_two().await;
    gateway
        .post("/v1/rules", &json!({"uid": "all", "rule": {"name": "All", "then": {"channels": "webhook"}}}))
        .await
        .expect(201);
    let silent = json!({"to": sink.url("/x"), "content": {"payload": {}}});
    let chosen = sent(&gateway, &silent).await;
    let named = sent(&gateway, &message("vip")).await;
    let tried = json!([{"of": "all", "rule": {"name": "All", "then": {"channels": ["pigeon"]}}}]);
    let answer = gateway.post("/v1/rules/backtest", &json!({"rules": tried, "since": SINCE})).await.expect(200);
    assert_eq!(
        (&answer["looked_at"], &answer["changed"]),
        (&json!(2), &json!(1)),
        "{named} named its channel: {answer}"
    );
    assert_eq!(answer["examples"][0]["message"], chosen);
    assert_eq!(answer["moves"][0]["to"], json!({"channel": "pigeon", "connection": null, "provider": null}));
}

#[tokio::test]
async fn every_bad_field_of_a_backtest_is_named() {
    let (gateway, _sink) = with_two().await;
    let bad = async |body: Value| {
        let answer = gateway.post("/v1/rules/backtest", &body).await.expect(422);
        let mut named: Vec<_> = answer["errors"].as_array().unwrap().iter().map(|it| it["pointer"].clone()).collect();
        named.sort_by_key(ToString::to_string);
        named
    };
    assert_eq!(bad(json!({"since": "2999-01-01T00:00:00Z", "limit": 0})).await, ["/limit", "/rules", "/since"]);
    let rules = json!([{"of": "nobody", "rule": {"name": "x", "then": {"priority": "low"}}}, {"rule": {"name": "x", "then": {}}}]);
    let script = json!({"name": "No Name", "source": ""});
    let named = bad(json!({"since": SINCE, "rules": rules, "script": script})).await;
    assert_eq!(named, ["/rules/0/of", "/rules/1/rule/then", "/script/name", "/script/source"]);
}
