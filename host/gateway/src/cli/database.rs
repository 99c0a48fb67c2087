//! The commands' way to the database, and `migrate`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{CliError, os_user, output::Output};
use crate::{
    app::{
        change::Changes,
        error::UseCaseError,
        tenants::{self, TenantRow},
    },
    node::config::{Config, ConfigError, FlagSettings},
};
use angarium_store::{self as store, Store};
use angarium_transport::sealing::Keyring;

/// Which database.
#[derive(Debug, Args)]
pub struct Access {
    /// The configuration file.
    #[arg(long, env = "ANGARIUM_CONFIG")]
    config: Option<PathBuf>,
    /// `postgres://user:password@host/database`, in place of the configuration's.
    #[arg(long)]
    database_url: Option<String>,
}

impl Access {
    fn config(&self) -> Result<Config, CliError> {
        let flags = FlagSettings::default().with("database.url", self.database_url.clone());
        Ok(Config::load(self.config.as_deref(), &flags)?)
    }

    /// Opens it, for changes in the name of the operating system's user.
    pub async fn changes(&self) -> Result<Changes, CliError> {
        let url = self.config()?.database.url;
        store::readiness(&url).await?.map_err(|not_ready| CliError::said(not_ready.to_string()))?;
        Ok(Changes::bare(Store::new(&url, 2)?))
    }

    /// Refuses a retention class that the configuration does not have.
    pub fn check_class(&self, name: &str) -> Result<(), CliError> {
        let known = self.config()?.retention.classes.get(name).is_some();
        known.then_some(()).ok_or_else(|| {
            CliError::said(format!(
                "there is no retention class `{name}`: name it in the configuration, `[retention.classes.{name}]`"
            ))
        })
    }

    /// The key-encryption keys of the configuration.
    pub fn keyring(&self) -> Result<Keyring, CliError> {
        Ok(self.config()?.secrets.keyring().map_err(ConfigError::from)?)
    }

    /// `angarium migrate`.
    pub async fn migrate(&self, output: &Output) -> Result<(), CliError> {
        let migrated = store::migrate(&self.config()?.database.url, &os_user::actor()).await?;
        let version = migrated.map_err(|not_ready| CliError::said(not_ready.to_string()))?;
        output.one(&json!({"migrated": true, "version": version}), &[("schema is at version", "/version")]);
        Ok(())
    }
}

/// The tenant of that name.
pub async fn tenant_named(changes: &Changes, name: &str) -> Result<TenantRow, CliError> {
    tenants::named(changes, name).await.map_err(|error| unknown_tenant(error, name))
}

/// Says how to find a tenant's name.
pub fn unknown_tenant(error: UseCaseError, name: &str) -> CliError {
    match error {
        UseCaseError::NotFound(_) => {
            CliError::said(format!("there is no tenant `{name}`: `angarium tenant list` shows them"))
        }
        other => other.into(),
    }
}
