//! `angarium key …`

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    CliError,
    database::{Access, tenant_named},
    output::Output,
};
use crate::{clock, credential::Credential};
use angarium_domain::{
    ids::KeyId,
    key::{ApiKey, Scope},
};
use angarium_store::{self as store, StoreError};

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
        let store = self.access.store().await?;
        let tenant = tenant_named(&store, &self.tenant).await?;
        let credential = Credential::generate();
        let key = ApiKey {
            tenant: tenant.id,
            id: KeyId::new(),
            name: self.name.clone(),
            hint: credential.hint.clone(),
            scopes: self.all_scopes(),
            created_at: clock::now(),
            expires_at: self.expires_at,
            revoked_at: None,
        };
        let mut txn = store.worker().await?;
        store::api_key::api_key_insert(&mut txn, &key, &credential.hash).await?;
        txn.commit().await.map_err(StoreError::from)?;
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
    let store = access.store().await?;
    let tenant = tenant_named(&store, tenant).await?;
    let keys = store::api_key::api_key_list(&mut *store.worker().await?, tenant.id).await?;
    output.list(&Value::from_iter(keys.iter().map(view)), &COLUMNS);
    Ok(())
}

async fn revoke(id: KeyId, access: &Access, output: &Output) -> Result<(), CliError> {
    let store = access.store().await?;
    let mut txn = store.worker().await?;
    let key = store::api_key::api_key_revoke(&mut txn, id)
        .await?
        .ok_or_else(|| CliError::said(format!("there is no key {id}: `angarium key list` shows them")))?;
    store::tenant::tenant_config_bump(&mut txn, key.tenant).await?;
    txn.commit().await.map_err(StoreError::from)?;
    store.announce_config(key.tenant).await?;
    output.one(&view(&key), &COLUMNS);
    Ok(())
}

fn view(key: &ApiKey) -> Value {
    json!({
        "id": key.id, "tenant": key.tenant, "name": key.name, "hint": key.hint, "scopes": key.scopes,
        "created_at": key.created_at, "expires_at": key.expires_at, "revoked_at": key.revoked_at,
    })
}
