//! `/v1/providers`. The providers are the operator's and serve all tenants: a tenant's key may
//! look, an operator's may change.

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    auth::{Operator, ProvidersRead, Tenant},
    json::{Json, bytes},
    page::Page,
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::{
    domain::provider::{Deduplication, SecretSpec},
    providers::ProviderError,
    store::{
        self, Connection as Db,
        provider::{StoredComponent, StoredProvider, component_list, provider_get, provider_list},
    },
};

/// A provider: what its active version, or else its newest, says of itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Provider)]
pub struct ProviderAnswer {
    #[schema(example = "email-smtp")]
    name: String,
    version: Option<String>,
    summary: String,
    channels: Vec<String>,
    /// JSON Schema of a connection's `config`.
    #[schema(value_type = Object)]
    config_schema: serde_json::Value,
    /// The secrets of its connections.
    secrets: Vec<SecretSpecAnswer>,
    /// Host patterns that it asks for.
    declared_hosts: Vec<String>,
    /// Host patterns that the operator granted; requests go nowhere else.
    granted_hosts: Vec<String>,
    /// Whether a repeated hand-off is recognised on the other side.
    deduplicates: bool,
    #[schema(value_type = Object)]
    cost_model: serde_json::Value,
    /// SHA-256 of the component that serves; null: none does.
    active_digest: Option<String>,
    /// What a rollback returns to.
    previous_digest: Option<String>,
    /// The newest first.
    versions: Vec<ComponentAnswer>,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A secret that a provider's connections have.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SecretSpec)]
pub struct SecretSpecAnswer {
    name: String,
    purpose: String,
    required: bool,
}

/// A version of a provider.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProviderVersion)]
pub struct ComponentAnswer {
    /// SHA-256 of the component.
    digest: String,
    version: String,
    #[schema(value_type = String, format = DateTime)]
    installed_at: Timestamp,
    /// Set when it failed too often; it does not serve until an operator activates it again.
    #[schema(value_type = Option<String>, format = DateTime)]
    quarantined_at: Option<Timestamp>,
    quarantine_reason: Option<String>,
}

/// To which hosts a provider's requests may go.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Patterns as its descriptor declares them: these and no others.
    #[schema(max_items = 1000)]
    hosts: Vec<String>,
}

/// List the providers.
#[utoipa::path(get, path = "/v1/providers", tag = "providers", operation_id = "listProviders",
    responses((status = 200, description = "All of them.", body = Page<ProviderAnswer>)))]
pub async fn list(
    _: Tenant<ProvidersRead>,
    State(app): State<App>,
    query: Query,
) -> Result<Json<Page<ProviderAnswer>>, Problem> {
    query.finish()?;
    let mut txn = app.store.worker().await?;
    let mut answers = Vec::new();
    for provider in provider_list(&mut txn).await? {
        answers.extend(answer(&mut txn, provider).await?);
    }
    Ok(Json(Page::whole(answers)))
}

/// Show a provider.
#[utoipa::path(get, path = "/v1/providers/{name}", tag = "providers", operation_id = "getProvider",
    params(("name" = String, Path, description = "Its name.")),
    responses((status = 200, description = "The provider.", body = ProviderAnswer)))]
pub async fn get(
    _: Tenant<ProvidersRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ProviderAnswer>, Problem> {
    shown(&app, &name).await.map(Json)
}

/// Install a provider component. It is admitted, or refused with the reason.
///
/// It serves once activated; the version before is kept for a rollback.
#[utoipa::path(post, path = "/v1/providers", tag = "providers", operation_id = "installProvider",
    params(("activate" = Option<bool>, Query, description = "Let it serve at once, on every node.")),
    request_body(content = Vec<u8>, content_type = "application/wasm", description = "The component."),
    responses((status = 201, description = "It is installed.", body = ProviderAnswer)))]
pub async fn install(
    _: Tenant<Operator>,
    State(app): State<App>,
    mut query: Query,
    request: Request,
) -> Result<(StatusCode, Json<ProviderAnswer>), Problem> {
    let activate = query.flag("activate");
    query.finish()?;
    if request.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/wasm") {
        return Err(Problem::request(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "The body is of another kind",
            "send the component with the header `Content-Type: application/wasm`",
        ));
    }
    let name = app.providers.install(bytes(request, &app).await?, activate).await?;
    Ok((StatusCode::CREATED, Json(shown(&app, &name).await?)))
}

/// Let the version before serve again; the two change places.
#[utoipa::path(post, path = "/v1/providers/{name}/rollback", tag = "providers", operation_id = "rollbackProvider",
    params(("name" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "The version before serves.", body = ProviderAnswer),
        (status = 409, description = "There is none.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    _: Tenant<Operator>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ProviderAnswer>, Problem> {
    plain(&name)?;
    app.providers.rollback(&name).await?;
    shown(&app, &name).await.map(Json)
}

/// Say to which hosts a provider's requests may go: these and no others.
#[utoipa::path(put, path = "/v1/providers/{name}/grants", tag = "providers", operation_id = "grantHosts",
    params(("name" = String, Path, description = "Its name.")),
    request_body = Grants,
    responses((status = 200, description = "As it is now.", body = ProviderAnswer)))]
pub async fn grant(
    _: Tenant<Operator>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(grants): Json<Grants>,
) -> Result<Json<ProviderAnswer>, Problem> {
    plain(&name)?;
    app.providers.grant(&name, &grants.hosts).await?;
    shown(&app, &name).await.map(Json)
}

async fn shown(app: &App, name: &str) -> Result<ProviderAnswer, Problem> {
    plain(name)?;
    let mut txn = app.store.worker().await?;
    let provider = provider_get(&mut txn, name).await?.ok_or_else(missing)?;
    answer(&mut txn, provider).await?.ok_or_else(missing)
}

/// A name that the database can be asked for.
fn plain(name: &str) -> Result<(), Problem> {
    if name.chars().any(char::is_control) { Err(missing()) } else { Ok(()) }
}

async fn answer(db: &mut Db, provider: StoredProvider) -> store::Result<Option<ProviderAnswer>> {
    let versions = component_list(db, &provider.name).await?;
    let active = versions.iter().find(|version| Some(&version.digest) == provider.active_digest.as_ref());
    let Some(described) = active.or(versions.first()) else { return Ok(None) };
    let descriptor = described.descriptor.clone();
    Ok(Some(ProviderAnswer {
        name: provider.name,
        version: Some(descriptor.version),
        summary: descriptor.summary,
        channels: descriptor.channels,
        config_schema: descriptor.config_schema,
        secrets: descriptor.secrets.into_iter().map(SecretSpecAnswer::from).collect(),
        declared_hosts: descriptor.hosts,
        granted_hosts: provider.granted_hosts,
        deduplicates: descriptor.deduplication != Deduplication::None,
        cost_model: descriptor.cost_model,
        active_digest: provider.active_digest,
        previous_digest: provider.previous_digest,
        versions: versions.into_iter().map(ComponentAnswer::from).collect(),
        updated_at: provider.updated_at,
    }))
}

impl From<SecretSpec> for SecretSpecAnswer {
    fn from(spec: SecretSpec) -> Self {
        Self { name: spec.name, purpose: spec.purpose, required: spec.required }
    }
}

impl From<StoredComponent> for ComponentAnswer {
    fn from(row: StoredComponent) -> Self {
        Self {
            digest: row.digest,
            version: row.descriptor.version,
            installed_at: row.created_at,
            quarantined_at: row.quarantined_at,
            quarantine_reason: row.quarantine_reason,
        }
    }
}

impl From<ProviderError> for Problem {
    fn from(error: ProviderError) -> Self {
        match error {
            ProviderError::Refused(error) => Self::field("", "component_refused", error.to_string()).of_provider(),
            ProviderError::Store(error) => error.into(),
            ProviderError::Unknown(_) => missing(),
            ProviderError::NoPrevious => Self::conflict("no_previous_version", error.to_string()),
            ProviderError::Undeclared(_) => Self::field("/hosts", "undeclared_host", error.to_string()),
            ProviderError::Folder { .. } | ProviderError::Lost => Self::internal(&error),
        }
    }
}

fn missing() -> Problem {
    Problem::not_found("provider")
}
