//! Who did what: what an audit record says of a person's doing.

use std::str::FromStr;

use super::ids::KeyId;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `None` for the command line on the database.
    pub key: Option<KeyId>,
    /// The key's name.
    pub name: String,
    /// The request's id.
    pub request: Option<String>,
}

impl Actor {
    /// An operator whose command line speaks to the database.
    #[must_use]
    pub fn operator() -> Self {
        Self { key: None, name: "command line".to_owned(), request: None }
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What was done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Action {
            $($(#[$doc])* $name,)*
        }

        impl Action {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

actions! {
    MessageCanceled = "message.canceled",
    MessageRetried = "message.retried",
    /// An unknown one: as sent, as failed, or to be sent again.
    MessageResolved = "message.resolved",
    ContentPurged = "message.content_purged",
    DeadLetterReplayed = "dead_letter.replayed",
    DeadLetterDiscarded = "dead_letter.discarded",
    /// Of all dead letters that match.
    ReplayStarted = "replay.started",
    ReplayCanceled = "replay.canceled",
    ConnectionCreated = "connection.created",
    ConnectionUpdated = "connection.updated",
    ConnectionDeleted = "connection.deleted",
    SecretRotated = "secret.rotated",
    RouteActivated = "route.activated",
    RouteRolledBack = "route.rolled_back",
    KeyCreated = "key.created",
    KeyRevoked = "key.revoked",
}

/// A text that names no action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no action; the actions are {}", Action::ALL.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(", "))]
pub struct InvalidAction;

impl FromStr for Action {
    type Err = InvalidAction;

    fn from_str(text: &str) -> Result<Self, InvalidAction> {
        Self::ALL.iter().copied().find(|action| action.as_str() == text).ok_or(InvalidAction)
    }
}
