//! Texts through a gateway to Prism, which checks each request against Twilio's own specification.

use std::{path::PathBuf, process::Command, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use xtask::lifeline::Lifeline;

use crate::support::{
    gateway::{TestGateway, client},
    peer,
};

const ACCOUNT: &str = "AC00000000000000000000000000000001";

struct Prism {
    url: String,
    _process: Lifeline,
}

/// Takes seconds to start: one for all; it ends with the process.
static PRISM: OnceCell<Option<Prism>> = OnceCell::const_new();

async fn prism() -> Option<&'static str> {
    PRISM.get_or_init(start).await.as_ref().map(|prism| prism.url.as_str())
}

async fn start() -> Option<Prism> {
    let modules = peer::node()?.join("node_modules");
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("prism.log");
    let port = peer::free_port();
    let mut command = Command::new("node");
    command.arg(modules.join("@stoplight/prism-cli/dist/index.js"));
    command.args(["mock", "--errors", "--host", "127.0.0.1", "--port", &port.to_string()]);
    command.arg(modules.join("@twilio/cli-core/src/services/twilio-api/twilio_api_v2010.json"));
    let process = peer::start(command, port, &log).await;
    Some(Prism { url: format!("http://127.0.0.1:{port}"), _process: process })
}

/// A gateway whose texts go to this address.
async fn gateway_to(url: &str, account: &str) -> TestGateway {
    let gateway = TestGateway::start().await;
    let config = json!({"account_sid": account, "from": "+15005550006", "base_url": url});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": "secret: token"})).await;
    for channel in ["sms", "mms"] {
        let spec = json!({"candidates": [{"connection": "texts"}], "retry": {"type": "none"}});
        gateway.route(channel, spec).await;
    }
    gateway
}

/// The one attempt of a message.
async fn attempt(gateway: &TestGateway, message: Value) -> Value {
    let id = gateway.send(&message).await;
    gateway.settled(&id).await;
    let mut attempts = gateway.attempt_list(&id).await;
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    attempts.remove(0)
}

fn sms(text: &str) -> Value {
    json!({"channel": "sms", "to": "+14155550123", "content": {"text": text}})
}

#[tokio::test]
async fn texts_are_as_twilio_wants_them() {
    let Some(prism) = prism().await else { return };
    let gateway = gateway_to(prism, ACCOUNT).await;
    let media = json!(["https://example.org/a.png", "https://example.org/b.png?x=1&y=ö"]);
    for message in [
        sms("Hej & välkommen + 100 %\n=👍"),
        json!({
            "channel": "sms", "to": "+14155550123",
            "content": {"text": "x", "params": {"max_price": "0.05", "validity_period": "600"}},
        }),
        json!({"channel": "mms", "to": "+14155550123", "content": {"text": "look", "media_urls": media}}),
        json!({"channel": "mms", "to": "+14155550123", "content": {"media_urls": media}}),
    ] {
        let attempt = attempt(&gateway, message).await;
        assert_eq!((&attempt["disposition"], &attempt["status"]), (&json!("accepted"), &json!(201)), "{attempt}");
        // What Twilio's specification gives as its example of an answer.
        assert_eq!((&attempt["external_id"], &attempt["units"]), (&json!(format!("SM{}", "a".repeat(32))), &json!(1)));
    }
}

#[tokio::test]
async fn a_request_that_breaks_the_specification_is_refused_for_good() {
    let Some(prism) = prism().await else { return };
    let attempt = attempt(&gateway_to(prism, "AC1").await, sms("x")).await;
    assert_eq!((&attempt["disposition"], &attempt["status"]), (&json!("rejected_permanent"), &json!(422)), "{attempt}");
}

#[tokio::test]
async fn a_request_without_credentials_is_an_auth_failure() {
    let Some(prism) = prism().await else { return };
    let attempt = attempt(&gateway_to(&losing_credentials(prism).await, ACCOUNT).await, sms("x")).await;
    assert_eq!((&attempt["disposition"], &attempt["status"]), (&json!("auth_failed"), &json!(401)), "{attempt}");
    assert!(!attempt.to_string().contains("secret: token"), "{attempt}");
}

/// Hands requests on without their `Authorization`: Prism takes any credentials, but asks for some.
async fn losing_credentials(target: &str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(forward).with_state((Arc::<str>::from(target), client()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

async fn forward(
    State((target, client)): State<(Arc<str>, reqwest::Client)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Bytes) {
    let mut request = client.request(method, format!("{target}{uri}")).body(body);
    for name in ["content-type", "accept"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let answer = request.send().await.unwrap();
    (answer.status(), answer.bytes().await.unwrap())
}
