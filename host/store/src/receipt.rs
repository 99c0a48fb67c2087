//! Receipts: each is kept once, with the transition that it brings; one that comes too early waits.

use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Result,
    message::{corrupt, parsed},
    time::micros,
};
use angarium_domain::{
    delivery::DeliveryState,
    ids::{ConnectionId, DeliveryId, EventId, MessageId, TenantId},
    message::Priority,
    receipt::Receipt,
};

/// A receipt, and the connection at which it arrived.
#[derive(Debug, Clone)]
pub struct ReceivedReceipt {
    pub tenant: TenantId,
    pub connection: ConnectionId,
    pub receipt: Receipt,
    pub received_at: Timestamp,
}

/// The delivery of a receipt, with its state.
#[derive(Debug, Clone)]
pub struct ReceiptTarget {
    pub delivery: DeliveryId,
    pub message: MessageId,
    pub state: DeliveryState,
    pub priority: Priority,
    /// Its due time in the queue, if it is there.
    pub next_attempt_at: Option<Timestamp>,
    /// Whether it is about the last attempt that counts, as far as can be told.
    pub is_current: bool,
    /// Whether its message has several.
    pub is_leg: bool,
}

/// The delivery that a receipt is about, once one of its attempts is settled. It was tried through
/// the connection that the receipt came by, or through one that a lost worker took with it.
pub async fn receipt_target(db: &mut PgConnection, received: &ReceivedReceipt) -> Result<Option<ReceiptTarget>> {
    let named = received.receipt.delivery.map(DeliveryId::uuid);
    let row = sqlx::query(
        "with known as (
           select $2::uuid as id where $2 is not null
           union all
           -- A month back: what is older needs no receipt.
           (select a.delivery_id from attempt a
            where a.tenant_id = $1 and a.external_id = $3 and a.connection_id = $4
              and a.delivery_id >= angarium_uuid_at(now() - interval '30 days')
            order by a.delivery_id desc limit 1)
         )
         select d.id, d.message_id, d.state, m.priority, d.next_attempt_at, d.begun_at is not null as is_leg,
           coalesce((select bool_or(a.number = d.attempts and a.number > d.counted_from) from attempt a
             where a.tenant_id = d.tenant_id and a.delivery_id = d.id and a.external_id = $3), true) as is_current
         from known
         join delivery d on d.tenant_id = $1 and d.id = known.id
         join message m on m.tenant_id = d.tenant_id and m.id = d.message_id
         where exists (select from attempt a where a.tenant_id = d.tenant_id and a.delivery_id = d.id
           and (a.connection_id = $4 or a.connection_id is null))
         limit 1",
    )
    .bind(received.tenant.uuid())
    .bind(named)
    .bind(received.receipt.external_id.as_deref())
    .bind(received.connection.uuid())
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(ReceiptTarget {
            delivery: row.try_get::<Uuid, _>("id")?.into(),
            message: row.try_get::<Uuid, _>("message_id")?.into(),
            state: parsed(row.try_get::<&str, _>("state")?)?,
            priority: Priority::from_rank(row.try_get("priority")?),
            next_attempt_at: row
                .try_get::<Option<jiff_sqlx::Timestamp>, _>("next_attempt_at")?
                .map(jiff_sqlx::Timestamp::to_jiff),
            is_current: row.try_get("is_current")?,
            is_leg: row.try_get("is_leg")?,
        })
    })
    .transpose()
}

/// Keeps a receipt with the state that it leads to, if any; false for a repetition.
pub async fn receipt_insert(
    db: &mut PgConnection,
    delivery: DeliveryId,
    received: &ReceivedReceipt,
    state: Option<DeliveryState>,
) -> Result<bool> {
    let receipt = &received.receipt;
    let done = sqlx::query(
        "insert into receipt (tenant_id, delivery_id, kind, hash, connection_id, external_id, recipient, at, received_at,
           code, unified_code, message, detail, state)
         values ($1, $2, $3, $4, $5, $6, $7, timestamptz 'epoch' + $8 * interval '1 microsecond',
           timestamptz 'epoch' + $9 * interval '1 microsecond', $10, $11, $12, $13, $14)
         on conflict do nothing",
    )
    .bind(received.tenant.uuid())
    .bind(delivery.uuid())
    .bind(receipt.kind.as_str())
    .bind(receipt.hash().as_slice())
    .bind(received.connection.uuid())
    .bind(receipt.external_id.as_deref())
    .bind(receipt.recipient.as_deref())
    .bind(receipt.at.map(micros))
    .bind(micros(received.received_at))
    .bind(&receipt.code)
    .bind(&receipt.unified_code)
    .bind(&receipt.message)
    .bind(&receipt.detail)
    .bind(state.map(DeliveryState::as_str))
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Moves a delivery from the state in which it was seen; false when it is in another by now.
pub async fn receipt_move(
    db: &mut PgConnection,
    target: &ReceiptTarget,
    received: &ReceivedReceipt,
    to: DeliveryState,
) -> Result<bool> {
    let done = sqlx::query(
        "update delivery set state = $4, external_id = coalesce(external_id, $5), code = $6, unified_code = $7,
           detail = $8, next_attempt_at = null, trigger = null, updated_at = now(),
           finished_at = coalesce(finished_at, now())
         where tenant_id = $1 and id = $2 and state = $3",
    )
    .bind(received.tenant.uuid())
    .bind(target.delivery.uuid())
    .bind(target.state.as_str())
    .bind(to.as_str())
    .bind(received.receipt.external_id.as_deref())
    .bind(&received.receipt.code)
    .bind(&received.receipt.unified_code)
    .bind(&received.receipt.message)
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Adds to what people did with a delivery.
pub async fn receipt_engage(db: &mut PgConnection, target: &ReceiptTarget, received: &ReceivedReceipt) -> Result<()> {
    sqlx::query(
        "update delivery set engagement = array_append(engagement, $3::text)
         where tenant_id = $1 and id = $2 and not ($3 = any (coalesce(engagement, '{}')))",
    )
    .bind(received.tenant.uuid())
    .bind(target.delivery.uuid())
    .bind(received.receipt.kind.as_str())
    .execute(db)
    .await?;
    Ok(())
}

/// Writes the event of a receipt, under this word.
pub async fn receipt_event(
    db: &mut PgConnection,
    target: &ReceiptTarget,
    received: &ReceivedReceipt,
    word: &str,
) -> Result<()> {
    let receipt = &received.receipt;
    sqlx::query(
        "insert into event (tenant_id, message_id, id, delivery_id, type, at, data)
         values ($1, $2, $3, $4, 'message.' || $5, now(), json_build_object('receipt', $6::text, 'connection', $7::text,
           'external_id', $8::text, 'recipient', $9::text, 'provider_at', $10::text, 'code', $11::text,
           'unified_code', $12::text, 'detail', $13::text, 'provider', $14::json)::text)",
    )
    .bind(received.tenant.uuid())
    .bind(target.message.uuid())
    .bind(EventId::new().uuid())
    .bind(target.delivery.uuid())
    .bind(word)
    .bind(receipt.kind.as_str())
    .bind(received.connection.to_string())
    .bind(receipt.external_id.as_deref())
    .bind(receipt.recipient.as_deref())
    .bind(receipt.at.map(|at| at.to_string()))
    .bind(&receipt.code)
    .bind(&receipt.unified_code)
    .bind(&receipt.message)
    .bind(&receipt.detail)
    .execute(db)
    .await?;
    Ok(())
}

// ── Receipts that wait ────────────────────────────────────────────────────────────────────

/// Keeps a receipt until its delivery's outcome is written. A repetition changes nothing.
pub async fn pending_insert(db: &mut PgConnection, received: &ReceivedReceipt) -> Result<()> {
    let receipt = &received.receipt;
    sqlx::query(
        "insert into receipt_pending (tenant_id, connection_id, kind, hash, delivery_id, external_id, recipient, at,
           received_at, code, unified_code, message, detail)
         values ($1, $2, $3, $4, $5, $6, $7, timestamptz 'epoch' + $8 * interval '1 microsecond',
           timestamptz 'epoch' + $9 * interval '1 microsecond', $10, $11, $12, $13)
         on conflict do nothing",
    )
    .bind(received.tenant.uuid())
    .bind(received.connection.uuid())
    .bind(receipt.kind.as_str())
    .bind(receipt.hash().as_slice())
    .bind(receipt.delivery.map(DeliveryId::uuid))
    .bind(receipt.external_id.as_deref())
    .bind(receipt.recipient.as_deref())
    .bind(receipt.at.map(micros))
    .bind(micros(received.received_at))
    .bind(&receipt.code)
    .bind(&receipt.unified_code)
    .bind(&receipt.message)
    .bind(&receipt.detail)
    .execute(db)
    .await?;
    Ok(())
}

/// The receipts that are to be looked at now, of any tenants, the longest due first.
pub async fn pending_due(db: &mut PgConnection, limit: i64) -> Result<Vec<ReceivedReceipt>> {
    let rows = sqlx::query(
        "select tenant_id, connection_id, kind, delivery_id, external_id, recipient, at, received_at, code,
           unified_code, message, detail
         from receipt_pending where look_at <= now() order by look_at limit $1",
    )
    .bind(limit)
    .fetch_all(db)
    .await?;
    rows.iter().map(received_from).collect()
}

fn received_from(row: &PgRow) -> Result<ReceivedReceipt> {
    Ok(ReceivedReceipt {
        tenant: row.try_get::<Uuid, _>("tenant_id")?.into(),
        connection: row.try_get::<Uuid, _>("connection_id")?.into(),
        received_at: row.try_get::<jiff_sqlx::Timestamp, _>("received_at")?.to_jiff(),
        receipt: Receipt {
            kind: row.try_get::<&str, _>("kind")?.parse().map_err(corrupt)?,
            delivery: row.try_get::<Option<Uuid>, _>("delivery_id")?.map(Into::into),
            external_id: row.try_get("external_id")?,
            recipient: row.try_get("recipient")?,
            at: row.try_get::<Option<jiff_sqlx::Timestamp>, _>("at")?.map(jiff_sqlx::Timestamp::to_jiff),
            code: row.try_get("code")?,
            unified_code: row.try_get("unified_code")?,
            message: row.try_get("message")?,
            detail: row.try_get("detail")?,
        },
    })
}

/// Takes a waiting receipt away in this transaction; false when another node has it.
pub async fn pending_take(db: &mut PgConnection, received: &ReceivedReceipt) -> Result<bool> {
    let done = sqlx::query(
        "delete from receipt_pending where ctid = any (array (
           select ctid from receipt_pending where tenant_id = $1 and connection_id = $2 and kind = $3 and hash = $4
           for update skip locked))",
    )
    .bind(received.tenant.uuid())
    .bind(received.connection.uuid())
    .bind(received.receipt.kind.as_str())
    .bind(received.receipt.hash().as_slice())
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Postpones the next look: by a second, and by more the longer the receipt has waited, up to ten minutes. Drops a
/// receipt that has waited for a day; returns whether it did.
pub async fn pending_postpone(db: &mut PgConnection, received: &ReceivedReceipt) -> Result<bool> {
    let dropped: Option<bool> = sqlx::query_scalar(
        "with old as (
           delete from receipt_pending
           where tenant_id = $1 and connection_id = $2 and kind = $3 and hash = $4
             and received_at < now() - interval '24 hours'
           returning true as dropped
         ), later as (
           update receipt_pending
           set look_at = now() + least(greatest((now() - received_at) / 4, interval '1 second'), interval '10 minutes')
           where tenant_id = $1 and connection_id = $2 and kind = $3 and hash = $4
             and received_at >= now() - interval '24 hours'
         )
         select dropped from old",
    )
    .bind(received.tenant.uuid())
    .bind(received.connection.uuid())
    .bind(received.receipt.kind.as_str())
    .bind(received.receipt.hash().as_slice())
    .fetch_optional(db)
    .await?;
    Ok(dropped.unwrap_or(false))
}
