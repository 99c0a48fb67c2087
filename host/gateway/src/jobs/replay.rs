//! Replays dead letters at a limited rate: any dispatching node takes the next step of a job, under a
//! lock on its row that ends with the step's transaction. So a node that dies takes nothing along,
//! and each delivery is moved once.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{clock, engine::legs};
use angarium_domain::{
    dead_letter::step_size,
    ids::{DeliveryId, JobId, TenantId},
};
use angarium_store::{
    self as store, Connection, Store, StoreError,
    dead_letter::{
        Replay, ReplayStep, dead_letter_next, replay_advance, replay_claim, replay_next_due, replay_postpone,
    },
    delivery::{Reopened, Reopening, delivery_reopen_all},
    event::event_insert_all,
    legs::legs_hold_of,
    queue::{QueueEntry, queue_insert},
};

/// How often a node looks while nothing is due.
const PAUSE: Duration = Duration::from_millis(500);
/// The shortest pause: another node may have the job that is due.
const SHORTEST: Duration = Duration::from_millis(10);
/// How long a job waits after a step that failed, in seconds.
const AFTER_FAILURE: f64 = 10.0;

/// Takes steps of replays until it is stopped. `bell` wakes this node's claimer for due deliveries.
pub async fn run(store: Store, bell: Arc<Notify>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let pause = match step(&store).await {
            Ok(true) => {
                bell.notify_one();
                continue;
            }
            Ok(false) => next_due(&store).await.unwrap_or(PAUSE),
            Err(error) => {
                tracing::warn!(%error, "a replay of dead letters does not go on; it is tried again");
                PAUSE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn next_due(store: &Store) -> store::Result<Duration> {
    let seconds = replay_next_due(&mut *store.worker().await?).await?.unwrap_or(f64::MAX);
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(PAUSE).clamp(SHORTEST, PAUSE))
}

/// Takes one step of the job that has waited longest; false if none is due.
async fn step(store: &Store) -> store::Result<bool> {
    let mut txn = store.worker().await?;
    let Some(replay) = replay_claim(&mut txn).await? else { return Ok(false) };
    match advance(&mut txn, &replay).await {
        Ok(()) => txn.commit().await?,
        Err(error @ StoreError::Unavailable(_)) => return Err(error),
        Err(error) => {
            tracing::warn!(%error, job.id = %replay.id, "a step of a replay failed; it is tried again in ten seconds");
            txn.rollback().await?;
            let mut txn = store.worker().await?;
            replay_postpone(&mut txn, &replay, AFTER_FAILURE).await?;
            txn.commit().await?;
        }
    }
    Ok(true)
}

/// Moves the next of a job's dead letters into the queue, in the caller's transaction.
async fn advance(db: &mut Connection, replay: &Replay) -> store::Result<()> {
    let next = match room(replay) {
        0 => Vec::new(),
        room => dead_letter_next(db, replay.tenant, &replay.filter, replay.reached, room).await?,
    };
    let reopened = reopen(db, replay, &next).await?;
    let step = ReplayStep {
        reached: next.last().copied(),
        replayed: reopened.len() as i64,
        skipped: (next.len() - reopened.len()) as i64,
    };
    replay_advance(db, replay, step).await?;
    if step.reached.is_none() {
        tracing::info!(job.id = %replay.id, replayed = replay.replayed, skipped = replay.skipped, "a replay has finished");
    }
    Ok(())
}

/// How many the next step may move.
fn room(replay: &Replay) -> u32 {
    let left = replay.most.map_or(i64::MAX, |most| (most - replay.replayed).max(0));
    u32::try_from(left).unwrap_or(u32::MAX).min(step_size(replay.rate_per_second))
}

async fn reopen(db: &mut Connection, replay: &Replay, deliveries: &[DeliveryId]) -> store::Result<Vec<Reopened>> {
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let now = clock::now();
    let how = Reopening {
        from: &replay.filter.states,
        at: now,
        keeps_unknown: true,
        only_sendable: true,
        replay: Some(replay.id),
    };
    legs_hold_of(db, replay.tenant, deliveries).await?;
    let (reopened, moved) = delivery_reopen_all(db, replay.tenant, deliveries, how).await?;
    legs::advance(db, moved).await?;
    let entry =
        |it: &Reopened| QueueEntry { tenant: replay.tenant, delivery: it.delivery, due_at: now, priority: it.priority };
    queue_insert(db, &reopened.iter().map(entry).collect::<Vec<_>>()).await?;
    tell(db, replay.tenant, replay.id, &reopened).await?;
    Ok(reopened)
}

async fn tell(db: &mut Connection, tenant: TenantId, job: JobId, reopened: &[Reopened]) -> store::Result<()> {
    let deliveries: Vec<_> = reopened.iter().map(|it| (it.message, it.delivery)).collect();
    let data = format!(r#"{{"replay":"{job}"}}"#);
    event_insert_all(db, tenant, &deliveries, "message.retry_requested", Some(&data)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use angarium_domain::{dead_letter::DeadLetterFilter, job::JobState};

    fn replay(rate_per_second: u32, most: Option<i64>, replayed: i64) -> Replay {
        Replay {
            tenant: TenantId::new(),
            id: JobId::new(),
            state: JobState::Running,
            filter: DeadLetterFilter::default(),
            rate_per_second,
            most,
            reason: None,
            matched: 100,
            replayed,
            skipped: 0,
            reached: None,
            created_at: clock::now(),
            started_at: None,
            finished_at: None,
        }
    }

    #[test]
    fn a_step_keeps_to_rate_and_limit() {
        assert_eq!(room(&replay(50, None, 0)), 10);
        assert_eq!(room(&replay(50, Some(13), 10)), 3);
        assert_eq!(room(&replay(50, Some(13), 13)), 0);
    }
}
