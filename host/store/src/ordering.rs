//! Ordering keys: the present turn of each, and the lines.
//!
//! A delivery with a key is in the queue, or in a worker's hand, only while it is its turn. The turn
//! goes to the next in the transaction that ends it.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Result, queue::QueueEntry, time::micros};
use angarium_domain::ids::{DeliveryId, TenantId};

/// Puts deliveries at the end of their keys' lines, in this order; those whose turn it is at once go
/// into the queue.
pub async fn ordering_join(db: &mut PgConnection, entrants: &[(&str, QueueEntry)]) -> Result<()> {
    if entrants.is_empty() {
        return Ok(());
    }
    let turns = ordering_open(db, entrants).await?;
    let has_turn = |(key, entry): &(&str, QueueEntry)| {
        turns.get(&(entry.tenant.uuid(), (*key).to_owned())) == Some(&entry.delivery.uuid())
    };
    sqlx::query(
        "with input as (
           select tenant_id, key, delivery_id, timestamptz 'epoch' + due_at * interval '1 microsecond' as due_at,
             priority, turn, number
           from unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::smallint[], $6::bool[]) with ordinality
             as input (tenant_id, key, delivery_id, due_at, priority, turn, number)
         ), queued as (
           insert into queue (tenant_id, delivery_id, due_at, priority)
           select tenant_id, delivery_id, due_at, priority from input where turn
         )
         insert into ordering_line (tenant_id, key, delivery_id, due_at, priority)
         select tenant_id, key, delivery_id, due_at, priority from input where not turn order by number",
    )
    .bind(entrants.iter().map(|(_, it)| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(entrants.iter().map(|(key, _)| *key).collect::<Vec<_>>())
    .bind(entrants.iter().map(|(_, it)| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(entrants.iter().map(|(_, it)| micros(it.due_at)).collect::<Vec<_>>())
    .bind(entrants.iter().map(|(_, it)| it.priority.rank()).collect::<Vec<_>>())
    .bind(entrants.iter().map(has_turn).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Locks the keys until the transaction's end, and returns the present turn of each: the first entrant's if the line
/// was empty.
async fn ordering_open(
    db: &mut PgConnection,
    entrants: &[(&str, QueueEntry)],
) -> Result<HashMap<(Uuid, String), Uuid>> {
    let turns: Vec<(Uuid, String, Uuid)> = sqlx::query_as(
        "insert into ordering (tenant_id, key, delivery_id)
         select tenant_id, key, delivery_id from (
           select distinct on (tenant_id, key) tenant_id, key, delivery_id
           from unnest($1::uuid[], $2::text[], $3::uuid[]) with ordinality as input (tenant_id, key, delivery_id, number)
           order by tenant_id, key, number
         ) as first
         -- In one order, as whoever else holds several: nobody waits for each other.
         order by tenant_id, key
         on conflict (tenant_id, key) do update set delivery_id = ordering.delivery_id
         returning tenant_id, key, delivery_id",
    )
    .bind(entrants.iter().map(|(_, it)| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(entrants.iter().map(|(key, _)| *key).collect::<Vec<_>>())
    .bind(entrants.iter().map(|(_, it)| it.delivery.uuid()).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    Ok(turns.into_iter().map(|(tenant, key, delivery)| ((tenant, key), delivery)).collect())
}

/// Returns the keys of these messages' deliveries that have one.
pub async fn ordering_key_find(
    db: &mut PgConnection,
    deliveries: &[(TenantId, DeliveryId)],
) -> Result<HashMap<DeliveryId, String>> {
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "select d.id, m.ordering_key from unnest($1::uuid[], $2::uuid[]) as wanted (tenant_id, id)
         join delivery d on d.tenant_id = wanted.tenant_id and d.id = wanted.id
         join message m on m.tenant_id = d.tenant_id and m.id = d.message_id
         where m.ordering_key is not null",
    )
    .bind(deliveries.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|(_, delivery)| delivery.uuid()).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|(delivery, key)| (delivery.into(), key)).collect())
}

/// Takes the turn from deliveries that have ended, and puts the next ones into the queue. Deliveries without a turn or
/// a key change nothing.
pub async fn ordering_pass(db: &mut PgConnection, ended: &[(TenantId, DeliveryId)]) -> Result<()> {
    let tenants = || ended.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>();
    let deliveries = || ended.iter().map(|(_, delivery)| delivery.uuid()).collect::<Vec<_>>();
    let held = sqlx::query(
        "select from unnest($1::uuid[], $2::uuid[]) as ended (tenant_id, delivery_id)
         join ordering o on o.tenant_id = ended.tenant_id and o.delivery_id = ended.delivery_id
         order by o.tenant_id, o.key for update of o",
    )
    .bind(tenants())
    .bind(deliveries())
    .fetch_all(&mut *db)
    .await?;
    if held.is_empty() {
        return Ok(());
    }
    // A statement of its own: it sees the deliveries that joined until the keys were locked.
    sqlx::query(
        "with turn as (
           select o.tenant_id, o.key, next.place, next.delivery_id, next.due_at, next.priority
           from unnest($1::uuid[], $2::uuid[]) as ended (tenant_id, delivery_id)
           join ordering o on o.tenant_id = ended.tenant_id and o.delivery_id = ended.delivery_id
           left join lateral (
             select l.place, l.delivery_id, l.due_at, l.priority from ordering_line l
             where l.tenant_id = o.tenant_id and l.key = o.key order by l.place limit 1
           ) as next on true
         ), passed as (
           update ordering o set delivery_id = t.delivery_id
           from turn t where t.place is not null and o.tenant_id = t.tenant_id and o.key = t.key
         ), closed as (
           delete from ordering o using turn t where t.place is null and o.tenant_id = t.tenant_id and o.key = t.key
         ), gone as (
           delete from ordering_line l using turn t
           where l.tenant_id = t.tenant_id and l.key = t.key and l.place = t.place
         )
         insert into queue (tenant_id, delivery_id, due_at, priority)
         select tenant_id, delivery_id, due_at, priority from turn where place is not null",
    )
    .bind(tenants())
    .bind(deliveries())
    .execute(db)
    .await?;
    Ok(())
}

/// Takes a delivery out of its key's line; false for one that does not stand there.
pub async fn ordering_leave(db: &mut PgConnection, tenant: TenantId, delivery: DeliveryId) -> Result<bool> {
    let held = sqlx::query(
        "select from ordering_line l join ordering o on o.tenant_id = l.tenant_id and o.key = l.key
         where l.tenant_id = $1 and l.delivery_id = $2 for update of o",
    )
    .bind(tenant.uuid())
    .bind(delivery.uuid())
    .fetch_optional(&mut *db)
    .await?;
    if held.is_none() {
        return Ok(false);
    }
    let left = sqlx::query("delete from ordering_line where tenant_id = $1 and delivery_id = $2")
        .bind(tenant.uuid())
        .bind(delivery.uuid())
        .execute(db)
        .await?;
    Ok(left.rows_affected() > 0)
}
