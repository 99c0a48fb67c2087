//! The outbox: one row for each thing that happened to a message, or to a connection.

use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Result,
    message::body_metadata,
    page::{PageRows, one_more, page},
};
use angarium_domain::ids::{ConnectionId, DeliveryId, EventId, MessageId, TenantId};

/// A fact in the outbox.
#[derive(Debug, Clone)]
pub struct EventView {
    pub id: EventId,
    /// `None` if it is not about a message.
    pub message: Option<MessageId>,
    pub delivery: Option<DeliveryId>,
    /// The connection of an event about one.
    pub connection: Option<ConnectionId>,
    /// Such as `message.sent`.
    pub kind: String,
    pub at: Timestamp,
    /// JSON.
    pub data: Option<String>,
    /// Of an event about a message that is still there.
    pub about: Option<EventSubject>,
}

/// The client's names for the message of an event.
#[derive(Debug, Clone)]
pub struct EventSubject {
    /// The channel of the event's delivery.
    pub channel: String,
    pub reference: Option<String>,
    /// JSON.
    pub metadata: Option<String>,
}

/// Events `e` with their messages.
const EVENTS: &str = "select e.id, e.delivery_id, e.type, e.at, e.data, e.message_id, e.connection_id,
    angarium_leg_channel(m.legs, m.channel, coalesce(e.delivery_id, m.id)) as channel, m.reference,
    coalesce(m.excerpt, m.body) as body
  from event e left join message m on m.tenant_id = e.tenant_id and m.id = e.message_id and e.connection_id is null";

/// A message's events, oldest first. Its acceptance is the message itself and has no row here.
pub async fn event_list(db: &mut PgConnection, tenant: TenantId, message: MessageId) -> Result<Vec<EventView>> {
    let sql = format!("{EVENTS} where e.tenant_id = $1 and e.message_id = $2 order by e.at, e.id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(tenant.uuid()).bind(message.uuid()).fetch_all(db).await?;
    rows.iter().map(event_from).collect()
}

fn event_from(row: &PgRow) -> Result<EventView> {
    let connection: Option<ConnectionId> = row.try_get::<Option<Uuid>, _>(6)?.map(Into::into);
    let channel: Option<String> = row.try_get("channel")?;
    let about = channel.map(|channel| -> Result<EventSubject> {
        let metadata = body_metadata(row.try_get("body")?);
        Ok(EventSubject { channel, reference: row.try_get("reference")?, metadata })
    });
    Ok(EventView {
        id: row.try_get::<Uuid, _>(0)?.into(),
        delivery: row.try_get::<Option<Uuid>, _>(1)?.map(Into::into),
        kind: row.try_get(2)?,
        at: row.try_get::<jiff_sqlx::Timestamp, _>(3)?.to_jiff(),
        data: row.try_get(4)?,
        message: connection.is_none().then(|| row.try_get::<Uuid, _>(5)).transpose()?.map(Into::into),
        connection,
        about: about.transpose()?,
    })
}

/// A piece of a tenant's events.
#[derive(Debug, Clone, Copy)]
pub struct EventWindow<'a> {
    pub after: EventId,
    pub before: EventId,
    /// Empty for all types.
    pub kinds: &'a [String],
    pub limit: u32,
}

/// Returns a tenant's events within a window, in the order of their ids, which is that of time.
pub async fn event_page(
    db: &mut PgConnection,
    tenant: TenantId,
    window: &EventWindow<'_>,
) -> Result<PageRows<EventView>> {
    let sql = format!(
        "{EVENTS} where e.tenant_id = $1 and e.id > $2 and e.id < $3
           and (cardinality($4::text[]) = 0 or e.type = any ($4))
         order by e.id limit $5"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(window.after.uuid())
        .bind(window.before.uuid())
        .bind(window.kinds)
        .bind(one_more(window.limit))
        .fetch(db);
    page(rows, window.limit, event_from).await
}

/// Records a person's action on a message.
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

/// Records what happened to a connection.
pub async fn connection_event_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    connection: ConnectionId,
    kind: &str,
    data: &str,
) -> Result<()> {
    sqlx::query(
        "insert into event (tenant_id, message_id, id, type, at, data, connection_id)
         values ($1, $2, $2, $3, clock_timestamp(), $4, $5)",
    )
    .bind(tenant.uuid())
    .bind(EventId::new().uuid())
    .bind(kind)
    .bind(data)
    .bind(connection.uuid())
    .execute(db)
    .await?;
    Ok(())
}

/// Records the same of many messages at once.
pub async fn event_insert_all(
    db: &mut PgConnection,
    tenant: TenantId,
    deliveries: &[(MessageId, DeliveryId)],
    kind: &str,
    data: Option<&str>,
) -> Result<()> {
    sqlx::query(
        "insert into event (tenant_id, message_id, id, delivery_id, type, at, data)
         select $1, t.message_id, t.id, t.delivery_id, $5, now(), $6
         from unnest($2::uuid[], $3::uuid[], $4::uuid[]) as t (message_id, delivery_id, id)",
    )
    .bind(tenant.uuid())
    .bind(deliveries.iter().map(|(message, _)| message.uuid()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|(_, delivery)| delivery.uuid()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|_| EventId::new().uuid()).collect::<Vec<_>>())
    .bind(kind)
    .bind(data)
    .execute(db)
    .await?;
    Ok(())
}
