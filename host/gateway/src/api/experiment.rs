//! Experiments: a version of a rule or script is tried beside the live one, as a shadow or for a part of the recipients.

use axum::{extract::State, http::StatusCode};

use super::{
    App,
    auth::{RulesRead, RulesReadOnMessages, RulesWrite, Tenant},
    draft::Draft,
    json::Json,
    page::{Page, PageParams, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
    version::{RuleInPath, ScriptInPath},
};
use crate::app::experiments::{self, ExperimentReport, NewExperiment, ShadowDifference};
use angarium_domain::{experiment::ExperimentKind, ids::DifferenceId};

/// Begin an experiment with a version, or give a canary another percentage. A shadow is asked, and not followed; answers
/// that differ from the live ones are recorded. A canary decides about a part of the recipients, always the same ones.
#[utoipa::path(post, path = "/v1/rules/{rule}/experiment", tag = "rules", operation_id = "beginRuleExperiment",
    params(RuleInPath),
    request_body = NewExperiment,
    responses(
        (status = 200, description = "The experiment.", body = ExperimentReport),
        (status = 409, description = "Another rule has an experiment.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn begin_of_rule(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(new, fields): Draft<NewExperiment>,
) -> Result<Json<ExperimentReport>, Problem> {
    Ok(Json(experiments::begin(&app, &tenant.principal(), ExperimentKind::Rule, &name, new, fields).await?))
}

/// Show the running experiment of a rule with its results, or the last one.
#[utoipa::path(get, path = "/v1/rules/{rule}/experiment", tag = "rules", operation_id = "getRuleExperiment",
    params(RuleInPath),
    responses((status = 200, description = "The results of both versions.", body = ExperimentReport)))]
pub async fn get_of_rule(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ExperimentReport>, Problem> {
    Ok(Json(experiments::get(&app, tenant.id, ExperimentKind::Rule, &name).await?))
}

/// End the experiment of a rule. Its results can be read for thirty days.
#[utoipa::path(delete, path = "/v1/rules/{rule}/experiment", tag = "rules", operation_id = "endRuleExperiment",
    params(RuleInPath),
    responses((status = 204, description = "None runs any more.")))]
pub async fn end_of_rule(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    experiments::end(&app, &tenant.principal(), ExperimentKind::Rule, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Show where a shadow's answers differ from the live ones, the latest first. It needs the scopes `rules:read` and
/// `messages:read`.
#[utoipa::path(get, path = "/v1/rules/{rule}/experiment/differences", tag = "rules",
    operation_id = "listRuleDifferences",
    params(RuleInPath, PageParams),
    responses((status = 200, description = "A page.", body = Page<ShadowDifference>)))]
pub async fn differences_of_rule(
    tenant: Tenant<RulesReadOnMessages>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    query: Query,
) -> Result<Json<Page<ShadowDifference>>, Problem> {
    differences(&tenant, &app, ExperimentKind::Rule, &name, query).await
}

/// Begin an experiment with a version, or give a canary another percentage. A shadow is asked, and not followed; answers
/// that differ from the live ones are recorded. A canary decides about a part of the recipients, always the same ones.
#[utoipa::path(post, path = "/v1/scripts/{script}/experiment", tag = "rules", operation_id = "beginScriptExperiment",
    params(ScriptInPath),
    request_body = NewExperiment,
    responses(
        (status = 200, description = "The experiment.", body = ExperimentReport),
        (status = 409, description = "It does not compile with the present modules.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn begin_of_script(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(new, fields): Draft<NewExperiment>,
) -> Result<Json<ExperimentReport>, Problem> {
    Ok(Json(experiments::begin(&app, &tenant.principal(), ExperimentKind::Script, &name, new, fields).await?))
}

/// Show the running experiment of a script with its results, or the last one.
#[utoipa::path(get, path = "/v1/scripts/{script}/experiment", tag = "rules", operation_id = "getScriptExperiment",
    params(ScriptInPath),
    responses((status = 200, description = "The results of both versions.", body = ExperimentReport)))]
pub async fn get_of_script(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<ExperimentReport>, Problem> {
    Ok(Json(experiments::get(&app, tenant.id, ExperimentKind::Script, &name).await?))
}

/// End the experiment of a script. Its results can be read for thirty days.
#[utoipa::path(delete, path = "/v1/scripts/{script}/experiment", tag = "rules", operation_id = "endScriptExperiment",
    params(ScriptInPath),
    responses((status = 204, description = "None runs any more.")))]
pub async fn end_of_script(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    experiments::end(&app, &tenant.principal(), ExperimentKind::Script, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Show where a shadow's answers differ from the live ones, the latest first. It needs the scopes `rules:read` and
/// `messages:read`.
#[utoipa::path(get, path = "/v1/scripts/{script}/experiment/differences", tag = "rules",
    operation_id = "listScriptDifferences",
    params(ScriptInPath, PageParams),
    responses((status = 200, description = "A page.", body = Page<ShadowDifference>)))]
pub async fn differences_of_script(
    tenant: Tenant<RulesReadOnMessages>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    query: Query,
) -> Result<Json<Page<ShadowDifference>>, Problem> {
    differences(&tenant, &app, ExperimentKind::Script, &name, query).await
}

async fn differences(
    tenant: &Tenant<RulesReadOnMessages>,
    app: &App,
    kind: ExperimentKind,
    name: &str,
    mut query: Query,
) -> Result<Json<Page<ShadowDifference>>, Problem> {
    let paging = Paging::<DifferenceId>::of(&mut query);
    query.finish()?;
    let page = experiments::differences(app, tenant.id, kind, name, paging.after, paging.limit).await?;
    Ok(Json(Page::of(page, |difference| difference.id().to_owned(), |difference| difference)))
}
