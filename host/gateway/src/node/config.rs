//! The gateway's configuration: defaults, then a TOML file, then the environment, then flags.
//!
//! [`settings`] is the table of all settings. Every problem is named at once, by its key and with the remedy. Only
//! [`Config::load_with_files`] opens what a setting names.

mod checks;
mod given;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::Table;

use self::given::GivenSettings;
pub use self::{
    settings::*,
    table::Setting,
    value::{
        FolderGrant, LogFormat, NodeRole, NodeRoles, RetentionClass, RetentionClasses, SecretText, SecretUrl,
        SettingValue,
    },
};
use angarium_transport::sealing::Keyring;

/// The most connections of clients, where neither the configuration nor the limit of open files says less.
const MAX_CONNECTIONS: usize = 8_192;

/// Why the gateway can't start with this configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or not TOML.
    #[error("the configuration file {}: {detail}; name another with `--config` or ANGARIUM_CONFIG", path.display())]
    File { path: PathBuf, detail: String },
    /// Everything that is wrong with the settings.
    #[error(
        "the configuration: {}\nsee `docs/operators.md` for the keys and their values",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
    )]
    Settings(Vec<SettingProblem>),
}

impl From<SettingProblem> for ConfigError {
    fn from(problem: SettingProblem) -> Self {
        Self::Settings(vec![problem])
    }
}

/// The fault of one setting, and its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", shown(name))]
pub struct SettingProblem {
    /// The key, with dots, or a variable that does not exist.
    pub name: String,
    pub detail: String,
}

impl SettingProblem {
    fn new(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), detail: detail.into() }
    }
}

/// A key together with its variable, since either may have been set.
fn shown(name: &str) -> String {
    match SETTINGS.iter().find(|setting| setting.key == name) {
        Some(setting) => format!("`{name}` ({})", setting.variable()),
        None => format!("`{name}`"),
    }
}

/// Settings of the command line, which win over every other source.
#[derive(Debug, Clone, Default)]
pub struct FlagSettings(Vec<(&'static str, String)>);

impl FlagSettings {
    /// Sets `key` if the flag was given.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: Option<String>) -> Self {
        self.0.extend(value.map(|value| (key, value)));
        self
    }
}

impl Config {
    /// Reads the file, the process's environment and the flags.
    ///
    /// # Errors
    /// When the file can't be read, or with every setting that does not exist or can't be right.
    pub fn load(file: Option<&Path>, flags: &FlagSettings) -> Result<Self, ConfigError> {
        Self::read(file, flags).and_then(|(config, problems)| config.unless(problems))
    }

    /// Does the same as [`load`](Self::load); the files and folders of settings must also exist and be readable: keys,
    /// certificates, folders.
    ///
    /// # Errors
    /// As `load`, with every unreadable file and folder among the problems.
    pub fn load_with_files(file: Option<&Path>, flags: &FlagSettings) -> Result<Self, ConfigError> {
        let (config, mut problems) = Self::read(file, flags)?;
        problems.extend(config.missing_files());
        config.unless(problems)
    }

    fn read(file: Option<&Path>, flags: &FlagSettings) -> Result<(Self, Vec<SettingProblem>), ConfigError> {
        let table = file.map(read_table).transpose()?.unwrap_or_default();
        Ok(Self::assemble(table, &std::env::vars_os().filter_map(utf8).collect(), flags))
    }

    fn assemble(
        file: Table,
        environment: &HashMap<String, String>,
        flags: &FlagSettings,
    ) -> (Self, Vec<SettingProblem>) {
        let mut given = GivenSettings::collect(file, environment, &flags.0);
        let config = Self::take(&mut given);
        checks::relations(&config, &mut given);
        (config, given.into_problems())
    }

    fn unless(self, problems: Vec<SettingProblem>) -> Result<Self, ConfigError> {
        if problems.is_empty() { Ok(self) } else { Err(ConfigError::Settings(problems)) }
    }

    fn missing_files(&self) -> Vec<SettingProblem> {
        let folders = [("rules.folder", &self.rules.folder), ("providers.folder", &self.providers.folder)];
        let unreadable = folders.into_iter().filter_map(|(key, folder)| {
            let folder = folder.as_deref()?;
            let error = std::fs::read_dir(folder).err()?;
            let detail = format!("must be a folder that can be read (got {}: {error})", folder.display());
            Some(SettingProblem::new(key, detail))
        });
        [self.secrets.keyring().err(), self.tls.ca_pem().err()].into_iter().flatten().chain(unreadable).collect()
    }
}

impl SecretsConfig {
    /// Reads the keyring that the configuration names.
    ///
    /// # Errors
    /// When no key is named, two are, or it can't be read.
    pub fn keyring(&self) -> Result<Keyring, SettingProblem> {
        match (&self.key, &self.key_file) {
            (Some(key), None) => {
                Keyring::from_base64(key).map_err(|error| SettingProblem::new("secrets.key", error.to_string()))
            }
            (None, Some(file)) => {
                Keyring::from_file(file).map_err(|error| SettingProblem::new("secrets.key_file", error.to_string()))
            }
            (None, None) => Err(SettingProblem::new(
                "secrets.key",
                "must be set, or `secrets.key_file`, to encrypt secrets; `openssl rand -base64 32` makes a key",
            )),
            (Some(_), Some(_)) => {
                Err(SettingProblem::new("secrets.key", "is not allowed together with `secrets.key_file`: keep one"))
            }
        }
    }
}

impl TlsConfig {
    /// The further certificate authorities, as PEM; the transport parses it.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn ca_pem(&self) -> Result<Option<Vec<u8>>, SettingProblem> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        std::fs::read(path).map(Some).map_err(|error| {
            let detail = format!("must be a PEM file that can be read (got {}: {error})", path.display());
            SettingProblem::new("tls.ca_file", detail)
        })
    }
}

impl HttpConfig {
    /// Returns the most connections of clients, if the process may open this number of files: others are needed for the
    /// database and for providers.
    #[must_use]
    pub fn connection_limit(&self, files: u64) -> usize {
        let half = usize::try_from(files / 2).unwrap_or(usize::MAX).max(1);
        self.max_connections.unwrap_or(MAX_CONNECTIONS).min(half)
    }

    /// Returns the most connections of one address.
    #[must_use]
    pub fn connection_limit_per_address(&self, all: usize) -> usize {
        self.max_connections_per_address.unwrap_or_else(|| all.div_ceil(2)).min(all)
    }

    /// The most bytes of request bodies at a time.
    #[must_use]
    pub fn body_bytes_in_flight(&self) -> usize {
        self.max_body_bytes_in_flight.unwrap_or_else(|| self.max_body_bytes.saturating_mul(8))
    }

    /// Whether others reach the gateway by TLS alone.
    #[must_use]
    pub fn is_only_tls(&self) -> bool {
        self.public_url.as_deref().and_then(|url| url::Url::parse(url).ok()).is_some_and(|url| url.scheme() == "https")
    }
}

impl DispatchConfig {
    /// One transmission's total time.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

impl QueueConfig {
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    #[must_use]
    pub const fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms)
    }
}

impl RetentionConfig {
    #[must_use]
    pub const fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_s)
    }
}

fn read_table(path: &Path) -> Result<Table, ConfigError> {
    let broken = |detail: String| ConfigError::File { path: path.to_owned(), detail };
    let text = std::fs::read_to_string(path).map_err(|error| broken(format!("can't be read: {error}")))?;
    text.parse().map_err(|error: toml::de::Error| broken(error.to_string()))
}

fn utf8((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}
