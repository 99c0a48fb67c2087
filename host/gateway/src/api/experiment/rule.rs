//! `/v1/rules/{rule}/…`: candidates of declarative rules, and the versions before them.

use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    super::{
        App,
        auth::{RulesRead, RulesReadOnMessages, RulesWrite, Tenant},
        draft::Draft,
        fields::Fields,
        json::Json,
        page::{Page, Paging},
        problem::{Problem, ProblemBody},
        request::{Query, UrlPath},
        rule::{RuleAnswer, checked, done, named, passed, value},
    },
    CandidateAnswer, DifferenceAnswer, begin, canary_of, differences_of, new_experiment, none, running, shown,
};
use crate::clock;
use angarium_domain::{
    audit::Action,
    experiment::{ExperimentKind, ExperimentMode},
    ids::{DifferenceId, RuleId, TenantId},
    rule::RuleSpec,
};
use angarium_store::{
    Connection as Db, Transaction,
    audit::AuditEntry,
    experiment::{ExperimentRow, experiment_end},
    rule::{StoredRule, rule_put, rule_version_get},
};

/// A rule as it would be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleShadow)]
#[schema(example = json!({"rule": {
    "name": "Dear customers go by Nordic", "when": {"customer": {"segment": ["vip", "gold"]}},
    "then": {"connections": ["sms-nordic"], "priority": "high"}
}}))]
pub struct NewRuleShadow {
    /// The current variant by default.
    #[serde(default)]
    #[schema(value_type = RuleSpec, required = false)]
    rule: Option<RuleSpec>,
}

/// A rule as it would be, and for how many of the recipients.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleCanary)]
#[schema(example = json!({"percentage": 10, "rule": {
    "name": "Dear customers go by Nordic", "when": {"customer": {"segment": ["vip", "gold"]}},
    "then": {"connections": ["sms-nordic"], "priority": "high"}
}}))]
pub struct NewRuleCanary {
    /// The current variant by default.
    #[serde(default)]
    #[schema(value_type = RuleSpec, required = false)]
    rule: Option<RuleSpec>,
    /// The share of recipients; a recipient that is in stays in while it grows.
    #[schema(minimum = 1, maximum = 99)]
    percentage: i32,
}

/// Ask a change of a rule beside the live version. It is not followed; differing decisions are recorded. One rule of a
/// tenant can have an experiment at a time.
#[utoipa::path(post, path = "/v1/rules/{rule}/shadow", tag = "rules", operation_id = "shadowRule",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    request_body = NewRuleShadow,
    responses(
        (status = 200, description = "The candidate.", body = CandidateAnswer),
        (status = 409, description = "Another rule has a candidate.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn shadow(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(new, fields): Draft<NewRuleShadow>,
) -> Result<Json<CandidateAnswer>, Problem> {
    tried(&app, &tenant, &name, new.rule, ExperimentMode::Shadow, fields).await
}

/// Let a change of a rule count for a part of the recipients, always the same ones.
#[utoipa::path(post, path = "/v1/rules/{rule}/canary", tag = "rules", operation_id = "canaryRule",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    request_body = NewRuleCanary,
    responses(
        (status = 200, description = "The candidate.", body = CandidateAnswer),
        (status = 409, description = "Another rule has a candidate.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn canary(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(new, mut fields): Draft<NewRuleCanary>,
) -> Result<Json<CandidateAnswer>, Problem> {
    let mode = canary_of(new.percentage, &mut fields);
    tried(&app, &tenant, &name, new.rule, mode, fields).await
}

/// Put the variant in the rule's place, for all recipients and at once.
#[utoipa::path(post, path = "/v1/rules/{rule}/promote", tag = "rules", operation_id = "promoteRule",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    responses(
        (status = 200, description = "The present state.", body = RuleAnswer),
        (status = 409, description = "There is no candidate, or the rule was changed meanwhile.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn promote(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RuleAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let rule = named(&mut txn, tenant.id, &name).await?;
    let missing = || Problem::conflict("no_candidate", "the rule has no candidate");
    let row = ended(&mut txn, tenant.id, rule.id).await?.ok_or_else(missing)?;
    if row.version != rule.version {
        return Err(Problem::conflict(
            "version_passed",
            "the rule has changed since its candidate began: try the candidate again, as a change of this version",
        ));
    }
    replaced(&app, &tenant, txn, rule, spec_of(&row)?, Action::RulePromoted).await
}

/// Put the version before in the rule's place, as a version of its own: done twice, it is undone.
#[utoipa::path(post, path = "/v1/rules/{rule}/rollback", tag = "rules", operation_id = "rollbackRule",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    responses(
        (status = 200, description = "The present state.", body = RuleAnswer),
        (status = 409, description = "There is no previous version.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RuleAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let rule = named(&mut txn, tenant.id, &name).await?;
    let before = rule_version_get(&mut txn, tenant.id, rule.id, rule.version - 1).await?;
    let none = || Problem::conflict("no_previous_version", "the rule has had one version only");
    replaced(&app, &tenant, txn, rule, before.ok_or_else(none)?, Action::RuleRolledBack).await
}

/// Show the running experiment, or the last one.
#[utoipa::path(get, path = "/v1/rules/{rule}/candidate", tag = "rules", operation_id = "getRuleCandidate",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    responses((status = 200, description = "The results of both.", body = CandidateAnswer)))]
pub async fn candidate(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<CandidateAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let rule = named(&mut txn, tenant.id, &name).await?;
    Ok(Json(shown(&mut txn, tenant.id, ExperimentKind::Rule, &rule.id.to_string()).await?))
}

/// End the experiment. Its results can be read for thirty days.
#[utoipa::path(delete, path = "/v1/rules/{rule}/candidate", tag = "rules", operation_id = "endRuleCandidate",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    responses((status = 204, description = "The experiment has ended.")))]
pub async fn end(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let rule = named(&mut txn, tenant.id, &name).await?;
    let row = ended(&mut txn, tenant.id, rule.id).await?.ok_or_else(none)?;
    let entry = AuditEntry::new(Action::RuleCandidateEnded, rule.id).before(told(&spec_of(&row)?, row.mode));
    done(&app, &tenant, txn, &entry).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a shadow's differing decisions, the latest first. It needs the scopes `rules:read` and `messages:read`.
#[utoipa::path(get, path = "/v1/rules/{rule}/differences", tag = "rules", operation_id = "listRuleDifferences",
    params(
        ("rule" = String, Path, description = "`rule_…` or its uid"),
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
    let mut txn = app.store.tenant(tenant.id).await?;
    let rule = named(&mut txn, tenant.id, &name).await?;
    Ok(Json(differences_of(&mut txn, tenant.id, ExperimentKind::Rule, &rule.id.to_string(), &paging).await?))
}

async fn tried(
    app: &App,
    tenant: &Tenant<RulesWrite>,
    name: &str,
    spec: Option<RuleSpec>,
    mode: ExperimentMode,
    fields: Fields,
) -> Result<Json<CandidateAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let rule = named(&mut txn, tenant.id, name).await?;
    let subject = rule.id.to_string();
    let spec = match spec {
        Some(spec) => Some(spec),
        None => {
            running(&mut txn, tenant.id, ExperimentKind::Rule, &subject).await?.map(|row| spec_of(&row)).transpose()?
        }
    };
    let spec = checked(rule.id, spec, fields)?;
    // Plain data always has a JSON form.
    let text = serde_json::to_string(&spec).unwrap_or_default();
    begin(&mut txn, tenant.id, &new_experiment(ExperimentKind::Rule, subject.clone(), rule.version, mode, Some(text)))
        .await?;
    let answer = shown(&mut txn, tenant.id, ExperimentKind::Rule, &subject).await?;
    let action = match mode {
        ExperimentMode::Shadow => Action::RuleShadowed,
        ExperimentMode::Canary { .. } => Action::RuleCanaried,
    };
    done(app, tenant, txn, &AuditEntry::new(action, rule.id).before(value(&rule.spec)).after(told(&spec, mode)))
        .await?;
    Ok(Json(answer))
}

/// Puts another specification in a rule's place.
async fn replaced(
    app: &App,
    tenant: &Tenant<RulesWrite>,
    mut txn: Transaction<'_>,
    before: StoredRule,
    spec: RuleSpec,
    action: Action,
) -> Result<Json<RuleAnswer>, Problem> {
    let entry = AuditEntry::new(action, before.id).before(value(&before.spec)).after(value(&spec));
    let version = before.version.saturating_add(1);
    let rule = StoredRule { version, spec, updated_at: clock::now(), ..before };
    if !rule_put(&mut txn, tenant.id, &rule).await? {
        return Err(passed());
    }
    done(app, tenant, txn, &entry).await?;
    Ok(Json(rule.into()))
}

/// Ends the experiment with a rule; returns it.
pub async fn ended(db: &mut Db, tenant: TenantId, rule: RuleId) -> Result<Option<ExperimentRow>, Problem> {
    let Some(row) = running(db, tenant, ExperimentKind::Rule, &rule.to_string()).await? else { return Ok(None) };
    experiment_end(db, tenant, row.id).await?;
    Ok(Some(row))
}

fn spec_of(row: &ExperimentRow) -> Result<RuleSpec, Problem> {
    serde_json::from_str(row.spec.as_deref().unwrap_or_default()).map_err(|error| Problem::internal(&error))
}

fn told(spec: &RuleSpec, mode: ExperimentMode) -> serde_json::Value {
    serde_json::json!({ "rule": value(spec), "mode": mode.as_str(), "percentage": mode.percentage() })
}
