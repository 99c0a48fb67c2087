//! `angarium connection …`

use std::io::Read;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    CliError,
    client::{Client, segment},
    output::{Column, Output},
};

#[derive(Debug, Args)]
pub struct Connection {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a connection.
    Create(Create),
    /// Show the connections.
    List {
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        client: Client,
    },
    /// Show one.
    Get {
        /// Its id or uid.
        connection: String,
        #[command(flatten)]
        client: Client,
    },
    /// Change a part of it.
    Update(Update),
    /// Delete it; refused while an active route names it.
    Delete {
        /// Its id or uid.
        connection: String,
        #[command(flatten)]
        client: Client,
    },
    /// Give a secret a new value.
    RotateSecret {
        /// The connection's id or uid.
        connection: String,
        /// The secret's name.
        name: String,
        /// The new value; read from standard input if left out, which keeps it out of the process list.
        #[arg(long)]
        value: Option<String>,
        /// How long the old value stays valid.
        #[arg(long, default_value_t = 0)]
        overlap_seconds: u32,
        #[command(flatten)]
        client: Client,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// The provider's name.
    #[arg(long)]
    provider: String,
    /// Your own name for it; works wherever the id does.
    #[arg(long)]
    uid: Option<String>,
    /// For people.
    #[arg(long)]
    name: Option<String>,
    /// JSON by the provider's schema.
    #[arg(long, default_value = "{}", value_parser = json_value)]
    config: Value,
    /// `name=value`; more than once for several.
    #[arg(long = "secret", value_parser = pair)]
    secrets: Vec<(String, String)>,
    #[command(flatten)]
    client: Client,
}

#[derive(Debug, Args)]
struct Update {
    /// Its id or uid.
    connection: String,
    #[arg(long)]
    name: Option<String>,
    /// The whole new configuration.
    #[arg(long, value_parser = json_value)]
    config: Option<Value>,
    #[arg(long)]
    enabled: Option<bool>,
    #[command(flatten)]
    client: Client,
}

const COLUMNS: [Column<'_>; 6] = [
    ("id", "/id"),
    ("uid", "/uid"),
    ("name", "/name"),
    ("provider", "/provider"),
    ("enabled", "/enabled"),
    ("config", "/config"),
];

impl Connection {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::Create(create) => create.run(output).await?,
            Command::List { cursor, client } => output.list(&client.get(&paged(PATH, cursor)).await?, &COLUMNS),
            Command::Get { connection, client } => output.one(&client.get(&path(&connection)).await?, &COLUMNS),
            Command::Update(update) => update.run(output).await?,
            Command::Delete { connection, client } => {
                client.delete(&path(&connection)).await?;
                output.one(&json!({"deleted": connection}), &[("deleted", "/deleted")]);
            }
            Command::RotateSecret { connection, name, value, overlap_seconds, client } => {
                let value = value.map_or_else(from_input, Ok)?;
                let body = json!({"value": value, "overlap_seconds": overlap_seconds});
                let answer = client.put(&format!("{}/secrets/{}", path(&connection), segment(&name)), &body).await?;
                output.one(&answer, &[("name", "/name"), ("version", "/version")]);
            }
        }
        Ok(())
    }
}

impl Create {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        let secrets: Map<_, _> = self.secrets.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
        let mut body = json!({"provider": self.provider, "config": self.config, "secrets": secrets});
        set(&mut body, "uid", self.uid.map(Value::String));
        set(&mut body, "name", self.name.map(Value::String));
        output.one(&self.client.post(PATH, &body).await?, &COLUMNS);
        Ok(())
    }
}

impl Update {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        let mut body = json!({});
        set(&mut body, "name", self.name.map(Value::String));
        set(&mut body, "config", self.config);
        set(&mut body, "enabled", self.enabled.map(Value::Bool));
        output.one(&self.client.patch(&path(&self.connection), &body).await?, &COLUMNS);
        Ok(())
    }
}

const PATH: &str = "/v1/connections";

fn path(connection: &str) -> String {
    format!("{PATH}/{}", segment(connection))
}

/// The path of a list's page.
pub fn paged(path: &str, cursor: Option<String>) -> String {
    cursor.map_or_else(|| path.to_owned(), |cursor| format!("{path}?cursor={}", segment(&cursor)))
}

/// Sets a field that was given.
pub fn set(body: &mut Value, field: &str, value: Option<Value>) {
    if let Some(value) = value {
        body[field] = value;
    }
}

/// An argument that is JSON.
pub fn json_value(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}

/// An argument of the form `name=value`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected `name=value`")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn from_input() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| CliError::said(format!("the value can't be read from standard input: {error}")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
