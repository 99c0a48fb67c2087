//! `angarium secret …`, on the database: the operator's commands for all tenants' secrets. No value is decrypted here.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{CliError, database::Access, output::Output};
use angarium_store::{
    Store, StoreError,
    secret::{secret_count_of_other_keys, secret_lock_of_other_keys, secret_rewrap, secret_tally},
};
use angarium_transport::sealing::Keyring;

/// The secrets of one transaction: few enough that no other transaction waits long for them.
const BATCH: i64 = 500;

#[derive(Debug, Args)]
pub struct SecretArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count the stored secrets that the configured keys open; fail where some do not.
    Check {
        #[command(flatten)]
        access: Access,
    },
    /// Put every stored secret under the current key-encryption key, so that older ones can go.
    Rewrap {
        #[command(flatten)]
        access: Access,
    },
}

impl SecretArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::Check { access } => check(&access, output).await,
            Command::Rewrap { access } => rewrap_all(&access, output).await,
        }
    }
}

async fn check(access: &Access, output: &Output) -> Result<(), CliError> {
    let (store, keyring) = (access.store().await?, access.keyring()?);
    let tally = secret_tally(&mut *store.worker().await?, &keyring.ids()).await?;
    let answer = json!({"secrets": tally.all, "closed": tally.closed, "key_id": keyring.current()});
    output.one(&answer, &[("secrets", "/secrets"), ("on unknown keys", "/closed"), ("key", "/key_id")]);
    match tally.closed {
        0 => Ok(()),
        closed => Err(CliError::said(format!(
            "{closed} of {} stored secrets stand on keys that the configuration does not have: add the old key after the \
             current one",
            tally.all
        ))),
    }
}

async fn rewrap_all(access: &Access, output: &Output) -> Result<(), CliError> {
    let (store, keyring) = (access.store().await?, access.keyring()?);
    let mut rewrapped = 0;
    loop {
        let batch = rewrap(&store, &keyring).await?;
        if batch == 0 {
            break;
        }
        rewrapped += batch;
    }
    let left = secret_count_of_other_keys(&mut *store.worker().await?, keyring.current()).await?;
    let answer = json!({"rewrapped": rewrapped, "left": left, "key_id": keyring.current()});
    output.one(&answer, &[("rewrapped", "/rewrapped"), ("left on other keys", "/left"), ("key", "/key_id")]);
    if left > 0 {
        return Err(CliError::said(format!("{left} secrets were being changed by others: run it again")));
    }
    Ok(())
}

/// Rewraps one batch; returns its size.
async fn rewrap(store: &Store, keyring: &Keyring) -> Result<usize, CliError> {
    let mut txn = store.worker().await?;
    let batch = secret_lock_of_other_keys(&mut txn, keyring.current(), BATCH).await?;
    for (tenant, secret) in &batch {
        let place = || format!("the secret `{}` of {} (tenant {tenant})", secret.name, secret.connection);
        let sealed = keyring.rewrap(&secret.sealed).map_err(|error| CliError::said(format!("{}: {error}", place())))?;
        if let Some(sealed) = sealed {
            secret_rewrap(&mut txn, *tenant, secret, &sealed).await?;
        }
    }
    txn.commit().await.map_err(StoreError::from)?;
    Ok(batch.len())
}
