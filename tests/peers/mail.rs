//! Mail through a gateway to aiosmtpd, read by Python's `email` package and verified by dkimpy.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{
    gateway::TestGateway,
    mail_server::{DkimKey, MailServer, header},
};

const PASSWORD: &str = "pass w\"örd";

/// A gateway that trusts the server, and a config for it.
async fn gateway_for(server: &MailServer, tls: &str) -> (TestGateway, Value) {
    let gateway = TestGateway::with(1, &format!("[tls]\nca_file = {}\n", json!(server.ca_file()))).await;
    let config = json!({"host": "127.0.0.1", "port": server.port, "tls": tls, "from": "shop@example.org"});
    (gateway, config)
}

fn with(mut base: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        base[name] = value.clone();
    }
    base
}

fn mail(content: Value) -> Value {
    json!({"channel": "email", "to": "ann@example.org", "connection": "mail", "content": content})
}

#[tokio::test]
async fn a_mail_of_every_part_arrives_as_it_was_meant() {
    let Some(server) = MailServer::start("starttls", PASSWORD).await else { return };
    let (gateway, config) = gateway_for(&server, "starttls").await;
    let config = with(config, json!({"username": "shop", "return_path": "bounces@example.org"}));
    gateway.connection("mail", "email-smtp", config, json!({"password": PASSWORD})).await;
    let (pdf, png): (&[u8], &[u8]) = (&[0, 159, 146, 150, 13, 10, 46, 13, 10], b"\x89PNG\r\n");
    let subject = "Välkommen, din räkning är här och ämnesraden är längre än en rad i ett brev får vara";
    let message = json!({
        "channel": "email", "to": {"address": "ann@example.org", "name": "Ann Ö, \"the\" Reader"}, "connection": "mail",
        "content": {
            "from": {"address": "shop@example.org", "name": "Blåbär"}, "reply_to": "help@example.org",
            "cc": ["bo@example.org", "cy@bücher.example"], "bcc": ["hidden@example.org"], "subject": subject,
            "text": "Hej Å\n.\nFrom me\n", "html": "<p>Hej <img src=\"cid:logo@shop\"></p>",
            "headers": {"X-Order": "A-17"},
            "attachments": [
                {"name": "räkning.pdf", "media_type": "application/pdf", "content": STANDARD.encode(pdf)},
                {"name": "logo.png", "media_type": "image/png", "content": STANDARD.encode(png), "content_id": "logo@shop"},
            ],
            "params": {"list_unsubscribe": "https://example.org/u/1 mailto:leave@example.org"},
        },
    });
    let view = gateway.settled(&gateway.send(&message).await).await;
    assert_eq!(view.state, "sent", "{view}");

    let mails = server.mails();
    assert_eq!(mails.len(), 1);
    let seen = &mails[0];
    assert_eq!((&seen["tls"], &seen["authenticated"]), (&json!(true), &json!(true)));
    assert_eq!(seen["from"], "bounces@example.org");
    assert_eq!(
        seen["to"],
        json!(["ann@example.org", "bo@example.org", "cy@xn--bcher-kva.example", "hidden@example.org"])
    );
    assert_eq!(seen["defects"], json!([]));
    assert!(!server.raw(1).to_lowercase().contains("hidden"), "{}", server.raw(1));
    assert_eq!(header(seen, "bcc"), [""; 0]);
    for (name, value) in [
        ("subject", subject),
        ("from", "Blåbär <shop@example.org>"),
        ("to", "\"Ann Ö, \\\"the\\\" Reader\" <ann@example.org>"),
        ("cc", "bo@example.org, cy@xn--bcher-kva.example"),
        ("reply-to", "help@example.org"),
        ("x-order", "A-17"),
        ("list-unsubscribe", "<https://example.org/u/1>, <mailto:leave@example.org>"),
        ("list-unsubscribe-post", "List-Unsubscribe=One-Click"),
        ("message-id", &format!("<{}>", view["delivery"]["external_id"].as_str().unwrap())),
        ("mime-version", "1.0"),
    ] {
        assert_eq!(header(seen, name), [value], "{name}\n{}", server.raw(1));
    }
    assert_eq!(header(seen, "date").len(), 1);

    let parts = seen["parts"].as_array().unwrap();
    let kinds: Vec<_> = parts.iter().map(|part| part[0].as_str().unwrap()).collect();
    let expected =
        "multipart/mixed multipart/alternative text/plain multipart/related text/html image/png application/pdf";
    assert_eq!(kinds.join(" "), expected);
    assert_eq!(lines(&parts[2][5]), "Hej Å\n.\nFrom me\n");
    assert_eq!(lines(&parts[4][5]).trim_end(), "<p>Hej <img src=\"cid:logo@shop\"></p>");
    assert_eq!((&parts[5][1], &parts[5][3]), (&json!("inline"), &json!("<logo@shop>")));
    assert_eq!((&parts[6][1], &parts[6][2]), (&json!("attachment"), &json!("räkning.pdf")));
    let latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
    assert_eq!((&parts[5][4], &parts[6][4]), (&json!(latin1(png)), &json!(latin1(pdf))));
}

/// Text as Python reads it, with one kind of line end.
fn lines(text: &Value) -> String {
    text.as_str().unwrap().replace("\r\n", "\n")
}

#[tokio::test]
async fn implicit_tls_works_and_a_wrong_password_is_told_apart() {
    let Some(server) = MailServer::start("implicit", PASSWORD).await else { return };
    let (gateway, config) = gateway_for(&server, "implicit").await;
    let config = with(config, json!({"username": "shop"}));
    gateway.connection("mail", "email-smtp", config.clone(), json!({"password": PASSWORD})).await;
    gateway.connection("wrong", "email-smtp", config, json!({"password": "nobody's"})).await;
    let candidates = json!([{"connection": "wrong"}, {"connection": "mail"}]);
    gateway.route("email", json!({"candidates": candidates})).await;
    let message = json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x"}});
    let id = gateway.send(&message).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempts(&id).await, ["wrong:auth_failed", "mail:accepted"]);
    assert_eq!(server.mails().len(), 1);
    let attempts = Value::from(gateway.attempt_list(&id).await).to_string();
    assert!(!attempts.contains("nobody's") && !attempts.contains("pass w"), "{attempts}");
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_gets_nothing() {
    let Some(server) = MailServer::start("starttls", PASSWORD).await else { return };
    let gateway = TestGateway::start().await;
    let config = json!({"host": "127.0.0.1", "port": server.port, "from": "shop@example.org", "username": "shop"});
    gateway.connection("mail", "email-smtp", config, json!({"password": PASSWORD})).await;
    let retry = json!({"type": "none"});
    gateway.route("email", json!({"candidates": [{"connection": "mail"}], "retry": retry})).await;
    let id = gateway.send(&json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x"}})).await;
    gateway.settled(&id).await;
    assert_eq!(gateway.attempts(&id).await, ["mail:not_sent"]);
    assert!(server.mails().is_empty());
}

#[tokio::test]
async fn every_try_has_the_same_message_id() {
    let Some(server) = MailServer::start("none", PASSWORD).await else { return };
    let (gateway, config) = gateway_for(&server, "none").await;
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    let retry = json!({"type": "schedule", "delays_ms": [10, 20]});
    let spec = json!({"candidates": [{"connection": "mail"}], "retry": retry, "on_unknown": "retry"});
    gateway.route("email", spec).await;
    server.answers(&["451 4.3.0 come back later", "hang up"]);
    let id = gateway.send(&json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x"}})).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "sent", "{view}");
    assert_eq!(gateway.attempts(&id).await, ["mail:rejected_transient", "mail:unknown", "mail:accepted"]);
    let mails = server.mails();
    let ids: Vec<_> = mails.iter().flat_map(|mail| header(mail, "message-id")).collect();
    assert_eq!(ids, [ids[0]; 3]);
    assert_eq!(ids[0], format!("<{}>", view["delivery"]["external_id"].as_str().unwrap()));
}

#[tokio::test]
async fn dkimpy_verifies_the_signatures() {
    let Some(server) = MailServer::start("none", PASSWORD).await else { return };
    let (gateway, config) = gateway_for(&server, "none").await;
    let config = with(config, json!({"dkim_domain": "example.org", "dkim_selector": "s1"}));
    let (rsa, ed25519) = (DkimKey::rsa(), DkimKey::ed25519());
    let traditional = rsa.traditional();
    let content = json!({
        "subject": "Välkommen", "text": "Hej\n.\n  \n\n", "html": "<p>Hej</p>",
        "params": {"list_unsubscribe": "https://example.org/u"},
    });
    // The last one signs with a key that is not the one published: dkimpy must tell.
    let cases = [(&rsa, &rsa, true), (&traditional, &rsa, true), (&ed25519, &ed25519, true), (&ed25519, &rsa, false)];
    for (number, (key, published, verifies)) in cases.into_iter().enumerate() {
        let uid = format!("mail{number}");
        gateway.connection(&uid, "email-smtp", config.clone(), json!({"dkim_key": key.pem})).await;
        server.publish(&published.record);
        let id = gateway.send(&with(mail(content.clone()), json!({"connection": uid}))).await;
        assert_eq!(gateway.settled(&id).await.state, "sent");
        let seen = &server.mails()[number];
        assert_eq!(seen["dkim"], verifies, "{}\n{}", published.record, server.raw(number + 1));
        assert_eq!(header(seen, "dkim-signature").len(), 1);
    }
}

/// Texts that would begin a header, an address or a command.
const BREAKS: [&str; 4] = ["\r\nBcc: v@example.org", "\nBcc: v@example.org", "\rBcc: v@example.org", "\r\n.\r\n"];

#[tokio::test]
async fn a_line_break_in_a_field_is_refused_by_its_name() {
    let Some(server) = MailServer::start("none", PASSWORD).await else { return };
    let (gateway, config) = gateway_for(&server, "none").await;
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    for inserted in BREAKS {
        let text = format!("x{inserted}");
        let address = format!("ann@example.org{inserted}");
        let file =
            |name: &str, id: &str| json!([{"name": name, "media_type": "text/plain", "content": "", "content_id": id}]);
        for (pointer, message) in [
            ("/content/subject", mail(json!({"subject": text, "text": "x"}))),
            ("/to", with(mail(json!({"text": "x"})), json!({"to": address}))),
            ("/to/name", with(mail(json!({"text": "x"})), json!({"to": {"address": "a@example.org", "name": text}}))),
            ("/content/from", mail(json!({"from": address, "text": "x"}))),
            ("/content/reply_to", mail(json!({"reply_to": address, "text": "x"}))),
            ("/content/cc/0", mail(json!({"cc": [address], "text": "x"}))),
            ("/content/bcc/1", mail(json!({"bcc": ["bo@example.org", address], "text": "x"}))),
            ("/content/headers/X-A", mail(json!({"headers": {"X-A": text}, "text": "x"}))),
            ("/content/attachments/0/name", mail(json!({"attachments": file(&text, "a")}))),
            ("/content/attachments/0/content_id", mail(json!({"attachments": file("a", &text)}))),
        ] {
            let answer = gateway.post("/v1/messages", &message).await;
            let problem = answer.expect(422);
            let named: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|it| &it["pointer"]).collect();
            assert!(named.iter().all(|it| **it == pointer) && !named.is_empty(), "{inserted:?}: {problem}");
        }
    }
    assert!(server.mails().is_empty());
}

#[tokio::test]
async fn what_the_provider_would_refuse_is_not_accepted() {
    let Some(server) = MailServer::start("none", PASSWORD).await else { return };
    let (gateway, config) = gateway_for(&server, "none").await;
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    let reserved = |name: &str| mail(json!({"text": "x", "headers": {name: "v@example.org"}}));
    for (field, message) in [
        ("list_unsubscribe", mail(json!({"text": "x", "params": {"list_unsubscribe": "https://x\r\nBcc: v@x"}}))),
        ("headers/Bcc", reserved("Bcc")),
        ("headers/To", reserved("To")),
        ("headers/Content-Type", reserved("Content-Type")),
        ("headers/DKIM-Signature", reserved("DKIM-Signature")),
    ] {
        let problem = gateway.post("/v1/messages", &message).await.problem(422);
        assert!(problem.errors[0].pointer.contains(field), "{field}: {problem}");
    }
    assert!(server.mails().is_empty());
}

#[tokio::test]
async fn a_smuggling_body_is_one_mail() {
    let Some(server) = MailServer::start("none", PASSWORD).await else { return };
    let (gateway, config) = gateway_for(&server, "none").await;
    gateway.connection("mail", "email-smtp", config, json!({})).await;
    for (number, end) in SMUGGLES.iter().enumerate() {
        let body = smuggling(end);
        let file = json!([{"name": "a.txt", "media_type": "text/plain", "content": STANDARD.encode(&body)}]);
        let content = json!({"subject": "one", "text": body, "html": body, "attachments": file});
        let id = gateway.send(&mail(content)).await;
        assert_eq!(gateway.settled(&id).await.state, "sent");
        let mails = server.mails();
        assert_eq!(mails.len(), number + 1, "{end:?}");
        let seen = &mails[number];
        assert_eq!((&seen["from"], &seen["to"]), (&json!("shop@example.org"), &json!(["ann@example.org"])));
        assert_eq!(seen["defects"], json!([]));
        let parts = seen["parts"].as_array().unwrap();
        assert_eq!(parts.len(), 5, "{end:?}");
        assert_eq!(lines(&parts[2][5]), body.replace("\r\n", "\n").replace('\r', "\n"), "{end:?}");
        assert_eq!(parts[4][4], json!(body), "an attachment's bytes stay as they are");
    }
}

/// Texts that some server takes for the end of a mail.
pub const SMUGGLES: [&str; 7] = ["\n.\n", "\r.\r", "\n.\r\n", "\r\n.\r\n", "\r\n.\n", "\r\n.\r", "\r.\n"];

/// A body that goes on with a mail of its own, if anything takes that for the end.
pub fn smuggling(end: &str) -> String {
    let second = "MAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nSubject: two\r\n\r\nsmuggled";
    format!("first{end}{second}{end}last")
}
