//! The commands' way to the database, and `migrate`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{CliError, output::Output};
use crate::node::config::{Config, ConfigError, FlagSettings};
use angarium_store::{self as store, Store, tenant::TenantRow};
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

    /// Opens it.
    pub async fn store(&self) -> Result<Store, CliError> {
        let url = self.config()?.database.url;
        store::readiness(&url).await?.map_err(|not_ready| CliError::said(not_ready.to_string()))?;
        Ok(Store::new(&url, 2)?)
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
        let version = store::migrate(&self.config()?.database.url).await?;
        output.one(&json!({"migrated": true, "version": version}), &[("schema is at version", "/version")]);
        Ok(())
    }
}

/// The tenant of that name.
pub async fn tenant_named(store: &Store, name: &str) -> Result<TenantRow, CliError> {
    store::tenant::tenant_find(&mut *store.worker().await?, name)
        .await?
        .ok_or_else(|| CliError::said(format!("there is no tenant `{name}`: `angarium tenant list` shows them")))
}
