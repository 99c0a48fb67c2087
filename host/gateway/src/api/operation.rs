//! The paths for an operator's tools: liveness, readiness and metrics; and the reference of the API.

use std::time::Duration;

use axum::{
    Extension, Router,
    body::Bytes,
    extract::State,
    http::{HeaderValue, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use utoipa::{ToSchema, openapi::OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    HttpState,
    json::Json,
    problem::{Problem, ProblemBody},
    request::SharedAnswer,
};

/// Paths that are answered even if all connections are taken.
pub const OPERATORS_PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// How long the database has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A node that can serve.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether the process lives.
#[utoipa::path(get, path = "/livez", tag = "operations", operation_id = "live", security(()),
    responses((status = 200, description = "The process lives.", body = Health)))]
pub async fn live() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether the node can serve: the database takes writes, the providers are loaded, its keys open stored secrets, and the
/// folders of its configuration can be read.
#[utoipa::path(get, path = "/readyz", tag = "operations", operation_id = "ready", security(()),
    responses(
        (status = 200, description = "The node can serve.", body = Health),
        (status = 503, description = "The node cannot serve now; `detail` gives the reason.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn ready(State(http): State<HttpState>) -> Result<Json<Health>, Problem> {
    match tokio::time::timeout(PATIENCE, http.app.check_writable()).await {
        Ok(Ok(())) if !http.app.providers.are_loaded() => Err(Problem::unavailable("the providers are not loaded yet")),
        Ok(Ok(())) => match http.health.problem() {
            None => Ok(Json(Health { status: "ok" })),
            Some(problem) => Err(Problem::unavailable(&problem)),
        },
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Problem::unavailable("the database does not answer")),
    }
}

/// The node's measurements, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", operation_id = "metrics", security(()),
    responses((status = 200, description = "All of them.", body = String, content_type = "text/plain")))]
pub async fn metrics(State(http): State<HttpState>) -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"))];
    (kind, http.metrics.render()).into_response()
}

async fn relative_location(mut response: Response) -> Response {
    if let Some(location) = response.headers_mut().get_mut(header::LOCATION)
        && location == "/docs/"
    {
        *location = HeaderValue::from_static("docs/");
    }
    response
}

/// The document and the reference that shows it; neither is part of the document.
pub fn undocumented(document: &OpenApi) -> Router<HttpState> {
    // One buffer for all answers: clients that take none of it hold no copies.
    let text = Bytes::from(document.to_json().unwrap_or_default());
    let serve = move || {
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let answer = (kind, Extension(SharedAnswer), text.clone());
        async move { answer }
    };
    // Relative: a proxy may serve all of this below a prefix.
    let reference = SwaggerUi::new("/docs").config(Config::from("../openapi.json"));
    let reference = Router::<HttpState>::from(reference).layer(middleware::map_response(relative_location));
    Router::new().route("/openapi.json", get(serve)).merge(reference)
}
