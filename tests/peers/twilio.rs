//! Texts through a gateway to Prism, which checks each request against Twilio's own specification; and callbacks that
//! Twilio's own library has signed.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use xtask::lifeline::Lifeline;

use crate::support::{
    answers::{Attempt, Seen},
    gateway::{TestGateway, client},
    peer,
    sink::{Reply, Sink},
};

const ACCOUNT: &str = "AC00000000000000000000000000000001";

const TOKEN: &str = "5ecret-t0ken";
/// Prism accepts any readable credentials; it reads none with a second colon.
const UNREADABLE_TOKEN: &str = "5ecret:t0ken";

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
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (log, port) = (folder.join("prism.log"), peer::free_port());
    let specification = folder.join("twilio.json");
    let original = modules.join("@twilio/cli-core/src/services/twilio-api/twilio_api_v2010.json");
    std::fs::write(&specification, with_lists(&original).to_string()).unwrap();
    let mut command = Command::new("node");
    command.arg(modules.join("@stoplight/prism-cli/dist/index.js"));
    command.args(["mock", "--errors", "--host", "127.0.0.1", "--port", &port.to_string()]);
    command.arg(specification);
    let process = peer::start(command, port, &log).await;
    Some(Prism { url: format!("http://127.0.0.1:{port}"), _process: process })
}

/// Returns Twilio's specification with an explicit form for lists: the implied form is OpenAPI's default, one field for
/// each item, but Prism reads lists only if it is explicit.
fn with_lists(specification: &Path) -> Value {
    let mut document: Value = serde_json::from_slice(&std::fs::read(specification).unwrap()).unwrap();
    let create = &mut document["paths"]["/2010-04-01/Accounts/{AccountSid}/Messages.json"]["post"];
    let form = &mut create["requestBody"]["content"]["application/x-www-form-urlencoded"];
    assert!(form["schema"].is_object() && form["encoding"].is_null());
    form["encoding"] = json!({"MediaUrl": {"style": "form", "explode": true}});
    document
}

/// Starts a gateway whose texts go to this address.
async fn gateway_to(url: &str, account: &str, token: &str) -> TestGateway {
    let gateway = TestGateway::start().await;
    let config = json!({"account_sid": account, "from": "+15005550006", "base_url": url});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": token})).await;
    for channel in ["sms", "mms"] {
        let spec = json!({"candidates": [{"connection": "texts"}], "retry": {"type": "none"}});
        gateway.route(channel, spec).await;
    }
    gateway
}

/// The one attempt of a message.
async fn attempt(gateway: &TestGateway, message: Value) -> Seen<Attempt> {
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
    let gateway = gateway_to(prism, ACCOUNT, TOKEN).await;
    let media = json!(["https://example.org/a.png", "https://example.org/b.png?x=1&y=%C3%B6"]);
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
        assert_eq!((attempt.disposition.as_str(), attempt.status), ("accepted", Some(201)), "{attempt}");
        // The example of an answer in Twilio's specification.
        assert_eq!((&attempt["external_id"], &attempt["units"]), (&json!(format!("SM{}", "a".repeat(32))), &json!(1)));
    }
}

#[tokio::test]
async fn a_request_that_breaks_the_specification_is_refused_for_good() {
    let Some(prism) = prism().await else { return };
    let attempt = attempt(&gateway_to(prism, "AC1", TOKEN).await, sms("x")).await;
    assert_eq!((attempt.disposition.as_str(), attempt.status), ("rejected_permanent", Some(422)), "{attempt}");
}

#[tokio::test]
async fn credentials_that_are_refused_are_an_auth_failure() {
    let Some(prism) = prism().await else { return };
    let gateway = gateway_to(prism, ACCOUNT, UNREADABLE_TOKEN).await;
    let attempt = attempt(&gateway, sms("x")).await;
    assert_eq!((attempt.disposition.as_str(), attempt.status), ("auth_failed", Some(401)), "{attempt}");
    assert!(!attempt.to_string().contains(UNREADABLE_TOKEN), "{attempt}");
}

/// Returns the signature by Twilio's library for this request.
fn signed(url: &str, params: &Value, algorithm: &str) -> Option<String> {
    let mut command = Command::new(peer::python()?);
    command.arg(peer::script("sign_twilio.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let input = json!({"token": TOKEN, "url": url, "params": params, "algorithm": algorithm});
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{input}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// Posts a form as Twilio does, and answers the status.
async fn call_back(url: &str, params: &Value, signature: &str, settings: Option<&str>) -> u16 {
    let fields = params.as_object().unwrap().iter();
    let body = fields
        .fold(url::form_urlencoded::Serializer::new(String::new()), |mut form, (name, value)| {
            form.append_pair(name, value.as_str().unwrap());
            form
        })
        .finish();
    let request = client().post(url).header("content-type", "application/x-www-form-urlencoded").body(body);
    let request = request.header("x-twilio-signature", signature);
    let request = match settings {
        Some(settings) => request.header("x-twilio-webhooks-signature-settings", settings),
        None => request,
    };
    request.send().await.unwrap().status().as_u16()
}

/// The callback URL that a text asked Twilio for.
fn status_callback(sink: &Sink) -> String {
    let request = sink.received().pop().unwrap();
    let fields: Vec<(String, String)> = url::form_urlencoded::parse(&request.body).into_owned().collect();
    fields.into_iter().find(|(name, _)| name == "StatusCallback").expect("a callback is asked for").1
}

#[tokio::test]
async fn callbacks_that_twilios_library_signed_are_believed_and_others_are_not() {
    if peer::python().is_none() {
        return;
    }
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let mut created = Reply::status(201);
    created.body = json!({"sid": format!("SM{}", "7".repeat(32))}).to_string();
    sink.answers(&format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json"), [created]);
    let config = json!({"account_sid": ACCOUNT, "from": "+15005550006", "base_url": sink.url(""), "receipts": true});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": TOKEN})).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}], "retry": {"type": "none"}})).await;
    // As Twilio writes it, with its port and without, and with the newer algorithm.
    for (port, algorithm) in [(true, "HMAC_SHA1"), (false, "HMAC_SHA1"), (true, "HMAC_SHA256")] {
        let id = gateway.send(&sms("Hej")).await;
        assert_eq!(gateway.settled(&id).await.state, "sent");
        let url = status_callback(&sink);
        let authority = url.split('/').nth(2).unwrap();
        let known = if port { url.clone() } else { url.replace(authority, authority.split(':').next().unwrap()) };
        let params = json!({
            "AccountSid": ACCOUNT, "From": "+15005550006", "To": "+14155550123", "MessageStatus": "delivered",
            "MessageSid": format!("SM{}", "7".repeat(32)), "SmsStatus": "delivered", "Körper": "å & +\u{20ac}",
            "ApiVersion": "2010-04-01", "EmptyField": "",
        });
        let signature = signed(&known, &params, algorithm).unwrap();
        let settings = (algorithm != "HMAC_SHA1").then(|| format!("key=k1,algorithm={algorithm}"));
        let mut changed = params.clone();
        changed["MessageStatus"] = json!("failed");
        for (params, signature) in
            [(&changed, signature.as_str()), (&params, ""), (&params, "AAAAAAAAAAAAAAAAAAAAAAAAAAA=")]
        {
            assert_eq!(call_back(&url, params, signature, settings.as_deref()).await, 401);
        }
        assert_eq!(gateway.message(&id).await.state, "sent");
        assert_eq!(call_back(&url, &params, &signature, settings.as_deref()).await, 204);
        assert_eq!(gateway.message(&id).await.state, "delivered");
    }
}
