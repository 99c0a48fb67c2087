//! `angarium tenant …`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    database::{Access, tenant_named},
    output::Output,
};
use angarium_domain::ids::TenantId;
use angarium_store::{self as store, StoreError};

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
    let mut txn = access.store().await?.worker().await?;
    let id = TenantId::new();
    store::tenant::tenant_insert(&mut txn, id, name).await.map_err(|error| refusal(error, name))?;
    let tenant = store::tenant::tenant_classify(&mut txn, id, class).await?;
    txn.commit().await.map_err(StoreError::from)?;
    output.one(&view(&tenant), &COLUMNS);
    Ok(())
}

async fn classify(name: &str, class: &str, access: &Access, output: &Output) -> Result<(), CliError> {
    access.check_class(class)?;
    let store = access.store().await?;
    let tenant = tenant_named(&store, name).await?;
    let mut txn = store.worker().await?;
    let tenant = store::tenant::tenant_classify(&mut txn, tenant.id, class).await?;
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

fn view(tenant: &store::tenant::TenantRow) -> Value {
    json!({"id": tenant.id, "name": tenant.name, "retention_class": tenant.retention_class, "created_at": tenant.created_at})
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
