//! Jobs: actions on many messages, and replays of many dead letters.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Result,
    attempt::int,
    message::{corrupt, parsed},
    message_search::MessageFilter,
    page::{PageRows, one_more, page},
};
use angarium_domain::{
    dead_letter::DeadLetterFilter,
    ids::{JobId, TenantId},
    job::{JobAction, JobState, UnknownResolution},
};

/// The action of a job, and what it acts on.
#[derive(Debug, Clone, PartialEq)]
pub enum JobTask {
    Cancel(MessageFilter),
    Retry(MessageFilter),
    Resolve(MessageFilter, UnknownResolution),
    Replay(DeadLetterFilter),
}

impl JobTask {
    #[must_use]
    pub const fn action(&self) -> JobAction {
        match self {
            Self::Cancel(_) => JobAction::Cancel,
            Self::Retry(_) => JobAction::Retry,
            Self::Resolve(..) => JobAction::Resolve,
            Self::Replay(_) => JobAction::Replay,
        }
    }

    /// Returns the decision about unknown deliveries, of [`JobTask::Resolve`].
    #[must_use]
    pub const fn resolution(&self) -> Option<UnknownResolution> {
        match self {
            Self::Resolve(_, resolution) => Some(*resolution),
            Self::Cancel(_) | Self::Retry(_) | Self::Replay(_) => None,
        }
    }

    /// Returns the filter as JSON.
    pub fn filter(&self) -> Result<String> {
        match self {
            Self::Cancel(filter) | Self::Retry(filter) | Self::Resolve(filter, _) => serde_json::to_string(filter),
            Self::Replay(filter) => serde_json::to_string(filter),
        }
        .map_err(corrupt)
    }
}

/// A job to be worked through.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub id: JobId,
    pub task: JobTask,
    /// `None`: as fast as it goes.
    pub rate_per_second: Option<u32>,
    /// The most that it acts on.
    pub most: Option<i64>,
    pub reason: Option<String>,
    pub matched: i64,
}

/// A job and its progress.
#[derive(Debug, Clone)]
pub struct Job {
    pub tenant: TenantId,
    pub id: JobId,
    pub task: JobTask,
    pub state: JobState,
    pub rate_per_second: Option<u32>,
    pub most: Option<i64>,
    pub reason: Option<String>,
    pub matched: i64,
    pub done: i64,
    pub skipped: i64,
    /// The last message or delivery that was looked at.
    pub reached: Option<Uuid>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

fn task_from(row: &PgRow) -> Result<JobTask> {
    let unknown = || corrupt(std::io::Error::other("a job's action or resolution is unknown"));
    let text: &str = row.try_get("filter")?;
    let filter = || serde_json::from_str(text).map_err(corrupt);
    Ok(match JobAction::named(row.try_get("action")?).ok_or_else(unknown)? {
        JobAction::Cancel => JobTask::Cancel(filter()?),
        JobAction::Retry => JobTask::Retry(filter()?),
        JobAction::Resolve => {
            let resolution = row.try_get::<Option<&str>, _>("resolution")?.and_then(UnknownResolution::named);
            JobTask::Resolve(filter()?, resolution.ok_or_else(unknown)?)
        }
        JobAction::Replay => JobTask::Replay(serde_json::from_str(text).map_err(corrupt)?),
    })
}

fn job_from(row: &PgRow) -> Result<Job> {
    let time = |column: &str| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column)?.map(jiff_sqlx::Timestamp::to_jiff))
    };
    Ok(Job {
        tenant: row.try_get::<Uuid, _>("tenant_id")?.into(),
        id: row.try_get::<Uuid, _>("id")?.into(),
        task: task_from(row)?,
        state: parsed(row.try_get("state")?)?,
        rate_per_second: row.try_get::<Option<i32>, _>("rate_per_second")?.map(i32::unsigned_abs),
        most: row.try_get("most")?,
        reason: row.try_get("reason")?,
        matched: row.try_get("matched")?,
        done: row.try_get("done")?,
        skipped: row.try_get("skipped")?,
        reached: row.try_get("reached")?,
        created_at: time("created_at")?.unwrap_or_default(),
        started_at: time("started_at")?,
        finished_at: time("finished_at")?,
    })
}

/// Writes a job that begins at once.
pub async fn job_insert(db: &mut PgConnection, tenant: TenantId, new: &NewJob) -> Result<()> {
    sqlx::query(
        "insert into job (tenant_id, id, action, state, filter, resolution, rate_per_second, most, reason, matched)
         values ($1, $2, $3, 'running', $4, $5, $6, $7, $8, $9)",
    )
    .bind(tenant.uuid())
    .bind(new.id.uuid())
    .bind(new.task.action().as_str())
    .bind(new.task.filter()?)
    .bind(new.task.resolution().map(UnknownResolution::as_str))
    .bind(new.rate_per_second.map(int))
    .bind(new.most)
    .bind(new.reason.as_deref())
    .bind(new.matched)
    .execute(db)
    .await?;
    Ok(())
}

/// One job.
pub async fn job_get(db: &mut PgConnection, tenant: TenantId, id: JobId) -> Result<Option<Job>> {
    let row = sqlx::query("select * from job where tenant_id = $1 and id = $2")
        .bind(tenant.uuid())
        .bind(id.uuid())
        .fetch_optional(db)
        .await?;
    row.as_ref().map(job_from).transpose()
}

/// The tenant's jobs, or those with one action, the newest first, from before `before`.
pub async fn job_list(
    db: &mut PgConnection,
    tenant: TenantId,
    action: Option<JobAction>,
    before: Option<JobId>,
    limit: u32,
) -> Result<PageRows<Job>> {
    let rows = sqlx::query(
        "select * from job where tenant_id = $1 and id < $2 and ($4::text is null or action = $4)
         order by id desc limit $3",
    )
    .bind(tenant.uuid())
    .bind(before.map_or(Uuid::max(), JobId::uuid))
    .bind(one_more(limit))
    .bind(action.map(JobAction::as_str))
    .fetch(db);
    page(rows, limit, job_from).await
}

/// Returns the present states of the deliveries that these replays opened and that were not opened again since.
pub async fn job_outcomes(
    db: &mut PgConnection,
    tenant: TenantId,
    replays: &[JobId],
) -> Result<BTreeMap<JobId, BTreeMap<String, i64>>> {
    let rows: Vec<(Uuid, String, i64)> = sqlx::query_as(
        "select replay_id, state, count(*) from delivery
         where tenant_id = $1 and replay_id is not null and replay_id = any ($2::uuid[]) group by 1, 2",
    )
    .bind(tenant.uuid())
    .bind(replays.iter().map(|it| it.uuid()).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let mut outcomes: BTreeMap<JobId, BTreeMap<String, i64>> = BTreeMap::new();
    for (replay, state, count) in rows {
        outcomes.entry(replay.into()).or_default().insert(state, count);
    }
    Ok(outcomes)
}

/// Stops a running job; what it has done stays. False if it does not run.
pub async fn job_cancel(db: &mut PgConnection, tenant: TenantId, id: JobId) -> Result<bool> {
    let done = sqlx::query(
        "update job set state = 'canceled', finished_at = now()
         where tenant_id = $1 and id = $2 and state = 'running'",
    )
    .bind(tenant.uuid())
    .bind(id.uuid())
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Takes the job of any tenant whose step has been due the longest, for `seconds`: so long no other node takes it, unless
/// its step ends before.
pub async fn job_claim(db: &mut PgConnection, seconds: f64) -> Result<Option<Job>> {
    let row = sqlx::query(
        "update job set next_at = now() + $1 * interval '1 second', started_at = coalesce(started_at, now())
         where (tenant_id, id) in (
           select tenant_id, id from job where state = 'running' and next_at <= now()
           order by next_at limit 1 for update skip locked)
         returning *",
    )
    .bind(seconds)
    .fetch_optional(db)
    .await?;
    row.as_ref().map(job_from).transpose()
}

/// A job's progress by one step.
#[derive(Debug, Clone, Copy)]
pub struct JobMove {
    pub tenant: TenantId,
    pub job: JobId,
    /// The last message or delivery that was looked at before.
    pub from: Option<Uuid>,
    /// The last one that was looked at now.
    pub to: Uuid,
    pub done: i64,
    pub skipped: i64,
}

/// Records a step in the transaction of what it does. False if the job was stopped, or another node took the step: then
/// nothing of it may be committed.
pub async fn job_advance(db: &mut PgConnection, step: &JobMove) -> Result<bool> {
    let moved = sqlx::query(
        "update job set done = done + $3, skipped = skipped + $4, reached = $5
         where tenant_id = $1 and id = $2 and state = 'running' and reached is not distinct from $6",
    )
    .bind(step.tenant.uuid())
    .bind(step.job.uuid())
    .bind(step.done)
    .bind(step.skipped)
    .bind(step.to)
    .bind(step.from)
    .execute(db)
    .await?;
    Ok(moved.rows_affected() > 0)
}

/// Ends a running job that has reached the end of what it acts on.
pub async fn job_finish(db: &mut PgConnection, job: &Job) -> Result<bool> {
    let done = sqlx::query(
        "update job set state = 'finished', finished_at = now()
         where tenant_id = $1 and id = $2 and state = 'running' and reached is not distinct from $3",
    )
    .bind(job.tenant.uuid())
    .bind(job.id.uuid())
    .bind(job.reached)
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Has a job's next step wait from now on.
pub async fn job_postpone(db: &mut PgConnection, job: &Job, seconds: f64) -> Result<()> {
    sqlx::query("update job set next_at = now() + $3 * interval '1 second' where tenant_id = $1 and id = $2")
        .bind(job.tenant.uuid())
        .bind(job.id.uuid())
        .bind(seconds)
        .execute(db)
        .await?;
    Ok(())
}

/// When a job's next step is due, if one runs, in seconds from now on the database's clock.
pub async fn job_next_due(db: &mut PgConnection) -> Result<Option<f64>> {
    Ok(sqlx::query_scalar("select extract(epoch from min(next_at) - now())::float8 from job where state = 'running'")
        .fetch_one(db)
        .await?)
}
