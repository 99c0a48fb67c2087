//! `/v1/providers`

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::gateway::{TestGateway, client};

async fn upload(gateway: &TestGateway, key: &str, bytes: Vec<u8>) -> (u16, Value) {
    let client = client();
    let request = client.post(gateway.url("/v1/providers?activate=true")).bearer_auth(key);
    let answer = request.header("content-type", "application/wasm").body(bytes).send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

#[tokio::test]
async fn the_folders_providers_serve_with_their_grants() {
    let gateway = TestGateway::start().await;
    let list = gateway.get("/v1/providers").await;
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    for name in ["email-smtp", "sms-twilio", "webhook"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let webhook = gateway.get("/v1/providers/webhook").await;
    assert_eq!(webhook["channels"], json!(["webhook"]));
    assert_eq!(webhook["granted_hosts"], webhook["declared_hosts"]);
    assert_eq!(webhook["versions"][0]["digest"], webhook["active_digest"]);
}

#[tokio::test]
async fn only_an_operator_changes_providers() {
    let gateway = TestGateway::start().await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    assert_eq!(upload(&gateway, &gateway.key, vec![]).await.0, 403);
    let (status, problem) = upload(&gateway, &operator, b"not a component".to_vec()).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("invalid_request")), "{problem}");
    assert_eq!(problem["errors"][0]["code"], "component_refused");
    assert_eq!(problem["source"], "provider");

    let grants = async |hosts: Value| {
        let body = json!({"hosts": hosts});
        gateway.call_as(&operator, Method::PUT, "/v1/providers/webhook/grants", Some(&body)).await
    };
    assert_eq!(grants(json!([])).await.expect(200)["granted_hosts"], json!([]));
    assert_eq!(grants(json!(["evil.example"])).await.expect(422)["errors"][0]["code"], "undeclared_host");
    let answer = gateway.call_as(&operator, Method::POST, "/v1/providers/webhook/rollback", None).await;
    assert_eq!(answer.expect(409)["code"], "no_previous_version");
    gateway.call_as(&operator, Method::POST, "/v1/providers/pigeon/rollback", None).await.expect(404);
}

#[tokio::test]
async fn a_component_that_is_known_can_be_uploaded_again() {
    let gateway = TestGateway::start().await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    let before = gateway.get("/v1/providers/webhook").await;
    let file = std::fs::read(gateway.settings().providers.join("webhook.wasm")).unwrap();
    let (status, after) = upload(&gateway, &operator, file).await;
    assert_eq!((status, &after["active_digest"]), (201, &before["active_digest"]), "{after}");
    assert_eq!(after["versions"].as_array().unwrap().len(), 1);
}
