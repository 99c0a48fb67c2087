//! Use cases, one file a resource. A use case owns its transaction, its audit entry and the announcement of the change.
//! It knows nothing of HTTP.

pub mod audit;
pub mod backtest;
pub mod breakers;
pub mod change;
pub mod connections;
pub mod decision;
pub mod documents;
pub mod error;
pub mod evaluation;
pub mod events;
pub mod experiments;
pub mod fields;
pub mod health;
pub mod jobs;
pub mod key_lookup;
pub mod keys;
pub mod message_actions;
pub mod message_content;
pub mod messages;
pub mod names;
pub mod overrides;
pub mod providers;
pub mod routes;
pub mod rules;
pub mod scripts;
pub mod secrets;
pub mod sending;
pub mod settings;
pub mod statistics;
pub mod tenants;

use std::{ops::Deref, sync::Arc};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    engine::admission::Admission, engine::callbacks::Callbacks, engine::dispatch::Dispatcher,
    engine::guards::GuardRegistry, engine::rule_runner::RuleRunner, node::providers::Providers,
    node::telemetry::Tracer, node::tenant_config::TenantConfigs,
};
use angarium_domain::{audit::Actor, ids::TenantId};
use angarium_store::Store;
use angarium_transport::sealing::Keyring;
use change::{Change, Changes};
use error::UseCaseError;
use key_lookup::Keys;

pub use angarium_store::page::PageRows;

pub type Result<T, E = UseCaseError> = std::result::Result<T, E>;

/// The author of a request, and the tenant that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub tenant: TenantId,
    pub actor: Actor,
}

/// The state that use cases share. It is cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts of an [`App`].
pub struct Parts {
    pub store: Store,
    /// Where changes begin.
    pub changes: Changes,
    pub tenant_configs: Arc<TenantConfigs>,
    /// For what this node has seen of connections.
    pub guards: Arc<GuardRegistry>,
    pub admission: Admission,
    /// For dry runs.
    pub dispatcher: Arc<Dispatcher>,
    /// For asking rules and scripts.
    pub rules: Arc<RuleRunner>,
    pub providers: Arc<Providers>,
    pub callbacks: Arc<Callbacks>,
    pub keyring: Arc<Keyring>,
    /// The keys that were seen lately; a change of a tenant's configuration calls [`Keys::forget`].
    pub keys: Arc<Keys>,
    /// Rung when something due was put into the queue.
    pub bell: Arc<Notify>,
    pub tracer: Tracer,
    /// Ends what would never end by itself, once the node stops.
    pub stop: CancellationToken,
}

impl App {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Begins a change of what belongs to the principal's tenant.
    pub async fn change(&self, by: &Principal) -> Result<Change> {
        self.changes.begin(by).await
    }

    /// Whether the database takes writes now.
    pub async fn check_writable(&self) -> Result<()> {
        Ok(self.store.check_writable().await?)
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
