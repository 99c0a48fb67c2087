//! Jobs that act on many messages.

use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Result,
    message::{corrupt, parsed},
    message_search::MessageFilter,
    page::{PageRows, one_more, page},
};
use angarium_domain::{
    ids::{JobId, MessageId, TenantId},
    job::{JobAction, JobState, UnknownResolution},
};

/// A job to be worked through.
#[derive(Debug, Clone)]
pub struct MessageJobRecord {
    pub id: JobId,
    pub action: JobAction,
    pub filter: MessageFilter,
    pub resolution: Option<UnknownResolution>,
    pub reason: String,
    pub matched: i64,
}

/// A job and its progress.
#[derive(Debug, Clone)]
pub struct MessageJob {
    pub tenant: TenantId,
    pub id: JobId,
    pub action: JobAction,
    pub state: JobState,
    pub filter: MessageFilter,
    pub resolution: Option<UnknownResolution>,
    pub reason: String,
    pub matched: i64,
    pub done: i64,
    pub skipped: i64,
    /// The last message that was looked at.
    pub reached: Option<MessageId>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

fn job_from(row: &PgRow) -> Result<MessageJob> {
    let time = |column: &str| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column)?.map(jiff_sqlx::Timestamp::to_jiff))
    };
    let unknown = || corrupt(std::io::Error::other("a job's action is unknown"));
    Ok(MessageJob {
        tenant: row.try_get::<Uuid, _>("tenant_id")?.into(),
        id: row.try_get::<Uuid, _>("id")?.into(),
        action: JobAction::named(row.try_get("action")?).ok_or_else(unknown)?,
        state: parsed(row.try_get("state")?)?,
        filter: serde_json::from_str(row.try_get("filter")?).map_err(corrupt)?,
        resolution: row.try_get::<Option<&str>, _>("resolution")?.and_then(UnknownResolution::named),
        reason: row.try_get("reason")?,
        matched: row.try_get("matched")?,
        done: row.try_get("done")?,
        skipped: row.try_get("skipped")?,
        reached: row.try_get::<Option<Uuid>, _>("reached")?.map(Into::into),
        created_at: time("created_at")?.unwrap_or_default(),
        started_at: time("started_at")?,
        finished_at: time("finished_at")?,
    })
}

/// Writes a job that begins at once.
pub async fn message_job_insert(db: &mut PgConnection, tenant: TenantId, new: &MessageJobRecord) -> Result<()> {
    sqlx::query(
        "insert into message_job (tenant_id, id, action, state, filter, resolution, reason, matched)
         values ($1, $2, $3, 'running', $4, $5, $6, $7)",
    )
    .bind(tenant.uuid())
    .bind(new.id.uuid())
    .bind(new.action.as_str())
    .bind(serde_json::to_string(&new.filter).map_err(corrupt)?)
    .bind(new.resolution.map(UnknownResolution::as_str))
    .bind(&new.reason)
    .bind(new.matched)
    .execute(db)
    .await?;
    Ok(())
}

/// One job.
pub async fn message_job_get(db: &mut PgConnection, tenant: TenantId, id: JobId) -> Result<Option<MessageJob>> {
    let row = sqlx::query("select * from message_job where tenant_id = $1 and id = $2")
        .bind(tenant.uuid())
        .bind(id.uuid())
        .fetch_optional(db)
        .await?;
    row.as_ref().map(job_from).transpose()
}

/// The tenant's jobs, the newest first, from before `before`.
pub async fn message_job_list(
    db: &mut PgConnection,
    tenant: TenantId,
    before: Option<JobId>,
    limit: u32,
) -> Result<PageRows<MessageJob>> {
    let rows = sqlx::query("select * from message_job where tenant_id = $1 and id < $2 order by id desc limit $3")
        .bind(tenant.uuid())
        .bind(before.map_or(Uuid::max(), JobId::uuid))
        .bind(one_more(limit))
        .fetch(db);
    page(rows, limit, job_from).await
}

/// Stops a running job; what it has done stays. False if it does not run.
pub async fn message_job_cancel(db: &mut PgConnection, tenant: TenantId, id: JobId) -> Result<bool> {
    let done = sqlx::query(
        "update message_job set state = 'canceled', finished_at = now()
         where tenant_id = $1 and id = $2 and state = 'running'",
    )
    .bind(tenant.uuid())
    .bind(id.uuid())
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Locks the job of any tenant with the longest due step, until this transaction ends: no other node has it then.
pub async fn message_job_claim(db: &mut PgConnection) -> Result<Option<MessageJob>> {
    let row = sqlx::query(
        "select * from message_job where state = 'running' and next_at <= now()
         order by next_at limit 1 for update skip locked",
    )
    .fetch_optional(db)
    .await?;
    row.as_ref().map(job_from).transpose()
}

/// The result of a job's step.
#[derive(Debug, Clone, Copy, Default)]
pub struct JobStep {
    /// The last message that it looked at; `None` when nothing was left.
    pub reached: Option<MessageId>,
    pub done: i64,
    pub skipped: i64,
}

/// Records a step. A step that found nothing finishes the job.
pub async fn message_job_advance(db: &mut PgConnection, job: &MessageJob, step: JobStep) -> Result<()> {
    sqlx::query(
        "update message_job set started_at = coalesce(started_at, now()), done = done + $3, skipped = skipped + $4,
           reached = coalesce($5, reached), next_at = now(),
           state = case when $5::uuid is null then 'finished' else state end,
           finished_at = case when $5::uuid is null then now() end
         where tenant_id = $1 and id = $2",
    )
    .bind(job.tenant.uuid())
    .bind(job.id.uuid())
    .bind(step.done)
    .bind(step.skipped)
    .bind(step.reached.map(MessageId::uuid))
    .execute(db)
    .await?;
    Ok(())
}
