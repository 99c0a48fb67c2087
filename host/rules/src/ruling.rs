//! The answers of rules and scripts at acceptance, as they are stored with the message.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    allowance::Spent,
    decision::{Ended, RuleDecision, Scored},
    script::{Hook, ScriptFault},
};
use angarium_domain::{
    ids::ExperimentId,
    message::{Message, Priority},
    rule_input::Object,
};

/// The stored answers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ruling {
    /// By the declarative rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<RuleDecision>,
    /// By the scripts, in the order in which they were asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scripts: Vec<HookRecord>,
    /// From where on there was no time left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// It waits since something that may refuse it could not be asked: it is asked again before the message goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_hold: Option<OnHold>,
    /// The canaries that decided about it in place of the live versions, and continue to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub canaries: Vec<Canary>,
    /// How the message was before, as far as it was changed.
    #[serde(skip_serializing_if = "Original::is_nothing")]
    pub original: Original,
}

/// The question that a held message waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnHold {
    /// A rule's id, or a script's name.
    pub by: String,
    pub reason: String,
}

/// A variant that decided about a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    pub experiment: ExperimentId,
    /// The script's name, or the rule's id.
    pub of: String,
    /// The variant's.
    pub version: i32,
}

/// The message's own values that rules and scripts have changed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Original {
    /// It named no channel.
    #[serde(skip_serializing_if = "is_false")]
    pub without_channel: bool,
    /// It named no sender.
    #[serde(skip_serializing_if = "is_false")]
    pub without_sender: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// When it was to be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_at: Option<Due>,
    /// Empty if it had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Object>,
}

/// When a message was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Due {
    AtOnce,
    At(Timestamp),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl Ruling {
    /// Returns the stored ruling of a message, if there is one.
    #[must_use]
    pub fn of(message: &Message) -> Option<Self> {
        serde_json::from_str(message.body.ruling.as_ref()?.get()).ok()
    }

    /// Returns only the rules' scores of connections from a message's stored ruling.
    #[must_use]
    pub fn scores(message: &Message) -> Vec<Scored> {
        #[derive(Deserialize)]
        struct Scores {
            #[serde(default)]
            decision: Candidates,
        }
        #[derive(Default, Deserialize)]
        struct Candidates {
            #[serde(default)]
            candidates: Vec<Scored>,
        }
        let scores = |raw: &RawValue| serde_json::from_str::<Scores>(raw.get()).ok();
        message.body.ruling.as_deref().and_then(scores).map(|it| it.decision.candidates).unwrap_or_default()
    }

    /// Whether something that may refuse a message is to be asked again before it goes.
    #[must_use]
    pub fn is_on_hold(message: &Message) -> bool {
        #[derive(Deserialize)]
        struct Part {
            on_hold: Option<OnHold>,
        }
        let on_hold = |raw: &RawValue| serde_json::from_str::<Part>(raw.get()).ok()?.on_hold;
        message.body.ruling.as_deref().and_then(on_hold).is_some()
    }

    /// Writes down that rules chose a message's channel.
    #[must_use]
    pub fn of_channel_chosen() -> Option<Box<RawValue>> {
        let ruling = Self { original: Original { without_channel: true, ..Original::default() }, ..Self::default() };
        // Plain data always has a JSON form.
        serde_json::value::to_raw_value(&ruling).ok()
    }
}

impl Original {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the previous values that are different now.
    #[must_use]
    pub fn before(before: &MessageBefore, message: &Message) -> Self {
        let due = before.send_at.map_or(Due::AtOnce, Due::At);
        let attributes = || object_of(before.attributes.as_deref());
        Self {
            without_channel: before.without_channel,
            without_sender: before.without_sender && message.first().content.from.is_some(),
            priority: (before.priority != message.priority).then_some(before.priority),
            send_at: (before.send_at != message.send_at).then_some(due),
            attributes: (text(before.attributes.as_deref()) != text(message.body.attributes.as_deref()))
                .then(attributes),
        }
    }

    /// Restores a message's own values.
    pub fn undo(&self, message: &mut Message) {
        if self.without_sender {
            message.first_mut().content.from = None;
        }
        if let Some(priority) = self.priority {
            message.priority = priority;
        }
        match self.send_at {
            Some(Due::AtOnce) => message.send_at = None,
            Some(Due::At(at)) => message.send_at = Some(at),
            None => {}
        }
        if let Some(attributes) = &self.attributes {
            let some = (!attributes.is_empty()).then_some(attributes);
            message.body.attributes = some.and_then(|it| serde_json::value::to_raw_value(it).ok());
        }
        message.body.ruling = None;
    }
}

/// The values of a message that rules may change, as they were.
#[derive(Debug)]
pub struct MessageBefore {
    without_channel: bool,
    without_sender: bool,
    priority: Priority,
    send_at: Option<Timestamp>,
    attributes: Option<Box<RawValue>>,
}

impl MessageBefore {
    #[must_use]
    pub fn of(message: &Message) -> Self {
        Self {
            without_channel: Ruling::of(message).is_some_and(|ruling| ruling.original.without_channel),
            without_sender: message.first().content.from.is_none(),
            priority: message.priority,
            send_at: message.send_at,
            attributes: message.body.attributes.clone(),
        }
    }
}

fn text(raw: Option<&RawValue>) -> Option<&str> {
    raw.map(RawValue::get)
}

fn object_of(raw: Option<&RawValue>) -> Object {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
}

/// The answer of one script.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HookRecord {
    pub script: String,
    pub version: i32,
    pub hook: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// The reason for a missing answer: the declared default applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl HookRecord {
    /// An answer, or a fault, as it is written down.
    pub fn new<T: Serialize>(script: &str, version: i32, hook: Hook, answer: &Result<T, ScriptFault>) -> Self {
        Self {
            script: script.to_owned(),
            version,
            hook: hook.as_str().into(),
            answer: answer.as_ref().ok().and_then(Answer::of),
            fault: answer.as_ref().err().map(ToString::to_string),
        }
    }
}

/// The longest answer that is kept, in bytes.
const MOST_ANSWER: usize = 16 << 10;

/// A script's answer, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Answer(Box<RawValue>);

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl Answer {
    fn of<T: Serialize>(answer: &T) -> Option<Self> {
        // An answer is plain data: it always has a JSON form.
        let json = serde_json::value::to_raw_value(answer).ok()?;
        let length = json.get().len();
        if length <= MOST_ANSWER {
            return Some(Self(json));
        }
        serde_json::value::to_raw_value(&serde_json::json!({ "too_long_to_keep": length })).ok().map(Self)
    }
}

/// Why a message is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRefusal {
    /// The rule's id, or the script's name.
    pub by: String,
    /// For people.
    pub name: String,
    pub reason: String,
    /// The reason for which it could not be asked, if it does not refuse by itself.
    pub failed: Option<Failed>,
}

/// The reason for which a refusing rule or script gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// It failed.
    Fault,
    /// There was no time left; a moment later there may be.
    NoTime,
}

impl Failed {
    /// By why it was not asked, if it was not.
    #[must_use]
    pub fn of(unasked: Option<Spent>) -> Self {
        if unasked == Some(Spent::TenantTime) { Self::NoTime } else { Self::Fault }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use angarium_domain::{
        legs::Leg,
        message::{Address, Body},
    };

    fn message(attributes: Option<Value>) -> Message {
        let attributes = attributes.map(|it| serde_json::value::to_raw_value(&it).unwrap());
        Message::with(Leg::on("sms".parse().unwrap()), Body { attributes, ..Body::default() })
    }

    /// Changed as rules change it, written down, and changed back.
    fn there_and_back(before: Option<Value>) -> (Message, Original) {
        let mut message = message(before);
        let known = MessageBefore::of(&message);
        message.priority = Priority::High;
        message.send_at = Some("2026-03-02T12:00:00Z".parse().unwrap());
        message.first_mut().content.from = Some(Address { address: "ACME".into(), name: None });
        message.body.attributes = serde_json::value::to_raw_value(&json!({"seen": true})).ok();
        let written = serde_json::to_string(&Original::before(&known, &message)).unwrap();
        let original: Original = serde_json::from_str(&written).unwrap();
        original.undo(&mut message);
        (message, original)
    }

    #[test]
    fn a_message_becomes_what_it_was() {
        for attributes in [None, Some(json!({"amount": 5}))] {
            let (message, original) = there_and_back(attributes.clone());
            let Message { priority, send_at, legs, body, .. } = message;
            assert_eq!((priority, send_at, &legs.first().content.from), (Priority::Normal, None, &None));
            let back = body.attributes.map(|raw| serde_json::from_str::<Value>(raw.get()).unwrap());
            assert_eq!((back, original.without_sender), (attributes, true));
        }
    }

    #[test]
    fn what_was_not_changed_is_not_written_down() {
        let message = message(Some(json!({"amount": 5})));
        let original = Original::before(&MessageBefore::of(&message), &message);
        assert_eq!(serde_json::to_string(&original).unwrap(), "{}");
    }
}
