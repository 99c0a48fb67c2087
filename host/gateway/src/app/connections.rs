//! Connections and their secrets. A secret goes in and never comes out: what is shown has its name and version.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use utoipa::ToSchema;

use super::{
    App, Principal, Result, breakers,
    error::UseCaseError,
    fields::{self, Fields},
    providers::not_granted,
};
use crate::{clock, credential};
use angarium_domain::{
    audit::Action,
    connection::Connection,
    destination::adds_a_destination,
    guards::Guards,
    ids::{ConnectionId, TenantId},
    provider::SecretSpec,
    redaction::HIDDEN,
    sensitive::SensitiveTexts,
};
use angarium_runtime::Component;
use angarium_store::{
    Connection as Db, StoreError,
    audit::AuditEntry,
    connection::{
        connection_delete, connection_find, connection_insert, connection_lock, connection_page, connection_routes,
        connection_update,
    },
    page::PageRows,
    secret::{
        SecretName, secret_delete, secret_delete_expired, secret_insert, secret_names, secret_names_of,
        secret_next_version, secret_retire,
    },
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
    pub uid: Option<String>,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 256)]
    pub name: Option<String>,
    /// The provider's name.
    // Optional for serde alone, so that the rest is checked where it is missing.
    #[serde(default)]
    #[schema(value_type = String, required = true, min_length = 1, max_length = 128)]
    pub provider: Option<String>,
    /// By the provider's schema.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Box<RawValue>>,
    /// By the names that the provider lists.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// Whether messages may go through it; true, if left out.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Its circuit breaker's policy and its limit on the rate.
    #[serde(default)]
    pub guards: Option<Guards>,
}

/// A change of a connection; members that are left out stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "The shop's hook", "config": {"url": "https://example.com/hook"}, "secrets": {"authorization": null}}))]
pub struct ConnectionChange {
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub uid: Option<String>,
    #[serde(default)]
    #[schema(max_length = 256)]
    pub name: Option<String>,
    /// The whole new config.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Box<RawValue>>,
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Its circuit breaker's policy and its limit on the rate; the whole new ones.
    #[serde(default)]
    pub guards: Option<Guards>,
    /// New values, which apply at once and without an overlap; null deletes a secret. A `config` that sends requests to
    /// another destination (scheme, host, port or kind of TLS) must come with every secret of the connection, set or
    /// deleted: no secret can be read by redirecting it.
    #[serde(default)]
    pub secrets: BTreeMap<String, Option<String>>,
}

/// A secret's new value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"value": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "overlap_seconds": 86400}))]
pub struct NewSecret {
    #[schema(min_length = 1, max_length = 65536)]
    pub value: String,
    /// How long the old value stays valid; at most 30 days. Left out, it ends at once.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    pub overlap_seconds: Option<u32>,
}

/// A connection with what is known of it now.
#[derive(Debug, Clone)]
pub struct ConnectionView {
    pub connection: Connection,
    /// Their values are never shown.
    pub secrets: Vec<SecretVersion>,
    /// The URL for the service's reports, or its path; none for a provider that reads none.
    pub callback_url: Option<String>,
    /// Causes that keep messages from leaving through it.
    pub warnings: Vec<ConnectionWarning>,
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretVersion {
    pub name: String,
    /// Grows with each rotation.
    pub version: i32,
    pub created_at: Timestamp,
}

/// A cause that keeps messages from leaving through a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionWarning {
    pub code: &'static str,
    pub detail: String,
}

/// Makes a connection.
pub async fn create(app: &App, by: &Principal, new: NewConnection, fields: Fields) -> Result<ConnectionView> {
    let (connection, secrets) = new.into_domain(app, fields)?;
    let mut change = app.change(by).await?;
    connection_insert(&mut change, by.tenant, &connection).await.map_err(taken)?;
    for (name, value) in &secrets {
        secret_store(app, &mut change, by.tenant, connection.id, name, value, 1).await?;
    }
    let view = view(app, &mut change, by.tenant, connection).await?;
    let entry = AuditEntry::new(Action::ConnectionCreated, view.connection.id).after(recorded(&view));
    change.commit(without_sensitive(app, &view.connection, entry)).await?;
    Ok(view)
}

/// Returns a page of the tenant's connections, the newest first, from behind `after`.
pub async fn list(
    app: &App,
    tenant: TenantId,
    after: Option<ConnectionId>,
    limit: u32,
) -> Result<PageRows<ConnectionView>> {
    let mut txn = app.store.tenant(tenant).await?;
    let PageRows { rows, more } = connection_page(&mut txn, tenant, after, limit).await?;
    Ok(PageRows { rows: views(app, &mut txn, tenant, rows).await?, more })
}

/// Returns the connection of an id or uid.
pub async fn get(app: &App, tenant: TenantId, name: &str) -> Result<ConnectionView> {
    let mut txn = app.store.tenant(tenant).await?;
    let connection = named(&mut txn, tenant, name).await?;
    view(app, &mut txn, tenant, connection).await
}

/// Changes a part of a connection.
pub async fn update(
    app: &App,
    by: &Principal,
    name: &str,
    wanted: ConnectionChange,
    fields: Fields,
) -> Result<ConnectionView> {
    let mut change = app.change(by).await?;
    let found = locked(&mut change, by.tenant, name).await?;
    let (id, has) = (found.id, secret_names_of(&mut change, by.tenant, found.id).await?);
    let before = view(app, &mut change, by.tenant, found.clone()).await?;
    let (connection, secrets) = wanted.apply(app, fields, found, &has)?;
    connection_update(&mut change, by.tenant, &connection).await.map_err(taken)?;
    for (name, value) in &secrets {
        secret_change(app, &mut change, by.tenant, id, name, value.as_deref()).await?;
    }
    if !secrets.is_empty() {
        breakers::mended(&mut change, by.tenant, id, &connection.guards.breaker).await?;
    }
    let view = view(app, &mut change, by.tenant, connection).await?;
    let entry = AuditEntry::new(Action::ConnectionChanged, id).difference(recorded(&before), recorded(&view));
    change.commit(without_sensitive(app, &view.connection, entry)).await?;
    if !secrets.is_empty() {
        breakers::announce(app, id).await;
    }
    Ok(view)
}

/// Deletes a connection and its secrets.
///
/// # Errors
/// While an active route names it.
pub async fn delete(app: &App, by: &Principal, name: &str) -> Result<()> {
    let mut change = app.change(by).await?;
    let connection = locked(&mut change, by.tenant, name).await?;
    let routes = connection_routes(&mut change, by.tenant, connection.id).await?;
    if let Some(route) = routes.first() {
        let detail = format!("the active route {route} names this connection: activate a version without it first");
        return Err(UseCaseError::conflict("connection_in_use", detail));
    }
    let view = view(app, &mut change, by.tenant, connection).await?;
    connection_delete(&mut change, by.tenant, view.connection.id).await?;
    let entry = AuditEntry::new(Action::ConnectionDeleted, view.connection.id).before(recorded(&view));
    change.commit(without_sensitive(app, &view.connection, entry)).await
}

/// Gives a secret a new value. The old one stays valid for the overlap.
pub async fn rotate(
    app: &App,
    by: &Principal,
    connection: &str,
    name: String,
    new: NewSecret,
    mut fields: Fields,
) -> Result<SecretVersion> {
    let mut change = app.change(by).await?;
    let connection = locked(&mut change, by.tenant, connection).await?;
    let component = component(app, &connection.provider)?;
    let spec = component.descriptor().secrets.iter().find(|spec| spec.name == name);
    let spec = spec.ok_or(UseCaseError::NotFound("secret of this provider"))?;
    new.check(&mut fields, &component, spec);
    fields.finish()?;
    secret_delete_expired(&mut change, by.tenant, connection.id).await?;
    let version = secret_next_version(&mut change, by.tenant, connection.id, &name).await?;
    secret_store(app, &mut change, by.tenant, connection.id, &name, &new.value, version).await?;
    let overlap = i32::try_from(new.overlap_seconds.unwrap_or(0)).unwrap_or(i32::MAX);
    secret_retire(&mut change, by.tenant, connection.id, &name, version, overlap).await?;
    breakers::mended(&mut change, by.tenant, connection.id, &connection.guards.breaker).await?;
    let entry = AuditEntry::new(Action::SecretRotated, connection.id)
        .after(json!({"secret": name, "version": version, "overlap_seconds": overlap}));
    change.commit(entry).await?;
    breakers::announce(app, connection.id).await;
    Ok(SecretVersion { name, version, created_at: clock::now() })
}

/// The connection of an id or uid.
pub async fn named(db: &mut Db, tenant: TenantId, name: &str) -> Result<Connection> {
    if name.chars().any(char::is_control) {
        return Err(MISSING);
    }
    connection_find(db, tenant, name.parse().ok(), name).await?.ok_or(MISSING)
}

/// The same, kept from changing until the transaction ends.
async fn locked(db: &mut Db, tenant: TenantId, name: &str) -> Result<Connection> {
    let id = named(db, tenant, name).await?.id;
    if !connection_lock(db, tenant, id).await? {
        return Err(MISSING);
    }
    connection_find(db, tenant, Some(id), "").await?.ok_or(MISSING)
}

const MISSING: UseCaseError = UseCaseError::NotFound("connection");

fn taken(error: StoreError) -> UseCaseError {
    match error {
        StoreError::Conflict { constraint } if constraint == "connection_uid" => {
            UseCaseError::conflict("uid_taken", "another connection has this uid")
        }
        other => other.into(),
    }
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
    fn into_domain(self, app: &App, mut fields: Fields) -> Result<(Connection, BTreeMap<String, String>)> {
        check_names(&mut fields, self.uid.as_deref(), self.name.as_deref());
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
        fields.finish()?;
        let now = clock::now();
        let connection = Connection {
            id: ConnectionId::new(),
            uid: self.uid,
            name: self.name.unwrap_or_default(),
            provider,
            config,
            enabled: self.enabled.unwrap_or(true),
            guards: self.guards.unwrap_or_default(),
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
    ) -> Result<(Connection, SecretChanges)> {
        check_names(&mut fields, self.uid.as_deref(), self.name.as_deref());
        if self.config.is_some() || !self.secrets.is_empty() {
            let component = component(app, &connection.provider)?;
            if let Some(config) = &self.config {
                check_config(&mut fields, &component, config);
                check_destination(&mut fields, &component, &connection.config, config, &self.secrets, has);
            }
            check_secret_changes(&mut fields, &component, &self.secrets, has);
        }
        fields.finish()?;
        connection.uid = self.uid.or(connection.uid);
        connection.name = self.name.unwrap_or(connection.name);
        connection.config = self.config.unwrap_or(connection.config);
        connection.enabled = self.enabled.unwrap_or(connection.enabled);
        connection.guards = self.guards.unwrap_or(connection.guards);
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
                "must be set again, or be null to delete it: the new `config` sends it to another destination"
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
) -> Result<()> {
    let place = SecretPlace { tenant, connection, name, version };
    let sealed = app.keyring.seal(&place, &Secret::new(value)).map_err(|error| UseCaseError::internal(&error))?;
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
) -> Result<()> {
    let version = secret_next_version(db, tenant, connection, name).await?;
    secret_delete(db, tenant, connection, name).await?;
    match value {
        Some(value) => secret_store(app, db, tenant, connection, name, value, version).await,
        None => Ok(()),
    }
}

fn component(app: &App, provider: &str) -> Result<Arc<Component>> {
    let serving = app.providers.serving(provider);
    serving.map(|serving| serving.component).ok_or_else(|| {
        UseCaseError::conflict("provider_not_serving", format!("no version of the provider `{provider}` serves now"))
    })
}

async fn view(app: &App, db: &mut Db, tenant: TenantId, connection: Connection) -> Result<ConnectionView> {
    views(app, db, tenant, vec![connection]).await?.pop().ok_or(MISSING)
}

async fn views(app: &App, db: &mut Db, tenant: TenantId, rows: Vec<Connection>) -> Result<Vec<ConnectionView>> {
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let mut secrets: BTreeMap<ConnectionId, Vec<SecretVersion>> = BTreeMap::new();
    for SecretName { connection, name, version, created_at } in secret_names(db, tenant, &ids).await? {
        secrets.entry(connection).or_default().push(SecretVersion { name, version, created_at });
    }
    let view = |connection: Connection| {
        let serving = app.providers.serving(&connection.provider);
        let hears = serving.is_some_and(|serving| serving.component.reads_callbacks());
        ConnectionView {
            callback_url: hears.then(|| app.callbacks.public_url.callback_or_path(&connection.callback_token)),
            warnings: warnings(app, tenant, &connection),
            secrets: secrets.remove(&connection.id).unwrap_or_default(),
            connection,
        }
    };
    Ok(rows.into_iter().map(view).collect())
}

/// Returns the causes that keep messages from leaving through a connection now.
fn warnings(app: &App, tenant: TenantId, connection: &Connection) -> Vec<ConnectionWarning> {
    let warning = |code, detail| ConnectionWarning { code, detail };
    let provider = &connection.provider;
    let Some(serving) = app.providers.serving_for(provider, tenant) else {
        return vec![warning("provider_not_serving", app.providers.absence(provider, tenant))];
    };
    let missing = not_granted(&serving.component.descriptor().hosts, &serving.granted);
    if missing.is_empty() {
        return Vec::new();
    }
    let granted = serving.granted.iter().chain(&missing).map(|host| format!(" '{host}'")).collect::<String>();
    let hosts = missing.iter().map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", ");
    let detail = format!(
        "the provider declares hosts that are not granted, and what goes there waits until the operator grants them: \
         {hosts} (`angarium provider grant {provider}{granted}`)"
    );
    vec![warning("host_not_granted", detail)]
}

/// A connection as the audit records it: of secrets, the versions alone.
fn recorded(view: &ConnectionView) -> Value {
    let ConnectionView { connection, secrets, .. } = view;
    let secrets: BTreeMap<_, _> = secrets.iter().map(|secret| (&secret.name, secret.version)).collect();
    json!({
        "uid": connection.uid, "name": connection.name, "provider": connection.provider, "config": connection.config,
        "enabled": connection.enabled, "guards": connection.guards, "secrets": secrets,
    })
}

/// Hides what is as sensitive as a secret in the configs of an entry; without a schema that says so, the whole configs.
fn without_sensitive(app: &App, connection: &Connection, mut entry: AuditEntry) -> AuditEntry {
    let serving = app.providers.serving(&connection.provider);
    for recorded in [&mut entry.before, &mut entry.after].into_iter().flatten() {
        let Some(config) = recorded.get_mut("config") else { continue };
        match &serving {
            Some(serving) => {
                let plain = config.clone();
                SensitiveTexts::of(serving.component.descriptor(), &plain).hide(config);
            }
            None => *config = HIDDEN.into(),
        }
    }
    entry
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
