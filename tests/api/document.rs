//! The document, the reference, and the paths for an operator's tools.

use serde_json::Value;

use crate::support::gateway::{TestGateway, client};

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
            let method: reqwest::Method = method.to_uppercase().parse().unwrap();
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
