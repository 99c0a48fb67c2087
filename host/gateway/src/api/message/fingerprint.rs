//! The digest behind an idempotency key: the same for the same message, however its JSON is written.
//!
//! The members of a message have one order here, and the client's own objects their canonical form (RFC 8785). Only a
//! payload counts byte for byte, since the signature that its receiver checks covers its bytes.

use std::mem;

use serde_json::{Number, Value, value::RawValue};
use sha2::{Digest, Sha256};

use super::{
    channels::NewLeg,
    new::{MessageRequest, NewContent, Recipient},
};
use angarium_domain::{
    legs::{LegMode, Wants},
    message::{Idempotency, Priority},
};

/// Returns the digest of a message under a key. The message is unchanged except for spelled-out defaults.
pub(super) fn idempotency(key: &str, message: &mut MessageRequest) -> Idempotency {
    let mut former = vec![digest(message)];
    message.leave_out_defaults();
    let written = message.objects().map(Option::take);
    for (place, raw) in message.objects().into_iter().zip(&written) {
        *place = raw.as_deref().map(canonical);
    }
    former.push(digest(message));
    let fingerprint = digest_without_list(message);
    for (place, raw) in message.objects().into_iter().zip(written) {
        *place = raw;
    }
    former.dedup();
    former.retain(|former| *former != fingerprint);
    Idempotency { key: key.to_owned(), fingerprint, former }
}

/// Returns the digest of a message; a list of one channel counts as that channel alone.
fn digest_without_list(message: &mut MessageRequest) -> [u8; 32] {
    if !message.is_one_channel_listed() {
        return digest(message);
    }
    let mut list = mem::take(&mut message.channels);
    list.iter_mut().for_each(|leg| leg.swap_with(message));
    let digest = digest(message);
    list.iter_mut().for_each(|leg| leg.swap_with(message));
    message.channels = list;
    digest
}

fn digest(message: &MessageRequest) -> [u8; 32] {
    // A value that was read as JSON can be written as JSON.
    Sha256::digest(serde_json::to_vec(message).unwrap_or_default()).into()
}

/// Returns an object in one form for all ways to write it. An object that nests too deeply to be read stays as it is.
fn canonical(raw: &RawValue) -> Box<RawValue> {
    let read = serde_json::from_str::<Value>(raw.get());
    let written = read.and_then(|mut value| {
        plain_numbers(&mut value);
        serde_json::value::to_raw_value(&value)
    });
    written.unwrap_or_else(|_| raw.to_owned())
}

/// Writes numbers that are whole as whole numbers: `1.0`, `1e0` and `1` are one number. Unlike RFC 8785 it keeps all
/// digits of 64-bit integers, which clients use as ids.
fn plain_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|_| number.is_f64()).and_then(whole);
            if let Some(whole) = whole {
                *number = whole;
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(plain_numbers),
        Value::Object(members) => members.values_mut().for_each(plain_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn whole(number: f64) -> Option<Number> {
    const LIMIT: f64 = 18_446_744_073_709_551_616.0;
    if number.fract() != 0.0 || !(-LIMIT / 2.0..LIMIT).contains(&number) {
        return None;
    }
    Some(if number < 0.0 { Number::from(number as i64) } else { Number::from(number as u64) })
}

impl MessageRequest {
    /// Leaves out what means the same as nothing.
    fn leave_out_defaults(&mut self) {
        self.priority.take_if(|it| *it == Priority::default());
        self.to.iter_mut().for_each(Recipient::leave_out_defaults);
        self.content.leave_out_defaults();
        if !self.has_channels() {
            return;
        }
        self.mode.take_if(|it| *it == LegMode::default());
        self.wants.take_if(|it| *it == Wants::default());
        self.channels.iter_mut().for_each(NewLeg::leave_out_defaults);
    }
}

impl NewContent {
    pub(super) fn leave_out_defaults(&mut self) {
        self.addresses().for_each(Recipient::leave_out_defaults);
    }
}

impl Recipient {
    /// An address without a name is the address alone.
    pub(super) fn leave_out_defaults(&mut self) {
        if let Self::Named(named) = self
            && named.name.is_none()
        {
            *self = Self::Text(mem::take(&mut named.address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stands_for(json: &str) -> Idempotency {
        idempotency("k", &mut serde_json::from_str(json).unwrap())
    }

    fn same(one: &str, other: &str) {
        assert_eq!(stands_for(one).fingerprint, stands_for(other).fingerprint, "{one} and {other}");
    }

    fn differ(one: &str, other: &str) {
        assert_ne!(stands_for(one).fingerprint, stands_for(other).fingerprint, "{one} and {other}");
    }

    #[test]
    fn the_same_value_is_the_same_message() {
        for member in ["attributes", "contact", "context", "metadata"] {
            let with = |object: &str| format!(r#"{{"channel":"webhook","{member}":{object}}}"#);
            same(&with(r#"{"a":1,"b":{"d":[1,2],"c":null}}"#), &with(r#"{ "b": {"c": null, "d": [1, 2]}, "a": 1 }"#));
            same(&with(r#"{"é/":"\u00e9\/😀"}"#), &with(r#"{"\u00e9\/":"é/\ud83d\ude00"}"#));
            same(&with(r#"{"a":[1,0,100,-7]}"#), &with(r#"{"a":[1.0,-0.0,1e2,-70e-1]}"#));
            same(&with(r#"{"a":0.1,"b":10000000000000000000}"#), &with(r#"{"a":1e-1,"b":1e19}"#));
            differ(&with(r#"{"a":[1,2]}"#), &with(r#"{"a":[2,1]}"#));
            differ(&with(r#"{"a":1}"#), &with(r#"{"a":"1"}"#));
            differ(&with(r#"{"a":null}"#), &with("{}"));
            differ(&with(r#"{"id":9007199254740993}"#), &with(r#"{"id":9007199254740992}"#));
        }
    }

    #[test]
    fn defaults_may_be_spelled_out() {
        same(
            r#"{"channel":"email","to":"a@x"}"#,
            r#"{"to":{"address":"a@x","name":null},"channel":"email","content":{"cc":[]},"priority":"normal",
                "send_at":null,"channels":[],"metadata":null}"#,
        );
        same(
            r#"{"content":{"from":"a@x","cc":["b@x"],"reply_to":"c@x"}}"#,
            r#"{"content":{"from":{"address":"a@x"},"cc":[{"address":"b@x"}],"reply_to":{"address":"c@x"}}}"#,
        );
        same(
            r#"{"channels":[{"channel":"sms","to":"+1"}]}"#,
            r#"{"channels":[{"channel":"sms","to":{"address":"+1"},"content":{}}],"mode":"first","wants":"sent"}"#,
        );
        same(r#"{"send_at":"2026-06-02T00:00:00+02:00"}"#, r#"{"send_at":"2026-06-01T22:00:00.000Z"}"#);
        differ(r#"{"to":"a@x"}"#, r#"{"to":{"address":"a@x","name":"A"}}"#);
        differ(r#"{"channels":[{"channel":"sms"}]}"#, r#"{"channels":[{"channel":"sms"}],"mode":"all"}"#);
    }

    #[test]
    fn a_payload_counts_byte_for_byte() {
        differ(r#"{"content":{"payload":{"a":1,"b":2}}}"#, r#"{"content":{"payload":{"b":2,"a":1}}}"#);
        differ(r#"{"content":{"payload":1}}"#, r#"{"content":{"payload":1.0}}"#);
        differ(
            r#"{"channels":[{"channel":"webhook","content":{"payload":{"a":1}}}]}"#,
            r#"{"channels":[{"channel":"webhook","content":{"payload":{"a": 1}}}]}"#,
        );
    }

    #[test]
    fn what_was_stored_by_an_earlier_version_is_known() {
        let plain = stands_for(r#"{"channel":"webhook","attributes":{"a":1},"reference":"r"}"#);
        assert!(plain.former.is_empty(), "the form is as it was");
        let spaced = stands_for(r#"{"channel":"webhook","attributes":{"b": 1, "a":2}}"#);
        let before = r#"{"channel":"webhook","content":{},"attributes":{"b": 1, "a":2}}"#;
        assert!(spaced.is_of(&Sha256::digest(before)) && spaced.is_of(&spaced.fingerprint));
        let listed = stands_for(r#"{"channels":[{"channel":"sms","to":{"address":"+1"}}]}"#);
        for before in [
            r#"{"channel":null,"content":{},"channels":[{"channel":"sms","to":{"address":"+1"},"content":{}}]}"#,
            r#"{"channel":null,"content":{},"channels":[{"channel":"sms","to":"+1","content":{}}]}"#,
        ] {
            assert!(listed.is_of(&Sha256::digest(before)), "{before}");
        }
    }

    #[test]
    fn a_list_of_one_channel_is_that_channel() {
        let alone = r#"{"channel":"email","to":"a@x","content":{"text":"t"},"connection":"c","reference":"r"}"#;
        let listed = |leg: &str, message: &str| {
            let leg = format!(r#"{{"channel":"email","to":"a@x","content":{{"text":"t"}},"connection":"c"{leg}}}"#);
            format!(r#"{{"channels":[{leg}],"reference":"r"{message}}}"#)
        };
        same(alone, &listed("", ""));
        same(alone, &listed("", r#","mode":"first","wants":"sent""#));
        differ(alone, &listed(r#","timeout":5"#, ""));
        differ(alone, &listed("", r#","wants":"delivered""#));
        differ(alone, &listed("", r#","wants":"delivered","receipt_window":5"#));
        differ(alone, &listed("", r#","mode":"all""#));
        differ(alone, &listed("", r#","channel":"sms""#));
        differ("{}", r#"{"channels":[{}]}"#);
        differ(alone, &alone.replace("\"t\"", "\"u\""));
    }

    #[test]
    fn a_listed_channel_stays_in_its_list() {
        let mut message: MessageRequest =
            serde_json::from_str(r#"{"channels":[{"channel":"sms","to":"+1"}]}"#).unwrap();
        let before = serde_json::to_string(&message).unwrap();
        idempotency("k", &mut message);
        assert_eq!(serde_json::to_string(&message).unwrap(), before);
    }

    #[test]
    fn an_object_comes_back_as_it_was_written() {
        let mut message = serde_json::from_str(r#"{"metadata":{"b":  1.0}}"#).unwrap();
        idempotency("k", &mut message);
        assert_eq!(message.objects()[3].as_deref().map(RawValue::get), Some(r#"{"b":  1.0}"#));
    }

    #[test]
    fn what_nests_too_deeply_counts_as_it_is_written() {
        let deep = format!(r#"{{"metadata":{{"a":{}{}}}}}"#, "[".repeat(500), "]".repeat(500));
        same(&deep, &deep);
    }
}
