//! Works through jobs on many messages. Any dispatching node takes the next step of a job, under a lock on its row. Each
//! action has its own transaction and audit entry; a step that is repeated after a crash finds its messages done.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::app::{
    Principal, Result,
    change::Changes,
    error::UseCaseError,
    message_actions::{MessageActions, dead_letter::WantedResolution},
};
use angarium_domain::{
    audit::Actor,
    ids::MessageId,
    job::{JobAction, UnknownResolution},
};
use angarium_store::{
    Store,
    message_job::{JobStep, MessageJob, message_job_advance, message_job_claim},
    message_search::message_find,
};

/// How often a node looks while no job runs.
const PAUSE: Duration = Duration::from_millis(500);
/// The messages of a step: a stop waits for no more than these.
const STEP: i64 = 20;

/// Takes steps of jobs until it is stopped.
pub async fn run(store: Store, bell: Arc<Notify>, stop: CancellationToken) {
    let changes = Changes::bare(store.clone());
    while !stop.is_cancelled() {
        match step(&store, &changes, &bell).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "a job on messages does not go on; it is tried again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Takes one step of the job that has waited longest; false if none runs.
async fn step(store: &Store, changes: &Changes, bell: &Arc<Notify>) -> Result<bool> {
    let mut txn = store.worker().await?;
    let Some(job) = message_job_claim(&mut txn).await? else { return Ok(false) };
    let next = message_find(&mut txn, job.tenant, &job.filter, job.reached, STEP).await?;
    let by = Principal { tenant: job.tenant, actor: Actor::job(job.id, job.action.as_str()) };
    let actions = MessageActions { changes, bell, by: &by };
    let mut result = JobStep { reached: next.last().copied(), ..JobStep::default() };
    for message in next {
        if act(&actions, &job, message).await? {
            result.done += 1;
        } else {
            result.skipped += 1;
        }
    }
    message_job_advance(&mut txn, &job, result).await?;
    txn.commit().await.map_err(angarium_store::StoreError::from)?;
    Ok(true)
}

/// Acts on one message; false if its state does not allow it.
async fn act(actions: &MessageActions<'_>, job: &MessageJob, message: MessageId) -> Result<bool> {
    let done = match job.action {
        JobAction::Cancel => actions.cancel(message).await,
        JobAction::Retry => actions.retry(message, None).await,
        JobAction::Resolve => {
            let resolution = job.resolution.unwrap_or(UnknownResolution::Failed);
            let wanted = WantedResolution { resolution, reason: job.reason.clone(), external_id: None, delivery: None };
            actions.resolve(message, &wanted).await
        }
    };
    match done {
        Ok(_) => Ok(true),
        Err(UseCaseError::NotFound(_) | UseCaseError::Conflict { .. } | UseCaseError::Invalid(_)) => Ok(false),
        Err(UseCaseError::Internal(error)) => {
            tracing::warn!(error, job.id = %job.id, message.id = %message, "a job skips a message");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
