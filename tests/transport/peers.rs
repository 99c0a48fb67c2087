//! Mail against aiosmtpd, read by Python's `email` and verified by dkimpy: none was written here.

use std::time::Duration;

use angarium_domain::transmission::{Blob, Dkim, FaultKind, Kv, SmtpSubmission, SmtpTls};
use bytes::Bytes;

use super::{
    CANARY, Sender,
    smtp::{mailbox, submission, submit},
    tls::trusting,
};
use crate::support::mail_server::{DkimKey, MailServer, header};

impl MailServer {
    fn sender(&self) -> Sender {
        Sender::with(trusting(&self.authority))
    }

    fn mail(&self, tls: SmtpTls) -> SmtpSubmission {
        SmtpSubmission {
            tls,
            user: Some("shop".to_owned()),
            password: Some("canary".to_owned()),
            ..submission(self.port)
        }
    }
}

#[tokio::test]
async fn starttls_and_implicit_tls_carry_credentials() {
    for (mode, tls) in [
        ("starttls", SmtpTls::Starttls),
        ("starttls", SmtpTls::Opportunistic),
        ("login", SmtpTls::Starttls),
        ("implicit", SmtpTls::Implicit),
    ] {
        let Some(server) = MailServer::start(mode, CANARY).await else { return };
        let reply = submit(&server.sender(), server.mail(tls)).await.unwrap();
        assert_eq!(reply.status(), 250, "{mode}");
        let mails = server.mails();
        assert_eq!(mails.len(), 1);
        assert_eq!((&mails[0]["tls"], &mails[0]["authenticated"]), (&true.into(), &true.into()), "{mode}");
        assert_eq!(mails[0]["to"], serde_json::json!(["ann@example.org"]));

        let stranger = submit(&Sender::new(), server.mail(tls)).await.unwrap_err();
        assert_eq!((stranger.kind, stranger.may_have_been_sent), (FaultKind::Tls, false), "{mode}");
        let wrong = server.sender().secret("wrong", "not the password");
        let mail = SmtpSubmission { password: Some("wrong".to_owned()), ..server.mail(tls) };
        let fault = submit(&wrong, mail).await.unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Unauthorized, false), "{mode}");
    }
}

#[tokio::test]
async fn a_full_mail_is_read_as_it_was_written() {
    let Some(server) = MailServer::start("none", CANARY).await else { return };
    let mut sender = server.sender();
    let blob = |id, name: &str, media_type: &str, content_id: Option<&str>, bytes: &'static [u8]| Blob {
        id,
        name: name.to_owned(),
        media_type: media_type.to_owned(),
        content_id: content_id.map(str::to_owned),
        bytes: Bytes::from_static(bytes),
    };
    sender.blobs = vec![
        blob(1, "räkning.pdf", "application/pdf", None, &[0, 159, 146, 150]),
        blob(2, "logo.png", "image/png", Some("logo@shop"), b"PNG"),
    ];
    let mut mail = submission(server.port);
    let message = &mut mail.message;
    message.sender.name = Some("Blåbär \"Shop\", Ltd".to_owned());
    message.reply_to = vec![mailbox("help@example.org")];
    message.cc = vec![mailbox("bo@example.org"), mailbox("cy@bücher.example")];
    message.subject = "Välkommen, din räkning är här och ämnesraden är längre än en rad i ett brev får vara".to_owned();
    message.text = Some("Hej Å\n.\n..\nFrom me\n".to_owned());
    message.html = Some("<p>Hej <img src=\"cid:logo@shop\"></p>".to_owned());
    message.headers = vec![
        Kv { name: "List-Unsubscribe".to_owned(), value: format!("<https://example.org/{}>", "u".repeat(100)) },
        Kv { name: "List-Unsubscribe-Post".to_owned(), value: "List-Unsubscribe=One-Click".to_owned() },
    ];
    message.blobs = vec![1, 2];
    mail.rcpt_to =
        ["ann@example.org", "bo@example.org", "cy@bücher.example", "hidden@example.org"].map(str::to_owned).to_vec();
    submit(&sender, mail.clone()).await.unwrap();

    let seen = &server.mails()[0];
    assert_eq!(seen["defects"], serde_json::json!([]));
    assert_eq!(seen["to"][2], "cy@xn--bcher-kva.example");
    assert_eq!(seen["to"][3], "hidden@example.org");
    assert_eq!(header(seen, "subject"), [mail.message.subject.as_str()]);
    assert_eq!(header(seen, "from"), ["\"Blåbär \\\"Shop\\\", Ltd\" <shop@example.org>"]);
    assert_eq!(header(seen, "message-id"), ["<dlv_1@example.org>"]);
    assert_eq!(header(seen, "list-unsubscribe"), [mail.message.headers[0].value.as_str()]);
    assert!(header(seen, "bcc").is_empty());
    let parts = seen["parts"].as_array().unwrap();
    let kinds: Vec<_> = parts.iter().map(|part| part[0].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "multipart/mixed",
            "multipart/alternative",
            "text/plain",
            "multipart/related",
            "text/html",
            "image/png",
            "application/pdf"
        ]
    );
    assert_eq!(parts[2][4], "Hej Ã\u{85}\r\n.\r\n..\r\nFrom me\r\n");
    assert_eq!((&parts[5][1], &parts[5][3]), (&"inline".into(), &"<logo@shop>".into()));
    assert_eq!((&parts[6][1], &parts[6][2]), (&"attachment".into(), &"räkning.pdf".into()));
    assert_eq!(parts[6][4], "\u{0}\u{9f}\u{92}\u{96}");
}

#[tokio::test]
async fn smuggling_bodies_and_subjects_yield_one_mail() {
    let Some(server) = MailServer::start("none", CANARY).await else { return };
    let sender = server.sender();
    let smuggled = "MAIL FROM:<evil@example.org>";
    let bodies =
        ["\n.\n", "\r.\r", "\n.\r\n", "\r\n.\r\n", "\r\n.\n", "\r.\n"].map(|end| format!("a{end}{smuggled}{end}"));
    for body in &bodies {
        let mut mail = submission(server.port);
        mail.message.text = Some(body.clone());
        mail.message.html = Some(body.clone());
        mail.message.subject = "x\r\nBcc: v@example.org".to_owned();
        submit(&sender, mail).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mails = server.mails();
    assert_eq!(mails.len(), bodies.len());
    for mail in &mails {
        assert_eq!(mail["to"], serde_json::json!(["ann@example.org"]));
        assert!(header(mail, "bcc").is_empty());
        assert_eq!(mail["parts"].as_array().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn international_addresses_use_smtputf8() {
    let Some(server) = MailServer::start("none", CANARY).await else { return };
    let mut mail = submission(server.port);
    mail.rcpt_to = vec!["jürgen@example.org".to_owned()];
    mail.message.to = vec![mailbox("jürgen@example.org")];
    submit(&server.sender(), mail).await.unwrap();
    submit(&server.sender(), submission(server.port)).await.unwrap();
    let mails = server.mails();
    assert_eq!((&mails[0]["utf8"], &mails[0]["to"][0]), (&true.into(), &"jürgen@example.org".into()));
    assert_eq!(mails[1]["utf8"], false);
}

#[tokio::test]
async fn dkim_signatures_verify_elsewhere() {
    let Some(server) = MailServer::start("none", CANARY).await else { return };
    let rsa = DkimKey::rsa();
    let traditional = rsa.traditional();
    for (number, key) in [rsa, traditional, DkimKey::ed25519()].iter().enumerate() {
        server.publish(&key.record);
        let mut mail = submission(server.port);
        mail.message.subject = "Välkommen".to_owned();
        mail.message.headers =
            vec![Kv { name: "List-Unsubscribe".to_owned(), value: "<https://example.org/u>".to_owned() }];
        mail.dkim =
            Some(Dkim { domain: "example.org".to_owned(), selector: "s1".to_owned(), key: format!("key{number}") });
        submit(&server.sender().secret(&format!("key{number}"), &key.pem), mail).await.unwrap();
        let mails = server.mails();
        assert_eq!(mails[number]["dkim"], true, "{}\n{}", key.record, server.raw(number + 1));
        let signature = header(&mails[number], "dkim-signature")[0].replace(' ', "").to_ascii_lowercase();
        for covered in
            ["from", "to", "subject", "date", "message-id", "mime-version", "content-type", "list-unsubscribe"]
        {
            assert!(signature.split("h=").nth(1).unwrap().contains(covered), "{covered}: {signature}");
        }
        assert!(signature.contains("c=relaxed/relaxed"), "{signature}");
    }
}
