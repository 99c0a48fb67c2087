//! Jobs that act on many messages, or replay many dead letters: started with a count, followed, and stopped.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{App, PageRows, Principal, Result, audit::without_recipient, error::UseCaseError};
use crate::clock;
use angarium_domain::{
    audit::Action,
    dead_letter::DeadLetterFilter,
    ids::{JobId, TenantId},
    job::JobAction,
};
use angarium_store::{
    Connection,
    audit::AuditEntry,
    dead_letter::dead_letter_count,
    job::{NewJob, job_cancel, job_get, job_insert, job_list, job_outcomes},
    message_search::{MessageFilter, message_count},
};

pub use angarium_store::job::{Job, JobTask};

const MISSING: UseCaseError = UseCaseError::NotFound("job");

/// A job as a person asks for it.
#[derive(Debug, Clone)]
pub struct WantedJob {
    pub task: JobTask,
    /// How many it acts on in a second at most; `None`: as fast as it goes.
    pub rate_per_second: Option<u32>,
    /// The most that it acts on.
    pub most: Option<i64>,
    pub reason: Option<String>,
}

/// A job with the present states of the deliveries that it opened, if it is a replay.
#[derive(Debug, Clone)]
pub struct JobReport {
    pub job: Job,
    pub outcomes: BTreeMap<String, i64>,
}

/// Returns how many messages or dead letters match now.
pub async fn count(app: &App, tenant: TenantId, task: &JobTask) -> Result<i64> {
    matched(&mut *app.store.snapshot(tenant).await?, tenant, task).await
}

async fn matched(db: &mut Connection, tenant: TenantId, task: &JobTask) -> Result<i64> {
    Ok(match task {
        JobTask::Cancel(filter) | JobTask::Retry(filter) | JobTask::Resolve(filter, _) => {
            message_count(db, tenant, filter).await?
        }
        JobTask::Replay(filter) => dead_letter_count(db, tenant, filter).await?,
    })
}

/// Begins a job on all that matches now: no later message, and nothing that fails again, is met.
pub async fn start(app: &App, by: &Principal, wanted: WantedJob) -> Result<JobReport> {
    let task = by_now(wanted.task, clock::now());
    let mut change = app.changes.begin(by).await?;
    let matched = matched(&mut change, by.tenant, &task).await?;
    let WantedJob { rate_per_second, most, reason, .. } = wanted;
    let new = NewJob { id: JobId::new(), task, rate_per_second, most, reason, matched };
    job_insert(&mut change, by.tenant, &new).await?;
    let job = job_get(&mut change, by.tenant, new.id).await?.ok_or(MISSING)?;
    let action = match new.task.action() {
        JobAction::Replay => Action::ReplayStarted,
        JobAction::Cancel | JobAction::Retry | JobAction::Resolve => Action::MessageJobStarted,
    };
    let entry = AuditEntry::new(action, new.id).after(recorded(&new)?).because(new.reason.as_deref());
    change.commit(entry).await?;
    Ok(JobReport { job, outcomes: BTreeMap::new() })
}

/// Returns the task with the time of the request as the end of what it meets.
fn by_now(task: JobTask, now: Timestamp) -> JobTask {
    let until = |until: Option<Timestamp>| Some(until.map_or(now, |until| until.min(now)));
    let messages = |filter: MessageFilter| MessageFilter { until: until(filter.until), ..filter };
    match task {
        JobTask::Cancel(filter) => JobTask::Cancel(messages(filter)),
        JobTask::Retry(filter) => JobTask::Retry(messages(filter)),
        JobTask::Resolve(filter, resolution) => JobTask::Resolve(messages(filter), resolution),
        JobTask::Replay(filter) => JobTask::Replay(DeadLetterFilter { until: until(filter.until), ..filter }),
    }
}

fn recorded(new: &NewJob) -> Result<Value> {
    let filter: Value = serde_json::from_str(&new.task.filter()?).map_err(|error| UseCaseError::internal(&error))?;
    Ok(json!({
        "action": new.task.action(), "filter": without_recipient(&filter)?, "resolution": new.task.resolution(),
        "rate_per_second": new.rate_per_second, "limit": new.most, "matched": new.matched,
    }))
}

/// Returns a page of the jobs, or of those with one action, the newest first, from behind `after`.
pub async fn list(
    app: &App,
    tenant: TenantId,
    action: Option<JobAction>,
    after: Option<JobId>,
    limit: u32,
) -> Result<PageRows<JobReport>> {
    let mut txn = app.store.tenant(tenant).await?;
    let PageRows { rows, more } = job_list(&mut txn, tenant, action, after, limit).await?;
    let ids: Vec<_> = rows.iter().map(|job| job.id).collect();
    let mut outcomes = job_outcomes(&mut txn, tenant, &ids).await?;
    let rows = rows.into_iter().map(|job| {
        let outcomes = outcomes.remove(&job.id).unwrap_or_default();
        JobReport { job, outcomes }
    });
    Ok(PageRows { rows: rows.collect(), more })
}

/// Returns a job and its progress; with an `action`, only a job with that one exists.
pub async fn get(app: &App, tenant: TenantId, action: Option<JobAction>, id: JobId) -> Result<JobReport> {
    report(&mut *app.store.tenant(tenant).await?, tenant, action, id).await
}

/// Stops a job; what it has done stays. With an `action`, only a job with that one exists.
pub async fn cancel(app: &App, by: &Principal, action: Option<JobAction>, id: JobId) -> Result<JobReport> {
    let mut change = app.changes.begin(by).await?;
    let is_canceled = job_cancel(&mut change, by.tenant, id).await?;
    let report = report(&mut change, by.tenant, action, id).await?;
    if !is_canceled {
        return Err(UseCaseError::conflict("wrong_state", "the job has ended"));
    }
    let action = match report.job.task.action() {
        JobAction::Replay => Action::ReplayCanceled,
        JobAction::Cancel | JobAction::Retry | JobAction::Resolve => Action::MessageJobCanceled,
    };
    change.commit(AuditEntry::new(action, id)).await?;
    Ok(report)
}

async fn report(db: &mut Connection, tenant: TenantId, action: Option<JobAction>, id: JobId) -> Result<JobReport> {
    let is_meant = |job: &Job| action.is_none_or(|action| job.task.action() == action);
    let job = job_get(db, tenant, id).await?.filter(is_meant).ok_or(MISSING)?;
    let outcomes = job_outcomes(db, tenant, &[id]).await?.remove(&id).unwrap_or_default();
    Ok(JobReport { job, outcomes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_meets_nothing_that_comes_after_its_request() {
        let (now, early) = (Timestamp::from_second(1000).unwrap(), Timestamp::from_second(10).unwrap());
        let until = |until| match by_now(JobTask::Replay(DeadLetterFilter { until, ..Default::default() }), now) {
            JobTask::Replay(filter) => filter.until,
            _ => None,
        };
        assert_eq!(until(None), Some(now));
        assert_eq!(until(Some(early)), Some(early));
        assert_eq!(until(Some(Timestamp::MAX)), Some(now));
        let messages = by_now(JobTask::Retry(MessageFilter::default()), now);
        assert_eq!(messages, JobTask::Retry(MessageFilter { until: Some(now), ..MessageFilter::default() }));
    }
}
