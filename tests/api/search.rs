//! `GET /v1/messages` by recipient, connection, provider, code, time, batch and metadata.

use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    sink::{Reply, Sink},
};

/// The references of the messages that a search finds, the newest first.
async fn found(gateway: &TestGateway, query: &str) -> Vec<String> {
    let page = gateway.get(&format!("/v1/messages?{query}")).await;
    let reference = |message: &Value| message["reference"].as_str().unwrap_or_default().to_owned();
    page["data"].as_array().unwrap_or_else(|| panic!("{page}")).iter().map(reference).collect()
}

fn message(reference: &str, metadata: Value) -> Value {
    json!({"channel": "webhook", "content": {"payload": 1}, "reference": reference, "metadata": metadata})
}

#[tokio::test]
async fn messages_are_found_by_where_they_went_and_what_came_of_them() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let failing = Sink::start().await;
    failing.answers("/in", [Reply::status(410)]);
    let good = gateway.webhook(&sink, "/in").await;
    let config = json!({"url": failing.url("/in")});
    let secrets = json!({"signing_key": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"});
    let bad = gateway.connection("other", "webhook", config, secrets).await;
    gateway.settled(&gateway.send(&message("a", json!({}))).await).await;
    let mut pinned = message("b", json!({}));
    pinned["connection"] = json!(bad);
    let refused = gateway.send(&pinned).await;
    let view = eventually("the refused message ends", async || {
        let view = gateway.message(&refused).await;
        (view["state"] == "failed").then_some(view)
    })
    .await;
    let code = view["delivery"]["code"].as_str().unwrap();

    assert_eq!(found(&gateway, &format!("connection={good}")).await, ["a"]);
    assert_eq!(found(&gateway, "connection=other").await, ["b"]);
    assert_eq!(found(&gateway, "provider=webhook").await, ["b", "a"]);
    assert_eq!(found(&gateway, "provider=webhook&limit=1").await, ["b"]);
    assert_eq!(found(&gateway, "provider=email-smtp").await, [""; 0]);
    assert_eq!(found(&gateway, &format!("code={code}")).await, ["b"]);
    assert_eq!(found(&gateway, &format!("code={code}&connection={good}")).await, [""; 0]);
    assert_eq!(found(&gateway, "state=failed").await, ["b"]);
    assert_eq!(found(&gateway, "state=sent&provider=webhook").await, ["a"]);
}

#[tokio::test]
async fn messages_are_found_by_recipient_batch_metadata_and_time() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let batch =
        json!({"messages": [message("a", json!({"order": "A-7", "items": 3})), message("b", json!({"order": "B:1"}))]});
    let answer = gateway.post("/v1/messages/batch", &batch).await.expect(200);
    let batch = answer["batch"].as_str().unwrap();
    assert_eq!(answer["data"][0]["message"]["batch"], json!(batch));
    let mut other = message("c", json!({"order": "A-7"}));
    other["to"] = json!("https://example.com/hook");
    let accepted = gateway.post("/v1/messages", &other).await.expect(202);
    assert_eq!(accepted["batch"], Value::Null);

    assert_eq!(found(&gateway, &format!("batch={batch}")).await, ["b", "a"]);
    assert_eq!(found(&gateway, "metadata=order:A-7").await, ["c", "a"]);
    assert_eq!(found(&gateway, "metadata=items:3").await, ["a"]);
    assert_eq!(found(&gateway, "metadata=order:B:1").await, ["b"]);
    assert_eq!(found(&gateway, &format!("metadata=order:A-7&batch={batch}")).await, ["a"]);
    let at = accepted["created_at"].as_str().unwrap();
    assert_eq!(found(&gateway, &format!("since={at}")).await, ["c"]);
    assert_eq!(found(&gateway, &format!("until={at}")).await, ["b", "a"]);

    let key = gateway.key_of("two", "messages:read");
    let page = gateway.call_as(&key, reqwest::Method::GET, "/v1/messages?metadata=order:A-7", None).await.expect(200);
    assert_eq!(page["data"], json!([]), "another tenant's messages are not found");
}

#[tokio::test]
async fn a_recipient_is_found_however_its_domain_is_written() {
    let gateway = TestGateway::start().await;
    let config = json!({"host": "127.0.0.1", "port": 9, "tls": "none", "from": "shop@example.com"});
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    for to in ["Ann@Example.org", "bob@example.org"] {
        let mail = json!({"channel": "email", "to": to, "connection": "mail", "send_at": "2099-01-01T00:00:00Z",
            "reference": to, "content": {"subject": "x", "text": "x"}});
        gateway.send(&mail).await;
    }
    assert_eq!(found(&gateway, "recipient=Ann@example.org").await, ["Ann@Example.org"]);
    assert_eq!(found(&gateway, "recipient=Ann@EXAMPLE.org&state=scheduled").await, ["Ann@Example.org"]);
    assert_eq!(found(&gateway, "recipient=carl@example.org").await, [""; 0]);
}

#[tokio::test]
async fn a_filter_that_is_wrong_is_named() {
    let gateway = TestGateway::start().await;
    for (query, parameter) in [
        ("batch=7", "batch"),
        ("metadata=order", "metadata"),
        ("metadata=:x", "metadata"),
        ("since=yesterday", "since"),
        ("connection=nobody", "connection"),
        ("state=lost", "state"),
    ] {
        let answer = gateway.call(reqwest::Method::GET, &format!("/v1/messages?{query}"), None).await.problem(400);
        assert_eq!(answer.code, "invalid_parameter", "{answer}");
        assert!(answer["errors"].to_string().contains(parameter), "{answer}");
    }
}
