//! `/v1/routes`. Create is not activate: a version does nothing until it is activated.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{RoutesRead, RoutesWrite, Tenant},
    draft::Draft,
    fields::{self, Fields},
    json::Json,
    overrides,
    page::{Page, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::{
    app::{connections, error::UseCaseError},
    clock,
};
use angarium_domain::{
    ids::{ConnectionId, RouteId, TenantId},
    message::Channel,
    provider::Cost,
    retry::RetryPolicy,
    route::RouteSpec,
};
use angarium_rules::{rulebook::Rulebook, script::Hook};
use angarium_store::{
    self as store, Connection as Db, StoreError,
    connection::connection_lock,
    page::PageRows,
    route::{
        RouteRow, RouteVersion, route_activate, route_deactivate_others, route_find, route_insert, route_list,
        route_lock, route_version_get, route_version_insert, route_versions,
    },
    tenant::tenant_config_grow,
};

/// Candidates of a route, as the document says.
const MAX_CANDIDATES: usize = 20;

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
pub struct NewVersion {
    #[schema(value_type = RouteSpec)]
    spec: RouteSpec<String>,
}

/// Which version is to serve.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": 2}))]
pub struct Activation {
    #[schema(minimum = 1)]
    version: i32,
}

/// A route.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RouteRow)]
pub struct RouteAnswer {
    #[schema(example = "route_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    uid: Option<String>,
    channel: String,
    /// Null: it does nothing.
    active_version: Option<i32>,
    /// The version that a rollback returns to.
    previous_version: Option<i32>,
    latest_version: Option<i32>,
    /// The newest first, at most 20.
    versions: Vec<VersionAnswer>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A version of a route; it never changes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RouteVersion)]
pub struct VersionAnswer {
    version: i32,
    spec: RouteSpec,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// Make a route with its first version.
#[utoipa::path(post, path = "/v1/routes", tag = "routes", operation_id = "createRoute",
    request_body = NewRoute,
    responses(
        (status = 201, description = "The version was created, and is not active.", body = RouteAnswer),
        (status = 409, description = "The uid is taken.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    Draft(new, mut fields): Draft<NewRoute>,
) -> Result<(StatusCode, Json<RouteAnswer>), Problem> {
    if let Some(uid) = &new.uid {
        fields::uid(&mut fields, uid);
    }
    let channel = fields::channel(&mut fields, new.channel.as_deref());
    let mut txn = app.store.tenant(tenant.id).await?;
    let spec = match new.spec {
        Some(spec) => Some(checked(spec, &app, &mut txn, tenant.id, channel.as_ref(), &mut fields).await?),
        None => None,
    };
    if spec.is_none() {
        fields.missing("spec");
    }
    let (Some(channel), Some(spec), true) = (channel, spec, fields.is_empty()) else { return Err(refusal(fields)) };
    let now = clock::now();
    let (id, uid) = (RouteId::new(), new.uid);
    let route =
        RouteRow { id, uid, channel, active_version: None, previous_version: None, created_at: now, updated_at: now };
    route_insert(&mut txn, tenant.id, &route).await.map_err(taken)?;
    route_version_insert(&mut txn, tenant.id, id, &spec).await?;
    let answer = answers(&mut txn, tenant.id, vec![route]).await?.remove(0);
    txn.commit().await.map_err(StoreError::from)?;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// List the routes, the newest first.
#[utoipa::path(get, path = "/v1/routes", tag = "routes", operation_id = "listRoutes",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 250, description = "50 by default."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page."),
    ),
    responses((status = 200, description = "A page.", body = Page<RouteAnswer>)))]
pub async fn list(
    tenant: Tenant<RoutesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<RouteAnswer>>, Problem> {
    let paging = Paging::<RouteId>::of(&mut query);
    query.finish()?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let PageRows { rows, more } = route_list(&mut txn, tenant.id, paging.after, paging.limit).await?;
    let rows = answers(&mut txn, tenant.id, rows).await?;
    Ok(Json(Page::of(PageRows { rows, more }, |row| row.id.clone(), |row| row)))
}

/// Show a route with its versions.
#[utoipa::path(get, path = "/v1/routes/{route}", tag = "routes", operation_id = "getRoute",
    params(("route" = String, Path, description = "`route_…` or its uid")),
    responses((status = 200, description = "The route.", body = RouteAnswer)))]
pub async fn get(
    tenant: Tenant<RoutesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RouteAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let route = named(&mut txn, tenant.id, &name).await?;
    Ok(Json(answers(&mut txn, tenant.id, vec![route]).await?.remove(0)))
}

/// Add a version, which does nothing until activated.
#[utoipa::path(post, path = "/v1/routes/{route}/versions", tag = "routes", operation_id = "createRouteVersion",
    params(("route" = String, Path, description = "`route_…` or its uid")),
    request_body = NewVersion,
    responses((status = 201, description = "The route with the version.", body = RouteAnswer)))]
pub async fn create_version(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(new, mut fields): Draft<NewVersion>,
) -> Result<(StatusCode, Json<RouteAnswer>), Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let route = locked(&mut txn, tenant.id, &name).await?;
    let spec = checked(new.spec, &app, &mut txn, tenant.id, Some(&route.channel), &mut fields).await?;
    fields.finish()?;
    route_version_insert(&mut txn, tenant.id, route.id, &spec).await?;
    let answer = answers(&mut txn, tenant.id, vec![route]).await?.remove(0);
    txn.commit().await.map_err(StoreError::from)?;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Let a version route its channel. It takes the channel from whichever other route has it.
#[utoipa::path(post, path = "/v1/routes/{route}/activate", tag = "routes", operation_id = "activateRoute",
    params(("route" = String, Path, description = "`route_…` or its uid")),
    request_body = Activation,
    responses(
        (status = 200, description = "It is active.", body = RouteAnswer),
        (status = 409, description = "A connection of it is gone.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn activate(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(Activation { version }): Json<Activation>,
) -> Result<Json<RouteAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let route = locked(&mut txn, tenant.id, &name).await?;
    let wanted = route_version_get(&mut txn, tenant.id, route.id, version).await?;
    let wanted = wanted.ok_or_else(|| Problem::field("/version", "unknown_version", "does not exist"))?;
    let previous = if route.active_version == Some(version) { route.previous_version } else { route.active_version };
    put_in_service(&mut txn, tenant.id, &route, &wanted, previous).await?;
    let answer = reread(&mut txn, tenant.id, route.id).await?;
    txn.commit().await.map_err(StoreError::from)?;
    app.changed(tenant.id).await;
    Ok(Json(answer))
}

/// Return to the version that was active before; the two change places.
#[utoipa::path(post, path = "/v1/routes/{route}/rollback", tag = "routes", operation_id = "rollbackRoute",
    params(("route" = String, Path, description = "`route_…` or its uid")),
    responses(
        (status = 200, description = "The previous version is active.", body = RouteAnswer),
        (status = 409, description = "There is no previous version, or a connection of it is gone.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    tenant: Tenant<RoutesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RouteAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let route = locked(&mut txn, tenant.id, &name).await?;
    let previous = route.previous_version.ok_or_else(no_previous)?;
    let wanted = route_version_get(&mut txn, tenant.id, route.id, previous).await?.ok_or_else(no_previous)?;
    put_in_service(&mut txn, tenant.id, &route, &wanted, route.active_version).await?;
    let answer = reread(&mut txn, tenant.id, route.id).await?;
    txn.commit().await.map_err(StoreError::from)?;
    app.changed(tenant.id).await;
    Ok(Json(answer))
}

/// Makes a version the active one. Its connections are locked first, so that none is deleted
/// meanwhile.
async fn put_in_service(
    db: &mut Db,
    tenant: TenantId,
    route: &RouteRow,
    wanted: &RouteVersion,
    previous: Option<i32>,
) -> Result<(), Problem> {
    let mut connections: Vec<_> = wanted.spec.candidates.iter().map(|candidate| candidate.connection).collect();
    connections.sort();
    for connection in connections {
        if !connection_lock(db, tenant, connection).await? {
            let detail = format!("the connection {connection} of this version was deleted: make a version without it");
            return Err(Problem::conflict("connection_gone", detail));
        }
    }
    route_deactivate_others(db, tenant, route.id, &route.channel).await?;
    route_activate(db, tenant, route.id, Some(wanted.version), previous).await?;
    Ok(tenant_config_grow(db, tenant).await?)
}

/// The specification with ids in place of uids; its problems go to `fields`.
///
/// The document has the bounds; these are the checks that it can't express.
async fn checked(
    spec: RouteSpec<String>,
    app: &App,
    db: &mut Db,
    tenant: TenantId,
    channel: Option<&Channel>,
    fields: &mut Fields,
) -> Result<RouteSpec, Problem> {
    let mut ids = Vec::with_capacity(spec.candidates.len().min(MAX_CANDIDATES));
    for (index, candidate) in spec.candidates.iter().take(MAX_CANDIDATES).enumerate() {
        let id = match usable(app, db, tenant, channel, &candidate.connection).await? {
            Ok(id) => id,
            Err((code, detail)) => {
                candidate_is_bad(fields, index, code, detail);
                // Keeps the places of the candidates after it; the route is refused anyway.
                ConnectionId::new()
            }
        };
        if ids.contains(&id) {
            candidate_is_bad(fields, index, "repeated", "must be listed once");
        }
        ids.push(id);
    }
    overrides::check(&spec.overrides, db, &["spec"], fields).await?;
    let is_known = match &spec.retry {
        RetryPolicy::Custom { rule, .. } => decides_retries(app, tenant, rule).await?,
        _ => true,
    };
    fields.within("spec", |fields| {
        check_currencies(&spec, fields);
        fields.within("retry", |fields| check_retry(&spec.retry, is_known, fields));
    });
    Ok(spec.with_connections(ids))
}

/// Amounts of a route are compared with each other, so they are in one currency.
fn check_currencies(spec: &RouteSpec<String>, fields: &mut Fields) {
    let costs = spec.candidates.iter().flat_map(|it| [&it.cost, &it.max_cost]);
    let first = [&spec.max_cost].into_iter().chain(costs).flatten().next();
    check_currency(fields, "max_cost", spec.max_cost.as_ref(), first);
    fields.each("candidates", &spec.candidates, |fields, candidate| {
        check_currency(fields, "cost", candidate.cost.as_ref(), first);
        check_currency(fields, "max_cost", candidate.max_cost.as_ref(), first);
    });
}

fn check_currency(fields: &mut Fields, name: &str, cost: Option<&Cost>, first: Option<&Cost>) {
    let one = cost.zip(first).is_none_or(|(cost, first)| cost.currency == first.currency);
    fields.within(name, |fields| {
        fields.check(one, "currency", "mixed_currencies", || {
            "must be the currency of the route's other amounts".to_owned()
        });
    });
}

/// Refuses a script that does not exist, one in the place of another, and delays that contradict each other.
fn check_retry(retry: &RetryPolicy, is_known: bool, fields: &mut Fields) {
    if let RetryPolicy::Custom { otherwise, .. } = retry {
        fields.check(is_known, "rule", "unknown_rule", || {
            "must name a script that is live and has the hook `retry`".to_owned()
        });
        let plain = !matches!(**otherwise, RetryPolicy::Custom { .. });
        fields.check(plain, "otherwise", "not_a_choice", || "must not be a script's again".to_owned());
        return fields.within("otherwise", |fields| check_delays(otherwise, fields));
    }
    check_delays(retry, fields);
}

fn check_delays(retry: &RetryPolicy, fields: &mut Fields) {
    for (field, detail) in retry.problems() {
        fields.check(false, field, "out_of_range", || detail);
    }
}

fn candidate_is_bad(fields: &mut Fields, index: usize, code: &str, detail: &str) {
    fields.elsewhere(format!("/spec/candidates/{index}/connection"), code, detail);
}

/// The id of a connection that can serve the channel, or why it can't.
async fn usable(
    app: &App,
    db: &mut Db,
    tenant: TenantId,
    channel: Option<&Channel>,
    name: &str,
) -> Result<Result<ConnectionId, (&'static str, &'static str)>, Problem> {
    let connection = match connections::named(db, tenant, name).await {
        Ok(connection) => connection,
        Err(UseCaseError::NotFound(_)) => {
            return Ok(Err(("unknown_connection", "does not exist: GET /v1/connections lists the connections")));
        }
        Err(error) => return Err(error.into()),
    };
    let Some(serving) = app.providers.serving(&connection.provider) else {
        return Ok(Err(("provider_not_serving", "must be of a provider with a version that serves")));
    };
    let channels = &serving.component.descriptor().channels;
    let served = channel.is_none_or(|channel| channels.iter().any(|name| name == channel.as_str()));
    Ok(if served {
        Ok(connection.id)
    } else {
        Err(("wrong_channel", "must be of a provider that serves this channel"))
    })
}

/// The route of an id or uid.
async fn named(db: &mut Db, tenant: TenantId, name: &str) -> Result<RouteRow, Problem> {
    if name.chars().any(char::is_control) {
        return Err(missing());
    }
    route_find(db, tenant, name.parse().ok(), name).await?.ok_or_else(missing)
}

/// The same, kept from changing until the transaction ends.
async fn locked(db: &mut Db, tenant: TenantId, name: &str) -> Result<RouteRow, Problem> {
    let id = named(db, tenant, name).await?.id;
    Ok(route_lock(db, tenant, id).await?)
}

async fn reread(db: &mut Db, tenant: TenantId, id: RouteId) -> Result<RouteAnswer, Problem> {
    let route = route_lock(db, tenant, id).await?;
    Ok(answers(db, tenant, vec![route]).await?.remove(0))
}

async fn answers(db: &mut Db, tenant: TenantId, rows: Vec<RouteRow>) -> store::Result<Vec<RouteAnswer>> {
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let mut versions: BTreeMap<RouteId, Vec<VersionAnswer>> = BTreeMap::new();
    for version in route_versions(db, tenant, &ids).await? {
        versions.entry(version.route).or_default().push(version.into());
    }
    Ok(rows.into_iter().map(|row| answer(versions.remove(&row.id).unwrap_or_default(), row)).collect())
}

fn answer(versions: Vec<VersionAnswer>, row: RouteRow) -> RouteAnswer {
    RouteAnswer {
        id: row.id.to_string(),
        uid: row.uid,
        channel: row.channel.as_str().to_owned(),
        active_version: row.active_version,
        previous_version: row.previous_version,
        latest_version: versions.first().map(|version| version.version),
        versions,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

impl From<RouteVersion> for VersionAnswer {
    fn from(row: RouteVersion) -> Self {
        Self { version: row.version, spec: row.spec, created_at: row.created_at }
    }
}

/// Whether a script of this name is live and has the hook `retry`.
async fn decides_retries(app: &App, tenant: TenantId, script: &str) -> Result<bool, Problem> {
    let config = app.tenant_configs.reload(tenant).await?;
    let has = |book: &Rulebook| book.scripts.iter().any(|it| it.name == script && it.has(Hook::Retry));
    Ok(config.rulebook.as_deref().is_some_and(has))
}

fn refusal(fields: Fields) -> Problem {
    Problem::fields(fields.into_problems())
}

fn taken(error: StoreError) -> Problem {
    match error {
        StoreError::Conflict { constraint } if constraint == "route_uid" => {
            Problem::conflict("uid_taken", "another route has this uid")
        }
        other => other.into(),
    }
}

fn missing() -> Problem {
    Problem::not_found("route")
}

fn no_previous() -> Problem {
    Problem::conflict("no_previous_version", "no other version of this route was active before")
}
