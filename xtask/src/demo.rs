//! `cargo xtask demo`: the main job on this machine, from nothing to a table of every attempt.

mod scenario;
mod table;

use anyhow::{Context, Result, ensure};

use crate::database::{Cluster, Options};
use crate::gateway::{self, Gateway, Settings};
use crate::progress::{note, step};
use crate::project::{self, Profile};
use scenario::{Outcome, Receivers};

const DATABASE: &str = "angarium_demo";
const SCOPES: &str = "messages:write,messages:read,connections:write,connections:read,routes:write,routes:read,providers:read,audit:read,rules:write,rules:read";

/// Sets everything up, sends, shows, and with `once` ends there; else stays until Ctrl-C or SIGTERM.
pub fn run(once: bool) -> Result<()> {
    project::prepare_toolchain()?;
    let providers = project::build_providers()?;
    let binary = project::build_gateway(Profile::Dev)?;
    step("starting the database");
    let cluster = Cluster::start(Options::demo(project::root()))?;
    cluster.drop_database(DATABASE)?;
    let settings = Settings {
        binary,
        folder: project::state(),
        database: cluster.create_database(DATABASE, None)?,
        providers,
        cache: project::state().join("components"),
        roles: &["api", "dispatch"],
        name: "demo".into(),
        listen: gateway::free_address()?,
        log_filter: "info",
        extra: String::new(),
        environment: vec![],
    };
    tokio::runtime::Runtime::new()?.block_on(perform(settings, once))
}

async fn perform(settings: Settings, once: bool) -> Result<()> {
    step("preparing the database: tables, a tenant, a key");
    settings.migrate()?;
    let key = settings.create_key("demo", SCOPES)?;
    step("starting the gateway");
    let gateway = Gateway::start(settings).await?;
    let outcomes =
        deliver(&gateway, &key).await.with_context(|| format!("the gateway's log says:\n{}", gateway.log_tail()));
    let (outcomes, receivers) = outcomes?;
    println!("{}", table::render(&outcomes));
    let complaints: Vec<_> = outcomes.iter().filter_map(Outcome::complaint).collect();
    if !once {
        stay(gateway, &key, &receivers, &complaints).await?;
    } else {
        step("stopping");
        gateway.stop()?;
    }
    ensure!(complaints.is_empty(), "not every message ended as it should:\n  {}", complaints.join("\n  "));
    Ok(())
}

async fn deliver(gateway: &Gateway, key: &str) -> Result<(Vec<Outcome>, Receivers)> {
    step("starting receivers: two mail servers, a webhook endpoint, an SMS provider");
    let mut receivers = Receivers::start().await?;
    step("creating connections and routes, sending messages");
    let outcomes = scenario::play(&gateway.api(key), &mut receivers).await?;
    note(receivers.summary());
    Ok((outcomes, receivers))
}

async fn stay(mut gateway: Gateway, key: &str, receivers: &Receivers, complaints: &[String]) -> Result<()> {
    for complaint in complaints {
        note(format_args!("NOT as it should: {complaint}"));
    }
    let address = gateway.address();
    println!("The gateway runs. Its API reference:  http://{address}/docs");
    println!("A key for it:                         {key}");
    println!("Its log:                              {}", gateway.log().display());
    println!("Send a message yourself:");
    println!("  curl http://{address}/v1/messages -H 'Authorization: Bearer {key}' \\");
    println!("    -H 'Content-Type: application/json' \\");
    println!(
        "    -d '{{\"channel\":\"webhook\",\"to\":\"{}\",\"content\":{{\"payload\":{{\"hello\":\"you\"}}}}}}'",
        receivers.webhook_url()
    );
    println!("Ctrl-C stops everything.");
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(500));
    let stopped = stop_signal();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            stopped = &mut stopped => {
                stopped?;
                break;
            }
            _ = tick.tick() => {
                let ended = gateway.ended()?;
                ensure!(ended.is_none(), "the gateway ended by itself:\n{}", gateway.log_tail());
            }
        }
    }
    step("stopping");
    gateway.stop()
}

/// Waits for Ctrl-C or SIGTERM.
pub async fn stop_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
