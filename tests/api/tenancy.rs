//! One tenant's things do not exist for another.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    gateway::{ALL_SCOPES, TestGateway},
    sink::Sink,
};

#[tokio::test]
async fn another_tenants_things_are_not_found() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let message = gateway.send(&json!({"channel": "webhook", "content": {"payload": 1}})).await;
    gateway.settled(&message).await;
    let connection = gateway.get("/v1/connections/hook").await["id"].as_str().unwrap().to_owned();
    let route = gateway.get("/v1/routes").await["data"][0]["id"].as_str().unwrap().to_owned();
    let other = gateway.key_of("two", ALL_SCOPES);
    let spec = json!({"spec": {"candidates": [{"connection": connection}]}});
    let mut calls = Vec::new();
    for path in ["", "/attempts", "/events", "/decision"] {
        calls.push((Method::GET, format!("/v1/messages/{message}{path}"), None));
    }
    for path in ["/cancel", "/retry"] {
        calls.push((Method::POST, format!("/v1/messages/{message}{path}"), None));
    }
    for name in [connection.as_str(), "hook"] {
        calls.push((Method::GET, format!("/v1/connections/{name}"), None));
        calls.push((Method::PATCH, format!("/v1/connections/{name}"), Some(json!({"enabled": false}))));
        calls.push((Method::DELETE, format!("/v1/connections/{name}"), None));
        let secret = format!("/v1/connections/{name}/secrets/signing_key");
        calls.push((Method::PUT, secret, Some(json!({"value": "x"}))));
    }
    calls.push((Method::GET, format!("/v1/routes/{route}"), None));
    calls.push((Method::POST, format!("/v1/routes/{route}/versions"), Some(spec.clone())));
    calls.push((Method::POST, format!("/v1/routes/{route}/activate"), Some(json!({"version": 1}))));
    calls.push((Method::POST, format!("/v1/routes/{route}/rollback"), None));
    for (method, path, body) in calls {
        let answer = gateway.call_as(&other, method.clone(), &path, body.as_ref()).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.body);
    }
    for list in ["/v1/messages", "/v1/connections", "/v1/routes"] {
        let page = gateway.call_as(&other, Method::GET, list, None).await.expect(200);
        assert_eq!(page["data"], json!([]), "{list}");
    }
}

#[tokio::test]
async fn another_tenants_connection_can_be_neither_routed_nor_used() {
    let gateway = TestGateway::start().await;
    let id = gateway.connection("hook", "webhook", json!({"url": "https://example.com"}), json!({})).await;
    let other = gateway.key_of("two", ALL_SCOPES);
    let route = json!({"channel": "webhook", "spec": {"candidates": [{"connection": id}]}});
    let refused = gateway.call_as(&other, Method::POST, "/v1/routes", Some(&route)).await.expect(422);
    assert_eq!(refused["errors"][0]["code"], "unknown_connection");
    let message = json!({"channel": "webhook", "connection": id});
    let refused = gateway.call_as(&other, Method::POST, "/v1/messages", Some(&message)).await.expect(422);
    assert_eq!(refused["errors"][0]["code"], "unknown_connection");
    // A uid is each tenant's own.
    let same = json!({"uid": "hook", "provider": "webhook"});
    gateway.call_as(&other, Method::POST, "/v1/connections", Some(&same)).await.expect(201);
}

#[tokio::test]
async fn nobody_assigns_what_is_the_gateways() {
    let gateway = TestGateway::start().await;
    let smuggled = json!({"tenant_id": "B", "price": 0, "status": "delivered"});
    let merged = |mut body: Value| {
        body.as_object_mut().unwrap().extend(smuggled.as_object().unwrap().clone());
        body
    };
    gateway.connection("hook", "webhook", json!({"url": "https://example.com"}), json!({})).await;
    let spec = json!({"candidates": [{"connection": "hook"}]});
    for (method, path, body) in [
        (Method::POST, "/v1/messages", json!({"channel": "webhook"})),
        (Method::POST, "/v1/connections", json!({"provider": "webhook"})),
        (Method::PATCH, "/v1/connections/hook", json!({})),
        (Method::POST, "/v1/routes", json!({"channel": "webhook", "spec": spec})),
    ] {
        let problem = gateway.call(method, path, Some(&merged(body))).await.expect(422);
        let unknown = problem["errors"].as_array().unwrap().iter().filter(|it| it["code"] == "unknown_field").count();
        assert_eq!(unknown, 3, "{path}: {problem}");
    }
}
