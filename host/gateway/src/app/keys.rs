//! A tenant's API keys. A key's text is shown once and never stored.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Principal, Result, change::Changes, error::UseCaseError};
use crate::{clock, credential::Credential};
use angarium_domain::{
    audit::{Action, Actor},
    ids::{KeyId, TenantId},
    key::{ApiKey, Scope},
};
use angarium_store::{
    api_key::{api_key_get, api_key_insert, api_key_list, api_key_revoke},
    audit::AuditEntry,
};

/// The options of a new key.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// For people.
    pub name: String,
    pub scopes: Vec<Scope>,
    pub expires_at: Option<Timestamp>,
}

/// Makes a key of the principal's tenant; the credential is known here alone.
pub async fn create(changes: &Changes, by: &Principal, new: NewKey) -> Result<(ApiKey, Credential)> {
    let credential = Credential::generate();
    let key = ApiKey {
        tenant: by.tenant,
        id: KeyId::new(),
        name: new.name,
        hint: credential.hint.clone(),
        scopes: new.scopes,
        created_at: clock::now(),
        expires_at: new.expires_at,
        revoked_at: None,
    };
    let mut change = changes.begin_as_operator(by).await?;
    api_key_insert(&mut change, &key, &credential.hash).await?;
    change.commit(AuditEntry::new(Action::KeyCreated, key.id).after(recorded(&key))).await?;
    Ok((key, credential))
}

/// Ends a key, of whichever tenant, on every node. A second time changes nothing.
pub async fn revoke(changes: &Changes, by: &Actor, id: KeyId) -> Result<ApiKey> {
    let mut change = changes.begin_for_all(by).await?;
    let key = api_key_get(&mut change, id).await?.ok_or(MISSING)?;
    if key.revoked_at.is_some() {
        return Ok(key);
    }
    let revoked = api_key_revoke(&mut change, id).await?.ok_or(MISSING)?;
    let entry =
        AuditEntry::new(Action::KeyRevoked, id).before(recorded(&key)).after(json!({"revoked_at": revoked.revoked_at}));
    change.of_tenant(key.tenant).commit(entry).await?;
    Ok(revoked)
}

/// Returns a tenant's keys, the oldest first.
pub async fn list(changes: &Changes, tenant: TenantId) -> Result<Vec<ApiKey>> {
    Ok(api_key_list(&mut *changes.store.worker().await?, tenant).await?)
}

const MISSING: UseCaseError = UseCaseError::NotFound("key");

fn recorded(key: &ApiKey) -> Value {
    json!({"name": key.name, "hint": key.hint, "scopes": key.scopes, "expires_at": key.expires_at})
}
