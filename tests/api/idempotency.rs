//! The same key is accepted once.

use serde_json::json;

use crate::support::{gateway::TestGateway, sink::Sink};

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let body = json!({"channel": "webhook", "content": {"payload": {"n": 1}}});
    let key = [("idempotency-key", "order-7")];
    let first = gateway.post_with("/v1/messages", &key, &body).await;
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let first = first.expect(202);
    gateway.settled(first["id"].as_str().unwrap()).await;
    let again = gateway.post_with("/v1/messages", &key, &body).await;
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.expect(202), first);
    // The field says the same as the header.
    let field = json!({"channel": "webhook", "content": {"payload": {"n": 1}}, "idempotency_key": "order-7"});
    assert_eq!(gateway.post("/v1/messages", &field).await.expect(202)["id"], first["id"]);
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn a_list_of_one_channel_is_the_same_message_as_that_channel() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let leg = json!({"channel": "webhook", "content": {"payload": 1}});
    let list = json!({"channels": [leg]});
    for (key, one, other) in [("a", &leg, &list), ("b", &list, &leg)] {
        let key = [("idempotency-key", key)];
        let first = gateway.post_with("/v1/messages", &key, one).await.expect(202);
        let again = gateway.post_with("/v1/messages", &key, other).await;
        assert_eq!(again.headers["idempotency-replayed"], "true");
        assert_eq!(again.expect(202)["id"], first["id"]);
    }
}

#[tokio::test]
async fn a_repeated_batch_names_the_first_one() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let key = [("idempotency-key", "b")];
    let message = json!({"channel": "webhook", "content": {"payload": 1}});
    let batch = json!({"messages": [message, {"channel": "Webhook"}, message]});
    let first = gateway.post_with("/v1/messages/batch", &key, &batch).await.expect(200);
    let again = gateway.post_with("/v1/messages/batch", &key, &batch).await.expect(200);
    assert_eq!((&again["batch"], &again["data"][2]["replayed"]), (&first["batch"], &json!(true)), "{again}");
    // One message more: its batch finds that one.
    let more = json!({"messages": [message, {"channel": "Webhook"}, message, message]});
    let more = gateway.post_with("/v1/messages/batch", &key, &more).await.expect(200);
    assert_ne!(more["batch"], first["batch"], "{more}");
    assert_eq!(more["data"][3]["message"]["batch"], more["batch"], "{more}");
}

#[tokio::test]
async fn another_message_under_the_key_is_refused() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let key = [("idempotency-key", "k")];
    gateway
        .post_with("/v1/messages", &key, &json!({"channel": "webhook", "content": {"payload": 1}, "reference": "a"}))
        .await
        .expect(202);
    let other = gateway
        .post_with("/v1/messages", &key, &json!({"channel": "webhook", "content": {"payload": 1}, "reference": "b"}))
        .await;
    assert_eq!(other.problem(422).errors[0].code, "key_reused");
}

#[tokio::test]
async fn requests_at_the_same_time_make_one_message() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let body = json!({"channel": "webhook", "content": {"payload": 1}, "idempotency_key": "race"});
    let requests = (0..20).map(|_| gateway.post("/v1/messages", &body));
    let mut ids = Vec::new();
    for answer in futures_of(requests).await {
        ids.push(answer.expect(202)["id"].as_str().unwrap().to_owned());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(gateway.db.sql("select count(*) from message").await.trim(), "1");
}

/// Runs them at the same time.
async fn futures_of<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.into_iter().map(|it| (Box::pin(it), None)).collect();
    std::future::poll_fn(|context| {
        for (future, result) in pending.iter_mut().filter(|(_, result)| result.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(context) {
                *result = Some(value);
            }
        }
        if pending.iter().all(|(_, result)| result.is_some()) {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    })
    .await;
    pending.into_iter().filter_map(|(_, result)| result).collect()
}

#[tokio::test]
async fn a_batch_has_a_result_for_each() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let batch = json!({"messages": [
        {"channel": "webhook", "content": {"payload": 1}, "idempotency_key": "a"},
        {"channel": "Webhook"},
        {"channel": "email", "to": "ann@example.org"},
        {"channel": "webhook", "content": {"payload": 1}, "idempotency_key": "a"},
        {"channel": "webhook", "colour": 1},
        [],
    ]});
    let answer = gateway.post("/v1/messages/batch", &batch).await.expect(200);
    let results = answer["data"].as_array().unwrap();
    let statuses: Vec<_> = results.iter().map(|it| it["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 422, 422, 202, 422, 422], "{answer}");
    assert_eq!(results[0]["message"]["id"], results[3]["message"]["id"]);
    assert_eq!(results[3]["replayed"], true);
    assert_eq!(results[2]["error"]["errors"][0]["code"], "no_route");
    assert_eq!(results[4]["error"]["errors"][0]["pointer"], "/colour");
    assert_eq!(results[5]["error"]["errors"].as_array().unwrap().len(), 1, "{answer}");
    let many: Vec<_> = (0..1001).map(|_| json!({"channel": "webhook"})).collect();
    gateway.post("/v1/messages/batch", &json!({"messages": many})).await.expect(422);
    gateway.post("/v1/messages/batch", &json!({"messages": []})).await.expect(422);
}
