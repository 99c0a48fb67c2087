//! Refusals at acceptance, and the identity of messages.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    gateway::{Answer, TestGateway, client},
    sink::Sink,
};

/// Sends a request whose JSON is written by hand.
async fn raw(gateway: &TestGateway, path: &str, key: Option<&str>, body: &str) -> (u16, bool, Value) {
    let request = client().post(gateway.url(path)).bearer_auth(&gateway.key).header("content-type", "application/json");
    let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
    let answer = request.body(body.to_owned()).send().await.unwrap();
    let (status, replayed) = (answer.status().as_u16(), answer.headers().contains_key("idempotency-replayed"));
    (status, replayed, answer.json().await.unwrap())
}

/// `pointer:code` of each bad field.
fn listed(problem: &Value) -> Vec<String> {
    let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("no errors in {problem}")).iter();
    errors.map(|it| format!("{}:{}", it["pointer"].as_str().unwrap(), it["code"].as_str().unwrap())).collect()
}

#[track_caller]
fn refused(answer: Answer) -> Vec<String> {
    listed(&answer.expect(422))
}

#[tokio::test]
async fn a_list_is_not_taken_for_an_object() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    for (body, place) in [
        (r#"{"to": ["ann@example.org", "bob@example.org"], "channel": "email", "content": {"text": "x"}}"#, "/to"),
        (r#"{"to": "a@x", "channel": "email", "content": {"from": ["a@x", "Ann"], "text": "x"}}"#, "/content/from"),
        (r#"{"to": "a@x", "channel": "email", "content": {"cc": [["a@x", "A"]], "text": "x"}}"#, "/content/cc/0"),
        (r#"{"channel": "webhook", "content": [null, null, [], [], null, "x"]}"#, "/content"),
        (r#"{"channel": "webhook", "content": {"attachments": [["a", "a/b", "aGk="]]}}"#, "/content/attachments/0"),
        (r#"{"channels": [["webhook", null, {"text": "x"}]]}"#, "/channels/0"),
        (r#"[null, "webhook", {"payload": {"a": 1}}]"#, ""),
    ] {
        let (status, _, problem) = raw(&gateway, "/v1/messages", None, body).await;
        assert_eq!((status, listed(&problem)), (422, vec![format!("{place}:wrong_type")]), "{body}");
    }
    let batch =
        r#"{"messages": [[null, "webhook", {"payload": 1}], {"channel": "webhook", "content": {"payload": 1}}]}"#;
    let (_, _, results) = raw(&gateway, "/v1/messages/batch", None, batch).await;
    assert_eq!((&results["data"][0]["status"], &results["data"][1]["status"]), (&json!(422), &json!(202)), "{results}");
    let route = r#"{"channel": "webhook", "spec": {"candidates": [["hook", 1]]}}"#;
    let (status, _, problem) = raw(&gateway, "/v1/routes", None, route).await;
    assert_eq!((status, listed(&problem)), (422, vec!["/spec/candidates/0:wrong_type".to_owned()]));
}

#[tokio::test]
async fn a_message_is_the_same_however_it_is_written() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let ways = [
        r#"{"channel":"webhook","content":{"payload":1},"attributes":{"a":1,"b":2},"metadata":{"name":"é/x"}}"#,
        r#"{"attributes":{"b":2,"a":1},"metadata":{"name":"\u00e9\/x"},"content":{"payload":1},"channel":"webhook"}"#,
        r#"{ "channel": "webhook", "content": {"payload": 1, "cc": [], "text": null}, "attributes": {"a": 1.0, "b": 2e0},
             "metadata": {"name": "é/x"}, "priority": "normal" }"#,
    ];
    let (status, replayed, first) = raw(&gateway, "/v1/messages", Some("k"), ways[0]).await;
    assert_eq!((status, replayed), (202, false), "{first}");
    for way in &ways[1..] {
        let (status, replayed, again) = raw(&gateway, "/v1/messages", Some("k"), way).await;
        assert_eq!((status, replayed, &again["id"]), (202, true, &first["id"]), "{way}: {again}");
    }
    // A signature covers a payload's bytes.
    let other = ways[0].replace("\"payload\":1", "\"payload\":1.0");
    let (status, _, problem) = raw(&gateway, "/v1/messages", Some("k"), &other).await;
    assert_eq!((status, listed(&problem)), (422, vec!["/idempotency_key:key_reused".to_owned()]));
}

#[tokio::test]
async fn a_fingerprint_of_an_earlier_version_is_known() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let body = r#"{"channel":"webhook","content":{"payload":1},"attributes":{"b": 1, "a":2}}"#;
    let (_, _, first) = raw(&gateway, "/v1/messages", Some("old"), body).await;
    // As it was written before objects had a canonical form: their bytes as they came.
    let former = r#"{"channel":"webhook","content":{"payload":1},"attributes":{"b": 1, "a":2}}"#;
    gateway.db.sql(&format!("update idempotency set fingerprint = sha256('{former}') where key = 'old'")).await;
    let (status, replayed, again) = raw(&gateway, "/v1/messages", Some("old"), body).await;
    assert_eq!((status, replayed, &again["id"]), (202, true, &first["id"]), "{again}");
}

#[tokio::test]
async fn a_batch_that_is_repeated_under_its_key_is_accepted_once() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let batch = r#"{"messages": [{"channel": "webhook", "content": {"payload": 1}},
        {"channel": "webhook", "content": {"payload": 2}, "idempotency_key": "own"}]}"#;
    let (_, _, first) = raw(&gateway, "/v1/messages/batch", Some("b"), batch).await;
    let (status, _, again) = raw(&gateway, "/v1/messages/batch", Some("b"), batch).await;
    assert_eq!(status, 200);
    for place in [0, 1] {
        assert_eq!(again["data"][place]["message"]["id"], first["data"][place]["message"]["id"], "{first}");
        assert_eq!(again["data"][place]["replayed"], true);
    }
    let (_, replayed, own) =
        raw(&gateway, "/v1/messages", Some("own"), r#"{"channel": "webhook", "content": {"payload": 2}}"#).await;
    assert_eq!((replayed, &own["id"]), (true, &first["data"][1]["message"]["id"]));
}

#[tokio::test]
async fn a_key_is_answered_as_it_was_though_the_message_would_be_refused_now() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    gateway.connection("spare", "webhook", json!({"url": sink.url("/spare")}), json!({})).await;
    let pinned =
        json!({"channel": "webhook", "connection": "spare", "content": {"payload": 1}, "idempotency_key": "p"});
    let first = gateway.post("/v1/messages", &pinned).await.expect(202);
    gateway.settled(first["id"].as_str().unwrap()).await;
    gateway.call(Method::DELETE, "/v1/connections/spare", None).await.expect(204);
    let again = gateway.post("/v1/messages", &pinned).await;
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.expect(202)["id"], first["id"]);
    let batch = gateway.post("/v1/messages/batch", &json!({"messages": [pinned]})).await.expect(200);
    assert_eq!((&batch["data"][0]["message"]["id"], &batch["data"][0]["replayed"]), (&first["id"], &json!(true)));
    // Another message under the key, or one without an accepted message under its key, is refused for its own fault.
    let mut other = pinned.clone();
    other["reference"] = json!("other");
    assert_eq!(refused(gateway.post("/v1/messages", &other).await), ["/connection:unknown_connection"]);
}

async fn with_a_connection_of_each_kind() -> TestGateway {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let mail = json!({"host": "127.0.0.1", "port": 9, "tls": "none", "from": "shop@example.com"});
    gateway.connection("mail", "email-smtp", mail, json!({})).await;
    let texts =
        json!({"account_sid": format!("AC{}", "0".repeat(32)), "from": "+15005550006", "base_url": sink.url("")});
    gateway.connection("texts", "sms-twilio", texts, json!({"auth_token": "t"})).await;
    gateway.route("email", json!({"candidates": [{"connection": "mail"}]})).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}]})).await;
    gateway
}

#[tokio::test]
async fn what_no_candidate_takes_is_refused_at_once() {
    let gateway = with_a_connection_of_each_kind().await;
    let png = json!({"name": "a.png", "media_type": "image/png", "content": "aGk="});
    for (message, expected) in [
        (json!({"channel": "webhook"}), vec!["/content:missing"]),
        (json!({"channel": "webhook", "content": {"payload": null}}), vec!["/content:missing"]),
        (
            json!({"channel": "webhook", "content": {"headers": {"Webhook-Id": "1", "HOST": "x", "X-Fine": "y"}}}),
            vec!["/content/headers/HOST:not_allowed", "/content/headers/Webhook-Id:not_allowed", "/content:missing"],
        ),
        (json!({"channel": "email", "to": "ann@example.org", "content": {"subject": "x"}}), vec!["/content:missing"]),
        (
            json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x", "headers": {"Bcc": "v@x"}}}),
            vec!["/content/headers/Bcc:not_allowed"],
        ),
        (
            json!({"channel": "sms", "to": "0701234567", "content": {"text": "x", "attachments": [png]}}),
            vec!["/content/attachments:too_long", "/to:wrong_format"],
        ),
        (json!({"channel": "sms", "to": "+46701234567"}), vec!["/content/text:missing"]),
        (
            json!({"channel": "sms", "to": "+46701234567", "content": {"text": "x".repeat(1601)}}),
            vec!["/content/text:too_long"],
        ),
        (
            json!({"channels": [{"channel": "webhook", "content": {"text": "x"}}, {"channel": "sms", "to": "+1"}]}),
            vec!["/channels/1/content/text:missing", "/channels/1/to:wrong_format"],
        ),
    ] {
        for path in ["/v1/messages", "/v1/messages?dry_run=true"] {
            let mut found = refused(gateway.post(path, &message).await);
            found.sort();
            assert_eq!(found, expected, "{path}: {message}");
        }
        let batch = gateway.post("/v1/messages/batch", &json!({"messages": [message]})).await.expect(200);
        assert_eq!(batch["data"][0]["status"], 422, "{message}");
    }
    assert_eq!(gateway.db.sql("select count(*) from message").await.trim(), "0");
    let inline = json!({"name": "a.png", "media_type": "image/png", "content": "aGk=", "content_id": "lögö"});
    let mail =
        json!({"channel": "email", "to": "ann@example.org", "content": {"html": "<p>", "attachments": [inline]}});
    assert_eq!(refused(gateway.post("/v1/messages", &mail).await), ["/content/attachments/0/content_id:wrong_format"]);
}

#[tokio::test]
async fn what_one_candidate_takes_is_accepted() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    gateway.connection("any", "fixture", json!({"url": sink.url("/any")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}, {"connection": "any"}]})).await;
    let message = gateway.send(&json!({"channel": "webhook"})).await;
    assert_eq!(gateway.settled(&message).await.state, "sent");
    assert_eq!(gateway.attempts(&message).await, ["hook:rejected_permanent", "any:accepted"]);
    // Pinned to the one that does not, it is refused.
    let pinned = json!({"channel": "webhook", "connection": "hook"});
    assert_eq!(refused(gateway.post("/v1/messages", &pinned).await), ["/content:missing"]);
}

#[tokio::test]
async fn limits_hold_to_the_byte() {
    let gateway = TestGateway::start().await;
    let with = |member: &str, value: Value| {
        let mut message = json!({"channel": "webhook", "content": {}});
        *message.pointer_mut(member.rsplit_once('/').unwrap().0).unwrap() = {
            let (object, name) = member.rsplit_once('/').unwrap();
            let mut inner = message.pointer(object).unwrap().clone();
            inner[name] = value;
            inner
        };
        message
    };
    let text = |length: usize| json!("ö".repeat(length));
    let object = |bytes: usize| json!({"a": "x".repeat(bytes - r#"{"a":""}"#.len())});
    let members = |count: usize| (0..count).map(|n| (format!("a{n}"), json!("x"))).collect::<Value>();
    let list = |count: usize, one: Value| Value::Array(vec![one; count]);
    let nested = |depth: usize| (1..depth).fold(json!({}), |inner, _| json!({"a": inner}));
    let address = json!("a@example.org");
    let url = json!("https://example.org/a.png");
    let file = json!({"name": "a", "media_type": "a/b", "content": "aGk="});
    let cases: Vec<(&str, Value, Value)> = vec![
        ("/reference", text(255), text(256)),
        ("/idempotency_key", text(255), text(256)),
        ("/ordering_key", text(256), text(257)),
        ("/metadata", object(16 << 10), object((16 << 10) + 1)),
        ("/attributes", object(16 << 10), object((16 << 10) + 1)),
        ("/contact", members(64), members(65)),
        ("/context", nested(4), nested(5)),
        ("/content/subject", text(998), text(999)),
        ("/content/cc", list(100, address.clone()), list(101, address.clone())),
        ("/content/bcc", list(100, address.clone()), list(101, address)),
        ("/content/headers", members(100), members(101)),
        ("/content/headers", json!({"x": "a".repeat(4096)}), json!({"x": "a".repeat(4097)})),
        ("/content/params", members(100), members(101)),
        ("/content/params", json!({"x": "a".repeat(16 << 10)}), json!({"x": "a".repeat((16 << 10) + 1)})),
        ("/content/media_urls", list(10, url.clone()), list(11, url)),
        ("/content/attachments", list(50, file.clone()), list(51, file)),
        ("/content/text", json!("x".repeat((8 << 20) - 11)), json!("x".repeat((8 << 20) - 10))),
    ];
    for (member, good, bad) in cases {
        let answer = gateway.post("/v1/messages?dry_run=true", &with(member, good)).await;
        assert_eq!(answer.status, 200, "{member} at its limit: {}", answer.body);
        let answer = gateway.post("/v1/messages?dry_run=true", &with(member, bad)).await;
        assert_eq!(answer.status, 422, "{member} beyond its limit");
    }
    let batch = |count: usize| json!({"messages": list(count, json!({}))});
    gateway.post("/v1/messages/batch", &batch(1000)).await.expect(200);
    gateway.post("/v1/messages/batch", &batch(1001)).await.expect(422);
}

#[tokio::test]
async fn a_uid_is_never_another_path() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let rule = json!({"name": "x", "when": {"customer": {"segment": "vip"}}, "then": {"priority": "high"}});
    let route = json!({"candidates": [{"connection": "hook"}]});
    for uid in ["evaluate", "backtest", ".", "..", "rule_1", "conn_x", "a/b"] {
        for (path, body) in [
            ("/v1/rules", json!({"uid": uid, "rule": rule})),
            ("/v1/routes", json!({"uid": uid, "channel": "webhook", "spec": route})),
            ("/v1/connections", json!({"uid": uid, "provider": "webhook", "config": {"url": sink.url("/")}})),
        ] {
            assert_eq!(refused(gateway.post(path, &body).await), ["/uid:reserved"], "{path} {uid}");
        }
    }
    // Every accepted uid can be requested by its name, in the form of a URL (RFC 3986, section 2).
    for uid in ["evaluate-2", "a b", "50%", "what?", "#1", "ö", "a%2Fb", "+", "...", "versions"] {
        gateway.post("/v1/rules", &json!({"uid": uid, "rule": rule})).await.expect(201);
        let written: String = uid.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = if uid == "..." { uid.to_owned() } else { written };
        assert_eq!(gateway.get(&format!("/v1/rules/{path}")).await["uid"], uid);
    }
}
