//! `/v1/rules`: conditions that a tenant changes while the gateway runs.

mod evaluate;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

pub use self::evaluate::{__path_evaluate, evaluate};
use super::{
    App,
    auth::{RulesRead, RulesWrite, Tenant},
    draft::{self, Draft},
    json::Json,
    page::{Page, PageParams, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
    version::{ComparisonParams, RuleInPath, VersionInPath, compared},
};
use crate::app::{
    documents::{VersionActivation, VersionComparison},
    rules::{self, StoredRule, StoredRuleVersion},
};
use angarium_domain::{document::DocumentKind, ids::RuleId, rule::RuleSpec};

/// A new rule; it counts at once.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "uid": "vip-by-nordic",
    "rule": {"name": "Dear customers go by Nordic", "when": {"customer": {"segment": "vip"}},
        "then": {"connections": ["sms-nordic"], "priority": "high"}}
}))]
pub struct NewRule {
    /// The client's own name for it; works wherever the id does.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    uid: Option<String>,
    #[serde(default)]
    #[schema(value_type = RuleSpec, required = true)]
    rule: Option<RuleSpec>,
}

/// A version of a rule that counts for nothing until it is tried or activated.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"rule": {
    "name": "Dear customers go by Nordic", "when": {"customer": {"segment": ["vip", "gold"]}},
    "then": {"connections": ["sms-nordic"], "priority": "high"}
}}))]
pub struct NewRuleVersion {
    #[serde(default)]
    #[schema(value_type = RuleSpec, required = true)]
    rule: Option<RuleSpec>,
}

/// A rule that replaces the previous one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": 3, "rule": {
    "name": "Dear customers go by Nordic", "when": {"customer": {"segment": ["vip", "gold"]}},
    "then": {"connections": ["sms-nordic"], "priority": "high"}
}}))]
pub struct RuleChange {
    /// The version that this is a change of; refused where another one is active. Left out, any version is replaced.
    #[serde(default)]
    #[schema(minimum = 1)]
    version: Option<i32>,
    #[serde(default)]
    #[schema(value_type = RuleSpec, required = true)]
    rule: Option<RuleSpec>,
}

/// A change of a part of a rule.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": 3, "rule": {"active": false}}))]
pub struct RulePatch {
    /// As with `PUT`.
    #[serde(default)]
    #[schema(minimum = 1)]
    version: Option<i32>,
    /// A JSON merge patch (RFC 7396): members that it names replace the rule's, `null` takes one away, objects within
    /// are merged, lists replaced.
    #[schema(value_type = Object)]
    rule: Map<String, Value>,
}

/// A rule.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rule)]
pub struct RuleAnswer {
    #[schema(example = "rule_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    uid: Option<String>,
    /// The active one.
    version: i32,
    /// The version that a rollback returns to.
    previous_version: Option<i32>,
    latest_version: i32,
    rule: RuleSpec,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A version of a rule; it never changes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RuleVersion)]
pub struct RuleVersionAnswer {
    version: i32,
    rule: RuleSpec,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it last became active; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    activated_at: Option<Timestamp>,
}

/// Make a rule. It counts for every message that is accepted from now on.
#[utoipa::path(post, path = "/v1/rules", tag = "rules", operation_id = "createRule",
    request_body = NewRule,
    responses(
        (status = 201, description = "It was made, and counts.", body = RuleAnswer),
        (status = 409, description = "The uid is taken, or there are 10,000 rules.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn create(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    Draft(NewRule { uid, rule }, fields): Draft<NewRule>,
) -> Result<(StatusCode, Json<RuleAnswer>), Problem> {
    let rule = rules::create(&app, &tenant.principal(), uid, rule, fields).await?;
    Ok((StatusCode::CREATED, Json(rule.into())))
}

/// List the rules, the newest first.
#[utoipa::path(get, path = "/v1/rules", tag = "rules", operation_id = "listRules",
    params(PageParams),
    responses((status = 200, description = "A page.", body = Page<RuleAnswer>)))]
pub async fn list(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<RuleAnswer>>, Problem> {
    let paging = Paging::<RuleId>::of(&mut query);
    query.finish()?;
    let page = rules::list(&app, tenant.id, paging.after, paging.limit).await?;
    Ok(Json(Page::of(page, |rule| rule.id.to_string(), RuleAnswer::from)))
}

/// Show a rule.
#[utoipa::path(get, path = "/v1/rules/{rule}", tag = "rules", operation_id = "getRule",
    params(RuleInPath),
    responses((status = 200, description = "The rule.", body = RuleAnswer)))]
pub async fn get(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RuleAnswer>, Problem> {
    Ok(Json(rules::get(&app, tenant.id, &name).await?.into()))
}

/// Replace a rule.
#[utoipa::path(put, path = "/v1/rules/{rule}", tag = "rules", operation_id = "putRule",
    params(RuleInPath),
    request_body = RuleChange,
    responses(
        (status = 200, description = "As it is now.", body = RuleAnswer),
        (status = 409, description = "Another version is active.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn put(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(RuleChange { version, rule }, fields): Draft<RuleChange>,
) -> Result<Json<RuleAnswer>, Problem> {
    Ok(Json(rules::replace(&app, &tenant.principal(), &name, version, rule, fields).await?.into()))
}

/// Change a part of a rule, such as `active`.
#[utoipa::path(patch, path = "/v1/rules/{rule}", tag = "rules", operation_id = "patchRule",
    params(RuleInPath),
    request_body = RulePatch,
    responses(
        (status = 200, description = "As it is now.", body = RuleAnswer),
        (status = 409, description = "Another version is active.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn patch(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(RulePatch { version, rule: patch }): Json<RulePatch>,
) -> Result<Json<RuleAnswer>, Problem> {
    let before = rules::get(&app, tenant.id, &name).await?;
    // The result is read like a request, so that each of its faults is named.
    let whole = json!({"version": version.unwrap_or(before.version), "rule": rules::merged(&before.spec, patch)});
    let Draft(RuleChange { version, rule }, fields) = draft::read::<RuleChange>(whole.to_string().as_bytes())?;
    Ok(Json(rules::replace(&app, &tenant.principal(), &name, version, rule, fields).await?.into()))
}

/// Delete a rule. Its versions stay on record.
#[utoipa::path(delete, path = "/v1/rules/{rule}", tag = "rules", operation_id = "deleteRule",
    params(RuleInPath),
    responses((status = 204, description = "It is gone.")))]
pub async fn delete(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    rules::delete(&app, &tenant.principal(), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a rule's versions, the latest first.
#[utoipa::path(get, path = "/v1/rules/{rule}/versions", tag = "rules", operation_id = "listRuleVersions",
    params(RuleInPath),
    responses((status = 200, description = "The latest 50, and those in service.", body = Page<RuleVersionAnswer>)))]
pub async fn versions(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Page<RuleVersionAnswer>>, Problem> {
    let versions = rules::versions(&app, tenant.id, &name).await?;
    Ok(Json(Page::whole(versions.into_iter().map(RuleVersionAnswer::from).collect())))
}

/// Add a version, which counts for nothing until it is tried in an experiment or activated.
#[utoipa::path(post, path = "/v1/rules/{rule}/versions", tag = "rules", operation_id = "createRuleVersion",
    params(RuleInPath),
    request_body = NewRuleVersion,
    responses((status = 201, description = "The version.", body = RuleVersionAnswer)))]
pub async fn create_version(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(NewRuleVersion { rule }, fields): Draft<NewRuleVersion>,
) -> Result<(StatusCode, Json<RuleVersionAnswer>), Problem> {
    let version = rules::create_version(&app, &tenant.principal(), &name, rule, fields).await?;
    Ok((StatusCode::CREATED, Json(version.into())))
}

/// Compare two versions of a rule.
#[utoipa::path(get, path = "/v1/rules/{rule}/versions/{version}/compare", tag = "rules",
    operation_id = "compareRuleVersions",
    params(RuleInPath, VersionInPath, ComparisonParams),
    responses((status = 200, description = "Where they differ.", body = VersionComparison)))]
pub async fn compare(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(version): UrlPath<(String, i32)>,
    query: Query,
) -> Result<Json<VersionComparison>, Problem> {
    compared(&app, tenant.id, DocumentKind::Rule, version, query).await
}

/// Activate a version, such as a variant that was tried. It counts for every message that is accepted from now on.
#[utoipa::path(post, path = "/v1/rules/{rule}/activate", tag = "rules", operation_id = "activateRule",
    params(RuleInPath),
    request_body = VersionActivation,
    responses(
        (status = 200, description = "As it is now.", body = RuleAnswer),
        (status = 409, description = "Another version is active than the expected one, or than the one that it was compared with.",
            body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn activate(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(activation): Json<VersionActivation>,
) -> Result<Json<RuleAnswer>, Problem> {
    Ok(Json(rules::activate(&app, &tenant.principal(), &name, activation).await?.into()))
}

/// Return to the version that was active before; the two change places.
#[utoipa::path(post, path = "/v1/rules/{rule}/rollback", tag = "rules", operation_id = "rollbackRule",
    params(RuleInPath),
    responses(
        (status = 200, description = "As it is now.", body = RuleAnswer),
        (status = 409, description = "There was no version before.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn rollback(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RuleAnswer>, Problem> {
    Ok(Json(rules::roll_back(&app, &tenant.principal(), &name).await?.into()))
}

impl From<StoredRule> for RuleAnswer {
    fn from(stored: StoredRule) -> Self {
        let StoredRule { id, uid, version, previous_version, latest_version, spec, created_at, updated_at } = stored;
        let id = id.to_string();
        Self { id, uid, version, previous_version, latest_version, rule: spec, created_at, updated_at }
    }
}

impl From<StoredRuleVersion> for RuleVersionAnswer {
    fn from(stored: StoredRuleVersion) -> Self {
        let StoredRuleVersion { version, spec, created_at, activated_at } = stored;
        Self { version, rule: spec, created_at, activated_at }
    }
}
