//! All tenants' stored secrets under the key-encryption key. No value is decrypted here.

use serde_json::json;

use super::{Result, change::Changes, error::UseCaseError};
use angarium_domain::audit::{Action, Actor};
use angarium_store::{
    audit::AuditEntry,
    secret::{secret_count_of_other_keys, secret_lock_of_other_keys, secret_rewrap, secret_tally},
};
use angarium_transport::sealing::Keyring;

pub use angarium_store::secret::SecretTally;

/// The secrets of one transaction: few enough that no other transaction waits long for them.
const BATCH: i64 = 500;

/// Puts every stored secret under the current key-encryption key; returns how many there were. Secrets that others are
/// changing at the moment are left out.
pub async fn rewrap(changes: &Changes, by: &Actor, keyring: &Keyring) -> Result<usize> {
    let mut all = 0;
    loop {
        let batch = rewrap_batch(changes, by, keyring).await?;
        all += batch;
        if batch == 0 {
            return Ok(all);
        }
    }
}

/// Counts the stored secrets that are valid now, and those that the keyring can't open.
pub async fn tally(changes: &Changes, keyring: &Keyring) -> Result<SecretTally> {
    Ok(secret_tally(&mut *changes.store.worker().await?, &keyring.ids()).await?)
}

/// Counts the secrets that stand under another key than the current one.
pub async fn left(changes: &Changes, keyring: &Keyring) -> Result<i64> {
    Ok(secret_count_of_other_keys(&mut *changes.store.worker().await?, keyring.current()).await?)
}

/// One batch, with an entry of its own; returns how many there were.
async fn rewrap_batch(changes: &Changes, by: &Actor, keyring: &Keyring) -> Result<usize> {
    let mut change = changes.begin_for_all(by).await?;
    let batch = secret_lock_of_other_keys(&mut change, keyring.current(), BATCH).await?;
    if batch.is_empty() {
        return Ok(0);
    }
    let mut before: Vec<_> = batch.iter().map(|(_, secret)| secret.sealed.key_id.as_str()).collect();
    before.sort_unstable();
    before.dedup();
    for (tenant, secret) in &batch {
        let place = || format!("the secret `{}` of {} (tenant {tenant})", secret.name, secret.connection);
        let sealed = keyring.rewrap(&secret.sealed);
        let sealed = sealed.map_err(|error| UseCaseError::Internal(format!("{}: {error}", place())))?;
        if let Some(sealed) = sealed {
            secret_rewrap(&mut change, *tenant, secret, &sealed).await?;
        }
    }
    let entry = AuditEntry::new(Action::SecretsRewrapped, keyring.current())
        .before(json!({"key_ids": before}))
        .after(json!({"key_id": keyring.current(), "secrets": batch.len()}));
    change.commit(entry).await?;
    Ok(batch.len())
}
