//! Rules and scripts: texts in any encoding, clocks that change, names that do not exist, functions that are misspelt.

use serde_json::{Value, json};

use crate::support::{gateway::TestGateway, sink::Sink};

/// A gateway with one connection and route for webhooks.
async fn with_a_webhook() -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/hook").await;
    (gateway, sink)
}

fn message(contact: Value) -> Value {
    json!({"channel": "webhook", "content": {"payload": {}}, "contact": contact})
}

/// Each bad field of a refusal, with its detail.
fn named(refused: &Value) -> Vec<(String, String)> {
    let text = |error: &Value, member: &str| error[member].as_str().unwrap().to_owned();
    refused["errors"].as_array().unwrap().iter().map(|error| (text(error, "pointer"), text(error, "detail"))).collect()
}

async fn source_refused(gateway: &TestGateway, source: &str) -> String {
    let refused = gateway.post("/v1/scripts/tried/versions", &json!({"source": source})).await.expect(422);
    let named = named(&refused);
    assert_eq!(named.len(), 1, "{refused}");
    assert_eq!(named[0].0, "/source", "{refused}");
    named[0].1.clone()
}

// ── Text is compared after normalization and case folding (calcom/cal.diy#9040) ────────────────────

#[tokio::test]
async fn a_rule_matches_a_text_whatever_its_case_and_encoding() {
    let (gateway, _sink) = with_a_webhook().await;
    for (uid, city) in [("street", "Gro\u{df}stra\u{df}e"), ("accent", "Malm\u{f6}")] {
        let rule = json!({"name": uid, "when": {"geography": {"city": city}}, "then": {"refuse": {"reason": uid}}});
        gateway.post("/v1/rules", &json!({"uid": uid, "rule": rule})).await.expect(201);
    }
    let scripted = "fn admit(message) {
        if same_text(message.contact.segment ?? \"\", \"Caf\u{e9}\") { refuse(\"script\") }
    }";
    gateway.post("/v1/scripts/cafe/versions", &json!({"source": scripted})).await.expect(201);
    gateway.post("/v1/scripts/cafe/activate", &json!({"version": 1})).await.expect(200);
    for (contact, refusal) in [
        (json!({"city": "GROSSSTRASSE"}), "street"),
        (json!({"city": "MALMO\u{308}"}), "accent"),
        (json!({"segment": "CAFE\u{301}"}), "script"),
    ] {
        let refused = gateway.post("/v1/messages", &message(contact.clone())).await.problem(422);
        assert!(refused.detail.contains(refusal), "{contact}: {refused}");
    }
    for contact in [json!({"city": "Malmo"}), json!({"segment": "cafe"}), json!({"city": "Gro\u{df}stra\u{df}en"})] {
        gateway.post("/v1/messages", &message(contact)).await.expect(202);
    }
}

// ── Unknown names are refused at their place ─────────────────────────────────────────────────────

#[tokio::test]
async fn zones_countries_and_languages_that_do_not_exist_are_refused_where_they_are_named() {
    let (gateway, _sink) = with_a_webhook().await;
    let contact = json!({"timezone": "Europe/Stokholm", "country": "XX", "language": "xx"});
    let refused = gateway.post("/v1/messages", &message(contact)).await.expect(422);
    let mut pointers: Vec<_> = named(&refused).into_iter().map(|(pointer, _)| pointer).collect();
    pointers.sort();
    assert_eq!(pointers, ["/contact/country", "/contact/language", "/contact/timezone"], "{refused}");
    let contact = json!({"timezone": "Europe/Stockholm", "country": "UK", "language": "pt-BR"});
    gateway.post("/v1/messages", &message(contact)).await.expect(202);

    let rule = json!({"name": "x", "when": {"geography": {"country": ["SE", "XX"]}}, "then": {"sender": "ACME"}});
    let refused = gateway.post("/v1/rules", &json!({"rule": rule})).await.expect(422);
    let expected = (
        "/rule/when/geography/country/1",
        "must be a country's two letters (ISO 3166-1), such as `SE` (`XX` does not exist)",
    );
    assert_eq!(named(&refused), [(expected.0.to_owned(), expected.1.to_owned())]);

    let detail = source_refused(
        &gateway,
        "const ZONE = \"Europe/Stokholm\";\nfn admit(message) { hold_until(next_time(now(), global::ZONE, \"08:00\")) }",
    )
    .await;
    assert!(
        detail.starts_with("must compile: line 2, column ") && detail.contains("`Europe/Stokholm` does not exist"),
        "{detail}"
    );
}

// ── A function that does not exist is refused when it is compiled ─────────────────────────────────

#[tokio::test]
async fn a_function_that_does_not_exist_is_refused_before_a_message_meets_it() {
    let (gateway, _sink) = with_a_webhook().await;
    let detail =
        source_refused(&gateway, "fn admit(message) {\n  if message.channel == \"push\" { refuze(\"no\") }\n}").await;
    assert_eq!(
        detail,
        "must compile: line 2, column 34: the function `refuze` of 1 argument does not exist: is `refuse` meant?"
    );
    let detail = source_refused(&gateway, "fn admit(message) { [1].map(|it| message.to.mail_domain(it)); }").await;
    assert!(detail.contains("the function `mail_domain` must have 1 arguments (got 2"), "{detail}");

    let rule = |expression: &str| json!({"rule": {"name": "x", "when": {"custom": {"expression": expression}}, "then": {"sender": "ACME"}}});
    let refused = gateway.post("/v1/rules", &rule("channel == \"sms\" && mail_domian(to) == \"x\"")).await.expect(422);
    let (pointer, detail) = named(&refused).remove(0);
    assert_eq!(pointer, "/rule/when/custom/expression");
    assert!(detail.contains("the function `mail_domian` of 1 argument does not exist"), "{detail}");
    // The alternative to the language's data race.
    let race = "attributes.tags.some(|it| it == attributes.wanted)";
    let refused = gateway.post("/v1/rules", &rule(race)).await.expect(422);
    assert!(named(&refused)[0].1.contains("must be called as `some(list, function)`"), "{refused}");
    let then = json!({"refuse": {"reason": "wanted"}});
    let when = json!({"custom": {"expression": "some(attributes.tags ?? [], |it| it == attributes.wanted)"}});
    gateway.post("/v1/rules", &json!({"rule": {"name": "y", "when": when, "then": then}})).await.expect(201);
    let with = |wanted: &str| json!({"channel": "webhook", "content": {"payload": {}}, "attributes": {"tags": ["a", "b"], "wanted": wanted}});
    gateway.post("/v1/messages", &with("c")).await.expect(202);
    let refused = gateway.post("/v1/messages", &with("b")).await.problem(422);
    assert_eq!(refused.code, "refused_by_rule", "{refused}");
}

// ── A time to send at that is past means now, for quiet hours too ─────────────────────────────────

#[tokio::test]
async fn quiet_hours_hold_what_was_to_be_sent_in_the_past() {
    let (gateway, _sink) = with_a_webhook().await;
    let source = include_str!("../../rules/quiet-hours.rhai");
    let case = |send_at: &str, expect: Value| {
        json!({"name": send_at, "hook": "admit", "now": "2026-12-01T22:30:00Z", "expect": expect,
            "message": {"channel": "sms", "timezone": "Europe/Stockholm", "send_at": send_at}})
    };
    let hold = |at: &str| json!({"action": "hold", "at": at});
    let cases = [
        case("2026-12-01T11:00:00Z", hold("2026-12-02T07:00:00Z")),
        case("2026-12-02T11:00:00Z", json!({"action": "allow"})),
        case("2026-12-02T22:30:00Z", hold("2026-12-03T07:00:00Z")),
    ];
    gateway.post("/v1/scripts/quiet/versions", &json!({"source": source, "cases": cases})).await.expect(201);
}

// ── A live source continues when a later version checks more ──────────────────────────────────

#[tokio::test]
async fn what_is_in_service_goes_on_although_it_would_be_refused_today() {
    let (mut gateway, _sink) = with_a_webhook().await;
    let when = json!({"any": [{"geography": {"country": "SE"}}, {"custom": {"expression": "contact.level == 7"}}]});
    let rule = json!({"name": "old", "when": when, "then": {"refuse": {"reason": "the rule"}}});
    gateway.post("/v1/rules", &json!({"uid": "old", "rule": rule})).await.expect(201);
    let source = "fn admit(message) { if message.contact.level == 8 { refuse(\"the script\") } }";
    gateway.post("/v1/scripts/old/versions", &json!({"source": source})).await.expect(201);
    gateway.post("/v1/scripts/old/activate", &json!({"version": 1})).await.expect(200);
    // As an earlier version of the gateway may have stored them.
    let country = "update document_version set body = replace(body, '\"SE\"', '\"XX\"')";
    let expression = "update document_version set body = replace(body, 'level == 7', 'level == 7 || (channel == \\\"push\\\" && nowhere(to))')";
    let script =
        "update document_version set body = replace(body, '{ if', '{ if message.channel == \"push\" { nowhere() } if')";
    for change in [country, expression, script] {
        gateway.db.sql(change).await;
    }
    gateway.kill(0);
    gateway.take_over().await;
    for (level, by) in [(7, "the rule"), (8, "the script")] {
        let refused = gateway.post("/v1/messages", &message(json!({"level": level}))).await.problem(422);
        assert!(refused.detail.contains(by), "{level}: {refused}");
    }
    gateway.post("/v1/messages", &message(json!({"level": 9}))).await.expect(202);
    let stored = gateway.get("/v1/rules/old").await["rule"].clone();
    let refused = gateway.post("/v1/rules", &json!({"rule": stored})).await.expect(422);
    let mut pointers: Vec<_> = named(&refused).into_iter().map(|(pointer, _)| pointer).collect();
    pointers.sort();
    assert_eq!(pointers[0], "/rule/when/any/0/geography/country/0", "{refused}");
}
