//! The audit: actors, actions and their records.

use std::str::FromStr;

use super::ids::KeyId;

/// The author of a request: a key with its name, and the request's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub key: KeyId,
    /// The key's name.
    pub name: String,
    /// The request's id.
    pub request: Option<String>,
}

impl Actor {
    /// The same, for what belongs to no tenant.
    #[must_use]
    pub fn as_operator(&self) -> OperatorActor {
        OperatorActor { key: Some(self.key), name: self.name.clone(), request: self.request.clone() }
    }
}

/// The author of a change that belongs to no tenant: an operator's key, or a part of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorActor {
    pub key: Option<KeyId>,
    pub name: String,
    pub request: Option<String>,
}

impl OperatorActor {
    /// The gateway by itself, for the reason that the name tells.
    #[must_use]
    pub fn gateway(name: &str) -> Self {
        Self { key: None, name: name.to_owned(), request: None }
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// An action that the audit records.
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
    /// One that was unknown: as sent, as failed, or to be sent again.
    MessageResolved = "message.resolved",
    ContentPurged = "message.content_purged",
    DeadLetterReplayed = "dead_letter.replayed",
    DeadLetterDiscarded = "dead_letter.discarded",
    /// All that matched, or as many of them as one request discards.
    DeadLettersDiscarded = "dead_letters.discarded",
    /// Of all dead letters that match.
    ReplayStarted = "replay.started",
    ReplayCanceled = "replay.canceled",
    RuleCreated = "rule.created",
    RuleChanged = "rule.changed",
    RuleDeleted = "rule.deleted",
    RuleShadowed = "rule.shadow_started",
    RuleCanaried = "rule.canary_started",
    RuleCandidateEnded = "rule.candidate_ended",
    /// Its candidate took its place.
    RulePromoted = "rule.promoted",
    RuleRolledBack = "rule.rolled_back",
    ScriptAdded = "script.version_added",
    ScriptShadowed = "script.shadow_started",
    ScriptCanaried = "script.canary_started",
    ScriptCandidateEnded = "script.candidate_ended",
    ScriptPromoted = "script.promoted",
    ScriptRolledBack = "script.rolled_back",
    /// Taken out of service; its versions stay.
    ScriptRetired = "script.retired",
    /// Its breaker was reset by hand, on every node.
    ScriptReset = "script.reset",
    /// A component was stored, and does not serve.
    ProviderInstalled = "provider.installed",
    /// A component was put in service.
    ProviderActivated = "provider.activated",
    ProviderRolledBack = "provider.rolled_back",
    /// A version was removed, or all of them.
    ProviderUninstalled = "provider.uninstalled",
    ProviderGranted = "provider.granted",
    /// The gateway took a version from all tenants.
    ProviderQuarantined = "provider.quarantined",
}

/// A text that names no action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {}", Action::ALL.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(", "))]
pub struct InvalidAction;

impl FromStr for Action {
    type Err = InvalidAction;

    fn from_str(text: &str) -> Result<Self, InvalidAction> {
        Self::ALL.iter().copied().find(|action| action.as_str() == text).ok_or(InvalidAction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_survives_its_text_form() {
        for action in Action::ALL {
            assert_eq!(action.as_str().parse(), Ok(*action));
        }
        assert!("message.sent".parse::<Action>().unwrap_err().to_string().contains("message.resolved"));
    }
}
