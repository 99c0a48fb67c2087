//! A tenant's settings: what applies to all of its deliveries, whichever route they take.

use serde_json::json;

use super::{App, Principal, Result, error::UseCaseError, fields::Fields, overrides};
use angarium_domain::{audit::Action, ids::TenantId, overrides::Overrides, settings::TenantSettings};
use angarium_store::{
    audit::AuditEntry,
    settings::{settings_get, settings_put},
};

pub use angarium_store::settings::StoredSettings;

/// Returns the settings; those of a tenant that has set none are empty, of version 0.
pub async fn get(app: &App, tenant: TenantId) -> Result<StoredSettings> {
    let mut txn = app.store.tenant(tenant).await?;
    Ok(settings_get(&mut txn, tenant).await?)
}

/// Replaces the settings; with a `version`, only where this is the present one.
pub async fn put(
    app: &App,
    by: &Principal,
    overrides: Overrides,
    version: Option<i64>,
    mut fields: Fields,
) -> Result<StoredSettings> {
    let mut change = app.change(by).await?;
    overrides::check(&overrides, &mut change, &[], &mut fields).await?;
    fields.finish()?;
    let before = settings_get(&mut change, by.tenant).await?;
    let stored = settings_put(&mut change, by.tenant, &TenantSettings { overrides }, version).await?;
    let stored = stored.ok_or_else(|| {
        let detail = "the settings have another version: read them again, and change those";
        UseCaseError::conflict("version_passed", detail)
    })?;
    let recorded = |stored: &StoredSettings| json!({"version": stored.version, "overrides": stored.settings.overrides});
    let entry = AuditEntry::new(Action::SettingsChanged, by.tenant).difference(recorded(&before), recorded(&stored));
    change.commit(entry).await?;
    Ok(stored)
}
