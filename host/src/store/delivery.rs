//! What happens to a delivery without an attempt: it waits longer, a person cancels it or asks for
//! another attempt.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Result,
    attempt::int,
    legs::Moved,
    message::parsed,
    statistics::{EndCount, end_count},
    time::micros,
};
use crate::domain::{
    attempt::Trigger,
    delivery::DeliveryState,
    ids::{DeliveryId, MessageId, TenantId},
    message::Priority,
};

/// A delivery that goes back to the queue as it came.
#[derive(Debug, Clone)]
pub struct Deferral {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
    pub message: MessageId,
    pub priority: Priority,
    /// The fencing epoch.
    pub lease: Uuid,
    /// Number of its last attempt.
    pub attempts: u32,
    pub deaths: u32,
    /// Why the next attempt is made.
    pub trigger: Trigger,
    /// How long it waits, on the database's clock.
    pub wait: Duration,
}

/// Puts deliveries back into the queue: no attempt was made, so nothing of their past changes and no
/// event tells of it. The caller holds their leases, and takes them out of these.
///
/// A fresh one has its row from here on, so that whoever looks for it sees when it is due.
pub async fn delivery_defer(db: &mut PgConnection, rows: &[&Deferral]) -> Result<()> {
    sqlx::query(
        "with input as (
           select tenant_id, delivery_id, message_id, priority, attempts, deaths, trigger,
             now() + wait * interval '1 microsecond' as due_at
           from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::smallint[], $5::int[], $6::smallint[], $7::text[],
             $8::bigint[])
             as input (tenant_id, delivery_id, message_id, priority, attempts, deaths, trigger, wait)
         ), waiting as (
           insert into delivery as d (tenant_id, id, message_id, state, attempts, deaths, next_attempt_at, trigger,
             updated_at)
           select tenant_id, delivery_id, message_id, 'queued', attempts, deaths, due_at, trigger, now() from input
           on conflict (tenant_id, id) do update set
             attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at, trigger = excluded.trigger,
             updated_at = excluded.updated_at
           where d.state = 'queued'
           returning tenant_id, id
         )
         insert into queue (tenant_id, delivery_id, due_at, priority)
         select i.tenant_id, i.delivery_id, i.due_at, i.priority
         from input i join waiting w on w.tenant_id = i.tenant_id and w.id = i.delivery_id",
    )
    .bind(rows.iter().map(|it| it.tenant.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.message.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.priority.rank()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| int(it.attempts)).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| i16::try_from(it.deaths).unwrap_or(i16::MAX)).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| it.trigger.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|it| i64::try_from(it.wait.as_micros()).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Ends a delivery that waits in the queue; the caller took it out of there in this transaction.
pub async fn delivery_cancel(
    db: &mut PgConnection,
    tenant: TenantId,
    message: MessageId,
    delivery: DeliveryId,
) -> Result<Moved> {
    let done = sqlx::query(
        "insert into delivery as d (tenant_id, id, message_id, state, attempts, updated_at, finished_at)
         values ($1, $2, $3, 'canceled', 0, now(), now())
         on conflict (tenant_id, id) do update set
           state = 'canceled', next_attempt_at = null, trigger = null, updated_at = now(), finished_at = now()
         where d.state = 'queued'",
    )
    .bind(tenant.uuid())
    .bind(delivery.uuid())
    .bind(message.uuid())
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(Moved::default());
    }
    end_count(db, tenant, &[EndCount { delivery, state: DeliveryState::Canceled, count: 1 }]).await
}

/// Opens an ended delivery again, due at `at`; the attempts so far no longer count, and a leg begins
/// anew. `None` where its state does not allow it.
pub async fn delivery_reopen(
    db: &mut PgConnection,
    tenant: TenantId,
    delivery: DeliveryId,
    at: Timestamp,
) -> Result<Option<Moved>> {
    let left: Option<String> = sqlx::query_scalar(
        "with ended as (
           select tenant_id, id, state from delivery
           where tenant_id = $1 and id = $2
             and state in ('failed', 'bounced', 'expired', 'canceled', 'unroutable', 'unknown')
           for update
         )
         update delivery d set state = 'queued', counted_from = attempts, deaths = 0, finished_at = null,
           begun_at = case when d.begun_at is not null then now() end, receipt_until = null,
           next_attempt_at = timestamptz 'epoch' + $3 * interval '1 microsecond', trigger = 'manual', updated_at = now()
         from ended where d.tenant_id = ended.tenant_id and d.id = ended.id
         returning ended.state",
    )
    .bind(tenant.uuid())
    .bind(delivery.uuid())
    .bind(micros(at))
    .fetch_optional(&mut *db)
    .await?;
    let Some(left) = left else { return Ok(None) };
    end_count(db, tenant, &[EndCount { delivery, state: parsed(&left)?, count: -1 }]).await.map(Some)
}
