//! Turns of callbacks: a component's call takes a thread, so that few run at a time, and fewer of one tenant. A burst
//! waits for its turn: many services never repeat a callback that was refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::domain::ids::TenantId;

/// How many callbacks are handled at a time, in all and of one tenant.
const MOST: usize = 64;
const MOST_OF_TENANT: usize = 32;
/// How long one waits: services give up after some ten seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many tenants are known before those without callbacks are forgotten.
const KEPT: usize = 1_024;

/// Who may go on, and who waits.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    tenants: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

/// The right to handle one callback; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _of_tenant: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MOST)), tenants: Mutex::default() }
    }
}

impl Turns {
    /// Waits for a turn; `None` where none came in time.
    pub(super) async fn take(&self, tenant: TenantId) -> Option<Turn> {
        let (own, all) = (self.of(tenant), Arc::clone(&self.all));
        let turn = async {
            Some(Turn { _of_tenant: own.acquire_owned().await.ok()?, _of_all: all.acquire_owned().await.ok()? })
        };
        timeout(PATIENCE, turn).await.ok().flatten()
    }

    fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= KEPT {
            tenants.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        Arc::clone(tenants.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(MOST_OF_TENANT))))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_burst_of_one_tenant_waits_and_another_goes_on() {
        let (turns, one) = (Turns::default(), TenantId::new());
        let mut held = Vec::new();
        for _ in 0..MOST_OF_TENANT {
            held.push(turns.take(one).await.unwrap());
        }
        assert!(turns.take(TenantId::new()).await.is_some());
        assert!(turns.take(one).now_or_never().is_none(), "it waits");
        held.pop();
        assert!(turns.take(one).await.is_some());
    }
}
