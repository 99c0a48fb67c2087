//! `angarium connection …`

use std::{collections::BTreeMap, io::Read};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    CliError,
    client::{ApiClient, segment},
    output::{Column, Output},
};

#[derive(Debug, Args)]
pub struct ConnectionArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a connection.
    Create(Create),
    /// Show the connections.
    List {
        /// The page to show: the cursor of the previous one.
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show one.
    Get {
        /// Its id or uid.
        connection: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Change a part of it.
    Update(Update),
    /// Delete it; refused while an active route names it.
    Delete {
        /// Its id or uid.
        connection: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Open its circuit breaker, so that nothing goes through it, or close it.
    Breaker {
        /// The connection's id or uid.
        connection: String,
        #[arg(value_parser = ["open", "close"])]
        action: String,
        /// The reason, for people.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        client: ApiClient,
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
        client: ApiClient,
    },
}

#[derive(Debug, Args, Serialize)]
struct Create {
    /// The provider's name.
    #[arg(long)]
    provider: String,
    /// Your own name for it; works wherever the id does.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    /// For people.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// JSON by the provider's schema.
    #[arg(long, default_value = "{}", value_parser = raw_json)]
    config: Box<RawValue>,
    /// `name=value`; more than once for several.
    #[arg(long = "secret", value_parser = pair)]
    #[serde(serialize_with = "as_object")]
    secrets: Vec<(String, String)>,
    /// JSON of the circuit breaker's policy and the limit on the rate, such as
    /// `{"breaker": {"consecutive_failures": 5}, "rate_limit": {"per_second": 10}}`.
    #[arg(long, value_parser = raw_json)]
    #[serde(skip_serializing_if = "Option::is_none")]
    guards: Option<Box<RawValue>>,
    #[command(flatten)]
    #[serde(skip)]
    client: ApiClient,
}

#[derive(Debug, Args, Serialize)]
struct Update {
    /// Its id or uid.
    #[serde(skip)]
    connection: String,
    /// Another name, for people.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The whole new configuration.
    #[arg(long, value_parser = raw_json)]
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<Box<RawValue>>,
    /// `false`: no message goes through it; `true`: they do again.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    /// JSON of the circuit breaker's policy and the limit on the rate; the whole new ones, such as
    /// `{"breaker": {"consecutive_failures": 5}, "rate_limit": {"per_second": 10}}`.
    #[arg(long, value_parser = raw_json)]
    #[serde(skip_serializing_if = "Option::is_none")]
    guards: Option<Box<RawValue>>,
    /// `name=value`, or `name=` to delete it; more than once for several. A configuration that sends requests to
    /// another destination needs all secrets again.
    #[arg(long = "secret", value_parser = secret_change)]
    #[serde(serialize_with = "as_object", skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<(String, Option<String>)>,
    #[command(flatten)]
    #[serde(skip)]
    client: ApiClient,
}

/// The columns of a single connection, with more space.
const WHOLE: [Column<'_>; 10] = [
    ("id", "/id"),
    ("uid", "/uid"),
    ("name", "/name"),
    ("provider", "/provider"),
    ("enabled", "/enabled"),
    ("config", "/config"),
    ("guards", "/guards"),
    ("secrets", "/shown_secrets"),
    ("created", "/created_at"),
    ("updated", "/updated_at"),
];

const COLUMNS: [Column<'_>; 6] = [
    ("id", "/id"),
    ("uid", "/uid"),
    ("name", "/name"),
    ("provider", "/provider"),
    ("enabled", "/enabled"),
    ("config", "/config"),
];

impl ConnectionArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::Create(create) => create.run(output).await?,
            Command::List { cursor, client } => output.list(&client.get(&paged(PATH, cursor)).await?, &COLUMNS),
            Command::Get { connection, client } => show(client.get(&path(&connection)).await?, output),
            Command::Update(update) => update.run(output).await?,
            Command::Delete { connection, client } => {
                client.delete(&path(&connection)).await?;
                output.one(&json!({"deleted": connection}), &[("deleted", "/deleted")]);
            }
            Command::Breaker { connection, action, reason, client } => {
                let mut body = json!({"action": action});
                if let Some(reason) = reason {
                    body["reason"] = json!(reason);
                }
                let answer = client.post(&format!("{}/breaker", path(&connection)), &body).await?;
                output.one(&answer, &[("state", "/state"), ("since", "/since"), ("cause", "/cause")]);
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

fn show(mut connection: Value, output: &Output) {
    if !output.json {
        let secrets = connection["secrets"].as_array().into_iter().flatten();
        let named =
            |secret: &Value| format!("{} (version {})", secret["name"].as_str().unwrap_or_default(), secret["version"]);
        connection["shown_secrets"] = secrets.map(named).collect();
    }
    for warning in connection["warnings"].as_array().into_iter().flatten() {
        eprintln!("warning: {}", warning["detail"].as_str().unwrap_or_default());
    }
    output.one(&connection, &WHOLE);
}

impl Create {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        show(self.client.post(PATH, &self).await?, output);
        Ok(())
    }
}

impl Update {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        show(self.client.patch(&path(&self.connection), &self).await?, output);
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

/// An argument that is JSON.
pub fn json_value(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}

/// The same, byte for byte.
pub fn raw_json(text: &str) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::from_str(text)
}

/// Pairs as the members of an object.
pub fn as_object<V: Serialize, S: serde::Serializer>(pairs: &[(String, V)], serializer: S) -> Result<S::Ok, S::Error> {
    pairs.iter().map(|(name, value)| (name, value)).collect::<BTreeMap<_, _>>().serialize(serializer)
}

/// An argument of the form `name=value`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected `name=value`")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Parses an argument of the form `name=value`; without a value it deletes the secret.
fn secret_change(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = pair(text)?;
    Ok((name, Some(value).filter(|value| !value.is_empty())))
}

fn from_input() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| CliError::said(format!("the value can't be read from standard input: {error}")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
