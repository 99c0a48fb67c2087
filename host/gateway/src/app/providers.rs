//! Providers, which serve all tenants: a tenant sees its own quarantines, an operator those of all.

use super::{App, Result, error::UseCaseError};
use angarium_domain::ids::TenantId;
use angarium_store::{
    Connection as Db,
    provider::{component_list, provider_get, provider_list, tenant_quarantine_list},
};

pub use angarium_store::provider::{StoredComponent, StoredProvider, TenantQuarantine};

/// A provider with its versions.
pub struct ProviderView {
    pub provider: StoredProvider,
    /// The newest first; at least one.
    pub versions: Vec<StoredComponent>,
    /// The quarantines of the viewer's tenant; an operator's view has those of all tenants.
    pub quarantines: Vec<TenantQuarantine>,
}

impl ProviderView {
    /// The version that speaks for the provider: the one that serves, or else the newest.
    pub fn described(&self) -> Option<&StoredComponent> {
        let active = |version: &&StoredComponent| Some(&version.digest) == self.provider.active_digest.as_ref();
        self.versions.iter().find(active).or(self.versions.first())
    }
}

/// The tenant whose quarantines are shown; none for an operator, who sees all of them.
type Viewer = Option<TenantId>;

/// Returns all providers.
pub async fn list(app: &App, viewer: Viewer) -> Result<Vec<ProviderView>> {
    let mut txn = app.store.worker().await?;
    let quarantines = tenant_quarantine_list(&mut txn, viewer).await?;
    let mut views = Vec::new();
    for provider in provider_list(&mut txn).await? {
        views.extend(view(&mut txn, provider, &quarantines).await?);
    }
    Ok(views)
}

/// Returns the provider of this name.
pub async fn get(app: &App, viewer: Viewer, name: &str) -> Result<ProviderView> {
    check_name(name)?;
    let mut txn = app.store.worker().await?;
    let quarantines = tenant_quarantine_list(&mut txn, viewer).await?;
    let provider = provider_get(&mut txn, name).await?.ok_or(MISSING)?;
    view(&mut txn, provider, &quarantines).await?.ok_or(MISSING)
}

/// Refuses a name that the database can't be asked for.
pub fn check_name(name: &str) -> Result<()> {
    if name.chars().any(char::is_control) { Err(MISSING) } else { Ok(()) }
}

const MISSING: UseCaseError = UseCaseError::NotFound("provider");

async fn view(db: &mut Db, provider: StoredProvider, quarantines: &[TenantQuarantine]) -> Result<Option<ProviderView>> {
    let versions = component_list(db, &provider.name).await?;
    let is_own = |it: &&TenantQuarantine| versions.iter().any(|version| version.digest == it.digest);
    let quarantines = quarantines.iter().filter(is_own).cloned().collect();
    Ok((!versions.is_empty()).then_some(ProviderView { provider, versions, quarantines }))
}

/// Returns the declared host patterns that are not granted.
pub fn not_granted(declared: &[String], granted: &[String]) -> Vec<String> {
    declared.iter().filter(|host| !granted.contains(host)).cloned().collect()
}
