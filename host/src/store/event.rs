//! The outbox: one row for each thing that happened to a message.

use jiff::Timestamp;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::Result;
use crate::domain::ids::{DeliveryId, EventId, MessageId, TenantId};

/// A fact in the outbox.
#[derive(Debug, Clone)]
pub struct EventView {
    pub id: EventId,
    pub delivery: Option<DeliveryId>,
    /// Such as `message.sent`.
    pub kind: String,
    pub at: Timestamp,
    /// JSON.
    pub data: Option<String>,
}

/// A message's events, oldest first. Its acceptance is the message itself and has no row here.
pub async fn event_list(db: &mut PgConnection, tenant: TenantId, message: MessageId) -> Result<Vec<EventView>> {
    let rows = sqlx::query(
        "select id, delivery_id, type, at, data from event where tenant_id = $1 and message_id = $2 order by at, id",
    )
    .bind(tenant.uuid())
    .bind(message.uuid())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(EventView {
                id: row.try_get::<Uuid, _>(0)?.into(),
                delivery: row.try_get::<Option<Uuid>, _>(1)?.map(Into::into),
                kind: row.try_get(2)?,
                at: row.try_get::<jiff_sqlx::Timestamp, _>(3)?.to_jiff(),
                data: row.try_get(4)?,
            })
        })
        .collect()
}

/// Records what a person did to a message.
pub async fn event_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    message: MessageId,
    kind: &str,
    data: Option<&str>,
) -> Result<()> {
    sqlx::query(
        "insert into event (tenant_id, message_id, id, delivery_id, type, at, data) values ($1, $2, $3, $2, $4, now(), $5)",
    )
    .bind(tenant.uuid())
    .bind(message.uuid())
    .bind(EventId::new().uuid())
    .bind(kind)
    .bind(data)
    .execute(db)
    .await?;
    Ok(())
}
