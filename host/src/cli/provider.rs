//! `angarium provider …`. Changes need a key with the scope `operator`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

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
    /// Show one with its versions.
    Get {
        /// Its name.
        name: String,
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
        /// Also where it is a lower version than the one that serves.
        #[arg(long, requires = "activate")]
        allow_downgrade: bool,
        /// What becomes of the hosts that the provider was granted for another component: `keep` them, if this one is
        /// to be trusted as that was, or grant `none` yet.
        #[arg(long, requires = "activate", value_parser = ["keep", "none"])]
        grants: Option<String>,
        #[command(flatten)]
        client: Client,
    },
    /// Let the component before the present one serve again.
    Rollback {
        /// The provider's name.
        name: String,
        #[command(flatten)]
        client: Client,
    },
    /// Say to which hosts its requests may go: these and no others.
    Grant {
        /// The provider's name.
        name: String,
        /// As its descriptor declares them.
        hosts: Vec<String>,
        #[command(flatten)]
        client: Client,
    },
}

const COLUMNS: [Column<'_>; 7] = [
    ("name", "/name"),
    ("serving version", "/serving"),
    ("channels", "/channels"),
    ("newest version", "/versions/0/version"),
    ("declared hosts", "/declared_hosts"),
    ("granted hosts", "/granted_hosts"),
    ("quarantined", "/quarantined"),
];

const VERSIONS: [Column<'_>; 7] = [
    ("version", "/version"),
    ("digest", "/digest"),
    ("installed", "/installed_at"),
    ("quarantined", "/quarantined_at"),
    ("reason", "/quarantine_reason"),
    ("not serving this tenant until", "/quarantined_until"),
    ("not serving", "/quarantined_tenants"),
];

impl Provider {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::List { client } => output.list(&readable(client.get(PATH).await?, output), &COLUMNS),
            Command::Get { name, client } => {
                let provider = client.get(&path(&name)).await?;
                output.one(&readable(provider.clone(), output), &COLUMNS);
                if !output.json {
                    output.rows(&provider["versions"], &VERSIONS);
                }
            }
            Command::Install { component, activate, allow_downgrade, grants, client } => {
                let mut path = format!("{PATH}?activate={activate}");
                if allow_downgrade {
                    path.push_str("&allow_downgrade=true");
                }
                if let Some(grants) = grants {
                    path = format!("{path}&grants={grants}");
                }
                one(client.upload(&path, &component).await?, output);
            }
            Command::Rollback { name, client } => {
                one(client.post(&format!("{}/rollback", path(&name)), &json!({})).await?, output);
            }
            Command::Grant { name, hosts, client } => {
                one(client.put(&format!("{}/grants", path(&name)), &json!({"hosts": hosts})).await?, output);
            }
        }
        Ok(())
    }
}

const PATH: &str = "/v1/providers";

fn path(name: &str) -> String {
    format!("{PATH}/{}", segment(name))
}

fn one(provider: Value, output: &Output) {
    output.one(&readable(provider, output), &COLUMNS);
}

/// A provider, or a page of them, with what the table shows beside what the API says: the version
/// that serves, if one does, and which are in quarantine.
fn readable(mut answer: Value, output: &Output) -> Value {
    if output.json {
        return answer;
    }
    match answer.get_mut("data").and_then(Value::as_array_mut) {
        Some(page) => page.iter_mut().for_each(annotate),
        None => annotate(&mut answer),
    }
    answer
}

fn annotate(provider: &mut Value) {
    let active = provider["active_digest"].clone();
    let versions = || provider["versions"].as_array().into_iter().flatten();
    let serving =
        versions().find(|version| version["digest"] == active).map_or(Value::Null, |it| it["version"].clone());
    let quarantined: Value = versions()
        .filter(|version| !version["quarantined_at"].is_null())
        .map(|it| {
            let part = |name: &str| it[name].as_str().unwrap_or_default().to_owned();
            Value::String(format!("{}: {}", part("version"), part("quarantine_reason")))
        })
        .collect();
    provider["serving"] = serving;
    provider["quarantined"] = quarantined;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_in_quarantine_serves_no_version() {
        let version = json!({"digest": "aa", "version": "1.0.0", "quarantined_at": "2026-01-01T00:00:00Z",
            "quarantine_reason": "it trapped"});
        let provider = json!({"name": "acme", "version": "1.0.0", "active_digest": null, "versions": [version]});
        let shown = readable(json!({"data": [provider]}), &Output { json: false });
        assert_eq!(shown["data"][0]["serving"], Value::Null);
        assert_eq!(shown["data"][0]["quarantined"], json!(["1.0.0: it trapped"]));
    }
}
