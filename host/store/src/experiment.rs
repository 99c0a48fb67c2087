//! Experiments: variants that are tried beside the live version of a rule or script, and their results.

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

/// The differences of an experiment that are kept.
const MOST_DIFFERENCES: i64 = 1000;
/// The messages of an experiment that are followed.
const MOST_FOLLOWED: i64 = 100_000;

/// An experiment, while it runs or after that.
#[derive(Debug, Clone)]
pub struct ExperimentRow {
    pub id: ExperimentId,
    pub kind: ExperimentKind,
    /// The rule or script.
    pub document: Uuid,
    /// The variant.
    pub version: i32,
    /// The version that it is compared with; `None` where none was live.
    pub live_version: Option<i32>,
    pub mode: ExperimentMode,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

impl ExperimentRow {
    /// A new experiment; the database sets its time.
    #[must_use]
    pub fn new(
        kind: ExperimentKind,
        document: Uuid,
        version: i32,
        live_version: Option<i32>,
        mode: ExperimentMode,
    ) -> Self {
        let (id, started_at) = (ExperimentId::new(), Timestamp::UNIX_EPOCH);
        Self { id, kind, document, version, live_version, mode, started_at, ended_at: None }
    }
}

fn experiment_from(row: &PgRow) -> Result<ExperimentRow> {
    let time = |column: &str| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column)?.map(|it| it.to_jiff()))
    };
    let percentage: Option<i16> = row.try_get("percentage")?;
    Ok(ExperimentRow {
        id: row.try_get::<Uuid, _>("id")?.into(),
        kind: if row.try_get::<&str, _>("kind")? == "script" { ExperimentKind::Script } else { ExperimentKind::Rule },
        document: row.try_get("document_id")?,
        version: row.try_get("version")?,
        live_version: row.try_get("live_version")?,
        mode: match percentage.and_then(|it| u8::try_from(it).ok()) {
            Some(percentage) => ExperimentMode::Canary { percentage },
            None => ExperimentMode::Shadow,
        },
        started_at: time("started_at")?.unwrap_or_default(),
        ended_at: time("ended_at")?,
    })
}

/// An experiment with its variant.
#[derive(Debug, Clone)]
pub struct RunningExperiment {
    pub experiment: ExperimentRow,
    /// The client's own name for the document; a script's name.
    pub uid: Option<String>,
    /// JSON of a rule, the source of a script.
    pub body: String,
}

/// Returns a tenant's running experiments, in the order in which they began.
pub async fn experiment_running(db: &mut PgConnection, tenant: TenantId) -> Result<Vec<RunningExperiment>> {
    let rows = sqlx::query(
        "select e.*, d.uid, v.body from experiment e
         join document d on d.tenant_id = e.tenant_id and d.kind = e.kind and d.id = e.document_id
         join document_version v on v.tenant_id = e.tenant_id and v.kind = e.kind and v.document_id = e.document_id
           and v.version = e.version
         where e.tenant_id = $1 and e.ended_at is null order by e.id",
    )
    .bind(tenant.uuid())
    .fetch_all(db)
    .await?;
    let running = |row: &PgRow| {
        Ok(RunningExperiment {
            experiment: experiment_from(row)?,
            uid: row.try_get("uid")?,
            body: row.try_get("body")?,
        })
    };
    rows.iter().map(running).collect()
}

/// Returns the experiment of a document, or the last one that it had.
pub async fn experiment_last(
    db: &mut PgConnection,
    tenant: TenantId,
    kind: ExperimentKind,
    document: Uuid,
) -> Result<Option<ExperimentRow>> {
    let row = sqlx::query(
        "select * from experiment where tenant_id = $1 and kind = $2 and document_id = $3 order by id desc limit 1",
    )
    .bind(tenant.uuid())
    .bind(kind.as_str())
    .bind(document)
    .fetch_optional(db)
    .await?;
    row.as_ref().map(experiment_from).transpose()
}

/// Begins an experiment; a second one of a script, or of the tenant's rules, conflicts.
pub async fn experiment_begin(db: &mut PgConnection, tenant: TenantId, experiment: &ExperimentRow) -> Result<()> {
    sqlx::query(
        "insert into experiment (tenant_id, id, kind, document_id, version, live_version, mode, percentage)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.uuid())
    .bind(experiment.id.uuid())
    .bind(experiment.kind.as_str())
    .bind(experiment.document)
    .bind(experiment.version)
    .bind(experiment.live_version)
    .bind(experiment.mode.as_str())
    .bind(experiment.mode.percentage().map(i16::from))
    .execute(db)
    .await?;
    Ok(())
}

/// Gives a canary another part of the recipients.
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
         from (
           -- A column, as `legs::WANTED` has one.
           select t.arm, m.id, angarium_last_leg(m.id) as last
           from experiment_message t join message m on m.tenant_id = t.tenant_id and m.id = t.message_id
           where t.tenant_id = $1 and t.experiment_id = $2 offset 0
         ) as t
         left join delivery d on d.tenant_id = $1 and d.id >= t.id and d.id <= t.last group by 1, 2",
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
    pub variant: String,
    pub at: Timestamp,
}

/// Returns a page of the differences from before `before`, the newest first.
pub async fn difference_list(
    db: &mut PgConnection,
    tenant: TenantId,
    experiment: ExperimentId,
    before: Option<DifferenceId>,
    limit: u32,
) -> Result<PageRows<DifferenceRow>> {
    let rows = sqlx::query(
        "select id, message_id, hook, live, variant, at from experiment_difference
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
            variant: row.try_get("variant")?,
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

/// Records differences of any experiments.
pub async fn difference_insert(db: &mut PgConnection, differences: &[(ExperimentKey, DifferenceRow)]) -> Result<()> {
    let rows = || differences.iter().map(|(_, row)| row);
    sqlx::query(
        "insert into experiment_difference (tenant_id, experiment_id, id, message_id, hook, live, variant, at)
         select n.tenant_id, n.experiment_id, n.id, n.message_id, n.hook, n.live, n.variant,
           timestamptz 'epoch' + n.at * interval '1 microsecond'
         from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::bigint[])
           as n (tenant_id, experiment_id, id, message_id, hook, live, variant, at)
         join experiment t on t.tenant_id = n.tenant_id and t.id = n.experiment_id",
    )
    .bind(differences.iter().map(|((tenant, _), _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(differences.iter().map(|((_, experiment), _)| experiment.uuid()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.id.uuid()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.message.uuid()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.hook.as_str()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.live.as_str()).collect::<Vec<_>>())
    .bind(rows().map(|row| row.variant.as_str()).collect::<Vec<_>>())
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
