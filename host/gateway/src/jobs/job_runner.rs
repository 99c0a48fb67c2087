//! Works through jobs. Any dispatching node takes a job for a while and acts on what is next; each action moves the job
//! on in its own transaction, so that it happens once, whoever dies, freezes or races. It keeps nothing in memory
//! between two steps.

mod replay;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::{
    Principal, Result,
    change::Changes,
    error::UseCaseError,
    message_actions::{MessageActions, OVERTAKEN, dead_letter::WantedResolution},
};
use angarium_domain::{audit::Actor, ids::MessageId, job};
use angarium_store::{
    Store, StoreError,
    job::{Job, JobMove, JobTask, job_advance, job_claim, job_finish, job_next_due, job_postpone},
    message_search::{MessageFilter, message_find_for_job},
};

/// How often a node looks while nothing is due.
const PAUSE: Duration = Duration::from_millis(500);
/// The shortest pause: another node may have the job that is due.
const SHORTEST: Duration = Duration::from_millis(10);
/// How long a job waits after a step that failed, in seconds.
const AFTER_FAILURE: f64 = 10.0;
/// How long a node has a job for one step, in seconds. Another one goes on after a node that is lost or frozen.
const LEASE: f64 = 10.0;
/// The most messages of a step, each with a transaction of its own.
const MOST_MESSAGES: u32 = 50;
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
        let claimed = job_claim(&mut txn, LEASE).await?;
        txn.commit().await.map_err(StoreError::from)?;
        let Some(mut job) = claimed else { return Ok(false) };
        let before = job.done;
        let pause = match self.advance(&mut job).await {
            Ok(()) => job.rate_per_second.map_or(0.0, |rate| (job.done - before) as f64 / f64::from(rate)),
            Err(error @ UseCaseError::DatabaseDown(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, job.id = %job.id, "a step of a job failed; it is tried again in ten seconds");
                AFTER_FAILURE
            }
        };
        let mut txn = self.store.worker().await?;
        job_postpone(&mut txn, &job, pause).await?;
        txn.commit().await.map_err(StoreError::from)?;
        Ok(true)
    }

    /// Acts on what is next; a job with nothing left is finished.
    async fn advance(&self, job: &mut Job) -> Result<()> {
        let is_over = match job.task.clone() {
            JobTask::Cancel(filter) | JobTask::Retry(filter) | JobTask::Resolve(filter, _) => {
                self.messages(job, &filter).await?
            }
            JobTask::Replay(filter) => replay::step(&self.store, job, &filter, size(job, MOST_LETTERS)).await?,
        };
        if is_over {
            let mut txn = self.store.worker().await?;
            job_finish(&mut txn, job).await?;
            txn.commit().await.map_err(StoreError::from)?;
            tracing::info!(job.id = %job.id, done = job.done, skipped = job.skipped, "a job has finished");
        }
        Ok(())
    }

    /// Acts on the next messages from the oldest on, so that those with one ordering key keep their order, each in a transaction that also moves the job on. True if there are none.
    async fn messages(&self, job: &mut Job, filter: &MessageFilter) -> Result<bool> {
        let size = size(job, MOST_MESSAGES);
        if size == 0 {
            return Ok(true);
        }
        let mut txn = self.store.worker().await?;
        let reached = job.reached.map(MessageId::from);
        let next = message_find_for_job(&mut txn, job.tenant, filter, job.id, reached, size.into()).await?;
        drop(txn);
        let is_over = next.is_empty();
        let by = Principal { tenant: job.tenant, actor: Actor::job(job.id, job.task.action().as_str()) };
        let began = Instant::now();
        for message in next {
            // Beyond its time another node may have the job.
            if began.elapsed().as_secs_f64() > LEASE / 2.0 {
                break;
            }
            let step = step_to(job, message.uuid());
            let actions = MessageActions { changes: &self.changes, bell: &self.bell, by: &by, job: Some(step) };
            let moved = match act(&actions, job, message).await? {
                Acted::Done => Some(step),
                Acted::Skipped => self.skip(step).await?,
                Acted::Overtaken => None,
            };
            let Some(JobMove { to, done, skipped, .. }) = moved else { break };
            job.reached = Some(to);
            job.done += done;
            job.skipped += skipped;
        }
        Ok(is_over)
    }

    /// Moves a job past a message; `None` if it was stopped, or another node has moved it.
    async fn skip(&self, step: JobMove) -> Result<Option<JobMove>> {
        let step = JobMove { done: 0, skipped: 1, ..step };
        let mut txn = self.store.worker().await?;
        let moved = job_advance(&mut txn, &step).await?;
        txn.commit().await.map_err(StoreError::from)?;
        Ok(moved.then_some(step))
    }
}

/// The job's progress by one message that was acted on.
const fn step_to(job: &Job, to: Uuid) -> JobMove {
    JobMove { tenant: job.tenant, job: job.id, from: job.reached, to, done: 1, skipped: 0 }
}

/// The end of an action on one message.
enum Acted {
    Done,
    /// The message's state does not allow it, or it needs nothing.
    Skipped,
    /// The job was stopped, or another node has moved it: nothing was done.
    Overtaken,
}

/// How many the next step may act on.
fn size(job: &Job, most: u32) -> u32 {
    job::step_size(job.rate_per_second, job.most.map(|most| most - job.done), most)
}

async fn act(actions: &MessageActions<'_>, job: &Job, message: MessageId) -> Result<Acted> {
    let done = match &job.task {
        JobTask::Cancel(_) => actions.cancel(message).await,
        JobTask::Retry(_) => actions.retry(message, None).await,
        JobTask::Resolve(_, resolution) => {
            let reason = job.reason.clone().unwrap_or_default();
            let wanted = WantedResolution { resolution: *resolution, reason, external_id: None, delivery: None };
            actions.resolve(message, &wanted).await
        }
        JobTask::Replay(_) => return Ok(Acted::Skipped),
    };
    match done {
        Ok(_) => Ok(Acted::Done),
        Err(UseCaseError::Conflict { code: OVERTAKEN, .. }) => Ok(Acted::Overtaken),
        Err(UseCaseError::NotFound(_) | UseCaseError::Conflict { .. } | UseCaseError::Invalid(_)) => Ok(Acted::Skipped),
        Err(UseCaseError::Internal(error)) => {
            tracing::warn!(error, job.id = %job.id, message.id = %message, "a job skips a message");
            Ok(Acted::Skipped)
        }
        Err(error) => Err(error),
    }
}
