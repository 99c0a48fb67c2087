//! The audit: actors, actions and what an action reaches.

use std::str::FromStr;

use super::{ids::JobId, key::ApiKey};

/// The kind of an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActorKind {
    /// A request with an API key.
    ApiKey,
    /// A person with an account.
    User,
    /// Work that goes on after its request.
    Job,
    /// A command on the database, by a user of the operating system.
    CommandLine,
    /// A part of the gateway by itself.
    Gateway,
}

impl ActorKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::User => "user",
            Self::Job => "job",
            Self::CommandLine => "command_line",
            Self::Gateway => "gateway",
        }
    }
}

/// The author of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub kind: ActorKind,
    /// The id of the key, user or job; none for the command line and the gateway.
    pub id: Option<String>,
    /// The name then: of the key, of the operating system's user, of the part of the gateway.
    pub name: String,
    /// The request's id, for a change by a request.
    pub request: Option<String>,
}

impl Actor {
    /// A request with this key.
    #[must_use]
    pub fn api_key(key: &ApiKey, request: Option<String>) -> Self {
        Self { kind: ActorKind::ApiKey, id: Some(key.id.to_string()), name: key.name.clone(), request }
    }

    /// A job that was started by a request.
    #[must_use]
    pub fn job(id: JobId, name: &str) -> Self {
        Self { kind: ActorKind::Job, id: Some(id.to_string()), name: name.to_owned(), request: None }
    }

    /// A command of this user of the operating system.
    #[must_use]
    pub fn command_line(user: &str) -> Self {
        Self { kind: ActorKind::CommandLine, id: None, name: user.to_owned(), request: None }
    }

    /// The gateway by itself, for the reason that the name tells.
    #[must_use]
    pub fn gateway(part: &str) -> Self {
        Self { kind: ActorKind::Gateway, id: None, name: part.to_owned(), request: None }
    }
}

/// The scope of an action's change, beside its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionReach {
    /// Messages and what belongs to them.
    Messages,
    /// The tenant's configuration in service: every node reads it again.
    Configuration,
    /// The same, for a configuration that may grow: its size limit applies.
    GrowingConfiguration,
    /// Data of no single tenant, data that nodes look up each time, or versions that do nothing yet.
    Nothing,
}

macro_rules! actions {
    ($($reach:ident { $($(#[$doc:meta])* $name:ident = $text:literal,)* })*) => {
        /// An action that the audit records.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Action {
            $($($(#[$doc])* $name,)*)*
        }

        impl Action {
            /// All of them.
            pub const ALL: &[Self] = &[$($(Self::$name),*),*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$name => $text,)*)*
                }
            }

            /// Returns the scope of its change, beside its subject.
            #[must_use]
            pub const fn reach(self) -> ActionReach {
                match self {
                    $($(Self::$name => ActionReach::$reach,)*)*
                }
            }
        }
    };
}

actions! {
    Messages {
        MessageCanceled = "message.canceled",
        MessageRetried = "message.retried",
        /// An unknown message was resolved: as sent, as failed, or to be sent again.
        MessageResolved = "message.resolved",
        ContentPurged = "message.content_purged",
        /// The content, or the attachment that `after` names.
        ContentRead = "message.content_read",
        /// It was moved while it waited.
        MessageRescheduled = "message.rescheduled",
        DeadLetterReplayed = "dead_letter.replayed",
        DeadLetterDiscarded = "dead_letter.discarded",
        /// All that matched, or as many of them as one request discards.
        DeadLettersDiscarded = "dead_letters.discarded",
        /// Of all dead letters that match.
        ReplayStarted = "replay.started",
        ReplayCanceled = "replay.canceled",
        /// On all messages that match, or on those that were listed.
        MessageJobStarted = "message_job.started",
        MessageJobCanceled = "message_job.canceled",
    }
    GrowingConfiguration {
        ConnectionCreated = "connection.created",
        ConnectionChanged = "connection.changed",
        RouteActivated = "route.activated",
        RouteRolledBack = "route.rolled_back",
        RuleCreated = "rule.created",
        RuleChanged = "rule.changed",
        RuleActivated = "rule.activated",
        RuleExperimentBegun = "rule.experiment_begun",
        RuleRolledBack = "rule.rolled_back",
        ScriptActivated = "script.activated",
        ScriptExperimentBegun = "script.experiment_begun",
        ScriptRolledBack = "script.rolled_back",
    }
    Configuration {
        ConnectionDeleted = "connection.deleted",
        /// A secret has a new value; the entry has its version alone.
        SecretRotated = "connection.secret_rotated",
        RouteDeleted = "route.deleted",
        RuleDeleted = "rule.deleted",
        RuleExperimentEnded = "rule.experiment_ended",
        ScriptExperimentEnded = "script.experiment_ended",
        /// Taken out of service; its versions stay.
        ScriptRetired = "script.retired",
        /// Its breaker was reset by hand, on every node.
        ScriptReset = "script.reset",
        SettingsChanged = "settings.changed",
        KeyRevoked = "key.revoked",
    }
    Nothing {
        /// With its first version, which does nothing yet.
        RouteCreated = "route.created",
        RouteVersionAdded = "route.version_added",
        RuleVersionAdded = "rule.version_added",
        ScriptVersionAdded = "script.version_added",
        BreakerOpened = "breaker.opened",
        BreakerClosed = "breaker.closed",
        KeyCreated = "key.created",
        TenantCreated = "tenant.created",
        /// It has another retention class.
        TenantClassified = "tenant.classified",
        /// Stored secrets stand under another key-encryption key.
        SecretsRewrapped = "secrets.rewrapped",
        SchemaMigrated = "schema.migrated",
        /// A file of the folder of rules is in service, for all tenants or for one.
        OperatorScriptActivated = "operator_script.activated",
        /// Its file is gone.
        OperatorScriptRetired = "operator_script.retired",
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
