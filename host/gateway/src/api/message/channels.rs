//! A message's channels as a client names them: one beside the message's other members, or a list. From here on they are
//! a list.

use std::mem;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    super::fields::{Fields, channel},
    new::{MessageRequest, NewContent, Recipient, check_recipient},
};
use crate::app::sending::ParseContext;
use angarium_domain::{
    ids::ConnectionId,
    legs::{self, Leg, LegMode, Legs, Wants},
    message::{Attachment, Channel},
};

/// For how long a receipt is waited for, if the message does not say, in seconds.
const RECEIPT_WINDOW: u32 = 300;
/// A channel is given up, or a receipt missed, after a week at most.
const LONGEST: u32 = 7 * 24 * 3600;

/// One channel of a message that names a list.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLeg {
    /// `email`, `sms`, `mms`, `webhook`, … or another that a provider brings.
    // Optional for serde alone, so that the rest is checked where it is missing.
    #[serde(default)]
    #[schema(value_type = String, required = true, pattern = "^[a-z][a-z0-9_]{0,31}$", example = "sms")]
    channel: Option<String>,
    /// The recipient on this channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Recipient>,
    #[serde(default)]
    content: NewContent,
    /// A connection's id or uid, to use it past the channel's route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128)]
    connection: Option<String>,
    /// The seconds from its beginning in which this channel must send: after that it is dropped, and the next one is
    /// tried. At most seven days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604800)]
    timeout: Option<u32>,
    /// The message's `receipt_window`, for this channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604800)]
    receipt_window: Option<u32>,
}

impl NewLeg {
    /// The connection that it names.
    pub fn pinned_to(&self) -> Option<&str> {
        self.connection.as_deref()
    }

    /// Exchanges its members with those of a message without a list.
    pub(super) fn swap_with(&mut self, message: &mut MessageRequest) {
        mem::swap(&mut self.channel, &mut message.channel);
        mem::swap(&mut self.to, &mut message.to);
        mem::swap(&mut self.content, &mut message.content);
        mem::swap(&mut self.connection, &mut message.connection);
    }

    /// Leaves out what means the same as nothing.
    pub(super) fn leave_out_defaults(&mut self) {
        self.to.iter_mut().for_each(Recipient::leave_out_defaults);
        self.content.leave_out_defaults();
    }

    /// Returns the leg with its files; `None` if its channel is invalid. All other faults are in the fields.
    fn into_domain(
        self,
        number: u8,
        receipt_window: Option<u32>,
        context: &ParseContext<'_>,
        fields: &mut Fields,
    ) -> Option<(Leg, Vec<Attachment>)> {
        check_seconds(fields, "timeout", self.timeout);
        check_seconds(fields, "receipt_window", self.receipt_window);
        let channel = channel(fields, self.channel.as_deref());
        let connection = self.connection.as_deref().and_then(|name| pinned(name, context, fields));
        let name = self.channel.as_deref().unwrap_or_default();
        check_recipient(self.to.as_ref(), name, fields);
        let files = fields.within("content", |fields| self.content.checked(number, name == "email", fields));
        let leg = Leg {
            channel: channel?,
            connection,
            timeout: self.timeout,
            receipt_window: receipt_window.map(|window| self.receipt_window.unwrap_or(window)),
            to: self.to.map(Recipient::into_domain),
            content: self.content.into_domain(),
            attachments: u32::try_from(files.len()).unwrap_or(u32::MAX),
        };
        Some((leg, files))
    }
}

fn pinned(name: &str, context: &ParseContext<'_>, fields: &mut Fields) -> Option<ConnectionId> {
    let found = context.connection(name);
    fields.check(found.is_some(), "connection", "unknown_connection", || {
        "does not exist: GET /v1/connections lists the connections".to_owned()
    });
    found
}

/// The channels of a message as a list, in whichever form the client named them.
pub(super) struct NamedLegs {
    legs: Vec<NewLeg>,
    /// The client named a list: faults point into it.
    is_list: bool,
    mode: LegMode,
    wants: Wants,
    /// For legs without one of their own; `None` if no receipt is waited for.
    receipt_window: Option<u32>,
}

impl NamedLegs {
    /// Returns the legs with their files; `None` if a channel is invalid. All other faults are in the fields.
    pub fn into_domain(self, context: &ParseContext<'_>, fields: &mut Fields) -> (Option<Legs>, Vec<Attachment>) {
        let Self { legs: named, is_list, mode, wants, receipt_window } = self;
        let mut legs = Vec::with_capacity(named.len());
        let mut files = Vec::new();
        let mut convert = |fields: &mut Fields, (number, leg): (u8, NewLeg)| {
            if let Some((leg, its)) = leg.into_domain(number, receipt_window, context, fields) {
                legs.push(leg);
                files.extend(its);
            }
        };
        let numbered = (0..=u8::MAX).zip(named);
        if is_list {
            fields.each("channels", numbered, convert);
            (Legs::list(mode, wants, legs), files)
        } else {
            numbered.for_each(|leg| convert(fields, leg));
            (legs.pop().map(Legs::single), files)
        }
    }
}

impl MessageRequest {
    /// Whether it names a list of channels, be it only one of them.
    pub(super) fn has_channels(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Whether it lists a single channel, with nothing that only a list may have, and no channel beside it.
    pub(super) fn is_one_channel_listed(&self) -> bool {
        let [leg] = self.channels.as_slice() else { return false };
        let leg_is_plain = leg.channel.is_some() && leg.timeout.is_none() && leg.receipt_window.is_none();
        let list_is_plain = self.mode.is_none() && self.wants.is_none() && self.receipt_window.is_none();
        let is_beside = self.channel.is_some() || self.to.is_some() || self.connection.is_some();
        leg_is_plain && list_is_plain && !is_beside && self.content.is_empty()
    }

    /// Whether the tenant's rules choose its channel.
    pub(super) fn wants_channel(&self) -> bool {
        self.channel.is_none() && !self.has_channels()
    }

    /// Takes its channels out as a list, and checks the members that only one form allows. `chosen` is the rules' channel
    /// for a message that names none.
    pub(super) fn take_legs(&mut self, chosen: Option<&Channel>, fields: &mut Fields) -> NamedLegs {
        let is_list = self.has_channels();
        match is_list {
            true => self.check_list(fields),
            false => self.check_alone(fields),
        }
        let legs = if is_list { mem::take(&mut self.channels) } else { vec![self.take_only_leg(chosen)] };
        let (mode, wants) = (self.mode.unwrap_or_default(), self.wants.unwrap_or_default());
        let waits = is_list && wants == Wants::Delivered;
        let receipt_window = waits.then(|| self.receipt_window.unwrap_or(RECEIPT_WINDOW));
        NamedLegs { legs, is_list, mode, wants, receipt_window }
    }

    fn take_only_leg(&mut self, chosen: Option<&Channel>) -> NewLeg {
        let chosen = || chosen.map(|channel| channel.as_str().to_owned());
        NewLeg {
            channel: self.channel.take().or_else(chosen),
            to: self.to.take(),
            content: mem::take(&mut self.content),
            connection: self.connection.take(),
            timeout: None,
            receipt_window: None,
        }
    }

    /// Checks members that are only allowed together with `channels`.
    fn check_alone(&self, fields: &mut Fields) {
        let given = [
            ("mode", self.mode.is_some()),
            ("wants", self.wants.is_some()),
            ("receipt_window", self.receipt_window.is_some()),
        ];
        for (name, given) in given {
            fields.check(!given, name, "contradiction", || "is only allowed together with `channels`".to_owned());
        }
    }

    /// Checks members that are not allowed beside `channels`, and the list as a whole.
    fn check_list(&self, fields: &mut Fields) {
        let given = [
            ("channel", self.channel.is_some()),
            ("to", self.to.is_some()),
            ("connection", self.connection.is_some()),
            ("content", !self.content.is_empty()),
        ];
        for (name, given) in given {
            fields.check(!given, name, "contradiction", || {
                "is not allowed beside `channels`: give it in each of them".to_owned()
            });
        }
        let count = self.channels.len();
        fields.check(count <= legs::MOST, "channels", "too_long", || "must list at most 16 channels".to_owned());
        self.check_windows(fields);
    }

    /// A receipt is only waited for where something follows from its absence.
    fn check_windows(&self, fields: &mut Fields) {
        let all = self.mode == Some(LegMode::All);
        let wants = self.wants.unwrap_or_default();
        fields.check(!(all && wants == Wants::Delivered), "wants", "contradiction", || {
            "is not allowed to be `delivered` with `mode: all`, which tries every channel anyway".to_owned()
        });
        let waits = wants == Wants::Delivered;
        let needless = "is only allowed together with `wants: delivered`: without it no receipt is waited for";
        fields.check(waits || self.receipt_window.is_none(), "receipt_window", "contradiction", || needless.to_owned());
        check_seconds(fields, "receipt_window", self.receipt_window);
        fields.each("channels", &self.channels, |fields, leg| {
            fields.check(waits || leg.receipt_window.is_none(), "receipt_window", "contradiction", || {
                needless.to_owned()
            });
        });
    }
}

fn check_seconds(fields: &mut Fields, name: &str, seconds: Option<u32>) {
    let fits = seconds.is_none_or(|seconds| (1..=LONGEST).contains(&seconds));
    fields.check(fits, name, "out_of_range", || format!("must be 1 to {LONGEST} seconds (seven days)"));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::message::new::ClientMessage,
        app::sending::{AdmitError, MessageSource},
        node::tenant_config::TenantConfig,
    };
    use angarium_domain::message;

    fn taken(body: &Value) -> Result<message::NewMessage, Vec<String>> {
        let request = serde_json::from_value(body.clone()).unwrap();
        let client = ClientMessage { request, fields: Fields::default(), header_key: None };
        let config = TenantConfig::default();
        let context = ParseContext { now: jiff::Timestamp::UNIX_EPOCH, chance: 0.5, config: &config };
        client.parse(&context).map_err(|unparsed| match unparsed.error {
            AdmitError::Invalid(problems) => problems.into_iter().map(|problem| problem.pointer).collect(),
            other => panic!("{other}"),
        })
    }

    #[test]
    fn each_channel_keeps_its_own_content() {
        let new = taken(&json!({"wants": "delivered", "receipt_window": 60, "metadata": {"a": 1}, "channels": [
            {"channel": "email", "to": "ann@example.org", "content": {"subject": "x", "attachments": [
                {"name": "a", "media_type": "a/b", "content": "aGk="}]}, "timeout": 30},
            {"channel": "sms", "to": "+46700000001", "content": {"text": "y"}, "receipt_window": 5},
        ]}))
        .unwrap();
        let message = &new.message;
        let policy = message.legs.policy();
        assert_eq!((policy.mode, policy.wants, policy.count), (LegMode::First, Wants::Delivered, 2));
        assert_eq!(message.legs.iter().map(|leg| leg.receipt_window).collect::<Vec<_>>(), [Some(60), Some(5)]);
        let at = message.created_at;
        let (mail, text) = (message.as_leg(0, at), message.as_leg(1, at));
        let named = |leg: &Leg| (leg.channel.as_str().to_owned(), leg.recipient().to_owned(), leg.attachments);
        assert_eq!(named(mail.first()), ("email".to_owned(), "ann@example.org".to_owned(), 1));
        assert_eq!(mail.expires_at, Some(at + std::time::Duration::from_secs(30)));
        assert_eq!(named(text.first()), ("sms".to_owned(), "+46700000001".to_owned(), 0));
        assert_eq!((text.first().content.text.as_deref(), text.expires_at), (Some("y"), None));
        assert!(text.body.metadata.is_some() && text.legs.policy().count == 1);
        assert_eq!(new.attachments[0].leg, 0);
    }

    #[test]
    fn one_channel_is_a_list_of_one() {
        let leg = json!({"channel": "sms", "to": "+46700000001", "content": {"text": "y"}});
        let (single, list) = (taken(&leg).unwrap().message, taken(&json!({"channels": [leg]})).unwrap().message);
        assert_eq!((single.legs.is_list(), list.legs.is_list()), (false, true));
        assert_eq!(single.legs.policy(), list.legs.policy());
        assert_eq!(format!("{:?}", single.first()), format!("{:?}", list.first()));
        for (at, pointers) in [
            (json!({"channel": "SMS", "to": "+1"}), ["/channel", "/to"]),
            (json!({"channels": [{"channel": "SMS", "to": "+1"}]}), ["/channels/0/channel", "/channels/0/to"]),
        ] {
            let bad = taken(&at).unwrap_err();
            assert!(bad.iter().all(|pointer| pointers.contains(&pointer.as_str())), "{bad:?}");
            assert_eq!(bad[0], pointers[0]);
        }
    }

    #[test]
    fn every_bad_field_of_every_channel_is_named() {
        let bad = taken(&json!({"channel": "sms", "to": "x", "mode": "all", "wants": "delivered", "channels": [
            {"channel": "email", "to": "ann", "timeout": 0},
            {"channel": "SMS", "connection": "nope", "receipt_window": 604_801},
            {"to": "+46700000001", "content": {"media_urls": ["ftp://x"]}},
        ]}));
        let expected = [
            "/channel",
            "/to",
            "/wants",
            "/channels/0/timeout",
            "/channels/0/to",
            "/channels/1/receipt_window",
            "/channels/1/channel",
            "/channels/1/connection",
            "/channels/2/channel",
            "/channels/2/content/media_urls/0",
        ];
        assert_eq!(bad.unwrap_err(), expected);
    }

    #[test]
    fn what_belongs_to_several_channels_goes_with_them() {
        let bad = taken(&json!({"channel": "webhook", "mode": "first", "wants": "sent", "receipt_window": 5}));
        assert_eq!(bad.unwrap_err(), ["/mode", "/wants", "/receipt_window"]);
        let bad = taken(&json!({"receipt_window": 5, "content": {"text": "x"},
            "channels": [{"channel": "webhook", "receipt_window": 5}]}));
        assert_eq!(bad.unwrap_err(), ["/content", "/receipt_window", "/channels/0/receipt_window"]);
        assert_eq!(taken(&json!({})).unwrap_err(), ["/channel"]);
    }
}
