//! `angarium route …`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    client::{ApiClient, segment},
    connection::json_value,
    output::{Column, Output},
    versions::{VersionCommand, activate},
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
        /// Only those of this channel.
        #[arg(long)]
        channel: Option<String>,
        /// The entries of a page: 1 to 250; 50 by default.
        #[arg(long)]
        limit: Option<u32>,
        /// The end of the previous page, from its answer.
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
    /// Delete a route. Deliveries that wait end as unroutable, unless another route of the channel is active by then.
    Delete {
        /// The route's id or uid.
        route: String,
        /// Delete it although it is the only active one of its channel.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        client: ApiClient,
    },
    #[command(flatten)]
    Version(VersionCommand),
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
            Command::List { channel, limit, cursor, client } => {
                let limit = limit.map(|limit| limit.to_string());
                let pairs = [("channel", channel), ("limit", limit), ("cursor", cursor)].into_iter();
                let pairs = pairs.filter_map(|(name, value)| Some(format!("{name}={}", segment(&value?))));
                let query = pairs.collect::<Vec<_>>().join("&");
                output.list(&client.get(&format!("{PATH}?{query}")).await?, &COLUMNS);
            }
            Command::Get { route, client } => show(&client.get(&path(&route)).await?, output),
            Command::Delete { route, force, client } => {
                let query = if force { "?force=true" } else { "" };
                drop(client.delete(&format!("{}{query}", path(&route))).await?);
            }
            Command::Version(version) => version.run(PATH, &COLUMNS, output).await?,
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
            answer = activate(&self.client, PATH, &id, &answer["latest_version"]).await?;
        }
        output.one(&answer, &COLUMNS);
        Ok(())
    }
}

const PATH: &str = "/v1/routes";

fn path(route: &str) -> String {
    format!("{PATH}/{}", segment(route))
}
