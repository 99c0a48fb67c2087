//! `/v1/scripts/{script}/…`: candidates of scripts.

use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    super::{
        App,
        auth::{RulesRead, RulesReadOnMessages, RulesWrite, Tenant},
        draft::Draft,
        json::Json,
        page::{Page, Paging},
        problem::{Problem, ProblemBody},
        request::{Query, UrlPath},
        rule::done,
        script::{Promotion, existing, missing, still_compiles},
    },
    CandidateAnswer, DifferenceAnswer, begin, canary_of, differences_of, new_experiment, none, running, shown,
};
use angarium_domain::{
    audit::Action,
    experiment::{ExperimentKind, ExperimentMode},
    ids::{DifferenceId, TenantId},
};
use angarium_store::{
    Connection as Db,
    audit::AuditEntry,
    experiment::{ExperimentRow, experiment_end},
    script::{script_try, script_try_end, script_versions},
};

/// The version, and its share of the recipients.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ScriptCanary)]
#[schema(example = json!({"version": 4, "percentage": 10}))]
pub struct NewScriptCanary {
    #[schema(minimum = 1)]
    version: i32,
    /// The share of recipients; a recipient that is in stays in while it grows.
    #[schema(minimum = 1, maximum = 99)]
    percentage: i32,
}

/// Have a version asked beside the one that is live. Its answers are not followed; those that differ are recorded.
#[utoipa::path(post, path = "/v1/scripts/{script}/shadow", tag = "rules", operation_id = "shadowScript",
    params(("script" = String, Path, description = "Its name.")),
    request_body = Promotion,
    responses(
        (status = 200, description = "The candidate.", body = CandidateAnswer),
        (status = 409, description = "Another candidate came first, or it does not compile with the modules as they are now.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn shadow(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(Promotion { version }): Json<Promotion>,
) -> Result<Json<CandidateAnswer>, Problem> {
    tried(&app, &tenant, &name, version, ExperimentMode::Shadow).await
}

/// Let a version decide about a part of the recipients, always the same ones.
#[utoipa::path(post, path = "/v1/scripts/{script}/canary", tag = "rules", operation_id = "canaryScript",
    params(("script" = String, Path, description = "Its name.")),
    request_body = NewScriptCanary,
    responses(
        (status = 200, description = "The candidate.", body = CandidateAnswer),
        (status = 409, description = "Another candidate came first, or it does not compile with the modules as they are now.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn canary(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(NewScriptCanary { version, percentage }, mut fields): Draft<NewScriptCanary>,
) -> Result<Json<CandidateAnswer>, Problem> {
    let mode = canary_of(percentage, &mut fields);
    fields.finish()?;
    tried(&app, &tenant, &name, version, mode).await
}

/// Show the running experiment, or the last one.
#[utoipa::path(get, path = "/v1/scripts/{script}/candidate", tag = "rules", operation_id = "getScriptCandidate",
    params(("script" = String, Path, description = "Its name.")),
    responses((status = 200, description = "The results of both.", body = CandidateAnswer)))]
pub async fn candidate(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<CandidateAnswer>, Problem> {
    existing(&name)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    Ok(Json(shown(&mut txn, tenant.id, ExperimentKind::Script, &name).await?))
}

/// End the experiment. Its results can be read for thirty days.
#[utoipa::path(delete, path = "/v1/scripts/{script}/candidate", tag = "rules", operation_id = "endScriptCandidate",
    params(("script" = String, Path, description = "Its name.")),
    responses((status = 204, description = "The experiment has ended.")))]
pub async fn end(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    existing(&name)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let row = ended(&mut txn, tenant.id, &name).await?.ok_or_else(none)?;
    let entry = AuditEntry::new(Action::ScriptCandidateEnded, &name).before(told(row.version, row.mode));
    done(&app, &tenant, txn, &entry).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a shadow's differing answers, the latest first. It needs the scopes `rules:read` and `messages:read`.
#[utoipa::path(get, path = "/v1/scripts/{script}/differences", tag = "rules", operation_id = "listScriptDifferences",
    params(
        ("script" = String, Path, description = "Its name."),
        ("limit" = Option<u32>, Query, description = "The number of entries; 50 by default.", minimum = 1, maximum = 250),
        ("cursor" = Option<String>, Query, description = "From `next_cursor`."),
    ),
    responses((status = 200, description = "A page of them.", body = Page<DifferenceAnswer>)))]
pub async fn differences(
    tenant: Tenant<RulesReadOnMessages>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    mut query: Query,
) -> Result<Json<Page<DifferenceAnswer>>, Problem> {
    let paging = Paging::<DifferenceId>::of(&mut query);
    query.finish()?;
    existing(&name)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    Ok(Json(differences_of(&mut txn, tenant.id, ExperimentKind::Script, &name, &paging).await?))
}

async fn tried(
    app: &App,
    tenant: &Tenant<RulesWrite>,
    name: &str,
    version: i32,
    mode: ExperimentMode,
) -> Result<Json<CandidateAnswer>, Problem> {
    existing(name)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let rows = script_versions(&mut txn, tenant.id, name).await?;
    if rows.is_empty() {
        return Err(missing());
    }
    let row = rows.iter().find(|row| row.version == version);
    let row = row.ok_or_else(|| Problem::field("/version", "unknown_version", "does not exist"))?;
    if row.state == "live" || !script_try(&mut txn, tenant.id, name, version, mode).await? {
        return Err(Problem::field("/version", "already_live", "must be another version than the one that is live"));
    }
    still_compiles(&mut txn, tenant.id, Some(row.clone())).await?;
    begin(&mut txn, tenant.id, &new_experiment(ExperimentKind::Script, name.to_owned(), version, mode, None)).await?;
    let answer = shown(&mut txn, tenant.id, ExperimentKind::Script, name).await?;
    let action = match mode {
        ExperimentMode::Shadow => Action::ScriptShadowed,
        ExperimentMode::Canary { .. } => Action::ScriptCanaried,
    };
    done(app, tenant, txn, &AuditEntry::new(action, name).after(told(version, mode))).await?;
    Ok(Json(answer))
}

/// Ends the experiment with a script; returns it.
pub async fn ended(db: &mut Db, tenant: TenantId, name: &str) -> Result<Option<ExperimentRow>, Problem> {
    let Some(row) = running(db, tenant, ExperimentKind::Script, name).await? else { return Ok(None) };
    experiment_end(db, tenant, row.id).await?;
    script_try_end(db, tenant, name).await?;
    Ok(Some(row))
}

/// A version has become live: it is a candidate no longer.
pub async fn promoted(db: &mut Db, tenant: TenantId, name: &str, version: i32) -> Result<(), Problem> {
    let running = running(db, tenant, ExperimentKind::Script, name).await?;
    match running.filter(|it| it.version == version) {
        Some(row) => Ok(experiment_end(db, tenant, row.id).await?),
        None => Ok(()),
    }
}

fn told(version: i32, mode: ExperimentMode) -> serde_json::Value {
    serde_json::json!({ "version": version, "mode": mode.as_str(), "percentage": mode.percentage() })
}
