//! A message: the content that a client asked to be delivered to one recipient.

pub mod address;
mod metadata;
mod times;

use std::{collections::BTreeMap, str::FromStr};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use metadata::{MOST_SEARCHED, metadata_hash, metadata_hashes};
pub use times::check_times;

use super::{
    ids::{BatchId, ConnectionId, DeliveryId, MessageId},
    legs::{Leg, Legs},
    one_or_many,
    rule_input::{self, RuleInput},
    segments::segments,
    trace::TraceContext,
};

/// The longest subject, in characters: the length of a mail's line (RFC 5322, 2.1.1).
pub const MAX_SUBJECT: usize = 998;
/// The most content for one recipient, in bytes as JSON and without attachments. A component receives no more, so that
/// its result stays within its limits.
pub const MOST_CONTENT: usize = 8 << 20;

/// A message with more bytes of content is abridged in memory: the whole is read when a request is made of it.
pub const LARGE: usize = 16 << 10;

/// Memory of a message beside its texts, with its delivery's data, in bytes.
const RECORD: usize = 2 << 10;

/// The urgency of a message: more urgent messages get the larger part of a tenant's share.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    Urgent,
}

impl Priority {
    /// All of them, the most pressing first.
    pub const ALL: [Self; 4] = [Self::Urgent, Self::High, Self::Normal, Self::Low];

    /// As the database keeps it: 0 is served first, so that an index reads in order.
    #[must_use]
    pub const fn rank(self) -> i16 {
        match self {
            Self::Urgent => 0,
            Self::High => 1,
            Self::Normal => 2,
            Self::Low => 3,
        }
    }

    /// The inverse of [`Priority::rank`]; a number out of range is low.
    #[must_use]
    pub const fn from_rank(rank: i16) -> Self {
        match rank {
            0 => Self::Urgent,
            1 => Self::High,
            2 => Self::Normal,
            _ => Self::Low,
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Urgent => "urgent",
        }
    }
}

/// Why a text is not a channel's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a channel's name such as `email` or `sms`: 1 to 32 lower-case letters, digits and underscores, a letter first"
)]
pub struct InvalidChannel;

/// `email`, `sms`, `mms`, `whatsapp`, `push`, `webhook`, `edi`, `postal`, `in_app`, or another name
/// that a plugin brings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(pattern = "^[a-z][a-z0-9_]{0,31}$", example = "email")]
pub struct Channel(String);

impl Channel {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Channel {
    type Err = InvalidChannel;

    fn from_str(text: &str) -> Result<Self, InvalidChannel> {
        let valid = (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidChannel) }
    }
}

impl<'de> Deserialize<'de> for Channel {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An address with the name shown beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The content to deliver. The channel decides which fields count.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Content {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "one_or_many")]
    pub reply_to: Vec<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cc: Vec<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bcc: Vec<Address>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// Any JSON, byte for byte as the client sent it, since a signature covers its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub media_urls: Vec<String>,
    /// Provider-specific parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
    /// The segments of the whole text, where only its beginning is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<u32>,
}

impl Content {
    /// Returns the parts that rules, scripts and cost models read: sender, subject and the beginning of the text.
    #[must_use]
    pub fn excerpt(&self) -> Self {
        let text = self.text.as_deref();
        let beginning = text.map(rule_input::beginning);
        let cut = text.filter(|text| beginning.is_some_and(|beginning| beginning.len() < text.len()));
        Self {
            from: self.from.clone(),
            subject: self.subject.clone(),
            text: beginning.map(str::to_owned),
            segments: self.segments.or(cut.map(segments)),
            ..Self::default()
        }
    }

    /// The bytes of its texts.
    #[must_use]
    pub fn size(&self) -> usize {
        let people = self.from.iter().chain(&self.reply_to).chain(&self.cc).chain(&self.bcc);
        let texts = [&self.subject, &self.text, &self.html].into_iter().flatten().chain(&self.media_urls);
        people.map(Address::size).sum::<usize>()
            + texts.map(String::len).sum::<usize>()
            + self.payload.as_ref().map_or(0, |payload| payload.get().len())
            + self.headers.iter().chain(&self.params).map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

impl Address {
    fn size(&self) -> usize {
        self.address.len() + self.name.as_ref().map_or(0, String::len)
    }
}

/// The longest chain of follow-ups: the end of the last one is not asked about.
pub const DEEPEST_FOLLOW_UP: u32 = 3;

/// The origin of a message that a script's `on_outcome` sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Follows {
    #[schema(value_type = String, example = "msg_0192f0c1a2b37c4d8e5f60718293a4b5")]
    pub message: MessageId,
    /// The delivery whose end it follows.
    #[schema(value_type = String)]
    pub delivery: DeliveryId,
    /// The script's name.
    pub script: String,
    /// 1 for one that follows a client's message, 2 for one that follows such a one; at most 3.
    pub depth: u32,
}

/// The part of a message beside its legs that is stored as JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Body {
    /// The subject matter, for rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Box<RawValue>>,
    /// The client's data about the recipient, for rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Box<RawValue>>,
    /// The client's data about the occasion, for rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Box<RawValue>>,
    /// The answers of rules and scripts at acceptance, as they were stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ruling: Option<Box<RawValue>>,
    /// The first connection, if it was decided and stored at acceptance without an intent. If the worker is lost, no
    /// other connection may be asked before this one has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<ConnectionId>,
    /// The origin, if a script sent the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<Follows>,
    /// The script whose `condition` is asked before the message is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// The client's own, handed back as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
    /// The trace in which it was accepted; the gateway's own, and never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
}

impl Body {
    fn objects_size(&self) -> usize {
        let objects = [&self.attributes, &self.contact, &self.context, &self.ruling, &self.metadata];
        objects.into_iter().flatten().map(|object| object.get().len()).sum()
    }
}

/// A file that travels with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub name: String,
    pub media_type: String,
    /// The message's leg that it travels with.
    pub leg: u8,
    /// Set for a part that the HTML refers to as `cid:…`.
    pub content_id: Option<String>,
    pub content: Bytes,
}

/// A client's key for one acceptance, and the digest of its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// 1 to 255 characters.
    pub key: String,
    /// SHA-256 of the request: the same key with another one is refused.
    pub fingerprint: [u8; 32],
    /// The digests of earlier versions that differ: messages stored within the last day are recognised by them.
    pub former: Vec<[u8; 32]>,
}

impl Idempotency {
    /// Whether a stored fingerprint is of this request.
    #[must_use]
    pub fn is_of(&self, stored: &[u8]) -> bool {
        stored == self.fingerprint || self.former.iter().any(|former| stored == former)
    }
}

/// A message as it was accepted; it never changes.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: MessageId,
    pub created_at: Timestamp,
    pub priority: Priority,
    pub send_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub reference: Option<String>,
    /// The batch that it came in with.
    pub batch: Option<BatchId>,
    /// Messages of a tenant with the same key go one after another.
    pub ordering_key: Option<String>,
    /// Its channels, with their recipients and contents.
    pub legs: Legs,
    pub body: Body,
    /// Its contents are excerpts: the database has the whole.
    pub abridged: bool,
}

impl Message {
    /// Returns the first leg. A message that [`Message::as_leg`] made has this one alone.
    #[must_use]
    pub const fn first(&self) -> &Leg {
        self.legs.first()
    }

    /// The same to be changed.
    pub const fn first_mut(&mut self) -> &mut Leg {
        self.legs.first_mut()
    }

    /// Replaces large contents by excerpts; returns whether it did.
    pub fn abridge(&mut self) -> bool {
        let large = !self.abridged && self.content_size() > LARGE;
        if large {
            self.legs.iter_mut().for_each(|leg| leg.content = leg.content.excerpt());
            self.abridged = true;
        }
        large
    }

    /// Whether more than is here has to be read for a request of its first leg: the whole content, or attachments.
    #[must_use]
    pub const fn is_large(&self) -> bool {
        self.abridged || self.first().attachments > 0
    }

    /// Memory that it takes, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        RECORD + self.content_size() + self.body.objects_size()
    }

    fn content_size(&self) -> usize {
        self.legs.iter().map(|leg| leg.content.size()).sum()
    }

    /// When its first attempt is due.
    #[must_use]
    pub fn due_at(&self) -> Timestamp {
        self.send_at.unwrap_or(self.created_at)
    }

    /// 0 for a message of a client, 1 for one that a script sent after it, and so on.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.body.follows.as_ref().map_or(0, |follows| follows.depth)
    }

    /// The message with this leg alone, which began then: no longer to be sent than the leg's channel is tried.
    ///
    /// A message that names no list of channels stays as it is.
    #[must_use]
    pub fn as_leg(&self, number: u8, begun_at: Timestamp) -> Self {
        let apart = if self.legs.is_list() { self.legs.apart(number) } else { None };
        let Some(legs) = apart else { return self.clone() };
        let timeout = legs.first().timeout.map(|seconds| SignedDuration::from_secs(seconds.into()));
        let given_up_at = timeout.and_then(|timeout| begun_at.checked_add(timeout).ok());
        Self {
            id: self.id,
            created_at: self.created_at,
            priority: self.priority,
            send_at: Some(begun_at),
            expires_at: given_up_at.into_iter().chain(self.expires_at).min(),
            reference: self.reference.clone(),
            batch: self.batch,
            ordering_key: self.ordering_key.clone(),
            legs,
            body: self.body.clone(),
            abridged: self.abridged,
        }
    }
}

/// A message to be accepted, with the rows that are stored beside it.
#[derive(Debug, Clone)]
pub struct NewMessage {
    pub message: Message,
    pub idempotency: Option<Idempotency>,
    pub attachments: Vec<Attachment>,
    /// The rules' input, if it was parsed already.
    pub rule_input: Option<RuleInput>,
}

impl NewMessage {
    /// Memory that it takes, in bytes, with its attachments.
    #[must_use]
    pub fn size(&self) -> usize {
        self.message.size() + self.attachments.iter().map(|file| file.content.len()).sum::<usize>()
    }
}

impl Message {
    /// A message with this leg and body and nothing else, as tests need one.
    #[doc(hidden)]
    #[must_use]
    pub fn with(leg: Leg, body: Body) -> Self {
        Self {
            id: MessageId::new(),
            created_at: Timestamp::UNIX_EPOCH,
            priority: Priority::Normal,
            send_at: None,
            expires_at: None,
            reference: None,
            batch: None,
            ordering_key: None,
            legs: Legs::single(leg),
            body,
            abridged: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legs::{LegMode, Wants};

    fn sms(content: Content) -> Leg {
        Leg { content, ..Leg::on("sms".parse().unwrap()) }
    }

    #[test]
    fn a_rank_finds_its_priority_again() {
        for priority in Priority::ALL {
            assert_eq!(Priority::from_rank(priority.rank()), priority);
        }
    }

    #[test]
    fn a_channel_is_a_short_lower_case_name() {
        assert!("in_app".parse::<Channel>().is_ok());
        for bad in ["", "SMS", "1sms", "a b", "ünder", &"x".repeat(33)] {
            assert!(bad.parse::<Channel>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_large_message_keeps_what_is_looked_at() {
        let content = Content {
            from: Some(Address { address: "ACME".into(), name: None }),
            subject: Some("hello".into()),
            text: Some("é".repeat(LARGE)),
            html: Some("<p>".into()),
            ..Content::default()
        };
        let legs = Legs::list(LegMode::All, Wants::Sent, vec![sms(content.clone()), sms(content.clone())]).unwrap();
        let mut message = Message { legs, ..Message::with(sms(Content::default()), Body::default()) };
        let (whole, before) = (message.clone(), crate::price::units(&message));
        assert!(message.size() > 4 * LARGE);
        assert!(message.abridge() && message.abridged && message.is_large() && !message.abridge());
        for excerpt in message.legs.clone().into_iter().map(|leg| leg.content) {
            assert_eq!((&excerpt.from, &excerpt.subject), (&content.from, &content.subject));
            assert_eq!(excerpt.text.unwrap(), "é".repeat(rule_input::MAX_TEXT));
            assert_eq!((excerpt.html, excerpt.payload.is_none()), (None, true));
        }
        assert_eq!(RuleInput::of(&message), RuleInput::of(&whole), "rules see the same");
        assert_eq!(crate::price::units(&message), before, "and it costs the same");
    }

    #[test]
    fn a_leg_alone_goes_as_long_as_its_channel_is_tried() {
        let at = Timestamp::from_second(100).unwrap();
        let legs = vec![sms(Content::default()), Leg { timeout: Some(30), ..Leg::on("email".parse().unwrap()) }];
        let legs = Legs::list(LegMode::First, Wants::Sent, legs).unwrap();
        let whole = Message { legs, ..Message::with(sms(Content::default()), Body::default()) };
        let (first, second) = (whole.as_leg(0, at), whole.as_leg(1, at));
        assert_eq!((first.first().channel.as_str(), first.send_at, first.expires_at), ("sms", Some(at), None));
        assert_eq!(second.expires_at, Some(Timestamp::from_second(130).unwrap()));
        assert_eq!((second.first().channel.as_str(), second.legs.policy().count), ("email", 1));
        let single = Message::with(sms(Content::default()), Body::default()).as_leg(0, at);
        assert_eq!(single.send_at, None, "it was never apart");
    }

    #[test]
    fn a_short_message_stays_as_it_is() {
        let content = Content { html: Some("x".repeat(LARGE)), ..Content::default() };
        let mut message = Message::with(sms(content), Body::default());
        assert!(!message.abridge() && !message.is_large());
        assert_eq!(message.first().content.html.as_ref().map(String::len), Some(LARGE));
    }
}
