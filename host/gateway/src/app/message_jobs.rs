//! Jobs that act on many messages: started with a count, followed, and stopped.

use serde_json::json;

use super::{App, PageRows, Principal, Result, error::UseCaseError};
use crate::clock;
use angarium_domain::{
    audit::Action,
    ids::{JobId, TenantId},
    job::{JobAction, UnknownResolution},
};
use angarium_store::{
    audit::AuditEntry,
    message_job::{MessageJobRecord, message_job_cancel, message_job_get, message_job_insert, message_job_list},
    message_search::{MessageFilter, message_count},
};

pub use angarium_store::message_job::MessageJob;

const MISSING: UseCaseError = UseCaseError::NotFound("job");

/// A job as a person asks for it.
#[derive(Debug, Clone)]
pub struct WantedJob {
    pub action: JobAction,
    pub filter: MessageFilter,
    /// Of [`JobAction::Resolve`].
    pub resolution: Option<UnknownResolution>,
    pub reason: String,
}

/// Returns how many messages match now.
pub async fn count(app: &App, tenant: TenantId, filter: &MessageFilter) -> Result<i64> {
    Ok(message_count(&mut *app.store.snapshot(tenant).await?, tenant, filter).await?)
}

/// Begins a job on all messages that match and were accepted by now: no later one is met.
pub async fn start(app: &App, by: &Principal, wanted: WantedJob) -> Result<MessageJob> {
    let now = clock::now();
    let until = wanted.filter.until.map_or(now, |until| until.min(now));
    let filter = MessageFilter { until: Some(until), ..wanted.filter };
    let mut change = app.changes.begin(by).await?;
    let matched = message_count(&mut change, by.tenant, &filter).await?;
    let WantedJob { action, resolution, reason, .. } = wanted;
    let new = MessageJobRecord { id: JobId::new(), action, filter, resolution, reason, matched };
    message_job_insert(&mut change, by.tenant, &new).await?;
    let job = message_job_get(&mut change, by.tenant, new.id).await?.ok_or(MISSING)?;
    let about = json!({"action": action, "filter": new.filter, "resolution": resolution, "matched": matched});
    change.commit(AuditEntry::new(Action::MessageJobStarted, new.id).after(about).because(Some(&new.reason))).await?;
    Ok(job)
}

/// Returns a page of jobs, the newest first.
pub async fn list(app: &App, tenant: TenantId, after: Option<JobId>, limit: u32) -> Result<PageRows<MessageJob>> {
    Ok(message_job_list(&mut *app.store.tenant(tenant).await?, tenant, after, limit).await?)
}

/// Returns a job and its progress.
pub async fn get(app: &App, tenant: TenantId, id: JobId) -> Result<MessageJob> {
    message_job_get(&mut *app.store.tenant(tenant).await?, tenant, id).await?.ok_or(MISSING)
}

/// Stops a job; what it has done stays.
pub async fn cancel(app: &App, by: &Principal, id: JobId) -> Result<MessageJob> {
    let mut change = app.changes.begin(by).await?;
    let is_canceled = message_job_cancel(&mut change, by.tenant, id).await?;
    let job = message_job_get(&mut change, by.tenant, id).await?.ok_or(MISSING)?;
    if !is_canceled {
        return Err(UseCaseError::conflict("wrong_state", "the job has ended"));
    }
    change.commit(AuditEntry::new(Action::MessageJobCanceled, id)).await?;
    Ok(job)
}
