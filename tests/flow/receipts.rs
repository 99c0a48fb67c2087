//! Later reports of services: receipts that come once, a hundred times, too early, in any order, forged or malformed.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use ring::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::support::{
    database::eventually,
    gateway::{ALL_SCOPES, TestGateway, client},
    messages::hook,
    seed,
    sink::{Reply, Sink},
};

const TOKEN: &str = "t0ken-of-the-service";

/// A gateway whose texts go to a fixture's sink with callbacks.
struct Scene {
    gateway: TestGateway,
    sink: Sink,
    /// The connection's callback URL.
    url: String,
}

impl Scene {
    async fn start() -> Self {
        Self::with(json!({"retry": {"type": "none"}})).await
    }

    /// With more of the route's spec.
    async fn with(spec: Value) -> Self {
        let sink = Sink::start().await;
        let url = sink.url("/texts");
        Self::to(sink, &url, spec).await
    }

    async fn to(sink: Sink, target: &str, mut spec: Value) -> Self {
        let gateway = TestGateway::start().await;
        let seed = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
        let secrets = json!({"token": TOKEN, "public_key": STANDARD.encode(seed.public_key())});
        gateway.connection("texts", "fixture", json!({"url": target}), secrets).await;
        spec["candidates"] = json!([{"connection": "texts"}]);
        gateway.route("sms", spec).await;
        let url = gateway.callback_url("texts").await;
        Self { gateway, sink, url }
    }

    /// A message that the service took.
    async fn sent(&self) -> String {
        let id = self.gateway.send(&text()).await;
        assert_eq!(self.gateway.settled(&id).await.state, "sent");
        id
    }

    /// Sends the service's events, and returns the status of the answer.
    async fn says(&self, events: &Value) -> u16 {
        self.posts("", TOKEN, events.to_string()).await
    }

    async fn posts(&self, query: &str, token: &str, body: String) -> u16 {
        let request = client().post(format!("{}{query}", self.url)).header("x-token", token).body(body);
        request.send().await.unwrap().status().as_u16()
    }

    async fn view(&self, id: &str) -> Value {
        self.gateway.get(&format!("/v1/messages/{id}")).await
    }

    async fn becomes(&self, id: &str, state: &str) -> Value {
        eventually(&format!("{id} being {state}"), || async {
            let view = self.view(id).await;
            (view["state"] == state).then_some(view)
        })
        .await
    }

    async fn events(&self, id: &str) -> Vec<String> {
        self.gateway.event_types(id).await
    }
}

fn text() -> Value {
    json!({"channel": "sms", "to": "+46700000001", "content": {"text": "hello"}})
}

/// The delivery of a message with one leg.
fn delivery(message: &str) -> String {
    message.replace("msg_", "dlv_")
}

fn receipt(kind: &str, message: &str) -> Value {
    json!({"kind": kind, "delivery": delivery(message)})
}

/// Sends texts through `sms-twilio` to a sink that represents Twilio and answers after a while.
async fn twilio(gateway: &TestGateway, sink: &Sink, after: Duration) {
    let mut created = Reply::status(201).after(after);
    created.body = json!({"sid": "SM1", "num_segments": "1"}).to_string();
    sink.answers("/2010-04-01/Accounts/AC1/Messages.json", [created]);
    let config = json!({"account_sid": "AC1", "from": "+15005550006", "base_url": sink.url(""), "receipts": true});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": "5ecret"})).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}]})).await;
}

/// The callback URL that the last text asked for.
fn status_callback(sink: &Sink) -> String {
    let asked = sink.received().pop().expect("a text came");
    let mut fields = url::form_urlencoded::parse(&asked.body);
    fields.find(|(name, _)| name == "StatusCallback").expect("receipts are asked for").1.into_owned()
}

/// A callback as Twilio signs it, and its status.
async fn twilio_says(url: &str, status: &str, more: &str) -> u16 {
    let body = format!("MessageSid=SM1&MessageStatus={status}{more}");
    let mut fields: Vec<_> = url::form_urlencoded::parse(body.as_bytes()).collect();
    fields.sort();
    let signed = fields.iter().fold(url.to_owned(), |signed, (name, value)| signed + &**name + &**value);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"5ecret");
    let signature = STANDARD.encode(hmac::sign(&key, signed.as_bytes()));
    let request = client().post(url).header("x-twilio-signature", signature).body(body);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_text_is_delivered_once_twilio_says_so() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    twilio(&gateway, &sink, Duration::ZERO).await;
    let id = gateway.send(&text()).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");

    let url = &status_callback(&sink);
    assert!(url.ends_with(&format!("?delivery={}", delivery(&id))), "{url}");

    assert_eq!(twilio_says(url, "queued", "").await, 204);
    assert_eq!(twilio_says(url, "sent", "").await, 204);
    assert_eq!(twilio_says(url, "delivered", "&RawDlrDoneDate=2611211200").await, 204);
    let view = gateway.message(&id).await;
    assert_eq!((&view["state"], &view["delivery"]["external_id"]), (&json!("delivered"), &json!("SM1")));
    let events = gateway.get(&format!("/v1/messages/{id}/events")).await;
    let last = events["data"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["type"], &last["delivery"]), (&json!("message.delivered"), &json!(delivery(&id))));
    assert_eq!(last["data"]["provider"]["RawDlrDoneDate"], "2611211200");

    let id = gateway.send(&text()).await;
    gateway.settled(&id).await;
    assert_ne!(&status_callback(&sink), url, "each text has a callback URL of its own");
}

#[tokio::test]
async fn the_same_callback_a_hundred_times_is_one_transition_and_one_event() {
    let scene = Scene::start().await;
    let id = scene.sent().await;
    let say = json!([receipt("delivered", &id), receipt("read", &id)]);
    let all: Vec<_> = (0..100).map(|_| scene.says(&say)).collect();
    for status in futures_util::future::join_all(all).await {
        assert_eq!(status, 200);
    }
    let view = scene.view(&id).await;
    assert_eq!((&view["state"], &view["delivery"]["engagement"]), (&json!("delivered"), &json!(["read"])));
    assert_eq!(scene.events(&id).await, ["message.accepted", "message.sent", "message.delivered", "message.read"]);
    assert_eq!(scene.gateway.db.sql("select count(*) from receipt").await.trim(), "2");
}

#[tokio::test]
async fn receipts_in_any_order_end_at_the_same_state() {
    let scene = Scene::start().await;
    let kinds = ["sent", "failed", "bounced", "delivered"];
    for order in 0..8 {
        let id = scene.sent().await;
        let mut kinds = kinds.to_vec();
        fastrand::Rng::with_seed(order).shuffle(&mut kinds);
        for kind in &kinds {
            assert_eq!(scene.says(&json!([receipt(kind, &id)])).await, 200);
        }
        assert_eq!(scene.view(&id).await["state"], "delivered", "{kinds:?}");
        let delivered = scene.events(&id).await.iter().filter(|it| *it == "message.delivered").count();
        assert_eq!(delivered, 1, "{kinds:?}");
    }
}

#[tokio::test]
async fn a_receipt_is_matched_by_the_services_own_id() {
    let scene = Scene::start().await;
    scene.sink.answers("/texts", [Reply::status(200).header("x-external-id", "sid-1")]);
    let id = scene.sent().await;
    let bounced =
        json!([{"kind": "bounced", "external_id": "sid-1", "code": "30006", "unified_code": "invalid_recipient"}]);
    assert_eq!(scene.says(&bounced).await, 200);
    let view = scene.view(&id).await;
    assert_eq!((&view["state"], &view["delivery"]["code"]), (&json!("bounced"), &json!("30006")));
    assert_eq!(view["delivery"]["unified_code"], "invalid_recipient");
}

/// The service is quicker with its receipt than with its answer.
#[tokio::test]
async fn a_receipt_before_the_outcome_waits_for_it() {
    let scene = Scene::start().await;
    for (sid, by_sid) in [("sid-1", false), ("sid-2", true)] {
        let slow = Reply::status(200).header("x-external-id", sid).after(Duration::from_secs(2));
        scene.sink.answers("/texts", [slow]);
        let before = scene.sink.received().len();
        let id = scene.gateway.send(&text()).await;
        scene.sink.arrived(before + 1).await;
        let event = if by_sid { json!({"kind": "delivered", "external_id": sid}) } else { receipt("delivered", &id) };
        assert_eq!(scene.says(&json!([event])).await, 200);
        assert_eq!(scene.says(&json!([event])).await, 200);
        assert_eq!(scene.view(&id).await["state"], "queued", "the attempt is still under way");
        let view = scene.becomes(&id, "delivered").await;
        assert_eq!((&view["delivery"]["attempts"], &view["delivery"]["external_id"]), (&json!(1), &json!(sid)));
        assert_eq!(scene.events(&id).await, ["message.accepted", "message.sent", "message.delivered"]);
        assert_eq!(scene.gateway.db.sql("select count(*) from receipt_pending").await.trim(), "0");
    }
}

/// A server that takes the request and closes the connection without an answer.
async fn hangs_up() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
        }
    });
    url
}

#[tokio::test]
async fn a_receipt_resolves_what_is_unknown() {
    let scene = Scene::to(Sink::start().await, &hangs_up().await, json!({"on_unknown": "hold"})).await;
    for (kind, state) in [("sent", "sent"), ("delivered", "delivered"), ("failed", "failed")] {
        let id = scene.gateway.send(&text()).await;
        assert_eq!(scene.gateway.settled(&id).await.state, "unknown");
        assert_eq!(scene.says(&json!([receipt(kind, &id)])).await, 200);
        assert_eq!(scene.view(&id).await["state"], state);
        assert_eq!(scene.gateway.attempts(&id).await, ["texts:unknown"], "the ledger keeps what was known");
    }
}

#[tokio::test]
async fn a_receipt_takes_what_waits_for_another_attempt_out_of_the_queue() {
    let retry = json!({"type": "linear", "delay_ms": 3_600_000, "max_attempts": 3});
    let scene = Scene::to(Sink::start().await, &hangs_up().await, json!({"on_unknown": "retry", "retry": retry})).await;
    let id = scene.gateway.send(&text()).await;
    eventually("the retry being queued", || async {
        let queued = scene.gateway.db.sql("select count(*) from queue").await;
        (queued.trim() == "1").then_some(())
    })
    .await;
    assert_eq!(scene.says(&json!([receipt("sent", &id)])).await, 200);
    let view = scene.view(&id).await;
    assert_eq!((&view["state"], &view["delivery"]["next_attempt_at"]), (&json!("sent"), &Value::Null));
    assert_eq!(scene.gateway.db.sql("select count(*) from queue").await.trim(), "0");
}

#[tokio::test]
async fn what_an_earlier_attempt_failed_by_does_not_end_a_later_one() {
    let scene = Scene::start().await;
    let answer = |id| Reply::status(200).header("x-external-id", id);
    scene.sink.answers("/texts", [answer("first"), answer("second")]);
    let id = scene.sent().await;
    assert_eq!(scene.says(&json!([{"kind": "failed", "external_id": "first"}])).await, 200);
    assert_eq!(scene.view(&id).await["state"], "failed");
    scene.gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
    assert_eq!(scene.gateway.settled(&id).await.state, "sent");
    assert_eq!(scene.says(&json!([{"kind": "bounced", "external_id": "first"}])).await, 200);
    assert_eq!(scene.view(&id).await["state"], "sent");
    assert_eq!(scene.says(&json!([{"kind": "bounced", "external_id": "second"}])).await, 200);
    assert_eq!(scene.view(&id).await["state"], "bounced");
}

#[tokio::test]
async fn what_is_not_the_services_own_is_not_believed() {
    let scene = Scene::start().await;
    let id = scene.sent().await;
    let say = json!([receipt("delivered", &id)]).to_string();
    let long_ago = "?signed_at=1000000000000";
    for (query, token) in
        [("", ""), ("", "guess"), ("?check=unsigned", TOKEN), (long_ago, TOKEN), ("?check=hmac", TOKEN)]
    {
        assert_eq!(scene.posts(query, token, say.clone()).await, 401, "{query} {token}");
    }
    let unknown = scene.url.rsplit_once('/').unwrap().0;
    for token in ["x".repeat(43), "x".repeat(4_000), "%00".to_owned(), "..".to_owned()] {
        let request = client().post(format!("{unknown}/{token}")).header("x-token", TOKEN).body(say.clone());
        assert_eq!(request.send().await.unwrap().status(), 404, "{token}");
    }
    assert_eq!(scene.posts("", TOKEN, "not a list".to_owned()).await, 400);
    assert_eq!(scene.posts("", TOKEN, " ".repeat((1 << 20) + 1)).await, 413);
    assert_eq!(scene.view(&id).await["state"], "sent");
    assert_eq!(scene.events(&id).await, ["message.accepted", "message.sent"]);
}

#[tokio::test]
async fn signatures_are_verified_over_the_body_as_it_came() {
    let scene = Scene::start().await;
    let id = scene.sent().await;
    let body = format!("[ {} ]", receipt("delivered", &id));
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, TOKEN.as_bytes()), body.as_bytes());
    let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let hex: String = mac.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    for (check, signature) in [("hmac", hex), ("ed25519", STANDARD.encode(pair.sign(body.as_bytes())))] {
        let post = async |body: &str| {
            let request = client().post(format!("{}?check={check}", scene.url)).header("x-signature", &signature);
            request.body(body.to_owned()).send().await.unwrap().status().as_u16()
        };
        assert_eq!(post(&body.replace(' ', "")).await, 401, "{check}");
        assert_eq!(post(&body).await, 200, "{check}");
    }
    assert_eq!(scene.view(&id).await["state"], "delivered");
}

#[tokio::test]
async fn a_provider_that_fails_over_callbacks_fails_alone() {
    let scene = Scene::start().await;
    let id = scene.sent().await;
    let say = json!([receipt("delivered", &id)]).to_string();
    for misbehave in ["spin", "trap", "panic", "grow", "many-events", "invalid", "bad-reply"] {
        for _ in 0..2 {
            let status = scene.posts(&format!("?misbehave={misbehave}"), TOKEN, say.clone()).await;
            assert_eq!(status, 502, "{misbehave}");
        }
    }
    assert_eq!(scene.view(&id).await["state"], "sent");
    // The component is not taken out of service for what strangers sent it.
    scene.sent().await;
    assert_eq!(scene.posts("", TOKEN, say).await, 200);
    assert_eq!(scene.view(&id).await["state"], "delivered");
}

#[tokio::test]
async fn a_component_without_callbacks_goes_on_as_ever() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    assert_eq!(gateway.shown_connection("hook").await.callback_url, None);
    let token = gateway.db.sql("select callback_token from connection").await;
    let answer = gateway.call(Method::POST, &format!("/v1/callbacks/{}", token.trim()), Some(&json!([]))).await;
    answer.expect(404);
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
}

#[tokio::test]
async fn a_receipt_reaches_only_what_its_connection_sent() {
    let scene = Scene::start().await;
    let id = scene.sent().await;
    let elsewhere = scene.gateway.key_of("two", ALL_SCOPES);
    let config = json!({"url": scene.sink.url("/texts")});
    let stranger =
        json!({"uid": "texts", "provider": "fixture", "config": config, "secrets": {"token": "strangers-token"}});
    let same_tenant =
        json!({"uid": "other", "provider": "fixture", "config": config, "secrets": {"token": "strangers-token"}});
    for (key, connection) in [(elsewhere.as_str(), stranger), (scene.gateway.key.as_str(), same_tenant)] {
        let made = scene.gateway.call_as(key, Method::POST, "/v1/connections", Some(&connection)).await.expect(201);
        let url = made["callback_url"].as_str().unwrap().to_owned();
        assert_ne!(url, scene.url);
        let say = json!([receipt("bounced", &id)]).to_string();
        let answer = client().post(url).header("x-token", "strangers-token").body(say).send().await.unwrap();
        assert_eq!(answer.status(), 200, "it may be early");
    }
    assert_eq!(scene.says(&json!([receipt("delivered", &id)])).await, 200);
    assert_eq!(scene.view(&id).await["state"], "delivered");
    assert_eq!(scene.events(&id).await, ["message.accepted", "message.sent", "message.delivered"]);
}

/// The worker is lost with the request, and only the service knows the result.
#[tokio::test]
async fn a_receipt_resolves_what_a_lost_worker_left() {
    let config = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";
    let (mut gateway, sink) = (TestGateway::with(2, config).await, Sink::start().await);
    twilio(&gateway, &sink, Duration::from_secs(60)).await;
    let id = gateway.send(&text()).await;
    sink.arrived(1).await;
    gateway.kill(0);
    let asked = status_callback(&sink);
    let path = &asked[asked.find("/v1/callbacks/").unwrap()..];
    assert_eq!(twilio_says(&gateway.url(path), "delivered", "").await, 204, "another node takes it");
    let view = eventually("the message being delivered", || async {
        let view = gateway.message(&id).await;
        (view["state"] == "delivered").then_some(view)
    })
    .await;
    assert_eq!(view["delivery"]["external_id"], "SM1");
    assert_eq!(gateway.attempts(&id).await, ["texts:unknown"]);
    assert_eq!(sink.received().len(), 1, "and nothing is sent twice");
}

/// Answers and receipts race for each of many texts.
#[tokio::test]
async fn receipts_that_race_with_their_outcomes_are_all_counted_once() {
    const TEXTS: usize = 60;
    let scene = Scene::start().await;
    let mut random = seed::rng();
    let answer = |ms| Reply::status(200).after(Duration::from_millis(ms));
    scene.sink.answers("/texts", (0..TEXTS).map(|_| answer(random.u64(0..60))).collect::<Vec<_>>());
    let mut ids = Vec::new();
    for _ in 0..TEXTS {
        ids.push(scene.gateway.send(&text()).await);
    }
    scene.sink.arrived(TEXTS).await;
    let say = ids.iter().map(|id| {
        let pause = Duration::from_millis(random.u64(0..60));
        let scene = &scene;
        async move {
            tokio::time::sleep(pause).await;
            let both = json!([receipt("sent", id), receipt("delivered", id)]);
            futures_util::future::join(scene.says(&both), scene.says(&both)).await
        }
    });
    for statuses in futures_util::future::join_all(say).await {
        assert_eq!(statuses, (200, 200));
    }
    for id in &ids {
        let view = scene.becomes(id, "delivered").await;
        assert_eq!(view["delivery"]["attempts"], 1);
        let events = scene.events(id).await;
        assert_eq!(events, ["message.accepted", "message.sent", "message.delivered"], "{id}");
    }
    assert_eq!(scene.sink.received().len(), TEXTS);
}
