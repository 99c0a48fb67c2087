//! `angarium route …`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    client::{ApiClient, segment},
    connection::{json_value, paged},
    output::{Column, Output},
};

#[derive(Debug, Args)]
pub struct RouteArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a route, or with `--route` a further version of one; it does nothing until activated.
    Create(Create),
    /// Show the routes.
    List {
        /// The page to show: the cursor of the previous one.
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show one with its versions.
    Get {
        /// The route's id or uid.
        route: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Let a version route its channel.
    Activate {
        /// The route's id or uid.
        route: String,
        /// Which of its versions.
        #[arg(long)]
        version: u32,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Return to the version that was active before.
    Rollback {
        /// The route's id or uid.
        route: String,
        #[command(flatten)]
        client: ApiClient,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// The channel that it routes, such as `email`.
    #[arg(long, required_unless_present = "route")]
    channel: Option<String>,
    /// Your own name for it; works wherever the id does.
    #[arg(long)]
    uid: Option<String>,
    /// A route that gets a further version.
    #[arg(long, conflicts_with_all = ["channel", "uid"])]
    route: Option<String>,
    /// Connections in order, with commas between.
    #[arg(long, value_delimiter = ',', required_unless_present = "spec")]
    connections: Vec<String>,
    /// The whole specification as JSON, in place of `--connections`.
    #[arg(long, value_parser = json_value, conflicts_with = "connections")]
    spec: Option<Value>,
    /// Activate it at once.
    #[arg(long)]
    activate: bool,
    #[command(flatten)]
    client: ApiClient,
}

const COLUMNS: [Column<'_>; 5] = [
    ("id", "/id"),
    ("uid", "/uid"),
    ("channel", "/channel"),
    ("active version", "/active_version"),
    ("newest version", "/latest_version"),
];

const VERSIONS: [Column<'_>; 6] = [
    ("version", "/version"),
    ("candidates", "/candidates"),
    ("retry", "/spec/retry"),
    ("fallback", "/spec/fallback"),
    ("on unknown", "/spec/on_unknown"),
    ("created", "/created_at"),
];

impl RouteArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::Create(create) => create.run(output).await?,
            Command::List { cursor, client } => output.list(&client.get(&paged(PATH, cursor)).await?, &COLUMNS),
            Command::Get { route, client } => show(&client.get(&path(&route)).await?, output),
            Command::Activate { route, version, client } => {
                output.one(&activate(&client, &route, &json!(version)).await?, &COLUMNS);
            }
            Command::Rollback { route, client } => {
                output.one(&client.post(&format!("{}/rollback", path(&route)), &json!({})).await?, &COLUMNS);
            }
        }
        Ok(())
    }
}

fn show(route: &Value, output: &Output) {
    output.one(route, &COLUMNS);
    if output.json {
        return;
    }
    let mut versions = route["versions"].clone();
    for version in versions.as_array_mut().into_iter().flatten() {
        let candidates = version["spec"]["candidates"].as_array().into_iter().flatten();
        version["candidates"] = candidates.map(|candidate| candidate["connection"].clone()).collect();
    }
    output.rows(&versions, &VERSIONS);
}

impl Create {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        let candidates: Vec<_> = self.connections.iter().map(|connection| json!({"connection": connection})).collect();
        let spec = self.spec.unwrap_or_else(|| json!({"candidates": candidates}));
        let mut answer = match &self.route {
            Some(route) => self.client.post(&format!("{}/versions", path(route)), &json!({"spec": spec})).await?,
            None => {
                let mut body = json!({"channel": self.channel, "spec": spec});
                if let Some(uid) = self.uid {
                    body["uid"] = Value::String(uid);
                }
                self.client.post(PATH, &body).await?
            }
        };
        if self.activate {
            let id = answer["id"].as_str().unwrap_or_default().to_owned();
            answer = activate(&self.client, &id, &answer["latest_version"]).await?;
        }
        output.one(&answer, &COLUMNS);
        Ok(())
    }
}

async fn activate(client: &ApiClient, route: &str, version: &Value) -> Result<Value, CliError> {
    client.post(&format!("{}/activate", path(route)), &json!({"version": version})).await
}

const PATH: &str = "/v1/routes";

fn path(route: &str) -> String {
    format!("{PATH}/{}", segment(route))
}
