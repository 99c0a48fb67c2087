//! Writes the results of attempts: many deliveries in one transaction, each only under a lease that still exists. It
//! decides nothing and sends nothing.

mod writer;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
};
use uuid::Uuid;

use self::writer::LedgerWriter;
use crate::{
    clock,
    engine::{
        queue::{Leases, Work},
        small_tenant_priority::SmallTenantPriority,
    },
};
use angarium_store::{
    Store,
    attempt::{NewIntent, Settlement},
    delivery::Deferral,
};

/// How many writers share the work. All outcomes under one lease go to one writer, in order, so that
/// the lease's row never goes before the last of them is written.
const WRITERS: usize = 2;

/// The most entries of one transaction.
const BATCH: usize = 500;

/// The input of a writer.
enum Entry {
    /// An attempt after which the next candidate is asked.
    Attempt { settlement: Box<Settlement> },
    /// The last entry of this node about a delivery; its place in memory is free once it is written.
    Outcome {
        settlement: Box<Settlement>,
        work: Work,
        /// Whether scripts are to be asked for follow-ups, if it has ended.
        asks: bool,
    },
    /// The same without an attempt: it goes back to the queue as it came.
    Deferral { deferral: Deferral, work: Work },
    /// A request that waits until its intent is committed; false when its lease is lost.
    Intent { intent: NewIntent, committed: oneshot::Sender<bool> },
}

/// The way into the ledger.
#[derive(Clone)]
pub struct Ledger {
    writers: Arc<[mpsc::UnboundedSender<Entry>]>,
    writable: watch::Receiver<bool>,
}

impl Ledger {
    /// Starts the writers into `tasks`; they end when the last handle is dropped and all is written. They ring `bell`
    /// when a turn passed on: the next delivery is in the queue.
    #[must_use]
    pub fn start(
        store: &Store,
        leases: &Arc<Leases>,
        bell: &Arc<Notify>,
        small_tenants: &Arc<SmallTenantPriority>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (writable_tx, writable) = watch::channel(true);
        let writable_tx = Arc::new(writable_tx);
        let writers = (0..WRITERS).map(|_| {
            // Unbounded, but never longer than the node's room for deliveries.
            let (sender, receiver) = mpsc::unbounded_channel();
            let writer =
                LedgerWriter::new(store.clone(), Arc::clone(leases), Arc::clone(bell), Arc::clone(&writable_tx));
            tasks.spawn(writer.run(receiver, Arc::clone(small_tenants)));
            sender
        });
        Self { writers: writers.collect(), writable }
    }

    /// Records an attempt of a delivery that is still being worked on.
    pub fn record(&self, settlement: Settlement) {
        let lease = settlement.lease;
        self.send(lease, Entry::Attempt { settlement: Box::new(settlement) });
    }

    /// Records the attempt that ends this node's work on a delivery; `asks` says whether scripts want to know of its end.
    pub fn settle(&self, settlement: Settlement, work: Work, asks: bool) {
        self.send(work.lease.id, Entry::Outcome { settlement: Box::new(settlement), work, asks });
    }

    /// Puts a delivery back into the queue, due at `at`: it only waits, without an attempt or an event. It comes back
    /// with the same past and trigger.
    pub fn defer(&self, work: Work, at: Timestamp) {
        let deferral = Deferral {
            tenant: work.tenant,
            delivery: work.delivery,
            message: work.message.id,
            priority: work.message.priority,
            lease: work.lease.id,
            attempts: work.attempts,
            deaths: work.deaths,
            trigger: work.trigger,
            wait: Duration::try_from(at.duration_since(clock::now())).unwrap_or_default(),
        };
        self.send(deferral.lease, Entry::Deferral { deferral, work });
    }

    /// Commits to a request before its first byte; false when the delivery is no longer this
    /// node's.
    pub async fn intend(&self, intent: NewIntent) -> bool {
        let (committed, answer) = oneshot::channel();
        self.send(intent.lease, Entry::Intent { intent, committed });
        answer.await.unwrap_or(false)
    }

    /// Whether outcomes can be written now.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        *self.writable.borrow()
    }

    /// Waits until outcomes can be written: nothing is sent without a writable ledger.
    pub async fn writable(&self) {
        if self.is_writable() {
            return;
        }
        let mut writable = self.writable.clone();
        // An error means that the writers ended: the node stops.
        let _ = writable.wait_for(|writable| *writable).await;
    }

    fn send(&self, lease: Uuid, mut entry: Entry) {
        // Its tenant sends no more: the priority ends.
        if let Entry::Outcome { work, .. } | Entry::Deferral { work, .. } = &mut entry {
            work.priority_guard = None;
        }
        let writer = lease.as_u128() as usize % self.writers.len();
        // The writers outlive every handle; a closed channel means that one panicked, and recovery
        // then finds the delivery by its lease.
        if self.writers[writer].send(entry).is_err() {
            tracing::error!("a ledger writer has ended; its deliveries are recovered by their leases");
        }
    }
}
