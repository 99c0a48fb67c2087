//! Typed identifiers: a prefix that names the kind, and a UUIDv7 body, so that ids sort by the time of their creation
//! and the database can partition by them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// Why a text is not an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be `{prefix}` and 32 hexadecimal digits (got `{given}`)")]
pub struct InvalidId {
    given: String,
    prefix: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The prefix of every id of this kind.
            pub const PREFIX: &'static str = $prefix;

            /// A new id that sorts after those made before it.
            #[must_use]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The body, as the database keeps it.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl From<Uuid> for $name {
            fn from(body: Uuid) -> Self {
                Self(body)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.strip_prefix($prefix)
                    .filter(|body| body.len() == 32)
                    .and_then(|body| Uuid::try_parse(body).ok())
                    .map(Self)
                    .ok_or_else(|| InvalidId { given: text.chars().take(80).collect(), prefix: $prefix })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*

        /// The prefixes of all ids: a client's own `uid` may not begin with one.
        pub const ALL_PREFIXES: &[&str] = &[$($prefix),*];
    };
}

ids! {
    /// The isolation boundary: everything belongs to one tenant.
    TenantId = "ten_";
    /// A message that a client asked to be delivered to one recipient.
    MessageId = "msg_";
    /// One leg of a message. The first leg's body is the message's.
    DeliveryId = "dlv_";
    /// One try through one connection.
    AttemptId = "att_";
    /// A tenant's configured account at a provider.
    ConnectionId = "conn_";
    /// A channel's routing configuration.
    RouteId = "route_";
    /// A rule: a condition and its consequences for particular messages.
    RuleId = "rule_";
    /// A fact in the outbox.
    EventId = "evt_";
    /// An API key.
    KeyId = "key_";
    /// Work on many messages or dead letters that goes on after its request.
    JobId = "job_";
    /// Messages that one request handed in together.
    BatchId = "batch_";
    /// An audit entry.
    AuditId = "aud_";
    /// A trial of a variant beside the live version.
    ExperimentId = "experiment_";
    /// A differing answer of a shadow.
    DifferenceId = "diff_";
}

/// The bits of a UUID that number a message's legs.
const LEG: u128 = 0xf;

impl MessageId {
    /// A new id whose legs can be numbered.
    #[must_use]
    pub fn with_legs() -> Self {
        Self(Uuid::from_u128(Uuid::now_v7().as_u128() & !LEG))
    }

    /// The id of a leg of this message; there are 16 at most.
    #[must_use]
    pub const fn leg(self, number: u8) -> DeliveryId {
        DeliveryId(Uuid::from_u128(self.0.as_u128() | (number as u128 & LEG)))
    }

    /// The id of the message's first leg: it needs no row of its own to be known.
    #[must_use]
    pub const fn first_delivery(self) -> DeliveryId {
        DeliveryId(self.0)
    }
}

impl DeliveryId {
    /// Returns the number of this leg in the message. A message with one channel may have an id of any kind: its
    /// delivery is leg 0.
    #[must_use]
    pub const fn leg_of(self, message: MessageId) -> u8 {
        ((self.0.as_u128() ^ message.0.as_u128()) & LEG) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form() {
        let id = MessageId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_leg_is_numbered_by_its_messages_id() {
        let message = MessageId::with_legs();
        assert_eq!(message.leg(0), message.first_delivery());
        for number in 0..16 {
            assert_eq!(message.leg(number).leg_of(message), number);
            assert_eq!(message.leg(number).uuid().get_timestamp(), message.uuid().get_timestamp());
        }
        let old = MessageId::new();
        assert_eq!(old.first_delivery().leg_of(old), 0);
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let text = ConnectionId::new().to_string();
        assert!(text.parse::<MessageId>().is_err());
        assert!("msg_".parse::<MessageId>().is_err());
        assert!("msg_018f0000-0000-7000-8000-000000000000".parse::<MessageId>().is_err());
    }
}
