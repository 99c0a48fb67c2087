//! Changes. A change is committed together with its audit entry, or not at all; what follows from the entry's action,
//! such as the announcement to other nodes, is done here and nowhere else.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use super::{Principal, Result, key_lookup::Keys};
use crate::node::tenant_config::TenantConfigs;
use angarium_domain::{
    audit::{ActionReach, Actor},
    ids::TenantId,
};
use angarium_store::{
    Connection, Store, StoreError, Transaction,
    audit::{AuditEntry, audit_insert, operator_audit_insert},
    tenant::{tenant_config_bump, tenant_config_grow},
};

/// Where changes begin: the database, and what this process remembers of it.
#[derive(Clone)]
pub struct Changes {
    pub(super) store: Store,
    /// None in a process that serves no requests, such as a command.
    remembered: Option<Remembered>,
}

#[derive(Clone)]
struct Remembered {
    keys: Arc<Keys>,
    tenant_configs: Arc<TenantConfigs>,
}

impl Changes {
    /// Returns the changes of a node that serves requests.
    #[must_use]
    pub fn on_node(store: &Store, keys: &Arc<Keys>, tenant_configs: &Arc<TenantConfigs>) -> Self {
        let remembered = Remembered { keys: Arc::clone(keys), tenant_configs: Arc::clone(tenant_configs) };
        Self { store: store.clone(), remembered: Some(remembered) }
    }

    /// Returns the changes of a process that remembers nothing, such as a command.
    #[must_use]
    pub const fn bare(store: Store) -> Self {
        Self { store, remembered: None }
    }

    /// Begins a change of what belongs to the principal's tenant, in a transaction that sees this tenant alone.
    pub async fn begin(&self, by: &Principal) -> Result<Change> {
        let txn = self.store.tenant(by.tenant).await?;
        Ok(self.change(txn, Some(by.tenant), &by.actor))
    }

    /// Begins a change of what belongs to the principal's tenant and only an operator may change, such as its keys.
    pub async fn begin_as_operator(&self, by: &Principal) -> Result<Change> {
        let txn = self.store.worker().await?;
        Ok(self.change(txn, Some(by.tenant), &by.actor))
    }

    /// Begins a change of what belongs to no tenant.
    pub async fn begin_for_all(&self, by: &Actor) -> Result<Change> {
        let txn = self.store.worker().await?;
        Ok(self.change(txn, None, by))
    }

    fn change(&self, txn: Transaction<'static>, tenant: Option<TenantId>, actor: &Actor) -> Change {
        Change { changes: self.clone(), tenant, actor: actor.clone(), txn }
    }

    /// Lets this process and then all nodes see a committed change of a tenant's configuration.
    pub async fn announce(&self, tenant: TenantId) {
        if let Some(remembered) = &self.remembered {
            remembered.keys.forget(tenant);
            remembered.tenant_configs.renew(tenant).await;
        }
        // The nodes look each second anyway.
        if let Err(error) = self.store.announce_config(tenant).await {
            tracing::warn!(tenant.id = %tenant, %error, "a change of configuration is not announced");
        }
    }
}

/// A change under way: a transaction, for the queries of the store. It rolls back when it is dropped.
#[must_use = "a change that is not committed is rolled back"]
pub struct Change {
    changes: Changes,
    /// None where it belongs to no tenant.
    tenant: Option<TenantId>,
    actor: Actor,
    txn: Transaction<'static>,
}

impl Change {
    /// Has the change recorded in this tenant's audit, for one that begins with a look-up over all tenants.
    pub fn of_tenant(self, tenant: TenantId) -> Self {
        Self { tenant: Some(tenant), ..self }
    }

    /// Records, commits and announces the change.
    ///
    /// # Errors
    /// When the database fails, or the tenant's configuration would be larger than allowed. Nothing is changed then.
    pub async fn commit(mut self, entry: AuditEntry) -> Result<()> {
        let Some(tenant) = self.tenant else {
            operator_audit_insert(&mut self.txn, &self.actor, &entry).await?;
            return Ok(self.txn.commit().await.map_err(StoreError::from)?);
        };
        audit_insert(&mut self.txn, tenant, &self.actor, &entry).await?;
        let is_announced = match entry.action.reach() {
            ActionReach::Messages | ActionReach::Nothing => false,
            ActionReach::Configuration => {
                tenant_config_bump(&mut self.txn, tenant).await?;
                true
            }
            ActionReach::GrowingConfiguration => {
                tenant_config_grow(&mut self.txn, tenant).await?;
                true
            }
        };
        self.txn.commit().await.map_err(StoreError::from)?;
        if is_announced {
            self.changes.announce(tenant).await;
        }
        Ok(())
    }
}

impl Deref for Change {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.txn
    }
}

impl DerefMut for Change {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.txn
    }
}
