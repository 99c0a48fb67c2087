//! Mail submission against servers that follow a script: what each refusal or fault means.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use angarium::domain::transmission::{
    Dkim, FaultKind, Kv, Mail, Mailbox, Reply, SmtpSubmission, SmtpTls, Transmission,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use super::{Sender, serve};

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
        timeout_ms: None,
    }
}

pub(super) async fn submit(
    sender: &Sender,
    mail: SmtpSubmission,
) -> Result<Reply, angarium::domain::transmission::Fault> {
    sender.send(Transmission::Smtp(Box::new(mail))).await
}

/// Closes the connection instead of answering.
const HANG_UP: &str = "";
/// Says nothing and stays.
const SILENCE: &str = "…";

/// A server that answers each command as usual, but for those in its script; it reports what it
/// is told, and the mail as one line.
async fn scripted(script: &[(&'static str, &'static str)]) -> (u16, UnboundedReceiver<String>, Arc<AtomicUsize>) {
    let script: Arc<HashMap<_, _>> = Arc::new(script.iter().copied().collect());
    let connections = Arc::new(AtomicUsize::new(0));
    let (seen, told) = unbounded_channel();
    let count = connections.clone();
    let address = serve(move |stream| {
        count.fetch_add(1, Ordering::Relaxed);
        let (script, seen) = (script.clone(), seen.clone());
        async move {
            let mut stream = BufReader::new(stream);
            let mut next = "greeting".to_owned();
            let mut in_data = false;
            loop {
                let usual = match next.as_str() {
                    "greeting" => "220 test ESMTP",
                    "DATA" => "354 go",
                    line if line.starts_with("EHLO") => "250-test\r\n250 SIZE 5000",
                    _ => "250 2.0.0 fine",
                };
                let known = script.iter().find(|(key, _)| next.starts_with(*key)).map(|(_, answer)| *answer);
                match known.unwrap_or(usual) {
                    HANG_UP => return,
                    SILENCE => std::future::pending().await,
                    answer => {
                        in_data = answer.starts_with("354");
                        let _ = stream.write_all(format!("{answer}\r\n").as_bytes()).await;
                    }
                }
                let mut data = String::new();
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                        let _ = seen.send("end".to_owned());
                        return;
                    }
                    data.push_str(&line);
                    if !in_data || line == ".\r\n" {
                        break;
                    }
                }
                next = if in_data { "dot".to_owned() } else { data.trim_end().to_owned() };
                let _ = seen.send(data.trim_end().to_owned());
            }
        }
    })
    .await;
    (address.port(), told, connections)
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
        let fault = submit(&Sender::new().within(Duration::from_millis(200)), submission(port)).await.unwrap_err();
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
    // One mail a connection, then gone without a word.
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
    let closed = Sender::with(angarium::transport::TransportSettings::default());
    let fault = submit(&closed, submission(port)).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::EgressRefused);
    for host in ["127.1", "0x7f000001", "::1", "[::ffff:127.0.0.1]", "localhost."] {
        let mail = SmtpSubmission { host: host.to_owned(), ..submission(port) };
        let mut closed = Sender::with(angarium::transport::TransportSettings::default());
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
