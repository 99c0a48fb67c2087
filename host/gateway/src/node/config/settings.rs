//! Every setting of the gateway, one entry each. This is the only place to add, change or remove one.
//!
//! An entry makes the field of the configuration, its default, its check, its environment variable and its row in
//! `docs/operators.md`. It is `name: Type = default`, then these options, each where it is needed, in this order:
//!
//! | option | meaning |
//! |---|---|
//! | `in 1..=60_000` | the least and the greatest number |
//! | `check function` | a check of the text, from `checks.rs` |
//! | `shown "text"` | the default in the documentation, where the value does not tell it |
//! | `also VARIABLE` | a second variable, which is weaker than the file |
//!
//! The doc comment of an entry is its documentation: plain Markdown, links relative to `docs/`. After a change,
//! `ANGARIUM_UPDATE=1 cargo xtask test settings_table` writes the table. What two settings must hold together is
//! checked in `checks::relations`; a new type of value is added to `value.rs`.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;

use super::{
    checks::{base_url, collector_url, database_url, host_name, log_filter, node_name, origin, share},
    table::settings,
    value::{FolderGrant, LogFormat, NodeRole, NodeRoles, RetentionClasses, SecretText, SecretUrl},
};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

settings! {
    /// The gateway's configuration.
    Config {
        /// The roles of this node: `api`, `dispatch` or both. See [Several nodes](#several-nodes).
        roles: NodeRoles = NodeRoles(vec![NodeRole::Api, NodeRole::Dispatch]);
    }

    /// The PostgreSQL database.
    database: DatabaseConfig {
        /// The database: `postgres://user:password@host/database`.
        url: SecretUrl = SecretUrl::default(), check database_url, shown "none; required", also "DATABASE_URL";
        /// Connections of each of the two pools. See [Database](#database).
        max_connections: u32 = 8, in 2..=1_000;
    }

    /// The HTTP server.
    http: HttpConfig {
        /// The IP address and port to listen on. Port 0 takes a free port; the log says which.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080));
        /// Longest request body. An uploaded component counts too.
        max_body_bytes: usize = 16 << 20, in 1_024..=256 * MIB;
        /// Where others reach the gateway, such as `https://angarium.example.org`. Callback URLs begin with it. See
        /// [Receipts](#receipts).
        public_url: Option<String> = None, check base_url;
        /// Origins, such as `https://console.example.org`, whose pages may call the API from a browser. Each is written
        /// as browsers write it, without `*`.
        cors_origins: Vec<String> = Vec::new(), check origin;
        /// Time for a request's head, from its first byte to its last; then 408.
        header_timeout_ms: u32 = 10_000, in 100..=3_600_000;
        /// Time for a request's body; then 408. A third of it may pass without a byte.
        body_timeout_ms: u32 = 30_000, in 100..=3_600_000;
        /// Time that a client's connection may wait for its next request. Set it longer than the proxy keeps its own
        /// idle connections.
        idle_timeout_ms: u32 = 75_000, in 100..=3_600_000;
        /// Clients' connections. At most half of the files that the process may open are used for them. See
        /// [Clients' connections](#clients-connections).
        max_connections: Option<usize> = None, in 1..=1_000_000, shown "half of the open files, at most 8192";
        /// Connections from one IPv4 address, or from one /64 network of IPv6.
        max_connections_per_address: Option<usize> = None, in 1..=1_000_000, shown "half of all";
        /// Request bodies in memory at a time, and as many bytes again of answers longer than 16 KiB. At least twice
        /// `http.max_body_bytes`.
        max_body_bytes_in_flight: Option<usize> = None, shown "eight times `http.max_body_bytes`";
    }

    /// The key-encryption keys.
    secrets: SecretsConfig {
        /// The key-encryption key: 32 bytes in base64. Older keys follow, separated by commas. `serve` needs either this
        /// or `secrets.key_file`.
        key: Option<SecretText> = None;
        /// A file of such keys, one a line, the current key first.
        key_file: Option<PathBuf> = None;
    }

    /// The provider components.
    providers: ProvidersConfig {
        /// Folder of components (`*.wasm`) that are installed and activated at the start.
        folder: Option<PathBuf> = None;
        /// Folder for compiled components; without it every start compiles them again. A file in it is used only if
        /// it is marked with the current key-encryption key, so a rotation compiles once more. Files of versions that
        /// are not installed are removed at the start.
        cache_folder: Option<PathBuf> = None;
        /// Hosts that a component of the folder is granted when it is first installed: `none`, or the hosts that it
        /// `declared`.
        grant: FolderGrant = FolderGrant::None;
    }

    /// The egress guard.
    egress: EgressConfig {
        /// Networks, such as `10.1.0.0/16`, that requests may go to although they are not public.
        allow: Vec<IpNet> = Vec::new();
    }

    /// Trust in servers.
    tls: TlsConfig {
        /// PEM file of certificate authorities that are trusted in addition to Mozilla's. It is read at the start.
        ca_file: Option<PathBuf> = None;
    }

    /// Deliveries under way.
    dispatch: DispatchConfig {
        /// Total time of one attempt. [Mail servers](#mail-servers) have a time for each step instead.
        deadline_ms: u64 = 30_000, in 100..=600_000;
        /// Deliveries that this node holds at a time. See [Order and fairness](#order-and-fairness).
        max_in_flight: usize = 16_384, in 1..=u64::MAX;
        /// Memory for messages on this node. See [Memory](#memory).
        max_in_flight_bytes: usize = 384 << 20, in 16 * MIB..=TIB;
        /// Requests under way through one connection, from this node. Further deliveries wait.
        max_in_flight_per_connection: usize = 512, in 1..=u64::MAX;
    }

    /// The queue.
    queue: QueueConfig {
        /// Time that a node's lease on deliveries lasts unless renewed. At least three times `dispatch.deadline_ms`, so
        /// that a slow send does not outlive its lease.
        lease_ms: u64 = 90_000;
        /// Time between two looks of an idle node for due work.
        poll_ms: u64 = 100, in 1..=60_000;
    }

    /// How long messages are kept.
    retention: RetentionConfig {
        /// Time between two looks for data past its retention.
        interval_s: u64 = 600, in 1..=86_400;
        /// Classes of tenants by name, each with `ledger_days` and `content_days`: `[retention.classes.NAME]` in the
        /// file, `NAME = { ledger_days = 7, content_days = 1 }` in the variable. See [Retention](#retention).
        classes: RetentionClasses = RetentionClasses::default(), shown "`default`: 90 and 30 days";
    }

    /// Rules and scripts.
    rules: RulesConfig {
        /// Folder of scripts (`*.rhai`) that are live for all tenants. Scripts in a subfolder are live for the tenant of
        /// that name. The folder is watched. See [operators' scripts](rules.md#operators-scripts).
        folder: Option<PathBuf> = None;
        /// Time until a message whose `condition` did not hold is asked again.
        condition_interval_ms: u32 = 30_000, in 100..=86_400_000;
        /// Processor time of all rules and scripts of one message. See [time together](rule-scripts.md#time-together).
        message_time_ms: u32 = 20, in 1..=1_000;
        /// Processor time of all rules and scripts of one tenant in a second, on this node. Of the time on the clock for
        /// which they hold a turn, at least a quarter counts.
        tenant_time_ms: u32 = 200, in 1..=60_000;
    }

    /// Logs.
    log: LogConfig {
        /// Form of the log: `text` or `json`.
        format: LogFormat = LogFormat::Text;
        /// Levels, and modules with levels, such as `info,angarium=debug`. A word that is not a level is refused.
        filter: String = "info".to_owned(), check log_filter;
    }

    /// Traces.
    telemetry: TelemetryConfig {
        /// Base URL of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`. Without it there are no
        /// traces. See [Traces](#traces).
        otlp_endpoint: Option<SecretUrl> = None, check collector_url, also "OTEL_EXPORTER_OTLP_ENDPOINT";
        /// Share of the traces that begin here which is recorded, 0 to 1. A trace that began elsewhere brings its own
        /// decision.
        trace_sample_ratio: f64 = 1.0, check share;
    }

    /// This process among the others.
    node: NodeConfig {
        /// Name of this process in the log.
        name: String = machine_name(), check node_name, shown "`HOSTNAME`, else `angarium`";
        /// Name that SMTP's EHLO gives where a connection's configuration has none, such as `mail.example.org`.
        ehlo_name: String = String::new(), check host_name, shown "`localhost`";
    }
}

fn machine_name() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| "angarium".to_owned())
}
