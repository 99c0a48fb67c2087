//! Ends of deliveries that scripts are to be asked about. Each is here from the transaction that ended the delivery
//! until all of its follow-ups are done.

use jiff::Timestamp;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{Result, message::parsed};
use angarium_domain::{
    delivery::DeliveryState,
    ids::{DeliveryId, MessageId, TenantId},
};

/// A delivery that has just ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedDelivery {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub message: MessageId,
    pub state: DeliveryState,
}

/// Notes ends in the transaction that wrote them; one that was not written is left out.
pub async fn follow_up_note(db: &mut PgConnection, ended: &[EndedDelivery]) -> Result<()> {
    sqlx::query(
        "insert into follow_up (tenant_id, delivery_id, message_id, state)
         select ended.tenant_id, ended.delivery_id, ended.message_id, ended.state
         from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[])
           as ended (tenant_id, delivery_id, message_id, state)
         join delivery d on d.tenant_id = ended.tenant_id and d.id = ended.delivery_id and d.state = ended.state
         on conflict do nothing",
    )
    .bind(ended.iter().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(ended.iter().map(|it| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(ended.iter().map(|it| it.message.uuid()).collect::<Vec<_>>())
    .bind(ended.iter().map(|it| it.state.as_str()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Does the same if the tenants' scripts are unknown: only for tenants with such a script.
pub async fn follow_up_note_where_asked(db: &mut PgConnection, ended: &[EndedDelivery]) -> Result<()> {
    let tenants: Vec<Uuid> = ended.iter().filter(|it| it.state.is_end()).map(|it| it.tenant.uuid()).collect();
    if tenants.is_empty() {
        return Ok(());
    }
    let asking: Vec<Uuid> = sqlx::query_scalar(
        "select distinct t.id from tenant t where t.id = any ($1::uuid[]) and (
           exists (select from document d
             join document_version v on v.tenant_id = d.tenant_id and v.kind = d.kind and v.document_id = d.id
               and (v.version = d.active_version or exists (
                 select from experiment e where e.tenant_id = d.tenant_id and e.kind = d.kind and e.document_id = d.id
                   and e.version = v.version and e.mode = 'canary' and e.ended_at is null))
             where d.tenant_id = t.id and d.kind = 'script' and v.body like '%on_outcome%')
           or exists (select from operator_script o where o.live and o.kind = 'script' and o.scope in ('', t.name)
             and o.source like '%on_outcome%'))",
    )
    .bind(tenants)
    .fetch_all(&mut *db)
    .await?;
    let of_asking = |it: &&EndedDelivery| it.state.is_end() && asking.contains(&it.tenant.uuid());
    let ended: Vec<EndedDelivery> = ended.iter().filter(of_asking).copied().collect();
    if ended.is_empty() { Ok(()) } else { follow_up_note(db, &ended).await }
}

/// An end that is being handled.
#[derive(Debug, Clone)]
pub struct DueFollowUp {
    pub ended: EndedDelivery,
    pub ended_at: Timestamp,
    /// How often it was looked at, this time included.
    pub tries: u32,
}

/// Returns up to `limit` due ends; no other node handles them for some seconds, longer each time.
pub async fn follow_up_claim(db: &mut PgConnection, limit: i64) -> Result<Vec<DueFollowUp>> {
    let rows = sqlx::query(
        "update follow_up f set tries = tries + 1, due_at = now() + least(tries + 1, 120) * interval '5 seconds'
         where ctid = any (array (
           select ctid from follow_up where due_at <= now() order by due_at limit $1 for update skip locked))
         returning tenant_id, delivery_id, message_id, state, ended_at, tries",
    )
    .bind(limit)
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(DueFollowUp {
                ended: EndedDelivery {
                    tenant: row.try_get::<Uuid, _>(0)?.into(),
                    delivery: row.try_get::<Uuid, _>(1)?.into(),
                    message: row.try_get::<Uuid, _>(2)?.into(),
                    state: parsed(row.try_get(3)?)?,
                },
                ended_at: row.try_get::<jiff_sqlx::Timestamp, _>(4)?.to_jiff(),
                tries: row.try_get::<i32, _>(5)?.unsigned_abs(),
            })
        })
        .collect()
}

/// Marks an end as done; false if another node was first.
pub async fn follow_up_end(db: &mut PgConnection, ended: &EndedDelivery) -> Result<bool> {
    let done = sqlx::query("delete from follow_up where tenant_id = $1 and delivery_id = $2 and state = $3")
        .bind(ended.tenant.uuid())
        .bind(ended.delivery.uuid())
        .bind(ended.state.as_str())
        .execute(db)
        .await?;
    Ok(done.rows_affected() > 0)
}
