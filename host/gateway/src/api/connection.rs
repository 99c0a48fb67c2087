//! `/v1/connections`. Secrets go in and never come out: answers have their names and versions.

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    App,
    auth::{ConnectionsRead, ConnectionsWrite, Tenant},
    draft::Draft,
    json::Json,
    page::{Page, PageParams, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::app::connections::{
    self, ConnectionChange, ConnectionView, ConnectionWarning, NewConnection, NewSecret, SecretVersion,
};
use angarium_domain::{guards::Guards, ids::ConnectionId};

/// A cause that keeps messages from leaving through a connection.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConnectionWarning)]
pub struct WarningAnswer {
    /// `provider_not_serving` or `host_not_granted`.
    code: &'static str,
    detail: String,
}

/// A connection.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Connection)]
pub struct ConnectionAnswer {
    /// Causes that keep messages from leaving through it now; empty if there are none.
    warnings: Vec<WarningAnswer>,
    #[schema(example = "conn_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    uid: Option<String>,
    name: String,
    provider: String,
    #[schema(value_type = Object)]
    config: Box<RawValue>,
    enabled: bool,
    /// With all defaults.
    guards: Guards,
    /// The URL for the service's reports about deliveries; only a path if the gateway's `http.public_url` is not set.
    /// Null for a provider that reads no callbacks. Unless the service signs its reports, everybody with this URL can
    /// pose as the service.
    #[schema(example = "https://angarium.example.org/v1/callbacks/kVq1…")]
    callback_url: Option<String>,
    /// Their values are never shown.
    secrets: Vec<SecretAnswer>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A secret without its value.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Secret)]
pub struct SecretAnswer {
    name: String,
    /// Grows with each rotation.
    version: i32,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// Make a connection.
#[utoipa::path(post, path = "/v1/connections", tag = "connections", operation_id = "createConnection",
    request_body = NewConnection,
    responses(
        (status = 201, description = "It was created.", body = ConnectionAnswer),
        (status = 409, description = "The uid is taken.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    tenant: Tenant<ConnectionsWrite>,
    State(app): State<App>,
    Draft(new, fields): Draft<NewConnection>,
) -> Result<(StatusCode, Json<ConnectionAnswer>), Problem> {
    let view = connections::create(&app, &tenant.principal(), new, fields).await?;
    Ok((StatusCode::CREATED, Json(view.into())))
}

/// List the connections, the newest first.
#[utoipa::path(get, path = "/v1/connections", tag = "connections", operation_id = "listConnections",
    params(PageParams),
    responses((status = 200, description = "A page.", body = Page<ConnectionAnswer>)))]
pub async fn list(
    tenant: Tenant<ConnectionsRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<ConnectionAnswer>>, Problem> {
    let paging = Paging::<ConnectionId>::of(&mut query);
    query.finish()?;
    let page = connections::list(&app, tenant.id, paging.after, paging.limit).await?;
    Ok(Json(Page::of(page, |view| view.connection.id.to_string(), ConnectionAnswer::from)))
}

/// Show a connection.
#[utoipa::path(get, path = "/v1/connections/{connection}", tag = "connections", operation_id = "getConnection",
    params(("connection" = String, Path, description = "`conn_…` or its uid")),
    responses((status = 200, description = "The connection.", body = ConnectionAnswer)))]
pub async fn get(
    tenant: Tenant<ConnectionsRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ConnectionAnswer>, Problem> {
    Ok(Json(connections::get(&app, tenant.id, &name).await?.into()))
}

/// Change a part of a connection.
#[utoipa::path(patch, path = "/v1/connections/{connection}", tag = "connections", operation_id = "updateConnection",
    params(("connection" = String, Path, description = "`conn_…` or its uid")),
    request_body = ConnectionChange,
    responses(
        (status = 200, description = "The present state.", body = ConnectionAnswer),
        (status = 409, description = "The uid is taken.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn update(
    tenant: Tenant<ConnectionsWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(change, fields): Draft<ConnectionChange>,
) -> Result<Json<ConnectionAnswer>, Problem> {
    Ok(Json(connections::update(&app, &tenant.principal(), &name, change, fields).await?.into()))
}

/// Delete a connection and its secrets. Refused while an active route names it.
#[utoipa::path(delete, path = "/v1/connections/{connection}", tag = "connections", operation_id = "deleteConnection",
    params(("connection" = String, Path, description = "`conn_…` or its uid")),
    responses(
        (status = 204, description = "It is gone."),
        (status = 409, description = "An active route names it.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn delete(
    tenant: Tenant<ConnectionsWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    connections::delete(&app, &tenant.principal(), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Give a secret a new value. The old one stays valid for the overlap.
#[utoipa::path(put, path = "/v1/connections/{connection}/secrets/{name}", tag = "connections",
    operation_id = "rotateSecret",
    params(
        ("connection" = String, Path, description = "`conn_…` or its uid"),
        ("name" = String, Path, description = "One of the names that the provider lists."),
    ),
    request_body = NewSecret,
    responses(
        (status = 200, description = "Its new version.", body = SecretAnswer),
        (status = 409, description = "No version of the provider serves now.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn rotate(
    tenant: Tenant<ConnectionsWrite>,
    State(app): State<App>,
    UrlPath((connection, name)): UrlPath<(String, String)>,
    Draft(new, fields): Draft<NewSecret>,
) -> Result<Json<SecretAnswer>, Problem> {
    Ok(Json(connections::rotate(&app, &tenant.principal(), &connection, name, new, fields).await?.into()))
}

impl From<ConnectionView> for ConnectionAnswer {
    fn from(view: ConnectionView) -> Self {
        let ConnectionView { connection, secrets, callback_url, warnings } = view;
        Self {
            warnings: warnings.into_iter().map(WarningAnswer::from).collect(),
            id: connection.id.to_string(),
            uid: connection.uid,
            name: connection.name,
            provider: connection.provider,
            config: connection.config,
            enabled: connection.enabled,
            guards: connection.guards,
            callback_url,
            secrets: secrets.into_iter().map(SecretAnswer::from).collect(),
            created_at: connection.created_at,
            updated_at: connection.updated_at,
        }
    }
}

impl From<ConnectionWarning> for WarningAnswer {
    fn from(ConnectionWarning { code, detail }: ConnectionWarning) -> Self {
        Self { code, detail }
    }
}

impl From<SecretVersion> for SecretAnswer {
    fn from(SecretVersion { name, version, created_at }: SecretVersion) -> Self {
        Self { name, version, created_at }
    }
}
