//! Removes secrets from answers: a server that echoes what it was sent must not put a credential
//! into a plugin's memory, an attempt or a log.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memmem;

use super::splice::{Secrets, percent_encode};
use crate::domain::transmission::Reply;

const HIDDEN: &[u8] = b"***";
/// Shorter values would be found where nobody put them.
const SHORTEST: usize = 6;

/// The answer without the connection's secrets, nor the other credentials that were sent.
pub(super) fn scrubbed(reply: Reply, secrets: &Secrets, sent: &[impl AsRef<[u8]>]) -> Reply {
    let sent = sent.iter().map(|value| credential(value.as_ref()));
    let needles: Vec<Cow<'_, [u8]>> = secrets
        .values()
        .flat_map(forms)
        .chain(sent.map(Cow::Borrowed))
        .filter(|needle| needle.len() >= SHORTEST)
        .collect();
    if needles.is_empty() {
        return reply;
    }
    match reply {
        Reply::Http { status, mut headers, body } => {
            for header in &mut headers {
                scrub_text(&mut header.value, &needles);
            }
            Reply::Http { status, headers, body: scrub(body, &needles) }
        }
        Reply::Smtp { code, enhanced, mut text } => {
            scrub_text(&mut text, &needles);
            Reply::Smtp { code, enhanced, text }
        }
    }
}

/// A value as it is and, where that differs, as a URL has it.
fn forms(value: &[u8]) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let mut encoded = Vec::new();
    if !value.iter().all(|byte| byte.is_ascii_alphanumeric()) {
        value.iter().for_each(|byte| percent_encode(*byte, &mut encoded));
    }
    [Cow::Borrowed(value), Cow::Owned(encoded)].into_iter()
}

/// What follows the scheme of an `Authorization` header.
fn credential(value: &[u8]) -> &[u8] {
    value.rsplit(|byte| *byte == b' ').next().unwrap_or(value)
}

fn scrub_text(text: &mut String, needles: &[Cow<'_, [u8]>]) {
    if needles.iter().any(|needle| memmem::find(text.as_bytes(), needle).is_some()) {
        let clean = scrub(Bytes::copy_from_slice(text.as_bytes()), needles);
        *text = String::from_utf8_lossy(&clean).into_owned();
    }
}

fn scrub(mut bytes: Bytes, needles: &[Cow<'_, [u8]>]) -> Bytes {
    for needle in needles {
        if memmem::find(&bytes, needle).is_some() {
            bytes = replaced(&bytes, needle);
        }
    }
    bytes
}

fn replaced(bytes: &[u8], needle: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(bytes.len());
    let mut from = 0;
    for at in memmem::find_iter(bytes, needle) {
        out.extend_from_slice(&bytes[from..at]);
        out.extend_from_slice(HIDDEN);
        from = at + needle.len();
    }
    out.extend_from_slice(&bytes[from..]);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::transmission::Kv, sealing::Secret};

    #[test]
    fn an_echo_loses_the_secret_in_every_form() {
        let secrets: Secrets =
            [("key".to_owned(), vec![Secret::new("hunter two"), Secret::new("a")])].into_iter().collect();
        let reply = Reply::Http {
            status: 200,
            headers: vec![Kv { name: "x-echo".to_owned(), value: "Bearer hunter two".to_owned() }],
            body: Bytes::from("got hunter two, hunter%20two and Basic dXNlcjpodW50ZXI= from a"),
        };
        let Reply::Http { headers, body, .. } = scrubbed(reply, &secrets, &["Basic dXNlcjpodW50ZXI="]) else {
            unreachable!()
        };
        assert_eq!(headers[0].value, "Bearer ***");
        assert_eq!(body, "got ***, *** and Basic *** from a");
    }

    #[test]
    fn an_answer_without_secrets_is_not_copied() {
        let secrets: Secrets = [("key".to_owned(), vec![Secret::new("hunter2")])].into_iter().collect();
        let body = Bytes::from("nothing to see");
        let reply = Reply::Http { status: 200, headers: vec![], body: body.clone() };
        let Reply::Http { body: clean, .. } = scrubbed(reply, &secrets, &[] as &[&str]) else { unreachable!() };
        assert_eq!(clean.as_ptr(), body.as_ptr());
    }
}
