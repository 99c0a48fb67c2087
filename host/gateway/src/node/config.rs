//! The gateway's configuration: defaults, then a TOML file, then the environment, then flags.
//!
//! Reading it opens nothing that a setting names: [`Config::check_named`] does, for `serve` and `config check`. A setting
//! that can't be right is refused at once, by its key and with the remedy.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Environment, File, FileFormat, Source};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

use angarium_transport::sealing::{Keyring, KeyringError};

/// The most connections of clients, where neither the configuration nor the limit of open files says less.
const MOST_CONNECTIONS: usize = 8_192;

/// Every setting, by its key.
const SETTINGS: &[&str] = &[
    "database.url",
    "database.max_connections",
    "http.listen",
    "http.max_body_bytes",
    "http.public_url",
    "http.cors_origins",
    "http.header_timeout_ms",
    "http.body_timeout_ms",
    "http.idle_timeout_ms",
    "http.max_connections",
    "http.max_connections_per_address",
    "http.max_body_bytes_in_flight",
    "secrets.key",
    "secrets.key_file",
    "providers.folder",
    "providers.cache_folder",
    "providers.grant",
    "egress.allow",
    "tls.ca_file",
    "dispatch.deadline_ms",
    "dispatch.max_in_flight",
    "dispatch.max_in_flight_bytes",
    "dispatch.max_in_flight_per_connection",
    "queue.lease_ms",
    "queue.poll_ms",
    "roles",
    "rules.folder",
    "rules.condition_interval_ms",
    "rules.message_time_ms",
    "rules.tenant_time_ms",
    "telemetry.otlp_endpoint",
    "telemetry.trace_sample_ratio",
    "retention.interval_s",
    "retention.classes",
    "log.format",
    "log.filter",
    "node.name",
    "node.ehlo_name",
];

/// Variables that are no settings: the command line's, and those of the project's own tests.
const OTHER_VARIABLES: &[&str] =
    &["ANGARIUM_CONFIG", "ANGARIUM_URL", "ANGARIUM_KEY", "ANGARIUM_REQUIRE_PEERS", "ANGARIUM_SEED"];
const OTHER_BEGINNINGS: &[&str] = &["ANGARIUM_TEST_", "ANGARIUM_PEERS_"];

/// Why the gateway can't start with this configuration. Each names the key and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or not TOML.
    #[error("the configuration file {}: {detail}; name another with `--config` or ANGARIUM_CONFIG", path.display())]
    File { path: PathBuf, detail: String },
    /// Variables that begin like the gateway's and that it doesn't know.
    #[error("the configuration: {}", .0.join("\n  "))]
    Variables(Vec<String>),
    /// A key that doesn't exist, or a value of another kind.
    #[error("the configuration: {0}")]
    Shape(String),
    /// Values that can't be right.
    #[error("the configuration: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))]
    Values(Vec<Problem>),
}

/// One setting that can't be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// With dots: `queue.lease_ms`.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub detail: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ({}): {}", self.key, variable(self.key), self.detail)
    }
}

/// All of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub database: Database,
    pub http: Http,
    pub secrets: Secrets,
    pub providers: Providers,
    pub egress: Egress,
    pub tls: Tls,
    pub dispatch: Dispatch,
    pub queue: Queue,
    pub retention: Retention,
    pub roles: Roles,
    pub rules: Rules,
    pub log: Log,
    pub telemetry: Telemetry,
    pub node: Node,
}

/// Where the database is.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `postgres://…`; `DATABASE_URL` serves as well.
    #[serde(serialize_with = "redacted_url")]
    pub url: String,
    /// Connections of each of the two pools.
    pub max_connections: u32,
}

/// Where clients connect.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Port 0 takes a free one; the log says which.
    pub listen: SocketAddr,
    /// The longest request body, in bytes.
    pub max_body_bytes: usize,
    /// Where others find this gateway, such as `https://angarium.example.org`: what callback URLs
    /// begin with.
    pub public_url: Option<String>,
    /// The origins, such as `https://console.example.org`, whose pages may call the API from a browser.
    pub cors_origins: Vec<String>,
    /// How long a request's head may take, from its first byte to its last.
    pub header_timeout_ms: u32,
    /// How long a request's body may take; a third of it may pass without a byte.
    pub body_timeout_ms: u32,
    /// How long a connection may wait for its next request.
    pub idle_timeout_ms: u32,
    /// The most connections of clients; left out, half of the files that the process may open, up to 8192.
    pub max_connections: Option<usize>,
    /// The most connections of one client's address; left out, half of all.
    pub max_connections_per_address: Option<usize>,
    /// The most bytes of request bodies at a time; left out, eight times `max_body_bytes`.
    pub max_body_bytes_in_flight: Option<usize>,
}

/// The key-encryption keys.
#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// Base64 of 32 bytes; after a rotation the older ones follow it, with a comma between.
    #[serde(serialize_with = "redacted")]
    pub key: Option<String>,
    /// A file of such keys, one a line.
    pub key_file: Option<PathBuf>,
}

/// Reads an enum from its words, and lists them when another is given.
macro_rules! choice {
    ($name:ident: $($word:literal => $value:ident),+) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                match text.as_str() {
                    $($word => Ok(Self::$value),)+
                    other => Err(format!("`{other}` is none of {}", [$(concat!("`", $word, "`")),+].join(", "))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(match self { $(Self::$value => $word),+ })
            }
        }
    };
}

choice!(FolderGrant: "none" => None, "declared" => Declared);
choice!(Role: "api" => Api, "dispatch" => Dispatch);
choice!(LogFormat: "json" => Json, "text" => Text);

/// What components that lie in the folder are granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum FolderGrant {
    /// Nothing: an operator grants hosts by hand.
    #[default]
    None,
    /// The hosts that they declare: whoever fills the folder is the operator.
    Declared,
}

/// Where the provider components come from.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Providers {
    /// Components in it (`*.wasm`) are installed and activated at the start.
    pub folder: Option<PathBuf>,
    /// Where compiled components are kept.
    pub cache_folder: Option<PathBuf>,
    pub grant: FolderGrant,
}

/// Networks that requests may go to although the guard's list has them.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    pub allow: Vec<IpNet>,
}

/// Whom the gateway trusts.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM of certificate authorities to trust beside Mozilla's, such as an intranet's own.
    pub ca_file: Option<PathBuf>,
}

/// How deliveries leave.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dispatch {
    /// One transmission's total time.
    pub deadline_ms: u64,
    /// Deliveries at the same time on this node.
    pub max_in_flight: usize,
    /// Bytes of messages at the same time in this node's memory: a third each for deliveries, for large contents while
    /// requests are made of them, and for large messages while they are stored.
    pub max_in_flight_bytes: usize,
    /// Requests under way through one connection, from this node.
    pub max_in_flight_per_connection: usize,
}

/// How the queue is claimed.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// At least three times the dispatch deadline, so that a slow send never outlives its lease.
    pub lease_ms: u64,
    /// How often a node looks for due work that nobody announced.
    pub poll_ms: u64,
}

/// How long things are kept.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// How often a node looks for what is past its time.
    pub interval_s: u64,
    /// By name; a tenant is of the class `default` unless it was given another.
    classes: BTreeMap<String, RetentionClass>,
}

/// For how long a tenant's messages are kept, counted from their acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionClass {
    /// All of it.
    pub ledger_days: u32,
    /// Recipient, content and attachments.
    pub content_days: u32,
}

/// Operators' scripts, and how scripts are asked.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Scripts in it (`*.rhai`) are live for all tenants, those of a folder in it for the tenant of that name.
    pub folder: Option<PathBuf>,
    /// How long a message waits whose condition did not hold before it is asked again.
    pub condition_interval_ms: u32,
    /// What all rules and scripts of a message may use of the processor together.
    pub message_time_ms: u32,
    /// What those of a tenant may use in a second, on this node.
    pub tenant_time_ms: u32,
}

/// What this node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Role {
    Api,
    Dispatch,
}

/// The roles of this node; both, where nothing is said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Roles(pub Vec<Role>);

impl Roles {
    /// Whether it has this one.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum LogFormat {
    Json,
    #[default]
    Text,
}

/// What the log says and how.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
    /// In `tracing-subscriber`'s form, such as `info,angarium::dispatch=debug`.
    pub filter: String,
}

/// Where traces go.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// The base URL of a collector that takes OTLP over HTTP; `OTEL_EXPORTER_OTLP_ENDPOINT` serves
    /// as well. Without it there are no traces.
    #[serde(serialize_with = "redacted_endpoint")]
    pub otlp_endpoint: Option<String>,
    /// The share of the traces that begin here which is recorded, 0 to 1; who began one elsewhere
    /// has decided.
    pub trace_sample_ratio: f64,
}

/// This process among the others.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// As logs show it.
    pub name: String,
    /// The name that SMTP's EHLO gives where a provider leaves it to the host (RFC 5321, section
    /// 4.1.1.1); empty for `localhost`.
    pub ehlo_name: String,
}

impl Default for Database {
    fn default() -> Self {
        Self { url: String::new(), max_connections: 8 }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body_bytes: 16 << 20,
            public_url: None,
            cors_origins: Vec::new(),
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            idle_timeout_ms: 75_000,
            max_connections: None,
            max_connections_per_address: None,
            max_body_bytes_in_flight: None,
        }
    }
}

impl Default for Dispatch {
    fn default() -> Self {
        Self {
            deadline_ms: 30_000,
            max_in_flight: 16_384,
            max_in_flight_bytes: 384 << 20,
            max_in_flight_per_connection: 512,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { lease_ms: 90_000, poll_ms: 100 }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self { folder: None, condition_interval_ms: 30_000, message_time_ms: 20, tenant_time_ms: 200 }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { interval_s: 600, classes: BTreeMap::new() }
    }
}

impl Default for RetentionClass {
    fn default() -> Self {
        Self { ledger_days: 90, content_days: 30 }
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self(vec![Role::Api, Role::Dispatch])
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: "info".to_owned() }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, trace_sample_ratio: 1.0 }
    }
}

impl Default for Node {
    fn default() -> Self {
        let name = std::env::var("HOSTNAME").unwrap_or_else(|_| "angarium".to_owned());
        Self { name, ehlo_name: String::new() }
    }
}

/// A URL with a password, or a key, must not reach a log.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("url", &"***").field("max_connections", &self.max_connections).finish()
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = self.key.as_ref().map(|_| "***");
        f.debug_struct("Secrets").field("key", &key).field("key_file", &self.key_file).finish()
    }
}

impl Http {
    /// The most connections of clients, where the process may open so many files: others are needed for the
    /// database and for providers.
    #[must_use]
    pub fn most_connections(&self, files: u64) -> usize {
        let half = usize::try_from(files / 2).unwrap_or(usize::MAX).max(1);
        self.max_connections.unwrap_or(MOST_CONNECTIONS).min(half)
    }

    /// The most connections of one address, of so many.
    #[must_use]
    pub fn most_connections_of_address(&self, all: usize) -> usize {
        self.max_connections_per_address.unwrap_or_else(|| all.div_ceil(2)).min(all)
    }

    /// The most bytes of request bodies at a time.
    #[must_use]
    pub fn most_body_bytes_in_flight(&self) -> usize {
        self.max_body_bytes_in_flight.unwrap_or_else(|| self.max_body_bytes.saturating_mul(8))
    }

    /// Whether others find the gateway by TLS alone.
    #[must_use]
    pub fn is_only_tls(&self) -> bool {
        self.public_url.as_deref().and_then(|url| url::Url::parse(url).ok()).is_some_and(|url| url.scheme() == "https")
    }
}

impl Dispatch {
    /// One transmission's total time.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

impl Queue {
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    #[must_use]
    pub const fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms)
    }
}

impl Retention {
    /// The class of that name. `default` is there even if the configuration does not name it.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<RetentionClass> {
        let default = || (name == "default").then(RetentionClass::default);
        self.classes.get(name).copied().or_else(default)
    }

    /// The days of the class that keeps messages for the longest time.
    #[must_use]
    pub fn longest_ledger_days(&self) -> u32 {
        let named = self.classes.values().map(|class| class.ledger_days).max().unwrap_or_default();
        self.class("default").map_or(named, |class| class.ledger_days.max(named))
    }

    #[must_use]
    pub const fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_s)
    }
}

impl Secrets {
    /// Reads the keyring that the configuration names.
    ///
    /// # Errors
    /// When no key is named, two are, or it can't be read.
    pub fn keyring(&self) -> Result<Keyring, ConfigError> {
        let keyring = match (&self.key, &self.key_file) {
            (Some(key), None) => Keyring::from_base64(key).map_err(|error| key_problem("secrets.key", &error)),
            (None, Some(file)) => Keyring::from_file(file).map_err(|error| key_problem("secrets.key_file", &error)),
            (None, None) => Err(problem(
                "secrets.key",
                "is not set, so secrets can't be encrypted: set it, or `secrets.key_file`; `openssl rand -base64 32` makes a key",
            )),
            (Some(_), Some(_)) => Err(problem("secrets.key", "and `secrets.key_file` are both set: keep one")),
        };
        keyring.map_err(|problem| ConfigError::Values(vec![problem]))
    }
}

/// What the command line says; it goes before everything else.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<(&'static str, String)>);

impl Overrides {
    /// Sets `key` if the flag was given.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: Option<String>) -> Self {
        self.0.extend(value.map(|value| (key, value)));
        self
    }
}

impl Tls {
    /// The further certificate authorities, as PEM; what is in it the transport reads.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn ca_pem(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        std::fs::read(path).map(Some).map_err(|error| {
            let detail = format!("{} can't be read: {error}; name a PEM file, or leave it out", path.display());
            ConfigError::Values(vec![problem("tls.ca_file", detail)])
        })
    }
}

impl Config {
    /// Reads the file, the process's environment and the flags.
    ///
    /// # Errors
    /// When a source can't be read, a key doesn't exist, or a value can't be right.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let text = file.map(|path| (path, read(path))).map(|(path, text)| text.map(|text| (path, text))).transpose()?;
        Self::assemble(text, std::env::vars_os().filter_map(utf8).collect(), overrides)
    }

    fn assemble(
        file: Option<(&Path, String)>,
        environment: HashMap<String, String>,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        let unknown = unknown_variables(&environment);
        if !unknown.is_empty() {
            return Err(ConfigError::Variables(unknown));
        }
        let mut builder = config::Config::builder()
            .set_default("database.url", environment.get("DATABASE_URL").cloned().unwrap_or_default())
            .map_err(shape)?;
        if let Some(endpoint) = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT").filter(|it| !it.is_empty()) {
            builder = builder.set_default("telemetry.otlp_endpoint", endpoint.as_str()).map_err(shape)?;
        }
        if let Some((path, text)) = file {
            let broken =
                |error: config::ConfigError| ConfigError::File { path: path.to_owned(), detail: error.to_string() };
            let source = File::from_str(&text, FileFormat::Toml);
            config::Config::builder().add_source(source.clone()).build().map_err(broken)?;
            builder = builder.add_source(source);
        }
        builder = builder.add_source(variables(environment));
        for (key, value) in overrides.0 {
            builder = builder.set_override(key, value).map_err(shape)?;
        }
        let merged = builder.build().map_err(shape)?;
        let config: Self = merged.clone().try_deserialize().map_err(|first| shapes(&merged, first))?;
        let problems = config.problems();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Values(problems)) }
    }

    /// Whether what the settings name is there and can be read: the keys, the certificates, the folders.
    ///
    /// # Errors
    /// All that is wrong, each by its key.
    pub fn check_named(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        for error in [self.secrets.keyring().err(), self.tls.ca_pem().err()].into_iter().flatten() {
            match error {
                ConfigError::Values(found) => problems.extend(found),
                other => return Err(other),
            }
        }
        let folders = [("rules.folder", &self.rules.folder), ("providers.folder", &self.providers.folder)];
        for (key, folder) in folders {
            let unreadable = folder.as_deref().and_then(|it| Some((it, std::fs::read_dir(it).err()?)));
            problems.extend(unreadable.map(|(folder, error)| {
                let detail =
                    format!("the folder {} can't be read: {error}; make it, or leave it out", folder.display());
                problem(key, detail)
            }));
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Values(problems)) }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, key, detail: String| {
            if !ok {
                problems.push(problem(key, detail));
            }
        };
        check(
            self.database.url.starts_with("postgres://") || self.database.url.starts_with("postgresql://"),
            "database.url",
            "names no PostgreSQL database: set it to `postgres://user:password@host/database`, or set DATABASE_URL"
                .into(),
        );
        check((2..=1_000).contains(&self.database.max_connections), "database.max_connections", "2 to 1000".into());
        check(
            (1 << 10..=256 << 20).contains(&self.http.max_body_bytes),
            "http.max_body_bytes",
            "1024 to 268435456 (256 MiB)".into(),
        );
        check(
            self.http.public_url.as_deref().is_none_or(is_base_url),
            "http.public_url",
            "is no base URL, such as `https://angarium.example.org`: a scheme and a host, perhaps a port and a path"
                .into(),
        );
        for (key, value) in [
            ("http.header_timeout_ms", self.http.header_timeout_ms),
            ("http.body_timeout_ms", self.http.body_timeout_ms),
            ("http.idle_timeout_ms", self.http.idle_timeout_ms),
        ] {
            check((100..=3_600_000).contains(&value), key, format!("must be 100 to 3600000 (got {value})"));
        }
        for (key, value) in [
            ("http.max_connections", self.http.max_connections),
            ("http.max_connections_per_address", self.http.max_connections_per_address),
        ] {
            check(value.is_none_or(|it| (1..=1_000_000).contains(&it)), key, "must be 1 to 1000000".into());
        }
        let least = self.http.max_body_bytes.saturating_mul(2);
        check(
            self.http.most_body_bytes_in_flight() >= least,
            "http.max_body_bytes_in_flight",
            format!("must be at least twice `http.max_body_bytes`: {least}"),
        );
        for origin in self.http.cors_origins.iter().filter(|origin| !is_origin(origin)) {
            check(
                false,
                "http.cors_origins",
                format!(
                    "`{origin}` must be an origin as browsers write it, such as `https://console.example.org`: a scheme \
                     and a host in lower case, perhaps a port, and nothing after it; `*` and `null` are not allowed"
                ),
            );
        }
        check((100..=600_000).contains(&self.dispatch.deadline_ms), "dispatch.deadline_ms", "100 to 600000".into());
        check(self.dispatch.max_in_flight > 0, "dispatch.max_in_flight", "at least 1".into());
        check(
            (16 << 20..=1 << 40).contains(&self.dispatch.max_in_flight_bytes),
            "dispatch.max_in_flight_bytes",
            format!("must be 16777216 (16 MiB) to 1099511627776 (1 TiB) (got {})", self.dispatch.max_in_flight_bytes),
        );
        check(
            self.dispatch.max_in_flight_per_connection > 0,
            "dispatch.max_in_flight_per_connection",
            "at least 1: with 0 nothing would ever leave".into(),
        );
        let shortest = self.dispatch.deadline_ms.saturating_mul(3);
        check(
            self.queue.lease_ms >= shortest,
            "queue.lease_ms",
            format!(
                "is {}, shorter than three times `dispatch.deadline_ms`, so a slow send could outlive its lease: \
                 set it to {shortest} or more, or shorten the deadline",
                self.queue.lease_ms
            ),
        );
        check((1..=60_000).contains(&self.queue.poll_ms), "queue.poll_ms", "1 to 60000".into());
        let interval = self.rules.condition_interval_ms;
        check((100..=86_400_000).contains(&interval), "rules.condition_interval_ms", "100 to 86400000".into());
        check((1..=1_000).contains(&self.rules.message_time_ms), "rules.message_time_ms", "1 to 1000".into());
        check((1..=60_000).contains(&self.rules.tenant_time_ms), "rules.tenant_time_ms", "1 to 60000".into());
        check((1..=86_400).contains(&self.retention.interval_s), "retention.interval_s", "1 to 86400".into());
        for (name, class) in &self.retention.classes {
            check(
                (1..=class.ledger_days).contains(&class.content_days) && class.ledger_days <= 36_500,
                "retention.classes",
                format!("`{name}` is to have 1 <= content_days <= ledger_days <= 36500"),
            );
        }
        check(!self.roles.0.is_empty(), "roles", "is empty: name `api`, `dispatch` or both".into());
        check(
            self.telemetry.otlp_endpoint.as_deref().is_none_or(|it| base_url(it).is_some()),
            "telemetry.otlp_endpoint",
            "is no address of a collector, such as `http://127.0.0.1:4318`".into(),
        );
        check(
            (0.0..=1.0).contains(&self.telemetry.trace_sample_ratio),
            "telemetry.trace_sample_ratio",
            "0 to 1".into(),
        );
        if let Some(detail) = filter_problem(&self.log.filter) {
            check(false, "log.filter", detail);
        }
        check(!self.node.name.is_empty(), "node.name", "is empty: name this process".into());
        check(
            is_host_name(&self.node.ehlo_name),
            "node.ehlo_name",
            "is no host's name, such as `mail.example.org`: letters, digits, `-` and dots".into(),
        );
        problems
    }
}

/// That it is there, and not what it is.
fn redacted<S: Serializer>(secret: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(|_| "***").serialize(serializer)
}

fn redacted_url<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_credentials(url))
}

fn redacted_endpoint<S: Serializer>(url: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    url.as_deref().map(without_credentials).serialize(serializer)
}

/// A URL in which no password stands, neither before the host nor among the parameters.
fn without_credentials(url: &str) -> String {
    let Ok(mut url) = url::Url::parse(url) else { return "***".to_owned() };
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    let secret = |name: &str| name.to_ascii_lowercase().contains("password") || name.eq_ignore_ascii_case("sslkey");
    if url.query_pairs().any(|(name, _)| secret(&name)) {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let shown = pairs.iter().map(|(name, value)| (name, if secret(name) { "***" } else { value.as_str() }));
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    url.to_string()
}

fn problem(key: &'static str, detail: impl Into<String>) -> Problem {
    Problem { key, detail: detail.into() }
}

/// What is wrong with a filter of the log. A word alone would be taken for a module: a misspelled level would silence
/// everything.
fn filter_problem(filter: &str) -> Option<String> {
    let is_level = |word: &str| !word.is_empty() && word.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    let alone = |word: &&str| !word.contains(['=', '[', ']', '{', '}']) && !is_level(word);
    match filter.split(',').map(str::trim).find(alone) {
        Some(word) => Some(format!(
            "must consist of levels (off, error, warn, info, debug, trace) and modules with levels, such as \
             `info,angarium::dispatch=debug` (got `{word}`)"
        )),
        None => tracing_subscriber::EnvFilter::try_new(filter).err().map(|error| format!("is not a filter: {error}")),
    }
}

/// Empty, or labels of letters, digits and hyphens (RFC 5321's `Domain`).
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.is_empty() || text.len() <= 253 && text.split('.').all(label)
}

/// `http` or `https`, a host, and a port where it is not the scheme's own: as browsers write it.
fn is_origin(text: &str) -> bool {
    !text.contains('*') && base_url(text).is_some_and(|url| url.origin().ascii_serialization() == text)
}

/// `http` or `https`, a host, perhaps a path; no user, query or fragment.
fn is_base_url(text: &str) -> bool {
    let without_user = |url: &url::Url| url.username().is_empty() && url.password().is_none();
    base_url(text).as_ref().is_some_and(without_user)
}

/// The same, and a user may be named.
fn base_url(text: &str) -> Option<url::Url> {
    let url = url::Url::parse(text).ok()?;
    let is_base = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none()
        && text.is_ascii();
    is_base.then_some(url)
}

fn key_problem(key: &'static str, error: &KeyringError) -> Problem {
    problem(key, error.to_string())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|error| ConfigError::File { path: path.to_owned(), detail: format!("can't be read: {error}") })
}

fn utf8((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

/// `queue.lease_ms` is `ANGARIUM_QUEUE__LEASE_MS`.
fn variable(key: &str) -> String {
    format!("ANGARIUM_{}", key.replace('.', "__").to_uppercase())
}

/// Every variable that looks like a setting and is none, with the one that was probably meant.
fn unknown_variables(environment: &HashMap<String, String>) -> Vec<String> {
    let known: Vec<_> = SETTINGS.iter().map(|key| variable(key)).collect();
    let mut unknown: Vec<_> = environment
        .iter()
        .filter(|(name, value)| name.starts_with("ANGARIUM_") && !known.contains(name) && !is_other(name, value))
        .map(|(name, _)| match nearest(name, &known) {
            Some(meant) => format!("there is no variable {name}; {meant} is the nearest: rename or remove it"),
            None => format!("there is no variable {name}: remove it"),
        })
        .collect();
    unknown.sort();
    unknown
}

/// Whether a variable of our prefix is somebody else's. Kubernetes sets `…_SERVICE_HOST`,
/// `…_PORT=tcp://…` and the like for a service whose name begins with `angarium`.
fn is_other(name: &str, value: &str) -> bool {
    OTHER_VARIABLES.contains(&name)
        || cfg!(any(debug_assertions, feature = "failpoints")) && name == "ANGARIUM_FAILPOINTS"
        || OTHER_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"].iter().any(|part| name.contains(part))
        || name.ends_with("_PORT") && value.contains("://")
}

/// A setting whose level was left out goes before one that is written alike.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a String> {
    let last = name.strip_prefix("ANGARIUM_").unwrap_or(name);
    known.iter().min_by_key(|known| (!known.ends_with(&format!("__{last}")), strsim::levenshtein(name, known)))
}

fn variables(environment: HashMap<String, String>) -> Environment {
    let settings: Vec<_> = SETTINGS.iter().map(|key| variable(key)).collect();
    let ours = environment.into_iter().filter(|(name, _)| settings.contains(name)).collect();
    Environment::with_prefix("ANGARIUM")
        .prefix_separator("_")
        .separator("__")
        .try_parsing(true)
        .list_separator(",")
        .with_list_parse_key("roles")
        .with_list_parse_key("egress.allow")
        .with_list_parse_key("http.cors_origins")
        .ignore_empty(true)
        .source(Some(ours))
}

const SEE: &str = "; see `docs/operators.md` for the keys and their values";

fn shape(error: config::ConfigError) -> ConfigError {
    ConfigError::Shape(format!("{error}{SEE}"))
}

/// Everything that is wrong where one key has no place or a value is of another kind: each key is
/// tried by itself, and the good ones are looked at for values that can't be right.
fn shapes(merged: &config::Config, first: config::ConfigError) -> ConfigError {
    let mut wrong = Vec::new();
    let mut good = config::Config::builder();
    for (key, value) in leaves(merged) {
        let alone = config::Config::builder().set_override(&key, value.clone()).and_then(|it| it.build());
        match alone.and_then(config::Config::try_deserialize::<Config>) {
            Ok(_) => {
                good = match good.set_override(&key, value) {
                    Ok(more) => more,
                    Err(error) => return shape(error),
                }
            }
            Err(error) => wrong.push(format!("`{key}`: {error}")),
        }
    }
    if wrong.is_empty() {
        return shape(first);
    }
    let rest = good.build().and_then(config::Config::try_deserialize::<Config>);
    let values = rest.map(|config| config.problems()).unwrap_or_default();
    wrong.extend(values.iter().map(ToString::to_string));
    ConfigError::Shape(format!("{}{SEE}", wrong.join("\n  ")))
}

/// Every key that is set, with dots.
fn leaves(merged: &config::Config) -> Vec<(String, config::Value)> {
    let sections = Source::collect(merged).unwrap_or_default();
    let mut leaves: Vec<_> = sections
        .into_iter()
        .flat_map(|(section, value)| match value.clone().into_table() {
            Ok(keys) => keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)).collect(),
            Err(_) => vec![(section, value)],
        })
        .collect();
    leaves.sort_by(|(one, _), (other, _)| one.cmp(other));
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "postgres://localhost/angarium";

    fn assemble(toml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::assemble(Some((Path::new("angarium.toml"), toml.to_owned())), environment, Overrides::default())
    }

    fn refusal(toml: &str, environment: &[(&str, &str)]) -> String {
        assemble(toml, environment).unwrap_err().to_string()
    }

    #[test]
    fn the_environment_goes_before_the_file_and_flags_before_both() {
        let toml = "[queue]\nlease_ms = 120000\npoll_ms = 7\n[http]\nlisten = '127.0.0.1:1'";
        let environment = HashMap::from([
            ("DATABASE_URL".to_owned(), URL.to_owned()),
            ("ANGARIUM_QUEUE__LEASE_MS".to_owned(), "150000".to_owned()),
            ("ANGARIUM_EGRESS__ALLOW".to_owned(), "127.0.0.0/8,10.0.0.0/8".to_owned()),
            ("ANGARIUM_ROLES".to_owned(), "dispatch".to_owned()),
            ("ANGARIUM_KEY".to_owned(), "ak_not_a_setting".to_owned()),
        ]);
        let flags = Overrides::default().with("http.listen", Some("127.0.0.1:9".to_owned())).with("log.filter", None);
        let config = Config::assemble(Some((Path::new("x"), toml.to_owned())), environment, flags).unwrap();
        assert_eq!((config.queue.lease_ms, config.queue.poll_ms), (150_000, 7));
        assert_eq!(config.http.listen.port(), 9);
        assert_eq!(config.egress.allow.len(), 2);
        assert_eq!(config.roles, Roles(vec![Role::Dispatch]));
        assert_eq!(config.database.url, URL);
    }

    #[test]
    fn a_filter_of_the_log_has_levels_and_modules_with_levels() {
        for good in ["info", "", "info,angarium::dispatch=debug", "WARN", "angarium[attempt{id=1}]=trace", "off"] {
            assert_eq!(filter_problem(good).is_some(), good.is_empty(), "{good}");
        }
        for (bad, given) in [("inof", "`inof`"), ("info, angarium", "`angarium`"), ("info,", "``")] {
            assert!(filter_problem(bad).is_some_and(|it| it.contains(given)), "{bad}");
        }
        assert!(filter_problem("angarium=loud").is_some());
    }

    #[test]
    fn what_a_setting_names_has_to_be_there() {
        let toml = "[secrets]\nkey_file = '/nowhere/key'\n[rules]\nfolder = '/nowhere/rules'\n[providers]\nfolder = '/nowhere/p'";
        let refusal = assemble(toml, &[("DATABASE_URL", URL)]).unwrap().check_named().unwrap_err().to_string();
        for key in ["`secrets.key_file`", "`rules.folder`", "`providers.folder`"] {
            assert!(refusal.contains(key), "{refusal}");
        }
    }

    #[test]
    fn a_bad_setting_is_named_with_the_remedy() {
        let database = [("DATABASE_URL", URL)];
        for (toml, words) in [
            ("[queue]\nlease_ms = 1000", ["`queue.lease_ms`", "set it to 90000 or more"]),
            ("[queue]\nlease_mss = 1", ["lease_mss", "lease_ms"]),
            ("[http]\nlisten = 'here'", ["http.listen", "socket address"]),
            ("roles = ['cook']", ["cook", "api"]),
            ("[database]\nmax_connections = 'many'", ["database.max_connections", "many"]),
            ("[database", ["angarium.toml", "--config"]),
        ] {
            let message = refusal(toml, &database);
            for word in words {
                assert!(message.contains(word), "{toml}: {message}");
            }
        }
        assert!(refusal("", &[]).contains("set DATABASE_URL"));
    }

    #[test]
    fn an_unknown_variable_is_refused_with_the_one_that_was_meant() {
        for (name, meant) in [
            ("ANGARIUM_LISTEN", "ANGARIUM_HTTP__LISTEN"),
            ("ANGARIUM_HTTP_LISTEN", "ANGARIUM_HTTP__LISTEN"),
            ("ANGARIUM_HTTP__LISEN", "ANGARIUM_HTTP__LISTEN"),
            ("ANGARIUM_DATABASE_URL", "ANGARIUM_DATABASE__URL"),
            ("ANGARIUM_ROLE", "ANGARIUM_ROLES"),
            ("ANGARIUM_KEY_FILE", "ANGARIUM_SECRETS__KEY_FILE"),
        ] {
            let message = refusal("", &[("DATABASE_URL", URL), (name, "x"), ("ANGARIUM_NONSENSE", "")]);
            assert!(message.contains(&format!("no variable {name}; {meant} is")), "{message}");
            assert!(message.contains("no variable ANGARIUM_NONSENSE"), "{message}");
        }
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        let others = [
            ("ANGARIUM_URL", "http://localhost"),
            ("ANGARIUM_KEY", "ak_x"),
            ("ANGARIUM_CONFIG", "angarium.toml"),
            ("ANGARIUM_TEST_KILLS", "9"),
            ("ANGARIUM_REQUIRE_PEERS", "1"),
            ("ANGARIUM_API_SERVICE_HOST", "10.0.0.1"),
            ("ANGARIUM_SERVICE_PORT_HTTP", "8080"),
            ("ANGARIUM_PORT", "tcp://10.0.0.1:8080"),
            ("ANGARIUM_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("DATABASE_URL", URL),
        ];
        assemble("", &others).unwrap();
        assert!(refusal("", &[("ANGARIUM_PORT", "8080"), ("DATABASE_URL", URL)]).contains("ANGARIUM_PORT"));
    }

    /// serde lists what a section has when it is asked for something else.
    #[test]
    fn every_setting_has_a_variable() {
        let listed = |toml: &str| -> Vec<String> {
            let message = refusal(toml, &[("DATABASE_URL", URL)]);
            let (_, expected) = message.split_once("expected").unwrap_or_else(|| panic!("{message}"));
            let expected = expected.split(" for key ").next().unwrap_or_default();
            expected.split('`').skip(1).step_by(2).filter(|word| !word.contains('/')).map(str::to_owned).collect()
        };
        let mut found = Vec::new();
        for section in listed("nonsense = 1") {
            match section.as_str() {
                "roles" => found.push(section),
                _ => found
                    .extend(listed(&format!("[{section}]\nnonsense = 1")).iter().map(|key| format!("{section}.{key}"))),
            }
        }
        let mut settings: Vec<_> = SETTINGS.iter().map(ToString::to_string).collect();
        found.sort();
        settings.sort();
        assert_eq!(found, settings);
    }

    #[test]
    fn all_bad_values_are_named_at_once() {
        let message = refusal(
            "[queue]\nlease_ms = 1\npoll_ms = 0\n[dispatch]\nmax_in_flight = 0\n\
             max_in_flight_bytes = 1\nmax_in_flight_per_connection = 0\n[node]\nehlo_name = 'a b'\n[http]\npublic_url = 'gw.example'\n\
             [telemetry]\notlp_endpoint = 'collector:4318'\ntrace_sample_ratio = 2",
            &[],
        );
        for key in [
            "database.url",
            "queue.lease_ms",
            "queue.poll_ms",
            "dispatch.max_in_flight",
            "dispatch.max_in_flight_bytes",
            "dispatch.max_in_flight_per_connection",
            "node.ehlo_name",
            "http.public_url",
            "telemetry.otlp_endpoint",
            "telemetry.trace_sample_ratio",
        ] {
            assert!(message.contains(&format!("`{key}`")), "{message}");
        }
    }

    #[test]
    fn keys_without_a_place_are_all_named_with_the_values_that_cannot_be_right() {
        let message = refusal(
            "[queue]\nlease_mss = 1\npoll_ms = 0\n[databse]\nurl = 'x'\n[http]\nlisten = 'here'\n[log]\nformat = 'xml'",
            &[("DATABASE_URL", URL), ("ANGARIUM_DISPATCH__DEADLINE_MS", "soon")],
        );
        for key in
            ["queue.lease_mss", "queue.poll_ms", "databse.url", "http.listen", "log.format", "dispatch.deadline_ms"]
        {
            assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
        }
        assert!(!message.contains("`database.url`"), "{message}");
    }

    #[test]
    fn what_is_shown_has_no_secret() {
        let toml = "[secrets]\nkey = 'c2VjcmV0'\n[database]\n\
                    url = 'postgres://u:hunter2@h/d?sslmode=require&sslpassword=hunter3'\n\
                    [telemetry]\notlp_endpoint = 'https://me:hunter4@collector'";
        let shown = serde_json::to_value(assemble(toml, &[]).unwrap()).unwrap();
        assert_eq!(shown["database"]["url"], "postgres://u:***@h/d?sslmode=require&sslpassword=***");
        assert_eq!(shown["telemetry"]["otlp_endpoint"], "https://me:***@collector/");
        assert_eq!(shown["secrets"]["key"], "***");
        assert_eq!(shown["roles"], serde_json::json!(["api", "dispatch"]));
        let text = shown.to_string();
        assert!(!text.contains("hunter") && !text.contains("c2VjcmV0"), "{text}");
    }

    #[test]
    fn a_missing_file_of_authorities_is_named() {
        let config = assemble("[tls]\nca_file = '/nowhere/ca.pem'", &[("DATABASE_URL", URL)]).unwrap();
        let message = config.tls.ca_pem().unwrap_err().to_string();
        assert!(message.contains("`tls.ca_file`") && message.contains("/nowhere/ca.pem"), "{message}");
        assert_eq!(Tls::default().ca_pem().unwrap(), None);
    }

    #[test]
    fn nothing_secret_is_printed() {
        let toml = "[secrets]\nkey = 'c2VjcmV0'\n[database]\nurl = 'postgres://u:hunter2@h/d'";
        let printed = format!("{:?}", assemble(toml, &[]).unwrap());
        assert!(!printed.contains("hunter2") && !printed.contains("c2VjcmV0"), "{printed}");
    }

    #[test]
    fn a_missing_or_broken_key_is_refused() {
        let config = assemble("", &[("DATABASE_URL", URL)]).unwrap();
        assert!(config.secrets.keyring().unwrap_err().to_string().contains("openssl rand -base64 32"));
        let short = Secrets { key: Some("c2hvcnQ=".into()), key_file: None };
        assert!(short.keyring().unwrap_err().to_string().contains("`secrets.key`"));
    }

    #[test]
    fn only_exact_origins_may_call_from_a_browser() {
        let with = |origin: &str| {
            let toml = format!("[http]\ncors_origins = ['{origin}']");
            assemble(&toml, &[("DATABASE_URL", URL)]).map_err(|error| error.to_string())
        };
        for good in ["https://console.example.org", "http://127.0.0.1:3000", "https://a.example:8443", "http://[::1]:1"]
        {
            assert_eq!(with(good).unwrap().http.cors_origins, [good]);
        }
        for bad in [
            "*",
            "null",
            "",
            "console.example.org",
            "https://a.example/",
            "https://a.example/x",
            "https://A.example",
            "https://a.example:443",
            "https://*.example.org",
            "https://u@a.example",
            "ftp://a.example",
            "https://b\u{fc}r.example",
        ] {
            let message = with(bad).err().unwrap_or_else(|| panic!("{bad}"));
            assert!(message.contains("`http.cors_origins`"), "{message}");
        }
        let listed = [("DATABASE_URL", URL), ("ANGARIUM_HTTP__CORS_ORIGINS", "https://a.example,https://b.example")];
        assert_eq!(assemble("", &listed).unwrap().http.cors_origins.len(), 2);
    }

    #[test]
    fn connections_leave_files_for_others() {
        let http = Http::default();
        assert_eq!((http.most_connections(1_024), http.most_connections(1 << 20)), (512, MOST_CONNECTIONS));
        assert_eq!((http.most_connections_of_address(512), http.most_connections_of_address(1)), (256, 1));
        let http = Http { max_connections: Some(100), max_connections_per_address: Some(1_000), ..Http::default() };
        assert_eq!((http.most_connections(1 << 20), http.most_connections_of_address(100)), (100, 100));
    }

    #[test]
    fn a_class_that_is_not_named_is_kept_for_the_defaults() {
        let toml = "[retention.classes.short]\nledger_days = 7\ncontent_days = 1";
        let retention = assemble(toml, &[("DATABASE_URL", URL)]).unwrap().retention;
        assert_eq!(retention.class("short"), Some(RetentionClass { ledger_days: 7, content_days: 1 }));
        assert_eq!(retention.class("default"), Some(RetentionClass { ledger_days: 90, content_days: 30 }));
        assert_eq!((retention.class("none"), retention.longest_ledger_days()), (None, 90));
        let message = refusal("[retention.classes.odd]\nledger_days = 7", &[("DATABASE_URL", URL)]);
        assert!(message.contains("`odd`"), "{message}");
    }
}
