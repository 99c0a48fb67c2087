//! A step of a replay: the next dead letters go into the queue in one transaction, so that each is moved once. It
//! decides nothing about a delivery.

use crate::{app::Result, clock, engine::legs};
use angarium_domain::{
    audit::{Action, Actor},
    dead_letter::DeadLetterFilter,
    ids::{DeliveryId, JobId, TenantId},
};
use angarium_store::{
    self as store, Connection, Store, StoreError,
    audit::{AuditEntry, audit_insert},
    dead_letter::dead_letter_next,
    delivery::{Reopened, Reopening, delivery_reopen_all},
    event::event_insert_all,
    job::{Job, JobMove, job_advance},
    legs::legs_hold_of,
    queue::{QueueEntry, queue_insert},
};

/// Moves the next `size` dead letters at most into the queue, and the job on. True if there are none.
pub async fn step(store: &Store, job: &mut Job, filter: &DeadLetterFilter, size: u32) -> Result<bool> {
    if size == 0 {
        return Ok(true);
    }
    let mut txn = store.worker().await?;
    let next = dead_letter_next(&mut txn, job.tenant, filter, job.reached.map(DeliveryId::from), size).await?;
    let Some(last) = next.last() else { return Ok(true) };
    let reopened = reopen(&mut txn, job, filter, &next).await?;
    let (done, skipped) = (reopened.len() as i64, (next.len() - reopened.len()) as i64);
    let step = JobMove { tenant: job.tenant, job: job.id, from: job.reached, to: last.uuid(), done, skipped };
    if !job_advance(&mut txn, &step).await? {
        return Ok(false);
    }
    txn.commit().await.map_err(StoreError::from)?;
    job.reached = Some(step.to);
    job.done += done;
    job.skipped += skipped;
    Ok(false)
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
    let actor = Actor::job(job.id, job.task.action().as_str());
    for it in &reopened {
        let entry = AuditEntry::new(Action::DeadLetterReplayed, it.delivery).because(job.reason.as_deref());
        audit_insert(db, job.tenant, &actor, &entry).await?;
    }
    Ok(reopened)
}

async fn tell(db: &mut Connection, tenant: TenantId, job: JobId, reopened: &[Reopened]) -> store::Result<()> {
    let deliveries: Vec<_> = reopened.iter().map(|it| (it.message, it.delivery)).collect();
    let data = format!(r#"{{"replay":"{job}"}}"#);
    event_insert_all(db, tenant, &deliveries, "message.retry_requested", Some(&data)).await
}
