//! Routes of each strategy, as a client sees them.

use serde_json::{Value, json};

use crate::support::{
    gateway::TestGateway,
    messages::hook,
    sink::{Reply, Sink},
};

/// A gateway with two connections, `a` and `b`, to paths of a sink.
async fn with_two() -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    for uid in ["a", "b"] {
        gateway.connection(uid, "webhook", json!({"url": sink.url(&format!("/{uid}"))}), json!({})).await;
    }
    (gateway, sink)
}

async fn send(gateway: &TestGateway, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(gateway.send(&hook()).await);
    }
    for id in &ids {
        assert_eq!(gateway.settled(id).await.state, "sent");
    }
    ids
}

/// The plan of a message's first attempt.
async fn plan(gateway: &TestGateway, message: &str) -> Value {
    let decision = gateway.get(&format!("/v1/messages/{message}/decision")).await;
    decision["decisions"][0]["plan"].clone()
}

fn dollars(micros: i64) -> Value {
    json!({"micros": micros, "currency": "USD"})
}

#[tokio::test]
async fn round_robin_shares_as_the_weights_say() {
    let (gateway, sink) = with_two().await;
    let candidates = json!([{"connection": "a", "weight": 3}, {"connection": "b", "weight": 1}]);
    gateway.route("webhook", json!({"candidates": candidates, "strategy": {"type": "round_robin"}})).await;
    let ids = send(&gateway, 40).await;
    assert_eq!((sink.received_at("/a").len(), sink.received_at("/b").len()), (30, 10));
    let plan = plan(&gateway, &ids[0]).await;
    assert_eq!(plan["strategy"], "round_robin");
    let first = &plan["candidates"][0];
    assert!(first["score"].is_number() && first["reason"].as_str().unwrap().contains("of 4"), "{plan}");
    assert_eq!(plan["candidates"].as_array().unwrap().len(), 2, "the other one stands in");
}

#[tokio::test]
async fn whoever_does_not_take_its_turn_is_stood_in_for() {
    let (gateway, sink) = with_two().await;
    sink.answers("/a", [Reply::status(503)]);
    let candidates = json!([{"connection": "a"}, {"connection": "b"}]);
    gateway.route("webhook", json!({"candidates": candidates, "strategy": {"type": "round_robin"}})).await;
    send(&gateway, 10).await;
    assert_eq!((sink.received_at("/a").len(), sink.received_at("/b").len()), (5, 10));
}

#[tokio::test]
async fn lots_are_drawn_among_those_with_weight() {
    let (gateway, sink) = with_two().await;
    let candidates = json!([{"connection": "a", "weight": 0}, {"connection": "b", "weight": 5}]);
    gateway.route("webhook", json!({"candidates": candidates, "strategy": {"type": "weighted_random"}})).await;
    let ids = send(&gateway, 10).await;
    assert_eq!(sink.received_at("/b").len(), 10);
    let plan = plan(&gateway, &ids[0]).await;
    assert!(plan["candidates"][1]["reason"].as_str().unwrap().contains("only stands in"), "{plan}");
}

#[tokio::test]
async fn the_cheapest_is_asked_and_never_who_exceeds_the_ceiling() {
    let (gateway, sink) = with_two().await;
    let candidates = json!([{"connection": "a", "cost": dollars(9000)}, {"connection": "b", "cost": dollars(7900)}]);
    gateway.route("webhook", json!({"candidates": candidates, "strategy": {"type": "least_cost"}})).await;
    let ids = send(&gateway, 3).await;
    assert_eq!(sink.received_at("/b").len(), 3);
    let cheap = plan(&gateway, &ids[0]).await;
    assert_eq!(cheap["candidates"][0]["reason"], "costs about 0.0079 USD, as the route says");

    sink.answers("/b", [Reply::status(503)]);
    let spec = json!({"candidates": candidates, "strategy": {"type": "least_cost"}, "max_cost": dollars(8000),
        "retry": {"type": "none"}});
    gateway.route("webhook", spec).await;
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "failed", "nobody else is cheap enough");
    assert!(sink.received_at("/a").is_empty());
    assert_eq!(plan(&gateway, &id).await["skipped"][0]["reason"], "cost_ceiling");
}

#[tokio::test]
async fn an_attempt_tells_that_another_one_costs_too_much() {
    let (gateway, sink) = with_two().await;
    let candidates = json!([{"connection": "a", "cost": dollars(9000)}, {"connection": "b"}]);
    gateway.route("webhook", json!({"candidates": candidates, "max_cost": dollars(8000)})).await;
    let ids = send(&gateway, 1).await;
    assert_eq!(sink.received_at("/b").len(), 1);
    assert_eq!(gateway.attempt_list(&ids[0]).await[0].fallback_reason.as_deref(), Some("cost_threshold"));
}

#[tokio::test]
async fn who_fails_is_asked_less_and_the_plan_says_why() {
    let (gateway, sink) = with_two().await;
    sink.answers("/a", [Reply::status(503)]);
    let candidates = json!([{"connection": "a"}, {"connection": "b"}]);
    gateway.route("webhook", json!({"candidates": candidates, "strategy": {"type": "highest_reliability"}})).await;
    let ids = send(&gateway, 1).await;
    assert_eq!(gateway.attempts(&ids[0]).await, ["a:rejected_transient", "b:accepted"], "nothing is known at first");
    let ids = send(&gateway, 30).await;
    assert!(sink.received_at("/a").len() < 10, "one in fifty asks it again, to learn how it does");
    let mut explained = 0;
    for id in &ids {
        let plan = plan(&gateway, id).await;
        let reasons = [0, 1].map(|place| plan["candidates"][place]["reason"].as_str().unwrap().to_owned());
        if reasons[0].starts_with("the most reliable: 100.0 % of the last") {
            assert!(reasons[1].contains(" % of the last"), "{plan}");
            assert!(plan["candidates"][1]["score"].as_f64().unwrap() < 0.6, "{plan}");
            explained += 1;
        }
    }
    assert!(explained > 20, "{explained} of 30 plans");
}

#[tokio::test]
async fn who_succeeds_too_rarely_is_passed_over() {
    let (gateway, sink) = with_two().await;
    let candidates = json!([{"connection": "a"}, {"connection": "b"}]);
    gateway.route("webhook", json!({"candidates": candidates, "min_success_rate": 0.9})).await;
    sink.answers("/a", [Reply::status(503)]);
    send(&gateway, 12).await;
    let ids = send(&gateway, 1).await;
    let attempts = gateway.attempt_list(&ids[0]).await;
    assert_eq!(attempts[0].connection_uid.as_deref(), Some("b"));
    assert_eq!(attempts[0].fallback_reason.as_deref(), Some("quality_threshold"));
}
