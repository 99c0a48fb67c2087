//! A tenant's configured account at a provider, as stored; its secrets stand elsewhere.

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{guards::Guards, ids::ConnectionId};

/// A connection without its secrets.
#[derive(Debug, Clone)]
pub struct Connection {
    pub id: ConnectionId,
    /// The client's own name for it; works wherever the id does.
    pub uid: Option<String>,
    /// For people.
    pub name: String,
    /// The provider's name.
    pub provider: String,
    /// JSON, valid by the provider's schema when it was written.
    pub config: Box<RawValue>,
    pub enabled: bool,
    pub guards: Guards,
    /// The end of its callback URL: random, and known only to its service.
    pub callback_token: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
