//! Removes secrets from answers: a server that echoes its request must not put a credential into a plugin's memory, an
//! attempt or a log.

use std::sync::Arc;

use bytes::Bytes;

use super::splice::Secrets;
use angarium_domain::{redaction::Redactor, transmission::Reply};

/// The fewest bytes of a part of a credential that are looked for by themselves.
const SHORTEST_PART: usize = 16;
/// An answer of more bytes is searched away from the threads that serve requests.
const LARGE: usize = 64 << 10;

/// The answer without the connection's secrets, nor the credentials and signatures that were sent.
pub(super) async fn scrubbed(reply: Reply, secrets: &Secrets, sent: &[impl AsRef<[u8]>]) -> Reply {
    let sent = Redactor::of(sent.iter().flat_map(|value| parts(value.as_ref())));
    // A value derived from a secret is replaced first, because it contains the secret.
    let redactors: Vec<Arc<Redactor>> =
        [Arc::new(sent), Arc::clone(secrets.redactor())].into_iter().filter(|it| !it.is_empty()).collect();
    if redactors.is_empty() {
        return reply;
    }
    if size(&reply) <= LARGE {
        return clean(reply, &redactors);
    }
    let Reply::Http { status, .. } = reply else { return clean(reply, &redactors) };
    let cleaned = tokio::task::spawn_blocking(move || clean(reply, &redactors)).await;
    // It ends early only if the process does.
    cleaned.unwrap_or(Reply::Http { status, headers: Vec::new(), body: Bytes::new(), cut: None })
}

fn size(reply: &Reply) -> usize {
    match reply {
        Reply::Http { body, .. } => body.len(),
        Reply::Smtp { text, .. } => text.len(),
    }
}

fn clean(reply: Reply, redactors: &[Arc<Redactor>]) -> Reply {
    let redact = |text: &mut String| redactors.iter().for_each(|redactor| redactor.redact(text));
    match reply {
        Reply::Http { status, mut headers, body, cut } => {
            for header in &mut headers {
                redact(&mut header.name);
                redact(&mut header.value);
            }
            let body = redactors.iter().fold(body, |body, redactor| match redactor.redacted(&body) {
                std::borrow::Cow::Borrowed(_) => body.clone(),
                std::borrow::Cow::Owned(clean) => clean.into(),
            });
            Reply::Http { status, headers, body, cut }
        }
        Reply::Smtp { code, enhanced, mut text, mut recipients } => {
            redact(&mut text);
            recipients.iter_mut().for_each(|it| redact(&mut it.text));
            Reply::Smtp { code, enhanced, text, recipients }
        }
    }
}

/// Returns the text after a header's scheme, and the long parts of a list in it: `v1,…`, `Signature=…`.
fn parts(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let credential = value.rsplit(|byte| *byte == b' ').next();
    let listed = value.split(|byte| b" ,;".contains(byte)).flat_map(|part| {
        let named = part.iter().position(|byte| *byte == b'=').map(|at| &part[at + 1..]);
        [Some(part), named].into_iter().flatten()
    });
    let listed = listed.filter(|part| part.len() >= SHORTEST_PART);
    credential.into_iter().chain(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealing::Secret;
    use angarium_domain::transmission::Kv;

    #[tokio::test]
    async fn an_echo_loses_the_secret_and_what_was_made_of_it() {
        let secrets: Secrets =
            [("key".to_owned(), vec![Secret::new("hunter two"), Secret::new("a")])].into_iter().collect();
        let echo = |value: &str| Kv { name: "x-echo".to_owned(), value: value.to_owned() };
        let signature =
            "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4= v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5B";
        let reply = Reply::Http {
            status: 200,
            headers: vec![
                echo("Bearer hunter two"),
                echo("K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="),
                Kv { name: "x-hunter%20two".to_owned(), value: String::new() },
            ],
            body: Bytes::from("got hunter two, hunter%20two and Basic dXNlcjpwYXNzd29yZA== from a"),
            cut: None,
        };
        let sent = ["Basic dXNlcjpwYXNzd29yZA==", signature];
        let Reply::Http { headers, body, .. } = scrubbed(reply, &secrets, &sent).await else { unreachable!() };
        let headers: Vec<_> = headers.iter().map(|header| (header.name.as_str(), header.value.as_str())).collect();
        assert_eq!(headers, [("x-echo", "Bearer ***"), ("x-echo", "***"), ("x-***", "")]);
        assert_eq!(body, "got ***, *** and Basic *** from a");
    }

    #[tokio::test]
    async fn a_large_answer_is_scrubbed_too() {
        let secrets: Secrets = [("key".to_owned(), vec![Secret::new("hunter2")])].into_iter().collect();
        let body = Bytes::from(format!("{}hunter2", "x".repeat(LARGE)));
        let reply = Reply::Http { status: 200, headers: vec![], body, cut: None };
        let Reply::Http { body, .. } = scrubbed(reply, &secrets, &[] as &[&str]).await else { unreachable!() };
        assert!(body.ends_with(b"x***"));
    }

    #[tokio::test]
    async fn an_answer_without_secrets_is_not_copied() {
        let secrets: Secrets = [("key".to_owned(), vec![Secret::new("hunter2")])].into_iter().collect();
        let body = Bytes::from("nothing to see");
        let reply = Reply::Http { status: 200, headers: vec![], body: body.clone(), cut: None };
        let Reply::Http { body: clean, .. } = scrubbed(reply, &secrets, &[] as &[&str]).await else { unreachable!() };
        assert_eq!(clean.as_ptr(), body.as_ptr());
    }
}
