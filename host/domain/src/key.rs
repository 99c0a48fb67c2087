//! The scopes of an API key. The key's text is never stored.

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ids::{KeyId, TenantId};

/// A permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scope {
    #[serde(rename = "messages:write")]
    MessagesWrite,
    #[serde(rename = "messages:read")]
    MessagesRead,
    /// Reads what was sent, with its attachments.
    #[serde(rename = "content:read")]
    ContentRead,
    #[serde(rename = "connections:write")]
    ConnectionsWrite,
    #[serde(rename = "connections:read")]
    ConnectionsRead,
    #[serde(rename = "routes:write")]
    RoutesWrite,
    #[serde(rename = "routes:read")]
    RoutesRead,
    #[serde(rename = "rules:write")]
    RulesWrite,
    #[serde(rename = "rules:read")]
    RulesRead,
    #[serde(rename = "providers:read")]
    ProvidersRead,
    #[serde(rename = "audit:read")]
    AuditRead,
    /// Installs providers and grants hosts, for all tenants; only the command line gives it.
    #[serde(rename = "operator")]
    Operator,
}

/// A text that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {all} (got `{0}`)", all = Scope::ALL.map(Scope::as_str).join(", "))]
pub struct InvalidScope(String);

impl Scope {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::MessagesWrite,
        Self::MessagesRead,
        Self::ContentRead,
        Self::ConnectionsWrite,
        Self::ConnectionsRead,
        Self::RoutesWrite,
        Self::RoutesRead,
        Self::RulesWrite,
        Self::RulesRead,
        Self::ProvidersRead,
        Self::AuditRead,
        Self::Operator,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessagesWrite => "messages:write",
            Self::MessagesRead => "messages:read",
            Self::ContentRead => "content:read",
            Self::ConnectionsWrite => "connections:write",
            Self::ConnectionsRead => "connections:read",
            Self::RoutesWrite => "routes:write",
            Self::RoutesRead => "routes:read",
            Self::RulesWrite => "rules:write",
            Self::RulesRead => "rules:read",
            Self::ProvidersRead => "providers:read",
            Self::AuditRead => "audit:read",
            Self::Operator => "operator",
        }
    }
}

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| InvalidScope(text.to_owned()))
    }
}

/// A key as the database keeps it, without its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub tenant: TenantId,
    pub id: KeyId,
    /// For people.
    pub name: String,
    /// The beginning of its text.
    pub hint: String,
    pub scopes: Vec<Scope>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    /// Whether it opens anything at `now`.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    #[must_use]
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}
