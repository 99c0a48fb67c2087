//! The facts that scripts see: plain data, whose fields the tables below document. Unknown values are left out of a
//! map, which reads as `()`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use angarium_domain::{
    message::Message,
    rule_input::{self, MessageOutline, Particulars, RuleInput},
};

/// Free members of a message.
pub type Object = Map<String, Value>;

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
    pub fn of(subject: RuleInput) -> Self {
        let country = subject.texts(rule_input::Field::Country).next().map(str::to_owned);
        let timezone = subject.timezone().map(str::to_owned);
        let (Particulars { attributes, contact, context }, envelope) = subject.into_parts();
        let MessageOutline { id, channel, channels, to, sender, subject, text, reference, priority, .. } = envelope;
        let MessageOutline { created_at, send_at, expires_at, .. } = envelope;
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
    pub barred: Option<String>,
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

/// A fact, as it is handed to a script.
#[derive(Clone, Copy)]
pub(super) enum Fact<'a> {
    /// It is left out.
    Unknown,
    Text(&'a str),
    Texts(&'a [String]),
    Count(u32),
    Number(f64),
    Time(Timestamp),
    Object(&'a Object),
    Facts(&'a dyn Facts),
}

impl<'a> From<&'a String> for Fact<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a Vec<String>> for Fact<'a> {
    fn from(texts: &'a Vec<String>) -> Self {
        Self::Texts(texts)
    }
}

impl From<&u16> for Fact<'_> {
    fn from(count: &u16) -> Self {
        Self::Count((*count).into())
    }
}

impl From<&u32> for Fact<'_> {
    fn from(count: &u32) -> Self {
        Self::Count(*count)
    }
}

impl From<&f64> for Fact<'_> {
    fn from(number: &f64) -> Self {
        Self::Number(*number)
    }
}

impl From<&Timestamp> for Fact<'_> {
    fn from(time: &Timestamp) -> Self {
        Self::Time(*time)
    }
}

impl<'a> From<&'a Object> for Fact<'a> {
    fn from(object: &'a Object) -> Self {
        Self::Object(object)
    }
}

impl<'a> From<&'a MessageFacts> for Fact<'a> {
    fn from(message: &'a MessageFacts) -> Self {
        Self::Facts(message)
    }
}

impl<'a, T> From<&'a Option<T>> for Fact<'a>
where
    &'a T: Into<Self>,
{
    fn from(fact: &'a Option<T>) -> Self {
        fact.as_ref().map_or(Self::Unknown, Into::into)
    }
}

/// Facts that can be handed to a script.
pub(super) trait Facts {
    /// Visits each of them by its name, in a fixed order.
    fn each<'a>(&'a self, tell: &mut dyn FnMut(&'static str, Fact<'a>));
}

/// Implements the facts of a type by the names of its members.
macro_rules! facts {
    ($type:ty: $($member:ident),+) => {
        impl Facts for $type {
            fn each<'a>(&'a self, tell: &mut dyn FnMut(&'static str, Fact<'a>)) {
                // A member that is missing here does not compile.
                let Self { $($member),+ } = self;
                $(tell(stringify!($member), $member.into());)+
            }
        }
    };
}

facts!(MessageFacts:
    id, channel, channels, to, sender, subject, text, reference, priority, created_at, send_at, expires_at, country,
    timezone, attributes, contact, context
);
facts!(CandidateFacts:
    connection, provider, channel, cost, currency, success_rate, answers, latency_ms, weight, score, barred
);
facts!(AttemptFacts:
    number, connection, provider, channel, disposition, status, code, detail, retry_after, at, policy_wait,
    seconds_since_accepted, candidates_left, message
);
facts!(DeliveryFacts:
    state, channel, attempts, connection, provider, code, cost, currency, seconds, follow_up, message
);
facts!(ContextFacts: due_at, schedule, run, step, last_state, message);

/// A field: its name, its type, and its description.
pub type Field = (&'static str, &'static str, &'static str);

pub const MESSAGE: &[Field] = &[
    ("id", "text", "the message's id; empty while it is not accepted"),
    ("channel", "text", "`email`, `sms`, …: the first of its channels"),
    ("channels", "list of texts", "all of its channels, in order"),
    ("to", "text", "the recipient's address"),
    ("sender", "text", "the sender's address; empty where the connection says it"),
    ("subject", "text", "empty where there is none"),
    ("text", "text", "the plain text, its first 8,192 characters"),
    ("reference", "text or ()", "the client's own reference"),
    ("priority", "text", "`low`, `normal`, `high` or `urgent`"),
    ("created_at", "time or ()", "when it was accepted"),
    ("send_at", "time or ()", "when it is to be sent; a time that is past means now"),
    ("expires_at", "time or ()", "when it is no longer to be sent"),
    ("country", "text or ()", "two capital letters: the contact's, else what the address tells"),
    ("timezone", "text or ()", "the contact's time zone"),
    ("attributes", "map", "what the client says of the message"),
    ("contact", "map", "what the client says of the recipient"),
    ("context", "map", "what the client says of the occasion"),
];

pub const CANDIDATE: &[Field] = &[
    ("connection", "text", "the connection's name, as an answer gives it back"),
    ("provider", "text", "its provider"),
    ("channel", "text", "the channel that it would serve"),
    ("cost", "number or ()", "what the delivery would cost through it"),
    ("currency", "text or ()", "the currency of that"),
    ("success_rate", "number or ()", "0 to 1: how often it succeeded lately with this destination"),
    ("answers", "number", "how many answers that is known from"),
    ("latency_ms", "number or ()", "how long it took lately"),
    ("weight", "number or ()", "its weight in the route"),
    ("score", "number or ()", "what the strategy gave it; higher is better"),
    ("barred", "text or ()", "why it can't be asked now, if so"),
];

pub const ATTEMPT: &[Field] = &[
    ("number", "number", "1 for the first of the delivery"),
    ("connection", "text", "the connection that was asked"),
    ("provider", "text", "its provider"),
    ("channel", "text", "the channel of this leg"),
    ("disposition", "text", "what the answer means: `rejected_temporary`, `throttled`, …"),
    ("status", "number or ()", "HTTP status or SMTP code"),
    ("code", "text", "the provider's code"),
    ("detail", "text", "the provider's words"),
    ("retry_after", "number or ()", "the seconds that the provider asked for"),
    ("at", "time or ()", "when the attempt ended"),
    ("policy_wait", "number or ()", "the seconds that the route's policy would wait; () where it would give up"),
    ("seconds_since_accepted", "number", "the age of the message"),
    ("candidates_left", "number", "how many candidates were not asked in this round"),
    ("message", "map", "the message, as above"),
];

pub const DELIVERY: &[Field] = &[
    ("state", "text", "`sent`, `delivered`, `failed`, `bounced`, `expired`, …"),
    ("channel", "text", "the channel of this leg"),
    ("attempts", "number", "how many were made"),
    ("connection", "text or ()", "the connection of the last one"),
    ("provider", "text or ()", "its provider"),
    ("code", "text or ()", "the last answer's code"),
    ("cost", "number or ()", "what it cost"),
    ("currency", "text or ()", "the currency of that"),
    ("seconds", "number", "from acceptance to this state"),
    ("follow_up", "number", "0 for a message of a client, 1 for one that a script sent after it, …"),
    ("message", "map", "the message, as above"),
];

pub const CONTEXT: &[Field] = &[
    ("due_at", "time or ()", "when the send is due"),
    ("schedule", "text or ()", "the schedule or sequence that it belongs to"),
    ("run", "number", "how many sends of it there were before"),
    ("step", "number", "the step of a sequence"),
    ("last_state", "text or ()", "what became of the send before it"),
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

    fn documented(fields: &[Field]) -> Vec<String> {
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
