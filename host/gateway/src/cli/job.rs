//! `angarium message job …`, and the progress of replays of dead letters, which are jobs as well.

use std::{io::IsTerminal, time::Duration};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    CliError,
    client::{ApiClient, segment},
    connection::{paged, raw_json},
    output::{Column, Output},
};

const JOBS: &str = "/v1/message-jobs";
/// How often a job that is followed is looked at.
const LOOK: Duration = Duration::from_millis(500);

pub const PROGRESS: [Column<'_>; 10] = [
    ("id", "/id"),
    ("action", "/action"),
    ("state", "/state"),
    ("matched", "/matched"),
    ("done", "/done"),
    ("skipped", "/skipped"),
    ("outcomes", "/outcomes"),
    ("created", "/created_at"),
    ("ended", "/finished_at"),
    ("reason", "/reason"),
];

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Begin a job, or count its messages with `--dry-run`.
    Start(JobStart),
    /// Show jobs, the newest first.
    List {
        /// The page to show: the cursor of the previous one.
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show the progress of a job.
    Get(JobName),
    /// Watch a job until it ends.
    Watch(JobName),
    /// Stop a job; its actions so far stay.
    Cancel(JobName),
}

/// Its fields are the request's.
#[derive(Debug, Args, Serialize)]
pub struct JobStart {
    #[arg(value_parser = ["cancel", "retry", "resolve"])]
    action: String,
    /// The messages, as JSON: {"state": "failed", "connection": "main-smtp"}.
    #[arg(long, value_parser = raw_json, conflicts_with = "messages")]
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<Box<RawValue>>,
    /// The id of a message; repeat it for several.
    #[arg(long = "message", required_unless_present = "filter")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<String>,
    /// The decision about unknown messages, with `resolve`.
    #[arg(long, value_parser = ["sent", "failed", "again"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    resolution: Option<String>,
    /// How many messages it acts on in a second at most; as many as it can by default.
    #[arg(long = "rate", value_parser = clap::value_parser!(u32).range(1..=1000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_per_second: Option<u32>,
    /// The most messages, the oldest first.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// The reason; the audit has it, with the key.
    #[arg(long)]
    reason: String,
    /// Count the messages that match, and begin nothing.
    #[arg(long)]
    #[serde(skip)]
    dry_run: bool,
    #[command(flatten)]
    #[serde(skip)]
    client: ApiClient,
}

#[derive(Debug, Args)]
pub struct JobName {
    /// `job_…`
    job: String,
    #[command(flatten)]
    client: ApiClient,
}

impl JobCommand {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self {
            Self::Start(start) if start.dry_run => {
                let answer = start.client.post(&format!("{JOBS}?dry_run=true"), &start).await?;
                output.one(&answer, &[("matched", "/matched")]);
            }
            Self::Start(start) => output.one(&start.client.post(JOBS, &start).await?, &PROGRESS),
            Self::List { cursor, client } => output.list(&client.get(&paged(JOBS, cursor)).await?, &PROGRESS),
            Self::Get(name) => output.one(&name.get().await?, &PROGRESS),
            Self::Watch(name) => output.one(&name.watch().await?, &PROGRESS),
            Self::Cancel(name) => output.one(&name.cancel().await?, &PROGRESS),
        }
        Ok(())
    }
}

impl JobName {
    async fn get(&self) -> Result<Value, CliError> {
        self.client.get(&format!("{JOBS}/{}", segment(&self.job))).await
    }

    pub async fn watch(&self) -> Result<Value, CliError> {
        watch(&self.client, self.get().await?).await
    }

    pub async fn cancel(&self) -> Result<Value, CliError> {
        self.client.post(&format!("{JOBS}/{}/cancel", segment(&self.job)), &json!({})).await
    }
}

/// Waits for the end of a job, with a bar on a terminal. An interruption stops the display, not the job.
pub async fn watch(client: &ApiClient, mut job: Value) -> Result<Value, CliError> {
    let path = format!("{JOBS}/{}", segment(job["id"].as_str().unwrap_or_default()));
    let bar = bar(&job);
    while job["state"] == json!("running") {
        tokio::time::sleep(LOOK).await;
        job = client.get(&path).await?;
        bar.set_position(number(&job["done"]) + number(&job["skipped"]));
        bar.set_message(outcomes(&job["outcomes"]));
    }
    bar.finish_and_clear();
    Ok(job)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// `sent 94, failed 3`
fn outcomes(outcomes: &Value) -> String {
    let counts = outcomes.as_object().into_iter().flatten();
    counts.map(|(state, count)| format!("{state} {count}")).collect::<Vec<_>>().join(", ")
}

fn bar(job: &Value) -> ProgressBar {
    let total = number(&job["matched"]).min(job["limit"].as_u64().unwrap_or(u64::MAX));
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta} {msg}") {
        bar.set_style(style);
    }
    bar
}
