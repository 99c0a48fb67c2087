//! A message's channels as a client sends them, if it names several.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    super::fields::Fields,
    new::{MessageRequest, Named, NewContent, Part, Recipient},
};
use angarium_domain::{
    ids::ConnectionId,
    legs::{self, Leg, LegMode, Legs, Wants},
};

/// For how long a receipt is waited for, if the message does not say, in seconds.
const RECEIPT_WINDOW: u32 = 300;
/// A channel is given up, or a receipt missed, after a week at most.
const LONGEST: u32 = 7 * 24 * 3600;

/// One channel of a message that names several.
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

    /// Returns the recipient and the content for this channel.
    pub fn into_parts(self) -> (Option<Recipient>, NewContent) {
        (self.to, self.content)
    }

    /// Leaves out what means the same as nothing.
    pub(super) fn leave_out_defaults(&mut self) {
        self.to.iter_mut().for_each(Recipient::leave_out_defaults);
        self.content.leave_out_defaults();
    }

    fn check(&self, fields: &mut Fields) {
        check_seconds(fields, "timeout", self.timeout);
        check_seconds(fields, "receipt_window", self.receipt_window);
    }
}

impl MessageRequest {
    /// Whether it names several channels, be it only one of them.
    pub(super) fn has_channels(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Whether the tenant's rules choose its channel.
    pub(super) fn wants_channel(&self) -> bool {
        self.channel.is_none() && !self.has_channels()
    }

    /// Checks members that are only allowed together with `channels`.
    pub(super) fn check_alone(&self, fields: &mut Fields) {
        let given = [
            ("mode", self.mode.is_some()),
            ("wants", self.wants.is_some()),
            ("receipt_window", self.receipt_window.is_some()),
        ];
        for (name, given) in given {
            fields.check(!given, name, "contradiction", || "is only allowed together with `channels`".to_owned());
        }
    }

    /// Its channels, once they hold; each with its attachments.
    pub(super) fn checked_channels(
        &self,
        find: &dyn Fn(&str) -> Option<ConnectionId>,
        fields: &mut Fields,
    ) -> Vec<Part> {
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
        let mut parts = Vec::with_capacity(count);
        let mut numbers = 0..;
        fields.each("channels", &self.channels, |fields, leg| {
            leg.check(fields);
            let named = Named { channel: leg.channel.as_deref(), to: leg.to.as_ref(), content: &leg.content };
            parts.extend(named.checked(leg.pinned_to(), numbers.next().unwrap_or(u8::MAX), find, fields));
        });
        parts
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

    /// How its channels follow each other, without their content.
    pub(super) fn legs(&self, parts: &[Part]) -> Legs {
        let wants = self.wants.unwrap_or_default();
        let leg = |(new, part): (&NewLeg, &Part)| Leg {
            channel: part.channel.clone(),
            connection: part.connection,
            timeout: new.timeout,
            receipt_window: (wants == Wants::Delivered)
                .then(|| new.receipt_window.or(self.receipt_window).unwrap_or(RECEIPT_WINDOW)),
        };
        Legs { mode: self.mode.unwrap_or_default(), wants, legs: self.channels.iter().zip(parts).map(leg).collect() }
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
    use crate::api::message::new::{MessageContext, Unfit};
    use angarium_domain::message;

    fn taken(body: &Value) -> Result<message::NewMessage, Vec<String>> {
        let new: MessageRequest = serde_json::from_value(body.clone()).unwrap();
        let around = MessageContext {
            now: jiff::Timestamp::UNIX_EPOCH,
            header_key: None,
            connection: &|_| None,
            channel: &|_| None,
            condition: &|_| false,
        };
        let problems = |unfit: Unfit| unfit.fields.into_problems().into_iter().map(|problem| problem.pointer).collect();
        new.into_domain(Fields::default(), around).map_err(problems)
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
        let legs = message.legs.as_ref().unwrap();
        assert_eq!((legs.mode, legs.wants), (LegMode::First, Wants::Delivered));
        assert_eq!((legs.legs[0].receipt_window, legs.legs[1].receipt_window), (Some(60), Some(5)));
        let at = message.created_at;
        let (mail, text) = (message.as_leg(0, at), message.as_leg(1, at));
        assert_eq!((mail.channel.as_str(), mail.body.recipient(), mail.attachments), ("email", "ann@example.org", 1));
        assert_eq!(mail.expires_at, Some(at + std::time::Duration::from_secs(30)));
        assert_eq!((text.channel.as_str(), text.body.recipient(), text.attachments), ("sms", "+46700000001", 0));
        assert_eq!((text.body.content.text.as_deref(), text.expires_at), (Some("y"), None));
        assert!(text.body.metadata.is_some() && text.body.further.is_empty());
        assert_eq!(new.attachments[0].leg, 0);
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
