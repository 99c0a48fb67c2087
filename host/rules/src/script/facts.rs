//! The facts that scripts see: plain data, whose fields the tables below document. Unknown values are left out of a
//! map, which reads as `()`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use angarium_domain::{
    message::Message,
    rule_input::{self, MessageOutline, Object, Particulars, RuleInput},
};

/// A message, as `admit`, `route` and `condition` see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MessageFacts {
    pub id: String,
    pub channel: String,
    pub channels: Vec<String>,
    pub to: String,
    pub sender: String,
    pub subject: String,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    pub priority: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    pub attributes: Object,
    pub contact: Object,
    pub context: Object,
}

impl MessageFacts {
    /// Returns the facts that scripts see of a message.
    #[must_use]
    pub fn of(input: RuleInput) -> Self {
        let country = input.texts(rule_input::Field::Country).next().map(str::to_owned);
        let timezone = input.timezone().map(str::to_owned);
        let (Particulars { attributes, contact, context }, outline) = input.into_parts();
        let MessageOutline { id, channel, channels, to, sender, subject, text, reference, priority, .. } = outline;
        let MessageOutline { created_at, send_at, expires_at, .. } = outline;
        Self {
            id,
            channel,
            channels,
            to,
            sender,
            subject,
            text,
            reference,
            priority: priority.as_str().to_owned(),
            created_at,
            send_at,
            expires_at,
            country,
            timezone,
            attributes,
            contact,
            context,
        }
    }
}

/// A connection that could serve, as `route` and `score` see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CandidateFacts {
    pub connection: String,
    pub provider: String,
    pub channel: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<f64>,
    pub answers: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_reason: Option<String>,
}

/// An attempt that was made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttemptFacts {
    pub number: u32,
    pub connection: String,
    pub provider: String,
    pub channel: String,
    pub disposition: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub code: String,
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// The wait by the route's policy; `None` if it would give up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_wait: Option<f64>,
    pub seconds_since_accepted: f64,
    pub candidates_left: u32,
    pub message: MessageFacts,
}

/// A delivery that ended, as `on_outcome` sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryFacts {
    pub state: String,
    pub channel: String,
    pub attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    pub seconds: f64,
    pub follow_up: u32,
    pub message: MessageFacts,
}

/// The occasion of a scheduled send.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContextFacts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    pub run: u32,
    pub step: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_state: Option<String>,
    pub message: MessageFacts,
}

impl ContextFacts {
    /// Returns the context of a message that is sent once.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        let facts = MessageFacts::of(RuleInput::of(message));
        Self { due_at: Some(message.due_at()), message: facts, ..Self::default() }
    }
}

/// A field: its name, its type, and its description.
pub type FactField = (&'static str, &'static str, &'static str);

pub const MESSAGE: &[FactField] = &[
    ("id", "text", "the message's id; empty while it is not accepted"),
    ("channel", "text", "`email`, `sms`, …: the first of its channels"),
    ("channels", "list of texts", "all of its channels, in order"),
    ("to", "text", "the recipient's address"),
    ("sender", "text", "the sender's address; empty if the connection names it"),
    ("subject", "text", "empty if there is none"),
    ("text", "text", "the plain text, its first 8,192 characters"),
    ("reference", "text or ()", "the client's own reference"),
    ("priority", "text", "`low`, `normal`, `high` or `urgent`"),
    ("created_at", "time or ()", "when it was accepted"),
    ("send_at", "time or ()", "when it is to be sent; a time that is past means now"),
    ("expires_at", "time or ()", "when it is no longer to be sent"),
    ("country", "text or ()", "two capital letters: the contact's, else that of the address"),
    ("timezone", "text or ()", "the contact's time zone"),
    ("attributes", "map", "the client's data about the message"),
    ("contact", "map", "the client's data about the recipient"),
    ("context", "map", "the client's data about the occasion"),
];

pub const CANDIDATE: &[FactField] = &[
    ("connection", "text", "the connection's name, as an answer gives it back"),
    ("provider", "text", "its provider"),
    ("channel", "text", "the channel that it would serve"),
    ("cost", "number or ()", "the estimated cost of the delivery through it"),
    ("currency", "text or ()", "the currency of that"),
    ("success_rate", "number or ()", "0 to 1: how often it succeeded lately with this destination"),
    ("answers", "number", "the number of answers behind that"),
    ("latency_ms", "number or ()", "its recent latency"),
    ("weight", "number or ()", "its weight in the route"),
    ("score", "number or ()", "the strategy's score; higher is better"),
    ("skip_reason", "text or ()", "why it is skipped now, if it is"),
];

pub const ATTEMPT: &[FactField] = &[
    ("number", "number", "1 for the first of the delivery"),
    ("connection", "text", "the connection that was asked"),
    ("provider", "text", "its provider"),
    ("channel", "text", "the channel of this leg"),
    ("disposition", "text", "the meaning of the answer: `rejected_transient`, `throttled`, …"),
    ("status", "number or ()", "HTTP status or SMTP code"),
    ("code", "text", "the provider's code"),
    ("detail", "text", "the provider's text"),
    ("retry_after", "number or ()", "the seconds that the provider asked for"),
    ("at", "time or ()", "when the attempt ended"),
    ("policy_wait", "number or ()", "the seconds that the route's policy would wait; () if it would give up"),
    ("seconds_since_accepted", "number", "the age of the message"),
    ("candidates_left", "number", "the number of candidates that were not asked in this round"),
    ("message", "map", "the message, as above"),
];

pub const DELIVERY: &[FactField] = &[
    ("state", "text", "`sent`, `delivered`, `failed`, `bounced`, `expired`, …"),
    ("channel", "text", "the channel of this leg"),
    ("attempts", "number", "the number of attempts"),
    ("connection", "text or ()", "the connection of the last one"),
    ("provider", "text or ()", "its provider"),
    ("code", "text or ()", "the last answer's code"),
    ("cost", "number or ()", "its cost"),
    ("currency", "text or ()", "the currency of that"),
    ("seconds", "number", "from acceptance to this state"),
    ("follow_up", "number", "0 for a message of a client, 1 for one that a script sent after it, …"),
    ("message", "map", "the message, as above"),
];

pub const CONTEXT: &[FactField] = &[
    ("due_at", "time or ()", "when the send is due"),
    ("schedule", "text or ()", "the schedule or sequence that it belongs to"),
    ("run", "number", "the number of earlier sends"),
    ("step", "number", "the step of a sequence"),
    ("last_state", "text or ()", "the state of the previous send"),
    ("message", "map", "the message, as above"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a type, which the refusal of an unknown one lists.
    fn names<T: serde::de::DeserializeOwned + std::fmt::Debug>() -> Vec<String> {
        let error = serde_json::from_str::<T>(r#"{"?": 0}"#).expect_err("there is no such field").to_string();
        let (_, listed) = error.split_once("expected one of ").expect("it lists them");
        let mut names: Vec<_> = listed.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        names.sort();
        names
    }

    fn documented(fields: &[FactField]) -> Vec<String> {
        let mut names: Vec<_> = fields.iter().map(|(name, ..)| (*name).to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_field_is_documented_and_no_other() {
        assert_eq!(documented(MESSAGE), names::<MessageFacts>());
        assert_eq!(documented(CANDIDATE), names::<CandidateFacts>());
        assert_eq!(documented(ATTEMPT), names::<AttemptFacts>());
        assert_eq!(documented(DELIVERY), names::<DeliveryFacts>());
        assert_eq!(documented(CONTEXT), names::<ContextFacts>());
    }
}
