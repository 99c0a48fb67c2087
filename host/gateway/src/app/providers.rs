//! Providers, which serve all tenants: a tenant sees its own quarantines, an operator those of all.

mod activation;
pub mod folder;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{App, Result, change::Changes, error::UseCaseError};
use crate::node::providers::{ProviderError, Providers};
use angarium_domain::{
    audit::{Action, Actor},
    ids::TenantId,
};
use angarium_store::{
    Connection as Db,
    audit::AuditEntry,
    provider::{
        component_delete, component_granted, component_insert, component_list, component_quarantine, provider_activate,
        provider_delete, provider_get, provider_grant, provider_list, provider_lock, provider_use_count,
        tenant_quarantine_lift, tenant_quarantine_list,
    },
};

pub use activation::{Activation, Grants, Installation};

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
const NO_VERSION: UseCaseError = UseCaseError::NotFound("version of the provider");

/// Installs a component; with an activation it serves from now on, on every node, and leaves any quarantine. Returns the
/// provider's name.
///
/// # Errors
/// When the component is refused, or may not take the place of what serves. Nothing is stored then.
pub async fn install(
    changes: &Changes,
    providers: &Providers,
    by: &Actor,
    bytes: Bytes,
    how: Installation,
) -> Result<String> {
    let component = providers.admit(bytes.clone()).await?;
    let descriptor = component.descriptor();
    let mut change = changes.begin_for_all(by).await?;
    component_insert(&mut change, component.digest(), descriptor, &bytes).await?;
    let provider = provider_lock(&mut change, &descriptor.name).await?.ok_or(MISSING)?;
    let versions = component_list(&mut change, &descriptor.name).await?;
    let new = versions.iter().find(|version| version.digest == component.digest()).ok_or(NO_VERSION)?;
    if !how.replace
        && let Some(taken) = activation::same_version(&versions, new)
    {
        let detail = format!(
            "version {} of the provider is installed already with other bytes (SHA-256 {}): give the new build another \
             version, or say that it may stand beside that one (`replace`)",
            taken.descriptor.version, taken.digest
        );
        return Err(UseCaseError::conflict("version_taken", detail));
    }
    let entry = match how.activation {
        None => AuditEntry::new(Action::ProviderInstalled, &descriptor.name).after(recorded(new, None)),
        Some(activation) => put_forward(&mut change, activation, &provider, &versions, new).await?,
    };
    change.commit(entry).await?;
    if how.activation.is_some() {
        providers.sync().await?;
    }
    Ok(descriptor.name.clone())
}

/// Lets an installed version serve, out of whatever quarantine.
///
/// # Errors
/// When there is no such version, or it may not take the place of what serves.
pub async fn activate(app: &App, by: &Actor, name: &str, digest: &str, activation: Activation) -> Result<()> {
    check_name(name)?;
    let mut change = app.changes.begin_for_all(by).await?;
    let provider = provider_lock(&mut change, name).await?.ok_or(MISSING)?;
    let versions = component_list(&mut change, name).await?;
    let version = versions.iter().find(|version| version.digest == digest).ok_or(NO_VERSION)?;
    let entry = put_forward(&mut change, activation, &provider, &versions, version).await?;
    change.commit(entry).await?;
    Ok(app.providers.sync().await?)
}

/// Removes a version, or a provider with all of its versions.
///
/// # Errors
/// When there is no such one, or when enabled connections would be left without a version that serves, unless it is
/// forced.
pub async fn uninstall(app: &App, by: &Actor, name: &str, digest: Option<&str>, force: bool) -> Result<()> {
    [name, digest.unwrap_or_default()].into_iter().try_for_each(check_name)?;
    let mut change = app.changes.begin_for_all(by).await?;
    let provider = provider_lock(&mut change, name).await?.ok_or(MISSING)?;
    let versions = component_list(&mut change, name).await?;
    let (gone, left): (Vec<_>, Vec<_>) =
        versions.iter().partition(|version| digest.is_none_or(|digest| version.digest == digest));
    if digest.is_some() && gone.is_empty() {
        return Err(NO_VERSION);
    }
    let stays = |kept: &Option<String>| kept.clone().filter(|it| left.iter().any(|version| version.digest == *it));
    let active = stays(&provider.active_digest);
    if !force && (active != provider.active_digest || left.is_empty()) {
        check_unused(&mut change, name).await?;
    }
    provider_activate(&mut change, name, active.as_deref(), stays(&provider.previous_digest).as_deref()).await?;
    for version in &gone {
        component_delete(&mut change, &version.digest).await?;
    }
    if left.is_empty() {
        provider_delete(&mut change, name).await?;
    }
    let before: Vec<_> = gone.iter().map(|version| recorded(version, None)).collect();
    let entry = AuditEntry::new(Action::ProviderUninstalled, name)
        .before(json!({"digest": provider.active_digest, "versions": before}))
        .after(json!({ "digest": active }));
    change.commit(entry).await?;
    Ok(app.providers.sync().await?)
}

/// Refuses to leave the deliveries of enabled connections without a version that serves.
async fn check_unused(db: &mut Db, name: &str) -> Result<()> {
    let connections = provider_use_count(db, name).await?;
    if connections == 0 {
        return Ok(());
    }
    let detail = format!(
        "{connections} enabled connections are accounts at the provider, and nothing would leave through them: disable \
         or delete them, let another version serve, or say that it is to go anyway (`force`)"
    );
    Err(UseCaseError::conflict("provider_in_use", detail))
}

/// Puts the version before in service again; the two change places.
///
/// # Errors
/// When there is no such provider or no such version.
pub async fn roll_back(app: &App, by: &Actor, name: &str) -> Result<()> {
    check_name(name)?;
    let mut change = app.changes.begin_for_all(by).await?;
    let provider = provider_lock(&mut change, name).await?.ok_or(MISSING)?;
    let previous = provider.previous_digest.as_deref().ok_or_else(|| {
        let detail = "there is no version before the present one to go back to";
        UseCaseError::conflict("no_previous_version", detail)
    })?;
    put_in_service(&mut change, &provider, previous).await?;
    let entry = AuditEntry::new(Action::ProviderRolledBack, name)
        .before(json!({"digest": provider.active_digest}))
        .after(json!({"digest": previous}));
    change.commit(entry).await?;
    Ok(app.providers.sync().await?)
}

/// Says to which hosts a provider's requests may go: these and no others.
///
/// # Errors
/// When there is no such provider, or its versions don't declare a host.
pub async fn grant(app: &App, by: &Actor, name: &str, hosts: &[String]) -> Result<()> {
    check_name(name)?;
    let mut change = app.changes.begin_for_all(by).await?;
    let provider = provider_lock(&mut change, name).await?.ok_or(MISSING)?;
    let versions = component_list(&mut change, name).await?;
    let declared = |host: &&String| versions.iter().any(|version| version.descriptor.hosts.contains(host));
    let undeclared: Vec<_> = hosts.iter().filter(|host| !declared(host)).cloned().collect();
    if !undeclared.is_empty() {
        let detail = format!("must be declared by the provider (got {})", activation::quoted(&undeclared));
        return Err(UseCaseError::field("/hosts", "undeclared_host", detail));
    }
    provider_grant(&mut change, name, hosts).await?;
    if let Some(active) = &provider.active_digest {
        component_granted(&mut change, active).await?;
    }
    let entry = AuditEntry::new(Action::ProviderGranted, name)
        .before(json!({"granted_hosts": provider.granted_hosts}))
        .after(json!({"digest": provider.active_digest, "granted_hosts": hosts}));
    change.commit(entry).await?;
    Ok(app.providers.sync().await?)
}

/// Lets a version serve with the grants that it may have; returns the entry about it.
async fn put_forward(
    db: &mut Db,
    activation: Activation,
    provider: &StoredProvider,
    versions: &[StoredComponent],
    new: &StoredComponent,
) -> Result<AuditEntry> {
    let granted = activation::decide(activation, provider, versions, new)?;
    let after = recorded(new, Some(&granted.hosts));
    let mut entry = AuditEntry::new(Action::ProviderActivated, &provider.name).after(after);
    let before = versions.iter().find(|version| Some(&version.digest) == provider.active_digest.as_ref());
    entry.before = before.map(|before| recorded(before, Some(&provider.granted_hosts)));
    put_in_service(db, provider, &new.digest).await?;
    if granted.hosts != provider.granted_hosts {
        provider_grant(db, &provider.name, &granted.hosts).await?;
    }
    if granted.given {
        component_granted(db, &new.digest).await?;
    }
    Ok(entry)
}

/// Lets a version serve, out of whatever quarantine. The row's version grows even where it served already, so that every
/// node begins anew with it.
async fn put_in_service(db: &mut Db, provider: &StoredProvider, digest: &str) -> Result<()> {
    component_quarantine(db, digest, None).await?;
    tenant_quarantine_lift(db, digest).await?;
    let previous = match provider.active_digest.as_deref() {
        Some(active) if active == digest => provider.previous_digest.as_deref(),
        active => active,
    };
    Ok(provider_activate(db, &provider.name, Some(digest), previous).await?)
}

/// A version as the audit records it.
fn recorded(version: &StoredComponent, granted: Option<&[String]>) -> Value {
    let descriptor = &version.descriptor;
    let secrets: Vec<_> = descriptor.secrets.iter().map(|secret| &secret.name).collect();
    json!({
        "digest": version.digest, "version": descriptor.version,
        "declared_hosts": descriptor.hosts, "secrets": secrets, "granted_hosts": granted,
    })
}

impl From<ProviderError> for UseCaseError {
    fn from(error: ProviderError) -> Self {
        match error {
            ProviderError::Refused(error) => Self::ComponentRefused(error.to_string()),
            ProviderError::Store(error) => error.into(),
            ProviderError::Unknown(_) => MISSING,
            ProviderError::Lost => Self::internal(&error),
        }
    }
}

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
