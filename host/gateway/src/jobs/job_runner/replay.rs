//! A step of a replay: the next dead letters go into the queue in one transaction, so that each is moved once. It
//! decides nothing about a delivery.

use crate::{app::Result, clock, engine::legs};
use angarium_domain::{
    dead_letter::DeadLetterFilter,
    ids::{DeliveryId, JobId, TenantId},
};
use angarium_store::{
    self as store, Connection,
    dead_letter::dead_letter_next,
    delivery::{Reopened, Reopening, delivery_reopen_all},
    event::event_insert_all,
    job::{Job, JobStep},
    legs::legs_hold_of,
    queue::{QueueEntry, queue_insert},
};

/// Moves the next `size` dead letters at most into the queue, in the caller's transaction.
pub async fn step(db: &mut Connection, job: &Job, filter: &DeadLetterFilter, size: u32) -> Result<JobStep> {
    let next = match size {
        0 => Vec::new(),
        size => dead_letter_next(db, job.tenant, filter, job.reached.map(DeliveryId::from), size).await?,
    };
    let reopened = reopen(db, job, filter, &next).await?;
    Ok(JobStep {
        reached: next.last().map(|id| id.uuid()),
        done: reopened.len() as i64,
        skipped: (next.len() - reopened.len()) as i64,
    })
}

async fn reopen(
    db: &mut Connection,
    job: &Job,
    filter: &DeadLetterFilter,
    deliveries: &[DeliveryId],
) -> store::Result<Vec<Reopened>> {
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let now = clock::now();
    let how =
        Reopening { from: &filter.states, at: now, keeps_unknown: true, only_sendable: true, replay: Some(job.id) };
    legs_hold_of(db, job.tenant, deliveries).await?;
    let (reopened, moved) = delivery_reopen_all(db, job.tenant, deliveries, how).await?;
    legs::advance(db, moved).await?;
    let entry =
        |it: &Reopened| QueueEntry { tenant: job.tenant, delivery: it.delivery, due_at: now, priority: it.priority };
    queue_insert(db, &reopened.iter().map(entry).collect::<Vec<_>>()).await?;
    tell(db, job.tenant, job.id, &reopened).await?;
    Ok(reopened)
}

async fn tell(db: &mut Connection, tenant: TenantId, job: JobId, reopened: &[Reopened]) -> store::Result<()> {
    let deliveries: Vec<_> = reopened.iter().map(|it| (it.message, it.delivery)).collect();
    let data = format!(r#"{{"replay":"{job}"}}"#);
    event_insert_all(db, tenant, &deliveries, "message.retry_requested", Some(&data)).await
}
