//! A message: the content that a client asked to be delivered to one recipient.

pub mod address;
mod metadata;
mod times;

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use metadata::{MOST_SEARCHED, metadata_hash, metadata_hashes};
pub use times::check_times;

use super::{
    ids::{BatchId, ConnectionId, DeliveryId, MessageId},
    legs::Legs,
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

/// The origin of a message that a script sent as a follow-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follows {
    pub message: MessageId,
    /// The delivery whose end caused it.
    pub delivery: DeliveryId,
    /// The script's name.
    pub script: String,
    /// 1 for one that follows a client's message, 2 for one that follows such a one, …
    pub depth: u32,
}

/// The part of a message that is stored as JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Body {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Address>,
    #[serde(default)]
    pub content: Content,
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
    /// The contents for the second channel and those after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<LegBody>,
}

/// The content for a further channel of a message.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LegBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Address>,
    #[serde(default)]
    pub content: Content,
    #[serde(default)]
    pub attachments: u32,
}

impl Body {
    /// Returns the content for the channel of this leg.
    #[must_use]
    pub fn content_of(self, leg: u8) -> Content {
        match usize::from(leg).checked_sub(1) {
            None => self.content,
            Some(further) => self.further.into_iter().nth(further).unwrap_or_default().content,
        }
    }

    fn contents(&self) -> impl Iterator<Item = &Content> {
        std::iter::once(&self.content).chain(self.further.iter().map(|leg| &leg.content))
    }

    fn objects_size(&self) -> usize {
        let objects = [&self.attributes, &self.contact, &self.context, &self.ruling, &self.metadata];
        objects.into_iter().flatten().map(|object| object.get().len()).sum()
    }

    /// Returns the recipient for lists: empty if the connection names it.
    #[must_use]
    pub fn recipient(&self) -> &str {
        self.to.as_ref().map_or("", |to| &to.address)
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
    /// The digest of earlier versions, if it differs: messages stored within the last day are recognised by it.
    pub former: Option<[u8; 32]>,
}

impl Idempotency {
    /// Whether a stored fingerprint is of this request.
    #[must_use]
    pub fn is_of(&self, stored: &[u8]) -> bool {
        stored == self.fingerprint || self.former.is_some_and(|former| stored == former)
    }
}

/// A message as it was accepted; it never changes.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: MessageId,
    pub created_at: Timestamp,
    pub channel: Channel,
    pub priority: Priority,
    pub send_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub reference: Option<String>,
    /// The batch that it came in with.
    pub batch: Option<BatchId>,
    /// Messages of a tenant with the same key go one after another.
    pub ordering_key: Option<String>,
    /// Pins the message to one connection, past the routes.
    pub connection: Option<ConnectionId>,
    pub body: Body,
    /// Of the first channel.
    pub attachments: u32,
    /// Its channels, where it names several.
    pub legs: Option<Arc<Legs>>,
    /// Its contents are excerpts: the database has the whole.
    pub abridged: bool,
}

impl Message {
    /// Replaces large contents by excerpts; returns whether it did.
    pub fn abridge(&mut self) -> bool {
        let large = !self.abridged && self.body.contents().map(Content::size).sum::<usize>() > LARGE;
        if large {
            self.body.content = self.body.content.excerpt();
            self.body.further.iter_mut().for_each(|leg| leg.content = leg.content.excerpt());
            self.abridged = true;
        }
        large
    }

    /// Whether more than is here has to be read for a request: the whole content, or attachments.
    #[must_use]
    pub const fn is_large(&self) -> bool {
        self.abridged || self.attachments > 0
    }

    /// Memory that it takes, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        RECORD + self.body.contents().map(Content::size).sum::<usize>() + self.body.objects_size()
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

    /// The message as one of its legs sees it, which began then: with that channel's content, and
    /// no longer to be sent than that channel is tried.
    #[must_use]
    pub fn as_leg(&self, number: u8, begun_at: Timestamp) -> Self {
        let Some(leg) = self.legs.as_ref().and_then(|legs| legs.get(number)) else { return self.clone() };
        let mut message = self.clone();
        let further = std::mem::take(&mut message.body.further);
        if number > 0 {
            let body = further.into_iter().nth(usize::from(number) - 1).unwrap_or_default();
            message.channel = leg.channel.clone();
            message.connection = leg.connection;
            message.body.to = body.to;
            message.body.content = body.content;
            message.attachments = body.attachments;
        }
        message.send_at = Some(begun_at);
        let given_up_at =
            leg.timeout.and_then(|timeout| begun_at.checked_add(SignedDuration::from_secs(timeout.into())).ok());
        message.expires_at = given_up_at.into_iter().chain(self.expires_at).min();
        message
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
    /// A message with this body and nothing else, as tests need one.
    #[doc(hidden)]
    #[must_use]
    pub fn with_body(channel: Channel, body: Body) -> Self {
        Self {
            id: MessageId::new(),
            created_at: Timestamp::UNIX_EPOCH,
            channel,
            priority: Priority::Normal,
            send_at: None,
            expires_at: None,
            reference: None,
            batch: None,
            ordering_key: None,
            connection: None,
            body,
            attachments: 0,
            legs: None,
            abridged: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let further = vec![LegBody { content: content.clone(), ..LegBody::default() }];
        let mut message =
            Message::with_body("sms".parse().unwrap(), Body { content: content.clone(), further, ..Body::default() });
        let (whole, before) = (message.clone(), crate::price::units(&message));
        assert!(message.size() > 4 * LARGE);
        assert!(message.abridge() && message.abridged && message.is_large() && !message.abridge());
        for leg in [0, 1] {
            let excerpt = message.body.clone().content_of(leg);
            assert_eq!((&excerpt.from, &excerpt.subject), (&content.from, &content.subject));
            assert_eq!(excerpt.text.unwrap(), "é".repeat(rule_input::MAX_TEXT));
            assert_eq!((excerpt.html, excerpt.payload.is_none()), (None, true));
        }
        assert_eq!(RuleInput::of(&message), RuleInput::of(&whole), "rules see the same");
        assert_eq!(crate::price::units(&message), before, "and it costs the same");
    }

    #[test]
    fn a_short_message_stays_as_it_is() {
        let content = Content { html: Some("x".repeat(LARGE)), ..Content::default() };
        let mut message = Message::with_body("sms".parse().unwrap(), Body { content, ..Body::default() });
        assert!(!message.abridge() && !message.is_large());
        assert_eq!(message.body.content.html.as_ref().map(String::len), Some(LARGE));
    }

    #[test]
    fn a_payload_keeps_its_bytes() {
        let body = r#"{"content":{"payload":{"b": 1.0,  "a":2}}}"#;
        let parsed: Body = serde_json::from_str(body).unwrap();
        assert_eq!(parsed.content.payload.as_ref().unwrap().get(), r#"{"b": 1.0,  "a":2}"#);
        assert!(serde_json::to_string(&parsed).unwrap().contains(r#"{"b": 1.0,  "a":2}"#));
    }
}
