//! Versioned documents. Creating, versioning, activating, rolling back and comparing are the same for routes, rules and
//! scripts; what a kind adds stands in `routes`, `rules` and `scripts`.

mod comparison;

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{App, Principal, Result, change::Change, error::UseCaseError, experiments, routes, rules, scripts};
use angarium_domain::{
    audit::Action,
    document::DocumentKind,
    ids::{RouteId, RuleId, TenantId},
};
use angarium_store::{
    Connection, StoreError,
    audit::AuditEntry,
    document::{
        DocumentRow, NewDocument, VersionRow, document_activate, document_count, document_delete, document_find,
        document_insert, document_lock, document_version_get, document_version_insert, document_versions,
    },
    route::route_channel_lock,
};
pub use comparison::VersionComparison;

/// The latest versions that a list has, beside those in service.
const LISTED_VERSIONS: i32 = 50;

/// A version that is to serve.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": 2}))]
pub struct VersionActivation {
    #[schema(minimum = 1)]
    version: i32,
    /// The active version that it is to replace: refused where another one is active. Left out, it replaces any.
    #[serde(default)]
    #[schema(minimum = 1)]
    replaces: Option<i32>,
}

/// The text of a version.
#[derive(Debug, Clone, Copy)]
pub struct VersionBody<'a> {
    /// JSON of a route or a rule, the source of a script.
    pub body: &'a str,
    /// JSON: the cases that a script passed.
    pub cases: Option<&'a str>,
}

/// Returns the document of an id or uid.
pub async fn named(db: &mut Connection, tenant: TenantId, kind: DocumentKind, name: &str) -> Result<DocumentRow> {
    if name.chars().any(char::is_control) {
        return Err(missing(kind));
    }
    document_find(db, tenant, kind, id_of(kind, name), name).await?.ok_or_else(|| missing(kind))
}

/// Returns the same, locked until the transaction ends.
pub async fn locked(db: &mut Connection, tenant: TenantId, kind: DocumentKind, name: &str) -> Result<DocumentRow> {
    let id = named(db, tenant, kind, name).await?.id;
    document_lock(db, tenant, kind, id).await?.ok_or_else(|| missing(kind))
}

/// Returns a document that is to be put in service, locked as by [`locked`]; a route together with all routes of its
/// channel, since one of them may have to leave service.
async fn locked_for_service(
    db: &mut Connection,
    tenant: TenantId,
    kind: DocumentKind,
    name: &str,
) -> Result<DocumentRow> {
    let found = named(db, tenant, kind, name).await?;
    if let (DocumentKind::Route, Some(channel)) = (kind, &found.channel) {
        route_channel_lock(db, tenant, channel).await?;
    }
    document_lock(db, tenant, kind, found.id).await?.ok_or_else(|| missing(kind))
}

/// Inserts a document with its first version, which does nothing yet.
pub async fn create(
    change: &mut Change,
    tenant: TenantId,
    kind: DocumentKind,
    new: NewDocument<'_>,
    body: VersionBody<'_>,
) -> Result<(DocumentRow, VersionRow)> {
    if let Some((most, code)) = most(kind)
        && document_count(change, tenant, kind).await? >= most
    {
        let detail = format!("there are {most} {}s: delete some first", kind.as_str());
        return Err(UseCaseError::conflict(code, detail));
    }
    document_insert(change, tenant, kind, new).await.map_err(|error| taken(kind, error))?;
    let version = add(change, tenant, kind, new.id, body).await?;
    let document = document_lock(change, tenant, kind, new.id).await?.ok_or_else(|| missing(kind))?;
    Ok((document, version))
}

/// Adds a document's next version, which does nothing yet.
pub async fn add(
    change: &mut Change,
    tenant: TenantId,
    kind: DocumentKind,
    document: Uuid,
    VersionBody { body, cases }: VersionBody<'_>,
) -> Result<VersionRow> {
    let version = document_version_insert(change, tenant, kind, document, body, cases).await?;
    version.ok_or_else(|| missing(kind))
}

/// Returns the audit entry of a document that was created, and does nothing yet.
pub fn created(kind: DocumentKind, document: &DocumentRow, version: &VersionRow) -> Result<AuditEntry> {
    let action = match kind {
        DocumentKind::Route => Action::RouteCreated,
        DocumentKind::Rule => Action::RuleCreated,
        DocumentKind::Script => Action::ScriptVersionAdded,
    };
    Ok(AuditEntry::new(action, subject(kind, document)).after(recorded(kind, version)?))
}

/// Returns the audit entry of a version that was added.
pub fn added(kind: DocumentKind, document: &DocumentRow, version: &VersionRow) -> Result<AuditEntry> {
    let action = match kind {
        DocumentKind::Route => Action::RouteVersionAdded,
        DocumentKind::Rule => Action::RuleVersionAdded,
        DocumentKind::Script => Action::ScriptVersionAdded,
    };
    Ok(AuditEntry::new(action, subject(kind, document)).after(recorded(kind, version)?))
}

/// Makes a version the active one.
pub async fn activate(
    app: &App,
    by: &Principal,
    kind: DocumentKind,
    name: &str,
    VersionActivation { version, replaces }: VersionActivation,
) -> Result<()> {
    let mut change = app.change(by).await?;
    let document = locked_for_service(&mut change, by.tenant, kind, name).await?;
    if replaces.is_some() && replaces != document.active_version {
        return Err(passed(kind));
    }
    let wanted = document_version_get(&mut change, by.tenant, kind, document.id, version).await?;
    let wanted = wanted.ok_or_else(|| UseCaseError::field("/version", "unknown_version", "does not exist"))?;
    let action = match kind {
        DocumentKind::Route => Action::RouteActivated,
        DocumentKind::Rule => Action::RuleActivated,
        DocumentKind::Script => Action::ScriptActivated,
    };
    let entry = put_in_service(&mut change, by.tenant, kind, &document, &wanted, action).await?;
    change.commit(entry).await
}

/// Returns to the version that was active before; the two change places.
pub async fn roll_back(app: &App, by: &Principal, kind: DocumentKind, name: &str) -> Result<()> {
    let mut change = app.change(by).await?;
    let document = locked_for_service(&mut change, by.tenant, kind, name).await?;
    let none = || {
        let detail = format!("no other version of the {} was active before", kind.as_str());
        UseCaseError::conflict("no_previous_version", detail)
    };
    let previous = document.previous_version.ok_or_else(none)?;
    let wanted = document_version_get(&mut change, by.tenant, kind, document.id, previous).await?.ok_or_else(none)?;
    let action = match kind {
        DocumentKind::Route => Action::RouteRolledBack,
        DocumentKind::Rule => Action::RuleRolledBack,
        DocumentKind::Script => Action::ScriptRolledBack,
    };
    let entry = put_in_service(&mut change, by.tenant, kind, &document, &wanted, action).await?;
    change.commit(entry).await
}

/// Makes a version the active one, once its kind allows it, and returns the audit entry. The document is locked.
pub async fn put_in_service(
    change: &mut Change,
    tenant: TenantId,
    kind: DocumentKind,
    document: &DocumentRow,
    wanted: &VersionRow,
    action: Action,
) -> Result<AuditEntry> {
    experiments::decided(change, tenant, kind, document, wanted.version).await?;
    let mut told = active(change, tenant, kind, document).await?;
    match kind {
        DocumentKind::Route => {
            if let Some((other, version)) = routes::take_channel(change, tenant, document, wanted).await? {
                told.get_or_insert_with(|| json!({}))["replaces"] = json!({"route": other, "version": version});
            }
        }
        DocumentKind::Rule => rules::rule_set_changes(change, tenant, document, Some(wanted.version)).await?,
        DocumentKind::Script => scripts::still_compiles(change, tenant, document, wanted).await?,
    }
    document_activate(change, tenant, kind, document.id, wanted.version, previous(document, wanted.version)).await?;
    let entry = AuditEntry::new(action, subject(kind, document)).after(recorded(kind, wanted)?);
    Ok(AuditEntry { before: told, ..entry })
}

/// Returns the version that a rollback returns to, once `wanted` is active.
fn previous(document: &DocumentRow, wanted: i32) -> Option<i32> {
    match document.active_version {
        Some(active) if active == wanted => document.previous_version,
        active => active.or(document.previous_version).filter(|it| *it != wanted),
    }
}

/// Deletes a document, and returns the audit entry. Its versions stay on record.
pub async fn delete(
    change: &mut Change,
    tenant: TenantId,
    kind: DocumentKind,
    document: &DocumentRow,
    action: Action,
) -> Result<AuditEntry> {
    let told = active(change, tenant, kind, document).await?;
    document_delete(change, tenant, kind, document.id).await?;
    Ok(AuditEntry { before: told, ..AuditEntry::new(action, subject(kind, document)) })
}

/// Returns the active version for the audit.
async fn active(
    change: &mut Change,
    tenant: TenantId,
    kind: DocumentKind,
    document: &DocumentRow,
) -> Result<Option<Value>> {
    let active = match document.active_version {
        Some(active) => document_version_get(change, tenant, kind, document.id, active).await?,
        None => None,
    };
    active.map(|version| recorded(kind, &version)).transpose()
}

/// Returns a document with its versions, the latest first.
pub async fn with_versions(
    app: &App,
    tenant: TenantId,
    kind: DocumentKind,
    name: &str,
) -> Result<(DocumentRow, Vec<VersionRow>)> {
    let mut txn = app.store.tenant(tenant).await?;
    let document = named(&mut txn, tenant, kind, name).await?;
    let versions = document_versions(&mut txn, tenant, kind, &[document.id], LISTED_VERSIONS).await?;
    Ok((document, versions))
}

/// Compares two versions of a document; without `against`, with the active one.
pub async fn compare(
    app: &App,
    tenant: TenantId,
    kind: DocumentKind,
    name: &str,
    version: i32,
    against: Option<i32>,
) -> Result<VersionComparison> {
    let mut txn = app.store.tenant(tenant).await?;
    let document = named(&mut txn, tenant, kind, name).await?;
    let none = || UseCaseError::conflict("no_active_version", "no version is active: name another one in `against`");
    let against = against.or(document.active_version).ok_or_else(none)?;
    let mut bodies = Vec::with_capacity(2);
    for number in [version, against] {
        let row = document_version_get(&mut txn, tenant, kind, document.id, number).await?;
        bodies.push(shown(kind, &row.ok_or(UseCaseError::NotFound("version"))?)?);
    }
    Ok(VersionComparison::new(version, against, &bodies[1], &bodies[0]))
}

/// Returns a version as JSON, as the API shows it.
fn shown(kind: DocumentKind, version: &VersionRow) -> Result<Value> {
    match kind {
        DocumentKind::Route => routes::shown(&version.body),
        DocumentKind::Rule => rules::shown(&version.body),
        DocumentKind::Script => Ok(scripts::shown(version)),
    }
}

/// Returns a version for the audit: with its content, but for a script's source, which its version has for good.
fn recorded(kind: DocumentKind, version: &VersionRow) -> Result<Value> {
    let number = version.version;
    Ok(match kind {
        DocumentKind::Route => json!({"version": number, "spec": shown(kind, version)?}),
        DocumentKind::Rule => json!({"version": number, "rule": shown(kind, version)?}),
        DocumentKind::Script => json!({"version": number}),
    })
}

/// Returns the name of a document in the audit: its id, a script's name.
pub fn subject(kind: DocumentKind, document: &DocumentRow) -> String {
    match kind {
        DocumentKind::Route => RouteId::from(document.id).to_string(),
        DocumentKind::Rule => RuleId::from(document.id).to_string(),
        DocumentKind::Script => document.uid.clone().unwrap_or_default(),
    }
}

fn id_of(kind: DocumentKind, name: &str) -> Option<Uuid> {
    match kind {
        DocumentKind::Route => name.parse().map(RouteId::uuid).ok(),
        DocumentKind::Rule => name.parse().map(RuleId::uuid).ok(),
        DocumentKind::Script => None,
    }
}

/// The most documents of a kind that a tenant may have, and the code of the refusal.
const fn most(kind: DocumentKind) -> Option<(i64, &'static str)> {
    match kind {
        DocumentKind::Route => None,
        DocumentKind::Rule => Some((10_000, "too_many_rules")),
        DocumentKind::Script => Some((100, "too_many_scripts")),
    }
}

/// Another version is active than the caller expects.
pub fn passed(kind: DocumentKind) -> UseCaseError {
    let detail = format!("the {} has another version: read it again, and change that", kind.as_str());
    UseCaseError::conflict("version_passed", detail)
}

fn taken(kind: DocumentKind, error: StoreError) -> UseCaseError {
    match error {
        StoreError::Conflict { constraint } if constraint == "document_uid" => {
            UseCaseError::conflict("uid_taken", format!("another {} has this uid", kind.as_str()))
        }
        other => other.into(),
    }
}

const fn missing(kind: DocumentKind) -> UseCaseError {
    UseCaseError::NotFound(kind.as_str())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_rollback_returns_to_the_version_that_served_last() {
        let at = Timestamp::UNIX_EPOCH;
        let document = |active_version, previous_version| DocumentRow {
            id: Uuid::nil(),
            uid: None,
            channel: None,
            active_version,
            previous_version,
            latest_version: 9,
            created_at: at,
            updated_at: at,
        };
        assert_eq!(previous(&document(None, None), 1), None);
        assert_eq!(previous(&document(Some(1), None), 2), Some(1));
        assert_eq!(previous(&document(Some(2), Some(1)), 1), Some(2), "the two change places");
        assert_eq!(previous(&document(Some(2), Some(1)), 2), Some(1), "the active one again");
        assert_eq!(previous(&document(None, Some(2)), 3), Some(2), "out of service between");
        assert_eq!(previous(&document(None, Some(2)), 2), None);
    }
}
