//! Writes a mail in MIME form, and signs it (DKIM). Pure: nothing here does I/O.
//!
//! No text of a client becomes a header of its own: line breaks in a subject or a name turn into
//! spaces, and anywhere else they are refused. Bodies are quoted-printable or base64, so that no
//! line of theirs means anything to an SMTP server.

use super::{
    dkim::{DkimSigningKey, signature_header},
    fault::invalid,
    splice::Material,
};
use crate::sealing::Secret;
use angarium_domain::{
    dns::is_dns_name,
    media_type::MediaType,
    message::address,
    transmission::{Blob, Dkim, Fault, Kv, Mail, Mailbox},
};
use mail_builder::{
    MessageBuilder,
    headers::{address::Address, content_type::ContentType, date::Date, raw::Raw, text::Text},
    mime::{BodyPart, MimePart},
};

/// RFC 5322, 2.1.1, less the line's end and some room for folding.
const LONGEST_WORD: usize = 900;

/// Headers that the host writes from the mail's own fields, or that belong to other hosts.
const RESERVED_HEADERS: &[&str] = &[
    "from",
    "sender",
    "to",
    "cc",
    "bcc",
    "reply-to",
    "subject",
    "date",
    "message-id",
    "mime-version",
    "return-path",
    "received",
    "dkim-signature",
];

/// The mail as it leaves: CRLF at the end of each line, no other control character that matters,
/// US-ASCII but for addresses that are not.
pub(super) fn write(mail: &Mail, material: Material<'_>) -> Result<Vec<u8>, Fault> {
    let mut builder = MessageBuilder::new()
        .from(address_of(&mail.sender)?)
        .date(Date::new((mail.date_ms / 1000.0) as i64))
        .message_id(word(&mail.message_id, "message id")?.to_owned())
        .subject(one_line(&mail.subject))
        .body(structure(mail, material)?);
    for (name, list) in [("To", &mail.to), ("Cc", &mail.cc), ("Reply-To", &mail.reply_to)] {
        if !list.is_empty() {
            let addresses = list.iter().map(address_of).collect::<Result<Vec<_>, _>>()?;
            builder = builder.header(name, Address::new_list(addresses));
        }
    }
    for header in &mail.headers {
        builder = add_header(builder, header)?;
    }
    let written = builder.write_to_vec().map_err(|error| invalid(format!("the mail can't be written: {error}")))?;
    Ok(with_canonical_lines(&written))
}

/// Puts a DKIM signature before a mail; `at_s` is its time, in seconds since 1970.
pub(super) fn signed(mail: Vec<u8>, dkim: &Dkim, key: &Secret, at_s: i64) -> Result<Vec<u8>, Fault> {
    if !is_dns_name(&dkim.domain) || !is_dns_name(&dkim.selector) {
        return Err(invalid("the domain and the selector of a DKIM signature must be DNS names"));
    }
    let key_name = &dkim.key;
    let key = DkimSigningKey::from_pem(key.expose()).ok_or_else(|| {
        invalid(format!("the secret `{key_name}` is no DKIM key: it must be PEM of an RSA or Ed25519 key"))
    })?;
    let header = signature_header(&mail, &dkim.domain, &dkim.selector, &key, at_s)
        .ok_or_else(|| invalid(format!("the mail can't be signed with the secret `{key_name}`")))?;
    Ok([header.as_bytes(), &mail].concat())
}

/// mixed( alternative( text, related( html, inline… ) ), attachment… ), each level only if needed.
fn structure<'a>(mail: &'a Mail, material: Material<'a>) -> Result<MimePart<'a>, Fault> {
    let blobs = mail.blobs.iter().map(|id| material.blob(*id)).collect::<Result<Vec<_>, _>>()?;
    let is_inline = |blob: &&Blob| blob.content_id.is_some() && mail.html.is_some();
    let (inline, attached): (Vec<&Blob>, Vec<&Blob>) = blobs.into_iter().partition(is_inline);

    let text = mail.text.as_deref().map(|text| text_part("text/plain", text));
    let html = match &mail.html {
        Some(html) => Some(grouped("multipart/related", text_part("text/html", html), parts(&inline, inline_part)?)),
        None => None,
    };
    let body = match (text, html) {
        (Some(text), Some(html)) => MimePart::new("multipart/alternative", vec![text, html]),
        (Some(part), None) | (None, Some(part)) => part,
        (None, None) => text_part("text/plain", ""),
    };
    Ok(grouped("multipart/mixed", body, parts(&attached, attached_part)?))
}

fn parts<'a>(
    blobs: &[&'a Blob],
    part: fn(&'a Blob) -> Result<MimePart<'a>, Fault>,
) -> Result<Vec<MimePart<'a>>, Fault> {
    blobs.iter().map(|blob| part(blob)).collect()
}

fn grouped<'a>(kind: &'static str, first: MimePart<'a>, rest: Vec<MimePart<'a>>) -> MimePart<'a> {
    if rest.is_empty() {
        return first;
    }
    let mut all = vec![first];
    all.extend(rest);
    MimePart::new(kind, all)
}

fn text_part<'a>(kind: &'static str, text: &str) -> MimePart<'a> {
    MimePart::new(kind, BodyPart::Text(quoted_printable(text).into())).transfer_encoding("quoted-printable")
}

fn inline_part(blob: &Blob) -> Result<MimePart<'_>, Fault> {
    let id = word(blob.content_id.as_deref().unwrap_or_default(), "content id")?;
    let disposition = ContentType::new("inline").attribute("filename", one_line(&blob.name));
    Ok(binary_part(blob)?.header("Content-Disposition", disposition).cid(id.to_owned()))
}

fn attached_part(blob: &Blob) -> Result<MimePart<'_>, Fault> {
    let disposition = ContentType::new("attachment").attribute("filename", one_line(&blob.name));
    let part = binary_part(blob)?.header("Content-Disposition", disposition);
    match &blob.content_id {
        Some(id) => Ok(part.cid(word(id, "content id")?.to_owned())),
        None => Ok(part),
    }
}

/// Base64, so that the bytes arrive as they are; but for a mail or a part with parts, which may not be encoded
/// (RFC 2046, 5.1 and 5.2).
fn binary_part(blob: &Blob) -> Result<MimePart<'_>, Fault> {
    let media_type = MediaType::parse(&blob.media_type)
        .ok_or_else(|| invalid(format!("`{}` is not a media type", blob.media_type.escape_debug())))?;
    if !media_type.is_composite() {
        let encoded = BodyPart::Binary(base64_lines(&blob.bytes).into());
        return Ok(MimePart::new(media_type.to_string(), encoded).transfer_encoding("base64"));
    }
    if !media_type.may_stand_unencoded(&blob.bytes) {
        return Err(invalid(format!(
            "the attachment `{}` of the type `{media_type}` is not US-ASCII in short lines",
            blob.name
        )));
    }
    let content = BodyPart::Binary(with_canonical_lines(&blob.bytes).into());
    Ok(MimePart::new(media_type.to_string(), content).transfer_encoding("7bit"))
}

fn add_header<'a>(builder: MessageBuilder<'a>, header: &'a Kv) -> Result<MessageBuilder<'a>, Fault> {
    let Kv { name, value } = header;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
    let lower = name.to_ascii_lowercase();
    if !is_name {
        return Err(invalid(format!("`{}` is not a header name", name.escape_debug())));
    }
    if RESERVED_HEADERS.contains(&lower.as_str()) || lower.starts_with("content-") {
        return Err(invalid(format!("the header `{name}` is the gateway's to write")));
    }
    if value.chars().any(char::is_control) {
        return Err(invalid(format!("the value of the header `{name}` holds a control character")));
    }
    if value.split(' ').any(|word| word.len() > LONGEST_WORD) {
        return Err(invalid(format!("the value of the header `{name}` holds a word longer than a line may be")));
    }
    // Encoded words would break the URLs of List-Unsubscribe and the like: only text that is not
    // ASCII needs them.
    Ok(if value.is_ascii() {
        builder.header(name.as_str(), Raw::new(value.as_str()))
    } else {
        builder.header(name.as_str(), Text::new(value.as_str()))
    })
}

fn address_of(mailbox: &Mailbox) -> Result<Address<'static>, Fault> {
    let name = mailbox.name.as_deref().map(one_line).filter(|name| !name.trim().is_empty());
    Ok(Address::new_address(name, self::mailbox(&mailbox.value)?))
}

/// Returns a mail address in the form of headers and SMTP: the domain in ASCII (IDNA).
pub(super) fn mailbox(text: &str) -> Result<String, Fault> {
    let refused = || invalid(format!("`{}` is not a mail address", text.escape_debug()));
    let (local, domain) = text.rsplit_once('@').filter(|_| address::is_mailbox(text)).ok_or_else(refused)?;
    if domain.is_ascii() {
        return Ok(text.to_owned());
    }
    let domain = address::ascii_domain(domain).ok_or_else(refused)?;
    Ok(format!("{local}@{domain}"))
}

/// A text that goes between angle brackets.
fn word<'a>(text: &'a str, what: &str) -> Result<&'a str, Fault> {
    let fits = |c: char| c.is_ascii_graphic() && !"<>".contains(c);
    if text.is_empty() || text.len() > LONGEST_WORD || !text.chars().all(fits) {
        return Err(invalid(format!("`{}` is not a {what}", text.escape_debug())));
    }
    Ok(text)
}

/// Control characters become spaces.
fn one_line(text: &str) -> String {
    text.split(char::is_control).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// RFC 2045, 6.7. A dot that begins a line is encoded too, since it means something to SMTP.
fn quoted_printable(text: &str) -> String {
    const LINE: usize = 76;
    let lines = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for (index, line) in lines.split('\n').enumerate() {
        if index > 0 {
            out.push_str("\r\n");
        }
        let mut column = 0;
        for (at, byte) in line.bytes().enumerate() {
            let at_end = at + 1 == line.len();
            let plain = match byte {
                b' ' | b'\t' => !at_end,
                b'.' => column > 0,
                b'=' => false,
                _ => byte.is_ascii_graphic(),
            };
            let width = if plain { 1 } else { 3 };
            if column + width > LINE - usize::from(!at_end) {
                out.push_str("=\r\n");
                column = 0;
            }
            // A soft break may have brought a dot to the line's beginning.
            if plain && !(byte == b'.' && column == 0) {
                out.push(char::from(byte));
                column += 1;
            } else {
                out.push_str(&format!("={byte:02X}"));
                column += 3;
            }
        }
    }
    out
}

fn base64_lines(bytes: &[u8]) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut out = Vec::with_capacity(bytes.len() / 57 * 78 + 80);
    for chunk in bytes.chunks(57) {
        out.extend_from_slice(STANDARD.encode(chunk).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Every line ends in CRLF, the last one too. The parts are written so already; this is what
/// makes it certain.
fn with_canonical_lines(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    let mut previous = 0;
    for byte in text {
        match byte {
            b'\r' => out.extend_from_slice(b"\r\n"),
            b'\n' if previous == b'\r' => {}
            b'\n' => out.extend_from_slice(b"\r\n"),
            _ => out.push(*byte),
        }
        previous = *byte;
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::splice::Secrets;

    fn mailbox_of(value: &str) -> Mailbox {
        Mailbox { value: value.to_owned(), name: None }
    }

    fn mail() -> Mail {
        Mail {
            sender: Mailbox { value: "shop@example.org".to_owned(), name: Some("Blåbär & Co".to_owned()) },
            reply_to: vec![],
            to: vec![mailbox_of("ann@example.org")],
            cc: vec![],
            subject: "Hello".to_owned(),
            message_id: "dlv_1@example.org".to_owned(),
            date_ms: 1_700_000_000_000.0,
            text: Some("Hi Ann".to_owned()),
            html: None,
            headers: vec![],
            blobs: vec![],
        }
    }

    fn written(mail: &Mail, blobs: &[Blob]) -> Result<String, Fault> {
        let secrets = Secrets::default();
        write(mail, Material { secrets: &secrets, blobs }).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn header_lines(text: &str) -> Vec<&str> {
        text.split("\r\n\r\n").next().unwrap().split("\r\n").collect()
    }

    #[test]
    fn a_plain_mail_is_plain() {
        let text = written(&mail(), &[]).unwrap();
        for line in [
            "To: <ann@example.org>",
            "Subject: Hello",
            "Message-ID: <dlv_1@example.org>",
            "Date: Tue, 14 Nov 2023 22:13:20 +0000",
            "MIME-Version: 1.0",
            "Content-Transfer-Encoding: quoted-printable",
        ] {
            assert!(header_lines(&text).contains(&line), "{line} is not in\n{text}");
        }
        assert!(text.is_ascii() && text.ends_with("\r\n\r\nHi Ann\r\n"), "{text}");
    }

    #[test]
    fn no_field_becomes_a_header_of_its_own() {
        let mut mail = mail();
        mail.subject = "x\r\nBcc: v@example.org".to_owned();
        mail.sender.name = Some("Ann\r\nBcc: v@example.org".to_owned());
        let text = written(&mail, &[]).unwrap();
        assert!(header_lines(&text).contains(&"Subject: x Bcc: v@example.org"), "{text}");
        assert!(!header_lines(&text).iter().any(|line| line.starts_with("Bcc")), "{text}");
    }

    #[test]
    fn a_name_with_characters_of_meaning_is_one_name() {
        let named = |name: &str| {
            let sender = Mailbox { value: "a@example.org".to_owned(), name: Some(name.to_owned()) };
            let text = written(&Mail { sender, ..mail() }, &[]).unwrap();
            header_lines(&text).into_iter().find_map(|line| line.strip_prefix("From: ")).unwrap().to_owned()
        };
        assert_eq!(named("Kock, Arne"), "\"Kock, Arne\" <a@example.org>");
        assert_eq!(named("Support (Billing)"), "\"Support (Billing)\" <a@example.org>");
        assert_eq!(named("a\"b\\c"), "\"a\\\"b\\\\c\" <a@example.org>");
        assert_eq!(named("Eve <eve@example.org>"), "\"Eve <eve@example.org>\" <a@example.org>");
    }

    #[test]
    fn addresses_and_headers_with_line_breaks_are_refused() {
        let header = |name: &str, value: &str| Mail {
            headers: vec![Kv { name: name.to_owned(), value: value.to_owned() }],
            ..mail()
        };
        let bad = [
            Mail { to: vec![mailbox_of("a@example.org\r\nBcc: v@example.org")], ..mail() },
            Mail { to: vec![mailbox_of("a@example.org>\nRCPT TO:<v@example.org")], ..mail() },
            Mail { cc: vec![mailbox_of("a@example.org, v@example.org")], ..mail() },
            Mail { sender: mailbox_of("nobody"), ..mail() },
            Mail { message_id: "a\r\nBcc: v".to_owned(), ..mail() },
            header("X-A", "b\r\nBcc: v@example.org"),
            header("X-A\r\nBcc", "v@example.org"),
            header("X-A: b", "c"),
            header("Bcc", "v@example.org"),
            header("Content-Type", "text/html"),
            header("X-Long", &"x".repeat(1000)),
        ];
        for mail in bad {
            assert!(written(&mail, &[]).is_err(), "{mail:?}");
        }
    }

    #[test]
    fn long_structured_headers_stay_whole() {
        let url = format!("<https://example.org/unsubscribe/{}>", "a".repeat(120));
        let mail = Mail {
            headers: vec![
                Kv { name: "List-Unsubscribe".to_owned(), value: url.clone() },
                Kv { name: "X-Name".to_owned(), value: "Blåbär".to_owned() },
            ],
            ..mail()
        };
        let text = written(&mail, &[]).unwrap();
        assert!(text.contains(&url) && text.contains("X-Name: =?utf-8?"), "{text}");
    }

    #[test]
    fn parts_nest_only_as_deep_as_needed() {
        let blob = |id, content_id: Option<&str>| Blob {
            id,
            name: format!("rése {id}.png"),
            media_type: "image/png".to_owned(),
            content_id: content_id.map(str::to_owned),
            bytes: Bytes::from(vec![id as u8; 100]),
        };
        let blobs = [blob(1, Some("logo")), blob(2, None)];
        let full = Mail { html: Some("<img src=cid:logo>".to_owned()), blobs: vec![1, 2], ..mail() };
        let text = written(&full, &blobs).unwrap();
        let order: Vec<_> = [
            "multipart/mixed",
            "multipart/alternative",
            "text/plain",
            "multipart/related",
            "text/html",
            "Content-ID: <logo>",
            "attachment",
        ]
        .iter()
        .map(|part| text.find(part).unwrap_or_else(|| panic!("{part} is not in\n{text}")))
        .collect();
        assert!(order.is_sorted(), "{text}");
        let lone = written(&Mail { blobs: vec![2], ..mail() }, &blobs).unwrap();
        assert!(lone.contains("multipart/mixed") && !lone.contains("alternative"));
        assert!(written(&Mail { blobs: vec![3], ..mail() }, &blobs).is_err());
    }

    #[test]
    fn bodies_hold_nothing_that_smtp_reads() {
        for smuggled in ["a\n.\nMAIL FROM:<x>", "a\r.\rMAIL", "a\n.\r\nMAIL", "a\r\n.\r\nMAIL", ".", "\r\n.\r\n"] {
            let text = written(&Mail { text: Some(smuggled.to_owned()), ..mail() }, &[]).unwrap();
            assert!(!text.contains("\r\n."), "{text:?}");
            assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{text:?}");
            assert_eq!(text.matches('\r').count(), text.matches("\r\n").count(), "{text:?}");
        }
    }

    #[test]
    fn quoted_printable_lines_are_short_and_reversible() {
        let text = format!("{}.{} end \n\tå=b", "x".repeat(75), "é".repeat(60));
        let encoded = quoted_printable(&text);
        assert!(encoded.split("\r\n").all(|line| line.len() <= 76), "{encoded}");
        let joined = encoded.replace("=\r\n", "");
        assert!(joined.contains(" end=20\r\n\t=C3=A5=3Db"), "{joined}");
        assert_eq!(quoted_printable("a\r\nb\rc"), "a\r\nb\r\nc");
    }

    #[test]
    fn media_types_keep_their_parameters_and_inject_nothing() {
        let with = |media_type: &str, bytes: &'static [u8]| {
            let blob = Blob {
                id: 1,
                name: "f".to_owned(),
                media_type: media_type.to_owned(),
                content_id: None,
                bytes: Bytes::from_static(bytes),
            };
            written(&Mail { blobs: vec![1], ..mail() }, &[blob])
        };
        let invitation = with("text/calendar; method=REQUEST; charset=UTF-8", b"BEGIN:VCALENDAR").unwrap();
        assert!(
            invitation.contains("\r\nContent-Type: text/calendar; method=REQUEST; charset=UTF-8\r\n"),
            "{invitation}"
        );
        let forwarded = with("message/rfc822", b"Subject: inner\n\n.\nHi\r").unwrap();
        assert!(forwarded.contains("\r\nContent-Type: message/rfc822\r\n"), "{forwarded}");
        assert!(forwarded.contains("\r\nContent-Transfer-Encoding: 7bit\r\n"), "{forwarded}");
        assert!(forwarded.contains("\r\n\r\nSubject: inner\r\n\r\n.\r\nHi\r\n"), "{forwarded}");
        for (media_type, bytes) in [
            ("message/rfc822", "Subject: \u{e9}".as_bytes()),
            ("multipart/mixed", b"--x--"),
            ("text/plain\r\nX: y", b""),
            ("text", b""),
        ] {
            assert!(with(media_type, bytes).is_err(), "{media_type}");
        }
    }

    #[test]
    fn international_domains_become_ascii() {
        assert_eq!(mailbox("ann@bücher.example").unwrap(), "ann@xn--bcher-kva.example");
        assert_eq!(mailbox("jürgen@example.org").unwrap(), "jürgen@example.org");
    }
}
