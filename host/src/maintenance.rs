//! The housework of the tables: partitions made ahead, old idempotency keys forgotten, the queue
//! measured.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    store::{self, Store, maintenance::partitions_ensure, message::idempotency_expire, queue::queue_depth},
    telemetry,
};

/// The queue is counted up to here; beyond, it is "at least".
const COUNTED: i64 = 100_000;

/// Does the housework until it is told to stop.
pub async fn run(store: Store, stop: CancellationToken) {
    let mut round = 0_u32;
    while !stop.is_cancelled() {
        if let Err(error) = work(&store, round).await {
            tracing::warn!(%error, "housework failed; it is tried again");
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
    }
}

async fn work(store: &Store, round: u32) -> store::Result<()> {
    let mut txn = store.worker().await?;
    for depth in queue_depth(&mut txn, COUNTED).await? {
        telemetry::queued(depth.priority, depth.waiting, depth.oldest_seconds);
    }
    if round.is_multiple_of(12) {
        idempotency_expire(&mut txn).await?;
    }
    if round.is_multiple_of(720) {
        partitions_ensure(&mut txn).await?;
    }
    txn.commit().await?;
    Ok(())
}
