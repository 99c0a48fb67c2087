//! Whether a callback is the service's own. Pure: keys, clock and the request go in.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use ring::{hmac, signature};

use angarium_domain::callback::{
    Callback, CallbackCheck, Claim, Freshness, Hash, PublicKeyAlgorithm, SignatureEncoding, Signed,
};
use angarium_transport::{Secrets, key_bytes};

/// The longest age of an accepted signature, whatever the provider tolerates.
const LONGEST_TOLERANCE_MS: f64 = 24.0 * 3_600_000.0;

/// The evidence that the checks examine.
#[derive(Clone, Copy)]
pub(super) struct CallbackEvidence<'a> {
    pub body: &'a [u8],
    pub secrets: &'a Secrets,
    /// Whether the provider declares that its service signs nothing.
    pub may_be_unsigned: bool,
    pub now: Timestamp,
}

/// Whether one of the checks passes, and it was not signed too long ago.
pub(super) fn is_genuine(callback: &Callback, evidence: &CallbackEvidence<'_>) -> bool {
    callback.freshness.is_none_or(|freshness| is_fresh(freshness, evidence.now))
        && callback.checks.iter().any(|check| passes(check, evidence))
}

fn is_fresh(freshness: Freshness, now: Timestamp) -> bool {
    let distance = (now.as_millisecond() as f64 - freshness.signed_at_ms).abs();
    // False for a value that is no number.
    distance <= freshness.tolerance_ms.min(LONGEST_TOLERANCE_MS)
}

fn passes(check: &CallbackCheck, evidence: &CallbackEvidence<'_>) -> bool {
    match check {
        CallbackCheck::Hmac(hash, claim) => verifies(claim, evidence, |key, message, tag| {
            hmac::verify(&hmac::Key::new(algorithm(*hash), key), message, tag).is_ok()
        }),
        CallbackCheck::Signature(algorithm, claim) => {
            verifies(claim, evidence, |key, message, signature| verifies_publicly(*algorithm, key, message, signature))
        }
        CallbackCheck::Token { secret, given } => {
            !given.is_empty() && evidence.secrets.valid(secret).iter().any(|known| is_same(known.expose(), given))
        }
        CallbackCheck::Unsigned => evidence.may_be_unsigned,
    }
}

/// Any value of the key that is valid now will do. An empty key proves nothing.
fn verifies(claim: &Claim, evidence: &CallbackEvidence<'_>, verify: impl Fn(&[u8], &[u8], &[u8]) -> bool) -> bool {
    let Some(expected) = decoded(&claim.expected, claim.encoding) else { return false };
    let mut message = Vec::new();
    for piece in &claim.message {
        message.extend_from_slice(match piece {
            Signed::Text(text) => text.as_bytes(),
            Signed::Bytes(bytes) => bytes,
            Signed::Body => evidence.body,
        });
    }
    let mut keys = evidence.secrets.valid(&claim.key).iter().filter_map(|secret| key_bytes(claim.key_format, secret));
    keys.any(|key| !key.is_empty() && verify(&key, &message, &expected))
}

const fn algorithm(hash: Hash) -> hmac::Algorithm {
    match hash {
        Hash::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha256 => hmac::HMAC_SHA256,
        Hash::Sha512 => hmac::HMAC_SHA512,
    }
}

/// The key is plain, or the last bytes of a `SubjectPublicKeyInfo` (RFC 5280).
fn verifies_publicly(algorithm: PublicKeyAlgorithm, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    match algorithm {
        PublicKeyAlgorithm::Ed25519 => {
            let key = if key.len() == 44 { &key[12..] } else { key };
            signature::UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
        }
        PublicKeyAlgorithm::EcdsaP256Sha256 => {
            let key = if key.len() == 91 { &key[26..] } else { key };
            signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, key)
                .verify(message, signature)
                .is_ok()
        }
    }
}

/// Compares by MACs, whose comparison takes the same time wherever they differ.
fn is_same(known: &[u8], given: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"angarium callback token");
    hmac::verify(&key, given.as_bytes(), hmac::sign(&key, known).as_ref()).is_ok()
}

fn decoded(text: &str, encoding: SignatureEncoding) -> Option<Vec<u8>> {
    let text = text.trim();
    match encoding {
        SignatureEncoding::Hex => hex::decode(text).ok(),
        SignatureEncoding::Base64 => STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok(),
        SignatureEncoding::Base64Url => URL_SAFE.decode(text).or_else(|_| URL_SAFE_NO_PAD.decode(text)).ok(),
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;
    use angarium_domain::{callback::CallbackReply, transmission::KeyFormat};
    use angarium_transport::sealing::Secret;

    const BODY: &[u8] = b"what do ya want for nothing?";
    /// RFC 4231, test case 2: the key is `Jefe`.
    const TAG: &str = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";

    fn secrets(values: &[&[u8]]) -> Secrets {
        [("key".to_owned(), values.iter().map(|value| Secret::new(*value)).collect())].into_iter().collect()
    }

    fn claim(expected: &str, encoding: SignatureEncoding, key_format: KeyFormat) -> Claim {
        let message = vec![Signed::Text("what do ya ".to_owned()), Signed::Bytes(b"want for nothing?".to_vec())];
        Claim { key: "key".to_owned(), key_format, message, encoding, expected: expected.to_owned() }
    }

    fn hmac_check(expected: &str) -> CallbackCheck {
        CallbackCheck::Hmac(Hash::Sha256, claim(expected, SignatureEncoding::Hex, KeyFormat::Raw))
    }

    fn holds(
        checks: Vec<CallbackCheck>,
        freshness: Option<Freshness>,
        secrets: &Secrets,
        may_be_unsigned: bool,
    ) -> bool {
        let reply = CallbackReply { status: 200, content_type: String::new(), body: String::new() };
        let callback = Callback { checks, freshness, receipts: Vec::new(), reply };
        let now = Timestamp::from_millisecond(1_000_000).unwrap();
        is_genuine(&callback, &CallbackEvidence { body: BODY, secrets, may_be_unsigned, now })
    }

    #[test]
    fn an_hmac_passes_with_any_value_that_is_valid_now() {
        let rotated = secrets(&[b"new", b"Jefe"]);
        assert!(holds(vec![hmac_check(TAG)], None, &rotated, false));
        assert!(
            holds(vec![hmac_check("00"), hmac_check(TAG)], None, &rotated, false),
            "one check of several is enough"
        );
        assert!(!holds(vec![hmac_check(TAG)], None, &secrets(&[b"new"]), false), "the old value after its overlap");
        for wrong in ["", "zz", &TAG[..62], &TAG.replace('5', "6")] {
            assert!(!holds(vec![hmac_check(wrong)], None, &rotated, true), "{wrong:?}");
        }
    }

    #[test]
    fn an_empty_or_missing_key_proves_nothing() {
        let tag = hex::encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b""), BODY));
        assert!(!holds(vec![hmac_check(&tag)], None, &secrets(&[b""]), false));
        assert!(!holds(vec![hmac_check(&tag)], None, &Secrets::default(), false));
    }

    #[test]
    fn a_public_key_passes_bare_and_wrapped() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let public = pair.public_key().as_ref();
        let wrapped = [&hex::decode("302a300506032b6570032100").unwrap(), public].concat();
        let signed = STANDARD.encode(pair.sign(BODY).as_ref());
        let check = |expected: &str| {
            vec![CallbackCheck::Signature(
                PublicKeyAlgorithm::Ed25519,
                claim(expected, SignatureEncoding::Base64, KeyFormat::Base64),
            )]
        };
        for key in [public, &wrapped] {
            assert!(holds(check(&signed), None, &secrets(&[STANDARD.encode(key).as_bytes()]), false));
        }
        assert!(!holds(check(&signed), None, &secrets(&[STANDARD.encode([1; 32]).as_bytes()]), false));
    }

    #[test]
    fn a_token_is_the_whole_secret() {
        let check = |given: &str| vec![CallbackCheck::Token { secret: "key".to_owned(), given: given.to_owned() }];
        let known = secrets(&[b"open sesame"]);
        assert!(holds(check("open sesame"), None, &known, false));
        for wrong in ["", "open sesam", "open sesame ", "OPEN SESAME"] {
            assert!(!holds(check(wrong), None, &known, false), "{wrong:?}");
        }
        assert!(!holds(check(""), None, &secrets(&[b""]), false));
    }

    #[test]
    fn nothing_signed_is_believed_only_of_who_signs_nothing() {
        assert!(holds(vec![CallbackCheck::Unsigned], None, &Secrets::default(), true));
        assert!(!holds(vec![CallbackCheck::Unsigned], None, &Secrets::default(), false));
        assert!(!holds(Vec::new(), None, &Secrets::default(), true), "no check at all");
    }

    #[test]
    fn what_was_signed_long_ago_is_a_replay() {
        let signed = |at, tolerance| Some(Freshness { signed_at_ms: at, tolerance_ms: tolerance });
        let known = secrets(&[b"Jefe"]);
        let believed = |freshness| holds(vec![hmac_check(TAG)], freshness, &known, false);
        assert!(believed(signed(700_000.0, 300_000.0)) && believed(signed(1_300_000.0, 300_000.0)));
        assert!(!believed(signed(699_999.0, 300_000.0)) && !believed(signed(1_300_001.0, 300_000.0)));
        assert!(!believed(signed(f64::NAN, 300_000.0)) && !believed(signed(-1.0e12, f64::MAX)));
    }
}
