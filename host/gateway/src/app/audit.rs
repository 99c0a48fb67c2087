//! The audit, as its readers see it: of a tenant, and of the operators.

use serde::Serialize;
use serde_json::{Value, json};

use super::{App, PageRows, Result, error::UseCaseError};
use angarium_domain::ids::{AuditId, TenantId};
use angarium_store::audit::{audit_list, operator_audit_list};

pub use angarium_store::audit::{AuditFilter, AuditView};

/// Returns the tenant's entries, the newest first, from before `before`.
pub async fn list(
    app: &App,
    tenant: TenantId,
    filter: &AuditFilter,
    before: Option<AuditId>,
    limit: u32,
) -> Result<PageRows<AuditView>> {
    let mut txn = app.store.tenant(tenant).await?;
    Ok(audit_list(&mut txn, tenant, filter, before, limit).await?)
}

/// Returns the entries about what belongs to no tenant, the newest first, from before `before`.
pub async fn list_of_operators(
    app: &App,
    filter: &AuditFilter,
    before: Option<AuditId>,
    limit: u32,
) -> Result<PageRows<AuditView>> {
    let mut txn = app.store.worker().await?;
    Ok(operator_audit_list(&mut txn, filter, before, limit).await?)
}

/// Returns a filter as the audit records it: without the recipient that it names, since entries outlast contents.
pub fn without_recipient(filter: &impl Serialize) -> Result<Value> {
    let mut filter = serde_json::to_value(filter).map_err(|error| UseCaseError::internal(&error))?;
    let names_one = |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
    for member in ["recipient", "recipients"] {
        if let Some(named) = filter.get_mut(member).filter(|value| names_one(value)) {
            *named = json!("not recorded");
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_filter_names_no_recipient() {
        let recorded = |filter: Value| without_recipient(&filter).unwrap();
        let (named, hidden) =
            (json!({"recipient": "ann@x", "code": "5"}), json!({"recipient": "not recorded", "code": "5"}));
        assert_eq!(recorded(named), hidden);
        assert_eq!(recorded(json!({"recipients": ["ann@x"]})), json!({"recipients": "not recorded"}));
        for names_none in [json!({"recipients": [], "recipient": null}), json!({"state": "failed"})] {
            assert_eq!(recorded(names_none.clone()), names_none);
        }
    }
}
