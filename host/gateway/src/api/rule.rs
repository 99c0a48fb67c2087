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
    experiment,
    fields::{self, Fields},
    json::Json,
    page::{Page, Paging},
    problem::{Problem, ProblemBody},
    request::{Query, UrlPath},
};
use crate::clock;
use angarium_domain::{
    audit::Action,
    ids::{RuleId, TenantId},
    rule::RuleSpec,
};
use angarium_rules::{RuleSet, language::Language};
use angarium_store::{
    Connection as Db, StoreError, Transaction,
    audit::{AuditEntry, audit_insert},
    rule::{StoredRule, rule_count, rule_delete, rule_find, rule_page, rule_put},
    tenant::{tenant_config_bump, tenant_config_grow},
};

/// Rules of one tenant.
const MOST_RULES: i64 = 10_000;

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

/// A rule that replaces the previous one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": 3, "rule": {
    "name": "Dear customers go by Nordic", "when": {"customer": {"segment": ["vip", "gold"]}},
    "then": {"connections": ["sms-nordic"], "priority": "high"}
}}))]
pub struct RuleChange {
    /// The version that this changes; refused if there is a later one. Left out, any version is replaced.
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
    /// Grows with each change.
    version: i32,
    rule: RuleSpec,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// Make a rule. It counts for every message that is accepted from now on.
#[utoipa::path(post, path = "/v1/rules", tag = "rules", operation_id = "createRule",
    request_body = NewRule,
    responses(
        (status = 201, description = "The rule was created, and applies.", body = RuleAnswer),
        (status = 409, description = "The uid is taken, or there are 10,000 rules.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn create(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    Draft(new, mut fields): Draft<NewRule>,
) -> Result<(StatusCode, Json<RuleAnswer>), Problem> {
    if let Some(uid) = &new.uid {
        fields::uid(&mut fields, uid);
    }
    let id = RuleId::new();
    let spec = checked(id, new.rule, fields)?;
    let mut txn = app.store.tenant(tenant.id).await?;
    if rule_count(&mut txn, tenant.id).await? >= MOST_RULES {
        return Err(Problem::conflict("too_many_rules", "there are 10,000 rules: delete some first"));
    }
    let now = clock::now();
    let rule = StoredRule { id, uid: new.uid, version: 1, spec, created_at: now, updated_at: now };
    rule_put(&mut txn, tenant.id, &rule).await.map_err(taken)?;
    let entry = AuditEntry::new(Action::RuleCreated, id).after(value(&rule.spec));
    done(&app, &tenant, txn, &entry).await?;
    Ok((StatusCode::CREATED, Json(rule.into())))
}

/// List the rules, the newest first.
#[utoipa::path(get, path = "/v1/rules", tag = "rules", operation_id = "listRules",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 250, description = "50 by default."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page."),
    ),
    responses((status = 200, description = "A page.", body = Page<RuleAnswer>)))]
pub async fn list(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    mut query: Query,
) -> Result<Json<Page<RuleAnswer>>, Problem> {
    let paging = Paging::<RuleId>::of(&mut query);
    query.finish()?;
    let mut txn = app.store.tenant(tenant.id).await?;
    let rows = rule_page(&mut txn, tenant.id, paging.after, paging.limit).await?;
    Ok(Json(Page::of(rows, |row| row.id.to_string(), RuleAnswer::from)))
}

/// Show a rule.
#[utoipa::path(get, path = "/v1/rules/{rule}", tag = "rules", operation_id = "getRule",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    responses((status = 200, description = "The rule.", body = RuleAnswer)))]
pub async fn get(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<RuleAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    Ok(Json(named(&mut txn, tenant.id, &name).await?.into()))
}

/// Replace a rule.
#[utoipa::path(put, path = "/v1/rules/{rule}", tag = "rules", operation_id = "putRule",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    request_body = RuleChange,
    responses(
        (status = 200, description = "The present state.", body = RuleAnswer),
        (status = 409, description = "There is a later version.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn put(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Draft(change, fields): Draft<RuleChange>,
) -> Result<Json<RuleAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let before = named(&mut txn, tenant.id, &name).await?;
    replace(&app, &tenant, txn, before, Draft(change, fields)).await
}

/// Change a part of a rule, such as `active`.
#[utoipa::path(patch, path = "/v1/rules/{rule}", tag = "rules", operation_id = "patchRule",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    request_body = RulePatch,
    responses(
        (status = 200, description = "The present state.", body = RuleAnswer),
        (status = 409, description = "There is a later version.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn patch(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Json(RulePatch { version, rule: patch }): Json<RulePatch>,
) -> Result<Json<RuleAnswer>, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let before = named(&mut txn, tenant.id, &name).await?;
    let mut rule = value(&before.spec);
    merge(&mut rule, patch);
    let mut whole = json!({ "rule": rule });
    if let Some(version) = version {
        whole["version"] = json!(version);
    }
    let change = draft::read::<RuleChange>(whole.to_string().as_bytes())?;
    replace(&app, &tenant, txn, before, change).await
}

/// RFC 7396.
fn merge(target: &mut Value, patch: Map<String, Value>) {
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(members) = target else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(members.remove(&name)),
            Value::Object(inner) => merge(members.entry(name).or_insert(Value::Null), inner),
            other => drop(members.insert(name, other)),
        }
    }
}

/// Writes the new version of a rule.
async fn replace(
    app: &App,
    tenant: &Tenant<RulesWrite>,
    mut txn: Transaction<'_>,
    before: StoredRule,
    Draft(change, fields): Draft<RuleChange>,
) -> Result<Json<RuleAnswer>, Problem> {
    let spec = checked(before.id, change.rule, fields)?;
    let version = change.version.unwrap_or(before.version);
    let entry = AuditEntry::new(Action::RuleChanged, before.id).before(value(&before.spec)).after(value(&spec));
    let rule = StoredRule { version: version.saturating_add(1), spec, updated_at: clock::now(), ..before };
    if version != before.version || !rule_put(&mut txn, tenant.id, &rule).await? {
        return Err(passed());
    }
    done(app, tenant, txn, &entry).await?;
    Ok(Json(rule.into()))
}

/// Delete a rule. Its last form stays in the audit.
#[utoipa::path(delete, path = "/v1/rules/{rule}", tag = "rules", operation_id = "deleteRule",
    params(("rule" = String, Path, description = "`rule_…` or its uid")),
    responses((status = 204, description = "It is gone.")))]
pub async fn delete(
    tenant: Tenant<RulesWrite>,
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    let mut txn = app.store.tenant(tenant.id).await?;
    let rule = named(&mut txn, tenant.id, &name).await?;
    rule_delete(&mut txn, tenant.id, rule.id).await?;
    experiment::rule::ended(&mut txn, tenant.id, rule.id).await?;
    let entry = AuditEntry::new(Action::RuleDeleted, rule.id).before(value(&rule.spec));
    done(&app, &tenant, txn, &entry).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Records and commits a change, and lets every node see it.
pub(super) async fn done(
    app: &App,
    tenant: &Tenant<RulesWrite>,
    mut txn: Transaction<'_>,
    entry: &AuditEntry,
) -> Result<(), Problem> {
    audit_insert(&mut txn, tenant.id, &tenant.actor(), entry).await?;
    match entry.after {
        Some(_) => tenant_config_grow(&mut txn, tenant.id).await?,
        None => tenant_config_bump(&mut txn, tenant.id).await?,
    }
    txn.commit().await.map_err(StoreError::from)?;
    app.changed(tenant.id).await;
    Ok(())
}

/// A specification that compiles; a set of such ones does too.
pub(super) fn checked(id: RuleId, spec: Option<RuleSpec>, mut fields: Fields) -> Result<RuleSpec, Problem> {
    match &spec {
        None => fields.missing("rule"),
        Some(spec) => {
            let compiled = RuleSet::compile(vec![(id, spec.clone())], Box::<Language>::default());
            let within = format!("/{id}");
            for problem in compiled.err().into_iter().flatten() {
                let place = problem.pointer.strip_prefix(&within).unwrap_or(&problem.pointer);
                fields.elsewhere(format!("/rule{place}"), problem.code, problem.detail);
            }
        }
    }
    fields.finish()?;
    spec.ok_or_else(|| Problem::field("/rule", "missing", "must be given"))
}

pub(super) async fn named(db: &mut Db, tenant: TenantId, name: &str) -> Result<StoredRule, Problem> {
    let missing = || Problem::not_found("rule");
    if name.chars().any(char::is_control) {
        return Err(missing());
    }
    rule_find(db, tenant, name.parse().ok(), name).await?.ok_or_else(missing)
}

/// The rule has changed since.
pub(super) fn passed() -> Problem {
    Problem::conflict("version_passed", "the rule has another version: read it again, and change that")
}

fn taken(error: StoreError) -> Problem {
    match error {
        StoreError::Conflict { constraint } if constraint == "rule_uid" => {
            Problem::conflict("uid_taken", "another rule has this uid")
        }
        other => other.into(),
    }
}

pub(super) fn value(spec: &RuleSpec) -> Value {
    // A specification always has a JSON form.
    serde_json::to_value(spec).unwrap_or_default()
}

impl From<StoredRule> for RuleAnswer {
    fn from(stored: StoredRule) -> Self {
        let StoredRule { id, uid, version, spec, created_at, updated_at } = stored;
        Self { id: id.to_string(), uid, version, rule: spec, created_at, updated_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_merged() {
        let mut rule = json!({"name": "a", "active": true, "when": {"amount": {"min": 1, "max": 2}}, "then": {"channels": ["sms"]}});
        let Value::Object(patch) = json!({"active": false, "when": {"amount": {"max": null, "currency": "EUR"}},
            "then": {"channels": ["email"]}, "valid_until": null, "new": {"a": {"b": null}}})
        else {
            panic!("an object")
        };
        merge(&mut rule, patch);
        let merged = json!({"name": "a", "active": false, "when": {"amount": {"min": 1, "currency": "EUR"}},
            "then": {"channels": ["email"]}, "new": {"a": {}}});
        assert_eq!(rule, merged);
    }
}
