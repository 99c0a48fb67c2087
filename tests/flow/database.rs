//! The database goes away and comes back: nobody is told a lie, and nothing is lost.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{database::eventually, gateway::TestGateway, sink::Sink};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_database_is_a_503_and_comes_back_by_itself() {
    let (gateway, proxy) = TestGateway::behind_a_proxy().await;
    let sink = Sink::start().await;
    gateway.webhook(&sink, "/in").await;
    let message = json!({"channel": "webhook", "content": {"payload": {}}});
    gateway.settled(&gateway.send(&message).await).await;

    proxy.cut();
    let asked = Instant::now();
    let refused = gateway.post("/v1/messages", &message).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.headers.contains_key("retry-after"), "{:?}", refused.headers);
    assert!(asked.elapsed() < Duration::from_secs(4), "the refusal took {:?}", asked.elapsed());
    assert_eq!(refused.body["source"], "gateway");
    eventually("readiness saying no", || async {
        (gateway.call(reqwest::Method::GET, "/readyz", None).await.status == 503).then_some(())
    })
    .await;
    assert_eq!(sink.received().len(), 1);

    proxy.mend();
    let after = eventually("acceptance", || async {
        let answer = gateway.post("/v1/messages", &message).await;
        (answer.status == 202).then(|| answer.body["id"].as_str().unwrap().to_owned())
    })
    .await;
    assert_eq!(gateway.settled(&after).await["state"], "sent");
}

/// The outcome of what was sent before the loss is written once the database is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_waits_for_the_database() {
    let (gateway, proxy) = TestGateway::behind_a_proxy().await;
    let sink = Sink::start().await;
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [crate::support::sink::Reply::status(200).after(Duration::from_millis(500))]);
    let id = gateway.send(&json!({"channel": "webhook", "content": {"payload": {}}})).await;
    sink.arrived(1).await;
    proxy.cut();
    let log = gateway.nodes[0].as_ref().unwrap().log();
    eventually("the ledger's wait", || async {
        std::fs::read_to_string(&log).unwrap().contains("outcomes wait for the database").then_some(())
    })
    .await;
    proxy.mend();
    assert_eq!(gateway.settled(&id).await["state"], "sent");
    assert_eq!(sink.received().len(), 1, "it was not sent again");
}
