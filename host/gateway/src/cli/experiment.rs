//! Candidates: `angarium scripts shadow`, `angarium rules canary` and the like.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    client::ApiClient,
    connection::paged,
    output::{Column, Output},
    rules::{RULE, read_json, rule_path, script_path},
};

#[derive(Debug, Subcommand)]
pub enum ScriptExperiment {
    /// Have a version asked beside the one that is live; it is not followed.
    Shadow {
        script: String,
        #[arg(long)]
        version: u32,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Let a version decide about a part of the recipients.
    Canary {
        script: String,
        #[arg(long)]
        version: u32,
        /// The share of recipients, 1 to 99.
        #[arg(long)]
        percentage: u8,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show the variant's results beside the live version's.
    Candidate(Named),
    /// Show a shadow's differing answers, the latest first.
    Differences(Paged),
    /// Try the candidate no longer.
    End(Named),
}

#[derive(Debug, Subcommand)]
pub enum RuleExperiment {
    /// Ask a change of a rule, a file of JSON, beside the live version; it is not followed.
    Shadow {
        /// The rule's id or uid.
        rule: String,
        /// The current variant by default.
        file: Option<PathBuf>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Let a change of a rule, a file of JSON, count for a part of the recipients.
    Canary {
        /// The rule's id or uid.
        rule: String,
        /// The current variant by default.
        file: Option<PathBuf>,
        /// The share of recipients, 1 to 99.
        #[arg(long)]
        percentage: u8,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Put a rule's candidate in its place.
    Promote(Named),
    /// Return to the version of a rule before.
    Rollback(Named),
    /// Show the results of a rule's variant beside the live version's.
    Candidate(Named),
    /// Show a shadow's differing decisions, the latest first.
    Differences(Paged),
    /// Try a rule's candidate no longer.
    End(Named),
}

#[derive(Debug, Args)]
pub struct Named {
    /// The script's name; the rule's id or uid.
    name: String,
    #[command(flatten)]
    client: ApiClient,
}

#[derive(Debug, Args)]
pub struct Paged {
    /// The script's name; the rule's id or uid.
    name: String,
    /// The page to show: the cursor of the previous one.
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    client: ApiClient,
}

const CANDIDATE: [Column<'_>; 8] = [
    ("of", "/of"),
    ("version", "/version"),
    ("mode", "/mode"),
    ("percentage", "/percentage"),
    ("started", "/started_at"),
    ("ended", "/ended_at"),
    ("different", "/different"),
    ("not asked", "/dropped"),
];
const ARM: [Column<'_>; 6] = [
    ("", "/arm"),
    ("asked", "/asked"),
    ("refused", "/refused"),
    ("held", "/held"),
    ("faults", "/faults"),
    ("deliveries", "/deliveries"),
];
const DIFFERENCE: [Column<'_>; 5] =
    [("at", "/at"), ("message", "/message"), ("hook", "/hook"), ("live", "/live"), ("candidate", "/candidate")];

impl ScriptExperiment {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self {
            Self::Shadow { script, version, client } => {
                let body = json!({"version": version});
                show(&client.post(&script_path(&script, "shadow"), &body).await?, output);
            }
            Self::Canary { script, version, percentage, client } => {
                let body = json!({"version": version, "percentage": percentage});
                show(&client.post(&script_path(&script, "canary"), &body).await?, output);
            }
            Self::Candidate(Named { name, client }) => {
                show(&client.get(&script_path(&name, "candidate")).await?, output);
            }
            Self::Differences(Paged { name, cursor, client }) => {
                let path = paged(&script_path(&name, "differences"), cursor);
                output.list(&client.get(&path).await?, &DIFFERENCE);
            }
            Self::End(Named { name, client }) => drop(client.delete(&script_path(&name, "candidate")).await?),
        }
        Ok(())
    }
}

impl RuleExperiment {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        let path = |rule: &str, what: &str| format!("{}/{what}", rule_path(rule));
        match self {
            Self::Shadow { rule, file, client } => {
                let body = change(file)?;
                show(&client.post(&path(&rule, "shadow"), &body).await?, output);
            }
            Self::Canary { rule, file, percentage, client } => {
                let mut body = change(file)?;
                body["percentage"] = json!(percentage);
                show(&client.post(&path(&rule, "canary"), &body).await?, output);
            }
            Self::Promote(Named { name, client }) => {
                output.one(&client.post(&path(&name, "promote"), &json!({})).await?, &RULE);
            }
            Self::Rollback(Named { name, client }) => {
                output.one(&client.post(&path(&name, "rollback"), &json!({})).await?, &RULE);
            }
            Self::Candidate(Named { name, client }) => show(&client.get(&path(&name, "candidate")).await?, output),
            Self::Differences(Paged { name, cursor, client }) => {
                let path = paged(&path(&name, "differences"), cursor);
                output.list(&client.get(&path).await?, &DIFFERENCE);
            }
            Self::End(Named { name, client }) => drop(client.delete(&path(&name, "candidate")).await?),
        }
        Ok(())
    }
}

fn change(file: Option<PathBuf>) -> Result<Value, CliError> {
    Ok(match file {
        Some(file) => json!({"rule": read_json(&file)?}),
        None => json!({}),
    })
}

/// The candidate, and for people both arms below one another.
fn show(candidate: &Value, output: &Output) {
    output.one(candidate, &CANDIDATE);
    if output.json {
        return;
    }
    let arms = ["candidate", "live"].map(|arm| {
        let mut row = candidate[arm].clone();
        row["arm"] = json!(arm);
        row["deliveries"] = json!(states(&candidate[arm]["deliveries"]));
        row
    });
    output.rows(&json!(arms), &ARM);
}

fn states(deliveries: &Value) -> String {
    let states = deliveries.as_object().into_iter().flatten().map(|(state, count)| format!("{state} {count}"));
    states.collect::<Vec<_>>().join(", ")
}
