//! `/v1/settings`

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::gateway::{ALL_SCOPES, Answer, TestGateway};

async fn put(gateway: &TestGateway, body: &Value) -> Answer {
    gateway.call(Method::PUT, "/v1/settings", Some(body)).await
}

#[tokio::test]
async fn they_are_empty_at_first_and_then_as_they_were_given() {
    let gateway = TestGateway::start().await;
    assert_eq!(gateway.get("/v1/settings").await, json!({"version": 0, "overrides": {}, "updated_at": null}));
    let overrides = json!({"21610": "permanent", "webhook": {"503": "unknown"}});
    let made = put(&gateway, &json!({"overrides": overrides})).await.expect(200);
    assert_eq!((&made["version"], &made["overrides"]), (&json!(1), &overrides));
    assert_eq!(gateway.get("/v1/settings").await, made);
    let emptied = put(&gateway, &json!({})).await.expect(200);
    assert_eq!((&emptied["version"], &emptied["overrides"]), (&json!(2), &json!({})));
}

#[tokio::test]
async fn a_change_of_what_has_changed_meanwhile_is_refused() {
    let gateway = TestGateway::start().await;
    put(&gateway, &json!({"version": 3})).await.expect(409);
    assert_eq!(gateway.get("/v1/settings").await["version"], 0);
    put(&gateway, &json!({"version": 0})).await.expect(200);
    let refused = put(&gateway, &json!({"version": 0, "overrides": {"1": "permanent"}})).await.problem(409);
    assert_eq!(refused.code, "version_passed");
    put(&gateway, &json!({"version": 1, "overrides": {"1": "permanent"}})).await.expect(200);
}

#[tokio::test]
async fn every_bad_field_is_named() {
    let gateway = TestGateway::start().await;
    let body = json!({"tenant_id": "x", "version": "x",
        "overrides": {"200": "accepted", "": "permanent", "nobody": {"x": "permanent"}}});
    let problem = put(&gateway, &body).await.expect(422);
    let errors = problem["errors"].as_array().unwrap().iter();
    let mut named: Vec<_> =
        errors.map(|it| format!("{}:{}", it["pointer"].as_str().unwrap(), it["code"].as_str().unwrap())).collect();
    named.sort();
    assert_eq!(
        named,
        [
            "/overrides/200:not_a_choice",
            "/overrides/:wrong_format",
            "/overrides/nobody:unknown_provider",
            "/tenant_id:unknown_field",
            "/version:wrong_type",
        ]
    );
    let many: serde_json::Map<_, _> = (0..501).map(|code| (code.to_string(), json!("permanent"))).collect();
    let problem = put(&gateway, &json!({"overrides": many})).await.problem(422);
    assert_eq!(problem.errors[0].pointer, "/overrides");
}

#[tokio::test]
async fn they_are_each_tenants_own() {
    let gateway = TestGateway::start().await;
    put(&gateway, &json!({"overrides": {"1": "permanent"}})).await.expect(200);
    let other = gateway.key_of("two", ALL_SCOPES);
    assert_eq!(gateway.call_as(&other, Method::GET, "/v1/settings", None).await.expect(200)["version"], 0);
    let body = json!({"overrides": {"1": "transient"}});
    gateway.call_as(&other, Method::PUT, "/v1/settings", Some(&body)).await.expect(200);
    assert_eq!(gateway.get("/v1/settings").await["overrides"], json!({"1": "permanent"}));
}
