//! Mail submission against servers that follow a script: the meaning of each refusal or fault.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use angarium_domain::{
    ids::TenantId,
    transmission::{Dkim, FaultKind, Kv, Mail, Mailbox, Reply, SmtpSubmission, SmtpTimeouts, SmtpTls, Transmission},
};
use angarium_transport::{Hold, TransportSettings, byte_budget::ByteBudget};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::mpsc::UnboundedReceiver,
};
use tokio_util::sync::CancellationToken;

use super::{CANARY, Sender, serve, settings, tls::acceptor};
use crate::support::{
    authority::Authority,
    database::eventually,
    mail_script::{CUT, GREETING, HANG_UP, HELD, MailScript, NOTHING, SILENCE, Script},
};

pub(super) fn mailbox(value: &str) -> Mailbox {
    Mailbox { value: value.to_owned(), name: None }
}

pub(super) fn submission(port: u16) -> SmtpSubmission {
    SmtpSubmission {
        host: "127.0.0.1".to_owned(),
        port,
        tls: SmtpTls::None,
        user: None,
        password: None,
        client_name: String::new(),
        mail_from: "shop@example.org".to_owned(),
        rcpt_to: vec!["ann@example.org".to_owned()],
        message: Mail {
            sender: mailbox("shop@example.org"),
            reply_to: vec![],
            to: vec![mailbox("ann@example.org")],
            cc: vec![],
            subject: "Hello".to_owned(),
            message_id: "dlv_1@example.org".to_owned(),
            date_ms: 1_700_000_000_000.0,
            text: Some("Hi".to_owned()),
            html: None,
            headers: vec![],
            blobs: vec![],
        },
        dkim: None,
        timeouts: SmtpTimeouts::default(),
    }
}

/// A submission that gives a server a moment for each step.
fn impatient(port: u16) -> SmtpSubmission {
    let moment = Some(200);
    let timeouts =
        SmtpTimeouts { greeting_ms: moment, command_ms: moment, data_ms: moment, block_ms: moment, end_ms: moment };
    SmtpSubmission { timeouts, ..submission(port) }
}

pub(super) async fn submit(
    sender: &Sender,
    mail: SmtpSubmission,
) -> Result<Reply, angarium_domain::transmission::Fault> {
    sender.send(Transmission::Smtp(Box::new(mail))).await
}

async fn scripted(script: &[(&str, &str)]) -> (u16, UnboundedReceiver<String>, Arc<AtomicUsize>) {
    let server = MailScript::start(script).await;
    (server.port, server.told, server.connections)
}

fn code(reply: &Reply) -> (u16, Option<&str>) {
    let Reply::Smtp { code, enhanced, .. } = reply else { panic!("{reply:?}") };
    (*code, enhanced.as_deref())
}

#[tokio::test]
async fn a_mail_is_handed_over() {
    let (port, mut told, _) = scripted(&[("dot", "250 2.6.0 queued as 42")]).await;
    let reply = submit(&Sender::new(), submission(port)).await.unwrap();
    assert_eq!(code(&reply), (250, Some("2.6.0")));
    assert!(matches!(&reply, Reply::Smtp { text, .. } if text.contains("queued as 42")), "{reply:?}");
    assert_eq!(told.recv().await.unwrap(), "EHLO localhost");
    let mail = told.recv().await.unwrap();
    assert!(mail.starts_with("MAIL FROM:<shop@example.org> SIZE="), "{mail}");
    assert_eq!(told.recv().await.unwrap(), "RCPT TO:<ann@example.org>");
    assert_eq!(told.recv().await.unwrap(), "DATA");
    assert!(told.recv().await.unwrap().ends_with("\r\n\r\nHi\r\n."));
}

#[tokio::test]
async fn every_refusal_is_an_answer() {
    for (step, answer, expected) in [
        ("greeting", "554 5.7.1 go away", (554, Some("5.7.1"))),
        ("greeting", "421 4.3.2 busy", (421, Some("4.3.2"))),
        ("EHLO", "550 no", (550, None)),
        ("MAIL", "451 4.7.1 later", (451, Some("4.7.1"))),
        ("RCPT", "550 5.1.1 nobody", (550, Some("5.1.1"))),
        ("DATA", "554 5.5.1 no recipients", (554, Some("5.5.1"))),
        ("dot", "554 5.6.0 spam", (554, Some("5.6.0"))),
    ] {
        let script = [(step, answer)];
        let (port, ..) = scripted(&script).await;
        let reply = submit(&Sender::new(), submission(port)).await.unwrap_or_else(|fault| panic!("{step}: {fault:?}"));
        assert_eq!(code(&reply), expected, "{step}");
    }
}

#[tokio::test]
async fn only_after_the_last_line_may_it_have_been_sent() {
    for (step, sent) in
        [("greeting", false), ("EHLO", false), ("MAIL", false), ("RCPT", false), ("DATA", false), ("dot", true)]
    {
        let (port, ..) = scripted(&[(step, HANG_UP)]).await;
        let fault = submit(&Sender::new(), submission(port)).await.unwrap_err();
        assert_eq!(fault.may_have_been_sent, sent, "{step}: {fault:?}");
        let (port, ..) = scripted(&[(step, SILENCE)]).await;
        let fault = submit(&Sender::new(), impatient(port)).await.unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Timeout, sent), "{step}");
    }
    let (port, ..) = scripted(&[("MAIL", "not SMTP")]).await;
    let fault = submit(&Sender::new(), submission(port)).await.unwrap_err();
    assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::UnreadableAnswer, false));
}

#[tokio::test]
async fn sessions_are_reused_after_mails_and_refusals() {
    let (port, mut told, connections) = scripted(&[("RCPT TO:<gone@", "550 5.1.1 gone")]).await;
    let sender = Sender::new();
    submit(&sender, submission(port)).await.unwrap();
    let mut gone = submission(port);
    gone.rcpt_to = vec!["gone@example.org".to_owned()];
    assert_eq!(code(&submit(&sender, gone).await.unwrap()).0, 550);
    submit(&sender, submission(port)).await.unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let mut lines = Vec::new();
    while let Ok(line) = told.try_recv() {
        lines.push(line);
    }
    assert_eq!(lines.iter().filter(|line| line.starts_with("EHLO")).count(), 1);
    assert_eq!(lines.iter().filter(|line| *line == "RSET").count(), 1);
}

#[tokio::test]
async fn a_session_that_the_server_dropped_is_replaced() {
    let mails = Arc::new(AtomicUsize::new(0));
    let count = mails.clone();
    // One mail for each connection, which then closes without a word.
    let address = serve(move |stream| {
        let count = count.clone();
        async move {
            let mut stream = BufReader::new(stream);
            let _ = stream.write_all(b"220 test\r\n").await;
            let mut line = String::new();
            let mut in_data = false;
            while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
                let answer = match (in_data, line.as_str()) {
                    (true, ".\r\n") => {
                        count.fetch_add(1, Ordering::Relaxed);
                        let _ = stream.write_all(b"250 queued\r\n").await;
                        return;
                    }
                    (true, _) => None,
                    (false, "DATA\r\n") => {
                        in_data = true;
                        Some("354 go\r\n")
                    }
                    (false, _) => Some("250 fine\r\n"),
                };
                if let Some(answer) = answer {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
                line.clear();
            }
        }
    })
    .await;
    let sender = Sender::new();
    for _ in 0..3 {
        submit(&sender, submission(address.port())).await.unwrap();
    }
    assert_eq!(mails.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_refused_copy_is_left_out_and_named() {
    let (port, mut told, _) = scripted(&[("RCPT TO:<gone@", "550 5.1.1 gone")]).await;
    let mut mail = submission(port);
    mail.rcpt_to = vec!["gone@example.org".to_owned(), "ann@example.org".to_owned()];
    let reply = submit(&Sender::new(), mail.clone()).await.unwrap();
    assert!(
        matches!(&reply, Reply::Smtp { code: 250, text, .. } if text.contains("<gone@example.org> 550")),
        "{reply:?}"
    );
    mail.message.to = vec![mailbox("gone@example.org")];
    while told.try_recv().is_ok() {}
    let reply = submit(&Sender::new(), mail).await.unwrap();
    assert_eq!(code(&reply), (550, Some("5.1.1")));
    let mut lines = Vec::new();
    while let Ok(line) = told.try_recv() {
        lines.push(line);
    }
    assert!(!lines.iter().any(|line| line == "DATA"), "{lines:?}");
}

#[tokio::test]
async fn what_the_server_can_not_take_is_not_tried() {
    let (port, mut told, _) = scripted(&[]).await;
    let mut large = submission(port);
    large.message.text = Some("x".repeat(6000));
    assert_eq!(code(&submit(&Sender::new(), large).await.unwrap()), (552, Some("5.3.4")));
    let mut foreign = submission(port);
    foreign.rcpt_to = vec!["jürgen@example.org".to_owned()];
    assert_eq!(code(&submit(&Sender::new(), foreign).await.unwrap()), (553, Some("5.6.7")));
    while let Ok(line) = told.try_recv() {
        assert!(!line.starts_with("MAIL"), "{line}");
    }
}

#[tokio::test]
async fn addresses_with_line_breaks_never_reach_a_server() {
    let (port, mut told, _) = scripted(&[]).await;
    for bad in ["ann@example.org\r\nRCPT TO:<v@example.org>", "ann@example.org> SIZE=1 X=<", "ann example@org", ""] {
        let mut mail = submission(port);
        mail.rcpt_to = vec![bad.to_owned()];
        let fault = submit(&Sender::new(), mail).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::InvalidTransmission, "{bad}");
        let mut mail = submission(port);
        mail.mail_from = format!("{bad}\n");
        assert_eq!(submit(&Sender::new(), mail).await.unwrap_err().kind, FaultKind::InvalidTransmission, "{bad}");
    }
    let mut mail = submission(port);
    mail.client_name = "me\r\nMAIL".to_owned();
    assert_eq!(submit(&Sender::new(), mail).await.unwrap_err().kind, FaultKind::InvalidTransmission);
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn credentials_need_tls() {
    let (port, mut told, _) = scripted(&[]).await;
    for (tls, kind) in [
        (SmtpTls::None, FaultKind::InvalidTransmission),
        (SmtpTls::Opportunistic, FaultKind::Tls),
        (SmtpTls::Starttls, FaultKind::Tls),
    ] {
        let mail = SmtpSubmission {
            tls,
            user: Some("shop".to_owned()),
            password: Some("canary".to_owned()),
            ..submission(port)
        };
        let fault = submit(&Sender::new(), mail).await.unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (kind, false), "{tls:?}");
    }
    while let Ok(line) = told.try_recv() {
        assert!(!line.starts_with("AUTH"), "{line}");
    }
}

#[tokio::test]
async fn closed_networks_and_other_hosts_are_refused() {
    let (port, mut told, _) = scripted(&[]).await;
    let closed = Sender::with(angarium_transport::TransportSettings::default());
    let fault = submit(&closed, submission(port)).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::EgressRefused);
    for host in ["127.1", "0x7f000001", "::1", "[::ffff:127.0.0.1]", "localhost."] {
        let mail = SmtpSubmission { host: host.to_owned(), ..submission(port) };
        let mut closed = Sender::with(angarium_transport::TransportSettings::default());
        closed.granted = vec![host.to_owned()];
        assert_eq!(submit(&closed, mail).await.unwrap_err().kind, FaultKind::EgressRefused, "{host}");
    }
    let mut ungranted = Sender::new();
    ungranted.granted.clear();
    assert_eq!(submit(&ungranted, submission(port)).await.unwrap_err().kind, FaultKind::EgressRefused);
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn a_bad_key_or_header_is_found_before_connecting() {
    let (port, mut told, _) = scripted(&[]).await;
    let dkim = Dkim { domain: "example.org".to_owned(), selector: "s".to_owned(), key: "canary".to_owned() };
    let mail = SmtpSubmission { dkim: Some(dkim), ..submission(port) };
    assert_eq!(submit(&Sender::new(), mail).await.unwrap_err().kind, FaultKind::InvalidTransmission);
    let mut mail = submission(port);
    mail.message.headers = vec![Kv { name: "X".to_owned(), value: "a\r\nBcc: v@example.org".to_owned() }];
    assert_eq!(submit(&Sender::new(), mail).await.unwrap_err().kind, FaultKind::InvalidTransmission);
    assert!(told.try_recv().is_err());
}

fn held(answer: &str) -> String {
    format!("{HELD}{answer}")
}

/// Whether nothing was sent, and why there was no answer.
async fn fault(script: &[(&str, &str)]) -> (FaultKind, bool, Vec<String>) {
    let mut server = MailScript::start(script).await;
    let fault = submit(&Sender::new(), submission(server.port)).await.unwrap_err();
    let mut told = Vec::new();
    while let Some(line) = server.told.recv().await {
        if line == "end" {
            break;
        }
        told.push(line);
    }
    (fault.kind, fault.may_have_been_sent, told)
}

#[tokio::test]
async fn only_354_lets_a_mail_follow() {
    for answer in ["250 Ok", "220 hello", "355 go", "334 go", "354-go\r\n250 go"] {
        let (kind, sent, told) = fault(&[("DATA", answer)]).await;
        assert_eq!((kind, sent), (FaultKind::UnreadableAnswer, false), "{answer}");
        assert_eq!(told.last().unwrap(), "DATA", "{answer}: nothing follows, and the connection ends");
    }
}

#[tokio::test]
async fn replies_that_do_not_follow_the_commands_end_the_session_before_the_mail() {
    for (step, answer) in [
        ("greeting", "220 test\r\n220 test"),
        ("EHLO", "250-test\r\n250 SIZE\r\n250 again"),
        ("MAIL", "250 ok\r\n250 ok"),
        ("RCPT", "250 ok\r\n354 go"),
        ("DATA", "354 go\r\n250 2.0.0 queued"),
        ("MAIL", "354 go"),
        ("RCPT", "334 go"),
        ("MAIL", "250-one\r\n550 two"),
    ] {
        let (kind, sent, told) = fault(&[(step, answer)]).await;
        assert_eq!((kind, sent), (FaultKind::UnreadableAnswer, false), "{step}: {answer}");
        assert!(!told.iter().any(|line| line.ends_with("\r\n.")), "{told:?}");
    }
}

#[tokio::test]
async fn a_reply_to_the_mail_that_is_not_one_leaves_it_unknown() {
    for answer in ["354 go", "ok", "250-queued\r\n550 no", "334 x"] {
        let mut server = MailScript::start(&[("dot", answer)]).await;
        let fault = submit(&Sender::new(), submission(server.port)).await.unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::UnreadableAnswer, true), "{answer}");
        assert_eq!(server.mails().len(), 1);
    }
}

#[tokio::test]
async fn the_code_of_a_long_or_broken_reply_decides() {
    let long = format!("250-2.0.0 {}\r\n", "x".repeat(90));
    let (long, endless) = (format!("{}250 2.0.0 queued", long.repeat(50)), format!("{}{CUT}", long.repeat(2_000)));
    let line = format!("250 2.0.0 {}", "y".repeat(100_000));
    for answer in [&long, &endless, &line, &format!("250-2.0.0 queued\r\n{CUT}"), &format!("250 2.0.0 que{CUT}")] {
        let server = MailScript::start(&[("dot", answer)]).await;
        let reply = submit(&Sender::new(), submission(server.port)).await.unwrap();
        assert_eq!(code(&reply), (250, Some("2.0.0")));
        let Reply::Smtp { text, .. } = reply else { panic!("{reply:?}") };
        assert!(text.len() <= 4096, "{}", text.len());
    }
    let refused = format!("550-5.7.1 no\r\n{CUT}");
    for step in ["dot", "RCPT", "DATA", "MAIL"] {
        let server = MailScript::start(&[(step, &refused)]).await;
        let reply = submit(&Sender::new(), submission(server.port)).await.unwrap();
        assert_eq!(code(&reply), (550, Some("5.7.1")), "{step}");
    }
}

#[tokio::test]
async fn any_positive_reply_takes_a_recipient() {
    for reply in ["251 2.1.5 will forward", "252 2.1.5 will try"] {
        let mut server = MailScript::start(&[("RCPT", reply)]).await;
        assert_eq!(submit(&Sender::new(), submission(server.port)).await.unwrap().status(), 250);
        assert_eq!(server.mails().len(), 1);
    }
}

#[tokio::test]
async fn a_session_with_more_to_read_is_not_used_again() {
    let answers =
        ["250 2.0.0 queued\r\n250 2.0.0 queued", "250 2.0.0 queued\r\n421 4.3.2 bye", "250 queued\r\n221 idle timeout"];
    for answer in answers {
        let mut server = MailScript::start(&[("dot", answer)]).await;
        let sender = Sender::new();
        for _ in 0..2 {
            assert_eq!(submit(&sender, submission(server.port)).await.unwrap().status(), 250);
        }
        assert_eq!((server.connections.load(Ordering::Relaxed), server.mails().len()), (2, 2));
    }
}

#[tokio::test]
async fn enhanced_codes_come_whole() {
    let (port, ..) = scripted(&[("RCPT", "550 5.7.708 Access denied, traffic not accepted from this IP")]).await;
    assert_eq!(code(&submit(&Sender::new(), submission(port)).await.unwrap()), (550, Some("5.7.708")));
}

#[tokio::test]
async fn a_server_without_ehlo_is_greeted_with_helo() {
    for refusal in ["500 what?", "501 no", "502 5.5.1 command not implemented", "504 no"] {
        let mut server = MailScript::start(&[("EHLO", refusal)]).await;
        assert_eq!(submit(&Sender::new(), submission(server.port)).await.unwrap().status(), 250);
        let told = server.heard();
        assert_eq!(&told[..3], ["EHLO localhost", "HELO localhost", "MAIL FROM:<shop@example.org>"]);
    }
    let (port, ..) = scripted(&[("EHLO", "502 no"), ("HELO", "550 5.7.1 go away")]).await;
    assert_eq!(code(&submit(&Sender::new(), submission(port)).await.unwrap()), (550, Some("5.7.1")));
    let starttls = SmtpSubmission { tls: SmtpTls::Starttls, ..submission(port) };
    assert_eq!(code(&submit(&Sender::new(), starttls).await.unwrap()).0, 550);
}

#[tokio::test]
async fn a_server_that_shuts_down_at_ehlo_is_not_asked_again() {
    let mut server = MailScript::start(&[("EHLO", "421 4.7.1 your name does not fit your address")]).await;
    assert_eq!(code(&submit(&Sender::new(), submission(server.port)).await.unwrap()), (421, Some("4.7.1")));
    assert!(!server.heard().iter().any(|line| line.starts_with("HELO")));
}

#[tokio::test]
async fn a_greeting_of_several_lines_is_one_reply() {
    let server = MailScript::start(&[("greeting", "220-this server is protected\r\n220-by somebody\r\n220")]).await;
    assert_eq!(submit(&Sender::new(), submission(server.port)).await.unwrap().status(), 250);
}

#[tokio::test]
async fn extensions_are_used_only_where_the_mail_needs_them() {
    let offers = "250-test\r\n250-SIZE\r\n250-8BITMIME\r\n250 SMTPUTF8";
    let mut server = MailScript::start(&[("EHLO", offers)]).await;
    let mut plain = submission(server.port);
    plain.message.subject = "Blåbär".to_owned();
    plain.message.text = Some("Välkommen".to_owned());
    submit(&Sender::new(), plain).await.unwrap();
    let mut foreign = submission(server.port);
    foreign.rcpt_to = vec!["jürgen@example.org".to_owned()];
    foreign.message.to = vec![mailbox("jürgen@example.org")];
    submit(&Sender::new(), foreign).await.unwrap();
    let heard = server.heard();
    let commands: Vec<_> = heard.iter().filter(|line| line.starts_with("MAIL")).collect();
    let after_size = |command: &str| command.split_once(" SIZE=").unwrap().1.split_once(' ').map(|it| it.1.to_owned());
    assert_eq!(after_size(commands[0]), None);
    assert_eq!(after_size(commands[1]).as_deref(), Some("BODY=8BITMIME SMTPUTF8"));
}

#[tokio::test]
async fn a_server_that_shuts_down_is_an_answer_and_not_asked_further() {
    for step in ["MAIL", "RCPT TO:<copy", "DATA", "dot"] {
        let mut server = MailScript::start(&[(step, "421 4.3.2 shutting down")]).await;
        let mut mail = submission(server.port);
        mail.rcpt_to.insert(0, "copy@example.org".to_owned());
        assert_eq!(code(&submit(&Sender::new(), mail).await.unwrap()), (421, Some("4.3.2")), "{step}");
        let told = server.heard();
        let last = told.iter().rfind(|line| *line != "end").unwrap();
        assert!(last.starts_with(step) || step == "dot", "{told:?}");
        assert!(!told.iter().any(|line| line == "RSET"), "{told:?}");
    }
    // It may say so before it is asked (RFC 5321, 3.8).
    let (port, ..) = scripted(&[("MAIL", "250 ok\r\n421 4.3.2 shutting down")]).await;
    assert_eq!(code(&submit(&Sender::new(), submission(port)).await.unwrap()), (421, Some("4.3.2")));
}

#[tokio::test]
async fn a_refusal_amid_the_mail_is_an_answer() {
    // It comes with the leave to begin, or while a long mail is being written to a server that stops reading.
    let (port, ..) = scripted(&[("DATA", "354 go\r\n452 4.3.1 no space")]).await;
    assert_eq!(code(&submit(&Sender::new(), submission(port)).await.unwrap()), (452, Some("4.3.1")));
    let address = serve(|stream| async move {
        let mut stream = BufReader::new(stream);
        let _ = stream.write_all(b"220 test\r\n").await;
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
            let answer: &[u8] = if line == "DATA\r\n" { b"354 go\r\n" } else { b"250 ok\r\n" };
            let _ = stream.write_all(answer).await;
            if line == "DATA\r\n" {
                let _ = stream.read_exact(&mut vec![0; 1 << 20]).await;
                let _ = stream.write_all(b"552 5.3.4 too large\r\n").await;
                let _ = stream.shutdown().await;
                let mut rest = vec![0; 1 << 16];
                while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
                return;
            }
            line.clear();
        }
    })
    .await;
    let mut large = submission(address.port());
    large.message.text = Some("x".repeat(16 << 20));
    assert_eq!(code(&submit(&Sender::new(), large).await.unwrap()), (552, Some("5.3.4")));
}

/// Starts a server that begins TLS with an unknown certificate.
async fn starttls_server(script: &[(&str, &str)]) -> (u16, UnboundedReceiver<String>, Authority) {
    let authority = Authority::new();
    let acceptor = acceptor(&authority, false);
    let mut script = script.to_vec();
    script.push(("EHLO", "250-test\r\n250-STARTTLS\r\n250 AUTH PLAIN"));
    let (script, told, _) = Script::new(&script);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (script, acceptor) = (script.clone(), acceptor.clone());
            tokio::spawn(async move {
                let Some(stream) = script.clone().follow_until(stream, GREETING, "STARTTLS").await else { return };
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = script.follow_until(stream, NOTHING, "").await;
                }
            });
        }
    });
    (port, told, authority)
}

#[tokio::test]
async fn opportunistic_tls_takes_any_certificate_and_none() {
    let mail = |port, tls| SmtpSubmission { tls, ..submission(port) };
    let (port, mut told, _) = starttls_server(&[]).await;
    let reply = submit(&Sender::new(), mail(port, SmtpTls::Opportunistic)).await.unwrap();
    assert_eq!(reply.status(), 250);
    let heard: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
    assert_eq!(&heard[..3], ["EHLO localhost", "STARTTLS", "EHLO localhost"]);
    let fault = submit(&Sender::new(), mail(port, SmtpTls::Starttls)).await.unwrap_err();
    assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Tls, false));

    // Credentials go only to a server that can prove its identity.
    let (user, password) = (Some("shop".to_owned()), Some("canary".to_owned()));
    let known = SmtpSubmission { user, password, ..mail(port, SmtpTls::Opportunistic) };
    let fault = submit(&Sender::new(), known).await.unwrap_err();
    assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Tls, false));
    assert!(std::iter::from_fn(|| told.try_recv().ok()).all(|line| !line.starts_with("AUTH")));
}

#[tokio::test]
async fn opportunistic_tls_that_fails_is_gone_without() {
    for answer in ["454 4.7.0 TLS not available", "220 go\r\nthis is no TLS", "220 go\r\n(cut)"] {
        let offers = "250-test\r\n250 STARTTLS";
        let mut server = MailScript::start(&[("EHLO", offers), ("STARTTLS", answer)]).await;
        let opportunistic = SmtpSubmission { tls: SmtpTls::Opportunistic, ..submission(server.port) };
        let result = submit(&Sender::new(), opportunistic).await;
        if answer.contains("no TLS") {
            // Bytes before TLS begins may come from an attacker in between.
            let fault = result.unwrap_err();
            assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::UnreadableAnswer, false));
        } else {
            assert_eq!(result.unwrap().status(), 250, "{answer}");
            assert_eq!(server.mails().len(), 1);
        }
        let required = SmtpSubmission { tls: SmtpTls::Starttls, ..submission(server.port) };
        let refused = submit(&Sender::new(), required).await;
        assert!(refused.as_ref().map_or(true, |reply| reply.status() == 454), "{answer}: {refused:?}");
        assert!(server.mails().is_empty());
    }
}

#[tokio::test]
async fn a_mail_that_waits_for_its_last_reply_holds_no_memory() {
    let bytes = ByteBudget::new(64 << 20);
    let mut server = MailScript::start(&[("EHLO", "250 test"), ("dot", &held("250 2.0.0 queued"))]).await;
    let sender = Sender::with(TransportSettings { bytes: Arc::clone(&bytes), ..settings() });
    let mut mail = submission(server.port);
    mail.message.text = Some("x".repeat(4 << 20));
    let permit = bytes.take(TenantId::new(), 16 << 20).await;
    let sent = sender.send_under(Some(permit), Transmission::Smtp(Box::new(mail)));
    let release = Arc::clone(&server.release);
    let left = async {
        eventually("the mail's data leaving memory", || async { (bytes.taken() == 0).then_some(()) }).await;
        release.notify_one();
    };
    let (reply, ()) = tokio::join!(sent, left);
    assert_eq!(reply.unwrap().status(), 250);
    assert_eq!(server.mails().len(), 1);
}

/// A hold that stands or not.
#[derive(Debug)]
struct Stands(bool);

impl Hold for Stands {
    fn stands(&self) -> bool {
        self.0
    }
}

#[tokio::test]
async fn a_mail_is_not_handed_over_once_others_may_have_its_delivery() {
    let mut server = MailScript::start(&[]).await;
    let mut sender = Sender::new();
    sender.hold = Some(Box::new(Stands(false)));
    let fault = submit(&sender, submission(server.port)).await.unwrap_err();
    assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Timeout, false));
    assert!(server.mails().is_empty());
    sender.hold = Some(Box::new(Stands(true)));
    submit(&sender, submission(server.port)).await.unwrap();
    assert_eq!(server.mails().len(), 1);
}

#[tokio::test]
async fn a_node_that_stops_takes_back_what_was_not_handed_over_and_waits_for_the_rest() {
    let stop = CancellationToken::new();
    let sender = Sender::with(TransportSettings { stop: stop.clone(), ..settings() });
    let mut hangs = MailScript::start(&[("RCPT", SILENCE)]).await;
    let late = MailScript::start(&[("dot", &held("250 2.0.0 queued"))]).await;
    let (mut told, release) = (late.told, late.release);
    let stops = async {
        while hangs.told.recv().await.unwrap() != "RCPT TO:<ann@example.org>" {}
        while !told.recv().await.unwrap().ends_with("\r\n.") {}
        stop.cancel();
    };
    let given_back = async {
        let fault = submit(&sender, submission(hangs.port)).await.unwrap_err();
        release.notify_one();
        fault
    };
    let (fault, reply, ()) = tokio::join!(given_back, submit(&sender, submission(late.port)), stops);
    assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Timeout, false));
    assert_eq!(reply.unwrap().status(), 250);
}

#[tokio::test]
async fn each_step_has_its_own_time() {
    type Change = fn(&mut SmtpTimeouts, Option<u32>);
    let steps: [(&str, Change); 5] = [
        ("greeting", |it, time| it.greeting_ms = time),
        ("EHLO", |it, time| it.command_ms = time),
        ("RCPT", |it, time| it.command_ms = time),
        ("DATA", |it, time| it.data_ms = time),
        ("dot", |it, time| it.end_ms = time),
    ];
    for (step, set) in steps {
        let (port, ..) = scripted(&[(step, SILENCE)]).await;
        let mut mail = submission(port);
        set(&mut mail.timeouts, Some(300));
        let fault = submit(&Sender::new(), mail).await.unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Timeout, step == "dot"), "{step}");
    }
}

#[tokio::test]
async fn a_server_that_takes_no_more_of_a_mail_has_the_time_for_a_block() {
    let address = serve(|stream| async move {
        let mut stream = BufReader::new(stream);
        let _ = stream.write_all(b"220 test\r\n").await;
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
            let is_data = line == "DATA\r\n";
            let _ = stream.write_all(if is_data { b"354 go\r\n" } else { b"250 ok\r\n" }).await;
            if is_data {
                std::future::pending::<()>().await;
            }
            line.clear();
        }
    })
    .await;
    let mut large = submission(address.port());
    large.message.text = Some("x".repeat(32 << 20));
    large.timeouts.block_ms = Some(300);
    let fault = submit(&Sender::new(), large).await.unwrap_err();
    assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Timeout, false));
}

#[tokio::test]
async fn lines_of_a_mail_are_bounded_to_the_byte() {
    let (port, ..) = scripted(&[("EHLO", "250 test")]).await;
    let with = |name: usize| {
        let mut mail = submission(port);
        mail.message.headers = vec![Kv { name: "X".repeat(name), value: "v".repeat(900) }];
        mail
    };
    assert_eq!(submit(&Sender::new(), with(96)).await.unwrap().status(), 250);
    let fault = submit(&Sender::new(), with(97)).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::InvalidTransmission);
    assert!(fault.detail.contains("at most 998 bytes (got 999)"), "{}", fault.detail);
}

#[tokio::test]
async fn commands_are_bounded_to_the_byte() {
    let (port, mut told, _) = scripted(&[]).await;
    let name = |length: usize| SmtpSubmission { client_name: "a".repeat(length), ..submission(port) };
    assert_eq!(submit(&Sender::new(), name(505)).await.unwrap().status(), 250);
    assert_eq!(told.recv().await.unwrap().len(), 510);
    let fault = submit(&Sender::new(), name(506)).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::InvalidTransmission);
}

#[tokio::test]
async fn credentials_too_long_for_a_command_follow_when_they_are_asked_for() {
    let authority = Authority::new();
    let acceptor = acceptor(&authority, false);
    let greeting = ("EHLO", "250-test\r\n250 AUTH LOGIN PLAIN");
    let (script, mut told, _) = Script::new(&[greeting, ("AUTH", "334"), ("AHNob3A", "235 2.7.0 welcome")]);
    let address = serve(move |stream| {
        let (script, acceptor) = (script.clone(), acceptor.clone());
        async move {
            let stream = acceptor.accept(stream).await.unwrap();
            let _ = script.follow_until(stream, GREETING, "").await;
        }
    })
    .await;
    let sender = Sender::with(super::tls::trusting(&authority)).secret("long", &format!("{CANARY}{}", "p".repeat(600)));
    let mail = SmtpSubmission {
        tls: SmtpTls::Implicit,
        user: Some("shop".to_owned()),
        password: Some("long".to_owned()),
        ..submission(address.port())
    };
    assert_eq!(submit(&sender, mail).await.unwrap().status(), 250);
    let lines: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
    assert_eq!(lines[1], "AUTH PLAIN");
    assert!(lines[2].starts_with("AHNob3A") && lines[3].starts_with("MAIL"), "{lines:?}");
}
