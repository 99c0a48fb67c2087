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
    App, HttpState,
    auth::{Operator, ProvidersRead, Tenant},
    json::{Json, bytes},
    page::Page,
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::app::providers::{
    self, Activation, Grants, Installation, ProviderView, StoredComponent, TenantQuarantine, not_granted,
};
use angarium_domain::{
    ids::TenantId,
    provider::{Deduplication, SecretSpec},
};

/// A provider: the description of its active version, or else of its newest.
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
    secrets: Vec<SecretSpec>,
    /// Host patterns that it asks for.
    declared_hosts: Vec<String>,
    /// Host patterns that the operator granted; requests go nowhere else.
    granted_hosts: Vec<String>,
    /// The declared hosts that are not granted: requests to them wait until they are.
    missing_grants: Vec<String>,
    /// Whether a repeated hand-off is recognised on the other side.
    deduplicates: bool,
    #[schema(value_type = Object)]
    cost_model: serde_json::Value,
    /// SHA-256 of the component that serves; null: none does.
    active_digest: Option<String>,
    /// The digest that a rollback returns to.
    previous_digest: Option<String>,
    /// The newest first.
    versions: Vec<ComponentAnswer>,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
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
    /// Set when it failed too often for several tenants; it does not serve until an operator activates it again.
    #[schema(value_type = Option<String>, format = DateTime)]
    quarantined_at: Option<Timestamp>,
    /// Why it does not serve, or does not serve the key's own tenant.
    quarantine_reason: Option<String>,
    /// Host patterns that it declares.
    declared_hosts: Vec<String>,
    /// The declared hosts that are not granted to the provider.
    missing_grants: Vec<String>,
    /// Set while it does not serve the key's own tenant, since it failed too often over that one's deliveries. The
    /// version before does, if there is one.
    #[schema(value_type = Option<String>, format = DateTime)]
    quarantined_until: Option<Timestamp>,
    /// To an operator's key: the tenants that it does not serve now.
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantined_tenants: Option<Vec<String>>,
}

/// The decision about grants of other components.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "`activation` reads the words; this lists them in the document")]
pub enum GrantsChoice {
    Keep,
    None,
}

/// A component's file.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "the handler reads the bytes; this describes them in the document")]
pub struct ComponentFile(Vec<u8>);

/// To which hosts a provider's requests may go.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Grants)]
#[schema(example = json!({"hosts": ["api.twilio.com"]}))]
pub struct GrantedHosts {
    /// Patterns as its descriptor declares them: these and no others.
    #[schema(max_items = 1000)]
    hosts: Vec<String>,
}

/// Which version is to serve.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ProviderActivation)]
#[schema(example = json!({"digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "grants": "keep"}))]
pub struct ActivatedVersion {
    /// SHA-256 of the component, as the provider's `versions` list it.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    /// Allows a lower version than the one that serves.
    #[serde(default)]
    allow_downgrade: bool,
    /// The decision about hosts that the provider was granted for another component. Required if there are any.
    #[serde(default)]
    #[schema(value_type = Option<GrantsChoice>)]
    grants: Option<String>,
}

/// List the providers.
#[utoipa::path(get, path = "/v1/providers", tag = "providers", operation_id = "listProviders",
    responses((status = 200, description = "All of them.", body = Page<ProviderAnswer>)))]
pub async fn list(
    tenant: Tenant<ProvidersRead>,
    State(app): State<App>,
    query: Query,
) -> Result<Json<Page<ProviderAnswer>>, Problem> {
    query.finish()?;
    let views = providers::list(&app, viewer(&tenant)).await?;
    Ok(Json(Page::whole(views.into_iter().filter_map(|view| answer(view, &tenant)).collect())))
}

/// Show a provider.
#[utoipa::path(get, path = "/v1/providers/{name}", tag = "providers", operation_id = "getProvider",
    params(("name" = String, Path, description = "Its name.")),
    responses((status = 200, description = "The provider.", body = ProviderAnswer)))]
pub async fn get(
    tenant: Tenant<ProvidersRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ProviderAnswer>, Problem> {
    shown(&app, &tenant, &name).await.map(Json)
}

/// Install a provider component. It is admitted, or refused with the reason.
///
/// It serves once activated; the version before is kept for a rollback.
#[utoipa::path(post, path = "/v1/providers", tag = "providers", operation_id = "installProvider",
    params(
        ("activate" = Option<bool>, Query, description = "Put it in service at once, on every node."),
        ("allow_downgrade" = Option<bool>, Query,
            description = "With `activate`: allow a lower version than the one that serves."),
        ("replace" = Option<bool>, Query,
            description = "Allow the same version with other bytes; both are kept."),
        ("grants" = Option<GrantsChoice>, Query,
            description = "With `activate`: what becomes of the hosts that the provider was granted for another \
                component: `keep`, if this one is to be trusted as that was, or `none`. Needed where there are any."),
    ),
    request_body(content = ComponentFile, content_type = "application/wasm", description = "The component."),
    responses(
        (status = 201, description = "It is installed.", body = ProviderAnswer),
        (status = 409, description = "It may not take the place of what is there: the same version with other bytes, a lower \
            version, or grants of another component.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn install(
    tenant: Tenant<Operator>,
    State(http): State<HttpState>,
    mut query: Query,
    request: Request,
) -> Result<(StatusCode, Json<ProviderAnswer>), Problem> {
    let replace = query.flag("replace");
    let activation = activation(&mut query);
    query.finish()?;
    if request.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/wasm") {
        return Err(Problem::request(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "The body is of another kind",
            "send the component with the header `Content-Type: application/wasm`",
        ));
    }
    let by = tenant.actor();
    let component = bytes(request, &http).await?;
    let how = Installation { activation, replace };
    let app = &http.app;
    let name = providers::install(&app.changes, &app.providers, &by, component.bytes.clone(), how).await?;
    Ok((StatusCode::CREATED, Json(shown(app, &tenant, &name).await?)))
}

/// How the component is to be put in service, if it is.
fn activation(query: &mut Query) -> Option<Activation> {
    let activate = query.flag("activate");
    let allow_downgrade = query.flag("allow_downgrade");
    let grants = query.take("grants", grants_named);
    if !activate && allow_downgrade {
        query.refuse("allow_downgrade", "is only allowed together with `activate=true`");
    }
    if !activate && grants.is_some() {
        query.refuse("grants", "is only allowed together with `activate=true`");
    }
    activate.then_some(Activation { allow_downgrade, grants })
}

fn grants_named(text: &str) -> Result<Grants, String> {
    match text {
        "keep" => Ok(Grants::Keep),
        "none" => Ok(Grants::None),
        _ => Err("must be `keep` or `none`".to_owned()),
    }
}

/// Put an installed version in service, on every node and out of any quarantine.
#[utoipa::path(post, path = "/v1/providers/{name}/activate", tag = "providers", operation_id = "activateProvider",
    params(("name" = String, Path, description = "Its name.")),
    request_body = ActivatedVersion,
    responses(
        (status = 200, description = "It serves.", body = ProviderAnswer),
        (status = 409, description = "It may not take the place of what serves: a lower version, or grants of another \
            component.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn activate(
    tenant: Tenant<Operator>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(version): Json<ActivatedVersion>,
) -> Result<Json<ProviderAnswer>, Problem> {
    let grants = version.grants.as_deref().map(grants_named).transpose();
    let grants = grants.map_err(|detail| Problem::field("/grants", "invalid_value", detail))?;
    let activation = Activation { allow_downgrade: version.allow_downgrade, grants };
    providers::activate(&app, &tenant.actor(), &name, &version.digest, activation).await?;
    shown(&app, &tenant, &name).await.map(Json)
}

/// Remove a provider with all of its versions. Refused while enabled connections are accounts at it.
#[utoipa::path(delete, path = "/v1/providers/{name}", tag = "providers", operation_id = "uninstallProvider",
    params(
        ("name" = String, Path, description = "Its name."),
        ("force" = Option<bool>, Query, description = "Allow this while enabled connections use it."),
    ),
    responses(
        (status = 204, description = "It is gone, on every node."),
        (status = 409, description = "Enabled connections use it.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn uninstall(
    tenant: Tenant<Operator>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    query: Query,
) -> Result<StatusCode, Problem> {
    remove(&tenant, &app, &name, None, query).await
}

/// Remove a version of a provider. One that serves is refused while enabled connections are accounts at the provider.
#[utoipa::path(delete, path = "/v1/providers/{name}/versions/{digest}", tag = "providers",
    operation_id = "uninstallProviderVersion",
    params(
        ("name" = String, Path, description = "Its name."),
        ("digest" = String, Path, description = "SHA-256 of the component."),
        ("force" = Option<bool>, Query, description = "Allow this while enabled connections need it."),
    ),
    responses(
        (status = 204, description = "It is gone, on every node."),
        (status = 409, description = "Enabled connections need it.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn uninstall_version(
    tenant: Tenant<Operator>,
    State(app): State<App>,
    UrlPath((name, digest)): UrlPath<(String, String)>,
    query: Query,
) -> Result<StatusCode, Problem> {
    remove(&tenant, &app, &name, Some(&digest), query).await
}

async fn remove(
    tenant: &Tenant<Operator>,
    app: &App,
    name: &str,
    digest: Option<&str>,
    mut query: Query,
) -> Result<StatusCode, Problem> {
    let force = query.flag("force");
    query.finish()?;
    providers::uninstall(app, &tenant.actor(), name, digest, force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let the version before serve again; the two change places.
#[utoipa::path(post, path = "/v1/providers/{name}/rollback", tag = "providers", operation_id = "rollbackProvider",
    params(("name" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "The previous version serves.", body = ProviderAnswer),
        (status = 409, description = "There is no previous version.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    tenant: Tenant<Operator>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ProviderAnswer>, Problem> {
    providers::roll_back(&app, &tenant.actor(), &name).await?;
    shown(&app, &tenant, &name).await.map(Json)
}

/// Say to which hosts a provider's requests may go: these and no others.
#[utoipa::path(put, path = "/v1/providers/{name}/grants", tag = "providers", operation_id = "grantHosts",
    params(("name" = String, Path, description = "Its name.")),
    request_body = GrantedHosts,
    responses((status = 200, description = "The present state.", body = ProviderAnswer)))]
pub async fn grant(
    tenant: Tenant<Operator>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(grants): Json<GrantedHosts>,
) -> Result<Json<ProviderAnswer>, Problem> {
    providers::grant(&app, &tenant.actor(), &name, &grants.hosts).await?;
    shown(&app, &tenant, &name).await.map(Json)
}

/// The tenant whose quarantines are shown; none for an operator.
fn viewer<P>(tenant: &Tenant<P>) -> Option<TenantId> {
    (!tenant.is_operator()).then_some(tenant.id)
}

async fn shown<P>(app: &App, tenant: &Tenant<P>, name: &str) -> Result<ProviderAnswer, Problem> {
    answer(providers::get(app, viewer(tenant), name).await?, tenant).ok_or_else(missing)
}

fn answer<P>(view: ProviderView, tenant: &Tenant<P>) -> Option<ProviderAnswer> {
    let descriptor = view.described()?.descriptor.clone();
    let ProviderView { provider, versions, quarantines } = view;
    let granted = &provider.granted_hosts;
    let versions = versions.into_iter().map(|version| ComponentAnswer::new(version, granted, &quarantines, tenant));
    let versions = versions.collect();
    Some(ProviderAnswer {
        name: provider.name,
        version: Some(descriptor.version),
        summary: descriptor.summary,
        channels: descriptor.channels,
        config_schema: descriptor.config_schema,
        secrets: descriptor.secrets,
        missing_grants: not_granted(&descriptor.hosts, &provider.granted_hosts),
        declared_hosts: descriptor.hosts,
        deduplicates: descriptor.deduplication != Deduplication::None,
        cost_model: descriptor.cost_model,
        active_digest: provider.active_digest,
        previous_digest: provider.previous_digest,
        versions,
        granted_hosts: provider.granted_hosts,
        updated_at: provider.updated_at,
    })
}

impl ComponentAnswer {
    fn new<P>(row: StoredComponent, granted: &[String], quarantines: &[TenantQuarantine], tenant: &Tenant<P>) -> Self {
        let of_it = || quarantines.iter().filter(|it| it.digest == row.digest);
        let own = of_it().find(|it| it.tenant == tenant.id);
        Self {
            missing_grants: not_granted(&row.descriptor.hosts, granted),
            declared_hosts: row.descriptor.hosts,
            quarantined_until: own.map(|it| it.until),
            quarantined_tenants: tenant.is_operator().then(|| of_it().map(|it| it.tenant.to_string()).collect()),
            digest: row.digest.clone(),
            version: row.descriptor.version,
            installed_at: row.created_at,
            quarantined_at: row.quarantined_at,
            quarantine_reason: row.quarantine_reason.clone().or_else(|| own.map(|it| it.reason.clone())),
        }
    }
}

fn missing() -> Problem {
    Problem::not_found("provider")
}
