//! `angarium key …`

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    CliError,
    database::{Access, tenant_named},
    os_user,
    output::Output,
};
use crate::app::{
    Principal,
    error::UseCaseError,
    keys::{self, NewKey},
};
use angarium_domain::{
    ids::KeyId,
    key::{ApiKey, Scope},
};

#[derive(Debug, Args)]
pub struct Key {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key; it is shown once.
    Create(Create),
    /// Show a tenant's keys.
    List {
        /// The tenant's name.
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        access: Access,
    },
    /// End a key.
    Revoke {
        /// `key_…`
        id: KeyId,
        #[command(flatten)]
        access: Access,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// The tenant's name.
    #[arg(long)]
    tenant: String,
    /// For people.
    #[arg(long, default_value = "")]
    name: String,
    /// Its scopes, separated by commas; all scopes of a tenant by default.
    #[arg(long, value_delimiter = ',')]
    scopes: Vec<Scope>,
    /// Let it install providers and grant hosts, too, for all tenants.
    #[arg(long)]
    operator: bool,
    /// When it ends, such as 2027-01-31T00:00:00Z.
    #[arg(long)]
    expires_at: Option<Timestamp>,
    #[command(flatten)]
    access: Access,
}

const COLUMNS: [(&str, &str); 7] = [
    ("id", "/id"),
    ("name", "/name"),
    ("begins with", "/hint"),
    ("scopes", "/scopes"),
    ("created", "/created_at"),
    ("expires", "/expires_at"),
    ("revoked", "/revoked_at"),
];

impl Key {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::Create(create) => create.run(output).await,
            Command::List { tenant, access } => list(&tenant, &access, output).await,
            Command::Revoke { id, access } => revoke(id, &access, output).await,
        }
    }
}

impl Create {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        let changes = self.access.changes().await?;
        let tenant = tenant_named(&changes, &self.tenant).await?;
        let by = Principal { tenant: tenant.id, actor: os_user::actor() };
        let new = NewKey { name: self.name.clone(), scopes: self.all_scopes(), expires_at: self.expires_at };
        let (key, credential) = keys::create(&changes, &by, new).await?;
        let mut shown = view(&key);
        shown["key"] = json!(credential.text.as_str());
        output.one(&shown, &[("id", "/id"), ("scopes", "/scopes"), ("key (shown this once)", "/key")]);
        Ok(())
    }

    fn all_scopes(&self) -> Vec<Scope> {
        let mut scopes = self.scopes.clone();
        if scopes.is_empty() {
            scopes.extend(Scope::ALL.into_iter().filter(|scope| *scope != Scope::Operator));
        }
        if self.operator && !scopes.contains(&Scope::Operator) {
            scopes.push(Scope::Operator);
        }
        scopes
    }
}

async fn list(tenant: &str, access: &Access, output: &Output) -> Result<(), CliError> {
    let changes = access.changes().await?;
    let tenant = tenant_named(&changes, tenant).await?;
    let keys = keys::list(&changes, tenant.id).await?;
    output.list(&Value::from_iter(keys.iter().map(view)), &COLUMNS);
    Ok(())
}

async fn revoke(id: KeyId, access: &Access, output: &Output) -> Result<(), CliError> {
    let key = keys::revoke(&access.changes().await?, &os_user::actor(), id).await.map_err(|error| match error {
        UseCaseError::NotFound(_) => CliError::said(format!("there is no key {id}: `angarium key list` shows them")),
        other => other.into(),
    })?;
    output.one(&view(&key), &COLUMNS);
    Ok(())
}

fn view(key: &ApiKey) -> Value {
    json!({
        "id": key.id, "tenant": key.tenant, "name": key.name, "hint": key.hint, "scopes": key.scopes,
        "created_at": key.created_at, "expires_at": key.expires_at, "revoked_at": key.revoked_at,
    })
}
