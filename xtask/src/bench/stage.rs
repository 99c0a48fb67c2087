//! The fixtures of every measurement: a durable cluster, a migrated template, gateways with one tenant.

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::api::Api;
use crate::database::{Cluster, Options};
use crate::gateway::{Gateway, Settings};
use crate::progress::step;
use crate::project;

const TEMPLATE: &str = "bench_template";
/// One connection may have ten thousand requests under way: `slow_provider` has as many.
const ROOM: &str = "[dispatch]\nmax_in_flight_per_connection = 10000\n";
const SCOPES: &str =
    "messages:write,messages:read,connections:write,connections:read,routes:write,routes:read,rules:write,rules:read";

/// The parts that are shared by all measurements.
#[derive(Debug)]
pub struct Stage {
    pub cluster: Cluster,
    pub folder: PathBuf,
    settings: Settings,
    key: String,
}

/// A database of its own with a running gateway on it.
#[derive(Debug)]
pub struct Scene {
    pub gateway: Gateway,
    pub api: Api,
    settings: Settings,
}

pub const API: &[&str] = &["api"];
pub const DISPATCH: &[&str] = &["dispatch"];
pub const BOTH: &[&str] = &["api", "dispatch"];

impl Stage {
    /// Starts the cluster and prepares the template: tables, a tenant, a key.
    pub fn set(binary: PathBuf, providers: PathBuf) -> Result<Self> {
        step("starting a durable database");
        let cluster = Cluster::start_private(&Options::bench(project::root()))?;
        let folder = project::target().join("tmp/bench");
        cluster.drop_database(TEMPLATE)?;
        let settings = Settings {
            binary,
            folder: folder.clone(),
            database: cluster.create_database(TEMPLATE, None)?,
            providers,
            cache: folder.join("components"),
            roles: BOTH,
            name: "bench".into(),
            listen: "127.0.0.1:0".parse()?,
            log_filter: "warn",
            extra: ROOM.into(),
            environment: vec![],
        };
        settings.migrate()?;
        let key = settings.create_key("bench", SCOPES)?;
        Ok(Self { cluster, folder, settings, key })
    }

    /// A fresh database, a gateway in those roles, and the webhook connections and route of the benchmark.
    pub async fn scene(&self, name: &str, roles: &'static [&'static str], sink: &super::sink::Sink) -> Result<Scene> {
        let database = format!("bench_{name}");
        self.cluster.drop_database(&database)?;
        let mut settings = self.settings.clone();
        settings.database = self.cluster.create_database(&database, Some(TEMPLATE))?;
        settings.name = format!("bench-{name}");
        settings.roles = roles;
        settings.listen = free_port()?;
        let gateway = Gateway::start(settings.clone()).await?;
        let api = gateway.api(&self.key);
        set_up(&api, sink).await.with_context(|| gateway.log_tail())?;
        Ok(Scene { gateway, api, settings })
    }

    /// Stops a scene's gateway and drops its database, so that it costs the next measurement nothing.
    pub fn strike(&self, name: &str, scene: Scene) -> Result<()> {
        scene.gateway.stop()?;
        self.cluster.drop_database(&format!("bench_{name}"))?;
        self.cluster.execute("postgres", "checkpoint").map(drop)
    }

    /// CPU time of the database's processes so far.
    pub fn database_cpu(&self) -> Option<std::time::Duration> {
        super::usage::cpu_of_family(self.cluster.process()?)
    }
}

impl Scene {
    /// A second gateway on the same database.
    pub fn join(&self, roles: &'static [&'static str]) -> Result<Gateway> {
        Gateway::spawn(self.joining(roles)?)
    }

    /// The same, once it is ready.
    pub async fn join_ready(&self, roles: &'static [&'static str]) -> Result<Gateway> {
        Gateway::start(self.joining(roles)?).await
    }

    /// Named by its port: several may have the same roles.
    fn joining(&self, roles: &'static [&'static str]) -> Result<Settings> {
        let mut settings = self.settings.clone();
        settings.roles = roles;
        settings.listen = free_port()?;
        settings.name = format!("{}-{}-{}", settings.name, roles.join("-"), settings.listen.port());
        Ok(settings)
    }

    /// Another tenant with the same connections and route; its key.
    pub async fn tenant(&self, name: &str, sink: &super::sink::Sink) -> Result<String> {
        let key = self.settings.create_key(name, SCOPES)?;
        set_up(&self.gateway.api(&key), sink).await.with_context(|| self.gateway.log_tail())?;
        Ok(key)
    }
}

fn free_port() -> Result<std::net::SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

async fn set_up(api: &Api, sink: &super::sink::Sink) -> Result<()> {
    for (uid, path) in [("quick", "/quick"), ("slow", "/slow")] {
        let connection = json!({
            "uid": uid,
            "provider": "webhook",
            "config": { "url": sink.url(path) },
            "secrets": { "signing_key": "whsec_YmVuY2htYXJrLWJlbmNobWFyay1iZW5jaG1hcms=" },
        });
        api.post("/v1/connections", &connection).await?;
    }
    let route = json!({
        "channel": "webhook",
        "spec": {
            "candidates": [{ "connection": "quick" }],
            "strategy": { "type": "primary" },
            "retry": { "type": "linear", "delay_ms": 1000, "max_attempts": 5 },
        },
    });
    let created = api.post("/v1/routes", &route).await?;
    let id = created["id"].as_str().context("a new route has no id")?;
    api.post(&format!("/v1/routes/{id}/activate"), &json!({ "version": 1 })).await?;
    Ok(())
}

/// A message of about 400 bytes to the quick endpoint.
pub fn message() -> Value {
    json!({
        "channel": "webhook",
        "content": { "payload": {
            "type": "invoice.paid",
            "data": { "invoice": "INV-2026-000123", "amount": "1299.00", "currency": "EUR", "note": "x".repeat(180) },
        } },
        "reference": "invoice:INV-2026-000123",
        "metadata": { "batch": "bench" },
    })
}

/// The same, due in a hundred years.
pub fn later_message() -> Value {
    let mut message = message();
    message["send_at"] = "2125-01-01T00:00:00Z".into();
    message
}

/// A request with that many copies of a message.
pub fn batch(api: &Api, message: &Value, copies: usize) -> Vec<u8> {
    let body = json!({ "messages": vec![message; copies] });
    api.prepare("POST", "/v1/messages/batch", body.to_string().as_bytes())
}

/// A request with one message.
pub fn single(api: &Api, message: &Value) -> Vec<u8> {
    api.prepare("POST", "/v1/messages", message.to_string().as_bytes())
}

/// Returns a request with that many messages whose payloads carry the time.
pub fn stamped_batch(api: &Api, stamp: &str, copies: usize) -> Vec<u8> {
    let message = format!(r#"{{"channel":"webhook","connection":"quick","content":{{"payload":{stamp}}}}}"#);
    let body = format!(r#"{{"messages":[{}]}}"#, vec![message; copies].join(","));
    api.prepare("POST", "/v1/messages/batch", body.as_bytes())
}

/// Returns a request whose payload carries the time.
pub fn stamped(api: &Api, stamp: &str) -> Vec<u8> {
    let body = format!(r#"{{"channel":"webhook","connection":"quick","content":{{"payload":{stamp}}}}}"#);
    api.prepare("POST", "/v1/messages", body.as_bytes())
}
