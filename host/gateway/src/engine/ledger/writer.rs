//! One writer: gathers entries while the last transaction commits, and writes them together.

use std::{collections::HashSet, sync::Arc, time::Duration};

use metrics::Histogram;
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use super::{BATCH, Entry};
use crate::{engine::legs, engine::queue::Leases, engine::small_tenant_priority::SmallTenantPriority};
use angarium_domain::ids::{DeliveryId, TenantId};
use angarium_store::{
    self as store, DatabaseRole, DatabaseSession, Store, StoreError, TransactionEnd, TransactionId,
    attempt::{NewIntent, Settlement, attempt_settle_and_end, intent_insert},
    delivery::{Deferral, delivery_defer},
    failpoint,
    follow_up::{EndedDelivery, follow_up_note},
    queue::{HeldLease, lease_delete, lease_hold, lease_release},
    transaction_end,
};

/// How long a writer waits before it asks a failing database again.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) struct LedgerWriter {
    store: Store,
    leases: Arc<Leases>,
    /// Rung when something due was left in the queue.
    bell: Arc<Notify>,
    writable: Arc<watch::Sender<bool>>,
    session: Option<DatabaseSession>,
    sizes: Histogram,
    /// The transaction whose COMMIT was sent and not answered, and the leases that it held.
    in_doubt: Option<(TransactionId, HashSet<Uuid>)>,
}

impl LedgerWriter {
    pub(super) fn new(
        store: Store,
        leases: Arc<Leases>,
        bell: Arc<Notify>,
        writable: Arc<watch::Sender<bool>>,
    ) -> Self {
        Self {
            store,
            leases,
            bell,
            writable,
            session: None,
            in_doubt: None,
            sizes: metrics::histogram!("angarium_ledger_batch_size"),
        }
    }

    pub(super) async fn run(
        mut self,
        mut entries: mpsc::UnboundedReceiver<Entry>,
        small_tenants: Arc<SmallTenantPriority>,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        while entries.recv_many(&mut batch, small_tenants.batch(BATCH)).await > 0 {
            small_tenants.wait().await;
            self.sizes.record(batch.len() as f64);
            let finished = finished_leases(&batch);
            self.write(std::mem::take(&mut batch), &finished).await;
            self.leases.forget(&finished);
        }
    }

    /// Writes a batch, however long the database is away. A refused batch is written in halves, down to the one entry
    /// that the database refuses: that entry is dropped, its lease runs out, and recovery records it as `unknown`.
    async fn write(&mut self, mut batch: Vec<Entry>, finished: &[(TenantId, Uuid)]) {
        loop {
            let error = match self.try_write(&batch, finished).await {
                Ok(held) => {
                    self.tell(true);
                    if batch.iter().filter_map(Entry::settlement).any(Settlement::passes_turn) {
                        self.bell.notify_one();
                    }
                    return close(batch, &held);
                }
                Err(error) => error,
            };
            self.session = None;
            if error.passes() {
                self.tell(false);
                tracing::warn!(%error, entries = batch.len(), "outcomes wait for the database");
                tokio::time::sleep(PAUSE).await;
            } else if batch.len() > 1 {
                let rest = batch.split_off(batch.len() / 2);
                // The leases stay, so that recovery can find the dropped entries.
                Box::pin(self.write(batch, &[])).await;
                return Box::pin(self.write(rest, &[])).await;
            } else {
                batch.iter().for_each(|entry| self.leases.give_up(entry.lease().1));
                return tracing::error!(%error, "the database refuses an outcome; recovery will call it unknown");
            }
        }
    }

    /// Runs one transaction; returns the leases that still existed. Entries of the others are not written. If the
    /// COMMIT of this batch was not answered, the transaction's end is looked up first.
    async fn try_write(&mut self, batch: &[Entry], finished: &[(TenantId, Uuid)]) -> store::Result<HashSet<Uuid>> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(self.store.session(DatabaseRole::Worker).await?),
        };
        let mut txn = session.begin().await?;
        if let Some((transaction, held)) = &self.in_doubt {
            match transaction_end(&mut txn, transaction).await? {
                TransactionEnd::Committed => {
                    let held = held.clone();
                    self.in_doubt = None;
                    return Ok(held);
                }
                TransactionEnd::Open => return Err(StoreError::Unavailable(store::lost_connection())),
                TransactionEnd::Aborted => self.in_doubt = None,
            }
        }
        let HeldLease { leases: held, transaction } = lease_hold(&mut txn, &leases_of(batch)).await?;
        let settlements: Vec<&Settlement> =
            batch.iter().filter_map(Entry::settlement).filter(|it| held.contains(&it.lease)).collect();
        if !settlements.is_empty() {
            let moved = attempt_settle_and_end(&mut txn, &settlements, finished).await?;
            legs::advance(&mut txn, moved).await?;
            let ended: Vec<EndedDelivery> =
                batch.iter().filter(|it| held.contains(&it.lease().1)).filter_map(Entry::ended).collect();
            if !ended.is_empty() {
                follow_up_note(&mut txn, &ended).await?;
            }
            failpoint!(OutcomeBeforeCommit);
        }
        let deferrals: Vec<&Deferral> =
            batch.iter().filter_map(Entry::deferral).filter(|it| held.contains(&it.lease)).collect();
        if !deferrals.is_empty() {
            delivery_defer(&mut txn, &deferrals).await?;
            lease_release(&mut txn, &released(&deferrals, finished)).await?;
        }
        let intents: Vec<&NewIntent> =
            batch.iter().filter_map(Entry::intent).filter(|it| held.contains(&it.lease)).collect();
        if !intents.is_empty() {
            intent_insert(&mut txn, &intents).await?;
        }
        if settlements.is_empty() {
            lease_delete(&mut txn, finished).await?;
        }
        self.in_doubt = transaction.map(|transaction| (transaction, held.clone()));
        txn.commit().await?;
        if !settlements.is_empty() {
            failpoint!(OutcomeAfterCommit);
        }
        if !intents.is_empty() {
            failpoint!(IntentAfterCommit);
        }
        self.in_doubt = None;
        Ok(held)
    }

    fn tell(&self, writable: bool) {
        self.writable.send_if_modified(|now| std::mem::replace(now, writable) != writable);
    }
}

impl Entry {
    fn settlement(&self) -> Option<&Settlement> {
        match self {
            Self::Attempt { settlement } | Self::Outcome { settlement, .. } => Some(settlement),
            Self::Deferral { .. } | Self::Intent { .. } => None,
        }
    }

    /// An end that scripts are to be asked about.
    fn ended(&self) -> Option<EndedDelivery> {
        let Self::Outcome { settlement, asks: true, .. } = self else { return None };
        let Settlement { tenant, delivery, message, .. } = **settlement;
        let state = settlement.state.filter(|state| state.is_end())?;
        Some(EndedDelivery { tenant, delivery, message, state })
    }

    fn deferral(&self) -> Option<&Deferral> {
        match self {
            Self::Deferral { deferral, .. } => Some(deferral),
            Self::Attempt { .. } | Self::Outcome { .. } | Self::Intent { .. } => None,
        }
    }

    fn intent(&self) -> Option<&NewIntent> {
        match self {
            Self::Intent { intent, .. } => Some(intent),
            Self::Attempt { .. } | Self::Outcome { .. } | Self::Deferral { .. } => None,
        }
    }

    fn lease(&self) -> (TenantId, Uuid) {
        match self {
            Self::Attempt { settlement } | Self::Outcome { settlement, .. } => (settlement.tenant, settlement.lease),
            Self::Deferral { deferral, .. } => (deferral.tenant, deferral.lease),
            Self::Intent { intent, .. } => (intent.tenant, intent.lease),
        }
    }
}

/// Each lease of the batch once.
fn leases_of(batch: &[Entry]) -> Vec<(TenantId, Uuid)> {
    batch.iter().map(Entry::lease).collect::<HashSet<_>>().into_iter().collect()
}

/// Returns the deliveries that continuing leases lose.
fn released(deferrals: &[&Deferral], finished: &[(TenantId, Uuid)]) -> Vec<(TenantId, Uuid, DeliveryId)> {
    let goes_on = |it: &&&Deferral| !finished.contains(&(it.tenant, it.lease));
    deferrals.iter().filter(goes_on).map(|it| (it.tenant, it.lease, it.delivery)).collect()
}

/// Returns the leases whose last outcome is in this batch, except those that run out with something unsettled.
fn finished_leases(batch: &[Entry]) -> Vec<(TenantId, Uuid)> {
    let outcomes = batch.iter().filter_map(|entry| match entry {
        Entry::Outcome { work, .. } | Entry::Deferral { work, .. } => Some(work),
        Entry::Attempt { .. } | Entry::Intent { .. } => None,
    });
    outcomes
        .filter(|work| work.lease.settle_one() && !work.lease.is_lost())
        .map(|work| (work.tenant, work.lease.id))
        .collect()
}

/// Notifies the waiters, and frees the places in memory.
fn close(batch: Vec<Entry>, held: &HashSet<Uuid>) {
    let mut late = 0_u64;
    for entry in batch {
        let stood = held.contains(&entry.lease().1);
        late += u64::from(!stood);
        if let Entry::Intent { committed, .. } = entry {
            // The waiter may be gone when the node stops.
            let _ = committed.send(stood);
        }
    }
    if late > 0 {
        metrics::counter!("angarium_late_writes_refused_total").increment(late);
        tracing::warn!(entries = late, "outcomes were refused: their leases had ended and others have the deliveries");
    }
}
