//! A secret reaches only its destination, and comes back nowhere.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    gateway::{Answer, TestGateway, client},
    mail_server::{DkimKey, MailServer},
    peer,
    sink::{Reply, Sink},
};

const CANARY: &str = "ca/na+ry\"7f3e 9a";
const SIGNING_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_KEY: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const ACCOUNT: &str = "AC00000000000000000000000000000001";

async fn change(gateway: &TestGateway, connection: &str, body: Value) -> Answer {
    gateway.call(Method::PATCH, &format!("/v1/connections/{connection}"), Some(&body)).await
}

/// Returns the pointers and codes of a 422.
fn named(problem: &Value) -> Vec<(&str, &str)> {
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|it| (it["pointer"].as_str().unwrap(), it["code"].as_str().unwrap())).collect()
}

fn hook(to: Option<String>) -> Value {
    let mut message = json!({"channel": "webhook", "connection": "hook", "content": {"payload": {"a": 1}}});
    if let Some(to) = to {
        message["to"] = json!(to);
    }
    message
}

async fn sent(gateway: &TestGateway, message: &Value) {
    let view = gateway.settled(&gateway.send(message).await).await;
    assert_eq!(view.state, "sent", "{view}");
}

// ── Where a secret goes ───────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_secret_does_not_follow_its_connection_to_another_host() {
    let (gateway, own, other) = (TestGateway::start().await, Sink::start().await, Sink::start().await);
    let secrets = json!({"authorization": "Bearer canary-7f3e9a", "signing_key": SIGNING_KEY});
    gateway.connection("hook", "webhook", json!({"url": own.url("/in")}), secrets).await;

    // A path of the same host already gets the secrets.
    change(&gateway, "hook", json!({"config": {"url": own.url("/elsewhere"), "method": "put"}})).await.expect(200);
    let moved = json!({"url": other.url("/in")});
    let needed = [("/secrets/authorization", "needed_again"), ("/secrets/signing_key", "needed_again")];
    let problem = change(&gateway, "hook", json!({ "config": moved })).await.expect(422);
    assert_eq!(named(&problem), needed);
    let problem = change(&gateway, "hook", json!({"config": moved, "secrets": {"signing_key": OTHER_KEY}})).await;
    assert_eq!(named(&problem.expect(422)), needed[..1]);
    // By way of a config that names no host at all it is the same.
    change(&gateway, "hook", json!({"config": {}})).await.expect(200);
    assert_eq!(named(&change(&gateway, "hook", json!({ "config": moved })).await.expect(422)), needed);
    assert_eq!(gateway.get("/v1/connections/hook").await["config"], json!({}), "a refused change changes nothing");

    // The old value of a rotation does not go along either.
    let rotation = json!({"value": "Bearer canary-rotated", "overlap_seconds": 3600});
    gateway.call(Method::PUT, "/v1/connections/hook/secrets/authorization", Some(&rotation)).await.expect(200);
    let anew = json!({"config": moved, "secrets": {"authorization": "Bearer of-the-new-host", "signing_key": null}});
    let view = change(&gateway, "hook", anew).await.expect(200);
    assert_eq!(view["secrets"].as_array().unwrap().len(), 1, "{view}");
    assert_eq!(gateway.db.sql("select count(*) from secret").await.trim(), "1");
    sent(&gateway, &hook(None)).await;
    let received = &other.received()[0];
    assert_eq!(received.header("authorization"), "Bearer of-the-new-host");
    assert!(received.headers.get("webhook-signature").is_none());
    assert!(own.received().is_empty());
}

#[tokio::test]
async fn secrets_change_with_the_rest_of_a_connection() {
    let (gateway, own) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": own.url("/in")}), json!({"signing_key": SIGNING_KEY})).await;
    let problem = change(&gateway, "hook", json!({"secrets": {"signing_key": "x", "pin": "y", "old": null}})).await;
    let expected = [
        ("/secrets/old", "unknown_secret"),
        ("/secrets/pin", "unknown_secret"),
        ("/secrets/signing_key", "wrong_format"),
    ];
    assert_eq!(named(&problem.expect(422)), expected);
    let view = change(&gateway, "hook", json!({"secrets": {"signing_key": OTHER_KEY}})).await.expect(200);
    assert_eq!(view["secrets"][0]["version"], 2);
    // A value that the provider needs cannot be removed.
    let config = json!({"account_sid": ACCOUNT, "base_url": own.url("")});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": "canary-7f3e9a"})).await;
    let problem = change(&gateway, "texts", json!({"secrets": {"auth_token": null}})).await.expect(422);
    assert_eq!(named(&problem), [("/secrets/auth_token", "missing")]);
}

/// Each of these would hand the password to another server, or to everybody on the path.
#[tokio::test]
async fn a_port_or_a_weaker_kind_of_tls_is_another_destination() {
    let gateway = TestGateway::start().await;
    let config = json!({"host": "mail.example.org", "username": "shop", "from": "shop@example.org"});
    gateway.connection("mail", "email-smtp", config.clone(), json!({"password": "canary-7f3e9a"})).await;
    for (field, value) in [
        ("host", json!("mail.example.net")),
        ("host", json!("127.0.0.1")),
        ("port", json!(2525)),
        ("tls", json!("opportunistic")),
        ("tls", json!("none")),
    ] {
        let mut config = config.clone();
        config[field] = value;
        let problem = change(&gateway, "mail", json!({ "config": config })).await.expect(422);
        assert_eq!(named(&problem), [("/secrets/password", "needed_again")], "{config}");
    }
    for (field, value) in [("from", json!("news@example.org")), ("tls", json!("starttls")), ("username", json!("news"))]
    {
        let mut config = config.clone();
        config[field] = value;
        change(&gateway, "mail", json!({ "config": config })).await.expect(200);
    }
    let token = json!({"auth_token": "canary-7f3e9a"});
    gateway.connection("texts", "sms-twilio", json!({"account_sid": ACCOUNT}), token).await;
    let moved = json!({"account_sid": ACCOUNT, "base_url": "http://api.twilio.com"});
    let problem = change(&gateway, "texts", json!({ "config": moved })).await.expect(422);
    assert_eq!(named(&problem), [("/secrets/auth_token", "needed_again")], "without TLS");
    let own = json!({"account_sid": ACCOUNT, "base_url": "https://api.twilio.com/"});
    change(&gateway, "texts", json!({ "config": own })).await.expect(200);
}

#[tokio::test]
async fn a_webhooks_headers_and_credentials_go_to_its_own_origin_alone() {
    let (gateway, own, other) = (TestGateway::start().await, Sink::start().await, Sink::start().await);
    let config = json!({"url": own.url("/in"), "headers": {"X-Token": "canary-header", "X-Env": "prod"}});
    gateway.connection("hook", "webhook", config, json!({"authorization": "Bearer canary-7f3e9a"})).await;
    for message in [hook(None), hook(Some(own.url("/other"))), hook(Some(other.url("/in")))] {
        sent(&gateway, &message).await;
    }
    for received in own.received() {
        assert_eq!(received.header("authorization"), "Bearer canary-7f3e9a", "{}", received.path);
        assert_eq!((received.header("x-token"), received.header("x-env")), ("canary-header", "prod"));
    }
    assert_eq!((own.received().len(), other.received().len()), (2, 1));
    for name in ["authorization", "x-token", "x-env"] {
        assert!(other.received()[0].headers.get(name).is_none(), "{name}");
    }
    // A sender need not be a reader of the connection.
    let key = gateway.key_with("messages:write");
    let dry = gateway.call_as(&key, Method::POST, "/v1/messages?dry_run=true", Some(&hook(None))).await.expect(200);
    let shown = dry["requests"][0]["request"]["headers"].as_array().unwrap();
    for name in ["authorization", "x-token", "x-env"] {
        let values: Vec<_> = shown.iter().filter(|it| it["name"] == name).map(|it| &it["value"]).collect();
        assert_eq!(values, [&json!("***")], "{name} in {dry}");
    }
    assert!(!dry.to_string().contains("canary"), "{dry}");
    // Headers without an address would go nowhere.
    let problem = change(&gateway, "hook", json!({"config": {"headers": {"X-Token": "x"}}})).await.expect(422);
    assert!(problem.to_string().contains("url"), "{problem}");
}

// ── Where a secret comes back ─────────────────────────────────────────────────────────────────

fn json_inside(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn percent(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Returns the spellings in which a service may repeat a credential.
fn spellings(secret: &str) -> Vec<String> {
    let pair = format!("{ACCOUNT}:{secret}");
    let upper: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    vec![
        secret.to_owned(),
        json_inside(secret),
        json_inside(secret).replace('/', "\\/"),
        json_inside(&json_inside(secret)),
        secret.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect(),
        secret.chars().map(|c| format!("\\u{:04X}", u32::from(c))).collect(),
        secret.bytes().map(|byte| format!("\\x{byte:02x}")).collect(),
        secret.chars().map(|c| format!("&#{};", u32::from(c))).collect(),
        secret.replace('"', "&quot;"),
        percent(secret),
        percent(secret).replace("%20", "+"),
        percent(&percent(secret)),
        upper.to_lowercase(),
        upper,
        secret.bytes().map(|byte| format!("={byte:02X}")).collect(),
        hex(secret),
        hex(secret).to_uppercase(),
        STANDARD.encode(secret),
        STANDARD.encode(&pair),
        format!("Basic {}", STANDARD.encode(&pair)),
        STANDARD.encode(format!("x{pair}, and more")),
        STANDARD.encode(format!("Authorization: Basic {}", STANDARD.encode(&pair))),
        URL_SAFE_NO_PAD.encode(format!("xy{secret}?>")),
        percent(&STANDARD.encode(&pair)),
    ]
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Asserts that no form of the secret is in the text, neither as it is nor decoded.
#[track_caller]
fn assert_hidden(text: &str, secret: &str, place: &str) {
    for spelling in spellings(secret) {
        for form in [json_inside(&spelling), spelling] {
            assert!(!text.contains(&form), "{place} holds the secret as {form}:\n{text}");
        }
    }
}

/// All that a reader with every scope, and one of the log, sees.
async fn all_that_is_kept(gateway: &TestGateway) -> Vec<(&'static str, String)> {
    let log = gateway.nodes[0].as_ref().unwrap().log();
    let messages = gateway.get("/v1/messages?limit=250").await;
    let mut attempts = String::new();
    for message in messages["data"].as_array().unwrap() {
        attempts.push_str(&json!(gateway.attempt_list(message["id"].as_str().unwrap()).await).to_string());
    }
    vec![
        ("the list of messages", messages.to_string()),
        ("an attempt", attempts),
        ("the list of events", gateway.get("/v1/events?limit=250").await.to_string()),
        ("the list of dead letters", gateway.get("/v1/dead-letters?limit=250").await.to_string()),
        ("the database", gateway.db.sql("select a::text from attempt a").await),
        ("the log", std::fs::read_to_string(log).unwrap()),
    ]
}

#[tokio::test]
async fn an_echo_of_a_credential_is_kept_in_no_spelling() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let config = json!({"account_sid": ACCOUNT, "base_url": sink.url(""), "from": "+46700000000"});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": CANARY})).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}], "retry": {"type": "none"}})).await;
    let path = format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json");
    for spelling in spellings(CANARY) {
        // Once as text in JSON, once as JSON written by hand.
        let mut bodies = vec![json!({"code": 21211, "message": format!("you sent {spelling}")}).to_string()];
        if serde_json::from_str::<Value>(&format!("\"{spelling}\"")).is_ok() {
            bodies.push(format!(r#"{{"code": 21211, "message": "you sent {spelling}"}}"#));
        }
        for body in bodies {
            let echo: String = spelling.chars().filter(|c| !c.is_control()).collect();
            sink.answers(&path, [Reply { body, ..Reply::status(400).header("x-echo", &echo) }]);
            let message = json!({"channel": "sms", "to": "+46701234567", "content": {"text": "hi"}});
            let view = gateway.settled(&gateway.send(&message).await).await;
            assert_eq!(view.state, "failed", "{view}");
            let detail = view.delivery.detail();
            assert!(detail.contains("you sent") && detail.contains("***"), "{spelling}: {view}");
        }
    }
    for (place, text) in all_that_is_kept(&gateway).await {
        assert_hidden(&text, CANARY, place);
    }
}

#[tokio::test]
async fn what_a_component_says_of_a_secret_is_kept_nowhere() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let canary = "canary-7f3e9a";
    gateway.connection("odd", "fixture", json!({"url": sink.url("/in")}), json!({"token": canary})).await;
    gateway.route("sms", json!({"candidates": [{"connection": "odd"}], "retry": {"type": "none"}})).await;
    let backwards: String = canary.chars().rev().collect();
    let message = |text: &str| json!({"channel": "sms", "to": "+46701234567", "content": {"text": text}});
    // The component alone knows how to read it, and says it in its log, its outcome and its panic.
    sink.answers("/in", [Reply { body: backwards.clone(), ..Reply::status(200) }]);
    let view = gateway.settled(&gateway.send(&message("tell")).await).await;
    assert_eq!(view.delivery.external_id.as_deref(), Some("***"), "{view}");
    gateway.logged(0, "the answer says ***").await;
    let told = gateway.send(&message("tell-in-panic")).await;
    gateway.settled(&told).await;
    // An id that the service gives is as good as any place to repeat a secret.
    let id = STANDARD.encode(format!("x{canary}"));
    sink.answers("/in", [Reply::status(200).header("x-external-id", &id)]);
    let view = gateway.settled(&gateway.send(&message("hello")).await).await;
    assert!(!view["delivery"]["external_id"].as_str().unwrap().contains(&id[2..10]), "{view}");
    // And so is a callback, which has to repeat it.
    let callback = gateway.callback_url("odd").await;
    let delivery = view.id.replace("msg_", "dlv_");
    let events = json!([{"kind": "delivered", "delivery": delivery, "code": canary, "detail": {"token": canary}}]);
    let answer = client().post(&callback).header("x-token", canary).json(&events).send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
    for (place, text) in all_that_is_kept(&gateway).await {
        assert_hidden(&text, canary, place);
    }
    let receipts = gateway.db.sql("select r::text from receipt r").await;
    assert!(receipts.contains("***"), "{receipts}");
    assert_hidden(&receipts, canary, "a receipt");
}

#[tokio::test]
async fn a_mail_servers_echo_of_a_password_is_kept_nowhere() {
    let Some(server) = MailServer::start("starttls", CANARY).await else { return };
    let gateway = TestGateway::with(1, &format!("[tls]\nca_file = {}\n", json!(server.ca_file()))).await;
    let config = json!({"host": "127.0.0.1", "port": server.port, "tls": "starttls", "from": "shop@example.org", "username": "shop"});
    gateway.connection("mail", "email-smtp", config, json!({"password": CANARY})).await;
    gateway.route("email", json!({"candidates": [{"connection": "mail"}], "retry": {"type": "none"}})).await;
    // No mail server encodes an encoded text twice.
    let twice = STANDARD.encode(format!("Authorization: Basic {}", STANDARD.encode(format!("{ACCOUNT}:{CANARY}"))));
    let spoken = spellings(CANARY).into_iter().filter(|spelling| *spelling != twice);
    let spoken = spoken.chain([STANDARD.encode(format!("\0shop\0{CANARY}"))]);
    for spelling in spoken {
        server.answers(&[&format!("550 5.7.1 not with {spelling}")]);
        let message = json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x"}});
        let view = gateway.settled(&gateway.send(&message).await).await;
        let detail = view.delivery.detail();
        assert!(detail.contains("not with") && detail.contains("***"), "{spelling}: {view}");
    }
    for (place, text) in all_that_is_kept(&gateway).await {
        assert_hidden(&text, CANARY, place);
    }
}

// ── The signed content of a key ─────────────────────────────────────────────────────────────

/// dkimpy's word on a mail.
fn verifies(mail: &str, record: &str) -> bool {
    let mut command = Command::new(peer::python().unwrap());
    command.arg(peer::script("verify_dkim.py")).arg(record).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(mail.as_bytes()).unwrap();
    let said = child.wait_with_output().unwrap();
    assert!(said.status.success());
    said.stdout.starts_with(b"pass")
}

#[tokio::test]
async fn a_header_put_before_a_signed_mail_breaks_its_signature() {
    let Some(server) = MailServer::start("none", "").await else { return };
    let gateway = TestGateway::start().await;
    let config = json!({"host": "127.0.0.1", "port": server.port, "tls": "none", "from": "shop@example.org",
        "dkim_domain": "example.org", "dkim_selector": "s1.eu"});
    for (number, key) in [DkimKey::rsa(), DkimKey::ed25519()].into_iter().enumerate() {
        let uid = format!("mail{number}");
        gateway.connection(&uid, "email-smtp", config.clone(), json!({"dkim_key": key.pem})).await;
        let content =
            json!({"subject": "Hello", "text": "Hi", "reply_to": "help@example.org", "cc": ["bo@example.org"]});
        let message = json!({"channel": "email", "to": "ann@example.org", "connection": uid, "content": content});
        sent(&gateway, &message).await;
        let mail = server.raw(number + 1);
        assert!(verifies(&mail, &key.record), "{mail}");
        assert!(verifies(&format!("Received: from a by b\r\n{mail}"), &key.record), "what servers add is no matter");
        for header in [
            "From: Eve <eve@example.net>",
            "Subject: Pay here",
            "To: eve@example.net",
            "Cc: eve@example.net",
            "Reply-To: eve@example.net",
            "Date: Mon, 1 Jan 2024 00:00:00 +0000",
            "Content-Type: text/html",
            "Content-Transfer-Encoding: base64",
            "MIME-Version: 1.0",
            "Message-ID: <1@example.net>",
            "In-Reply-To: <1@example.net>",
            "List-Unsubscribe: <https://example.net/>",
        ] {
            let (before, after) =
                (format!("{header}\r\n{mail}"), mail.replacen("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"), 1));
            assert!(!verifies(&before, &key.record), "{header} before the mail");
            assert!(!verifies(&after, &key.record), "{header} behind the mail's headers");
        }
    }
}

#[tokio::test]
async fn what_goes_into_a_protocols_line_is_checked_when_it_is_saved() {
    let gateway = TestGateway::start().await;
    let config = |field: &str, value: &str| {
        let mut config = json!({"host": "mail.example.org", "dkim_domain": "example.org", "dkim_selector": "s1"});
        config[field] = json!(value);
        json!({"provider": "email-smtp", "config": config})
    };
    let bad_names =
        ["", "a b", "a;d=evil.example", "a\r\nX: y", "a\n", "a..b", ".a", "a.", "-a", "bücher.example", "a/b", "a:b"];
    for (field, values) in [
        ("dkim_domain", &bad_names[..]),
        ("dkim_selector", &bad_names[..]),
        ("message_id_domain", &bad_names[..]),
        ("client_name", &bad_names[1..]),
        ("host", &["", "a b", "a\r\nb", "a\n", "https://a", "a/b", "a@b", "a?b"]),
        ("from", &["shop", "a@b@c", "a@b\r\nBcc: v@x", "a b@c.example", "<a@b>", "a@b,c@d", "a@b\n"]),
        ("return_path", &["shop", "a@b> SIZE=1", "a@b\r\nRCPT TO:<v@x>"]),
        ("from_name", &["x\r\nBcc: v@x", "x\0", "x\u{85}y"]),
        ("username", &["a\0b", "a\r\nb"]),
    ] {
        for value in values {
            let problem = gateway.post("/v1/connections", &config(field, value)).await.expect(422);
            let pointer = format!("/config/{field}");
            assert_eq!(named(&problem), [(pointer.as_str(), "refused_by_provider")], "{value:?}");
        }
    }
    for (field, values) in [
        ("dkim_domain", &["example.org", "xn--bcher-kva.example", "localhost"][..]),
        ("dkim_selector", &["s1", "2024-05.eu", "s1._domainkey", "a_b"]),
        ("client_name", &["", "gw.example.org", "[127.0.0.1]", "[IPv6:2001:db8::1]"]),
        ("host", &["mail.example.org", "127.0.0.1", "::1", "[::1]", "bücher.example"]),
        ("from", &["shop@example.org", "jürgen@bücher.example", "o'neil+x@e.org"]),
        ("from_name", &["", "Blåbär, \"the\" Shop"]),
    ] {
        for value in values {
            gateway.post("/v1/connections", &config(field, value)).await.expect(201);
        }
    }
    let hook =
        |headers: Value| json!({"provider": "webhook", "config": {"url": "https://example.org", "headers": headers}});
    for headers in [json!({"x y": "1"}), json!({"x": "1\r\ny: 2"}), json!({"x": "1\0"}), json!({"": "1"})] {
        let problem = gateway.post("/v1/connections", &hook(headers.clone())).await.expect(422);
        assert!(named(&problem)[0].0.starts_with("/config/headers"), "{headers}: {problem}");
    }
    gateway.post("/v1/connections", &hook(json!({"X-A": "a\tb"}))).await.expect(201);
}
