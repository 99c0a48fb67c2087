//! Copies: each recipient of a mail has an outcome of its own.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    scripted_mail::{HANG_UP, ScriptedMail},
};

const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";

/// Waits a moment, so that a scenario is over soon.
const QUICK: &str = r#"{"type": "linear", "delay_ms": 50, "max_attempts": 3}"#;

async fn connect(gateway: &TestGateway, uid: &str, server: &ScriptedMail) {
    let config = json!({"host": "127.0.0.1", "port": server.port, "tls": "none", "from": "shop@example.com"});
    let id = gateway.connection(uid, "email-smtp", config, json!({})).await;
    gateway.without_breaker(&id).await;
}

/// A gateway that sends mail to this server, and tries again as the policy says.
async fn gateway_for(server: &ScriptedMail, retry: &str) -> TestGateway {
    let gateway = TestGateway::with(1, CONFIG).await;
    connect(&gateway, "mail", server).await;
    let retry: Value = serde_json::from_str(retry).unwrap();
    gateway.route("email", json!({"candidates": [{"connection": "mail"}], "retry": retry})).await;
    gateway
}

fn to_ann_and(copies: &[&str]) -> Value {
    json!({"channel": "email", "to": "ann@example.org", "content": {"text": "Hi", "cc": copies}})
}

/// `address:outcome` of each recipient.
fn outcomes(of: &Value) -> Vec<String> {
    let all = of["recipients"].as_array().unwrap();
    all.iter().map(|it| format!("{}:{}", it["address"].as_str().unwrap(), it["outcome"].as_str().unwrap())).collect()
}

async fn events(gateway: &TestGateway, message: &str) -> Vec<Value> {
    gateway.list(&format!("/v1/messages/{message}/events")).await
}

/// Answers `RCPT` of an address as usual once it was refused this number of times with this reply.
fn first(times: usize, address: &'static str, reply: &'static str) -> impl Fn(&str) -> Option<String> {
    let asked = AtomicUsize::new(0);
    move |line| {
        let refused = line.starts_with("RCPT") && line.contains(address);
        (refused && asked.fetch_add(1, Ordering::Relaxed) < times).then(|| reply.to_owned())
    }
}

#[tokio::test]
async fn a_copy_that_is_greylisted_arrives_later_and_nobody_gets_a_second_mail() {
    let greylists = first(2, "bob", "451 4.7.1 Greylisted, come back later");
    let server = ScriptedMail::start(move |line, _| greylists(line)).await;
    let gateway = gateway_for(&server, QUICK).await;
    let id = gateway.send(&to_ann_and(&["bob@example.org"])).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "sent", "{view}");
    assert_eq!(outcomes(&view["delivery"]), ["ann@example.org:accepted", "bob@example.org:accepted"]);
    let told: Vec<_> = server.mails().into_iter().map(|mail| mail.recipients).collect();
    assert_eq!(told, [["ann@example.org"], ["bob@example.org"]]);
    let id_of = |text: &str| text.lines().find(|line| line.starts_with("Message-ID")).unwrap().to_owned();
    let mails = server.mails();
    assert_eq!(id_of(&mails[0].text), id_of(&mails[1].text), "it is the same mail");

    assert_eq!(gateway.attempts(&id).await, ["mail:accepted", "mail:rejected_transient", "mail:accepted"]);
    let attempts = gateway.attempt_list(&id).await;
    assert_eq!(outcomes(attempts[0].json()), ["ann@example.org:accepted", "bob@example.org:deferred"]);
    assert_eq!(attempts[0]["recipients"][1]["code"], "451 4.7.1");
    assert_eq!(attempts[0]["recipients"][1]["detail"], "Greylisted, come back later");
    assert_eq!(outcomes(attempts[1].json()), ["bob@example.org:deferred"]);
    assert_eq!(outcomes(attempts[2].json()), ["bob@example.org:accepted"]);
    let types = gateway.event_types(&id).await;
    let expected = ["message.accepted", "message.partially_sent", "message.retry_scheduled", "message.sent"];
    assert_eq!(types, expected);
}

#[tokio::test]
async fn a_copy_that_is_refused_for_good_is_shown_and_told() {
    let refuses = first(usize::MAX, "bob", "550 5.1.1 No such user");
    let server = ScriptedMail::start(move |line, _| refuses(line)).await;
    let gateway = gateway_for(&server, QUICK).await;
    let id = gateway.send(&to_ann_and(&["bob@example.org"])).await;
    let view = gateway.settled(&id).await;
    assert_eq!((view.state.as_str(), server.mails().len()), ("sent", 1), "{view}");
    assert_eq!(gateway.attempts(&id).await, ["mail:accepted"]);
    assert_eq!(outcomes(&view["delivery"]), ["ann@example.org:accepted", "bob@example.org:refused"]);
    let bob = &view["delivery"]["recipients"][1];
    assert_eq!((&bob["code"], &bob["role"], &bob["attempt"]), (&json!("550 5.1.1"), &json!("copy"), &json!(1)));
    let events = events(&gateway, &id).await;
    let told: Vec<_> = events.iter().filter(|it| it["type"] == "message.recipient_refused").collect();
    assert_eq!(told.len(), 1, "{events:?}");
    assert_eq!(told[0]["data"]["recipient"], "bob@example.org");
    assert_eq!(told[0]["data"]["code"], "550 5.1.1");
}

#[tokio::test]
async fn a_copy_that_is_never_taken_is_given_up_with_the_policy_and_the_mail_was_sent() {
    let refuses = first(usize::MAX, "bob", "451 4.7.1 Greylisted");
    let server = ScriptedMail::start(move |line, _| refuses(line)).await;
    let gateway = gateway_for(&server, QUICK).await;
    let id = gateway.send(&to_ann_and(&["bob@example.org"])).await;
    let view = gateway.settled(&id).await;
    assert_eq!((view.state.as_str(), server.mails().len()), ("sent", 1), "{view}");
    assert_eq!(outcomes(&view["delivery"]), ["ann@example.org:accepted", "bob@example.org:refused"]);
    assert_eq!(view["delivery"]["recipients"][1]["detail"], "Greylisted; it is not tried again");
    // The delivery shows the result of the mail's own attempt.
    assert_eq!(view.delivery.unified_code.as_deref(), Some("ok"), "{view}");
    assert!(view["delivery"]["external_id"].is_string(), "{view}");
    assert!(gateway.event_types(&id).await.contains(&"message.recipient_refused".to_owned()));
}

#[tokio::test]
async fn recipients_too_many_for_a_transaction_follow_in_the_next_at_once() {
    // Servers say it in many ways: for now, for good, and without an enhanced code.
    let ways =
        ["452 4.5.3 Too many recipients", "552 5.5.3 Maximum limit of 2 recipients reached", "452 too many recipients"];
    let few = move |line: &str, recipients: &[String]| {
        let way = ways[line.len() % ways.len()];
        (line.starts_with("RCPT") && recipients.len() == 2).then(|| way.to_owned())
    };
    let server = ScriptedMail::start(few).await;
    // No retry: a further transaction is none.
    let gateway = gateway_for(&server, r#"{"type": "none"}"#).await;
    let copies: Vec<_> = (1..=6).map(|number| format!("{}@example.org", "x".repeat(number))).collect();
    let copies: Vec<_> = copies.iter().map(String::as_str).collect();
    let id = gateway.send(&to_ann_and(&copies)).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "sent");
    assert!(outcomes(&view["delivery"]).iter().all(|it| it.ends_with(":accepted")), "{view}");
    let sizes: Vec<_> = server.mails().iter().map(|mail| mail.recipients.len()).collect();
    assert_eq!(sizes, [2, 2, 2, 1]);
    for address in copies.iter().chain(&["ann@example.org"]) {
        assert_eq!(server.mails_for(address), 1, "{address}");
    }
}

#[tokio::test]
async fn a_fallback_carries_the_copy_that_is_left_and_no_one_else() {
    let defers = first(1, "bob", "451 4.7.1 Greylisted");
    let gone = AtomicUsize::new(0);
    // It greylists the copy, and is gone when it is asked again.
    let main = ScriptedMail::start(move |line, _| {
        let asked = if line.starts_with("MAIL") { gone.fetch_add(1, Ordering::Relaxed) } else { 0 };
        if asked > 0 { Some(HANG_UP.to_owned()) } else { defers(line) }
    })
    .await;
    let backup = ScriptedMail::start(|_, _| None).await;
    let gateway = TestGateway::with(1, CONFIG).await;
    connect(&gateway, "main", &main).await;
    connect(&gateway, "backup", &backup).await;
    let candidates = json!([{"connection": "main"}, {"connection": "backup"}]);
    let retry: Value = serde_json::from_str(QUICK).unwrap();
    gateway.route("email", json!({"candidates": candidates, "retry": retry})).await;
    let id = gateway.send(&to_ann_and(&["bob@example.org"])).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["main:accepted", "main:not_sent", "backup:accepted"]);
    assert_eq!(main.mails_for("ann@example.org"), 1);
    assert_eq!(backup.mails_for("ann@example.org"), 0);
    assert_eq!(backup.mails_for("bob@example.org"), 1);
}

#[tokio::test]
async fn a_mail_whose_recipient_is_greylisted_goes_to_nobody_until_it_goes_to_all() {
    let greylists = first(1, "ann", "451 4.7.1 Greylisted");
    let server = ScriptedMail::start(move |line, _| greylists(line)).await;
    let gateway = gateway_for(&server, QUICK).await;
    let id = gateway.send(&to_ann_and(&["bob@example.org"])).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["mail:rejected_transient", "mail:accepted"]);
    assert_eq!((server.mails_for("ann@example.org"), server.mails_for("bob@example.org")), (1, 1));
}

/// The node dies with the outcome of the copy's own attempt: the copy may come twice, and is held for a person; the mail
/// may not.
#[tokio::test]
async fn a_crash_while_a_copy_waits_sends_no_second_mail_to_who_has_it() {
    let greylists = first(1, "bob", "451 4.7.1 Greylisted");
    let server = ScriptedMail::start(move |line, _| greylists(line)).await;
    let mut gateway = gateway_for(&server, QUICK).await;
    // The first outcome is the mail's, the second the copy's.
    gateway.arm("outcome.before_commit=abort@2").await;
    let id = gateway.send(&to_ann_and(&["bob@example.org"])).await;
    gateway.died().await;
    gateway.take_over().await;
    let held = gateway.settled(&id).await;
    assert_eq!(held.state, "unknown", "{held}");
    assert_eq!(outcomes(&held["delivery"]), ["ann@example.org:accepted", "bob@example.org:deferred"]);
    let again = json!({"as": "again", "reason": "Bob has no mail"});
    gateway.post(&format!("/v1/messages/{id}/resolve"), &again).await.expect(200);
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "sent", "{view}");
    assert_eq!(gateway.attempts(&id).await, ["mail:accepted", "mail:unknown", "mail:accepted"]);
    assert_eq!(outcomes(&view["delivery"]), ["ann@example.org:accepted", "bob@example.org:accepted"]);
    assert_eq!((server.mails_for("ann@example.org"), server.mails_for("bob@example.org")), (1, 2));
}

#[tokio::test]
async fn a_mail_whose_copies_are_canceled_was_sent_and_is_purged_with_their_addresses() {
    let refuses = first(usize::MAX, "bob", "451 4.7.1 Greylisted");
    let server = ScriptedMail::start(move |line, _| refuses(line)).await;
    let gateway = gateway_for(&server, r#"{"type": "linear", "delay_ms": 600000, "max_attempts": 9}"#).await;
    let id = gateway.send(&to_ann_and(&["bob@example.org"])).await;
    let waiting = eventually("the first attempt", || async {
        let view = gateway.message(&id).await;
        (view["delivery"]["attempts"] == 1).then_some(view)
    })
    .await;
    assert_eq!(waiting["state"], "queued");
    assert_eq!(outcomes(&waiting["delivery"]), ["ann@example.org:accepted", "bob@example.org:deferred"]);
    let canceled = gateway.call(Method::POST, &format!("/v1/messages/{id}/cancel"), None).await.expect(200);
    assert_eq!(canceled["state"], "sent", "{canceled}");
    assert_eq!(outcomes(&canceled["delivery"]), ["ann@example.org:accepted", "bob@example.org:refused"]);
    gateway.call(Method::DELETE, &format!("/v1/messages/{id}/content"), None).await.expect(200);
    for path in ["", "/attempts", "/events"] {
        let shown = gateway.get(&format!("/v1/messages/{id}{path}")).await.to_string();
        assert!(!shown.contains("bob@"), "{path}: {shown}");
    }
}

/// The headers of a mail, folded lines joined.
fn header_of(mail: &str, name: &str) -> Vec<String> {
    let unfolded = mail.replace("\r\n\t", " ").replace("\r\n ", " ");
    let lines = unfolded.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
}

#[tokio::test]
async fn attachments_keep_the_parameters_of_their_media_type() {
    let server = ScriptedMail::start(|_, _| None).await;
    let gateway = gateway_for(&server, QUICK).await;
    let file = |media_type: &str, content: &[u8]| json!({"name": "f", "media_type": media_type, "content": STANDARD.encode(content)});
    let types = ["text/calendar; method=REQUEST; charset=UTF-8", "text/csv; charset=windows-1252", "message/rfc822"];
    let inner = b"From: eve@example.org\r\nSubject: Forwarded\r\n\r\nHi\r\n.\r\n";
    let files: Vec<_> = types.iter().map(|it| file(it, inner)).collect();
    let mail = json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x", "attachments": files}});
    let id = gateway.send(&mail).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let text = server.mails().remove(0).text;
    let told = header_of(&text, "content-type");
    for media_type in types {
        assert!(told.iter().any(|it| it == media_type), "{media_type}: {told:?}");
    }
    // A mail in a mail is unchanged; its dot is doubled in transit.
    assert!(text.contains("Subject: Forwarded\r\n\r\nHi\r\n..\r\n"), "{text}");
    // A part that would need an encoding is refused, and not changed.
    for (media_type, content) in [("message/rfc822", "Subject: \u{e9}".as_bytes()), ("multipart/mixed", b"--x--")] {
        let mail = json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x", "attachments": [file(media_type, content)]}});
        let refused = gateway.post("/v1/messages", &mail).await.problem(422);
        assert_eq!(refused.errors[0].pointer, "/content/attachments/0/content", "{refused}");
    }
}

#[tokio::test]
async fn automatic_mail_has_no_return_path_and_answers_go_to_several() {
    let server = ScriptedMail::start(|_, _| None).await;
    let gateway = gateway_for(&server, QUICK).await;
    let content = json!({"text": "I am away", "reply_to": ["a@example.org", {"address": "b@example.org", "name": "Bo"}],
        "headers": {"Auto-Submitted": "auto-replied"}, "params": {"return_path": "<>"}});
    let id = gateway.send(&json!({"channel": "email", "to": "ann@example.org", "content": content})).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let mail = server.mails().remove(0);
    assert_eq!(mail.from, "", "MAIL FROM:<>");
    assert_eq!(header_of(&mail.text, "from"), ["<shop@example.com>"]);
    assert_eq!(header_of(&mail.text, "reply-to"), ["<a@example.org>, \"Bo\" <b@example.org>"]);
    let wrong = json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x", "reply_to": ["a@example.org", "b"]}});
    let refused = gateway.post("/v1/messages", &wrong).await.problem(422);
    assert_eq!(refused.errors[0].pointer, "/content/reply_to/1", "{refused}");
}

#[tokio::test]
async fn a_mailbox_that_is_named_twice_gets_one_mail() {
    let server = ScriptedMail::start(|_, _| None).await;
    let gateway = gateway_for(&server, QUICK).await;
    let content = json!({"text": "x", "cc": ["ann@EXAMPLE.org", "bob@xn--bcher-kva.example", "Bob@bücher.example"],
        "bcc": ["bob@BÜCHER.example", "ann@example.org"]});
    let id = gateway.send(&json!({"channel": "email", "to": "ann@Example.org", "content": content})).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    // A local part has its case: only its server knows whether that matters.
    let told = server.mails().remove(0).recipients;
    assert_eq!(told, ["ann@Example.org", "bob@xn--bcher-kva.example", "Bob@xn--bcher-kva.example"]);
}

#[tokio::test]
async fn a_dead_letter_is_found_by_its_recipient_in_any_spelling_of_the_domain() {
    let server = ScriptedMail::start(|line, _| line.starts_with("RCPT").then(|| "550 5.1.1 no".to_owned())).await;
    let gateway = gateway_for(&server, QUICK).await;
    let id = gateway.send(&json!({"channel": "email", "to": "ann@Bücher.example", "content": {"text": "x"}})).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    for (recipient, found) in
        [("ann%40xn--bcher-kva.EXAMPLE", 1), ("ann%40b%C3%BCcher.example", 1), ("Ann%40b%C3%BCcher.example", 0)]
    {
        let list = gateway.get(&format!("/v1/dead-letters?recipient={recipient}")).await;
        assert_eq!(list["data"].as_array().unwrap().len(), found, "{recipient}: {list}");
    }
}

/// A mail bounced after all, as a service's word has it: a person sends it again, and the copy has it already.
#[tokio::test]
async fn a_retry_by_hand_goes_to_those_who_lack_the_mail() {
    let server = ScriptedMail::start(|_, _| None).await;
    let gateway = gateway_for(&server, QUICK).await;
    let id = gateway.send(&to_ann_and(&["bob@example.org"])).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    gateway.db.sql("update delivery set state = 'bounced'").await;
    gateway.call(Method::POST, &format!("/v1/messages/{id}/retry"), None).await.expect(202);
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "sent", "{view}");
    assert_eq!(outcomes(&view["delivery"]), ["ann@example.org:accepted", "bob@example.org:accepted"]);
    assert_eq!((server.mails_for("ann@example.org"), server.mails_for("bob@example.org")), (2, 1));
}
