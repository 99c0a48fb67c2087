//! A worker is lost, asleep, or killed by its delivery.

use std::time::Duration;

use serde_json::json;
use xtask::lifeline::signal;

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    messages::hook,
    sink::{Reply, Sink},
};

const SHORT: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\n";

fn slow() -> Reply {
    Reply::status(200).after(Duration::from_secs(60))
}

#[tokio::test]
async fn killed_in_the_middle_of_a_send_it_is_labelled_unknown_and_sent_again_with_the_same_key() {
    let (mut gateway, sink) = (TestGateway::with(1, SHORT).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [slow(), Reply::status(200)]);
    let id = gateway.send(&hook()).await;
    sink.arrived(1).await;
    gateway.kill(0);
    gateway.take_over().await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["-:unknown", "hook:accepted"]);
    let keys: Vec<_> = sink.received().iter().map(|it| it.header("webhook-id").to_owned()).collect();
    assert_eq!(keys, [keys[0].clone(), keys[0].clone()], "the receiver can tell that it has it");
}

#[tokio::test]
async fn a_poison_message_is_quarantined_when_three_workers_have_died_with_it() {
    let (mut gateway, sink) = (TestGateway::with(1, SHORT).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [slow()]);
    let id = gateway.send(&hook()).await;
    for deaths in 1..=3 {
        sink.arrived(deaths).await;
        gateway.kill(0);
        gateway.take_over().await;
    }
    let view = gateway.settled(&id).await;
    assert_eq!((view["state"].clone(), view["delivery"]["code"].clone()), (json!("unknown"), json!("quarantined")));
    assert_eq!(gateway.attempts(&id).await, ["-:unknown", "hook:unknown", "hook:unknown"]);
    assert_eq!(sink.received().len(), 3, "it is not sent to kill a fourth");

    sink.answers("/in", [Reply::status(200)]);
    gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
    assert_eq!(gateway.settled(&id).await.state, "sent", "a person may try it again");
}

#[tokio::test]
async fn a_worker_paused_past_its_lease_cannot_write() {
    let (mut gateway, sink) = (TestGateway::with(1, SHORT).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(200).after(Duration::from_millis(300)), Reply::status(200)]);
    let id = gateway.send(&hook()).await;
    sink.arrived(1).await;
    let sleeper = gateway.nodes[0].as_ref().unwrap().process();
    assert!(signal(sleeper, "STOP"));
    let second = gateway.new_node().await;
    gateway.nodes.insert(0, Some(second));
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "sent");
    let before = gateway.attempts(&id).await;
    assert_eq!(before, ["-:unknown", "hook:accepted"], "the duplicate hand-off is labelled");
    assert!(signal(sleeper, "CONT"));
    let log = gateway.nodes[1].as_ref().unwrap().log();
    eventually("the refusal of the late write", || async {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains("outcomes were refused").then_some(())
    })
    .await;
    assert_eq!(gateway.attempts(&id).await, before);
}
