//! Circuit breakers, as all nodes know them together; and pauses that providers asked for.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::{PgConnection, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Result, Store, attempt::int, message::parsed, time::micros};
use angarium_domain::{
    breaker::{Breaker, Phase},
    ids::{ConnectionId, EventId, TenantId},
};

/// The notification channel for changes of breakers.
pub const BREAKER_CHANNEL: &str = "angarium_breaker";

/// A breaker at a moment of the database's clock.
#[derive(Debug, Clone)]
pub struct StoredBreaker {
    pub tenant: TenantId,
    pub connection: ConnectionId,
    pub breaker: Breaker,
    pub paused_until: Option<Timestamp>,
    /// When it was read.
    pub now: Timestamp,
}

const COLUMNS: &str = "tenant_id, connection_id, phase, epoch, since, opened_until, openings, cause, detail, probes,
    successes, probes_until, paused_until, clock_timestamp() as now";

fn breaker_from(row: &PgRow) -> Result<StoredBreaker> {
    let time = |name| row.try_get::<Option<jiff_sqlx::Timestamp>, _>(name).map(|at| at.map(|at| at.to_jiff()));
    let count = |name| row.try_get::<i32, _>(name).map(i32::unsigned_abs);
    Ok(StoredBreaker {
        tenant: row.try_get::<Uuid, _>("tenant_id")?.into(),
        connection: row.try_get::<Uuid, _>("connection_id")?.into(),
        breaker: Breaker {
            phase: parsed(row.try_get::<&str, _>("phase")?)?,
            epoch: row.try_get("epoch")?,
            since: row.try_get::<jiff_sqlx::Timestamp, _>("since")?.to_jiff(),
            opened_until: time("opened_until")?,
            openings: count("openings")?,
            cause: row.try_get::<Option<&str>, _>("cause")?.map(parsed).transpose()?,
            detail: row.try_get("detail")?,
            probes: count("probes")?,
            successes: count("successes")?,
            probes_until: time("probes_until")?,
        },
        paused_until: time("paused_until")?,
        now: row.try_get::<jiff_sqlx::Timestamp, _>("now")?.to_jiff(),
    })
}

/// The breaker of a connection, kept from changing until the transaction ends; one that has never
/// opened is made.
pub async fn breaker_lock(db: &mut PgConnection, tenant: TenantId, connection: ConnectionId) -> Result<StoredBreaker> {
    sqlx::query("insert into breaker (tenant_id, connection_id) values ($1, $2) on conflict do nothing")
        .bind(tenant.uuid())
        .bind(connection.uuid())
        .execute(&mut *db)
        .await?;
    let sql = format!("select {COLUMNS} from breaker where tenant_id = $1 and connection_id = $2 for update");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(tenant.uuid()).bind(connection.uuid()).fetch_one(db).await?;
    breaker_from(&row)
}

/// Writes a breaker that was locked.
pub async fn breaker_save(
    db: &mut PgConnection,
    tenant: TenantId,
    connection: ConnectionId,
    breaker: &Breaker,
) -> Result<()> {
    sqlx::query(
        "update breaker set phase = $3, epoch = $4, since = timestamptz 'epoch' + $5 * interval '1 microsecond',
           opened_until = timestamptz 'epoch' + $6 * interval '1 microsecond', openings = $7, cause = $8, detail = $9,
           probes = $10, successes = $11, probes_until = timestamptz 'epoch' + $12 * interval '1 microsecond',
           changed_at = clock_timestamp()
         where tenant_id = $1 and connection_id = $2",
    )
    .bind(tenant.uuid())
    .bind(connection.uuid())
    .bind(breaker.phase.as_str())
    .bind(breaker.epoch)
    .bind(micros(breaker.since))
    .bind(breaker.opened_until.map(micros))
    .bind(int(breaker.openings))
    .bind(breaker.cause.map(|cause| cause.as_str()))
    .bind(&breaker.detail)
    .bind(int(breaker.probes))
    .bind(int(breaker.successes))
    .bind(breaker.probes_until.map(micros))
    .execute(db)
    .await?;
    Ok(())
}

/// Writes the event of a breaker's new phase.
pub async fn breaker_event_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    connection: ConnectionId,
    breaker: &Breaker,
) -> Result<()> {
    let kind = match breaker.phase {
        Phase::Closed => "connection.breaker_closed",
        Phase::Open => "connection.breaker_opened",
        Phase::HalfOpen => "connection.breaker_half_open",
    };
    sqlx::query(
        "insert into event (tenant_id, message_id, id, type, at, data, connection_id)
         values ($1, $2, $2, $3, clock_timestamp(),
           json_build_object('cause', $4::text, 'detail', $5::text,
             'opened_until', timestamptz 'epoch' + $6 * interval '1 microsecond')::text, $7)",
    )
    .bind(tenant.uuid())
    .bind(EventId::new().uuid())
    .bind(kind)
    .bind(breaker.cause.map(|cause| cause.as_str()))
    .bind(&breaker.detail)
    .bind(breaker.opened_until.map(micros))
    .bind(connection.uuid())
    .execute(db)
    .await?;
    Ok(())
}

/// Notes that a provider asked for a pause.
pub async fn breaker_pause(
    db: &mut PgConnection,
    tenant: TenantId,
    connection: ConnectionId,
    pause: Duration,
) -> Result<()> {
    sqlx::query(
        "insert into breaker as b (tenant_id, connection_id, paused_until)
         values ($1, $2, now() + $3 * interval '1 microsecond')
         on conflict (tenant_id, connection_id) do update set
           paused_until = greatest(b.paused_until, excluded.paused_until), changed_at = clock_timestamp()",
    )
    .bind(tenant.uuid())
    .bind(connection.uuid())
    .bind(i64::try_from(pause.as_micros()).unwrap_or(i64::MAX))
    .execute(db)
    .await?;
    Ok(())
}

/// Every breaker that is not closed, and those that changed in the last minute: longer than any
/// transaction that changes one.
pub async fn breaker_standing(db: &mut PgConnection) -> Result<Vec<StoredBreaker>> {
    let sql =
        format!("select {COLUMNS} from breaker where phase <> 'closed' or changed_at > now() - interval '1 minute'");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(db).await?;
    rows.iter().map(breaker_from).collect()
}

/// How many connections of each provider have a breaker that is open or half open.
pub async fn breaker_count(db: &mut PgConnection) -> Result<Vec<(String, Phase, i64)>> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "select c.provider, b.phase, count(*) from breaker b
         join connection c on c.tenant_id = b.tenant_id and c.id = b.connection_id
         where b.phase <> 'closed' and c.deleted_at is null group by c.provider, b.phase",
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(|(provider, phase, count)| Ok((provider, parsed(&phase)?, count))).collect()
}

/// The breakers of these connections, as far as they have ever opened.
pub async fn breaker_list(
    db: &mut PgConnection,
    tenant: TenantId,
    connections: &[ConnectionId],
) -> Result<Vec<StoredBreaker>> {
    let sql = format!("select {COLUMNS} from breaker where tenant_id = $1 and connection_id = any ($2::uuid[])");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(connections.iter().map(|it| it.uuid()).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    rows.iter().map(breaker_from).collect()
}

impl Store {
    /// Announces a committed change of a breaker to all nodes, outside the transaction.
    pub async fn announce_breaker(&self, connection: ConnectionId) -> Result<()> {
        sqlx::query("select pg_notify($1, $2)")
            .bind(BREAKER_CHANNEL)
            .bind(connection.uuid().to_string())
            .execute(&self.worker)
            .await?;
        Ok(())
    }
}
