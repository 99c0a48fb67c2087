//! The contract's optional `callbacks`: its detection in a component, and the conversion to the gateway's own types.
//! Values that no honest guest returns are refused by the field's name; values that the other side may have brought in
//! are made harmless.

use jiff::Timestamp;
use wasmtime::{
    Store,
    component::{Component, InstancePre},
};

use super::{
    super::{
        answer::{self, Invalid, invalid},
        guest::Guest,
    },
    NO_EXT,
};
use angarium_domain::{
    callback::{self as domain, Callback, CallbackContext, CallbackRequest},
    receipt::{Receipt, ReceiptKind},
    transmission::{KeyFormat, Kv},
};

mod bindings {
    wasmtime::component::bindgen!({ path: "../../wit/v1", world: "callback-reader" });
}

use bindings::{CallbackReaderPre, exports::angarium::provider::callbacks as wit};

/// The export that a component may have.
const CALLBACKS: &str = "angarium:provider/callbacks@1.0.0";

const MAX_CHECKS: usize = 16;
const MAX_EVENTS: usize = 1_000;
const MAX_DETAIL: usize = 16 << 10;
const MAX_RECIPIENT: usize = 512;
const MAX_REPLY: usize = 64 << 10;
/// Media types that make no browser run anything.
const REPLY_TYPES: [&str; 5] = ["", "text/plain", "application/json", "text/xml", "application/xml"];

/// The result of a call: the callback as it is read, or the guest's refusal in a sentence.
pub(in super::super) type Parsed = Result<Result<Callback, String>, Invalid>;

/// The part of a component that reads callbacks.
pub(in super::super) struct Reader(CallbackReaderPre<Guest>);

impl Reader {
    /// The reader of a component that exports one, with each type checked.
    pub(super) fn probe(component: &Component, ready: &InstancePre<Guest>) -> wasmtime::Result<Option<Self>> {
        if component.get_export_index(None, CALLBACKS).is_none() {
            return Ok(None);
        }
        CallbackReaderPre::new(ready.clone()).map(|reader| Some(Self(reader)))
    }

    pub(in super::super) fn parse(
        &self,
        store: &mut Store<Guest>,
        ctx: &CallbackContext,
        config: &str,
        request: &CallbackRequest,
    ) -> wasmtime::Result<Parsed> {
        let reader = self.0.instantiate(&mut *store)?;
        let callbacks = reader.angarium_provider_callbacks();
        let answer = callbacks.call_parse_callback(store, &ctx.into(), &config.to_owned(), &request.into())?;
        Ok(match answer {
            Ok(given) => callback(given).map(Ok),
            Err(mut refusal) => {
                answer::clean(&mut refusal, answer::MAX_MESSAGE);
                Ok(Err(refusal))
            }
        })
    }
}

// ── To the guest ──────────────────────────────────────────────────────────────────────────

impl From<&CallbackContext> for wit::Context {
    fn from(ctx: &CallbackContext) -> Self {
        Self { now_ms: ctx.now_ms, secrets: ctx.secrets.clone(), ext: NO_EXT.to_owned() }
    }
}

impl From<&CallbackRequest> for wit::Request {
    fn from(request: &CallbackRequest) -> Self {
        let kv = |header: &Kv| wit::Kv { name: header.name.clone(), value: header.value.clone() };
        Self {
            method: request.method.clone(),
            url: request.url.clone(),
            headers: request.headers.iter().map(kv).collect(),
            body: request.body.to_vec(),
        }
    }
}

// ── From the guest ────────────────────────────────────────────────────────────────────────

fn callback(given: wit::Callback) -> Result<Callback, Invalid> {
    answer::ext("callback", &given.ext)?;
    most("callback.checks", given.checks.len(), MAX_CHECKS)?;
    most("callback.events", given.events.len(), MAX_EVENTS)?;
    let numbered = given.events.into_iter().enumerate();
    let receipts = numbered.map(|(index, event)| receipt(&format!("callback.events[{index}]"), event));
    Ok(Callback {
        checks: given.checks.into_iter().map(Into::into).collect(),
        freshness: given.freshness.map(freshness).transpose()?,
        receipts: receipts.collect::<Result<_, _>>()?,
        reply: reply(given.reply)?,
    })
}

fn most(field: &str, given: usize, most: usize) -> Result<(), Invalid> {
    if given <= most {
        return Ok(());
    }
    Err(invalid(field, format!("must have at most {most} entries (got {given})")))
}

/// The time came with the request, and an invalid one is not fresh; the tolerance is the guest's own.
fn freshness(given: wit::Freshness) -> Result<domain::Freshness, Invalid> {
    let wit::Freshness { signed_at_ms, tolerance_ms } = given;
    if tolerance_ms.is_finite() && tolerance_ms >= 0.0 {
        return Ok(domain::Freshness { signed_at_ms, tolerance_ms });
    }
    let problem = format!("must be a number of milliseconds (got {tolerance_ms})");
    Err(invalid("callback.freshness.tolerance_ms", problem))
}

fn receipt(at: &str, given: wit::Event) -> Result<Receipt, Invalid> {
    let kind = kind(at, &given.kind)?;
    let (mut code, mut message, mut recipient) = (given.code, given.message, given.recipient);
    answer::clean(&mut code, answer::MAX_CODE);
    answer::clean(&mut message, answer::MAX_MESSAGE);
    if let Some(recipient) = &mut recipient {
        answer::clean(recipient, MAX_RECIPIENT);
    }
    Ok(Receipt {
        kind,
        delivery: given.delivery.and_then(|id| id.parse().ok()),
        external_id: given.external_id.filter(|id| answer::is_external_id(id)),
        recipient,
        at: given.at_ms.and_then(time),
        code,
        unified_code: unified_code(at, given.unified_code)?,
        message,
        detail: detail(at, given.detail)?,
    })
}

fn kind(at: &str, text: &str) -> Result<ReceiptKind, Invalid> {
    text.parse().map_err(|_| {
        invalid(format!("{at}.kind"), format!("must be a word such as `delivered` (got {:?})", answer::excerpt(text)))
    })
}

fn unified_code(at: &str, text: String) -> Result<String, Invalid> {
    if text.is_empty() {
        return Ok("ok".to_owned());
    }
    if answer::is_word(&text) {
        return Ok(text);
    }
    let problem = format!("must be a word such as `rejected` (got {:?})", answer::excerpt(&text));
    Err(invalid(format!("{at}.unified_code"), problem))
}

/// A time that is none is left out: the other side may have brought it in.
fn time(ms: f64) -> Option<Timestamp> {
    if !(0.0..=8.0e15).contains(&ms) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked above")]
    let ms = ms as i64;
    Timestamp::from_millisecond(ms).ok()
}

fn detail(at: &str, text: String) -> Result<String, Invalid> {
    let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text).is_ok();
    if is_object && text.len() <= MAX_DETAIL {
        return Ok(text);
    }
    Err(invalid(format!("{at}.detail"), format!("must be a JSON object of at most {MAX_DETAIL} bytes")))
}

fn reply(given: wit::Reply) -> Result<domain::CallbackReply, Invalid> {
    let wit::Reply { status, content_type, body } = given;
    if !matches!(status, 200..=299 | 400..=599) {
        return Err(invalid("callback.reply.status", format!("must be 200 to 299 or 400 to 599 (got {status})")));
    }
    if !REPLY_TYPES.contains(&content_type.as_str()) {
        let problem = format!("must be plain text, JSON or XML (got {:?})", answer::excerpt(&content_type));
        return Err(invalid("callback.reply.content_type", problem));
    }
    most("callback.reply.body", body.len(), MAX_REPLY)?;
    Ok(domain::CallbackReply { status, content_type, body })
}

impl From<wit::Check> for domain::CallbackCheck {
    fn from(given: wit::Check) -> Self {
        match given {
            wit::Check::Hmac(it) => {
                let hash = match it.hash {
                    wit::Hash::Sha1 => domain::Hash::Sha1,
                    wit::Hash::Sha256 => domain::Hash::Sha256,
                    wit::Hash::Sha512 => domain::Hash::Sha512,
                };
                Self::Hmac(hash, claim(it.key, it.key_format, it.message, it.encoding, it.expected))
            }
            wit::Check::Signature(it) => {
                let algorithm = match it.algorithm {
                    wit::PublicKeyAlgorithm::Ed25519 => domain::PublicKeyAlgorithm::Ed25519,
                    wit::PublicKeyAlgorithm::EcdsaP256Sha256 => domain::PublicKeyAlgorithm::EcdsaP256Sha256,
                };
                Self::Signature(algorithm, claim(it.key, it.key_format, it.message, it.encoding, it.expected))
            }
            wit::Check::Token(it) => Self::Token { secret: it.secret, given: it.given },
            wit::Check::Unsigned => Self::Unsigned,
        }
    }
}

fn claim(
    key: String,
    key_format: wit::KeyFormat,
    message: Vec<wit::Segment>,
    encoding: wit::Encoding,
    expected: String,
) -> domain::Claim {
    domain::Claim {
        key,
        key_format: match key_format {
            wit::KeyFormat::Raw => KeyFormat::Raw,
            wit::KeyFormat::Hex => KeyFormat::Hex,
            wit::KeyFormat::Base64 => KeyFormat::Base64,
            wit::KeyFormat::StandardWebhooks => KeyFormat::StandardWebhooks,
        },
        message: message.into_iter().map(Into::into).collect(),
        encoding: match encoding {
            wit::Encoding::Hex => domain::SignatureEncoding::Hex,
            wit::Encoding::Base64 => domain::SignatureEncoding::Base64,
            wit::Encoding::Base64url => domain::SignatureEncoding::Base64Url,
        },
        expected,
    }
}

impl From<wit::Segment> for domain::Signed {
    fn from(given: wit::Segment) -> Self {
        match given {
            wit::Segment::Text(text) => Self::Text(text),
            wit::Segment::Bytes(bytes) => Self::Bytes(bytes),
            wit::Segment::Body => Self::Body,
        }
    }
}
