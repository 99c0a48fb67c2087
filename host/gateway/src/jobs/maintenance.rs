//! The housework of the tables: partitions made ahead, old idempotency keys forgotten, the queue
//! and the dead letters measured, statistics folded into their roll-ups, the ledger kept as long as it is to be.

mod retention;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{node::config::RetentionConfig, node::telemetry};
use angarium_domain::statistics::Grain;
use angarium_store::{
    self as store, Store,
    dead_letter::dead_letter_depth,
    experiment::experiment_expire,
    message::idempotency_expire,
    queue::queue_depth,
    statistics::{stat_expire, stat_fold},
};

/// The queue is counted up to here; beyond, it is "at least".
const COUNTED: i64 = 100_000;
/// Dead letters are counted up to here.
const DEAD: i64 = 10_000;
/// The most transactions whose facts one fold takes.
const FOLDED: i64 = 20_000;
/// How long facts gather: reads take them in, so this is only about how many rows a read goes through.
const FOLD_PAUSE: Duration = Duration::from_secs(2);
/// The most rows that one transaction forgets.
const FORGOTTEN: i64 = 10_000;

/// Does the housework until it is stopped.
pub async fn run(store: Store, retention: RetentionConfig, stop: CancellationToken) {
    tokio::join!(keep_house(&store, &stop), fold(&store, &stop), retention::run(&store, &retention, &stop));
}

async fn keep_house(store: &Store, stop: &CancellationToken) {
    let mut round = 0_u32;
    while !stop.is_cancelled() {
        if let Err(error) = work(store, round).await {
            tracing::warn!(%error, "housework failed; it is tried again");
        }
        round = round.wrapping_add(1);
        pause(Duration::from_secs(5), stop).await;
    }
}

async fn work(store: &Store, round: u32) -> store::Result<()> {
    let mut txn = store.worker().await?;
    for depth in queue_depth(&mut txn, COUNTED).await? {
        telemetry::queued(depth.priority, depth.waiting, depth.oldest_seconds);
    }
    if round.is_multiple_of(12) {
        let dead = dead_letter_depth(&mut txn, DEAD).await?;
        telemetry::dead_letters(dead.into_iter().map(|it| (it.channel, it.state, it.count)));
        idempotency_expire(&mut txn).await?;
        experiment_expire(&mut txn).await?;
        for grain in [Grain::Minute, Grain::Hour] {
            stat_expire(&mut txn, grain, FORGOTTEN).await?;
        }
    }
    txn.commit().await?;
    if round.is_multiple_of(720) {
        store.partitions_ensure().await?;
    }
    Ok(())
}

/// Folds statistics until it is stopped.
async fn fold(store: &Store, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        match fold_once(store).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "statistics are not folded; it is tried again, and they are right meanwhile")
            }
        }
        pause(FOLD_PAUSE, stop).await;
    }
}

/// Folds once; returns whether more waits.
async fn fold_once(store: &Store) -> store::Result<bool> {
    let mut txn = store.worker().await?;
    let more = stat_fold(&mut txn, FOLDED).await?;
    txn.commit().await?;
    Ok(more)
}

async fn pause(length: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(length) => {}
    }
}
