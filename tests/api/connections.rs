//! `/v1/connections`

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::support::{
    gateway::TestGateway,
    load::Load,
    sink::{Reply, Sink},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[tokio::test]
async fn a_connection_lives_from_its_creation_to_its_end() {
    let gateway = TestGateway::start().await;
    let body = json!({"uid": "hook", "name": "Shop", "provider": "webhook",
        "config": {"url": "https://example.com/a"}, "secrets": {"signing_key": SECRET}});
    let made = gateway.post("/v1/connections", &body).await.expect(201);
    assert_eq!(made["secrets"][0]["name"], "signing_key");
    assert!(!made.to_string().contains(SECRET));
    let id = made["id"].as_str().unwrap();
    assert_eq!(gateway.get("/v1/connections/hook").await, gateway.get(&format!("/v1/connections/{id}")).await);

    let change = json!({"enabled": false, "config": {"url": "https://example.com/b", "timeout_ms": 500}});
    let changed = gateway.call(Method::PATCH, "/v1/connections/hook", Some(&change)).await.expect(200);
    assert_eq!((&changed["name"], &changed["enabled"]), (&json!("Shop"), &json!(false)));
    assert_eq!(changed["config"]["url"], "https://example.com/b");

    gateway.call(Method::DELETE, "/v1/connections/hook", None).await.expect(204);
    gateway.call(Method::GET, "/v1/connections/hook", None).await.expect(404);
    // The name is free again.
    gateway.post("/v1/connections", &body).await.expect(201);
}

/// A request that reads a configuration during a change must not pass it on to requests that come after the change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_holds_once_it_is_answered_however_much_is_under_way() {
    const EACH: usize = 20;
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/before").await;
    gateway.connection("moving", "webhook", json!({"url": sink.url("/0")}), json!({})).await;
    let load = Load::start(&gateway, 4);
    let message = json!({"channel": "webhook", "connection": "moving", "content": {"payload": {}}});
    for round in 1..=10 {
        let path = format!("/{round}");
        sink.answers(&path, [Reply::status(200)]);
        let change = json!({"config": {"url": sink.url(&path)}});
        gateway.call(Method::PATCH, "/v1/connections/moving", Some(&change)).await.expect(200);
        let ids = join_all((0..EACH).map(|_| gateway.send(&message))).await;
        join_all(ids.iter().map(|id| gateway.settled(id))).await;
        assert_eq!(sink.received_at(&path).len(), EACH, "all that came after change {round} goes by it");
    }
    assert!(!load.stop().await.is_empty());
}

#[tokio::test]
async fn what_the_provider_does_not_take_is_named() {
    let gateway = TestGateway::start().await;
    let body = json!({"uid": "conn_mine", "provider": "webhook", "config": {"url": 7, "speed": 1},
        "secrets": {"pass": "x", "signing_key": ""}});
    let problem = gateway.post("/v1/connections", &body).await.problem(422);
    let pointers = problem.pointers();
    for pointer in ["/uid", "/config/url", "/secrets/pass", "/secrets/signing_key"] {
        assert!(pointers.contains(&pointer), "{pointer} is not in {pointers:?}");
    }
    // A field of a wrong form hides none of the other faults.
    let body = json!({"uid": "a/b", "provider": "webhook", "enabled": "yes", "config": {"url": 7}, "tenant_id": "B",
        "secrets": {"pass": "x", "signing_key": 7}});
    let problem = gateway.post("/v1/connections", &body).await.expect(422);
    let mut found: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|it| it["pointer"].as_str().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, ["/config/url", "/enabled", "/secrets/pass", "/secrets/signing_key", "/tenant_id", "/uid"]);
    let body = json!({"provider": "pigeon"});
    let problem = gateway.post("/v1/connections", &body).await.problem(422);
    assert_eq!(problem.errors[0].code, "unknown_provider");
}

#[tokio::test]
async fn a_malformed_signing_key_is_refused_when_it_is_saved() {
    let gateway = TestGateway::start().await;
    let connection =
        |name: &str, key: &str| json!({"uid": "hook", "provider": "webhook", "config": {}, "secrets": {name: key}});
    for (name, key) in [
        ("signing_key", "hunter2"),
        ("signing_key", "whsec_hunter2"),
        ("signing_key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS"),
        ("signing_key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw="),
        ("signing_key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa_-"),
        ("signing_key_ed25519", SECRET),
        ("signing_key_ed25519", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ] {
        let problem = gateway.post("/v1/connections", &connection(name, key)).await.expect(422);
        let error = &problem["errors"][0];
        assert_eq!((&error["pointer"], &error["code"]), (&json!(format!("/secrets/{name}")), &json!("wrong_format")));
        assert!(error["detail"].as_str().unwrap().contains("in base64"), "{error}");
        assert!(!problem.to_string().contains(key.trim_start_matches("whsec_")), "{problem}");
    }
    gateway.post("/v1/connections", &connection("signing_key", &format!("{SECRET}\n"))).await.expect(201);
    let path = "/v1/connections/hook/secrets/";
    let rotate = async |name: &str, value: &str| {
        gateway.call(Method::PUT, &format!("{path}{name}"), Some(&json!({"value": value, "overlap": 1}))).await
    };
    let problem = rotate("signing_key", "whsec_hunter2").await.expect(422);
    let pointers: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|it| it["pointer"].clone()).collect();
    assert_eq!(pointers, ["/overlap", "/value"]);
    let seed = json!({"value": "whsk_TV09T3NqYcRhXVqyTTWv5aDsHnZkHQLhMmYJyMp7gTU="});
    gateway.call(Method::PUT, &format!("{path}signing_key_ed25519"), Some(&seed)).await.expect(200);
}

#[tokio::test]
async fn a_taken_uid_and_a_connection_in_use_are_conflicts() {
    let gateway = TestGateway::start().await;
    gateway.connection("hook", "webhook", json!({"url": "https://example.com"}), json!({})).await;
    let again = json!({"uid": "hook", "provider": "webhook"});
    assert_eq!(gateway.post("/v1/connections", &again).await.problem(409).code, "uid_taken");
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}]})).await;
    let refused = gateway.call(Method::DELETE, "/v1/connections/hook", None).await.problem(409);
    assert_eq!(refused.code, "connection_in_use");
}

#[tokio::test]
async fn a_rotated_secret_keeps_the_old_one_for_the_overlap() {
    let gateway = TestGateway::start().await;
    let config = json!({"url": "https://example.com"});
    gateway.connection("hook", "webhook", config, json!({"signing_key": SECRET})).await;
    let path = "/v1/connections/hook/secrets/signing_key";
    let body = json!({"value": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "overlap_seconds": 60});
    assert_eq!(gateway.call(Method::PUT, path, Some(&body)).await.expect(200)["version"], 2);
    let shown = gateway.get("/v1/connections/hook").await;
    assert_eq!(shown["secrets"].as_array().unwrap().len(), 1);
    assert_eq!(shown["secrets"][0]["version"], 2);
    assert_eq!(gateway.db.sql("select count(*) from secret where valid_until > now()").await.trim(), "1");
    gateway.call(Method::PUT, "/v1/connections/hook/secrets/pin", Some(&body)).await.expect(404);
    gateway.call(Method::PUT, path, Some(&json!({"value": ""}))).await.expect(422);
}
