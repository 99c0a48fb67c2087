//! `/v1/connections`. Secrets go in and never come out: answers have their names and versions.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    App,
    auth::{ConnectionsRead, ConnectionsWrite, Tenant},
    draft::Draft,
    fields::{self, Fields},
    guards::{self, Guards},
    json::Json,
    page::{Page, Paging},
    problem::{Problem, ProblemBody},
    provider::not_granted,
    request::{Query, UrlPath},
};
use crate::{clock, credential};
use angarium_domain::{
    connection::Connection,
    destination::adds_a_destination,
    ids::{ConnectionId, TenantId},
    provider::SecretSpec,
};
use angarium_runtime::Component;
use angarium_store::{
    self as store, Connection as Db, StoreError,
    connection::{
        connection_delete, connection_find, connection_insert, connection_lock, connection_page, connection_routes,
        connection_update,
    },
    page::PageRows,
    secret::{
        SecretName, secret_delete, secret_delete_expired, secret_insert, secret_names, secret_names_of,
        secret_next_version, secret_retire,
    },
    tenant::{tenant_config_bump, tenant_config_grow},
};
use angarium_transport::sealing::{Secret, SecretPlace};

const MOST_SECRET_CHARACTERS: usize = 64 << 10;
const MOST_CONFIG_BYTES: usize = 64 << 10;
/// 30 days.
const LONGEST_OVERLAP: u32 = 30 * 24 * 3600;

/// A new connection.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "uid": "shop-hook", "provider": "webhook", "config": {"url": "https://example.com/hook"},
    "secrets": {"signing_key": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"}
}))]
pub struct NewConnection {
    /// The client's own name for it; works wherever the id does.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    uid: Option<String>,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 256)]
    name: Option<String>,
    /// The provider's name.
    // Optional for serde alone, so that the rest is checked where it is missing.
    #[serde(default)]
    #[schema(value_type = String, required = true, min_length = 1, max_length = 128)]
    provider: Option<String>,
    /// By the provider's schema.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    config: Option<Box<RawValue>>,
    /// By the names that the provider lists.
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    /// Whether messages may go through it; true, if left out.
    #[serde(default)]
    enabled: Option<bool>,
    /// Its circuit breaker's policy and its limit on the rate.
    #[serde(default)]
    guards: Option<Guards>,
}

/// A change of a connection; members that are left out stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "The shop's hook", "config": {"url": "https://example.com/hook"}, "secrets": {"authorization": null}}))]
pub struct ConnectionChange {
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    uid: Option<String>,
    #[serde(default)]
    #[schema(max_length = 256)]
    name: Option<String>,
    /// The whole new config.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    config: Option<Box<RawValue>>,
    #[serde(default)]
    enabled: Option<bool>,
    /// Its circuit breaker's policy and its limit on the rate; the whole new ones.
    #[serde(default)]
    guards: Option<Guards>,
    /// New values, which apply at once and without an overlap; null deletes a secret. A `config` that sends requests to
    /// another destination (scheme, host, port or kind of TLS) must come with every secret of the connection, set or
    /// deleted: no secret can be read by redirecting it.
    #[serde(default)]
    secrets: BTreeMap<String, Option<String>>,
}

/// A secret's new value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"value": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "overlap_seconds": 86400}))]
pub struct NewSecret {
    #[schema(min_length = 1, max_length = 65536)]
    value: String,
    /// How long the old value stays valid; at most 30 days. Left out, it ends at once.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    overlap_seconds: Option<u32>,
}

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
        (status = 201, description = "It was made.", body = ConnectionAnswer),
        (status = 409, description = "The uid is taken.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    tenant: Tenant<ConnectionsWrite>,
    State(app): State<App>,
    Draft(new, fields): Draft<NewConnection>,
) -> Result<(StatusCode, Json<ConnectionAnswer>), Problem> {
    let (connection, secrets) = new.into_domain(&app, fields)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    connection_insert(&mut txn, tenant.id, &connection).await.map_err(taken)?;
    for (name, value) in &secrets {
        secret_store(&app, &mut txn, tenant.id, connection.id, name, value, 1).await?;
    }
    tenant_config_grow(&mut txn, tenant.id).await?;
    let answer = answers(&app, &mut txn, tenant.id, vec![connection]).await?.remove(0);
    txn.commit().await.map_err(StoreError::from)?;
    app.changed(tenant.id).await;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// List the connections, the newest first.
#[utoipa::path(get, path = "/v1/connections", tag = "connections", operation_id = "listConnections",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 250, description = "50, if left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
    ),
    responses((status = 200, description = "A page.", body = Page<ConnectionAnswer>)))]
pub async fn list(
    tenant: Tenant<ConnectionsRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<ConnectionAnswer>>, Problem> {
    let paging = Paging::<ConnectionId>::of(&mut query);
    query.finish()?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let PageRows { rows, more } = connection_page(&mut txn, tenant.id, paging.after, paging.limit).await?;
    let rows = answers(&app, &mut txn, tenant.id, rows).await?;
    Ok(Json(Page::of(PageRows { rows, more }, |row| row.id.clone(), |row| row)))
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
    let mut txn = app.store.tenant(tenant.id).await?;
    let connection = named(&mut txn, tenant.id, &name).await?;
    Ok(Json(answers(&app, &mut txn, tenant.id, vec![connection]).await?.remove(0)))
}

/// Change a part of a connection.
#[utoipa::path(patch, path = "/v1/connections/{connection}", tag = "connections", operation_id = "updateConnection",
    params(("connection" = String, Path, description = "`conn_…` or its uid")),
    request_body = ConnectionChange,
    responses(
        (status = 200, description = "As it is now.", body = ConnectionAnswer),
        (status = 409, description = "The uid is taken.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn update(
    tenant: Tenant<ConnectionsWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(change, fields): Draft<ConnectionChange>,
) -> Result<Json<ConnectionAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let found = locked(&mut txn, tenant.id, &name).await?;
    let (id, has) = (found.id, secret_names_of(&mut txn, tenant.id, found.id).await?);
    let (connection, secrets) = change.apply(&app, fields, found, &has)?;
    connection_update(&mut txn, tenant.id, &connection).await.map_err(taken)?;
    for (name, value) in &secrets {
        secret_change(&app, &mut txn, tenant.id, id, name, value.as_deref()).await?;
    }
    if !secrets.is_empty() {
        guards::mended(&mut txn, tenant.id, id, &connection.guards.breaker).await?;
    }
    tenant_config_grow(&mut txn, tenant.id).await?;
    let answer = answers(&app, &mut txn, tenant.id, vec![connection]).await?.remove(0);
    txn.commit().await.map_err(StoreError::from)?;
    if !secrets.is_empty() {
        guards::announce(&app, id).await;
    }
    app.changed(tenant.id).await;
    Ok(Json(answer))
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
    let mut txn = app.store.tenant(tenant.id).await?;
    let connection = locked(&mut txn, tenant.id, &name).await?;
    let routes = connection_routes(&mut txn, tenant.id, connection.id).await?;
    if let Some(route) = routes.first() {
        let detail = format!("the active route {route} names this connection: activate a version without it first");
        return Err(Problem::conflict("connection_in_use", detail));
    }
    connection_delete(&mut txn, tenant.id, connection.id).await?;
    tenant_config_bump(&mut txn, tenant.id).await?;
    txn.commit().await.map_err(StoreError::from)?;
    app.changed(tenant.id).await;
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
    Draft(new, mut fields): Draft<NewSecret>,
) -> Result<Json<SecretAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let connection = locked(&mut txn, tenant.id, &connection).await?;
    let component = component(&app, &connection.provider)?;
    let spec = component.descriptor().secrets.iter().find(|spec| spec.name == name);
    let spec = spec.ok_or_else(|| Problem::not_found("secret of this provider"))?;
    new.check(&mut fields, &component, spec);
    if let Some(problem) = fields.into_problem() {
        return Err(problem);
    }
    secret_delete_expired(&mut txn, tenant.id, connection.id).await?;
    let version = secret_next_version(&mut txn, tenant.id, connection.id, &name).await?;
    secret_store(&app, &mut txn, tenant.id, connection.id, &name, &new.value, version).await?;
    let overlap = i32::try_from(new.overlap_seconds.unwrap_or(0)).unwrap_or(i32::MAX);
    secret_retire(&mut txn, tenant.id, connection.id, &name, version, overlap).await?;
    guards::mended(&mut txn, tenant.id, connection.id, &connection.guards.breaker).await?;
    tenant_config_bump(&mut txn, tenant.id).await?;
    txn.commit().await.map_err(StoreError::from)?;
    guards::announce(&app, connection.id).await;
    app.changed(tenant.id).await;
    Ok(Json(SecretAnswer { name, version, created_at: clock::now() }))
}

impl NewSecret {
    fn check(&self, fields: &mut Fields, component: &Component, spec: &SecretSpec) {
        check_value(fields, "value", component, spec, &self.value);
        fields.check(
            self.overlap_seconds.is_none_or(|it| it <= LONGEST_OVERLAP),
            "overlap_seconds",
            "out_of_range",
            || "must be at most 2592000 (30 days)".to_owned(),
        );
    }
}

impl NewConnection {
    fn into_domain(self, app: &App, mut fields: Fields) -> Result<(Connection, BTreeMap<String, String>), Problem> {
        check_names(&mut fields, self.uid.as_deref(), self.name.as_deref());
        let guards = self.guards.map(|guards| guards.checked(&mut fields));
        let config = self.config.unwrap_or_else(empty);
        let provider = self.provider.unwrap_or_default();
        match app.providers.serving(&provider) {
            None if provider.is_empty() => fields.missing("provider"),
            None => fields.check(false, "provider", "unknown_provider", unknown_provider),
            Some(serving) => {
                check_config(&mut fields, &serving.component, &config);
                check_secrets(&mut fields, &serving.component, &self.secrets);
            }
        }
        if let Some(problem) = fields.into_problem() {
            return Err(problem);
        }
        let now = clock::now();
        let connection = Connection {
            id: ConnectionId::new(),
            uid: self.uid,
            name: self.name.unwrap_or_default(),
            provider,
            config,
            enabled: self.enabled.unwrap_or(true),
            guards: guards.unwrap_or_default(),
            callback_token: credential::callback_token(),
            created_at: now,
            updated_at: now,
        };
        Ok((connection, self.secrets))
    }
}

/// A secret's new value, or that it goes.
type SecretChanges = BTreeMap<String, Option<String>>;

impl ConnectionChange {
    /// Applies the change, and returns the new connection and the fate of its secrets.
    fn apply(
        self,
        app: &App,
        mut fields: Fields,
        mut connection: Connection,
        has: &[String],
    ) -> Result<(Connection, SecretChanges), Problem> {
        check_names(&mut fields, self.uid.as_deref(), self.name.as_deref());
        let guards = self.guards.map(|guards| guards.checked(&mut fields));
        if self.config.is_some() || !self.secrets.is_empty() {
            let component = component(app, &connection.provider)?;
            if let Some(config) = &self.config {
                check_config(&mut fields, &component, config);
                check_destination(&mut fields, &component, &connection.config, config, &self.secrets, has);
            }
            check_secret_changes(&mut fields, &component, &self.secrets, has);
        }
        if let Some(problem) = fields.into_problem() {
            return Err(problem);
        }
        connection.uid = self.uid.or(connection.uid);
        connection.name = self.name.unwrap_or(connection.name);
        connection.config = self.config.unwrap_or(connection.config);
        connection.enabled = self.enabled.unwrap_or(connection.enabled);
        connection.guards = guards.unwrap_or(connection.guards);
        connection.updated_at = clock::now();
        Ok((connection, self.secrets))
    }
}

/// Secrets do not follow a config to another destination.
fn check_destination(
    fields: &mut Fields,
    component: &Component,
    before: &RawValue,
    after: &RawValue,
    secrets: &SecretChanges,
    has: &[String],
) {
    // An unreadable document is reported elsewhere, and has no effect here.
    let (Ok(before), Ok(after)) = (serde_json::from_str(before.get()), serde_json::from_str(after.get())) else {
        return;
    };
    if !adds_a_destination(component.descriptor(), &before, &after) {
        return;
    }
    fields.within("secrets", |fields| {
        for name in has.iter().filter(|name| !secrets.contains_key(*name)) {
            fields.check(false, name, "needed_again", || {
                "must be given anew, or be null to delete it: the new `config` sends it to another destination"
                    .to_owned()
            });
        }
    });
}

/// Secrets that are there may go, unless the provider needs them.
fn check_secret_changes(fields: &mut Fields, component: &Component, secrets: &SecretChanges, has: &[String]) {
    fields.within("secrets", |fields| {
        for (name, value) in secrets {
            let spec = component.descriptor().secrets.iter().find(|spec| spec.name == *name);
            match (spec, value) {
                (Some(spec), Some(value)) => check_value(fields, name, component, spec, value),
                (Some(spec), None) => {
                    fields.check(!spec.required, name, "missing", || format!("must be given: {}", spec.purpose));
                }
                // A version before this one may have had it.
                (None, None) if has.contains(name) => {}
                (None, _) => fields.check(false, name, "unknown_secret", unknown_secret),
            }
        }
    });
}

fn check_names(fields: &mut Fields, uid: Option<&str>, name: Option<&str>) {
    if let Some(uid) = uid {
        fields::uid(fields, uid);
    }
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        fields::plain(fields, "name", name, 256);
    }
}

fn check_config(fields: &mut Fields, component: &Component, config: &RawValue) {
    if config.get().len() > MOST_CONFIG_BYTES {
        return fields.check(false, "config", "too_long", || "must be at most 64 KiB of JSON".to_owned());
    }
    let Ok(value) = serde_json::from_str(config.get()) else {
        return fields.check(false, "config", "invalid", || "must be nested less deeply".to_owned());
    };
    for problem in component.validate_config(&value) {
        fields.elsewhere(format!("/config{}", problem.pointer), "refused_by_provider", problem.detail);
    }
}

fn check_secrets(fields: &mut Fields, component: &Component, secrets: &BTreeMap<String, String>) {
    let specs = &component.descriptor().secrets;
    fields.within("secrets", |fields| {
        for (name, value) in secrets {
            match specs.iter().find(|spec| spec.name == *name) {
                Some(spec) => check_value(fields, name, component, spec, value),
                None => {
                    fields.check(false, name, "unknown_secret", unknown_secret);
                }
            }
        }
        for spec in specs.iter().filter(|spec| spec.required && !secrets.contains_key(&spec.name)) {
            fields.check(false, &spec.name, "missing", || format!("must be given: {}", spec.purpose));
        }
    });
}

/// The error text about a secret's value does not repeat the value.
fn check_value(fields: &mut Fields, field: &str, component: &Component, spec: &SecretSpec, value: &str) {
    if !(1..=MOST_SECRET_CHARACTERS).contains(&value.chars().count()) {
        return fields.check(false, field, "wrong_length", || "must have 1 to 65536 characters".to_owned());
    }
    fields.check(component.accepts_secret(&spec.name, value), field, "wrong_format", || {
        format!("must have the form that the provider asks for: {}", spec.purpose)
    });
}

/// Encrypts a value for its place and keeps it.
async fn secret_store(
    app: &App,
    db: &mut Db,
    tenant: TenantId,
    connection: ConnectionId,
    name: &str,
    value: &str,
    version: i32,
) -> Result<(), Problem> {
    let place = SecretPlace { tenant, connection, name, version };
    let sealed = app.keyring.seal(&place, &Secret::new(value)).map_err(|error| Problem::internal(&error))?;
    Ok(secret_insert(db, tenant, connection, name, version, &sealed).await?)
}

/// Gives a secret a new value in place of all that it had, or deletes it.
async fn secret_change(
    app: &App,
    db: &mut Db,
    tenant: TenantId,
    connection: ConnectionId,
    name: &str,
    value: Option<&str>,
) -> Result<(), Problem> {
    let version = secret_next_version(db, tenant, connection, name).await?;
    secret_delete(db, tenant, connection, name).await?;
    match value {
        Some(value) => secret_store(app, db, tenant, connection, name, value, version).await,
        None => Ok(()),
    }
}

fn component(app: &App, provider: &str) -> Result<std::sync::Arc<Component>, Problem> {
    let serving = app.providers.serving(provider);
    serving.map(|serving| serving.component).ok_or_else(|| {
        Problem::conflict("provider_not_serving", format!("no version of the provider `{provider}` serves now"))
    })
}

/// The connection of an id or uid.
pub async fn named(db: &mut Db, tenant: TenantId, name: &str) -> Result<Connection, Problem> {
    if name.chars().any(char::is_control) {
        return Err(missing());
    }
    connection_find(db, tenant, name.parse().ok(), name).await?.ok_or_else(missing)
}

/// The same, kept from changing until the transaction ends.
async fn locked(db: &mut Db, tenant: TenantId, name: &str) -> Result<Connection, Problem> {
    let id = named(db, tenant, name).await?.id;
    if !connection_lock(db, tenant, id).await? {
        return Err(missing());
    }
    connection_find(db, tenant, Some(id), "").await?.ok_or_else(missing)
}

/// Why nothing would leave through a connection now, or not all of it.
fn warnings(app: &App, tenant: TenantId, row: &Connection) -> Vec<WarningAnswer> {
    let warning = |code, detail| WarningAnswer { code, detail };
    let Some(serving) = app.providers.serving_for(&row.provider, tenant) else {
        return vec![warning("provider_not_serving", app.providers.absence(&row.provider, tenant))];
    };
    let missing = not_granted(&serving.component.descriptor().hosts, &serving.granted);
    if missing.is_empty() {
        return Vec::new();
    }
    let granted = serving.granted.iter().chain(&missing).map(|host| format!(" '{host}'")).collect::<String>();
    let hosts = missing.iter().map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", ");
    let detail = format!(
        "the provider declares hosts that are not granted, and what goes there waits until the operator grants them: \
         {hosts} (`angarium provider grant {}{granted}`)",
        row.provider
    );
    vec![warning("host_not_granted", detail)]
}

async fn answers(
    app: &App,
    db: &mut Db,
    tenant: TenantId,
    rows: Vec<Connection>,
) -> store::Result<Vec<ConnectionAnswer>> {
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let mut secrets: BTreeMap<ConnectionId, Vec<SecretAnswer>> = BTreeMap::new();
    for SecretName { connection, name, version, created_at } in secret_names(db, tenant, &ids).await? {
        secrets.entry(connection).or_default().push(SecretAnswer { name, version, created_at });
    }
    let answer = |row: Connection| answer(app, tenant, secrets.remove(&row.id).unwrap_or_default(), row);
    Ok(rows.into_iter().map(answer).collect())
}

fn answer(app: &App, tenant: TenantId, secrets: Vec<SecretAnswer>, row: Connection) -> ConnectionAnswer {
    let serving = app.providers.serving(&row.provider);
    let hears = serving.is_some_and(|serving| serving.component.reads_callbacks());
    ConnectionAnswer {
        callback_url: hears.then(|| app.callbacks.public_url.callback_or_path(&row.callback_token)),
        warnings: warnings(app, tenant, &row),
        id: row.id.to_string(),
        uid: row.uid,
        name: row.name,
        provider: row.provider,
        config: row.config,
        enabled: row.enabled,
        guards: row.guards.into(),
        secrets,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

fn taken(error: StoreError) -> Problem {
    match error {
        StoreError::Conflict { constraint } if constraint == "connection_uid" => {
            Problem::conflict("uid_taken", "another connection has this uid")
        }
        other => other.into(),
    }
}

fn missing() -> Problem {
    Problem::not_found("connection")
}

fn unknown_secret() -> String {
    "does not exist: the provider declares no such secret".to_owned()
}

fn unknown_provider() -> String {
    "does not exist, or does not serve: GET /v1/providers lists them".to_owned()
}

fn empty() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
