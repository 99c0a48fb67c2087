//! DKIM signatures (RFC 6376, RFC 8463), relaxed for header and body. Pure: the time is an argument.

use std::mem;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use memchr::{memchr, memchr2, memmem};
use ring::{
    digest::{Context, Digest, SHA256, digest},
    rand::SystemRandom,
    signature::{Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

/// The headers that are signed: those that a reader sees, those that define how the body is read, and those that a
/// client calls.
const SIGNED_HEADERS: &[&str] = &[
    "From",
    "To",
    "Cc",
    "Reply-To",
    "Subject",
    "Date",
    "Message-ID",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
];

/// Names on a line of `h=`, and characters on a line of `b=`: with these a line stays below 78 characters.
const NAMES_PER_LINE: usize = 4;
const CHARACTERS_PER_LINE: usize = 72;

/// A private key that signs mail.
pub(super) enum DkimSigningKey {
    Rsa(Box<RsaKeyPair>),
    Ed25519(Ed25519KeyPair),
}

impl DkimSigningKey {
    /// Reads the PEM of an RSA key (PKCS#1 or PKCS#8) or an Ed25519 key (PKCS#8).
    pub(super) fn from_pem(pem: &[u8]) -> Option<Self> {
        let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
        let rsa = match &der {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
            _ => None,
        };
        let ed25519 = || Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).ok();
        rsa.map(|key| Self::Rsa(Box::new(key))).or_else(|| ed25519().map(Self::Ed25519))
    }

    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "rsa-sha256",
            Self::Ed25519(_) => "ed25519-sha256",
        }
    }

    /// Returns `None` if the system gives no random numbers.
    fn sign(&self, data: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), data, &mut signature).ok()?;
                Some(signature)
            }
            // The key signs the hash, not the data (RFC 8463, 3).
            Self::Ed25519(key) => Some(key.sign(digest(&SHA256, data).as_ref()).as_ref().to_vec()),
        }
    }
}

/// Returns the header with the signature of a mail, its line end included; `None` if the key cannot sign.
///
/// `at_s` is the time of the signature, in seconds since 1970.
pub(super) fn signature_header(
    mail: &[u8],
    domain: &str,
    selector: &str,
    key: &DkimSigningKey,
    at_s: i64,
) -> Option<String> {
    let (head, body) = match memmem::find(mail, b"\r\n\r\n") {
        Some(end) => (&mail[..end + 2], &mail[end + 4..]),
        None => (mail, &[][..]),
    };
    let names: Vec<&str> = signed_names().collect();
    let lines: Vec<String> = names.chunks(NAMES_PER_LINE).map(|names| names.join(":")).collect();
    let unsigned = format!(
        " v=1; a={}; c=relaxed/relaxed; d={domain};\r\n\ts={selector}; t={at_s};\r\n\th={};\r\n\tbh={};\r\n\tb=",
        key.algorithm(),
        lines.join(":\r\n\t"),
        BASE64_STANDARD.encode(body_hash(body)),
    );
    let data = [signed_fields(head), relaxed_field(b"DKIM-Signature", unsigned.as_bytes())].concat();
    let signature = BASE64_STANDARD.encode(key.sign(&data)?);
    let mut header = format!("DKIM-Signature:{unsigned}");
    for (number, character) in signature.chars().enumerate() {
        if number > 0 && number.is_multiple_of(CHARACTERS_PER_LINE) {
            header.push_str("\r\n\t");
        }
        header.push(character);
    }
    header.push_str("\r\n");
    Some(header)
}

/// Returns each name twice: once for the header of the mail, and once so that no second header of the name can be put
/// before it (RFC 6376, 8.15).
fn signed_names() -> impl Iterator<Item = &'static str> {
    SIGNED_HEADERS.iter().chain(SIGNED_HEADERS).copied()
}

/// Returns the signed fields in relaxed form, each with its line end. Of several fields of a name the last goes first
/// (RFC 6376, 5.4.2).
fn signed_fields(head: &[u8]) -> Vec<u8> {
    let mut fields = fields(head);
    let mut data = Vec::new();
    for name in signed_names() {
        let named = |(field, _): &(&[u8], &[u8])| field.trim_ascii_end().eq_ignore_ascii_case(name.as_bytes());
        if let Some(at) = fields.iter().rposition(named) {
            let (name, value) = fields.remove(at);
            data.extend(relaxed_field(name, value));
            data.extend(b"\r\n");
        }
    }
    data
}

/// Splits a head into names and values; a value has its folds.
fn fields(head: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut fields = Vec::new();
    let mut start = 0;
    for end in memmem::find_iter(head, b"\r\n") {
        if matches!(head.get(end + 2), Some(b' ' | b'\t')) {
            continue;
        }
        let field = &head[start..end];
        fields.extend(memchr(b':', field).map(|colon| (&field[..colon], &field[colon + 1..])));
        start = end + 2;
    }
    fields
}

/// Returns a field in relaxed form (RFC 6376, 3.4.2), without its line end.
fn relaxed_field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = name.trim_ascii_end().to_ascii_lowercase();
    field.push(b':');
    let words = value.split(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).filter(|word| !word.is_empty());
    for (number, word) in words.enumerate() {
        if number > 0 {
            field.push(b' ');
        }
        field.extend(word);
    }
    field
}

/// Returns the hash of a body in relaxed form (RFC 6376, 3.4.4).
fn body_hash(body: &[u8]) -> Digest {
    let mut hash = Context::new(&SHA256);
    let mut empty_lines = 0;
    for line in body.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let end = line.iter().rposition(|byte| !matches!(byte, b' ' | b'\t')).map_or(0, |last| last + 1);
        if end == 0 {
            empty_lines += 1;
            continue;
        }
        for _ in 0..mem::take(&mut empty_lines) {
            hash.update(b"\r\n");
        }
        update_with_single_spaces(&mut hash, &line[..end]);
        hash.update(b"\r\n");
    }
    hash.finish()
}

/// Adds a line to the hash, each run of spaces and tabs as one space.
fn update_with_single_spaces(hash: &mut Context, mut line: &[u8]) {
    while let Some(space) = memchr2(b' ', b'\t', line) {
        hash.update(&line[..space]);
        hash.update(b" ");
        let word = line[space..].iter().position(|byte| !matches!(byte, b' ' | b'\t'));
        line = word.map_or(&[], |word| &line[space + word..]);
    }
    hash.update(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_bodies_take_the_relaxed_form_of_the_standard() {
        // RFC 6376, 3.4.5.
        let head = b"A: X\r\nB : Y\t\r\n\tZ  \r\n";
        let relaxed: Vec<_> = fields(head).into_iter().map(|(name, value)| relaxed_field(name, value)).collect();
        assert_eq!(relaxed, [b"a:X".to_vec(), b"b:Y Z".to_vec()]);
        let body = b" C \r\nD \t E\r\n\r\n\r\n";
        assert_eq!(body_hash(body).as_ref(), digest(&SHA256, b" C\r\nD E\r\n").as_ref());
        assert_eq!(body_hash(b"").as_ref(), digest(&SHA256, b"").as_ref());
        assert_eq!(body_hash(b"\r\n\r\n").as_ref(), digest(&SHA256, b"").as_ref());
        assert_eq!(body_hash(b"a\r\n\r\nb").as_ref(), digest(&SHA256, b"a\r\n\r\nb\r\n").as_ref());
    }

    #[test]
    fn the_hash_of_the_standards_mail_is_the_standards() {
        // RFC 8463, A.3.
        let body = b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n";
        let hash = BASE64_STANDARD.encode(body_hash(body));
        assert_eq!(hash, "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=");
    }

    #[test]
    fn of_several_fields_of_a_name_the_last_is_signed_first() {
        let head = b"To: a\r\nX-Other: b\r\nto: c\r\nFrom: d\r\n";
        assert_eq!(String::from_utf8_lossy(&signed_fields(head)), "from:d\r\nto:c\r\nto:a\r\n");
    }
}
