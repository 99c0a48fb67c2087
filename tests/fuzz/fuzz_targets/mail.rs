//! No field of a mail becomes another header or line, and the signed text is the sent one.
#![no_main]

use angarium_domain::transmission::{Blob, Kv, Mail, Mailbox};
use angarium_transport::fuzzing::write_mail;
use libfuzzer_sys::fuzz_target;

/// Separates two fields.
const BETWEEN: char = '\u{1f}';

fuzz_target!(|text: &str| {
    let mut fields = text.split(BETWEEN).map(str::to_owned);
    let mut next = || fields.next().unwrap_or_default();
    let mailbox = |value, name: String| Mailbox { value, name: Some(name).filter(|name| !name.is_empty()) };
    let mail = Mail {
        sender: mailbox(next(), next()),
        to: vec![mailbox(next(), next())],
        cc: vec![mailbox("ann@example.org".to_owned(), next())],
        reply_to: vec![],
        subject: next(),
        message_id: next(),
        date_ms: next().parse().unwrap_or(1_700_000_000_000.0),
        text: Some(next()),
        html: Some(next()),
        headers: vec![Kv { name: next(), value: next() }],
        blobs: vec![1],
    };
    let content_id = Some(next()).filter(|id| !id.is_empty());
    let blob = Blob { id: 1, name: next(), media_type: next(), content_id, bytes: next().into_bytes().into() };
    let Ok(written) = write_mail(&mail, &[blob]) else { return };
    let lone = |pair: &[u8]| (pair[0] == b'\r') != (pair[1] == b'\n');
    assert!(!written.windows(2).any(lone), "a line ends otherwise than by CR and LF: {mail:?}");
    let head = written.windows(4).position(|four| four == b"\r\n\r\n").expect("a mail has a body");
    let head = String::from_utf8_lossy(&written[..head + 2]).into_owned();
    let names: Vec<String> = head
        .split("\r\n")
        .filter(|line| !line.is_empty() && !line.starts_with([' ', '\t']))
        .map(|line| line.split_once(':').expect("a header has a name").0.to_ascii_lowercase())
        .collect();
    let allowed = [
        "from",
        "to",
        "cc",
        "subject",
        "date",
        "message-id",
        "mime-version",
        "content-type",
        "content-transfer-encoding",
    ];
    let given = mail.headers[0].name.to_ascii_lowercase();
    for name in &names {
        assert!(allowed.contains(&name.as_str()) || *name == given, "{name:?} of {mail:?}");
        let once = names.iter().filter(|other| *other == name).count() == 1;
        assert!(once, "{name:?} is there twice: {mail:?}");
    }
    assert!(
        written.split(|byte| *byte == b'\n').all(|line| line.len() <= 999),
        "a line is longer than SMTP's: {mail:?}"
    );
});
