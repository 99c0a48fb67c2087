//! Messages that wait until a script's condition holds.

use serde_json::{Value, json};

use super::live;
use crate::support::{database::eventually, gateway::TestGateway, sink::Sink};

async fn start() -> (TestGateway, Sink) {
    let config = "[rules]\ncondition_interval_ms = 150\n";
    let (gateway, sink) = (TestGateway::with(1, config).await, Sink::start().await);
    gateway.webhook(&sink, "/hook").await;
    (gateway, sink)
}

fn when(condition: &str, more: Value) -> Value {
    let mut message = json!({"channel": "webhook", "content": {"payload": {}}, "condition": condition});
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    message
}

#[tokio::test]
async fn a_message_waits_until_its_condition_holds_or_it_expires() {
    let (gateway, sink) = start().await;
    live(&gateway, "office_open", "fn condition(context) { false }").await;
    let due = (angarium::clock::now() + jiff::SignedDuration::from_millis(300)).to_string();
    let waiting = gateway.send(&when("office_open", json!({"send_at": due}))).await;
    let end = (angarium::clock::now() + jiff::SignedDuration::from_millis(800)).to_string();
    let expiring = gateway.send(&when("office_open", json!({"expires_at": end}))).await;
    let view = gateway.settled(&expiring).await;
    assert_eq!((view.state.as_str(), view.delivery.code.as_deref()), ("expired", Some("condition_not_met")));
    assert!(view.delivery.detail().contains("`office_open`"), "{view}");
    eventually("a later question", || async {
        let view = gateway.message(&waiting).await;
        assert_eq!(view["condition"], "office_open");
        let next = view["delivery"]["next_attempt_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        (next > due.parse().unwrap()).then_some(())
    })
    .await;
    assert!(sink.received().is_empty());
    let evaluated = gateway.post("/v1/rules/evaluate", &when("office_open", json!({}))).await.expect(200);
    assert_eq!(evaluated["condition_holds"], false);
    live(&gateway, "office_open", "fn condition(context) { context.message.channel == \"webhook\" }").await;
    assert_eq!(gateway.settled(&waiting).await.state, "sent");
    assert_eq!(gateway.attempts(&waiting).await, ["hook:accepted"], "waiting is no attempt");
}

#[tokio::test]
async fn a_message_that_waits_can_be_canceled() {
    let (gateway, sink) = start().await;
    live(&gateway, "never", "fn condition(context) { false }").await;
    let id = gateway.send(&when("never", json!({}))).await;
    eventually("the cancellation", || async {
        let answer = gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(gateway.settled(&id).await.state, "canceled");
    assert!(sink.received().is_empty());
}

#[tokio::test]
async fn a_condition_that_fails_or_is_gone_holds_nothing_up_and_a_wrong_name_is_refused() {
    let (gateway, sink) = start().await;
    live(&gateway, "broken", "fn condition(context) { throw \"no idea\" }").await;
    let id = gateway.send(&when("broken", json!({}))).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let detail = gateway.attempt_list(&id).await[0].detail().to_owned();
    assert!(detail.contains("no idea"), "{detail}");
    live(&gateway, "other", "fn admit(message) { allow() }").await;
    for name in ["other", "missing"] {
        let refused = gateway.post("/v1/messages", &when(name, json!({}))).await.expect(422);
        let error = &refused["errors"][0];
        assert_eq!((&error["pointer"], &error["code"]), (&json!("/condition"), &json!("unknown_condition")));
    }
    assert_eq!(sink.received().len(), 1);
}
