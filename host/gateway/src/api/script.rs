//! `/v1/scripts`: a tenant's scripts. Create is not activate: a version does nothing until it is activated.

use axum::{extract::State, http::StatusCode};

use super::{
    App,
    auth::{RulesRead, RulesWrite, Tenant},
    draft::Draft,
    json::Json,
    page::Page,
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
    version::{ComparisonParams, ScriptInPath, VersionInPath, compared},
};
use crate::app::{
    documents::{VersionActivation, VersionComparison},
    scripts::{self, NewScriptVersion, ScriptStatus, ScriptVersionView},
};
use angarium_domain::document::DocumentKind;

/// List the scripts by name, each with its active version or else the latest: the tenant's own, and the operators' for
/// its messages, with their origin.
#[utoipa::path(get, path = "/v1/scripts", tag = "rules", operation_id = "listScripts",
    responses((status = 200, description = "All of them.", body = Page<ScriptVersionView>)))]
pub async fn list(tenant: Tenant<RulesRead>, State(app): State<App>) -> Result<Json<Page<ScriptVersionView>>, Problem> {
    Ok(Json(Page::whole(scripts::list(&app, tenant.id).await?)))
}

/// Show a script as it stands: one of the tenant's own, or an operators' that is asked about the tenant's messages.
#[utoipa::path(get, path = "/v1/scripts/{script}", tag = "rules", operation_id = "getScript",
    params(ScriptInPath),
    responses((status = 200, description = "The script.", body = ScriptStatus)))]
pub async fn get(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ScriptStatus>, Problem> {
    Ok(Json(scripts::status(&app, tenant.id, &name).await?))
}

/// Reset the breaker of a script, on every node at once.
#[utoipa::path(post, path = "/v1/scripts/{script}/reset", tag = "rules", operation_id = "resetScript",
    params(ScriptInPath),
    responses((status = 200, description = "The script, which is asked.", body = ScriptStatus)))]
pub async fn reset(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ScriptStatus>, Problem> {
    Ok(Json(scripts::reset(&app, &tenant.principal(), &name).await?))
}

/// List a script's versions, the latest first.
#[utoipa::path(get, path = "/v1/scripts/{script}/versions", tag = "rules", operation_id = "listScriptVersions",
    params(ScriptInPath),
    responses((status = 200, description = "The latest 50, and those in service.", body = Page<ScriptVersionView>)))]
pub async fn versions(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Page<ScriptVersionView>>, Problem> {
    Ok(Json(Page::whole(scripts::versions(&app, tenant.id, &name).await?)))
}

/// Add a version, which does nothing until it is activated. One that does not compile, or fails a case, is refused.
#[utoipa::path(post, path = "/v1/scripts/{script}/versions", tag = "rules", operation_id = "createScriptVersion",
    params(("script" = String, Path, description = "Its name: small letters, digits, `-` and `_`.",
        pattern = "^[a-z][a-z0-9_-]{0,63}$")),
    request_body = NewScriptVersion,
    responses(
        (status = 201, description = "The version.", body = ScriptVersionView),
        (status = 409, description = "There are 100 scripts.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create_version(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(new, fields): Draft<NewScriptVersion>,
) -> Result<(StatusCode, Json<ScriptVersionView>), Problem> {
    let version = scripts::create_version(&app, &tenant.principal(), &name, new, fields).await?;
    Ok((StatusCode::CREATED, Json(version)))
}

/// Compare two versions of a script.
#[utoipa::path(get, path = "/v1/scripts/{script}/versions/{version}/compare", tag = "rules",
    operation_id = "compareScriptVersions",
    params(ScriptInPath, VersionInPath, ComparisonParams),
    responses(
        (status = 200, description = "Where they differ.", body = VersionComparison),
        (status = 409, description = "No version is active.", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn compare(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(version): UrlPath<(String, i32)>,
    query: Query,
) -> Result<Json<VersionComparison>, Problem> {
    compared(&app, tenant.id, DocumentKind::Script, version, query).await
}

/// Activate a version in place of the active one, such as a variant that was tried.
#[utoipa::path(post, path = "/v1/scripts/{script}/activate", tag = "rules", operation_id = "activateScript",
    params(ScriptInPath),
    request_body = VersionActivation,
    responses(
        (status = 200, description = "The version, which is live.", body = ScriptVersionView),
        (status = 409, description = "It does not compile with the present modules, or another version is active than the expected one.",
            body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn activate(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(activation): Json<VersionActivation>,
) -> Result<Json<ScriptVersionView>, Problem> {
    Ok(Json(scripts::activate(&app, &tenant.principal(), &name, activation).await?))
}

/// Return to the version that was active before; the two change places.
#[utoipa::path(post, path = "/v1/scripts/{script}/rollback", tag = "rules", operation_id = "rollbackScript",
    params(ScriptInPath),
    responses(
        (status = 200, description = "The version, which is live again.", body = ScriptVersionView),
        (status = 409, description = "No version was live before, or it does not compile with the present modules.",
            body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ScriptVersionView>, Problem> {
    Ok(Json(scripts::roll_back(&app, &tenant.principal(), &name).await?))
}

/// Take a script out of service. Its versions stay, and can be activated again.
#[utoipa::path(delete, path = "/v1/scripts/{script}", tag = "rules", operation_id = "retireScript",
    params(ScriptInPath),
    responses((status = 204, description = "No version of it decides anything.")))]
pub async fn retire(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    scripts::retire(&app, &tenant.principal(), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
