//! A guest's texts, without the connection's secrets. A guest never sees a secret, but a server may echo one in a form
//! that the gateway does not search, and the guest may decode it.

use super::{call::GuestFault, guest::cut};
use angarium_domain::{
    callback::Callback,
    provider::{Judgement, Step},
    redaction::Redactor,
};

/// A text is cut here before it is searched, in bytes: well above its stored length, so that no part of a secret is
/// left at the end.
const MAX_TEXT: usize = 16 << 10;

pub(super) fn step(step: &mut Step, redactor: &Redactor) {
    match step {
        Step::Done(judgements) => judgements.iter_mut().for_each(|it| judgement(it, redactor)),
        Step::Send { .. } | Step::Wait { .. } => {}
    }
}

pub(super) fn judgement(judgement: &mut Judgement, redactor: &Redactor) {
    let Judgement { code, unified_code, message, external_id, .. } = judgement;
    [Some(code), Some(unified_code), Some(message), external_id.as_mut()]
        .into_iter()
        .flatten()
        .for_each(|said| text(said, redactor));
}

/// Redacts a callback. Its checks stay: their values are compared, and go nowhere.
pub(super) fn callback(callback: &mut Callback, redactor: &Redactor) {
    for receipt in &mut callback.receipts {
        let said = [&mut receipt.code, &mut receipt.message, &mut receipt.detail];
        said.into_iter()
            .chain(&mut receipt.external_id)
            .chain(&mut receipt.recipient)
            .for_each(|it| redactor.redact(it));
        // A secret may have been a number.
        if serde_json::from_str::<serde::de::IgnoredAny>(&receipt.detail).is_err() {
            "{}".clone_into(&mut receipt.detail);
        }
    }
    redactor.redact(&mut callback.reply.body);
    redactor.redact(&mut callback.reply.content_type);
}

pub(super) fn fault(mut fault: GuestFault, redactor: &Redactor) -> GuestFault {
    redactor.redact(&mut fault.detail);
    fault
}

/// A text that is cut anyway.
pub(super) fn text(said: &mut String, redactor: &Redactor) {
    if !redactor.is_empty() {
        cut(said, MAX_TEXT);
        redactor.redact(said);
    }
}
