//! The command line. `serve`, `migrate`, `tenant`, `key` and `secret` speak to the database, since they are
//! an operator's; everything else speaks HTTP like any other client, and can do nothing more.

mod audit;
mod backtest;
mod client;
mod completions;
mod config;
mod connection;
mod database;
mod dead_letter;
mod experiment;
mod health;
mod job;
mod key;
mod man;
mod message;
mod os_user;
mod output;
mod provider;
mod ready;
mod route;
mod rules;
mod secret;
mod send;
mod serve;
mod stats;
mod tail;
mod tenant;
mod versions;

use std::{
    env,
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{app::error::UseCaseError, node::config::ConfigError, node::telemetry::TelemetryError};
use angarium_domain::ids::InvalidId;
use angarium_store::StoreError;
use output::Output;

/// Angarium, a self-hosted delivery gateway.
#[derive(Debug, Parser)]
#[command(name = "angarium", version, arg_required_else_help = true)]
struct Cli {
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM.
    Serve(serve::Serve),
    /// Bring the database's schema to this version.
    Migrate(database::Access),
    /// Tenants, with messages, connections and routes of their own (on the database).
    Tenant(tenant::TenantArgs),
    /// API keys (on the database).
    Key(key::Key),
    /// Stored secrets under the key-encryption key (on the database).
    Secret(secret::SecretArgs),
    /// A tenant's accounts at providers.
    Connection(connection::ConnectionArgs),
    /// Which connection serves a channel.
    Route(route::RouteArgs),
    /// Declarative rules; and tests of a folder of scripts.
    Rules(rules::RulesArgs),
    /// A tenant's scripts.
    Scripts(rules::ScriptsArgs),
    /// The provider components.
    Provider(provider::Provider),
    /// Send a message.
    Send(Box<send::Send>),
    /// Messages that were sent.
    Message(message::MessageArgs),
    /// Every try of a message.
    Attempts(message::Attempts),
    /// Deliveries that ended without success: show, replay or discard them.
    DeadLetters(dead_letter::DeadLetters),
    /// The audit: changes of a tenant or of the operators, and readings of content.
    Audit(audit::Audit),
    /// Counts, rates, latencies and cost over a time.
    Stats(Box<stats::Stats>),
    /// How the connections fare: rates, latencies, the last error.
    Health(health::HealthArgs),
    /// Whether a node can serve; for health checks.
    Ready(ready::ReadyArgs),
    /// Follow what happens, one line an event (with --json one object a line).
    Tail(tail::Tail),
    /// The gateway's configuration.
    Config(config::Configuration),
    /// Print the completions of a shell.
    Completions(completions::Completions),
    /// Write the manual, a page for each command.
    Man(man::ManPages),
}

/// The reason for which a command ended without success; the text is for the person that typed it.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    UseCase(#[from] UseCaseError),
    #[error("{0}")]
    Id(#[from] InvalidId),
    #[error("{0}")]
    Said(String),
}

impl CliError {
    fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }
}

/// The number of tasks that run before sockets are looked at again. A task may make a component's call, so with the
/// usual 61 of them, new arrivals would wait for milliseconds at each step.
const POLLS_BETWEEN_EVENTS: u32 = 8;

/// Runs the command of the process's arguments.
#[must_use]
pub fn run() -> ExitCode {
    let matches = without_empty_variables(Cli::command(), &|name| env::var_os(name)).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let runtime = tokio::runtime::Builder::new_multi_thread().event_interval(POLLS_BETWEEN_EVENTS).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("the system gives no threads: {error}")),
    };
    match runtime.block_on(execute(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string()),
    }
}

/// Has no flag read an empty variable: it counts as unset, as it does for settings.
fn without_empty_variables(command: clap::Command, value: &dyn Fn(&OsStr) -> Option<OsString>) -> clap::Command {
    let command = command.mut_args(|arg| {
        let is_empty = arg.get_env().and_then(value).is_some_and(|value| value.is_empty());
        if is_empty { arg.env(None::<&'static str>) } else { arg }
    });
    command.mut_subcommands(|command| without_empty_variables(command, value))
}

async fn execute(cli: Cli) -> Result<(), CliError> {
    let output = Output { json: cli.json };
    match cli.command {
        Command::Serve(command) => command.run().await,
        Command::Migrate(access) => access.migrate(&output).await,
        Command::Tenant(command) => command.run(&output).await,
        Command::Key(command) => command.run(&output).await,
        Command::Secret(command) => command.run(&output).await,
        Command::Connection(command) => command.run(&output).await,
        Command::Route(command) => command.run(&output).await,
        Command::Rules(command) => command.run(&output).await,
        Command::Scripts(command) => command.run(&output).await,
        Command::Provider(command) => command.run(&output).await,
        Command::Send(command) => command.run(&output).await,
        Command::Message(command) => command.run(&output).await,
        Command::Attempts(command) => command.run(&output).await,
        Command::DeadLetters(command) => command.run(&output).await,
        Command::Audit(command) => command.run(&output).await,
        Command::Stats(command) => command.run(&output).await,
        Command::Health(command) => command.run(&output).await,
        Command::Ready(command) => command.run(&output).await,
        Command::Tail(command) => command.run(&output).await,
        Command::Config(command) => command.run(&output),
        Command::Completions(command) => {
            command.run(&output);
            Ok(())
        }
        Command::Man(command) => command.run(),
    }
}

fn failed(reason: &str) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let variables_of = |name: &str, empty: &'static str| {
            let value = move |name: &OsStr| Some(OsString::from(if name == empty { "" } else { "x" }));
            let command = without_empty_variables(Cli::command(), &value);
            let command = command.find_subcommand(name).unwrap();
            command.get_arguments().filter_map(|arg| arg.get_env()).map(OsStr::to_owned).collect::<Vec<_>>()
        };
        for name in ["migrate", "serve"] {
            assert_eq!(variables_of(name, ""), ["ANGARIUM_CONFIG"]);
            assert!(variables_of(name, "ANGARIUM_CONFIG").is_empty(), "{name}");
        }
    }
}
