//! Tenants, which an operator makes and puts into retention classes.

use serde_json::json;

use super::{Principal, Result, change::Changes, error::UseCaseError};
use angarium_domain::{
    audit::{Action, Actor},
    ids::TenantId,
};
use angarium_store::{
    StoreError,
    audit::AuditEntry,
    tenant::{tenant_classify, tenant_find, tenant_insert, tenant_list},
};

pub use angarium_store::tenant::TenantRow;

/// Makes a tenant with this name, in a retention class that the configuration has.
pub async fn create(changes: &Changes, by: &Actor, name: &str, class: &str) -> Result<TenantRow> {
    let by = Principal { tenant: TenantId::new(), actor: by.clone() };
    let mut change = changes.begin_as_operator(&by).await?;
    tenant_insert(&mut change, by.tenant, name).await.map_err(|error| refusal(error, name))?;
    let tenant = tenant_classify(&mut change, by.tenant, class).await?;
    let entry = AuditEntry::new(Action::TenantCreated, by.tenant)
        .after(json!({"name": tenant.name, "retention_class": tenant.retention_class}));
    change.commit(entry).await?;
    Ok(tenant)
}

/// Puts a tenant into another retention class, which the configuration has.
pub async fn classify(changes: &Changes, by: &Actor, name: &str, class: &str) -> Result<TenantRow> {
    let mut change = changes.begin_for_all(by).await?;
    let before = tenant_find(&mut change, name).await?.ok_or(MISSING)?;
    let tenant = tenant_classify(&mut change, before.id, class).await?;
    let entry = AuditEntry::new(Action::TenantClassified, tenant.id)
        .before(json!({"retention_class": before.retention_class}))
        .after(json!({"retention_class": tenant.retention_class}));
    change.of_tenant(tenant.id).commit(entry).await?;
    Ok(tenant)
}

/// Returns all tenants, by name.
pub async fn list(changes: &Changes) -> Result<Vec<TenantRow>> {
    Ok(tenant_list(&mut *changes.store.worker().await?).await?)
}

/// Returns the tenant of this name.
pub async fn named(changes: &Changes, name: &str) -> Result<TenantRow> {
    tenant_find(&mut *changes.store.worker().await?, name).await?.ok_or(MISSING)
}

const MISSING: UseCaseError = UseCaseError::NotFound("tenant");

fn refusal(error: StoreError, name: &str) -> UseCaseError {
    match &error {
        StoreError::Conflict { constraint } if constraint == "tenant_name_key" => {
            UseCaseError::conflict("name_taken", format!("there is a tenant `{name}` already"))
        }
        StoreError::Conflict { constraint } if constraint == "tenant_name_check" => UseCaseError::conflict(
            "wrong_name",
            format!(
                "a tenant's name must have 1 to 63 lower-case letters, digits, `-` and `_`, and begin with a letter or \
                 digit (got `{name}`)"
            ),
        ),
        _ => error.into(),
    }
}
