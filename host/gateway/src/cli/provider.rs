//! `angarium provider …`. Changes need a key with the scope `operator`.

mod check;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    CliError,
    client::{ApiClient, segment},
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
        client: ApiClient,
    },
    /// Show one with its versions.
    Get {
        /// Its name.
        name: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Upload a component.
    Install {
        /// The `.wasm` file.
        component: PathBuf,
        /// Let it serve at once.
        #[arg(long)]
        activate: bool,
        /// Allows a lower version than the one that serves.
        #[arg(long, requires = "activate")]
        allow_downgrade: bool,
        /// Allows the same version with other bytes.
        #[arg(long)]
        replace: bool,
        /// The decision about hosts that the provider was granted for another component: `keep` them if you trust the
        /// new one as the old, or grant `none` yet.
        #[arg(long, requires = "activate", value_parser = ["keep", "none"])]
        grants: Option<String>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Put an installed version in service, out of any quarantine.
    Activate {
        /// The provider's name.
        name: String,
        /// The SHA-256 of the component, or the beginning of it.
        digest: String,
        /// Allows a lower version than the one that serves.
        #[arg(long)]
        allow_downgrade: bool,
        /// The decision about hosts that the provider was granted for another component.
        #[arg(long, value_parser = ["keep", "none"])]
        grants: Option<String>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Remove a version, or a provider with all of its versions.
    Uninstall {
        /// The provider's name.
        name: String,
        /// The SHA-256 of the version, or the beginning of it; left out, all go.
        digest: Option<String>,
        /// Also while enabled connections are accounts at it.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Check a component without a gateway: it is admitted, described and called with a sample message.
    Check(check::Check),
    /// Let the component before the present one serve again.
    Rollback {
        /// The provider's name.
        name: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Say to which hosts its requests may go: these and no others.
    Grant {
        /// The provider's name.
        name: String,
        /// The patterns, as the descriptor declares them.
        hosts: Vec<String>,
        #[command(flatten)]
        client: ApiClient,
    },
}

const COLUMNS: [Column<'_>; 8] = [
    ("name", "/name"),
    ("serving version", "/serving"),
    ("quarantined", "/quarantined"),
    ("missing grants", "/missing_grants"),
    ("channels", "/channels"),
    ("newest version", "/versions/0/version"),
    ("granted hosts", "/granted_hosts"),
    ("declared hosts", "/declared_hosts"),
];

const VERSIONS: [Column<'_>; 7] = [
    ("version", "/version"),
    ("digest", "/digest"),
    ("reason", "/quarantine_reason"),
    ("quarantined", "/quarantined_at"),
    ("not serving this tenant until", "/quarantined_until"),
    ("not serving", "/quarantined_tenants"),
    ("installed", "/installed_at"),
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
            Command::Install { component, activate, allow_downgrade, replace, grants, client } => {
                let mut path = format!("{PATH}?activate={activate}&replace={replace}");
                if allow_downgrade {
                    path.push_str("&allow_downgrade=true");
                }
                if let Some(grants) = grants {
                    path = format!("{path}&grants={grants}");
                }
                let provider = client.upload(&path, &component).await?;
                warn_of_missing_grants(&provider, &digest_of(&component)?);
                one(provider, output);
            }
            Command::Activate { name, digest, allow_downgrade, grants, client } => {
                let digest = full_digest(&client.get(&path(&name)).await?, &digest)?;
                let mut body = json!({"digest": digest, "allow_downgrade": allow_downgrade});
                if let Some(grants) = grants {
                    body["grants"] = json!(grants);
                }
                let provider = client.post(&format!("{}/activate", path(&name)), &body).await?;
                warn_of_missing_grants(&provider, &digest);
                one(provider, output);
            }
            Command::Uninstall { name, digest, force, client } => {
                let place = match digest {
                    Some(digest) => {
                        let digest = full_digest(&client.get(&path(&name)).await?, &digest)?;
                        format!("{}/versions/{digest}", path(&name))
                    }
                    None => path(&name),
                };
                client.delete(&format!("{place}?force={force}")).await?;
                output.one(&json!({"uninstalled": name}), &[("uninstalled", "/uninstalled")]);
            }
            Command::Check(check) => return check.run(output),
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

/// The digest of the version that begins so.
fn full_digest(provider: &Value, beginning: &str) -> Result<String, CliError> {
    let versions = provider["versions"].as_array().into_iter().flatten();
    let digests: Vec<_> =
        versions.filter_map(|it| it["digest"].as_str()).filter(|it| it.starts_with(beginning)).collect();
    match digests.as_slice() {
        [digest] => Ok((*digest).to_owned()),
        [] => Err(CliError::said(format!(
            "no version's digest begins with `{beginning}`: `angarium provider get` lists them"
        ))),
        several => Err(CliError::said(format!("{} versions' digests begin with `{beginning}`", several.len()))),
    }
}

fn digest_of(component: &Path) -> Result<String, CliError> {
    let bytes = std::fs::read(component);
    let bytes = bytes.map_err(|error| CliError::said(format!("the component {}: {error}", component.display())))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

/// Prints beside the answer the hosts that the version may not reach yet, with the command that grants them.
fn warn_of_missing_grants(provider: &Value, digest: &str) {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(|it| format!("'{it}'"))).collect()
    };
    let version = provider["versions"].as_array().into_iter().flatten().find(|it| it["digest"] == digest);
    let missing = version.map(|it| texts(&it["missing_grants"])).unwrap_or_default();
    if missing.is_empty() {
        return;
    }
    let name = provider["name"].as_str().unwrap_or_default();
    let granted = [texts(&provider["granted_hosts"]), missing.clone()].concat().join(" ");
    eprintln!(
        "warning: the version declares hosts that are not granted, and what goes there waits: {}\n  \
         angarium provider grant {name} {granted}",
        missing.join(", ")
    );
}

fn one(provider: Value, output: &Output) {
    output.one(&readable(provider, output), &COLUMNS);
}

/// Returns a provider, or a page of them, with the table's additional values: the version that serves, if one does, and
/// those in quarantine.
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
        .filter(|version| !version["quarantined_at"].is_null() || !version["quarantined_until"].is_null())
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
