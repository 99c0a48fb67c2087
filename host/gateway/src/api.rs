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
mod filter;
mod form;
mod guards;
mod health;
mod job;
mod json;
mod message;
mod operation;
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
mod version;

use std::{ops::Deref, sync::Arc};

use axum::{Router, extract::FromRef, middleware};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::Server;

use crate::{
    app::{App, fields},
    engine::fair_semaphore::FairSemaphore,
    node::health::NodeHealth,
    node::telemetry::Metrics,
};
pub use body_budget::BodyBudget;
pub use browsers::Browsers;
pub use json::LONG_READERS;
pub use serve::{ServerSettings, SocketLimits};

/// The state that handlers and layers share: the use cases, and what HTTP needs beside them. It is cheap to clone.
#[derive(Clone)]
pub struct HttpState(Arc<HttpParts>);

/// The parts of an [`HttpState`].
pub struct HttpParts {
    pub app: App,
    /// The node's deficiencies, for `/readyz`.
    pub health: Arc<NodeHealth>,
    pub metrics: Metrics,
    /// Whether the node has the role `api`; without it only the operator's paths are there.
    pub serves_tenants: bool,
    /// The longest request body, in bytes.
    pub max_body_bytes: usize,
    /// How many bytes of bodies are held at a time.
    pub bodies: Arc<BodyBudget>,
    /// How many bytes of answers are held at a time.
    pub answers: Arc<BodyBudget>,
    /// The wait of long bodies for a reader, tenants by turns.
    pub long_readers: Arc<FairSemaphore>,
    pub browsers: Browsers,
}

impl HttpState {
    #[must_use]
    pub fn new(parts: HttpParts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for HttpState {
    type Target = HttpParts;

    fn deref(&self) -> &HttpParts {
        &self.0
    }
}

/// Handlers take the use cases alone.
impl FromRef<HttpState> for App {
    fn from_ref(http: &HttpState) -> Self {
        http.app.clone()
    }
}

/// Every path that this node serves.
pub fn router(http: HttpState) -> Router {
    let routes = if http.serves_tenants { public(&http) } else { document::operations().into() };
    routes
        .fallback(request::not_found)
        .method_not_allowed_fallback(request::method_not_allowed)
        .layer(middleware::from_fn_with_state(http.clone(), request::surround))
        .with_state(http)
}

fn public(http: &HttpState) -> Router<HttpState> {
    let (routes, mut document) = document::routes().split_for_parts();
    if let Some(base) = http.app.callbacks.public_url.base() {
        document.servers = Some(vec![Server::new(base)]);
    }
    routes.merge(operation::undocumented(&document))
}

/// Serves the API until `stop`, and then the requests that are under way.
pub async fn serve(listener: TcpListener, http: HttpState, settings: ServerSettings, stop: CancellationToken) {
    serve::run(listener, router(http), settings, stop).await;
}

/// The OpenAPI document, as `/openapi.json` serves it.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    document::routes().into_openapi()
}
