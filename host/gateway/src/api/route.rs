//! `/v1/routes`. Create is not activate: a version does nothing until it is activated.

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{RoutesRead, RoutesWrite, Tenant},
    draft::Draft,
    json::Json,
    page::{Page, PageParams, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
    version::{ComparisonParams, RouteInPath, VersionInPath, compared},
};
use crate::app::{
    documents::{VersionActivation, VersionComparison},
    routes::{self, StoredRoute, StoredRouteVersion},
};
use angarium_domain::{document::DocumentKind, ids::RouteId, message::Channel, route::RouteSpec};

/// A new route: its first version, which does nothing until activated.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "uid": "mail", "channel": "email",
    "spec": {"candidates": [{"connection": "primary-smtp"}, {"connection": "backup-smtp"}],
        "retry": {"type": "exponential", "initial_ms": 1000, "max_ms": 600_000, "max_attempts": 10}}
}))]
pub struct NewRoute {
    /// The client's own name for it; works wherever the id does.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    uid: Option<String>,
    // This and the specification are optional for serde alone, so that the rest is checked where
    // they are missing.
    #[serde(default)]
    #[schema(value_type = String, required = true, pattern = "^[a-z][a-z0-9_]{0,31}$", example = "email")]
    channel: Option<String>,
    #[serde(default)]
    #[schema(value_type = RouteSpec, required = true)]
    spec: Option<RouteSpec<String>>,
}

/// A further version.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"spec": {"candidates": [{"connection": "backup-smtp"}, {"connection": "primary-smtp"}]}}))]
pub struct NewRouteVersion {
    #[schema(value_type = RouteSpec)]
    spec: RouteSpec<String>,
}

/// A route.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Route)]
pub struct RouteAnswer {
    #[schema(example = "route_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    uid: Option<String>,
    channel: String,
    /// Null: it does nothing.
    active_version: Option<i32>,
    /// The version that a rollback returns to.
    previous_version: Option<i32>,
    latest_version: i32,
    /// The newest first: the latest 20, and the active one.
    versions: Vec<RouteVersionAnswer>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A version of a route; it never changes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RouteVersion)]
pub struct RouteVersionAnswer {
    version: i32,
    spec: RouteSpec,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it last became active; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    activated_at: Option<Timestamp>,
}

/// Make a route with its first version.
#[utoipa::path(post, path = "/v1/routes", tag = "routes", operation_id = "createRoute",
    request_body = NewRoute,
    responses(
        (status = 201, description = "It was made, and is not active.", body = RouteAnswer),
        (status = 409, description = "The uid is taken.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    Draft(NewRoute { uid, channel, spec }, fields): Draft<NewRoute>,
) -> Result<(StatusCode, Json<RouteAnswer>), Problem> {
    let route = routes::create(&app, &tenant.principal(), uid, channel, spec, fields).await?;
    Ok((StatusCode::CREATED, Json(route.into())))
}

/// List the routes, the newest first.
#[utoipa::path(get, path = "/v1/routes", tag = "routes", operation_id = "listRoutes",
    params(
        ("channel" = Option<String>, Query, pattern = "^[a-z][a-z0-9_]{0,31}$", description = "Only routes of this channel."),
        PageParams,
    ),
    responses((status = 200, description = "A page.", body = Page<RouteAnswer>)))]
pub async fn list(
    tenant: Tenant<RoutesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<RouteAnswer>>, Problem> {
    let channel = query.take("channel", |text| text.parse::<Channel>().map_err(|error| error.to_string()));
    let paging = Paging::<RouteId>::of(&mut query);
    query.finish()?;
    let channel = channel.as_ref().map(Channel::as_str);
    let page = routes::list(&app, tenant.id, channel, paging.after, paging.limit).await?;
    Ok(Json(Page::of(page, |route| route.id.to_string(), RouteAnswer::from)))
}

/// Show a route with its versions.
#[utoipa::path(get, path = "/v1/routes/{route}", tag = "routes", operation_id = "getRoute",
    params(RouteInPath),
    responses((status = 200, description = "The route.", body = RouteAnswer)))]
pub async fn get(
    tenant: Tenant<RoutesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RouteAnswer>, Problem> {
    Ok(Json(routes::get(&app, tenant.id, &name).await?.into()))
}

/// Delete a route. Its versions stay on record for the attempts that name them. Attempts under way end as they would
/// have; a delivery that waits ends as `unroutable`, unless another route of the channel is active by then.
#[utoipa::path(delete, path = "/v1/routes/{route}", tag = "routes", operation_id = "deleteRoute",
    params(
        RouteInPath,
        ("force" = Option<bool>, Query, description = "Delete it although it is the only active route of its channel."),
    ),
    responses(
        (status = 204, description = "It is gone."),
        (status = 409, description = "It is the only active route of its channel.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn delete(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    mut query: Query,
) -> Result<StatusCode, Problem> {
    let force = query.take("force", |text| text.parse().map_err(|_| "must be `true` or `false`".to_owned()));
    query.finish()?;
    routes::delete(&app, &tenant.principal(), &name, force.unwrap_or(false)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a route's versions, the latest first.
#[utoipa::path(get, path = "/v1/routes/{route}/versions", tag = "routes", operation_id = "listRouteVersions",
    params(RouteInPath),
    responses((status = 200, description = "The latest 50, and the active one.", body = Page<RouteVersionAnswer>)))]
pub async fn versions(
    tenant: Tenant<RoutesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Page<RouteVersionAnswer>>, Problem> {
    let versions = routes::versions(&app, tenant.id, &name).await?;
    Ok(Json(Page::whole(versions.into_iter().map(RouteVersionAnswer::from).collect())))
}

/// Add a version, which does nothing until activated.
#[utoipa::path(post, path = "/v1/routes/{route}/versions", tag = "routes", operation_id = "createRouteVersion",
    params(RouteInPath),
    request_body = NewRouteVersion,
    responses((status = 201, description = "The route with the version.", body = RouteAnswer)))]
pub async fn create_version(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(NewRouteVersion { spec }, fields): Draft<NewRouteVersion>,
) -> Result<(StatusCode, Json<RouteAnswer>), Problem> {
    let route = routes::create_version(&app, &tenant.principal(), &name, spec, fields).await?;
    Ok((StatusCode::CREATED, Json(route.into())))
}

/// Compare two versions of a route.
#[utoipa::path(get, path = "/v1/routes/{route}/versions/{version}/compare", tag = "routes",
    operation_id = "compareRouteVersions",
    params(RouteInPath, VersionInPath, ComparisonParams),
    responses(
        (status = 200, description = "Where they differ.", body = VersionComparison),
        (status = 409, description = "No version is active.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn compare(
    tenant: Tenant<RoutesRead>,
    State(app): State<App>,
    UrlPath(version): UrlPath<(String, i32)>,
    query: Query,
) -> Result<Json<VersionComparison>, Problem> {
    compared(&app, tenant.id, DocumentKind::Route, version, query).await
}

/// Activate a version for its channel. It replaces the channel's active route.
#[utoipa::path(post, path = "/v1/routes/{route}/activate", tag = "routes", operation_id = "activateRoute",
    params(RouteInPath),
    request_body = VersionActivation,
    responses(
        (status = 200, description = "It is active.", body = RouteAnswer),
        (status = 409, description = "A connection of it is gone, or another version is active than the expected one.",
            body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn activate(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(activation): Json<VersionActivation>,
) -> Result<Json<RouteAnswer>, Problem> {
    Ok(Json(routes::activate(&app, &tenant.principal(), &name, activation).await?.into()))
}

/// Return to the version that was active before; the two change places.
#[utoipa::path(post, path = "/v1/routes/{route}/rollback", tag = "routes", operation_id = "rollbackRoute",
    params(RouteInPath),
    responses(
        (status = 200, description = "The version before is active.", body = RouteAnswer),
        (status = 409, description = "There is none, or a connection of it is gone.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RouteAnswer>, Problem> {
    Ok(Json(routes::roll_back(&app, &tenant.principal(), &name).await?.into()))
}

impl From<StoredRoute> for RouteAnswer {
    fn from(route: StoredRoute) -> Self {
        Self {
            id: route.id.to_string(),
            uid: route.uid,
            channel: route.channel,
            active_version: route.active_version,
            previous_version: route.previous_version,
            latest_version: route.latest_version,
            versions: route.versions.into_iter().map(RouteVersionAnswer::from).collect(),
            created_at: route.created_at,
            updated_at: route.updated_at,
        }
    }
}

impl From<StoredRouteVersion> for RouteVersionAnswer {
    fn from(stored: StoredRouteVersion) -> Self {
        let StoredRouteVersion { version, spec, created_at, activated_at } = stored;
        Self { version, spec, created_at, activated_at }
    }
}
