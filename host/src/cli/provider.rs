//! `angarium provider …`. Changes need a key with the scope `operator`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    CliError,
    client::{Client, segment},
    output::{Column, Output},
};

#[derive(Debug, Args)]
pub struct Provider {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the providers.
    List {
        #[command(flatten)]
        client: Client,
    },
    /// Upload a component.
    Install {
        /// The `.wasm` file.
        component: PathBuf,
        /// Let it serve at once.
        #[arg(long)]
        activate: bool,
        #[command(flatten)]
        client: Client,
    },
    /// Let the component before the present one serve again.
    Rollback {
        name: String,
        #[command(flatten)]
        client: Client,
    },
    /// Say to which hosts its requests may go: these and no others.
    Grant {
        name: String,
        /// As its descriptor declares them.
        hosts: Vec<String>,
        #[command(flatten)]
        client: Client,
    },
}

const COLUMNS: [Column<'_>; 7] = [
    ("name", "/name"),
    ("version", "/version"),
    ("channels", "/channels"),
    ("active", "/active_digest"),
    ("declared hosts", "/declared_hosts"),
    ("granted hosts", "/granted_hosts"),
    ("quarantined", "/quarantine/reason"),
];

impl Provider {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::List { client } => output.list(&client.get(PATH).await?, &COLUMNS),
            Command::Install { component, activate, client } => {
                output.one(&client.upload(&format!("{PATH}?activate={activate}"), &component).await?, &COLUMNS);
            }
            Command::Rollback { name, client } => {
                output.one(&client.post(&format!("{}/rollback", path(&name)), &json!({})).await?, &COLUMNS);
            }
            Command::Grant { name, hosts, client } => {
                output.one(&client.put(&format!("{}/grants", path(&name)), &json!({"hosts": hosts})).await?, &COLUMNS);
            }
        }
        Ok(())
    }
}

const PATH: &str = "/v1/providers";

fn path(name: &str) -> String {
    format!("{PATH}/{}", segment(name))
}
