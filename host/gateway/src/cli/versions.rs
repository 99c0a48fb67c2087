//! The commands that routes, rules and scripts share: their versions are listed, compared, activated and rolled back.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    CliError,
    client::{ApiClient, segment},
    output::{Column, Output},
};

#[derive(Debug, Subcommand)]
pub enum VersionCommand {
    /// Show the versions, the latest first.
    Versions {
        /// Its id or uid; a script's name.
        name: String,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Show where a version differs from the active one, or from another.
    Compare {
        /// Its id or uid; a script's name.
        name: String,
        /// The version to look at.
        #[arg(long)]
        version: u32,
        /// The version that it is compared with, in place of the active one.
        #[arg(long)]
        against: Option<u32>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Make a version the active one.
    Activate {
        /// Its id or uid; a script's name.
        name: String,
        #[arg(long)]
        version: u32,
        /// The version that it replaces; refused where another one is active.
        #[arg(long)]
        replaces: Option<u32>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Return to the version that was active before.
    Rollback {
        /// Its id or uid; a script's name.
        name: String,
        #[command(flatten)]
        client: ApiClient,
    },
}

const VERSION: [Column<'_>; 4] =
    [("version", "/version"), ("state", "/state"), ("created", "/created_at"), ("activated", "/activated_at")];
const DIFFERENCE: [Column<'_>; 4] =
    [("place", "/pointer"), ("line", "/line"), ("before", "/before"), ("after", "/after")];

impl VersionCommand {
    /// Runs the command on a document of this collection, such as `/v1/routes`; `columns` are those of a document.
    pub async fn run(self, collection: &str, columns: &[Column<'_>], output: &Output) -> Result<(), CliError> {
        let path = |name: &str, what: &str| format!("{collection}/{}/{what}", segment(name));
        match self {
            Self::Versions { name, client } => {
                output.list(&client.get(&path(&name, "versions")).await?, &VERSION);
            }
            Self::Compare { name, version, against, client } => {
                let against = against.map(|against| format!("?against={against}")).unwrap_or_default();
                let path = path(&name, &format!("versions/{version}/compare{against}"));
                let answer = client.get(&path).await?;
                if output.json {
                    output.one(&answer, &[]);
                } else {
                    output.rows(&answer["differences"], &DIFFERENCE);
                }
            }
            Self::Activate { name, version, replaces, client } => {
                let mut body = json!({"version": version});
                if let Some(replaces) = replaces {
                    body["replaces"] = json!(replaces);
                }
                output.one(&client.post(&path(&name, "activate"), &body).await?, columns);
            }
            Self::Rollback { name, client } => {
                output.one(&client.post(&path(&name, "rollback"), &json!({})).await?, columns);
            }
        }
        Ok(())
    }
}

/// Makes a version the active one, and returns the document.
pub async fn activate(client: &ApiClient, collection: &str, name: &str, version: &Value) -> Result<Value, CliError> {
    client.post(&format!("{collection}/{}/activate", segment(name)), &json!({"version": version})).await
}
