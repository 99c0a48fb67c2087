//! Trying rules: what would be, and why, and nothing happens.

use serde_json::json;

use crate::support::{gateway::TestGateway, sink::Sink};

#[tokio::test]
async fn an_evaluation_explains_and_sends_nothing() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/hook").await;
    let message = json!({"channel": "webhook", "content": {"payload": {}}, "contact": {"segment": "vip"}});
    let before = gateway.post("/v1/rules/evaluate", &message).await.expect(200);
    assert_eq!((&before["accepted"], &before["rules"]), (&json!(true), &json!([])));
    let rule = json!({"name": "Dear", "when": {"customer": {"segment": "vip"}}, "then": {"priority": "urgent"}});
    gateway.post("/v1/rules", &json!({"rule": rule})).await.expect(201);
    let script = json!({"source": "fn admit(message) { refuse(\"full at \" + message.priority) }"});
    gateway.post("/v1/scripts/full/versions", &script).await.expect(201);
    gateway.post("/v1/scripts/full/activate", &json!({"version": 1})).await.expect(200);
    // As often as would switch a script off: trials do not count.
    for _ in 0..25 {
        let after = gateway.post("/v1/rules/evaluate", &message).await.expect(200);
        assert_eq!(after["accepted"], false);
        assert_eq!((&after["refused"]["by"], &after["refused"]["reason"]), (&json!("full"), &json!("full at urgent")));
        assert_eq!((&after["priority"], &after["rules"][0]["hit"]), (&json!("urgent"), &json!(true)));
        assert!(after["rules"][0]["why"].as_str().unwrap().contains("segment is vip"), "{after}");
    }
    // Scripts' `score` and `route` are asked too, here and in a dry run.
    gateway.call(reqwest::Method::DELETE, "/v1/scripts/full", None).await.expect(204);
    let source = "fn score(candidate) { 7 } fn route(message, candidates) { #{candidates: candidates, reason: \"as they are\"} }";
    gateway.post("/v1/scripts/order/versions", &json!({"source": source})).await.expect(201);
    gateway.post("/v1/scripts/order/activate", &json!({"version": 1})).await.expect(200);
    let evaluated = gateway.post("/v1/rules/evaluate", &message).await.expect(200);
    let dry = gateway.post("/v1/messages?dry_run=true", &message).await.expect(200);
    for plan in [&evaluated["plan"], &dry["plan"]] {
        let scripts = plan["scripts"].as_array().unwrap();
        assert_eq!((&scripts[0]["hook"], &scripts[0]["answer"]), (&json!("score"), &json!({"hook": 7.0})));
        assert_eq!((&scripts[1]["hook"], &scripts[1]["answer"]["reason"]), (&json!("route"), &json!("as they are")));
        assert_eq!(plan["candidates"].as_array().unwrap().len(), 1, "{plan}");
    }
    assert_eq!(gateway.get("/v1/messages").await["data"], json!([]));
    assert!(sink.received_at("/hook").is_empty());
}
