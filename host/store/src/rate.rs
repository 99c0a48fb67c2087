//! The rates of connections that have a limit: all nodes take their turns from one schedule.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Result, attempt::int};
use angarium_domain::{
    guards::RateLimit,
    ids::{ConnectionId, TenantId},
};

/// How far ahead turns are given: a node that is lost, or does not use them, loses no more of the
/// rate than that.
pub const AHEAD_MICROS: i32 = 100_000;

/// Turns that a node would have.
#[derive(Debug, Clone, Copy)]
pub struct RateRequest {
    pub tenant: TenantId,
    pub connection: ConnectionId,
    pub limit: RateLimit,
    pub turns: u32,
}

/// Turns that a node has now. Times are microseconds from the statement's own, by the database's
/// clock, negative before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateGrant {
    pub turns: u32,
    /// When the first of them may be used; each other is a step later.
    pub first_micros: f64,
    /// The time of the next free turn.
    pub next_micros: f64,
}

/// Takes turns for several connections, each once, in one statement; answers them in that order.
///
/// A schedule moves on by a step for each turn. It lags behind the clock by no more than a burst (turns unused for
/// longer are lost), and runs ahead of it by no more than a moment.
pub async fn rate_take(db: &mut PgConnection, wanted: &[RateRequest]) -> Result<Vec<RateGrant>> {
    let rows: Vec<(Uuid, Uuid, i32, f64, f64)> = sqlx::query_as(
        "with asked as (
           select tenant_id, connection_id, step, burst, turns,
             -- A schedule that is not there yet has its whole burst.
             now() - burst * step * interval '1 microsecond' as taken_until
           from unnest($1::uuid[], $2::uuid[], $3::float8[], $4::int[], $5::int[])
             as t (tenant_id, connection_id, step, burst, turns)
         ), taken as (
           insert into rate_schedule as r (tenant_id, connection_id, taken_until, step_micros, burst, turns)
           select tenant_id, connection_id,
             taken_until + fit * step * interval '1 microsecond', step, burst, fit
           from asked cross join lateral (
             select least(turns, floor((burst * step + $6) / step)::int) as fit) as f
           -- In one order, as every node: nobody waits for each other.
           order by tenant_id, connection_id
           on conflict (tenant_id, connection_id) do update set (taken_until, step_micros, burst, turns) = (
             select base + fit * excluded.step_micros * interval '1 microsecond', excluded.step_micros,
               excluded.burst, fit
             from (select greatest(r.taken_until, now() - excluded.burst * excluded.step_micros * interval '1 microsecond')
               as base) as b
             cross join lateral (select a.turns from asked a
               where a.tenant_id = r.tenant_id and a.connection_id = r.connection_id) as a
             cross join lateral (select greatest(least(a.turns, floor((extract(epoch from now() - base) * 1000000 + $6)
               / excluded.step_micros)::int), 0) as fit) as f)
           returning tenant_id, connection_id, turns, step_micros,
             (extract(epoch from taken_until - now()) * 1000000)::float8 as until
         )
         select tenant_id, connection_id, turns, step_micros, until from taken",
    )
    .bind(wanted.iter().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(wanted.iter().map(|it| it.connection.uuid()).collect::<Vec<_>>())
    .bind(wanted.iter().map(|it| it.limit.step().as_secs_f64() * 1e6).collect::<Vec<_>>())
    .bind(wanted.iter().map(|it| int(it.limit.burst)).collect::<Vec<_>>())
    .bind(wanted.iter().map(|it| int(it.turns)).collect::<Vec<_>>())
    .bind(f64::from(AHEAD_MICROS))
    .fetch_all(db)
    .await?;
    let granted = |it: &RateRequest| {
        let row = rows.iter().find(|row| (row.0, row.1) == (it.tenant.uuid(), it.connection.uuid()));
        row.map_or(RateGrant { turns: 0, first_micros: 0.0, next_micros: f64::from(AHEAD_MICROS) }, |row| {
            let (turns, step, until) = (row.2, row.3, row.4);
            let first_micros = until - f64::from(turns - 1) * step;
            RateGrant { turns: turns.unsigned_abs(), first_micros, next_micros: until + step }
        })
    };
    Ok(wanted.iter().map(granted).collect())
}
