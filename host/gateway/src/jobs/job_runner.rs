//! Works through jobs. Any dispatching node takes the next step of a job, under a lock on its row that ends with the
//! step's transaction; a node that is lost takes nothing along. It keeps nothing in memory between two steps.

mod replay;

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::app::{
    Principal, Result,
    change::Changes,
    error::UseCaseError,
    message_actions::{MessageActions, dead_letter::WantedResolution},
};
use angarium_domain::{audit::Actor, ids::MessageId, job};
use angarium_store::{
    Connection, Store, StoreError,
    job::{Job, JobStep, JobTask, job_advance, job_claim, job_next_due, job_postpone},
    message_search::{MessageFilter, message_find},
};

/// How often a node looks while nothing is due.
const PAUSE: Duration = Duration::from_millis(500);
/// The shortest pause: another node may have the job that is due.
const SHORTEST: Duration = Duration::from_millis(10);
/// How long a job waits after a step that failed, in seconds.
const AFTER_FAILURE: f64 = 10.0;
/// The most messages of a step, each with a transaction of its own: a stop waits for no more than these.
const MOST_MESSAGES: u32 = 20;
/// The most dead letters of a step, in one transaction.
const MOST_LETTERS: u32 = 200;

/// Takes steps of jobs until it is stopped. `bell` wakes this node's claimer for due deliveries.
pub async fn run(store: Store, bell: Arc<Notify>, stop: CancellationToken) {
    let runner = JobRunner { changes: Changes::bare(store.clone()), store, bell };
    while !stop.is_cancelled() {
        let pause = match runner.step().await {
            Ok(true) => {
                runner.bell.notify_one();
                continue;
            }
            Ok(false) => runner.next_due().await.unwrap_or(PAUSE),
            Err(error) => {
                tracing::warn!(%error, "a job does not go on; it is tried again");
                PAUSE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct JobRunner {
    store: Store,
    changes: Changes,
    bell: Arc<Notify>,
}

impl JobRunner {
    async fn next_due(&self) -> Result<Duration> {
        let seconds = job_next_due(&mut *self.store.worker().await?).await?.unwrap_or(f64::MAX);
        Ok(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(PAUSE).clamp(SHORTEST, PAUSE))
    }

    /// Takes one step of the job that has waited longest; false if none is due.
    async fn step(&self) -> Result<bool> {
        let mut txn = self.store.worker().await?;
        let Some(job) = job_claim(&mut txn).await? else { return Ok(false) };
        match self.advance(&mut txn, &job).await {
            Ok(()) => txn.commit().await.map_err(StoreError::from)?,
            Err(error @ UseCaseError::DatabaseDown(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, job.id = %job.id, "a step of a job failed; it is tried again in ten seconds");
                txn.rollback().await.map_err(StoreError::from)?;
                let mut txn = self.store.worker().await?;
                job_postpone(&mut txn, &job, AFTER_FAILURE).await?;
                txn.commit().await.map_err(StoreError::from)?;
            }
        }
        Ok(true)
    }

    /// Acts on what is next, and records the step in the caller's transaction.
    async fn advance(&self, db: &mut Connection, job: &Job) -> Result<()> {
        let step = match &job.task {
            JobTask::Cancel(filter) | JobTask::Retry(filter) | JobTask::Resolve(filter, _) => {
                self.messages(db, job, filter).await?
            }
            JobTask::Replay(filter) => replay::step(db, job, filter, size(job, MOST_LETTERS)).await?,
        };
        job_advance(db, job, step).await?;
        if step.reached.is_none() {
            tracing::info!(job.id = %job.id, done = job.done, skipped = job.skipped, "a job has finished");
        }
        Ok(())
    }

    /// Acts on the next messages. Each action has its own transaction and audit entry; a step that is repeated after a
    /// crash finds its messages done.
    async fn messages(&self, db: &mut Connection, job: &Job, filter: &MessageFilter) -> Result<JobStep> {
        let next = match size(job, MOST_MESSAGES) {
            0 => Vec::new(),
            size => message_find(db, job.tenant, filter, job.reached.map(MessageId::from), size.into()).await?,
        };
        let by = Principal { tenant: job.tenant, actor: Actor::job(job.id, job.task.action().as_str()) };
        let actions = MessageActions { changes: &self.changes, bell: &self.bell, by: &by };
        let mut step = JobStep { reached: next.last().map(|id| id.uuid()), ..JobStep::default() };
        for message in next {
            if act(&actions, job, message).await? {
                step.done += 1;
            } else {
                step.skipped += 1;
            }
        }
        Ok(step)
    }
}

/// How many the next step may act on.
fn size(job: &Job, most: u32) -> u32 {
    job::step_size(job.rate_per_second, job.most.map(|most| most - job.done), most)
}

/// Acts on one message; false if its state does not allow it.
async fn act(actions: &MessageActions<'_>, job: &Job, message: MessageId) -> Result<bool> {
    let done = match &job.task {
        JobTask::Cancel(_) => actions.cancel(message).await,
        JobTask::Retry(_) => actions.retry(message, None).await,
        JobTask::Resolve(_, resolution) => {
            let reason = job.reason.clone().unwrap_or_default();
            let wanted = WantedResolution { resolution: *resolution, reason, external_id: None, delivery: None };
            actions.resolve(message, &wanted).await
        }
        JobTask::Replay(_) => return Ok(false),
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
