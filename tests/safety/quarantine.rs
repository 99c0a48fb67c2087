//! A tenant's content takes no provider away from others; a component's name can't be taken over.

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use xtask::gateway::{Gateway, Settings};

use crate::support::{
    answers::{Message, Seen},
    component::as_version,
    database::eventually,
    gateway::{ALL_SCOPES, TestGateway},
    messages::hook,
    sink::{Reply, Sink},
};

/// As `domain::message::MOST_CONTENT`.
const MOST_CONTENT: usize = 8 << 20;

// ── What one tenant sends ─────────────────────────────────────────────────────────────────

/// Creates a tenant whose only connection is the fixture.
async fn fixture_of(gateway: &mut TestGateway, tenant: &str, sink: &Sink) -> String {
    gateway.key = gateway.key_of(tenant, ALL_SCOPES);
    gateway.connection("fix", "fixture", json!({"url": sink.url(&format!("/{tenant}"))}), json!({})).await;
    let retry = json!({"type": "linear", "delay_ms": 50, "max_attempts": 1});
    gateway.route("webhook", json!({"candidates": [{"connection": "fix"}], "retry": retry})).await;
    gateway.key.clone()
}

async fn sends(gateway: &TestGateway, text: &str) -> Seen<Message> {
    let id = gateway.send(&json!({"channel": "webhook", "content": {"text": text}})).await;
    gateway.settled(&id).await
}

#[tokio::test]
async fn what_one_tenant_sends_takes_no_provider_from_another() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let good = fixture_of(&mut gateway, "good", &sink).await;
    let evil = fixture_of(&mut gateway, "evil", &sink).await;
    let operator = gateway.key_of("operations", "operator,providers:read,audit:read");
    // Each is in a row of its own, whatever limit the component breaks.
    for mode in ["trap", "spin", "grow", "huge", "big-state", "empty-outcomes"] {
        gateway.key.clone_from(&evil);
        assert_ne!(sends(&gateway, mode).await["state"], "sent", "{mode}");
        gateway.key.clone_from(&good);
        assert_eq!(sends(&gateway, "hello").await["state"], "sent", "{mode}");
    }
    let shown = async |key: &str| {
        let provider = gateway.call_as(key, Method::GET, "/v1/providers/fixture", None).await.expect(200);
        provider["versions"][0].clone()
    };
    let seen = eventually("the quarantine of one tenant", || async {
        let version = shown(&evil).await;
        version["quarantined_until"].is_string().then_some(version)
    })
    .await;
    assert_eq!((&seen["quarantined_at"], &seen["quarantined_tenants"]), (&Value::Null, &Value::Null), "{seen}");
    assert_eq!(shown(&good).await["quarantined_until"], Value::Null);
    assert_eq!(shown(&operator).await["quarantined_tenants"].as_array().map(Vec::len), Some(1));
    gateway.logged(0, "in quarantine for one tenant").await;

    gateway.key.clone_from(&evil);
    let refused = sends(&gateway, "hello").await;
    assert_eq!(refused["state"], "unroutable", "{refused}");
    assert_eq!(sink.received_at("/evil").len(), 0);
}

/// The service's answer is content, too: a tenant's own endpoint decides it.
#[tokio::test]
async fn a_version_that_fails_over_each_answer_is_in_quarantine_for_the_tenant() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    fixture_of(&mut gateway, "first", &sink).await;
    let modes = ["trap-in-interpret", "panic-in-interpret", "two-outcomes", "nan", "many-steps"];
    for mode in modes {
        let view = sends(&gateway, mode).await;
        assert_ne!(view["state"], "sent", "{mode}: {view}");
    }
    assert_eq!(sends(&gateway, "hello").await["state"], "unroutable");
}

// ── Accepted messages can be delivered ──────────────────────────────────────────────────────

/// Returns the text of a body whose content has this number of bytes.
fn body_of(size: usize, member: &str, unit: &str) -> String {
    let around = format!(r#"{{"{member}":""}}"#).len();
    let count = (size - around) / unit.len();
    let rest = size - around - count * unit.len();
    let text = unit.repeat(count) + &*"x".repeat(rest);
    format!(r#"{{"channel": "webhook", "content": {{"{member}":"{text}"}}}}"#)
}

#[tokio::test]
async fn the_largest_webhooks_are_delivered_and_larger_ones_refused() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let bodies = [("payload", "x"), ("text", "x"), ("text", r#"\""#), ("html", r"\u0001"), ("text", "é")];
    for (member, unit) in bodies {
        // More than five, so that a fault would take the provider away.
        let id = gateway.send_raw(&body_of(MOST_CONTENT, member, unit)).await;
        let view = gateway.settled(&id).await;
        assert_eq!(view.state, "sent", "{member} of {unit}: {:?}", gateway.attempt_list(&id).await);
        let too_large: Value = serde_json::from_str(&body_of(MOST_CONTENT + 1, member, unit)).unwrap();
        let problem = gateway.post("/v1/messages", &too_large).await.problem(422);
        assert_eq!(
            (&problem["errors"][0]["pointer"], &problem["errors"][0]["code"]),
            (&json!("/content"), &json!("too_large"))
        );
        let detail = &problem.errors[0].detail;
        assert!(detail.contains("8388608") && detail.contains("8388609"), "{detail}");
    }
    assert_eq!(sink.received().len(), bodies.len());
}

/// A server that takes every mail, several in a session; it tells each mail's recipients and bytes.
async fn takes_all(listener: TcpListener, mails: tokio::sync::mpsc::UnboundedSender<(usize, usize)>) {
    while let Ok((stream, _)) = listener.accept().await {
        let mails = mails.clone();
        tokio::spawn(async move { session(stream, mails).await });
    }
}

async fn session(stream: TcpStream, mails: tokio::sync::mpsc::UnboundedSender<(usize, usize)>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut recipients) = (Vec::new(), 0);
    stream.write_all(b"220 here\r\n").await?;
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if line.starts_with(b"MAIL") {
            recipients = 0;
        }
        recipients += usize::from(line.starts_with(b"RCPT"));
        let answer: &[u8] = if line.starts_with(b"DATA") { b"354 go on\r\n" } else { b"250 yes\r\n" };
        stream.write_all(answer).await?;
        if line.starts_with(b"DATA") {
            let mut size = 0;
            while line != b".\r\n" {
                line.clear();
                size += stream.read_until(b'\n', &mut line).await?;
            }
            let _ = mails.send((recipients, size));
            stream.write_all(b"250 taken\r\n").await?;
        }
    }
}

/// The content with as many quotes in its text and HTML as are accepted; the bytes of files don't count.
fn filled(mut content: Value) -> Value {
    let files = content["attachments"].as_array().into_iter().flatten();
    let files: usize = files.map(|file| file["content"].as_str().unwrap().len()).sum();
    let size = content.to_string().len() - files + r#","text":"","html":"""#.len() + 32;
    let quotes = "\"".repeat((MOST_CONTENT - size) / 4);
    content["text"] = json!(quotes);
    content["html"] = json!(quotes);
    content
}

#[tokio::test]
async fn the_largest_mails_are_delivered() {
    let gateway = TestGateway::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, mut mails) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(takes_all(listener, told));
    let config = json!({"host": "127.0.0.1", "port": port, "tls": "none", "from": "shop@example.org"});
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    let people = |list: &str| -> Vec<Value> {
        let domain = ["d".repeat(60), "e".repeat(60), "f".repeat(56), "example".to_owned()].join(".");
        let address = |at: usize| format!("{list}{at:0>61}@{domain}");
        (0..100).map(|at| json!({"address": address(at), "name": "\"".repeat(256)})).collect()
    };
    let headers: Value =
        (0..100).map(|at| (format!("X-{at}"), json!("word ".repeat(800)))).collect::<serde_json::Map<_, _>>().into();
    let files: Vec<_> = (0..50)
        .map(|at| json!({"name": format!("{at:0>255}"), "media_type": "a/b", "content": STANDARD.encode([7; 20_000])}))
        .collect();
    let content = json!({"cc": people("c"), "bcc": people("b"), "headers": headers, "subject": "s".repeat(998)});
    let mut whole = content.clone();
    whole["attachments"] = json!(files);
    let contents = [json!({"cc": people("c"), "bcc": people("b"), "text": "x"}), filled(content), filled(whole)];
    for content in contents {
        let mail = json!({"channel": "email", "to": "ann@example.org", "connection": "mail", "content": content});
        let id = gateway.send(&mail).await;
        let view = gateway.settled(&id).await;
        assert_eq!(view.state, "sent", "{:?}", gateway.attempt_list(&id).await);
        assert_eq!(mails.recv().await.expect("a mail").0, 201);
        assert!(mails.try_recv().is_err(), "each mail is handed over once");
    }
}

#[tokio::test]
async fn the_longest_texts_are_delivered() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let mut created = Reply::status(201);
    created.body = json!({"sid": "SM1", "num_segments": "1"}).to_string();
    sink.answers("/2010-04-01/Accounts/AC1/Messages.json", [created]);
    let config = json!({"account_sid": "AC1", "from": "+15005550006", "base_url": sink.url("")});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": "5ecret"})).await;
    let text = "\u{1f680}".repeat(1600);
    let media: Vec<_> = (0..10).map(|_| format!("https://example.org/{}", "%20".repeat(1000))).collect();
    let params: Value =
        (0..100).map(|at| (format!("p{at}"), json!("&".repeat(16 << 10)))).collect::<serde_json::Map<_, _>>().into();
    for (channel, content) in
        [("sms", json!({"text": text, "params": params})), ("mms", json!({"text": text, "media_urls": media}))]
    {
        let message = json!({"channel": channel, "to": "+14155550123", "connection": "texts", "content": content});
        let id = gateway.send(&message).await;
        assert_eq!(gateway.settled(&id).await.state, "sent", "{:?}", gateway.attempt_list(&id).await);
    }
}

// ── The serving version is the database's ───────────────────────────────────────────────────

fn file(gateway: &TestGateway, name: &str) -> Vec<u8> {
    std::fs::read(gateway.settings().providers.join(format!("{name}.wasm"))).unwrap()
}

#[tokio::test]
async fn a_provider_that_is_activated_right_after_its_quarantine_serves() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let operator = gateway.key_of("operations", "operator,providers:read");
    let mut keys = Vec::new();
    for tenant in ["first", "second", "third"] {
        keys.push(fixture_of(&mut gateway, tenant, &sink).await);
    }
    for _ in 0..2 {
        for key in &keys {
            gateway.key.clone_from(key);
            for _ in 0..5 {
                sends(&gateway, "trap").await;
            }
        }
        eventually("the quarantine of all", || async {
            let provider = gateway.call_as(&operator, Method::GET, "/v1/providers/fixture", None).await.expect(200);
            (provider["active_digest"].is_null() && provider["versions"][0]["quarantined_at"].is_string()).then_some(())
        })
        .await;
        let path = "/v1/providers?activate=true";
        let provider = gateway.upload(&operator, path, file(&gateway, "fixture")).await.expect(201);
        assert_eq!(provider["versions"][0]["quarantined_at"], Value::Null);
        for key in &keys {
            gateway.key.clone_from(key);
            assert_eq!(sends(&gateway, "hello").await["state"], "sent", "for each of them, at once");
        }
    }
    let records = gateway.call_as(&operator, Method::GET, "/v1/operator/audit?subject=fixture", None).await.expect(200);
    let actions: Vec<_> = records["data"].as_array().unwrap().iter().map(|it| it["action"].as_str().unwrap()).collect();
    let (activated, quarantined) = ("provider.activated", "provider.quarantined");
    assert_eq!(actions, [activated, quarantined, activated, quarantined, activated]);
}

// ── Taking a provider's name ────────────────────────────────────────────────────────────────

#[tokio::test]
async fn another_component_takes_a_name_only_if_an_operator_says_so() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    let own = file(&gateway, "webhook");
    let before = gateway.get("/v1/providers/webhook").await;
    let (lower, higher) = (as_version(&own, "0.0.9"), as_version(&own, "9.9.9"));
    let install = async |component: &[u8], how: &str| {
        gateway.upload(&operator, &format!("/v1/providers?activate=true{how}"), component.to_vec()).await
    };
    let code = async |component: &[u8], how: &str| install(component, how).await.expect(409)["code"].clone();
    assert_eq!(code(&lower, "&grants=keep").await, "downgrade");
    assert_eq!(code(&lower, "&grants=none").await, "downgrade");
    assert_eq!(code(&higher, "").await, "grants_unconfirmed");
    assert_eq!(code(&lower, "&allow_downgrade=true").await, "grants_unconfirmed");
    let unchanged = gateway.get("/v1/providers/webhook").await;
    assert_eq!((&unchanged["active_digest"], &unchanged["versions"]), (&before["active_digest"], &before["versions"]));

    // Nothing is granted to another component by itself.
    let after = install(&higher, "&grants=none").await.expect(201);
    assert_eq!((&after["version"], &after["granted_hosts"]), (&json!("9.9.9"), &json!([])));
    let waiting = gateway.send(&hook()).await;
    let attempt = eventually("an attempt", || async { gateway.attempt_list(&waiting).await.into_iter().next() }).await;
    assert_eq!((attempt.disposition.as_str(), attempt.code.as_deref()), ("not_sent", Some("host_not_granted")));
    let hosts = json!({"hosts": before["granted_hosts"]});
    gateway.call_as(&operator, Method::PUT, "/v1/providers/webhook/grants", Some(&hosts)).await.expect(200);

    assert_eq!(gateway.settled(&waiting).await.state, "sent", "it waited for the grant");

    let after = install(&lower, "&allow_downgrade=true&grants=keep").await.expect(201);
    assert_eq!((&after["version"], &after["granted_hosts"]), (&json!("0.0.9"), &before["granted_hosts"]));
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");

    let records = gateway.call_as(&operator, Method::GET, "/v1/operator/audit?subject=webhook", None).await.expect(200);
    let records = records["data"].as_array().unwrap();
    let actions: Vec<_> = records.iter().map(|it| it["action"].as_str().unwrap()).collect();
    let activated = "provider.activated";
    assert_eq!(actions, [activated, "provider.granted", activated, activated]);
    let (last, first) = (&records[0], &records[3]);
    assert_eq!((&last["before"]["version"], &last["after"]["version"]), (&json!("9.9.9"), &json!("0.0.9")), "{last}");
    assert_eq!(last["after"]["granted_hosts"], before["granted_hosts"]);
    assert!(last["actor"]["id"].is_string() && last["request_id"].is_string(), "{last}");
    assert_eq!(first["actor"], json!({"kind": "gateway", "id": null, "name": "providers.folder"}));
    gateway.call(Method::GET, "/v1/operator/audit", None).await.expect(403);
}

#[tokio::test]
async fn a_file_of_the_folder_takes_no_name_over() {
    let gateway = TestGateway::start().await;
    let own = file(&gateway, "webhook");
    let before = gateway.get("/v1/providers/webhook").await;
    let folder = tempfile::tempdir().unwrap();
    for (name, component) in [("lower", as_version(&own, "0.0.9")), ("higher", as_version(&own, "9.9.9"))] {
        std::fs::write(folder.path().join(format!("{name}.wasm")), component).unwrap();
    }
    let settings = Settings {
        providers: folder.path().to_owned(),
        name: "other".to_owned(),
        listen: free(),
        environment: vec![("ANGARIUM_PROVIDERS__GRANT", "none".to_owned())],
        ..gateway.settings().clone()
    };
    let node = Gateway::start(settings).await.expect("it starts without them");
    let log = std::fs::read_to_string(node.log()).unwrap();
    for why in ["version 0.0.9 is lower than 0.1.0", "was granted `{config.url}`, `{to}` for another component"] {
        assert!(log.contains(why), "{why}");
    }
    assert_eq!(gateway.get("/v1/providers/webhook").await["active_digest"], before["active_digest"]);
}

/// Returns a free port.
fn free() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port")
}
