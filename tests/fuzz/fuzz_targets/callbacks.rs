//! An unsigned request is never believed, and reading it never fails.
#![no_main]

use angarium::engine::callbacks::fuzzing::is_genuine;
use angarium_domain::{
    callback::{
        Callback, CallbackCheck, CallbackReply, Claim, Freshness, Hash, PublicKeyAlgorithm, SignatureEncoding, Signed,
    },
    transmission::KeyFormat,
};
use angarium_provider::{Provider, callback as sdk};
use libfuzzer_sys::fuzz_target;
use sms_twilio::SmsTwilio;

/// Separates two fields.
const BETWEEN: u8 = 0x1f;
const SECRET: &str = "nobody knows this";

fuzz_target!(|bytes: &[u8]| {
    let mut fields = bytes.split(|byte| *byte == BETWEEN);
    let mut next = || fields.next().unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (url, name, value) = (text(next()), text(next()), text(next()));
    let (expected, said, key, body) = (text(next()), text(next()), text(next()), next());
    read_by_a_provider(url, name, value.clone(), body);
    let encodings = [SignatureEncoding::Hex, SignatureEncoding::Base64, SignatureEncoding::Base64Url];
    let formats = [KeyFormat::Raw, KeyFormat::Hex, KeyFormat::Base64, KeyFormat::StandardWebhooks];
    let mut checks = vec![
        CallbackCheck::Unsigned,
        CallbackCheck::Token { secret: "key".to_owned(), given: value.clone() },
        CallbackCheck::Token { secret: key.clone(), given: value.clone() },
    ];
    for (index, key_format) in formats.into_iter().enumerate() {
        let claim = Claim {
            key: "key".to_owned(),
            key_format,
            message: vec![Signed::Text(said.clone()), Signed::Body, Signed::Bytes(key.clone().into_bytes())],
            encoding: encodings[index % encodings.len()],
            expected: expected.clone(),
        };
        checks.extend([Hash::Sha1, Hash::Sha256, Hash::Sha512].map(|hash| CallbackCheck::Hmac(hash, claim.clone())));
        let algorithms = [PublicKeyAlgorithm::Ed25519, PublicKeyAlgorithm::EcdsaP256Sha256];
        checks.extend(algorithms.map(|algorithm| CallbackCheck::Signature(algorithm, claim.clone())));
    }
    let time = value.parse().unwrap_or(0.0);
    let freshness = Some(Freshness { signed_at_ms: time, tolerance_ms: said.parse().unwrap_or(f64::INFINITY) });
    let reply = CallbackReply { status: 204, content_type: String::new(), body: String::new() };
    let callback = Callback { checks, freshness, receipts: Vec::new(), reply };
    if value != SECRET {
        assert!(!is_genuine(&callback, body, "key", SECRET.as_bytes()), "{callback:?}");
    }
});

/// Twilio's parser represents all: the SDK reads forms, headers and URLs.
fn read_by_a_provider(url: String, name: String, value: String, body: &[u8]) {
    let ctx = sdk::Context { now_ms: 0.0, secrets: vec!["auth_token".to_owned()], ext: "{}".to_owned() };
    let config = serde_json::from_str(r#"{"account_sid": "AC0", "from": "+1555"}"#).expect("a config");
    let headers = vec![sdk::Kv { name, value }];
    let request = sdk::Request { method: "POST".to_owned(), url, headers, body: body.to_vec() };
    if let Ok(callback) = SmsTwilio::parse_callback(&ctx, &config, &request) {
        assert!(!callback.checks.is_empty(), "nothing proves it");
    }
}
