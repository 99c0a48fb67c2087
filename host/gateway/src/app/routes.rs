//! Routes. A version does nothing until it is activated, and at most one route of a channel is active.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    App, Principal, Result,
    change::Change,
    connections,
    documents::{self, VersionActivation, VersionBody},
    error::UseCaseError,
    fields::{self, Fields},
    overrides,
};
use angarium_domain::{
    audit::Action,
    document::DocumentKind,
    ids::{ConnectionId, RouteId, TenantId},
    message::Channel,
    provider::Cost,
    retry::RetryPolicy,
    route::RouteSpec,
};
use angarium_rules::{rulebook::Rulebook, script::Hook};
use angarium_store::{
    Connection,
    connection::connection_lock,
    document::{DocumentRow, NewDocument, VersionRow, document_page, document_versions},
    page::PageRows,
    route::route_channel_take,
};

const KIND: DocumentKind = DocumentKind::Route;
/// The most candidates of a route, as the OpenAPI document says.
const MAX_CANDIDATES: usize = 20;
/// The latest versions that are shown with a route.
const SHOWN_VERSIONS: i32 = 20;

/// A route with its versions.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRoute {
    pub id: RouteId,
    pub uid: Option<String>,
    pub channel: String,
    /// `None`: it does nothing.
    pub active_version: Option<i32>,
    /// The version that a rollback returns to.
    pub previous_version: Option<i32>,
    pub latest_version: i32,
    /// The newest first.
    pub versions: Vec<StoredRouteVersion>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A version of a route as its document has it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRouteVersion {
    pub version: i32,
    pub spec: RouteSpec,
    pub created_at: Timestamp,
    /// When it last became active; `None`: never.
    pub activated_at: Option<Timestamp>,
}

/// Creates a route with its first version, which does nothing until it is activated.
pub async fn create(
    app: &App,
    by: &Principal,
    uid: Option<String>,
    channel: Option<String>,
    spec: Option<RouteSpec<String>>,
    mut fields: Fields,
) -> Result<StoredRoute> {
    if let Some(uid) = &uid {
        fields::uid(&mut fields, uid);
    }
    let channel = fields::channel(&mut fields, channel.as_deref());
    let mut change = app.change(by).await?;
    let spec = match spec {
        Some(spec) => Some(checked(spec, app, &mut change, by.tenant, channel.as_ref(), &mut fields).await?),
        None => None,
    };
    if spec.is_none() {
        fields.missing("spec");
    }
    let (Some(channel), Some(spec), true) = (channel, spec, fields.is_empty()) else {
        return Err(UseCaseError::Invalid(fields.into_problems()));
    };
    let id = RouteId::new();
    let new = NewDocument { id: id.uuid(), uid: uid.as_deref(), channel: Some(channel.as_str()) };
    let body = VersionBody { body: &text(&spec), cases: None };
    let (document, version) = documents::create(&mut change, by.tenant, KIND, new, body).await?;
    let entry = documents::created(KIND, &document, &version)?;
    change.commit(entry).await?;
    stored(document, vec![version])
}

/// Returns a page of the routes, the newest first; of one channel, if that is given.
pub async fn list(
    app: &App,
    tenant: TenantId,
    channel: Option<&str>,
    before: Option<RouteId>,
    limit: u32,
) -> Result<PageRows<StoredRoute>> {
    let mut txn = app.store.tenant(tenant).await?;
    let before = before.map(RouteId::uuid);
    let PageRows { rows, more } = document_page(&mut txn, tenant, KIND, channel, before, limit).await?;
    let ids: Vec<_> = rows.iter().map(|(document, _)| document.id).collect();
    let mut versions: BTreeMap<_, Vec<VersionRow>> = BTreeMap::new();
    for version in document_versions(&mut txn, tenant, KIND, &ids, SHOWN_VERSIONS).await? {
        versions.entry(version.document).or_default().push(version);
    }
    let rows = rows.into_iter().map(|(document, _)| {
        let versions = versions.remove(&document.id).unwrap_or_default();
        stored(document, versions)
    });
    Ok(PageRows { rows: rows.collect::<Result<_>>()?, more })
}

/// Returns a route with its versions.
pub async fn get(app: &App, tenant: TenantId, name: &str) -> Result<StoredRoute> {
    let mut txn = app.store.tenant(tenant).await?;
    let document = documents::named(&mut txn, tenant, KIND, name).await?;
    let versions = document_versions(&mut txn, tenant, KIND, &[document.id], SHOWN_VERSIONS).await?;
    stored(document, versions)
}

/// Returns a route's versions, the latest first.
pub async fn versions(app: &App, tenant: TenantId, name: &str) -> Result<Vec<StoredRouteVersion>> {
    let (_, versions) = documents::with_versions(app, tenant, KIND, name).await?;
    versions.into_iter().map(route_version).collect()
}

/// Adds a version, which does nothing until it is activated, and returns the route.
pub async fn create_version(
    app: &App,
    by: &Principal,
    name: &str,
    spec: RouteSpec<String>,
    mut fields: Fields,
) -> Result<StoredRoute> {
    let mut change = app.change(by).await?;
    let document = documents::locked(&mut change, by.tenant, KIND, name).await?;
    let channel = document.channel.as_deref().and_then(|channel| channel.parse().ok());
    let spec = checked(spec, app, &mut change, by.tenant, channel.as_ref(), &mut fields).await?;
    fields.finish()?;
    let body = VersionBody { body: &text(&spec), cases: None };
    let version = documents::add(&mut change, by.tenant, KIND, document.id, body).await?;
    let entry = documents::added(KIND, &document, &version)?;
    change.commit(entry).await?;
    get(app, by.tenant, name).await
}

/// Makes a version the active one. It takes the channel from the other route that has it.
pub async fn activate(app: &App, by: &Principal, name: &str, activation: VersionActivation) -> Result<StoredRoute> {
    documents::activate(app, by, KIND, name, activation).await?;
    get(app, by.tenant, name).await
}

/// Returns to the version that was active before.
pub async fn roll_back(app: &App, by: &Principal, name: &str) -> Result<StoredRoute> {
    documents::roll_back(app, by, KIND, name).await?;
    get(app, by.tenant, name).await
}

/// Deletes a route. Its versions stay on record. Deliveries that wait meet the channel without a route.
///
/// # Errors
/// When it is active, and therefore the only one of its channel, unless `force` is set.
pub async fn delete(app: &App, by: &Principal, name: &str, force: bool) -> Result<()> {
    let mut change = app.change(by).await?;
    let document = documents::locked(&mut change, by.tenant, KIND, name).await?;
    if document.active_version.is_some() && !force {
        let channel = document.channel.as_deref().unwrap_or_default();
        let detail = format!(
            "the route is the only active one of the channel `{channel}`: activate another route of the channel \
             first, or delete it with `force=true`"
        );
        return Err(UseCaseError::conflict("route_active", detail));
    }
    let entry = documents::delete(&mut change, by.tenant, KIND, &document, Action::RouteDeleted).await?;
    change.commit(entry).await
}

/// Takes the channel from the other route that has it, and returns that route with the version that was active.
///
/// The connections of the version are locked first, so that none is deleted meanwhile.
pub async fn take_channel(
    change: &mut Change,
    tenant: TenantId,
    document: &DocumentRow,
    wanted: &VersionRow,
) -> Result<Option<(RouteId, i32)>> {
    let spec = spec_of(&wanted.body)?;
    let mut connections: Vec<_> = spec.candidates.iter().map(|candidate| candidate.connection).collect();
    connections.sort();
    for connection in connections {
        if !connection_lock(change, tenant, connection).await? {
            let detail = format!("the connection {connection} of this version was deleted: add a version without it");
            return Err(UseCaseError::conflict("connection_gone", detail));
        }
    }
    let channel = document.channel.as_deref().unwrap_or_default();
    Ok(route_channel_take(change, tenant, document.id.into(), channel).await?)
}

/// Returns a version's body as the API shows it.
pub fn shown(body: &str) -> Result<Value> {
    Ok(serde_json::to_value(spec_of(body)?).unwrap_or_default())
}

/// The specification with ids in place of uids; its problems go to `fields`.
///
/// The document has the bounds; these are the checks that it can't express.
async fn checked(
    spec: RouteSpec<String>,
    app: &App,
    db: &mut Connection,
    tenant: TenantId,
    channel: Option<&Channel>,
    fields: &mut Fields,
) -> Result<RouteSpec> {
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
    db: &mut Connection,
    tenant: TenantId,
    channel: Option<&Channel>,
    name: &str,
) -> Result<std::result::Result<ConnectionId, (&'static str, &'static str)>> {
    let connection = match connections::named(db, tenant, name).await {
        Ok(connection) => connection,
        Err(UseCaseError::NotFound(_)) => {
            return Ok(Err(("unknown_connection", "does not exist: GET /v1/connections lists the connections")));
        }
        Err(error) => return Err(error),
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

/// Whether a script of this name is live and has the hook `retry`.
async fn decides_retries(app: &App, tenant: TenantId, script: &str) -> Result<bool> {
    let config = app.tenant_configs.reload(tenant).await?;
    let has = |book: &Rulebook| book.scripts.iter().any(|it| it.name == script && it.has(Hook::Retry));
    Ok(config.rulebook.as_deref().is_some_and(has))
}

fn stored(document: DocumentRow, versions: Vec<VersionRow>) -> Result<StoredRoute> {
    Ok(StoredRoute {
        id: document.id.into(),
        uid: document.uid,
        channel: document.channel.unwrap_or_default(),
        active_version: document.active_version,
        previous_version: document.previous_version,
        latest_version: document.latest_version,
        versions: versions.into_iter().map(route_version).collect::<Result<_>>()?,
        created_at: document.created_at,
        updated_at: document.updated_at,
    })
}

fn route_version(row: VersionRow) -> Result<StoredRouteVersion> {
    let VersionRow { version, body, created_at, activated_at, .. } = row;
    Ok(StoredRouteVersion { version, spec: spec_of(&body)?, created_at, activated_at })
}

fn spec_of(body: &str) -> Result<RouteSpec> {
    serde_json::from_str(body).map_err(|error| UseCaseError::internal(&error))
}

// Plain data always has a JSON form.
fn text(spec: &RouteSpec) -> String {
    serde_json::to_string(spec).unwrap_or_default()
}
