//! What a person does to a delivery: cancel it, or ask for another attempt.

use jiff::Timestamp;
use sqlx::PgConnection;

use super::{
    Result,
    message::parsed,
    statistics::{EndCount, end_count},
    time::micros,
};
use crate::domain::{
    delivery::DeliveryState,
    ids::{DeliveryId, MessageId, TenantId},
};

/// Ends a delivery that waits in the queue; the caller took it out of there in this transaction.
pub async fn delivery_cancel(
    db: &mut PgConnection,
    tenant: TenantId,
    message: MessageId,
    delivery: DeliveryId,
) -> Result<()> {
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
        return Ok(());
    }
    end_count(db, tenant, &[EndCount { delivery, state: DeliveryState::Canceled, count: 1 }]).await
}

/// Opens an ended delivery again, due at `at`; the attempts so far no longer count. Tells whether
/// it was in a state that allows it.
pub async fn delivery_reopen(
    db: &mut PgConnection,
    tenant: TenantId,
    delivery: DeliveryId,
    at: Timestamp,
) -> Result<bool> {
    let left: Option<String> = sqlx::query_scalar(
        "with ended as (
           select tenant_id, id, state from delivery
           where tenant_id = $1 and id = $2
             and state in ('failed', 'bounced', 'expired', 'canceled', 'unroutable', 'unknown')
           for update
         )
         update delivery d set state = 'queued', counted_from = attempts, deaths = 0, finished_at = null,
           next_attempt_at = timestamptz 'epoch' + $3 * interval '1 microsecond', trigger = 'manual', updated_at = now()
         from ended where d.tenant_id = ended.tenant_id and d.id = ended.id
         returning ended.state",
    )
    .bind(tenant.uuid())
    .bind(delivery.uuid())
    .bind(micros(at))
    .fetch_optional(&mut *db)
    .await?;
    let Some(left) = left else { return Ok(false) };
    end_count(db, tenant, &[EndCount { delivery, state: parsed(&left)?, count: -1 }]).await?;
    Ok(true)
}
