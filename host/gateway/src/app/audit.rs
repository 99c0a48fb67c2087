//! The audit, as its readers see it: of a tenant, and of the operators.

use super::{App, PageRows, Result};
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
