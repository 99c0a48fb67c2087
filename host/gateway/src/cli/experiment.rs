//! `angarium rules experiment …` and `angarium scripts experiment …`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    client::{ApiClient, segment},
    connection::paged,
    output::{Column, Output},
};

#[derive(Debug, Args)]
pub struct ExperimentArgs {
    #[command(subcommand)]
    command: ExperimentCommand,
}

#[derive(Debug, Subcommand)]
enum ExperimentCommand {
    /// Try a version beside the active one. As a shadow it is asked, and not followed.
    Begin {
        /// The script's name; the rule's id or uid.
        name: String,
        /// The variant.
        #[arg(long)]
        version: u32,
        /// Have it decide about this part of the recipients, 1 to 99, in place of a shadow.
        #[arg(long, value_name = "PERCENTAGE")]
        canary: Option<u8>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show the running experiment with its results, or the last one.
    Show(NamedExperiment),
    /// Show where a shadow's answers differ, the latest first.
    Differences {
        #[command(flatten)]
        of: NamedExperiment,
        /// The end of the previous page, from its answer.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// End the experiment.
    End(NamedExperiment),
}

#[derive(Debug, Args)]
struct NamedExperiment {
    /// The script's name; the rule's id or uid.
    name: String,
    #[command(flatten)]
    client: ApiClient,
}

const EXPERIMENT: [Column<'_>; 9] = [
    ("of", "/of"),
    ("version", "/version"),
    ("live version", "/live_version"),
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
    [("at", "/at"), ("message", "/message"), ("hook", "/hook"), ("live", "/live"), ("variant", "/variant")];

impl ExperimentArgs {
    /// Runs the command on a document of this collection, such as `/v1/rules`.
    pub async fn run(self, collection: &str, output: &Output) -> Result<(), CliError> {
        let path = |name: &str| format!("{collection}/{}/experiment", segment(name));
        match self.command {
            ExperimentCommand::Begin { name, version, canary, client } => {
                let body = match canary {
                    Some(percentage) => json!({"version": version, "mode": "canary", "percentage": percentage}),
                    None => json!({"version": version, "mode": "shadow"}),
                };
                show(&client.post(&path(&name), &body).await?, output);
            }
            ExperimentCommand::Show(NamedExperiment { name, client }) => {
                show(&client.get(&path(&name)).await?, output);
            }
            ExperimentCommand::Differences { of: NamedExperiment { name, client }, cursor } => {
                let path = paged(&format!("{}/differences", path(&name)), cursor);
                output.list(&client.get(&path).await?, &DIFFERENCE);
            }
            ExperimentCommand::End(NamedExperiment { name, client }) => drop(client.delete(&path(&name)).await?),
        }
        Ok(())
    }
}

/// Prints the experiment, and for people both arms below one another.
fn show(experiment: &Value, output: &Output) {
    output.one(experiment, &EXPERIMENT);
    if output.json {
        return;
    }
    let arms = ["variant", "live"].map(|arm| {
        let mut row = experiment[arm].clone();
        row["arm"] = json!(arm);
        row["deliveries"] = json!(states(&experiment[arm]["deliveries"]));
        row
    });
    output.rows(&json!(arms), &ARM);
}

fn states(deliveries: &Value) -> String {
    let states = deliveries.as_object().into_iter().flatten().map(|(state, count)| format!("{state} {count}"));
    states.collect::<Vec<_>>().join(", ")
}
