//! Keys: their permissions, and the end of these.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::{ALL_SCOPES, TestGateway},
};

#[tokio::test]
async fn without_a_valid_key_nothing_opens() {
    let gateway = TestGateway::start().await;
    for key in ["", "ak_", "ak_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "Bearer"] {
        let answer = gateway.call_as(key, Method::GET, "/v1/messages", None).await;
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert_eq!(answer.problem(401).code, "unauthorized");
    }
}

#[tokio::test]
async fn a_missing_scope_is_named() {
    let gateway = TestGateway::start().await;
    for (method, path, scope) in [
        (Method::POST, "/v1/messages", "messages:write"),
        (Method::GET, "/v1/messages", "messages:read"),
        (Method::POST, "/v1/connections", "connections:write"),
        (Method::GET, "/v1/connections", "connections:read"),
        (Method::POST, "/v1/routes", "routes:write"),
        (Method::GET, "/v1/routes", "routes:read"),
        (Method::PUT, "/v1/settings", "routes:write"),
        (Method::GET, "/v1/settings", "routes:read"),
        (Method::GET, "/v1/providers", "providers:read"),
        (Method::GET, "/v1/audit", "audit:read"),
    ] {
        let rest: Vec<_> = ALL_SCOPES.split(',').filter(|it| *it != scope).collect();
        let tenant = format!("without-{}-{}", scope.replace(':', "-"), path.replace('/', "-"));
        let key = gateway.key_of(&tenant, &rest.join(","));
        let problem = gateway.call_as(&key, method, path, Some(&json!({}))).await.problem(403);
        assert!(problem.detail.contains(scope), "{problem}");
    }
}

#[tokio::test]
async fn a_revoked_key_opens_nothing() {
    let gateway = TestGateway::start().await;
    gateway.get("/v1/messages").await;
    let listed = gateway.settings().command_line(&["key", "list", "--tenant", "one", "--json"]).unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert!(!listed.to_string().contains(&gateway.key));
    gateway.settings().command_line(&["key", "revoke", listed[0]["id"].as_str().unwrap()]).unwrap();
    eventually("the end of the key", || async {
        let answer = gateway.call(Method::GET, "/v1/messages", None).await;
        (answer.status == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_expired_key_opens_nothing() {
    let gateway = TestGateway::start().await;
    let arguments = ["key", "create", "--tenant", "one", "--expires-at", "2020-01-01T00:00:00Z", "--json"];
    let made: Value = serde_json::from_str(&gateway.settings().command_line(&arguments).unwrap()).unwrap();
    let answer = gateway.call_as(made["key"].as_str().unwrap(), Method::GET, "/v1/messages", None).await;
    answer.expect(401);
}
