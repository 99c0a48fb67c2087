//! Webhooks verified by the official `standardwebhooks` library (v1) and by PyNaCl (v1a).

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::support::{
    gateway::TestGateway,
    peer,
    sink::{Received, Sink},
};

/// How long the old value stays valid after a rotation.
const OVERLAP: Duration = Duration::from_secs(3);

fn secret(prefix: &str, byte: u8) -> String {
    format!("{prefix}{}", STANDARD.encode([byte; 32]))
}

/// Returns the verifiers' answers to a request: for each secret and each seed, whether it verifies.
fn verified(request: &Received, secrets: &[&str], seeds: &[&str]) -> Option<Value> {
    let headers = request.headers.iter().map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap())));
    let input = json!({
        "headers": headers.collect::<Map<_, _>>(), "body": std::str::from_utf8(&request.body).unwrap(),
        "secrets": secrets, "seeds": seeds,
    });
    let mut command = Command::new(peer::python()?);
    command.arg(peer::script("verify_webhook.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{input}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// Sends a payload whose bytes matter to the signature, and returns the received request.
async fn delivered(gateway: &TestGateway, sink: &Sink) -> Received {
    let body = r#"{"channel": "webhook", "connection": "hook", "content": {"payload": {"ö":  1.0, "a":[2 ,3]}}}"#;
    let id = gateway.send_raw(body).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    sink.received().pop().unwrap()
}

#[tokio::test]
async fn both_kinds_of_signatures_verify() {
    if peer::python().is_none() {
        return;
    }
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let (hmac, seed) = (secret("whsec_", 1), secret("whsk_", 2));
    let secrets = json!({"signing_key": hmac, "signing_key_ed25519": seed});
    let config = json!({"url": sink.url("/in"), "method": "put", "headers": {"X-Shop": "7"}});
    gateway.connection("hook", "webhook", config, secrets).await;
    let mut request = delivered(&gateway, &sink).await;
    assert_eq!((request.method.as_str(), request.header("x-shop")), ("PUT", "7"));
    assert_eq!(request.header("content-type"), "application/json");
    let others = (secret("whsec_", 3), secret("whsk_", 3));
    let said = verified(&request, &[&hmac, &others.0], &[&seed, &others.1]).unwrap();
    assert_eq!(said, json!({"v1": [true, false], "v1a": [true, false]}));
    request.body = bytes::Bytes::from(
        request.body.iter().map(|byte| byte.saturating_add(u8::from(*byte == b'2'))).collect::<Vec<_>>(),
    );
    assert_eq!(verified(&request, &[&hmac], &[&seed]).unwrap(), json!({"v1": [false], "v1a": [false]}));
}

#[tokio::test]
async fn a_rotation_keeps_both_secrets_for_the_overlap() {
    if peer::python().is_none() {
        return;
    }
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let (old, new) = (secret("whsec_", 1), secret("whsec_", 2));
    let (old_seed, new_seed) = (secret("whsk_", 3), secret("whsk_", 4));
    let secrets = json!({"signing_key": old, "signing_key_ed25519": old_seed});
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), secrets).await;
    let both = async |expected: [bool; 2]| {
        let request = delivered(&gateway, &sink).await;
        let said = verified(&request, &[&old, &new], &[&old_seed, &new_seed]).unwrap();
        assert_eq!(said, json!({"v1": expected, "v1a": expected}), "{}", request.header("webhook-signature"));
    };
    both([true, false]).await;
    for (name, value) in [("signing_key", &new), ("signing_key_ed25519", &new_seed)] {
        let path = format!("/v1/connections/hook/secrets/{name}");
        let body = json!({"value": value, "overlap_seconds": OVERLAP.as_secs()});
        assert_eq!(gateway.call(Method::PUT, &path, Some(&body)).await.expect(200)["version"], 2);
    }
    both([true, true]).await;
    tokio::time::sleep(OVERLAP).await;
    both([false, true]).await;

    // Without an overlap the old value ends at once.
    let body = json!({"value": old});
    gateway.call(Method::PUT, "/v1/connections/hook/secrets/signing_key", Some(&body)).await.expect(200);
    let request = delivered(&gateway, &sink).await;
    assert_eq!(verified(&request, &[&old, &new], &[]).unwrap(), json!({"v1": [true, false], "v1a": []}));
}
