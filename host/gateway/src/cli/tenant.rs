//! `angarium tenant …`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    database::{Access, unknown_tenant},
    os_user,
    output::Output,
};
use crate::app::tenants::{self, TenantRow};

#[derive(Debug, Args)]
pub struct TenantArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a tenant.
    Create {
        /// Lower-case letters, digits, `-` and `_`; at most 63.
        name: String,
        /// How long its messages are kept: a class of the configuration's `retention.classes`.
        #[arg(long, default_value = "default")]
        class: String,
        #[command(flatten)]
        access: Access,
    },
    /// Put a tenant into another retention class.
    Classify {
        /// The tenant's name.
        name: String,
        /// A class of the configuration's `retention.classes`, or `default`.
        class: String,
        #[command(flatten)]
        access: Access,
    },
    /// Show all tenants.
    List {
        #[command(flatten)]
        access: Access,
    },
}

const COLUMNS: [(&str, &str); 4] =
    [("id", "/id"), ("name", "/name"), ("retention class", "/retention_class"), ("created", "/created_at")];

impl TenantArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::Create { name, class, access } => create(&name, &class, &access, output).await,
            Command::Classify { name, class, access } => classify(&name, &class, &access, output).await,
            Command::List { access } => list(&access, output).await,
        }
    }
}

async fn create(name: &str, class: &str, access: &Access, output: &Output) -> Result<(), CliError> {
    access.check_class(class)?;
    let tenant = tenants::create(&access.changes().await?, &os_user::actor(), name, class).await?;
    output.one(&view(&tenant), &COLUMNS);
    Ok(())
}

async fn classify(name: &str, class: &str, access: &Access, output: &Output) -> Result<(), CliError> {
    access.check_class(class)?;
    let tenant = tenants::classify(&access.changes().await?, &os_user::actor(), name, class).await;
    output.one(&view(&tenant.map_err(|error| unknown_tenant(error, name))?), &COLUMNS);
    Ok(())
}

async fn list(access: &Access, output: &Output) -> Result<(), CliError> {
    let tenants = tenants::list(&access.changes().await?).await?;
    output.list(&Value::from_iter(tenants.iter().map(view)), &COLUMNS);
    Ok(())
}

fn view(tenant: &TenantRow) -> Value {
    json!({"id": tenant.id, "name": tenant.name, "retention_class": tenant.retention_class, "created_at": tenant.created_at})
}
