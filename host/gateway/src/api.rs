//! The HTTP API: extract, call once, wrap. Handlers decide nothing; [`App`] has the parts of the gateway that they
//! need.

mod audit;
mod auth;
mod backtest;
mod body_budget;
mod browsers;
mod callback;
mod connection;
mod dead_letter;
mod document;
mod draft;
mod event;
mod experiment;
mod fields;
mod form;
mod guards;
mod health;
mod json;
mod message;
mod operation;
mod overrides;
mod page;
mod problem;
mod provider;
mod request;
mod resolution;
mod route;
mod rule;
mod script;
mod serve;
mod settings;
mod statistics;

use std::{ops::Deref, sync::Arc};

use axum::{Router, middleware};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::Server;

use crate::{
    engine::admission::Admission,
    engine::callbacks::Callbacks,
    engine::dispatch::Dispatcher,
    engine::fair_semaphore::FairSemaphore,
    engine::guards::GuardRegistry,
    engine::rule_runner::RuleRunner,
    node::health::NodeHealth,
    node::providers::Providers,
    node::telemetry::{Metrics, Tracer},
    node::tenant_config::TenantConfigs,
};
use angarium_domain::ids::TenantId;
use angarium_store::Store;
use angarium_transport::sealing::Keyring;
pub use auth::Keys;
pub use body_budget::BodyBudget;
pub use browsers::Browsers;
pub use json::LONG_READERS;
pub use serve::{ServerSettings, SocketLimits};

/// The state that handlers share. It is cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts of an [`App`].
pub struct Parts {
    pub store: Store,
    pub tenant_configs: Arc<TenantConfigs>,
    /// The node's deficiencies, for `/readyz`.
    pub health: Arc<NodeHealth>,
    /// This node's observations of connections.
    pub guards: Arc<GuardRegistry>,
    pub admission: Admission,
    /// For dry runs.
    pub dispatcher: Arc<Dispatcher>,
    /// For asking rules and scripts.
    pub rules: Arc<RuleRunner>,
    pub providers: Arc<Providers>,
    pub callbacks: Arc<Callbacks>,
    pub keyring: Arc<Keyring>,
    /// The recently seen keys; every observer of a change of a tenant's configuration calls [`Keys::forget`].
    pub keys: Arc<Keys>,
    /// Rung when something due was put into the queue.
    pub bell: Arc<Notify>,
    pub metrics: Metrics,
    pub tracer: Tracer,
    /// Ends what would never end by itself, once the node stops.
    pub stop: CancellationToken,
    /// Whether the node has the role `api`; without it only the operator's paths are there.
    pub serves_tenants: bool,
    /// The longest request body, in bytes.
    pub max_body_bytes: usize,
    /// How many bytes of bodies are held at a time.
    pub bodies: Arc<BodyBudget>,
    /// How many bytes of answers are held at a time.
    pub answers: Arc<BodyBudget>,
    /// Where long bodies wait to be read, tenants by turns.
    pub long_readers: Arc<FairSemaphore>,
    pub browsers: Browsers,
}

impl App {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Lets this node and then all others see a committed change of a tenant's configuration.
    async fn changed(&self, tenant: TenantId) {
        self.keys.forget(tenant);
        self.tenant_configs.renew(tenant).await;
        // The others look each second anyway.
        if let Err(error) = self.store.announce_config(tenant).await {
            tracing::warn!(tenant.id = %tenant, %error, "a change of configuration is not announced");
        }
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Every path that this node serves.
pub fn router(app: App) -> Router {
    let routes = if app.serves_tenants { public(&app) } else { document::operations().into() };
    routes
        .fallback(request::not_found)
        .method_not_allowed_fallback(request::method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), request::surround))
        .with_state(app)
}

fn public(app: &App) -> Router<App> {
    let (routes, mut document) = document::routes().split_for_parts();
    if let Some(base) = app.callbacks.public_url.base() {
        document.servers = Some(vec![Server::new(base)]);
    }
    routes.merge(operation::undocumented(&document))
}

/// Serves the API until `stop`, and then the requests that are under way.
pub async fn serve(listener: TcpListener, app: App, settings: ServerSettings, stop: CancellationToken) {
    serve::run(listener, router(app), settings, stop).await;
}

/// The OpenAPI document, as `/openapi.json` serves it.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    document::routes().into_openapi()
}
