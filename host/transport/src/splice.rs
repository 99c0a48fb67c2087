//! Writes bodies and signatures out of segments, secrets and blobs. Pure: nothing here does I/O.

use std::sync::{Arc, OnceLock};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use ring::{hmac, signature::Ed25519KeyPair};
use zeroize::Zeroizing;

use super::fault::{invalid, not_sent};
use crate::sealing::Secret;
use angarium_domain::{
    redaction::Redactor,
    transmission::{Blob, Encoding, Fault, FaultKind, KeyFormat, Segment, Signature, SignatureAlgorithm},
};

/// A connection's secrets: each name with the values that are valid now, the newest first.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    named: Vec<(String, Vec<Secret>)>,
    /// Names of those that are stored and cannot be opened: they are not absent.
    closed: Vec<String>,
    redactor: OnceLock<Arc<Redactor>>,
}

impl Secrets {
    /// Adds a secret; the newest value comes first.
    pub fn insert(&mut self, name: impl Into<String>, newest_first: Vec<Secret>) {
        self.named.push((name.into(), newest_first));
        self.redactor = OnceLock::new();
    }

    /// Marks a stored secret as one that cannot be opened: none of its values is used.
    pub fn close(&mut self, name: impl Into<String>) {
        let name = name.into();
        self.named.retain(|(known, _)| *known != name);
        if !self.closed.contains(&name) {
            self.closed.push(name);
        }
        self.redactor = OnceLock::new();
    }

    /// The names of the stored secrets that cannot be opened.
    #[must_use]
    pub fn closed(&self) -> &[String] {
        &self.closed
    }

    /// The names of all secrets that are stored, those that cannot be opened among them.
    pub fn stored_names(&self) -> impl Iterator<Item = &str> {
        self.names().chain(self.closed.iter().map(String::as_str))
    }

    /// Returns the redactor of every value of every secret.
    #[must_use]
    pub fn redactor(&self) -> &Arc<Redactor> {
        let values = || self.named.iter().flat_map(|(_, values)| values).map(Secret::expose);
        self.redactor.get_or_init(|| Arc::new(Redactor::of(values())))
    }

    /// The names that have a value.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().filter(|(_, values)| !values.is_empty()).map(|(name, _)| name.as_str())
    }

    /// Returns the currently valid values of a secret, the newest first; none if it has no such secret.
    #[must_use]
    pub fn valid(&self, name: &str) -> &[Secret] {
        self.named.iter().find(|(known, _)| known == name).map_or(&[], |(_, values)| values.as_slice())
    }

    /// All values of a secret that are valid now.
    pub(super) fn all(&self, name: &str) -> Result<&[Secret], Fault> {
        if self.closed.iter().any(|closed| closed == name) {
            return Err(not_sent(FaultKind::SecretUnavailable, format!("the secret `{name}` cannot be opened")));
        }
        self.named
            .iter()
            .find(|(known, values)| known == name && !values.is_empty())
            .map(|(_, values)| values.as_slice())
            .ok_or_else(|| {
                let name: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
                invalid(format!(
                    "the connection has no secret `{name}`: set it with `angarium connection rotate-secret`"
                ))
            })
    }

    /// The newest value of a secret.
    pub(super) fn newest(&self, name: &str) -> Result<&Secret, Fault> {
        Ok(&self.all(name)?[0])
    }
}

impl FromIterator<(String, Vec<Secret>)> for Secrets {
    fn from_iter<I: IntoIterator<Item = (String, Vec<Secret>)>>(secrets: I) -> Self {
        Self { named: secrets.into_iter().collect(), closed: Vec::new(), redactor: OnceLock::new() }
    }
}

/// The data that segments refer to.
#[derive(Clone, Copy)]
pub(super) struct Material<'a> {
    pub(super) secrets: &'a Secrets,
    pub(super) blobs: &'a [Blob],
}

impl<'a> Material<'a> {
    /// The blob of an id.
    pub(super) fn blob(&self, id: u32) -> Result<&'a Blob, Fault> {
        self.blobs.iter().find(|blob| blob.id == id).ok_or_else(|| invalid(format!("there is no attachment {id}")))
    }
}

/// The body that segments make.
pub(super) fn body(segments: &[Segment], material: Material<'_>) -> Result<Bytes, Fault> {
    if let [Segment::Blob { id, encoding: Encoding::Raw }] = segments {
        return Ok(material.blob(*id)?.bytes.clone());
    }
    let mut out = Vec::with_capacity(estimate(segments, material));
    visit(segments, None, material, &mut |piece| out.extend_from_slice(piece))?;
    Ok(out.into())
}

fn estimate(segments: &[Segment], material: Material<'_>) -> usize {
    let size = |segment: &Segment| match segment {
        Segment::Text(text) => text.len(),
        Segment::Bytes(bytes) => bytes.len(),
        Segment::Secret { .. } => 64,
        Segment::Blob { id, .. } => material.blob(*id).map_or(0, |blob| blob.bytes.len() / 3 * 4 + 4),
        Segment::Body => 0,
    };
    segments.iter().map(size).sum()
}

/// The signatures of one header: for each, one value per valid key.
pub(super) fn signatures(
    signatures: &[Signature],
    separator: &str,
    body: &[u8],
    material: Material<'_>,
) -> Result<String, Fault> {
    let mut header = String::new();
    for signature in signatures {
        for secret in material.secrets.all(&signature.key)? {
            if !header.is_empty() {
                header.push_str(separator);
            }
            header.push_str(&signature.prefix);
            header.push_str(&sign(signature, secret, body, material)?);
        }
    }
    Ok(header)
}

fn sign(signature: &Signature, secret: &Secret, body: &[u8], material: Material<'_>) -> Result<String, Fault> {
    let key = signing_key(signature, secret)?;
    let value = match signature.algorithm {
        SignatureAlgorithm::HmacSha1 => mac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key, signature, body, material)?,
        SignatureAlgorithm::HmacSha256 => mac(hmac::HMAC_SHA256, &key, signature, body, material)?,
        SignatureAlgorithm::HmacSha512 => mac(hmac::HMAC_SHA512, &key, signature, body, material)?,
        SignatureAlgorithm::Ed25519 => {
            let mut message = Vec::new();
            visit(&signature.message, Some(body), material, &mut |piece| message.extend_from_slice(piece))?;
            ed25519(&signature.key, &key)?.sign(&message).as_ref().to_vec()
        }
    };
    let mut encoded = Vec::new();
    encode(&value, signature.encoding, &mut encoded)?;
    String::from_utf8(encoded).map_err(|_| invalid("a raw signature can't stand in a header: use base64 or hex"))
}

fn mac(
    algorithm: hmac::Algorithm,
    key: &[u8],
    signature: &Signature,
    body: &[u8],
    material: Material<'_>,
) -> Result<Vec<u8>, Fault> {
    let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
    visit(&signature.message, Some(body), material, &mut |piece| context.update(piece))?;
    Ok(context.sign().as_ref().to_vec())
}

/// A seed of 32 bytes, or a seed and its public key.
fn ed25519(name: &str, key: &[u8]) -> Result<Ed25519KeyPair, Fault> {
    let pair = match key.len() {
        32 => Ed25519KeyPair::from_seed_unchecked(key),
        64 => Ed25519KeyPair::from_seed_and_public_key(&key[..32], &key[32..]),
        _ => return Err(invalid(format!("the secret `{name}` is not an Ed25519 key of 32 or 64 bytes"))),
    };
    pair.map_err(|_| invalid(format!("the secret `{name}` is not an Ed25519 key")))
}

/// Returns the bytes of a key in a secret; `None` if it is not in that form.
#[must_use]
pub fn key_bytes(format: KeyFormat, secret: &Secret) -> Option<Zeroizing<Vec<u8>>> {
    let text = secret.expose();
    let trimmed = text.trim_ascii();
    let decoded = match format {
        KeyFormat::Raw => Some(text.to_vec()),
        KeyFormat::Hex => hex::decode(trimmed).ok(),
        KeyFormat::Base64 => STANDARD.decode(trimmed).ok(),
        KeyFormat::StandardWebhooks => {
            let body = [&b"whsec_"[..], b"whsk_", b"whpk_"].iter().find_map(|prefix| trimmed.strip_prefix(*prefix));
            STANDARD.decode(body.unwrap_or(trimmed)).ok()
        }
    };
    decoded.map(Zeroizing::new)
}

fn signing_key(signature: &Signature, secret: &Secret) -> Result<Zeroizing<Vec<u8>>, Fault> {
    key_bytes(signature.key_format, secret).ok_or_else(|| {
        let form = match signature.key_format {
            KeyFormat::Hex => "hexadecimal",
            KeyFormat::StandardWebhooks => "`whsec_` or `whsk_` and base64",
            KeyFormat::Raw | KeyFormat::Base64 => "base64",
        };
        invalid(format!("the secret `{}` is not {form}", signature.key))
    })
}

/// Hands over the pieces in order; text, bytes and the body without a copy.
fn visit(
    segments: &[Segment],
    body: Option<&[u8]>,
    material: Material<'_>,
    each: &mut dyn FnMut(&[u8]),
) -> Result<(), Fault> {
    for segment in segments {
        match segment {
            Segment::Text(text) => each(text.as_bytes()),
            Segment::Bytes(bytes) => each(bytes),
            Segment::Secret { name, encoding } => {
                let mut encoded = Zeroizing::new(Vec::new());
                encode(material.secrets.newest(name)?.expose(), *encoding, &mut encoded)?;
                each(&encoded);
            }
            Segment::Blob { id, encoding: Encoding::Raw } => each(&material.blob(*id)?.bytes),
            Segment::Blob { id, encoding } => {
                let mut encoded = Vec::new();
                encode(&material.blob(*id)?.bytes, *encoding, &mut encoded)?;
                each(&encoded);
            }
            Segment::Body => each(body.ok_or_else(|| invalid("a body can't contain itself"))?),
        }
    }
    Ok(())
}

/// Appends bytes in an encoding. `url` is RFC 3986's percent-encoding of all but unreserved
/// characters; `json_string` is the inside of a JSON string, without its quotes; `base64url` has
/// no padding.
fn encode(bytes: &[u8], encoding: Encoding, out: &mut Vec<u8>) -> Result<(), Fault> {
    match encoding {
        Encoding::Raw => out.extend_from_slice(bytes),
        Encoding::Url => bytes.iter().for_each(|byte| percent_encode(*byte, out)),
        Encoding::JsonString => {
            let text =
                std::str::from_utf8(bytes).map_err(|_| invalid("bytes that are not UTF-8 can't be JSON text"))?;
            let quoted = Zeroizing::new(serde_json::Value::from(text).to_string());
            out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
        }
        Encoding::Base64 => out.extend_from_slice(STANDARD.encode(bytes).as_bytes()),
        Encoding::Base64Url => out.extend_from_slice(URL_SAFE_NO_PAD.encode(bytes).as_bytes()),
        Encoding::Hex => out.extend_from_slice(hex::encode(bytes).as_bytes()),
    }
    Ok(())
}

/// RFC 3986: all but unreserved characters, in capital hexadecimal.
pub(super) fn percent_encode(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        out.push(byte);
    } else {
        out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[&str]) -> Secrets {
        [("key".to_owned(), values.iter().map(|value| Secret::new(*value)).collect())].into_iter().collect()
    }

    fn signed(
        algorithm: SignatureAlgorithm,
        format: KeyFormat,
        keys: &[&str],
        message: Vec<Segment>,
        body: &str,
    ) -> String {
        let signature = Signature {
            algorithm,
            key: "key".to_owned(),
            key_format: format,
            message,
            encoding: Encoding::Hex,
            prefix: String::new(),
        };
        let secrets = secrets(keys);
        let material = Material { secrets: &secrets, blobs: &[] };
        signatures(&[signature], " ", body.as_bytes(), material).unwrap()
    }

    /// RFC 4231 test case 2 and RFC 2202 test case 2.
    #[test]
    fn hmac_matches_the_standards_vectors() {
        let text = "what do ya want for nothing?";
        let with = |algorithm| signed(algorithm, KeyFormat::Raw, &["Jefe"], vec![Segment::Body], text);
        assert_eq!(with(SignatureAlgorithm::HmacSha1), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        assert_eq!(
            with(SignatureAlgorithm::HmacSha256),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(with(SignatureAlgorithm::HmacSha512).starts_with("164b7a7bfcf819e2e395fbe73b56e0a3"));
    }

    /// RFC 8032, 7.1, test 2.
    #[test]
    fn ed25519_matches_the_standards_vector() {
        let seed = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        let value = signed(SignatureAlgorithm::Ed25519, KeyFormat::Hex, &[seed], vec![Segment::Body], "r");
        assert_eq!(
            value,
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
    }

    /// The example of the Standard Webhooks libraries.
    #[test]
    fn standard_webhooks_matches_its_example() {
        let signature = Signature {
            algorithm: SignatureAlgorithm::HmacSha256,
            key: "key".to_owned(),
            key_format: KeyFormat::StandardWebhooks,
            message: vec![Segment::Text("msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.".to_owned()), Segment::Body],
            encoding: Encoding::Base64,
            prefix: "v1,".to_owned(),
        };
        let secrets = secrets(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]);
        let material = Material { secrets: &secrets, blobs: &[] };
        let header = signatures(&[signature], " ", br#"{"test": 2432232314}"#, material).unwrap();
        assert_eq!(header, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_valid_key_signs_the_newest_first() {
        let with =
            |keys: &[&str]| signed(SignatureAlgorithm::HmacSha256, KeyFormat::Raw, keys, vec![Segment::Body], "x");
        assert_eq!(with(&["new", "old"]), format!("{} {}", with(&["new"]), with(&["old"])));
    }

    #[test]
    fn segments_are_spliced_in_order() {
        let secrets = secrets(&["p\"w d"]);
        let blobs = [Blob {
            id: 7,
            name: "a".to_owned(),
            media_type: "text/plain".to_owned(),
            content_id: None,
            bytes: Bytes::from_static(&[251, 255]),
        }];
        let material = Material { secrets: &secrets, blobs: &blobs };
        let secret = |encoding| Segment::Secret { name: "key".to_owned(), encoding };
        let text = |text: &str| Segment::Text(text.to_owned());
        let segments = [
            secret(Encoding::Raw),
            text("|"),
            secret(Encoding::Url),
            text("|"),
            secret(Encoding::JsonString),
            text("|"),
            secret(Encoding::Hex),
            Segment::Bytes(b"|".to_vec()),
            Segment::Blob { id: 7, encoding: Encoding::Base64 },
            text("|"),
            Segment::Blob { id: 7, encoding: Encoding::Base64Url },
        ];
        assert_eq!(body(&segments, material).unwrap(), "p\"w d|p%22w%20d|p\\\"w d|7022772064|+/8=|-_8");
    }

    #[test]
    fn a_secret_that_cannot_be_opened_is_not_an_absent_one() {
        let mut secrets = secrets(&["old value"]);
        secrets.close("key");
        let fault = secrets.newest("key").unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::SecretUnavailable, false));
        assert_eq!(secrets.stored_names().collect::<Vec<_>>(), ["key"]);
        assert!(secrets.valid("key").is_empty(), "no value of it is used");
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_secret_is() {
        let secrets = secrets(&["hunter2-not-hex"]);
        let material = Material { secrets: &secrets, blobs: &[] };
        let missing = Segment::Secret { name: "other".to_owned(), encoding: Encoding::Raw };
        assert!(body(&[missing], material).unwrap_err().detail.contains("no secret `other`"));
        assert!(body(&[Segment::Blob { id: 1, encoding: Encoding::Hex }], material).is_err());
        assert!(body(&[Segment::Body], material).is_err());
        let signature = Signature {
            algorithm: SignatureAlgorithm::HmacSha256,
            key: "key".to_owned(),
            key_format: KeyFormat::Hex,
            message: vec![],
            encoding: Encoding::Hex,
            prefix: String::new(),
        };
        let fault = signatures(&[signature], " ", b"", material).unwrap_err();
        assert!(fault.detail.contains("`key` is not hexadecimal") && !fault.detail.contains("hunter2"));
    }
}
