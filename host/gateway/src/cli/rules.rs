//! `angarium rules …` and `angarium scripts …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    backtest::Backtest,
    client::{ApiClient, segment},
    connection::paged,
    experiment::ExperimentArgs,
    output::{Column, Output},
    versions::{VersionCommand, activate},
};
use crate::node::rulefolder;

#[derive(Debug, Args)]
pub struct RulesArgs {
    #[command(subcommand)]
    command: RulesCommand,
}

#[derive(Debug, Subcommand)]
enum RulesCommand {
    /// Compile the scripts of a folder and run their cases; no gateway is needed.
    Test {
        /// The folder, as `rules.folder` names it, with its `modules`.
        #[arg(default_value = "rules")]
        folder: PathBuf,
    },
    /// Show the rules, the newest first.
    List {
        /// The page to show: the cursor of the previous one.
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show one.
    Get {
        /// The rule's id or uid.
        rule: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Make a rule from a file of JSON; it counts at once.
    Create {
        file: PathBuf,
        /// Your own name for it; works wherever the id does.
        #[arg(long)]
        uid: Option<String>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Put a file of JSON in place of a rule.
    Put {
        /// The rule's id or uid.
        rule: String,
        file: PathBuf,
        /// The version that it is a change of.
        #[arg(long)]
        version: Option<u32>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Change a part of a rule by a file of JSON, a merge patch.
    Patch {
        /// The rule's id or uid.
        rule: String,
        file: PathBuf,
        /// The version that it is a change of.
        #[arg(long)]
        version: Option<u32>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Have a rule count again.
    Enable {
        /// The rule's id or uid.
        rule: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Keep a rule, and have it do nothing.
    Disable {
        /// The rule's id or uid.
        rule: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Delete a rule.
    Delete {
        /// The rule's id or uid.
        rule: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show the answers of rules and scripts to a message, a file of JSON; nothing is sent.
    Evaluate {
        file: PathBuf,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Tell what would have become of messages that were sent, had a rule or script been another one.
    Backtest(Box<Backtest>),
    /// Add a version from a file of JSON; it counts for nothing until it is tried or activated.
    AddVersion {
        /// The rule's id or uid.
        rule: String,
        file: PathBuf,
        #[command(flatten)]
        client: ApiClient,
    },
    #[command(flatten)]
    Version(VersionCommand),
    /// Try a version beside the active one.
    Experiment(ExperimentArgs),
}

#[derive(Debug, Args)]
pub struct ScriptsArgs {
    #[command(subcommand)]
    command: ScriptsCommand,
}

#[derive(Debug, Subcommand)]
enum ScriptsCommand {
    /// Show the scripts.
    List {
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show a script with its state, and whether its breaker has switched it off.
    Get {
        script: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Have a script asked again that its breaker has switched off, on every node.
    Reset {
        script: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Add a version from a file; it does nothing until it is activated.
    Put {
        script: String,
        file: PathBuf,
        /// A file of cases, as `rules/cases` has them.
        #[arg(long)]
        cases: Option<PathBuf>,
        /// Activate it at once.
        #[arg(long)]
        activate: bool,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Take a script out of service.
    Retire {
        script: String,
        #[command(flatten)]
        client: ApiClient,
    },
    #[command(flatten)]
    Version(VersionCommand),
    /// Try a version beside the active one.
    Experiment(ExperimentArgs),
}

pub const RULES: &str = "/v1/rules";
const SCRIPTS: &str = "/v1/scripts";
const RULE: [Column<'_>; 6] = [
    ("id", "/id"),
    ("uid", "/uid"),
    ("version", "/version"),
    ("name", "/rule/name"),
    ("priority", "/rule/priority"),
    ("active", "/rule/active"),
];
const RULE_VERSION: [Column<'_>; 3] = [("version", "/version"), ("name", "/rule/name"), ("created", "/created_at")];
const ACCOUNT: [Column<'_>; 4] = [("rule", "/name"), ("hit", "/hit"), ("confidence", "/confidence"), ("why", "/why")];
const EVALUATION: [Column<'_>; 5] = [
    ("accepted", "/accepted"),
    ("reason", "/refused/reason"),
    ("channel", "/channel"),
    ("priority", "/priority"),
    ("send at", "/send_at"),
];
const SCRIPT: [Column<'_>; 5] = [
    ("name", "/name"),
    ("version", "/version"),
    ("state", "/state"),
    ("origin", "/origin"),
    ("created", "/created_at"),
];

const STANDING: [Column<'_>; 6] = [
    ("name", "/name"),
    ("version", "/version"),
    ("state", "/state"),
    ("origin", "/origin"),
    ("hooks", "/hooks"),
    ("off since", "/off_since"),
];

impl RulesArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            RulesCommand::Test { folder } => test(&folder, output)?,
            RulesCommand::List { cursor, client } => output.list(&client.get(&paged(RULES, cursor)).await?, &RULE),
            RulesCommand::Get { rule, client } => output.one(&client.get(&rule_path(&rule)).await?, &RULE),
            RulesCommand::Create { file, uid, client } => {
                let body = json!({"uid": uid, "rule": read_json(&file)?});
                output.one(&client.post(RULES, &body).await?, &RULE);
            }
            RulesCommand::Put { rule, file, version, client } => {
                let body = json!({"version": version, "rule": read_json(&file)?});
                output.one(&client.put(&rule_path(&rule), &body).await?, &RULE);
            }
            RulesCommand::Backtest(backtest) => backtest.run(output).await?,
            RulesCommand::AddVersion { rule, file, client } => {
                let body = json!({"rule": read_json(&file)?});
                output.one(&client.post(&format!("{}/versions", rule_path(&rule)), &body).await?, &RULE_VERSION);
            }
            RulesCommand::Version(version) => version.run(RULES, &RULE, output).await?,
            RulesCommand::Experiment(experiment) => experiment.run(RULES, output).await?,
            RulesCommand::Patch { rule, file, version, client } => {
                let body = json!({"version": version, "rule": read_json(&file)?});
                output.one(&client.patch(&rule_path(&rule), &body).await?, &RULE);
            }
            RulesCommand::Enable { rule, client } => output.one(&switch(&client, &rule, true).await?, &RULE),
            RulesCommand::Disable { rule, client } => output.one(&switch(&client, &rule, false).await?, &RULE),
            RulesCommand::Delete { rule, client } => drop(client.delete(&rule_path(&rule)).await?),
            RulesCommand::Evaluate { file, client } => {
                let answer = client.post(&format!("{RULES}/evaluate"), &read_json(&file)?).await?;
                output.one(&answer, &EVALUATION);
                if !output.json {
                    output.rows(&answer["rules"], &ACCOUNT);
                }
            }
        }
        Ok(())
    }
}

impl ScriptsArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            ScriptsCommand::List { client } => output.list(&client.get(SCRIPTS).await?, &SCRIPT),
            ScriptsCommand::Get { script, client } => {
                output.one(&client.get(&format!("{SCRIPTS}/{}", segment(&script))).await?, &STANDING);
            }
            ScriptsCommand::Reset { script, client } => {
                output.one(&client.post(&script_path(&script, "reset"), &json!({})).await?, &STANDING);
            }
            ScriptsCommand::Put { script, file, cases, activate: at_once, client } => {
                let mut body = json!({"source": read(&file)?});
                if let Some(cases) = cases {
                    body["cases"] = read_json(&cases)?["cases"].take();
                }
                let mut answer = client.post(&script_path(&script, "versions"), &body).await?;
                if at_once {
                    answer = activate(&client, SCRIPTS, &script, &answer["version"]).await?;
                }
                output.one(&answer, &SCRIPT);
            }
            ScriptsCommand::Version(version) => version.run(SCRIPTS, &SCRIPT, output).await?,
            ScriptsCommand::Experiment(experiment) => experiment.run(SCRIPTS, output).await?,
            ScriptsCommand::Retire { script, client } => {
                drop(client.delete(&format!("{SCRIPTS}/{}", segment(&script))).await?);
            }
        }
        Ok(())
    }
}

fn test(folder: &std::path::Path, output: &Output) -> Result<(), CliError> {
    let unreadable = |error| CliError::said(format!("the folder {}: {error}", folder.display()));
    let (mut passed, mut failed) = (0, 0);
    let found = rulefolder::read(folder).map_err(unreadable)?;
    for (script, tried) in found.tried() {
        passed += tried.passed.len();
        failed += tried.problems.len();
        output.text(&format!("{}", script.file.display()));
        tried.passed.iter().chain(&tried.problems).for_each(|line| output.text(&format!("  {line}")));
    }
    output.text(&format!("{passed} passed, {failed} failed"));
    if failed == 0 { Ok(()) } else { Err(CliError::said("the scripts are not as their cases want them")) }
}

async fn switch(client: &ApiClient, rule: &str, active: bool) -> Result<Value, CliError> {
    client.patch(&rule_path(rule), &json!({"rule": {"active": active}})).await
}

pub fn read(file: &std::path::Path) -> Result<String, CliError> {
    std::fs::read_to_string(file).map_err(|error| CliError::said(format!("the file {}: {error}", file.display())))
}

pub fn read_json(file: &std::path::Path) -> Result<Value, CliError> {
    let text = read(file)?;
    serde_json::from_str(&text).map_err(|error| CliError::said(format!("the file {}: {error}", file.display())))
}

fn rule_path(rule: &str) -> String {
    format!("{RULES}/{}", segment(rule))
}

fn script_path(script: &str, what: &str) -> String {
    format!("{SCRIPTS}/{}/{what}", segment(script))
}
