//! A message's legs and body as the database has them: as JSON.
//!
//! The column `body` has the first leg's recipient and content beside the members of [`Body`], and those of the others
//! in `further`. The column `legs` has the channels and how they follow each other. It is null for a message that names
//! no list: the channel and connection of its leg are columns of their own.

use std::{borrow::Cow, iter};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Result, StoreError};
use angarium_domain::{
    ids::ConnectionId,
    legs::{Leg, LegMode, LegPolicy, Legs, Wants},
    message::{Address, Body, Channel, Content, Message},
};

/// Returns a message's JSON for the column `body`.
#[must_use]
pub fn body_json(message: &Message) -> Vec<u8> {
    let Leg { to, content, .. } = message.first();
    let further = message.legs.iter().skip(1).map(FurtherContent::of).collect();
    let stored = StoredBody { to: to.as_ref(), content, body: &message.body, further };
    // Plain data: it always has a JSON form.
    serde_json::to_vec(&stored).unwrap_or_default()
}

/// Returns the JSON for the column `legs`; `None` for a message that names no list.
pub fn legs_json(legs: &Legs) -> Option<String> {
    if !legs.is_list() {
        return None;
    }
    let LegPolicy { mode, wants, .. } = legs.policy();
    let stored = StoredLegs { mode, wants, legs: legs.iter().map(StoredLeg::of).collect() };
    Some(serde_json::to_string(&stored).unwrap_or_default())
}

/// Reads a message's legs and body. `first` has the columns of the first leg, and `legs` is the column of that name.
pub fn read(first: Leg, body: &[u8], legs: Option<&str>) -> Result<(Legs, Body)> {
    let StoredContents { to, content, further } = parse(body)?;
    let first = Leg { to, content, ..first };
    let legs = match legs {
        None => Legs::single(first),
        Some(legs) => parse::<StoredLegs>(legs.as_bytes())?.with(first, further)?,
    };
    Ok((legs, parse(body)?))
}

/// Returns the metadata in the column `body`, as the client wrote it.
///
/// The database can't: it refuses all of a JSON text that has `\u0000` or half of a surrogate pair anywhere. A body
/// without a readable form has no metadata here, so that one message silences no list of events.
pub fn body_metadata(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata<'a> {
        #[serde(default, borrow)]
        metadata: Option<&'a RawValue>,
    }
    let read = serde_json::from_slice::<Metadata<'_>>(body);
    let read = read.inspect_err(|error| tracing::warn!(%error, "an event is shown without its message's metadata"));
    read.ok()?.metadata.map(|metadata| metadata.get().to_owned())
}

#[derive(Serialize)]
struct StoredBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a Address>,
    content: &'a Content,
    #[serde(flatten)]
    body: &'a Body,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further: Vec<FurtherContent<'a>>,
}

/// The contents in `body`: a purge takes them away.
#[derive(Deserialize)]
struct StoredContents {
    to: Option<Address>,
    #[serde(default)]
    content: Content,
    #[serde(default)]
    further: Vec<FurtherContent<'static>>,
}

/// The content of the second leg or one after it.
#[derive(Default, Serialize, Deserialize)]
struct FurtherContent<'a> {
    #[serde(default, skip_serializing_if = "no_recipient")]
    to: Cow<'a, Option<Address>>,
    #[serde(default)]
    content: Cow<'a, Content>,
    #[serde(default)]
    attachments: u32,
}

impl<'a> FurtherContent<'a> {
    fn of(leg: &'a Leg) -> Self {
        Self { to: Cow::Borrowed(&leg.to), content: Cow::Borrowed(&leg.content), attachments: leg.attachments }
    }
}

fn no_recipient(to: &Option<Address>) -> bool {
    to.is_none()
}

/// The column `legs` of a message that names a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredLegs {
    mode: LegMode,
    wants: Wants,
    /// 1 to 16; the place is the leg's number.
    legs: Vec<StoredLeg>,
}

impl StoredLegs {
    pub fn from_json(json: &str) -> Result<Self> {
        parse(json.as_bytes())
    }

    pub fn policy(&self) -> LegPolicy {
        LegPolicy { mode: self.mode, wants: self.wants, count: u8::try_from(self.legs.len()).unwrap_or(u8::MAX) }
    }

    /// The channel of a leg; empty if there is no such leg.
    pub fn channel(&self, number: u8) -> &str {
        self.legs.get(usize::from(number)).map_or("", |leg| leg.channel.as_str())
    }

    /// The seconds for which a leg's receipt is waited for.
    pub fn receipt_window(&self, number: u8) -> u32 {
        self.legs.get(usize::from(number)).and_then(|leg| leg.receipt_window).unwrap_or_default()
    }

    /// Returns the legs with their contents, as far as they were not purged.
    fn with(self, first: Leg, further: Vec<FurtherContent<'_>>) -> Result<Legs> {
        let first = FurtherContent {
            to: Cow::Owned(first.to),
            content: Cow::Owned(first.content),
            attachments: first.attachments,
        };
        let contents = iter::once(first).chain(further).chain(iter::repeat_with(FurtherContent::default));
        let legs = self.legs.into_iter().zip(contents).map(|(leg, content)| leg.with(content));
        let legs = Legs::list(self.mode, self.wants, legs.collect());
        legs.ok_or_else(|| StoreError::Failed(sqlx::Error::Decode("a message has no leg, or too many".into())))
    }
}

/// A leg without its content.
#[derive(Debug, Serialize, Deserialize)]
struct StoredLeg {
    channel: Channel,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connection: Option<ConnectionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    receipt_window: Option<u32>,
}

impl StoredLeg {
    fn of(leg: &Leg) -> Self {
        let Leg { channel, connection, timeout, receipt_window, .. } = leg;
        Self { channel: channel.clone(), connection: *connection, timeout: *timeout, receipt_window: *receipt_window }
    }

    fn with(self, FurtherContent { to, content, attachments }: FurtherContent<'_>) -> Leg {
        let Self { channel, connection, timeout, receipt_window } = self;
        let (to, content) = (to.into_owned(), content.into_owned());
        Leg { channel, connection, timeout, receipt_window, to, content, attachments }
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(super::corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(channel: &str, content: &str) -> Leg {
        Leg { content: serde_json::from_str(content).unwrap(), ..Leg::on(channel.parse().unwrap()) }
    }

    /// The two columns of a message.
    fn stored(message: &Message) -> (String, Option<String>) {
        (String::from_utf8(body_json(message)).unwrap(), legs_json(&message.legs))
    }

    #[test]
    fn a_payload_keeps_its_bytes() {
        let metadata = serde_json::from_str(r#"{"a":  1.0}"#).unwrap();
        let message = Message::with(
            leg("webhook", r#"{"payload":{"b": 1.0,  "a":2}}"#),
            Body { metadata: Some(metadata), ..Body::default() },
        );
        let (body, legs) = stored(&message);
        assert_eq!(body, r#"{"content":{"payload":{"b": 1.0,  "a":2}},"metadata":{"a":  1.0}}"#);
        assert_eq!(legs, None);
        let (legs, body) = read(leg("webhook", "{}"), body.as_bytes(), None).unwrap();
        assert_eq!(legs.first().content.payload.as_ref().unwrap().get(), r#"{"b": 1.0,  "a":2}"#);
        assert_eq!((body.metadata.unwrap().get(), legs.is_list()), (r#"{"a":  1.0}"#, false));
    }

    #[test]
    fn metadata_is_read_beside_whatever_a_client_escapes() {
        let body = br#"{"content":{"payload":{"\u0000":"\ud800"}},"metadata":{"e":"\ud800","\u0000":  1}}"#;
        assert_eq!(body_metadata(body).as_deref(), Some(r#"{"e":"\ud800","\u0000":  1}"#));
        for none in [&b"{}"[..], br#"{"metadata":null}"#, b"{", b"\xff"] {
            assert_eq!(body_metadata(none), None);
        }
    }

    #[test]
    fn a_list_of_channels_is_stored_as_it_always_was() {
        let to = |address: &str| Some(Address { address: address.to_owned(), name: None });
        let first = Leg { to: to("ann@example.org"), timeout: Some(30), ..leg("email", r#"{"subject":"x"}"#) };
        let second = Leg { to: to("+46701"), attachments: 2, ..leg("sms", r#"{"text":"y"}"#) };
        let legs = Legs::list(LegMode::All, Wants::Sent, vec![first, second]).unwrap();
        let message = Message { legs, ..Message::with(leg("email", "{}"), Body::default()) };
        let (body, legs) = stored(&message);
        assert_eq!(
            body,
            r#"{"to":{"address":"ann@example.org"},"content":{"subject":"x"},"further":[{"to":{"address":"+46701"},"content":{"text":"y"},"attachments":2}]}"#
        );
        let legs = legs.unwrap();
        assert_eq!(
            legs,
            r#"{"mode":"all","wants":"sent","legs":[{"channel":"email","timeout":30},{"channel":"sms"}]}"#
        );
        let (back, _) = read(leg("email", "{}"), body.as_bytes(), Some(&legs)).unwrap();
        assert_eq!((back.policy(), back.get(1).unwrap().recipient()), (message.legs.policy(), "+46701"));
        assert_eq!((back.first().timeout, back.get(1).unwrap().attachments), (Some(30), 2));
    }

    #[test]
    fn a_purged_list_keeps_its_channels() {
        let legs = r#"{"mode":"first","wants":"sent","legs":[{"channel":"email"},{"channel":"sms"}]}"#;
        let (purged, _) = read(leg("email", "{}"), b"{}", Some(legs)).unwrap();
        let legs: Vec<_> = purged.iter().map(|leg| (leg.channel.as_str(), leg.recipient())).collect();
        assert_eq!(legs, [("email", ""), ("sms", "")]);
        assert!(read(leg("email", "{}"), b"{}", Some(r#"{"mode":"first","wants":"sent","legs":[]}"#)).is_err());
    }
}
