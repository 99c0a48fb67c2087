//! Lists come by pages.

use serde_json::json;

use crate::support::{gateway::TestGateway, sink::Sink};

/// The ids of all pages.
async fn walked(gateway: &TestGateway, path: &str) -> Vec<String> {
    let (mut ids, mut next) = (Vec::new(), path.to_owned());
    loop {
        let page = gateway.page(&next).await;
        ids.extend(page.data.iter().map(|it| it["id"].as_str().unwrap().to_owned()));
        match &page.next_cursor {
            Some(cursor) => next = format!("{path}&cursor={cursor}"),
            None => return ids,
        }
    }
}

#[tokio::test]
async fn every_message_is_met_once_the_newest_first() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let mut sent = Vec::new();
    for number in 0..7 {
        let reference = format!("order:{}", number % 2);
        sent.push(
            gateway.send(&json!({"channel": "webhook", "content": {"payload": 1}, "reference": reference})).await,
        );
    }
    sent.reverse();
    assert_eq!(walked(&gateway, "/v1/messages?limit=3").await, sent);
    assert_eq!(walked(&gateway, "/v1/messages?limit=7").await, sent);
    assert_eq!(walked(&gateway, "/v1/messages?limit=2&reference=order:1").await.len(), 3);
    assert_eq!(walked(&gateway, "/v1/messages?limit=2&channel=email").await.len(), 0);
}

#[tokio::test]
async fn connections_and_routes_come_by_pages_too() {
    let gateway = TestGateway::start().await;
    for uid in ["a", "b", "c"] {
        gateway.connection(uid, "webhook", json!({"url": "https://example.com"}), json!({})).await;
        gateway.route("webhook", json!({"candidates": [{"connection": uid}]})).await;
    }
    assert_eq!(walked(&gateway, "/v1/connections?limit=2").await.len(), 3);
    assert_eq!(walked(&gateway, "/v1/routes?limit=1").await.len(), 3);
}
