//! Statistics: what transactions append to `stat_delta`, how it is folded into `stat_rollup`, and how
//! both are read as one; and what they tell of each connection's health.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Result, attempt::Settlement, legs::LegTransition, message::parsed, ordering::ordering_pass, time::micros};
use angarium_domain::{
    attempt::Attempt,
    delivery::DeliveryState,
    ids::{ConnectionId, DeliveryId, RouteId, TenantId},
    provider::Disposition,
    statistics::{Counted, Dimension, Figures, Grain, Latency, StatisticsWindow},
};

/// The minute of an id's making, in microseconds since the epoch: an acceptance and all that
/// follows from it are counted there.
pub(super) fn minute_of(id: Uuid) -> i64 {
    let seconds = id.get_timestamp().map_or(0, |at| at.to_unix().0);
    i64::try_from(seconds / 60 * 60_000_000).unwrap_or(0)
}

/// What one row of `stat_delta` counts.
#[derive(Debug, PartialEq, Eq)]
struct Group<'a> {
    tenant: TenantId,
    minute: i64,
    kind: &'static str,
    word: &'static str,
    channel: &'a str,
    connection: Uuid,
    provider: &'a str,
    route: Uuid,
    route_version: i32,
    code: &'a str,
    trigger: &'static str,
    fallback_reason: &'static str,
    currency: &'a str,
}

#[derive(Debug, Default)]
struct Tally {
    count: i64,
    cost_micros: i64,
    /// Attempts that failed and say nothing of the connection.
    excused: i64,
    latency: Latency,
    /// The last attempt that was not accepted.
    failed: Option<(Timestamp, Uuid, i32)>,
}

/// Counts settled attempts, and the ends that `moved` says were written.
pub(super) async fn settlement_count(
    db: &mut PgConnection,
    rows: &[&Settlement],
    moved: &HashSet<DeliveryId>,
) -> Result<()> {
    let tallies = tallies(rows, moved);
    let groups = || tallies.iter().map(|(group, _)| group);
    let sums = || tallies.iter().map(|(_, tally)| tally);
    sqlx::query(
        "insert into stat_delta (tenant_id, at, kind, word, channel, connection_id, provider, route_id, route_version,
           code, trigger, fallback_reason, currency, count, cost_micros, latency, failed_at, failed_delivery,
           failed_number, excused)
         select tenant_id, timestamptz 'epoch' + at * interval '1 microsecond', kind, word, channel, connection_id,
           provider, route_id, route_version, code, trigger, fallback_reason, currency, count, cost_micros,
           latency::int[], timestamptz 'epoch' + failed_at * interval '1 microsecond', failed_delivery, failed_number, excused
         from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::uuid[],
           $9::int[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::text[],
           $17::bigint[], $18::uuid[], $19::int[], $20::bigint[])
           as t (tenant_id, at, kind, word, channel, connection_id, provider, route_id, route_version, code, trigger,
             fallback_reason, currency, count, cost_micros, latency, failed_at, failed_delivery, failed_number, excused)",
    )
    .bind(groups().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(groups().map(|it| it.minute).collect::<Vec<_>>())
    .bind(groups().map(|it| it.kind).collect::<Vec<_>>())
    .bind(groups().map(|it| it.word).collect::<Vec<_>>())
    .bind(groups().map(|it| it.channel).collect::<Vec<_>>())
    .bind(groups().map(|it| it.connection).collect::<Vec<_>>())
    .bind(groups().map(|it| it.provider).collect::<Vec<_>>())
    .bind(groups().map(|it| it.route).collect::<Vec<_>>())
    .bind(groups().map(|it| it.route_version).collect::<Vec<_>>())
    .bind(groups().map(|it| it.code).collect::<Vec<_>>())
    .bind(groups().map(|it| it.trigger).collect::<Vec<_>>())
    .bind(groups().map(|it| it.fallback_reason).collect::<Vec<_>>())
    .bind(groups().map(|it| it.currency).collect::<Vec<_>>())
    .bind(sums().map(|it| it.count).collect::<Vec<_>>())
    .bind(sums().map(|it| it.cost_micros).collect::<Vec<_>>())
    .bind(sums().map(|it| array(it.latency.counts())).collect::<Vec<_>>())
    .bind(sums().map(|it| it.failed.map(|(at, ..)| micros(at))).collect::<Vec<_>>())
    .bind(sums().map(|it| it.failed.map(|(_, delivery, _)| delivery)).collect::<Vec<_>>())
    .bind(sums().map(|it| it.failed.map(|(.., number)| number)).collect::<Vec<_>>())
    .bind(sums().map(|it| it.excused).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// The few rows that many settlements come to. So few that looking through them is cheaper than
/// hashing.
fn tallies<'a>(rows: &[&'a Settlement], moved: &HashSet<DeliveryId>) -> Vec<(Group<'a>, Tally)> {
    let mut tallies: Vec<(Group<'a>, Tally)> = Vec::new();
    for row in rows {
        let tally = tally_of(&mut tallies, attempt_group(row));
        tally.count += 1;
        tally.excused += i64::from(row.attempt.is_success().is_none());
        tally.cost_micros += row.attempt.verdict.cost.as_ref().map_or(0, |cost| cost.micros);
        if let Some(took) = answered_in(&row.attempt) {
            tally.latency.record(took);
        }
        let failed = failure(row);
        if failed.map(|(at, ..)| at) > tally.failed.map(|(at, ..)| at) {
            tally.failed = failed;
        }
        let end = row.state.filter(|state| state.is_end() && moved.contains(&row.delivery));
        if let Some(state) = end {
            tally_of(&mut tallies, end_group(row, state)).count += 1;
        }
    }
    tallies
}

fn tally_of<'t, 'a>(tallies: &'t mut Vec<(Group<'a>, Tally)>, group: Group<'a>) -> &'t mut Tally {
    let at = tallies.iter().rposition(|(known, _)| *known == group).unwrap_or_else(|| {
        tallies.push((group, Tally::default()));
        tallies.len() - 1
    });
    &mut tallies[at].1
}

fn attempt_group(row: &Settlement) -> Group<'_> {
    let Attempt { verdict, trigger, fallback_reason, finished_at, .. } = &row.attempt;
    Group {
        minute: micros(Grain::Minute.floor(*finished_at)),
        kind: "attempt",
        word: verdict.disposition.as_str(),
        trigger: trigger.as_str(),
        fallback_reason: fallback_reason.map_or("", |reason| reason.as_str()),
        currency: verdict.cost.as_ref().map_or("", |cost| &cost.currency),
        ..end_group(row, DeliveryState::Unknown)
    }
}

fn end_group(row: &Settlement, state: DeliveryState) -> Group<'_> {
    let origin = row.attempt.origin.as_ref();
    let route = origin.and_then(|origin| origin.route);
    Group {
        tenant: row.tenant,
        minute: minute_of(row.delivery.uuid()),
        kind: "delivery",
        word: state.as_str(),
        channel: &row.channel,
        connection: origin.map_or(Uuid::nil(), |origin| origin.connection.uuid()),
        provider: origin.map_or("", |origin| &origin.provider),
        route: route.map_or(Uuid::nil(), |(id, _)| id.uuid()),
        route_version: route.map_or(0, |(_, version)| version),
        code: &row.attempt.verdict.unified_code,
        trigger: "",
        fallback_reason: "",
        currency: "",
    }
}

/// How long a provider took. Where nobody was asked, or the worker that asked was lost, nothing was
/// measured.
fn answered_in(attempt: &Attempt) -> Option<Duration> {
    attempt.origin.as_ref()?.provider_version.as_ref()?;
    attempt.finished_at.duration_since(attempt.started_at).try_into().ok()
}

fn failure(row: &Settlement) -> Option<(Timestamp, Uuid, i32)> {
    let failed = row.attempt.verdict.disposition != Disposition::Accepted && row.attempt.origin.is_some();
    let number = i32::try_from(row.attempt.number).unwrap_or(i32::MAX);
    failed.then_some((row.attempt.finished_at, row.delivery.uuid(), number))
}

fn array(counts: &[i32]) -> String {
    let counts: Vec<_> = counts.iter().map(ToString::to_string).collect();
    format!("{{{}}}", counts.join(","))
}

/// A delivery that came into a state which is an end (1), or left it (-1).
#[derive(Debug, Clone, Copy)]
pub struct EndCount {
    pub delivery: DeliveryId,
    pub state: DeliveryState,
    pub count: i64,
}

/// Counts ends that no attempt brought, in the transaction that writes them: what a person or a
/// receipt did. They count for what their last attempt counted for. Without this the statistics
/// no longer agree with the ledger. What had not ended before also passes on its turn, where it has
/// an ordering key; the caller has the legs of what moved go on.
pub async fn end_count(db: &mut PgConnection, tenant: TenantId, ends: &[EndCount]) -> Result<LegTransition> {
    let moved: Vec<Uuid> = sqlx::query_scalar(
        "with counted as (
           insert into stat_delta (tenant_id, at, kind, word, channel, connection_id, provider, route_id, route_version,
           code, count)
         select $1, timestamptz 'epoch' + t.at * interval '1 microsecond', 'delivery', t.state,
           coalesce(a.channel, angarium_leg_channel(m.legs, m.channel, d.id)), coalesce(a.connection_id, none), coalesce(a.provider, ''),
           coalesce(a.route_id, none), coalesce(a.route_version, 0), coalesce(a.unified_code, ''), sum(t.count)
         from unnest($2::uuid[], $3::bigint[], $4::text[], $5::bigint[]) as t (delivery_id, at, state, count)
         cross join (values ('00000000-0000-0000-0000-000000000000'::uuid)) as nobody (none)
         join delivery d on d.tenant_id = $1 and d.id = t.delivery_id
         join message m on m.tenant_id = $1 and m.id = d.message_id
         left join attempt a on a.tenant_id = $1 and a.delivery_id = d.id and a.number = d.attempts
         group by 2, 4, 5, 6, 7, 8, 9, 10
         )
         select d.message_id from delivery d
         where d.tenant_id = $1 and d.id = any ($2::uuid[]) and d.begun_at is not null",
    )
    .bind(tenant.uuid())
    .bind(ends.iter().map(|it| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(ends.iter().map(|it| minute_of(it.delivery.uuid())).collect::<Vec<_>>())
    .bind(ends.iter().map(|it| it.state.as_str()).collect::<Vec<_>>())
    .bind(ends.iter().map(|it| it.count).collect::<Vec<_>>())
    .fetch_all(&mut *db)
    .await?;
    let newly: Vec<_> = newly_ended(ends).into_iter().map(|delivery| (tenant, delivery)).collect();
    if !newly.is_empty() {
        ordering_pass(db, &newly).await?;
    }
    Ok(moved.into_iter().map(|message| (tenant, message.into())).collect())
}

/// The deliveries that came into an end and left none.
fn newly_ended(ends: &[EndCount]) -> Vec<DeliveryId> {
    let mut sums: HashMap<DeliveryId, i64> = HashMap::new();
    for end in ends {
        *sums.entry(end.delivery).or_default() += end.count;
    }
    sums.into_iter().filter(|(_, sum)| *sum > 0).map(|(delivery, _)| delivery).collect()
}

/// Moves up to `limit` deltas into the roll-ups; tells how many there were, or `None` when another
/// node is at it.
pub async fn stat_fold(db: &mut PgConnection, limit: i64) -> Result<Option<i64>> {
    let mine: bool = sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtext('angarium_stat_fold'))")
        .fetch_one(&mut *db)
        .await?;
    if !mine {
        return Ok(None);
    }
    let folded = sqlx::query_scalar(
        "with taken as (
           delete from stat_delta where ctid = any (array (select ctid from stat_delta limit $1)) returning *
         ), failed as (
           insert into connection_failure as f (tenant_id, connection_id, at, delivery_id, number)
           select distinct on (tenant_id, connection_id) tenant_id, connection_id, failed_at, failed_delivery,
             failed_number
           from taken where failed_at is not null order by tenant_id, connection_id, failed_at desc
           on conflict (tenant_id, connection_id) do update
             set at = excluded.at, delivery_id = excluded.delivery_id, number = excluded.number
           where f.at <= excluded.at
         ), folded as (
           insert into stat_rollup as r (tenant_id, grain, at, kind, word, channel, connection_id, provider, route_id,
             route_version, code, trigger, fallback_reason, currency, count, cost_micros, excused, latency)
           select tenant_id, grain, date_trunc(grain, at, 'UTC'), kind, word, channel, connection_id, provider,
             route_id, route_version, code, trigger, fallback_reason, currency, sum(count), sum(cost_micros),
             sum(excused), angarium_latency_sum(latency)
           from taken cross join (values ('minute'), ('hour'), ('day')) as g (grain)
           where grain <> 'minute' or at > now() - $2 * interval '1 second'
           group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
           on conflict (tenant_id, grain, at, kind, word, channel, connection_id, provider, route_id, route_version,
             code, trigger, fallback_reason, currency)
           do update set count = r.count + excluded.count, cost_micros = r.cost_micros + excluded.cost_micros,
             excused = r.excused + excluded.excused,
             latency = angarium_latency_add(r.latency, excluded.latency)
         )
         select count(*) from taken",
    )
    .bind(limit)
    .bind(kept_seconds(Grain::Minute))
    .fetch_one(db)
    .await?;
    Ok(Some(folded))
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

/// What is kept for good: for a thousand years.
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

/// What was counted in a bucket, for one group.
#[derive(Debug, Clone, PartialEq)]
pub struct StatRow {
    pub at: Timestamp,
    /// The dimension's value; empty where there was none.
    pub key: String,
    /// Of a route.
    pub version: i32,
    pub counted: Counted,
    pub count: i64,
}

const STAT_COLUMNS: &str = "tenant_id, kind, word, channel, connection_id, provider, route_id, route_version, code,
  trigger, fallback_reason, currency, count, cost_micros, excused, latency";

/// Reads the roll-ups and the deltas that wait for them, in one statement, so that the sums are
/// those of the ledger.
pub async fn stat_read(db: &mut PgConnection, query: &StatQuery) -> Result<Vec<StatRow>> {
    let (key, version) = key_of(query.by);
    let whose = if query.tenant.is_some() { "tenant_id = $1" } else { "$1::uuid is null" };
    let during = "at >= timestamptz 'epoch' + $3 * interval '1 microsecond'
      and at < timestamptz 'epoch' + $4 * interval '1 microsecond'";
    let sql = format!(
        "select at, {key} as key, {version} as version, kind, word, trigger, fallback_reason, currency,
           sum(count)::bigint as count, sum(cost_micros)::bigint as cost_micros, sum(excused)::bigint as excused,
           angarium_latency_sum(latency) as latency
         from (
           select at, {STAT_COLUMNS} from stat_rollup where {whose} and grain = $2 and {during}
           union all
           select date_trunc($2, at, 'UTC'), {STAT_COLUMNS} from stat_delta where {whose} and {during}
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
        Dimension::Route => "select id, uid from route where id = any ($1::uuid[]) and uid is not null",
        Dimension::Tenant => "select id, name from tenant where id = any ($1::uuid[])",
        Dimension::Channel | Dimension::Provider | Dimension::Code => return Ok(HashMap::new()),
    };
    let rows: Vec<(Uuid, String)> = sqlx::query_as(sql).bind(ids).fetch_all(db).await?;
    Ok(rows.into_iter().collect())
}

/// What the attempts through these connections came to, over each window up to now in which there
/// were any.
pub async fn window_list(
    db: &mut PgConnection,
    tenant: TenantId,
    connections: &[ConnectionId],
) -> Result<Vec<(ConnectionId, StatisticsWindow, Figures)>> {
    let rows = sqlx::query(
        "with spans as (
           select number, grain, date_trunc(grain, now() - length * interval '1 second', 'UTC') as before
           from unnest($3::text[], $4::bigint[]) with ordinality as t (grain, length, number)
         )
         select connection_id, number, kind, word, trigger, fallback_reason, currency, sum(count)::bigint as count,
           sum(cost_micros)::bigint as cost_micros, sum(excused)::bigint as excused,
           angarium_latency_sum(latency) as latency
         from (
           select s.number, r.connection_id, r.kind, r.word, r.trigger, r.fallback_reason, r.currency, r.count,
             r.cost_micros, r.excused, r.latency
           from spans s join stat_rollup r on r.tenant_id = $1 and r.grain = s.grain and r.at > s.before
           where r.kind = 'attempt' and r.connection_id = any ($2::uuid[])
           union all
           select s.number, d.connection_id, d.kind, d.word, d.trigger, d.fallback_reason, d.currency, d.count,
             d.cost_micros, d.excused, d.latency
           from stat_delta d join spans s on date_trunc(s.grain, d.at, 'UTC') > s.before
           where d.tenant_id = $1 and d.kind = 'attempt' and d.connection_id = any ($2::uuid[])
         ) as counted
         group by 1, 2, 3, 4, 5, 6, 7 order by 1, 2",
    )
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
pub struct FailureCount {
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
) -> Result<Vec<FailureCount>> {
    let rows = sqlx::query(
        "with last as (
           select distinct on (connection_id) connection_id, at, delivery_id, number
           from (
             select connection_id, at, delivery_id, number from connection_failure
             where tenant_id = $1 and connection_id = any ($2::uuid[])
             union all
             select connection_id, failed_at, failed_delivery, failed_number from stat_delta
             where tenant_id = $1 and connection_id = any ($2::uuid[]) and failed_at is not null
           ) as failed
           order by connection_id, at desc
         )
         select last.connection_id, last.at, last.delivery_id, last.number, a.disposition, a.status, a.code,
           a.unified_code, a.detail
         from last join attempt a on a.tenant_id = $1 and a.delivery_id = last.delivery_id and a.number = last.number",
    )
    .bind(tenant.uuid())
    .bind(connections.iter().map(|it| it.uuid()).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(FailureCount {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use angarium_domain::{
        attempt::{Origin, Trigger, Verdict},
        ids::{AttemptId, MessageId},
        message::Priority,
        provider::Cost,
        recipients::Recipients,
    };

    fn settlement(tenant: TenantId, connection: ConnectionId, disposition: Disposition, at: i64) -> Settlement {
        let delivery = DeliveryId::new();
        let finished_at = Timestamp::from_second(at).unwrap();
        Settlement {
            tenant,
            delivery,
            message: MessageId::from(delivery.uuid()),
            channel: "sms".into(),
            priority: Priority::Normal,
            lease: Uuid::now_v7(),
            attempt: Attempt {
                id: AttemptId::new(),
                number: 2,
                trigger: Trigger::Retry,
                origin: Some(Origin {
                    connection,
                    provider: "acme".into(),
                    provider_version: Some("1.0.0".into()),
                    provider_digest: None,
                    route: None,
                    at_recipient: false,
                }),
                plan: Arc::from("{}"),
                started_at: finished_at - Duration::from_millis(5),
                finished_at,
                verdict: Verdict {
                    disposition,
                    status: None,
                    code: "x".into(),
                    unified_code: "x".into(),
                    detail: String::new(),
                    external_id: None,
                    retry_after_ms: None,
                    cost: Some(Cost { micros: 7, currency: "EUR".into() }),
                    units: None,
                    overridden: None,
                },
                fallback_reason: None,
                plugin_micros: 0,
                plugin_memory: 0,
                recipients: Recipients::default(),
                further: false,
            },
            recipients: Recipients::default(),
            state: Some(DeliveryState::Sent),
            next: None,
            deaths: 0,
            ordered: false,
        }
    }

    #[test]
    fn many_settlements_are_few_rows() {
        let (tenant, connection) = (TenantId::new(), ConnectionId::new());
        let rows: Vec<_> = (0..100).map(|n| settlement(tenant, connection, Disposition::Accepted, n % 60)).collect();
        let rows: Vec<_> = rows.iter().collect();
        let moved = rows[1..].iter().map(|it| it.delivery).collect();
        let tallies = tallies(&rows, &moved);
        let of =
            |kind: &str| tallies.iter().filter(|(group, _)| group.kind == kind).map(|it| &it.1).collect::<Vec<_>>();
        assert_eq!(of("attempt").len(), 1);
        let attempts = of("attempt")[0];
        assert_eq!((attempts.count, attempts.cost_micros, attempts.failed), (100, 700, None));
        assert_eq!(attempts.latency.counts().iter().sum::<i32>(), 100);
        // Two, should the test run over a minute's end; and not the one that was not moved.
        assert_eq!(of("delivery").iter().map(|it| it.count).sum::<i64>(), 99);
    }

    #[test]
    fn the_last_failure_is_kept() {
        let (tenant, connection) = (TenantId::new(), ConnectionId::new());
        let rows = [7, 30, 12].map(|at| settlement(tenant, connection, Disposition::NotSent, at));
        let tallies = tallies(&rows.iter().collect::<Vec<_>>(), &HashSet::new());
        let failed = tallies[0].1.failed.unwrap();
        assert_eq!(failed, (Timestamp::from_second(30).unwrap(), rows[1].delivery.uuid(), 2));
    }
}
