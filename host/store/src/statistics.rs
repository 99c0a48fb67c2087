//! Statistics: facts of the ledger, how they are folded into `stat_rollup`, and how a read takes both as one; and what
//! they tell of each connection's health.
//!
//! A fact is a row that is written anyway: a message, an attempt, a transition. It carries the number of the
//! transaction that wrote it (`written_in`). Facts below the watermark (`stat_watermark`) are in the roll-ups, the
//! others are not: so nothing is written, changed or deleted for the sake of counting but the roll-ups themselves.

use std::collections::HashMap;

use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Result, message::parsed, time::micros};
use angarium_domain::{
    ids::{ConnectionId, DeliveryId, RouteId, TenantId},
    provider::Disposition,
    statistics::{Counted, Dimension, Figures, Grain, Latency, StatisticsWindow},
};

/// The number below which every transaction had ended when the statement began. What it committed is seen, and nothing
/// can appear there any more.
const ENDED_BELOW: &str = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint + transaction_offset";

/// The facts that are not in the roll-ups. The upper bound holds for all; without it the planner expects a third of the
/// table and reads all of it.
const UNFOLDED: &str = "written_in >= (select folded_to from stat_watermark) and written_in < 9223372036854775807";

const NONE: &str = "'00000000-0000-0000-0000-000000000000'::uuid";

/// Returns the figures of attempts with these facts, a row for each group: the columns are [`STAT_COLUMNS`] and `at`,
/// the minute.
fn attempts_where(facts: &str) -> String {
    format!(
        "select tenant_id, at, 'attempt' as kind, word, channel, connection_id, provider, route_id, route_version, code,
           trigger, fallback_reason, currency, sum(count) as count, sum(cost_micros) as cost_micros,
           sum(excused) as excused, angarium_latency_counts(step, count) as latency
         from (
           select tenant_id, date_trunc('minute', finished_at, 'UTC') as at, disposition as word, channel,
             coalesce(connection_id, {NONE}) as connection_id, coalesce(provider, '') as provider,
             coalesce(route_id, {NONE}) as route_id, coalesce(route_version, 0) as route_version,
             coalesce(unified_code, '') as code, trigger, coalesce(fallback_reason, '') as fallback_reason,
             coalesce(cost_currency, '') as currency,
             -- Where nobody was asked, or the worker that asked was lost, nothing was measured.
             case when provider_version is not null then angarium_latency_step(started_at, finished_at) end as step,
             count(*) as count, coalesce(sum(cost_micros), 0) as cost_micros, count(*) filter (where excused) as excused
           from attempt where {facts}
           group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13
         ) as attempts
         group by 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13"
    )
}

/// Returns the figures of messages, transitions and attempts with these facts.
///
/// A message and its deliveries' ends count in the minute of its id, which is that of its acceptance. A delivery counts
/// for what its last attempt went through.
fn facts_where(facts: &str) -> String {
    let attempts = attempts_where(facts);
    let nobody = format!("{NONE}, '', {NONE}, 0, '', '', '', '', count(*), 0, 0, '{{}}'::integer[]");
    let through = "delivery_id, channel, connection_id, provider, route_id, route_version, unified_code";
    format!(
        "{attempts}
         union all
         select tenant_id, angarium_uuid_minute(id), 'message', 'accepted', channel, {nobody}
         from message where {facts} group by 1, 2, channel
         union all
         select tenant_id, angarium_uuid_minute(delivery_id), 'message', 'further', channel, {nobody}
         from transition where {facts} and left_state is null group by 1, 2, channel
         union all
         select tenant_id, angarium_uuid_minute(delivery_id), 'delivery', state, channel, coalesce(connection_id, {NONE}),
           coalesce(provider, ''), coalesce(route_id, {NONE}), coalesce(route_version, 0), coalesce(unified_code, ''),
           '', '', '', sum(change), 0, 0, '{{}}'
         from (
           select tenant_id, {through}, ended as state, 1 as change from attempt where {facts} and ended is not null
           union all
           select tenant_id, {through}, state, 1 from transition where {facts} and state <> 'queued'
           union all
           select tenant_id, {through}, left_state, -1 from transition where {facts} and left_state <> 'queued'
         ) as ends
         group by 1, 2, 4, 5, 6, 7, 8, 9, 10"
    )
}

/// Folds the facts of up to `limit` transactions into the roll-ups, and moves the watermark. Returns whether more wait;
/// not where another node folds.
pub async fn stat_fold(db: &mut PgConnection, limit: i64) -> Result<bool> {
    let sql = format!("select folded_to > {ENDED_BELOW} from stat_watermark for update skip locked");
    let Some(restored) = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_optional(&mut *db).await? else {
        return Ok(false);
    };
    if restored {
        transactions_align(db).await?;
    }
    let span = "written_in >= (select low from span) and written_in < (select high from span)";
    let facts = facts_where(span);
    let sql = format!(
        "with span as materialized (
           select folded_to as low, least({ENDED_BELOW}, folded_to + $1) as high, {ENDED_BELOW} as ended
           from stat_watermark
         ), facts as materialized ({facts}), failed as (
           insert into connection_failure as f (tenant_id, connection_id, at, delivery_id, number)
           select distinct on (tenant_id, connection_id) tenant_id, connection_id, finished_at, delivery_id, number
           from attempt where {span} and disposition <> 'accepted' and connection_id is not null
           order by tenant_id, connection_id, finished_at desc
           on conflict (tenant_id, connection_id) do update
             set at = excluded.at, delivery_id = excluded.delivery_id, number = excluded.number
           where f.at <= excluded.at
         ), folded as (
           insert into stat_rollup as r (tenant_id, grain, at, kind, word, channel, connection_id, provider, route_id,
             route_version, code, trigger, fallback_reason, currency, count, cost_micros, excused, latency)
           select tenant_id, grain, date_trunc(grain, at, 'UTC'), kind, word, channel, connection_id, provider,
             route_id, route_version, code, trigger, fallback_reason, currency, sum(count), sum(cost_micros),
             sum(excused), angarium_latency_sum(latency)
           from facts cross join (values ('minute'), ('hour'), ('day')) as g (grain)
           where grain <> 'minute' or at > now() - $2 * interval '1 second'
           group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
           on conflict (tenant_id, grain, at, kind, word, channel, connection_id, provider, route_id, route_version,
             code, trigger, fallback_reason, currency)
           do update set count = r.count + excluded.count, cost_micros = r.cost_micros + excluded.cost_micros,
             excused = r.excused + excluded.excused,
             latency = angarium_latency_add(r.latency, excluded.latency)
         )
         update stat_watermark set folded_to = high from span where high > low returning high < ended"
    );
    let more = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(limit)
        .bind(kept_seconds(Grain::Minute))
        .fetch_optional(db)
        .await?;
    Ok(more.unwrap_or(false))
}

/// Lets transactions' numbers go on from the watermark, where they began anew because the database was restored from a
/// dump in another cluster. Returns whether that was so. A node calls it before it serves: what is written before has
/// numbers that are never counted.
pub async fn transactions_align(db: &mut PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar("select angarium_transactions_align()").fetch_one(db).await?)
}

/// Forgets up to `limit` buckets of this grain that are older than it is kept.
pub async fn stat_expire(db: &mut PgConnection, grain: Grain, limit: i64) -> Result<u64> {
    let done = sqlx::query(
        "delete from stat_rollup where ctid = any (array (
           select ctid from stat_rollup where grain = $1 and at < now() - $2 * interval '1 second' limit $3))",
    )
    .bind(grain.as_str())
    .bind(kept_seconds(grain))
    .bind(limit)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Returns the retention of rows that are kept for good: a thousand years.
fn kept_seconds(grain: Grain) -> f64 {
    grain.kept().map_or(1_000.0 * 365.0 * 86_400.0, |kept| kept.as_secs_f64())
}

/// Which statistics are asked for.
#[derive(Debug, Clone)]
pub struct StatQuery {
    /// `None`: of all tenants.
    pub tenant: Option<TenantId>,
    pub grain: Grain,
    /// The beginnings of the first bucket and of the first one that is left out.
    pub from: Timestamp,
    pub to: Timestamp,
    pub by: Option<Dimension>,
    pub channel: Option<String>,
    pub connection: Option<ConnectionId>,
    pub provider: Option<String>,
    pub route: Option<RouteId>,
    pub code: Option<String>,
}

/// The figures of a bucket, for one group.
#[derive(Debug, Clone, PartialEq)]
pub struct StatRow {
    pub at: Timestamp,
    /// The dimension's value; empty without one.
    pub key: String,
    /// Of a route.
    pub version: i32,
    pub counted: Counted,
    pub count: i64,
}

const STAT_COLUMNS: &str = "tenant_id, kind, word, channel, connection_id, provider, route_id, route_version, code,
  trigger, fallback_reason, currency, count, cost_micros, excused, latency";

/// Reads the roll-ups and the facts that are not in them, in one statement: the sums are those of the ledger.
pub async fn stat_read(db: &mut PgConnection, query: &StatQuery) -> Result<Vec<StatRow>> {
    let (key, version) = key_of(query.by);
    let whose = if query.tenant.is_some() { "tenant_id = $1" } else { "$1::uuid is null" };
    let during = "at >= timestamptz 'epoch' + $3 * interval '1 microsecond'
      and at < timestamptz 'epoch' + $4 * interval '1 microsecond'";
    let facts = facts_where(&format!("{whose} and {UNFOLDED}"));
    let sql = format!(
        "select at, {key} as key, {version} as version, kind, word, trigger, fallback_reason, currency,
           sum(count)::bigint as count, sum(cost_micros)::bigint as cost_micros, sum(excused)::bigint as excused,
           angarium_latency_sum(latency) as latency
         from (
           select at, {STAT_COLUMNS} from stat_rollup where {whose} and grain = $2 and {during}
           union all
           select date_trunc($2, at, 'UTC'), {STAT_COLUMNS} from ({facts}) as facts where {during}
         ) as counted
         where ($5::text is null or channel = $5) and ($6::uuid is null or connection_id = $6)
           and ($7::text is null or provider = $7) and ($8::uuid is null or route_id = $8)
           and ($9::text is null or code = $9)
         group by 1, 2, 3, 4, 5, 6, 7, 8 having sum(count) <> 0 order by 1, 2, 3"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(query.tenant.map(TenantId::uuid))
        .bind(query.grain.as_str())
        .bind(micros(query.from))
        .bind(micros(query.to))
        .bind(&query.channel)
        .bind(query.connection.map(ConnectionId::uuid))
        .bind(&query.provider)
        .bind(query.route.map(RouteId::uuid))
        .bind(&query.code)
        .fetch_all(db)
        .await?;
    rows.iter().map(stat_row).collect()
}

/// The columns that a dimension is grouped by.
const fn key_of(by: Option<Dimension>) -> (&'static str, &'static str) {
    match by {
        None => ("''", "0"),
        Some(Dimension::Channel) => ("channel", "0"),
        Some(Dimension::Connection) => ("connection_id::text", "0"),
        Some(Dimension::Provider) => ("provider", "0"),
        Some(Dimension::Route) => ("route_id::text", "route_version"),
        Some(Dimension::Code) => ("code", "0"),
        Some(Dimension::Tenant) => ("tenant_id::text", "0"),
    }
}

fn stat_row(row: &PgRow) -> Result<StatRow> {
    Ok(StatRow {
        at: row.try_get::<jiff_sqlx::Timestamp, _>("at")?.to_jiff(),
        key: row.try_get("key")?,
        version: row.try_get("version")?,
        counted: counted(row)?,
        count: row.try_get("count")?,
    })
}

fn counted(row: &PgRow) -> Result<Counted> {
    let word: &str = row.try_get("word")?;
    Ok(match row.try_get::<&str, _>("kind")? {
        "message" if word == "further" => Counted::Further,
        "message" => Counted::Accepted,
        "delivery" => Counted::State(parsed(word)?),
        _ => Counted::Attempt {
            disposition: parsed(word)?,
            trigger: parsed(row.try_get("trigger")?)?,
            fallback_reason: Some(row.try_get("fallback_reason")?).filter(|it: &String| !it.is_empty()),
            cost: Some(row.try_get("currency")?)
                .filter(|it: &String| !it.is_empty())
                .map(|currency| Ok::<_, super::StoreError>((currency, row.try_get("cost_micros")?)))
                .transpose()?,
            excused: row.try_get("excused")?,
            latency: Latency::from_counts(row.try_get("latency")?),
        },
    })
}

/// The names that people gave to these connections, routes or tenants, by their UUIDs.
pub async fn stat_names(db: &mut PgConnection, by: Dimension, ids: &[Uuid]) -> Result<HashMap<Uuid, String>> {
    let sql = match by {
        Dimension::Connection => "select id, uid from connection where id = any ($1::uuid[]) and uid is not null",
        Dimension::Route => {
            "select id, uid from document where kind = 'route' and id = any ($1::uuid[]) and uid is not null"
        }
        Dimension::Tenant => "select id, name from tenant where id = any ($1::uuid[])",
        Dimension::Channel | Dimension::Provider | Dimension::Code => return Ok(HashMap::new()),
    };
    let rows: Vec<(Uuid, String)> = sqlx::query_as(sql).bind(ids).fetch_all(db).await?;
    Ok(rows.into_iter().collect())
}

/// Returns the figures of the attempts through these connections, over each window up to now with any.
pub async fn window_list(
    db: &mut PgConnection,
    tenant: TenantId,
    connections: &[ConnectionId],
) -> Result<Vec<(ConnectionId, StatisticsWindow, Figures)>> {
    let facts = attempts_where(&format!("tenant_id = $1 and connection_id = any ($2::uuid[]) and {UNFOLDED}"));
    let columns = "kind, word, trigger, fallback_reason, currency, count, cost_micros, excused, latency";
    let sql = format!(
        "with spans as (
           select number, grain, date_trunc(grain, now() - length * interval '1 second', 'UTC') as before
           from unnest($3::text[], $4::bigint[]) with ordinality as t (grain, length, number)
         )
         select connection_id, number, kind, word, trigger, fallback_reason, currency, sum(count)::bigint as count,
           sum(cost_micros)::bigint as cost_micros, sum(excused)::bigint as excused,
           angarium_latency_sum(latency) as latency
         from (
           select s.number, r.connection_id, {columns}
           from spans s join stat_rollup r on r.tenant_id = $1 and r.grain = s.grain and r.at > s.before
           where r.kind = 'attempt' and r.connection_id = any ($2::uuid[])
           union all
           select s.number, f.connection_id, {columns}
           from ({facts}) as f join spans s on date_trunc(s.grain, f.at, 'UTC') > s.before
         ) as counted
         group by 1, 2, 3, 4, 5, 6, 7 order by 1, 2"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(connections.iter().map(|it| it.uuid()).collect::<Vec<_>>())
        .bind(StatisticsWindow::ALL.map(|it| it.grain().as_str()).to_vec())
        .bind(StatisticsWindow::ALL.map(StatisticsWindow::seconds).to_vec())
        .fetch_all(db)
        .await?;
    let mut windows: Vec<(ConnectionId, StatisticsWindow, Figures)> = Vec::new();
    for row in &rows {
        let connection: ConnectionId = row.try_get::<Uuid, _>("connection_id")?.into();
        // Ordinality counts from 1.
        let window = StatisticsWindow::ALL[row.try_get::<i64, _>("number")? as usize - 1];
        if windows.last().is_none_or(|(last, of, _)| (*last, *of) != (connection, window)) {
            windows.push((connection, window, Figures::default()));
        }
        if let Some((_, _, figures)) = windows.last_mut() {
            figures.add(&counted(row)?, row.try_get("count")?);
        }
    }
    Ok(windows)
}

/// The last attempt through a connection that was not accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct LastFailure {
    pub connection: ConnectionId,
    pub at: Timestamp,
    pub delivery: DeliveryId,
    /// The attempt's.
    pub number: u32,
    pub disposition: Disposition,
    pub status: Option<i32>,
    pub code: Option<String>,
    pub unified_code: Option<String>,
    pub detail: Option<String>,
}

/// Each connection's last failure, if the ledger still has it.
pub async fn failure_list(
    db: &mut PgConnection,
    tenant: TenantId,
    connections: &[ConnectionId],
) -> Result<Vec<LastFailure>> {
    let sql = format!(
        "with last as (
           select distinct on (connection_id) connection_id, at, delivery_id, number
           from (
             select connection_id, at, delivery_id, number from connection_failure
             where tenant_id = $1 and connection_id = any ($2::uuid[])
             union all
             select connection_id, finished_at, delivery_id, number from attempt
             where tenant_id = $1 and connection_id = any ($2::uuid[]) and disposition <> 'accepted' and {UNFOLDED}
           ) as failed
           order by connection_id, at desc
         )
         select last.connection_id, last.at, last.delivery_id, last.number, a.disposition, a.status, a.code,
           a.unified_code, a.detail
         from last join attempt a on a.tenant_id = $1 and a.delivery_id = last.delivery_id and a.number = last.number"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(connections.iter().map(|it| it.uuid()).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(LastFailure {
                connection: row.try_get::<Uuid, _>("connection_id")?.into(),
                at: row.try_get::<jiff_sqlx::Timestamp, _>("at")?.to_jiff(),
                delivery: row.try_get::<Uuid, _>("delivery_id")?.into(),
                number: row.try_get::<i32, _>("number")?.unsigned_abs(),
                disposition: parsed(row.try_get("disposition")?)?,
                status: row.try_get("status")?,
                code: row.try_get("code")?,
                unified_code: row.try_get("unified_code")?,
                detail: row.try_get("detail")?,
            })
        })
        .collect()
}
