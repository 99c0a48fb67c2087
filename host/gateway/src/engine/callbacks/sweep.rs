//! Looks again at receipts that came before their delivery's outcome was written. One transaction a
//! receipt, so that no two nodes wait for each other in a circle.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::record::{self, RecordedReceipt, record};
use angarium_store::{
    self as store, Store, StoreError,
    receipt::{ReceivedReceipt, pending_due, pending_postpone, pending_take},
};

/// How often it looks; each receipt has its own time, later the longer it waits.
const PAUSE: Duration = Duration::from_secs(1);

/// The most receipts of one look.
const BATCH: i64 = 500;

/// Runs each second until it is stopped.
pub async fn run(store: Store, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let full = match sweep(&store).await {
            Ok(count) => count >= BATCH as usize,
            Err(error) => {
                tracing::warn!(%error, "early receipts can't be matched; the next look is in a second");
                false
            }
        };
        if !full {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

/// Looks once; returns the number of receipts.
async fn sweep(store: &Store) -> store::Result<usize> {
    let mut txn = store.worker().await?;
    let due = pending_due(&mut txn, BATCH).await?;
    txn.commit().await?;
    for received in &due {
        match look(store, received).await {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            // A receipt that the database refuses must not keep the others waiting.
            Err(error) => {
                tracing::warn!(%error, connection.id = %received.connection, "a receipt can't be recorded");
                postpone(store, received).await?;
            }
            Ok(()) => {}
        }
    }
    Ok(due.len())
}

async fn look(store: &Store, received: &ReceivedReceipt) -> store::Result<()> {
    let mut txn = store.worker().await?;
    if !pending_take(&mut txn, received).await? {
        return Ok(());
    }
    let recorded = record(&mut txn, received, true).await?;
    if recorded != RecordedReceipt::NotYet {
        txn.commit().await?;
        record::count(&received.receipt.kind, recorded);
        return Ok(());
    }
    txn.rollback().await?;
    postpone(store, received).await
}

async fn postpone(store: &Store, received: &ReceivedReceipt) -> store::Result<()> {
    let mut txn = store.worker().await?;
    let dropped = pending_postpone(&mut txn, received).await?;
    txn.commit().await?;
    if dropped {
        record::count(&received.receipt.kind, RecordedReceipt::Unmatched);
        tracing::debug!(
            connection.id = %received.connection,
            receipt.kind = received.receipt.kind.as_str(),
            "a receipt is dropped: no delivery of this gateway's came for it within a day"
        );
    }
    Ok(())
}
