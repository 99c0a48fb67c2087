//! Rules. A rule counts from its creation, and each change of it is a version that counts at once.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    App, Principal, Result,
    change::Change,
    documents::{self, VersionActivation, VersionBody},
    error::UseCaseError,
    experiments,
    fields::{self, Fields},
};
use angarium_domain::{
    audit::Action,
    document::DocumentKind,
    experiment::ExperimentKind,
    ids::{RuleId, TenantId},
    rule::RuleSpec,
};
use angarium_rules::{RuleSet, language::Language};
use angarium_store::{
    document::{DocumentRow, NewDocument, VersionRow, document_all, document_page, document_version_get},
    page::PageRows,
    rule::rule_set_change,
};

const KIND: DocumentKind = DocumentKind::Rule;

/// A rule with the version that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRule {
    pub id: RuleId,
    pub uid: Option<String>,
    pub version: i32,
    /// The version that a rollback returns to.
    pub previous_version: Option<i32>,
    pub latest_version: i32,
    pub spec: RuleSpec,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A version of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRuleVersion {
    pub version: i32,
    pub spec: RuleSpec,
    pub created_at: Timestamp,
    /// When it last became active; `None`: never.
    pub activated_at: Option<Timestamp>,
}

/// Creates a rule, which counts for every message that is accepted from now on.
pub async fn create(
    app: &App,
    by: &Principal,
    uid: Option<String>,
    spec: Option<RuleSpec>,
    mut fields: Fields,
) -> Result<StoredRule> {
    if let Some(uid) = &uid {
        fields::uid(&mut fields, uid);
    }
    let id = RuleId::new();
    let spec = checked(id, spec, fields)?;
    let body = text(&spec);
    let mut change = app.change(by).await?;
    let new = NewDocument { id: id.uuid(), uid: uid.as_deref(), channel: None };
    let body = VersionBody { body: &body, cases: None };
    let (document, version) = documents::create(&mut change, by.tenant, KIND, new, body).await?;
    let action = Action::RuleCreated;
    let entry = documents::put_in_service(&mut change, by.tenant, KIND, &document, &version, action).await?;
    change.commit(entry).await?;
    stored(document, version)
}

/// Makes a version count, in place of the one that does.
pub async fn activate(app: &App, by: &Principal, name: &str, activation: VersionActivation) -> Result<StoredRule> {
    documents::activate(app, by, KIND, name, activation).await?;
    get(app, by.tenant, name).await
}

/// Returns to the version that counted before.
pub async fn roll_back(app: &App, by: &Principal, name: &str) -> Result<StoredRule> {
    documents::roll_back(app, by, KIND, name).await?;
    get(app, by.tenant, name).await
}

/// Returns a page of the rules, the newest first.
pub async fn list(app: &App, tenant: TenantId, before: Option<RuleId>, limit: u32) -> Result<PageRows<StoredRule>> {
    let mut txn = app.store.tenant(tenant).await?;
    let before = before.map(RuleId::uuid);
    let PageRows { rows, more } = document_page(&mut txn, tenant, KIND, None, before, limit).await?;
    let rows = rows.into_iter().map(|(document, version)| stored(document, version)).collect::<Result<_>>()?;
    Ok(PageRows { rows, more })
}

/// Returns all rules, the newest first.
pub async fn all(app: &App, tenant: TenantId) -> Result<Vec<StoredRule>> {
    let mut txn = app.store.tenant(tenant).await?;
    let rows = document_all(&mut txn, tenant, KIND).await?;
    rows.into_iter().map(|(document, version)| stored(document, version)).collect()
}

/// Returns a rule as it counts.
pub async fn get(app: &App, tenant: TenantId, name: &str) -> Result<StoredRule> {
    let mut txn = app.store.tenant(tenant).await?;
    let document = documents::named(&mut txn, tenant, KIND, name).await?;
    let number = document.active_version.unwrap_or(document.latest_version);
    let version = document_version_get(&mut txn, tenant, KIND, document.id, number).await?;
    stored(document, version.ok_or(UseCaseError::NotFound("rule"))?)
}

/// Returns a rule's versions, the latest first.
pub async fn versions(app: &App, tenant: TenantId, name: &str) -> Result<Vec<StoredRuleVersion>> {
    let (_, versions) = documents::with_versions(app, tenant, KIND, name).await?;
    versions.into_iter().map(rule_version).collect()
}

/// Adds a version, which counts for nothing until it is tried or activated.
pub async fn create_version(
    app: &App,
    by: &Principal,
    name: &str,
    spec: Option<RuleSpec>,
    fields: Fields,
) -> Result<StoredRuleVersion> {
    let mut change = app.change(by).await?;
    let document = documents::locked(&mut change, by.tenant, KIND, name).await?;
    let spec = checked(document.id.into(), spec, fields)?;
    let body = VersionBody { body: &text(&spec), cases: None };
    let version = documents::add(&mut change, by.tenant, KIND, document.id, body).await?;
    let entry = documents::added(KIND, &document, &version)?;
    change.commit(entry).await?;
    rule_version(version)
}

/// Puts another specification in a rule's place, as a version that counts at once.
///
/// # Errors
/// When another version counts than `expected`, if that is given.
pub async fn replace(
    app: &App,
    by: &Principal,
    name: &str,
    expected: Option<i32>,
    spec: Option<RuleSpec>,
    fields: Fields,
) -> Result<StoredRule> {
    let mut change = app.change(by).await?;
    let document = documents::locked(&mut change, by.tenant, KIND, name).await?;
    let spec = checked(document.id.into(), spec, fields)?;
    if expected.is_some() && expected != document.active_version {
        return Err(documents::passed(KIND));
    }
    let body = VersionBody { body: &text(&spec), cases: None };
    let version = documents::add(&mut change, by.tenant, KIND, document.id, body).await?;
    let action = Action::RuleChanged;
    let entry = documents::put_in_service(&mut change, by.tenant, KIND, &document, &version, action).await?;
    change.commit(entry).await?;
    get(app, by.tenant, name).await
}

/// Returns a rule with a JSON merge patch (RFC 7396) applied.
pub fn merged(rule: &RuleSpec, patch: Map<String, Value>) -> Value {
    let mut rule = value(rule);
    merge(&mut rule, patch);
    rule
}

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

/// Deletes a rule and ends its experiment. Its versions stay on record.
pub async fn delete(app: &App, by: &Principal, name: &str) -> Result<()> {
    let mut change = app.change(by).await?;
    let document = documents::locked(&mut change, by.tenant, KIND, name).await?;
    experiments::ended(&mut change, by.tenant, ExperimentKind::Rule, &document).await?;
    rule_set_changes(&mut change, by.tenant, &document, None).await?;
    let entry = documents::delete(&mut change, by.tenant, KIND, &document, Action::RuleDeleted).await?;
    change.commit(entry).await
}

/// Notes which version of a rule counts from now on.
pub async fn rule_set_changes(
    change: &mut Change,
    tenant: TenantId,
    document: &DocumentRow,
    version: Option<i32>,
) -> Result<()> {
    Ok(rule_set_change(change, tenant, document.id.into(), version).await?)
}

/// Returns a version's body as the API shows it.
pub fn shown(body: &str) -> Result<Value> {
    Ok(value(&spec_of(body)?))
}

/// Returns a specification that compiles; a set of such ones does too.
fn checked(id: RuleId, spec: Option<RuleSpec>, mut fields: Fields) -> Result<RuleSpec> {
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
    spec.ok_or_else(|| UseCaseError::field("/rule", "missing", "must be given"))
}

fn stored(document: DocumentRow, version: VersionRow) -> Result<StoredRule> {
    Ok(StoredRule {
        id: document.id.into(),
        uid: document.uid,
        version: version.version,
        previous_version: document.previous_version,
        latest_version: document.latest_version,
        spec: spec_of(&version.body)?,
        created_at: document.created_at,
        updated_at: document.updated_at,
    })
}

fn rule_version(row: VersionRow) -> Result<StoredRuleVersion> {
    let VersionRow { version, body, created_at, activated_at, .. } = row;
    Ok(StoredRuleVersion { version, spec: spec_of(&body)?, created_at, activated_at })
}

fn spec_of(body: &str) -> Result<RuleSpec> {
    serde_json::from_str(body).map_err(|error| UseCaseError::internal(&error))
}

// Plain data always has a JSON form.
fn text(spec: &RuleSpec) -> String {
    serde_json::to_string(spec).unwrap_or_default()
}

fn value(spec: &RuleSpec) -> Value {
    serde_json::to_value(spec).unwrap_or_default()
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
