//! Keeps this node's leases alive.

use std::{sync::Arc, time::Instant};

use tokio_util::sync::CancellationToken;

use super::Leases;
use angarium_store::{self as store, Store, queue::lease_renew};

/// Renews every lease three times in its length, until it is stopped. While the database is away, the leases run out by
/// this node's own clock, and nothing more is sent under them.
pub async fn run(store: Store, leases: Arc<Leases>, stop: CancellationToken) {
    let pause = leases.length / 3;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if let Err(error) = renew(&store, &leases).await {
            tracing::warn!(%error, "leases can't be renewed; deliveries stop when they run out");
        }
    }
}

async fn renew(store: &Store, leases: &Leases) -> store::Result<()> {
    let asked = leases.standing();
    if asked.is_empty() {
        return Ok(());
    }
    let asked_at = Instant::now();
    let mut txn = store.worker().await?;
    let renewed = lease_renew(&mut txn, leases.length, &asked).await?;
    txn.commit().await?;
    let lost = leases.renewed(asked_at, &asked, &renewed);
    if lost > 0 {
        tracing::warn!(leases = lost, "leases were lost: other nodes have their deliveries");
    }
    Ok(())
}
