//! The queue: deliveries that are due later or were left behind, and their leases.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{
    Result, TransactionId,
    attempt::int,
    ordering::{ordering_join, ordering_key_find, ordering_leave},
    time::micros,
};
use angarium_domain::{
    ids::{DeliveryId, MessageId, TenantId},
    message::Priority,
};

/// A delivery in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueEntry {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub due_at: Timestamp,
    pub priority: Priority,
}

/// The deliveries of one tenant and priority in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLane {
    pub tenant: TenantId,
    pub priority: Priority,
    /// Whether its first is due.
    pub due: bool,
}

/// Up to `limit` lanes of the tenants after this one, in order of tenant and priority.
///
/// Each is found by one probe of the index, so that how many wait in a lane does not count.
pub async fn queue_lanes(db: &mut PgConnection, after: Option<TenantId>, limit: usize) -> Result<Vec<QueueLane>> {
    let rows: Vec<(Uuid, i16, bool)> = sqlx::query_as(
        "with recursive lane as (
           (select tenant_id, priority, due_at, 1 as number from queue where tenant_id > $1
            order by tenant_id, priority, due_at limit 1)
           union all
           select next.tenant_id, next.priority, next.due_at, lane.number + 1
           from lane cross join lateral (
             select q.tenant_id, q.priority, q.due_at from queue q
             where (q.tenant_id, q.priority) > (lane.tenant_id, lane.priority)
             order by q.tenant_id, q.priority, q.due_at limit 1
           ) as next
           where lane.number < $2
         )
         select tenant_id, priority, due_at <= now() from lane order by number",
    )
    .bind(after.map_or(Uuid::nil(), TenantId::uuid))
    .bind(i32::try_from(limit).unwrap_or(i32::MAX))
    .fetch_all(db)
    .await?;
    let lane = |(tenant, rank, due): (Uuid, i16, bool)| QueueLane {
        tenant: tenant.into(),
        priority: Priority::from_rank(rank),
        due,
    };
    Ok(rows.into_iter().map(lane).collect())
}

/// How many deliveries of a lane a claim takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub tenant: TenantId,
    pub priority: Priority,
    pub count: usize,
}

/// A delivery that was taken out of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub priority: Priority,
}

/// Takes due deliveries out of the queue: of each lane the first ones, by its share. They have no owner until
/// [`lease_insert`] in the same transaction.
pub async fn queue_claim(db: &mut PgConnection, shares: &[Share]) -> Result<Vec<Claimed>> {
    let rows: Vec<(Uuid, Uuid, i16)> = sqlx::query_as(
        "delete from queue where ctid = any (array (
           select entry.ctid
           from unnest($1::uuid[], $2::smallint[], $3::bigint[]) as share (tenant_id, priority, count)
           cross join lateral (
             select q.ctid from queue q
             where q.tenant_id = share.tenant_id and q.priority = share.priority and q.due_at <= now()
             order by q.due_at limit share.count for update skip locked
           ) as entry
         ))
         returning tenant_id, delivery_id, priority",
    )
    .bind(shares.iter().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(shares.iter().map(|it| it.priority.rank()).collect::<Vec<_>>())
    .bind(shares.iter().map(|it| it.count as i64).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let claimed = |(tenant, delivery, rank): (Uuid, Uuid, i16)| Claimed {
        tenant: tenant.into(),
        delivery: delivery.into(),
        priority: Priority::from_rank(rank),
    };
    Ok(rows.into_iter().map(claimed).collect())
}

/// When the next entry is due, if any, in milliseconds from now on the database's clock.
pub async fn queue_next_due(db: &mut PgConnection) -> Result<Option<f64>> {
    Ok(sqlx::query_scalar("select (extract(epoch from min(due_at) - now()) * 1000)::float8 from queue")
        .fetch_one(db)
        .await?)
}

/// Puts deliveries that were opened again into the queue; one with an ordering key joins the end of
/// its key's line.
pub async fn queue_insert(db: &mut PgConnection, entries: &[QueueEntry]) -> Result<()> {
    let ids: Vec<_> = entries.iter().map(|it| (it.tenant, it.delivery)).collect();
    let keys = if ids.is_empty() { HashMap::new() } else { ordering_key_find(db, &ids).await? };
    let entrants = entries.iter().filter_map(|it| Some((keys.get(&it.delivery)?.as_str(), it.clone())));
    ordering_join(db, &entrants.collect::<Vec<_>>()).await?;
    let entries: Vec<_> = entries.iter().filter(|it| !keys.contains_key(&it.delivery)).collect();
    if entries.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into queue (tenant_id, delivery_id, due_at, priority)
         select tenant_id, delivery_id, timestamptz 'epoch' + due_at * interval '1 microsecond', priority
         from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::smallint[]) as t (tenant_id, delivery_id, due_at, priority)",
    )
    .bind(entries.iter().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(entries.iter().map(|it| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(entries.iter().map(|it| micros(it.due_at)).collect::<Vec<_>>())
    .bind(entries.iter().map(|it| it.priority.rank()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Takes one delivery out of its key's line or out of the queue, if it waits there; `due_at` is the due time of its
/// entry.
pub async fn queue_remove(db: &mut PgConnection, entry: &QueueEntry) -> Result<bool> {
    // The line first: from there one goes into the queue, and not back.
    if ordering_leave(db, entry.tenant, entry.delivery).await? {
        return Ok(true);
    }
    let done = sqlx::query(
        "delete from queue where tenant_id = $1 and priority = $2
           and due_at = timestamptz 'epoch' + $3 * interval '1 microsecond' and delivery_id = $4",
    )
    .bind(entry.tenant.uuid())
    .bind(entry.priority.rank())
    .bind(micros(entry.due_at))
    .bind(entry.delivery.uuid())
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The waiting deliveries of one priority.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueDepth {
    pub priority: Priority,
    /// Due or not.
    pub waiting: i64,
    /// How long the longest due one has waited.
    pub oldest_seconds: f64,
}

/// How many entries wait, all priorities together counted up to `cap`, and for how long the oldest
/// due ones have. The oldest are found by the index, one probe a tenant and priority.
pub async fn queue_depth(db: &mut PgConnection, cap: i64) -> Result<Vec<QueueDepth>> {
    let rows = sqlx::query(
        "with recursive tenants as (
           (select tenant_id from queue order by tenant_id limit 1)
           union all
           select (select q.tenant_id from queue q where q.tenant_id > t.tenant_id order by q.tenant_id limit 1)
           from tenants t where t.tenant_id is not null
         ), counted as (
           select priority, count(*) as waiting from (select priority from queue limit $1) as sampled group by priority
         )
         select p.priority, coalesce((select waiting from counted c where c.priority = p.priority), 0),
           coalesce((select greatest(extract(epoch from now() - min(head.due_at)), 0)
             from tenants t cross join lateral (
               select q.due_at from queue q where q.tenant_id = t.tenant_id and q.priority = p.priority
               order by q.due_at limit 1) as head), 0)::float8
         from (values (0::smallint), (1::smallint), (2::smallint), (3::smallint)) as p (priority)",
    )
    .bind(cap)
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(QueueDepth {
                priority: Priority::from_rank(row.try_get(0)?),
                waiting: row.try_get(1)?,
                oldest_seconds: row.try_get(2)?,
            })
        })
        .collect()
}

/// A lease to be written for a claimed batch of one tenant.
#[derive(Debug, Clone)]
pub struct NewLease {
    pub tenant: TenantId,
    pub id: Uuid,
    /// Each with the number of its last attempt.
    pub deliveries: Vec<(DeliveryId, u32)>,
}

/// Writes the leases of a claim, however many tenants it served, in one statement.
pub async fn lease_insert(db: &mut PgConnection, node: Uuid, length: Duration, leases: &[NewLease]) -> Result<()> {
    let held = || leases.iter().flat_map(|lease| lease.deliveries.iter().map(move |held| (lease, held)));
    sqlx::query(
        "insert into lease (tenant_id, id, node, expires_at, deliveries, attempts)
         select tenant_id, id, $1, now() + $2 * interval '1 millisecond', array_agg(delivery_id order by number),
           array_agg(attempts order by number)
         from unnest($3::uuid[], $4::uuid[], $5::uuid[], $6::int[]) with ordinality
           as held (tenant_id, id, delivery_id, attempts, number)
         group by tenant_id, id",
    )
    .bind(node)
    .bind(length.as_millis() as f64)
    .bind(held().map(|(lease, _)| lease.tenant.uuid()).collect::<Vec<_>>())
    .bind(held().map(|(lease, _)| lease.id).collect::<Vec<_>>())
    .bind(held().map(|(_, (delivery, _))| delivery.uuid()).collect::<Vec<_>>())
    .bind(held().map(|(_, (_, attempts))| int(*attempts)).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Prolongs the leases that still stand, and returns which those are.
pub async fn lease_renew(db: &mut PgConnection, length: Duration, leases: &[(TenantId, Uuid)]) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "with standing as (
           select l.tenant_id, l.id from unnest($2::uuid[], $3::uuid[]) as held (tenant_id, id)
           join lease l on l.tenant_id = held.tenant_id and l.id = held.id
           -- In one order, as whoever else changes several: nobody waits for each other.
           order by l.id for no key update of l
         )
         update lease l set expires_at = now() + $1 * interval '1 millisecond'
         from standing s where l.tenant_id = s.tenant_id and l.id = s.id
         returning l.id",
    )
    .bind(length.as_millis() as f64)
    .bind(leases.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(leases.iter().map(|(_, id)| *id).collect::<Vec<_>>())
    .fetch_all(db)
    .await?)
}

/// Leases that stand while a transaction lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    pub leases: HashSet<Uuid>,
    /// The transaction, to be looked up if its COMMIT is not answered; `None` if no lease was left.
    pub transaction: Option<TransactionId>,
}

/// Holds the leases that still stand until the transaction's end, so that recovery can't take them while outcomes are
/// written under them; returns which those are.
pub async fn lease_hold(db: &mut PgConnection, leases: &[(TenantId, Uuid)]) -> Result<HeldLease> {
    let held: Vec<(Uuid, String)> = sqlx::query_as(
        "select l.id, pg_current_xact_id()::text from unnest($1::uuid[], $2::uuid[]) as held (tenant_id, id)
         join lease l on l.tenant_id = held.tenant_id and l.id = held.id
         for key share of l",
    )
    .bind(leases.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(leases.iter().map(|(_, id)| *id).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let transaction = held.first().map(|(_, id)| TransactionId(id.clone()));
    Ok(HeldLease { leases: held.into_iter().map(|(lease, _)| lease).collect(), transaction })
}

/// Takes deliveries out of leases that continue without them: each of a tenant and a lease. A recovery of such a lease
/// does not find them there.
pub async fn lease_release(db: &mut PgConnection, released: &[(TenantId, Uuid, DeliveryId)]) -> Result<()> {
    sqlx::query(
        "with released as (
           select tenant_id, id, array_agg(delivery_id) as deliveries
           from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as t (tenant_id, id, delivery_id) group by tenant_id, id
         ), standing as (
           select l.tenant_id, l.id, r.deliveries as released from released r
           join lease l on l.tenant_id = r.tenant_id and l.id = r.id
           order by l.id for no key update of l
         )
         update lease l set (deliveries, attempts) = (
           select coalesce(array_agg(held.delivery_id order by place), '{}'),
             coalesce(array_agg(held.attempts order by place), '{}')
           from unnest(l.deliveries, l.attempts) with ordinality as held (delivery_id, attempts, place)
           where held.delivery_id <> all (s.released))
         from standing s where l.tenant_id = s.tenant_id and l.id = s.id",
    )
    .bind(released.iter().map(|(tenant, ..)| tenant.uuid()).collect::<Vec<_>>())
    .bind(released.iter().map(|(_, lease, _)| *lease).collect::<Vec<_>>())
    .bind(released.iter().map(|(.., delivery)| delivery.uuid()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Ends leases whose deliveries are all settled or back in the queue.
pub async fn lease_delete(db: &mut PgConnection, leases: &[(TenantId, Uuid)]) -> Result<()> {
    if leases.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "delete from lease l using unnest($1::uuid[], $2::uuid[]) as done (tenant_id, id)
         where l.tenant_id = done.tenant_id and l.id = done.id",
    )
    .bind(leases.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(leases.iter().map(|(_, id)| *id).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// A delivery whose lease ended before it had an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandoned {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub message: MessageId,
    pub lease: Uuid,
    pub channel: String,
    pub priority: Priority,
    /// Number of its last recorded attempt.
    pub attempts: u32,
    /// Workers that died while they held it, before this one.
    pub deaths: u32,
    /// The lost worker's committed intent, if the provider cannot recognise a repetition.
    pub intent: Option<Intent>,
    /// Whether it has an ordering key.
    pub ordered: bool,
}

/// A request that was about to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub connection: Uuid,
    pub provider: String,
    /// Whether it waits for a person rather than being sent again.
    pub hold: bool,
    pub trigger: String,
    pub started_at: Timestamp,
}

/// Ends up to `limit` expired leases, and returns their deliveries without an outcome.
///
/// Their deliveries have no owner until the caller requeues or ends them in this transaction.
pub async fn lease_recover(db: &mut PgConnection, limit: i64) -> Result<Vec<Abandoned>> {
    let rows = sqlx::query(
        "with dead as (
           delete from lease where (tenant_id, id) in (
             select tenant_id, id from lease where expires_at < now() order by expires_at limit $1
             for update skip locked)
           returning tenant_id, id, deliveries, attempts
         )
         select dead.tenant_id, held.delivery_id, dead.id as lease_id, m.id as message_id,
           angarium_leg_channel(m.legs, m.channel, held.delivery_id) as channel, m.priority,
           coalesce((select max(a.number) from attempt a
             where a.tenant_id = dead.tenant_id and a.delivery_id = held.delivery_id), 0) as attempts,
           coalesce(d.deaths, 0::smallint) as deaths, m.ordering_key is not null as ordered,
           i.connection_id, i.provider, i.on_unknown, i.trigger, i.started_at
         from dead
         cross join lateral unnest(dead.deliveries, dead.attempts) as held (delivery_id, attempts)
         left join delivery d on d.tenant_id = dead.tenant_id and d.id = held.delivery_id
         -- One without a row is its message's only delivery.
         join message m on m.tenant_id = dead.tenant_id and m.id = coalesce(d.message_id, held.delivery_id)
         left join intent i on i.tenant_id = dead.tenant_id and i.delivery_id = held.delivery_id
         -- What has gone on since the lease began was settled under it, and is others' by now.
         where coalesce(d.attempts, 0) = coalesce(held.attempts, 0)",
    )
    .bind(limit)
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            let intent = row.try_get::<Option<Uuid>, _>("connection_id")?.map(|connection| -> Result<Intent> {
                Ok(Intent {
                    connection,
                    provider: row.try_get("provider")?,
                    hold: row.try_get::<&str, _>("on_unknown")? == "hold",
                    trigger: row.try_get("trigger")?,
                    started_at: row.try_get::<jiff_sqlx::Timestamp, _>("started_at")?.to_jiff(),
                })
            });
            Ok(Abandoned {
                tenant: row.try_get::<Uuid, _>("tenant_id")?.into(),
                delivery: row.try_get::<Uuid, _>("delivery_id")?.into(),
                message: row.try_get::<Uuid, _>("message_id")?.into(),
                lease: row.try_get("lease_id")?,
                channel: row.try_get("channel")?,
                priority: Priority::from_rank(row.try_get("priority")?),
                attempts: row.try_get::<i32, _>("attempts")?.unsigned_abs(),
                deaths: u32::from(row.try_get::<i16, _>("deaths")?.unsigned_abs()),
                intent: intent.transpose()?,
                ordered: row.try_get("ordered")?,
            })
        })
        .collect()
}
