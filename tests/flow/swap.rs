//! A provider's version is replaced while it delivers.

use std::collections::HashSet;

use serde_json::Value;

use crate::support::{
    component::another_build, database::eventually, gateway::TestGateway, messages::hook, sink::Sink,
};

#[tokio::test]
async fn a_new_version_takes_over_while_deliveries_run_and_is_rolled_back() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    let component = std::fs::read(xtask::project::root().join("target/plugins/webhook.wasm")).unwrap();

    let mut sent = send(&gateway, 30).await;
    let upload =
        gateway.upload(&operator, "/v1/providers?activate=true&replace=true&grants=keep", another_build(&component));
    let (uploaded, more) = tokio::join!(upload, send(&gateway, 60));
    assert!(uploaded.status.is_success(), "{}", uploaded.body);
    sent.extend(more);
    let old = digests(&gateway, &sent[..1]).await;
    eventually("the new version serving", || async {
        let probe = send(&gateway, 1).await;
        (digests(&gateway, &probe).await != old).then_some(())
    })
    .await;
    for id in &sent {
        assert_eq!(gateway.settled(id).await.state, "sent");
    }

    let rolled_back = gateway.call_as(&operator, reqwest::Method::POST, "/v1/providers/webhook/rollback", None).await;
    assert!(rolled_back.status.is_success(), "{}", rolled_back.body);
    eventually("the old version serving again", || async {
        let probe = send(&gateway, 1).await;
        (digests(&gateway, &probe).await == old).then_some(())
    })
    .await;
}

async fn send(gateway: &TestGateway, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(gateway.send(&hook()).await);
    }
    ids
}

/// The digests of the versions that made these messages' attempts.
async fn digests(gateway: &TestGateway, ids: &[String]) -> HashSet<Value> {
    let mut digests = HashSet::new();
    for id in ids {
        gateway.settled(id).await;
        digests.extend(gateway.attempt_list(id).await.into_iter().map(|it| it["provider_digest"].clone()));
    }
    digests
}
