//! `angarium tenant …`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{CliError, database::Access, output::Output};
use crate::{
    domain::ids::TenantId,
    store::{self, StoreError},
};

#[derive(Debug, Args)]
pub struct Tenant {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a tenant.
    Create {
        /// Lower-case letters, digits, `-` and `_`; at most 63.
        name: String,
        #[command(flatten)]
        access: Access,
    },
    /// Show all tenants.
    List {
        #[command(flatten)]
        access: Access,
    },
}

const COLUMNS: [(&str, &str); 3] = [("id", "/id"), ("name", "/name"), ("created", "/created_at")];

impl Tenant {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::Create { name, access } => create(&name, &access, output).await,
            Command::List { access } => list(&access, output).await,
        }
    }
}

async fn create(name: &str, access: &Access, output: &Output) -> Result<(), CliError> {
    let mut txn = access.store().await?.worker().await?;
    let tenant =
        store::tenant::tenant_insert(&mut txn, TenantId::new(), name).await.map_err(|error| refusal(error, name))?;
    txn.commit().await.map_err(StoreError::from)?;
    output.one(&view(&tenant), &COLUMNS);
    Ok(())
}

async fn list(access: &Access, output: &Output) -> Result<(), CliError> {
    let mut txn = access.store().await?.worker().await?;
    let tenants = store::tenant::tenant_list(&mut txn).await?;
    output.list(&Value::from_iter(tenants.iter().map(view)), &COLUMNS);
    Ok(())
}

fn view(tenant: &store::tenant::Tenant) -> Value {
    json!({"id": tenant.id, "name": tenant.name, "created_at": tenant.created_at})
}

fn refusal(error: StoreError, name: &str) -> CliError {
    match &error {
        StoreError::Conflict { constraint } if constraint == "tenant_name_key" => {
            CliError::said(format!("there is a tenant `{name}` already"))
        }
        StoreError::Conflict { constraint } if constraint == "tenant_name_check" => CliError::said(format!(
            "`{name}` is no tenant's name: it has 1 to 63 lower-case letters, digits, `-` and `_`, and begins with a letter or digit"
        )),
        _ => error.into(),
    }
}
