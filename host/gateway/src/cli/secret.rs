//! `angarium secret …`, on the database: the operator's commands for all tenants' secrets. No value is decrypted here.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{CliError, database::Access, os_user, output::Output};
use crate::app::secrets;

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
            Command::Rewrap { access } => rewrap(&access, output).await,
        }
    }
}

async fn check(access: &Access, output: &Output) -> Result<(), CliError> {
    let (changes, keyring) = (access.changes().await?, access.keyring()?);
    let tally = secrets::tally(&changes, &keyring).await?;
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

async fn rewrap(access: &Access, output: &Output) -> Result<(), CliError> {
    let (changes, keyring) = (access.changes().await?, access.keyring()?);
    let rewrapped = secrets::rewrap(&changes, &os_user::actor(), &keyring).await?;
    let left = secrets::left(&changes, &keyring).await?;
    let answer = json!({"rewrapped": rewrapped, "left": left, "key_id": keyring.current()});
    output.one(&answer, &[("rewrapped", "/rewrapped"), ("left on other keys", "/left"), ("key", "/key_id")]);
    if left > 0 {
        return Err(CliError::said(format!("{left} secrets were being changed by others: run it again")));
    }
    Ok(())
}
