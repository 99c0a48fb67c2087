//! The document, the reference, and the paths for an operator's tools.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    gateway::{ALL_SCOPES, TestGateway, client},
    sink::Sink,
};

async fn fetch(gateway: &TestGateway, path: &str) -> (u16, String, String) {
    let client = client();
    let answer = client.get(gateway.url(path)).send().await.unwrap();
    let kind = answer.headers().get("content-type").map(|it| it.to_str().unwrap().to_owned()).unwrap_or_default();
    (answer.status().as_u16(), kind, answer.text().await.unwrap())
}

#[tokio::test]
async fn what_needs_no_key_answers_without_one() {
    let gateway = TestGateway::start().await;
    for (path, kind, part) in [
        ("/livez", "application/json", "ok"),
        ("/readyz", "application/json", "ok"),
        ("/metrics", "text/plain", "angarium_http_seconds"),
        ("/openapi.json", "application/json", "\"openapi\":\"3.1.0\""),
        ("/docs/", "text/html", "swagger"),
    ] {
        let (status, got, body) = fetch(&gateway, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(got.starts_with(kind), "{path}: {got}");
        assert!(body.contains(part), "{path}: {body}");
    }
}

#[tokio::test]
async fn every_documented_path_is_served() {
    let gateway = TestGateway::start().await;
    let document: Value = serde_json::from_str(&fetch(&gateway, "/openapi.json").await.2).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|it| *it != "parameters") {
            let method: Method = method.to_uppercase().parse().unwrap();
            let path = path.replace("{id}", "x").replace("{connection}", "x").replace("{route}", "x");
            let path = path.replace("{name}", "x").replace("{token}", "x");
            let answer = gateway.call_as("nobody", method.clone(), &path, None).await;
            let expected = match path.as_str() {
                "/livez" | "/readyz" | "/metrics" => 200,
                // Its token is its key.
                "/v1/callbacks/x" => 404,
                _ => 401,
            };
            assert_eq!(answer.status, expected, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_change_refuses_parameters_that_it_does_not_have() {
    let gateway = TestGateway::start().await;
    let key = gateway.key_with(&format!("{ALL_SCOPES},operator"));
    let document: Value = serde_json::from_str(&fetch(&gateway, "/openapi.json").await.2).unwrap();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(method, _)| *method != "get") {
            // A provider's service calls it, with parameters of its own.
            if operation["operationId"] == "postCallback" {
                continue;
            }
            let parts = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
            let address = parts.collect::<Vec<_>>().join("/");
            let has =
                |name: &str| operation["parameters"].as_array().into_iter().flatten().any(|it| it["name"] == name);
            for parameter in ["dry_run=true", "nonsense=1"] {
                let name = parameter.split('=').next().unwrap();
                if has(name) {
                    continue;
                }
                let method: Method = method.to_uppercase().parse().unwrap();
                let address = format!("{address}?{parameter}");
                let answer = gateway.call_as(&key, method, &address, Some(&json!({}))).await;
                assert_eq!(answer.status, 400, "{path} {address}: {}", answer.body);
                assert_eq!(answer.body["errors"][0]["pointer"], format!("query/{name}"), "{path}: {}", answer.body);
                tried += 1;
            }
        }
    }
    assert!(tried > 60, "{tried}");
}

#[tokio::test]
async fn an_action_with_an_unknown_parameter_does_nothing() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let later = json!({"channel": "webhook", "content": {"payload": 1}, "send_at": "2099-01-01T00:00:00Z"});
    let id = gateway.send(&later).await;
    let message = format!("/v1/messages/{id}");
    gateway.post(&format!("{message}/cancel?dry_run=true"), &json!({})).await.expect(400);
    let sooner = json!({"priority": "high"});
    gateway.call(Method::PATCH, &format!("{message}?dry_run=true"), Some(&sooner)).await.expect(400);
    gateway.post("/v1/dead-letters/replays?dry_run=true", &json!({"filter": {}})).await.expect(400);
    let shown = gateway.message(&id).await;
    assert_eq!((shown.state.as_str(), &shown["priority"]), ("scheduled", &json!("normal")), "{shown}");
    assert!(gateway.list("/v1/dead-letters/replays").await.is_empty());
    gateway.post(&format!("{message}/cancel"), &json!({})).await.expect(200);
    gateway.call(Method::DELETE, &format!("{message}/content?dry_run=true"), None).await.expect(400);
    assert_eq!(gateway.get(&format!("{message}/content")).await["parts"][0]["content"]["payload"], 1);
}
