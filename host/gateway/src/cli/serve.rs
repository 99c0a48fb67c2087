//! `angarium serve`

use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::{
    node::config::{Config, ConfigError, FlagSettings},
    node::gateway,
    node::telemetry,
};

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    settings: Settings,
}

/// The configuration, and what goes before it.
#[derive(Debug, Args)]
pub struct Settings {
    /// The configuration file.
    #[arg(long, env = "ANGARIUM_CONFIG")]
    config: Option<PathBuf>,
    /// `postgres://user:password@host/database`
    #[arg(long)]
    database_url: Option<String>,
    /// Where clients connect, such as 127.0.0.1:8080.
    #[arg(long)]
    listen: Option<String>,
    /// The folder of provider components.
    #[arg(long)]
    providers: Option<String>,
    /// `json` or `text`.
    #[arg(long)]
    log_format: Option<String>,
}

impl Settings {
    /// Reads the file, the environment and these flags, and checks the files and folders that they name.
    pub fn load(self) -> Result<Config, ConfigError> {
        let flags = FlagSettings::default()
            .with("database.url", self.database_url)
            .with("http.listen", self.listen)
            .with("providers.folder", self.providers)
            .with("log.format", self.log_format);
        Config::load_with_files(self.config.as_deref(), &flags)
    }
}

impl Serve {
    pub async fn run(self) -> Result<(), CliError> {
        let config = self.settings.load()?;
        telemetry::logs_start(&config.log)?;
        // Thousands of deliveries in flight are thousands of sockets.
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            tracing::warn!(error = %error, "the limit of open files stays as it is");
        }
        gateway::run(config).await.map_err(|error| CliError::said(error.to_string()))
    }
}
