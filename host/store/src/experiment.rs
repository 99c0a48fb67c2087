//! Experiments and their results.

use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Result,
    page::{PageRows, one_more, page},
    time::micros,
};
use angarium_domain::{
    experiment::{Arm, ExperimentCount, ExperimentKind, ExperimentMode},
    ids::{DifferenceId, ExperimentId, MessageId, TenantId},
};

/// The differences of a candidate that are kept.
const MOST_DIFFERENCES: i64 = 1000;
/// The messages of a candidate that are followed.
const MOST_FOLLOWED: i64 = 100_000;

/// A candidate, while it is tried or after that.
#[derive(Debug, Clone)]
pub struct ExperimentRow {
    pub id: ExperimentId,
    pub kind: ExperimentKind,
    /// The script's name, or the rule's id.
    pub subject: String,
    /// The script's version; for a rule, the version that it changes.
    pub version: i32,
    pub mode: ExperimentMode,
    /// A rule's, as JSON.
    pub spec: Option<String>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

fn experiment_from(row: &PgRow) -> Result<ExperimentRow> {
    let time = |column: &str| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column)?.map(|it| it.to_jiff()))
    };
    let percentage: Option<i16> = row.try_get("percentage")?;
    Ok(ExperimentRow {
        id: row.try_get::<Uuid, _>("id")?.into(),
        kind: if row.try_get::<&str, _>("kind")? == "script" { ExperimentKind::Script } else { ExperimentKind::Rule },
        subject: row.try_get("subject")?,
        version: row.try_get("version")?,
        mode: match percentage.and_then(|it| u8::try_from(it).ok()) {
            Some(percentage) => ExperimentMode::Canary { percentage },
            None => ExperimentMode::Shadow,
        },
        spec: row.try_get("spec")?,
        started_at: time("started_at")?.unwrap_or_default(),
        ended_at: time("ended_at")?,
    })
}

/// A candidate and, of a script, its source.
pub type RunningExperiment = (ExperimentRow, Option<String>);

/// The candidates that are tried now, in the order in which they began.
pub async fn experiment_running(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<RunningExperiment>> {
    let rows = sqlx::query(
        "select t.*, s.source from experiment t
         left join script s on t.kind = 'script' and s.tenant_id = t.tenant_id and s.name = t.subject
           and s.version = t.version
         where t.tenant_id = $1 and t.ended_at is null order by t.id",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    rows.iter().map(|row| Ok((experiment_from(row)?, row.try_get("source")?))).collect()
}

/// The candidate of a script or rule, or the last one that it had.
pub async fn experiment_last(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: ExperimentKind,
    subject: &str,
) -> Result<Option<ExperimentRow>> {
    let row = sqlx::query(
        "select * from experiment where tenant_id = $1 and kind = $2 and subject = $3 order by id desc limit 1",
    )
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(subject)
    .fetch_optional(db)
    .await?;
    row.as_ref().map(experiment_from).transpose()
}

/// Begins an experiment; a second one with the same script, or with the tenant's rules, conflicts.
pub async fn experiment_begin(db: &mut PgConnection, tenant: TenantId, experiment: &ExperimentRow) -> Result<()> {
    sqlx::query(
        "insert into experiment (tenant_id, id, kind, subject, version, mode, percentage, spec)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.uuid())
    .bind(experiment.id.uuid())
    .bind(experiment.kind.as_str())
    .bind(&experiment.subject)
    .bind(experiment.version)
    .bind(experiment.mode.as_str())
    .bind(experiment.mode.percentage().map(i16::from))
    .bind(&experiment.spec)
    .execute(db)
    .await?;
    Ok(())
}

/// Changes a canary's share of the recipients.
pub async fn experiment_resize(
    db: &mut PgConnection,
    tenant: TenantId,
    id: ExperimentId,
    percentage: u8,
) -> Result<()> {
    sqlx::query("update experiment set percentage = $3 where tenant_id = $1 and id = $2 and mode = 'canary'")
        .bind(tenant.uuid())
        .bind(id.uuid())
        .bind(i16::from(percentage))
        .execute(db)
        .await?;
    Ok(())
}

/// Ends an experiment; its results stay for a while.
pub async fn experiment_end(db: &mut PgConnection, tenant: TenantId, id: ExperimentId) -> Result<()> {
    sqlx::query(
        "update experiment set ended_at = clock_timestamp() where tenant_id = $1 and id = $2 and ended_at is null",
    )
    .bind(tenant.uuid())
    .bind(id.uuid())
    .execute(db)
    .await?;
    Ok(())
}

/// Returns the counts of an experiment, by arm and by figure.
pub async fn experiment_counts(
    db: &mut PgConnection,
    tenant: TenantId,
    id: ExperimentId,
) -> Result<Vec<(String, String, i64)>> {
    let counts =
        sqlx::query_as("select arm, what, count from experiment_count where tenant_id = $1 and experiment_id = $2");
    Ok(counts.bind(tenant.uuid()).bind(id.uuid()).fetch_all(db).await?)
}

/// Returns the states of the followed messages' deliveries, by arm; those without a row yet are `queued`.
pub async fn experiment_endings(
    db: &mut PgConnection,
    tenant: TenantId,
    id: ExperimentId,
) -> Result<Vec<(String, String, i64)>> {
    let rows = sqlx::query_as(
        "select t.arm, coalesce(d.state, 'queued'), count(*)
         from experiment_message t
         join message m on m.tenant_id = t.tenant_id and m.id = t.message_id
         left join delivery d on d.tenant_id = t.tenant_id and d.id >= t.message_id
           and d.id <= angarium_last_leg(t.message_id)
         where t.tenant_id = $1 and t.experiment_id = $2 group by 1, 2",
    )
    .bind(tenant.uuid())
    .bind(id.uuid())
    .fetch_all(db)
    .await?;
    Ok(rows)
}

/// A differing answer of a shadow.
#[derive(Debug, Clone)]
pub struct DifferenceRow {
    pub id: DifferenceId,
    pub message: MessageId,
    pub hook: String,
    /// JSON of the members in which they differ.
    pub live: String,
    pub candidate: String,
    pub at: Timestamp,
}

/// The latest differences from before `before`, the newest first.
pub async fn difference_list(
    db: &mut PgConnection,
    tenant: TenantId,
    experiment: ExperimentId,
    before: Option<DifferenceId>,
    limit: u32,
) -> Result<PageRows<DifferenceRow>> {
    let rows = sqlx::query(
        "select id, message_id, hook, live, candidate, at from experiment_difference
         where tenant_id = $1 and experiment_id = $2 and id < $3 order by id desc limit $4",
    )
    .bind(tenant.uuid())
    .bind(experiment.uuid())
    .bind(before.map_or(Uuid::max(), DifferenceId::uuid))
    .bind(one_more(limit))
    .fetch(db);
    let row = |row: &PgRow| {
        Ok(DifferenceRow {
            id: row.try_get::<Uuid, _>("id")?.into(),
            message: row.try_get::<Uuid, _>("message_id")?.into(),
            hook: row.try_get("hook")?,
            live: row.try_get("live")?,
            candidate: row.try_get("candidate")?,
            at: row.try_get::<jiff_sqlx::Timestamp, _>("at")?.to_jiff(),
        })
    };
    page(rows, limit, row).await
}

/// An experiment and its tenant.
pub type ExperimentKey = (TenantId, ExperimentId);

/// Adds a node's counts. Counts of an experiment that is gone are left out, here and below.
pub async fn experiment_count_add(
    db: &mut PgConnection,
    counts: &[(ExperimentKey, Arm, ExperimentCount, i64)],
) -> Result<()> {
    sqlx::query(
        "insert into experiment_count as c (tenant_id, experiment_id, arm, what, count)
         select n.* from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[])
           as n (tenant_id, id, arm, what, count)
         join experiment t on t.tenant_id = n.tenant_id and t.id = n.id
         -- In this order, so that two nodes never wait for each other in a circle.
         order by 1, 2, 3, 4
         on conflict (tenant_id, experiment_id, arm, what) do update set count = c.count + excluded.count",
    )
    .bind(counts.iter().map(|((tenant, _), ..)| tenant.uuid()).collect::<Vec<_>>())
    .bind(counts.iter().map(|((_, experiment), ..)| experiment.uuid()).collect::<Vec<_>>())
    .bind(counts.iter().map(|(_, arm, ..)| arm.as_str()).collect::<Vec<_>>())
    .bind(counts.iter().map(|(_, _, what, _)| what.as_str()).collect::<Vec<_>>())
    .bind(counts.iter().map(|(.., count)| *count).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Remembers messages whose deliveries are to be followed.
pub async fn experiment_message_add(db: &mut PgConnection, messages: &[(ExperimentKey, MessageId, Arm)]) -> Result<()> {
    sqlx::query(
        "insert into experiment_message (tenant_id, experiment_id, message_id, arm)
         select n.* from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[]) as n (tenant_id, id, message_id, arm)
         join experiment t on t.tenant_id = n.tenant_id and t.id = n.id
         on conflict do nothing",
    )
    .bind(messages.iter().map(|((tenant, _), ..)| tenant.uuid()).collect::<Vec<_>>())
    .bind(messages.iter().map(|((_, experiment), ..)| experiment.uuid()).collect::<Vec<_>>())
    .bind(messages.iter().map(|(_, message, _)| message.uuid()).collect::<Vec<_>>())
    .bind(messages.iter().map(|(.., arm)| arm.as_str()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Records differences of any candidates.
pub async fn difference_insert(db: &mut PgConnection, differences: &[(ExperimentKey, DifferenceRow)]) -> Result<()> {
    let rows = || differences.iter().map(|(_, row)| row);
    sqlx::query(
        "insert into experiment_difference (tenant_id, experiment_id, id, message_id, hook, live, candidate, at)
         select n.tenant_id, n.experiment_id, n.id, n.message_id, n.hook, n.live, n.candidate,
           timestamptz 'epoch' + n.at * interval '1 microsecond'
         from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::bigint[])
           as n (tenant_id, experiment_id, id, message_id, hook, live, candidate, at)
         join experiment t on t.tenant_id = n.tenant_id and t.id = n.experiment_id",
    )
    .bind(differences.iter().map(|((tenant, _), _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(differences.iter().map(|((_, experiment), _)| experiment.uuid()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.id.uuid()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.message.uuid()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.hook.as_str()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.live.as_str()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.candidate.as_str()).collect::<Vec<_>>())
    .bind(rows().map(|row| micros(row.at)).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Removes experiments that ended thirty days ago, and the excess data of running ones.
pub async fn experiment_expire(db: &mut PgConnection) -> Result<()> {
    sqlx::query("delete from experiment where ended_at < now() - interval '30 days'").execute(&mut *db).await?;
    sqlx::query(
        "delete from experiment_difference d using experiment t cross join lateral (
           select id from experiment_difference l where l.tenant_id = t.tenant_id and l.experiment_id = t.id
           order by id desc offset $1 limit 1) as kept
         where d.tenant_id = t.tenant_id and d.experiment_id = t.id and d.id < kept.id",
    )
    .bind(MOST_DIFFERENCES - 1)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "delete from experiment_message m using experiment t cross join lateral (
           select message_id from experiment_message l where l.tenant_id = t.tenant_id and l.experiment_id = t.id
           order by message_id desc offset $1 limit 1) as kept
         where m.tenant_id = t.tenant_id and m.experiment_id = t.id and m.message_id < kept.message_id",
    )
    .bind(MOST_FOLLOWED - 1)
    .execute(db)
    .await?;
    Ok(())
}
