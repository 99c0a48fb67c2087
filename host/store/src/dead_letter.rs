//! Dead letters. They are read by `delivery_dead`, an index of nothing but dead letters; the ledger is not scanned.

use jiff::Timestamp;
use sqlx::{
    PgConnection, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use super::{
    Result,
    message::parsed,
    page::{PageRows, one_more, page},
    time::micros,
};
use angarium_domain::{
    dead_letter::DeadLetterFilter,
    delivery::DeliveryState,
    ids::{ConnectionId, DeliveryId, MessageId, RouteId, TenantId},
    message::address,
};

/// A delivery that ended without success.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    pub delivery: DeliveryId,
    pub message: MessageId,
    pub state: DeliveryState,
    pub channel: String,
    pub recipient: String,
    pub reference: Option<String>,
    /// Attempts so far.
    pub attempts: u32,
    /// Of the last attempt.
    pub connection: Option<ConnectionId>,
    pub connection_uid: Option<String>,
    pub route: Option<RouteId>,
    pub provider: Option<String>,
    pub code: Option<String>,
    pub unified_code: Option<String>,
    pub detail: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub content_purged_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// The time of the discard.
    pub discarded_at: Option<Timestamp>,
    pub discard_reason: Option<String>,
}

/// The id by which a dead letter is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterId {
    Delivery(DeliveryId),
    Message(MessageId),
}

/// The states of dead letters, as the index has them: a parameter would not be matched with it.
const DEAD: &str = "d.tenant_id = $1 and d.state in ('failed', 'bounced', 'expired', 'unroutable', 'unknown')";

/// The conditions of a filter, with the parameters that [`filtered`] binds. The attempt and the message are looked up
/// only if the filter needs them.
const MATCHES: &str = "d.discarded_at is null and d.state = any ($2::text[])
  and angarium_leg_counts(d.tenant_id, d.id, d.message_id, d.begun_at)
  and ($3::uuid is null or d.connection_id = $3) and ($4::text is null or d.provider = $4)
  and ($5::text is null or d.code = $5 or d.unified_code = $5)
  and ($6::bigint is null or d.finished_at >= timestamptz 'epoch' + $6 * interval '1 microsecond')
  and ($7::bigint is null or d.finished_at < timestamptz 'epoch' + $7 * interval '1 microsecond')
  and ($8::text is null or $8 = coalesce(
    (select a.channel from attempt a
     where a.tenant_id = d.tenant_id and a.delivery_id = d.id and a.number = d.attempts),
    (select m.channel from message m where m.tenant_id = d.tenant_id and m.id = d.message_id)))
  and ($9::uuid is null or $9 = (select a.route_id from attempt a
    where a.tenant_id = d.tenant_id and a.delivery_id = d.id and a.number = d.attempts))
  and ($10::text[] is null or (select angarium_comparable(m.recipient) from message m
    where m.tenant_id = d.tenant_id and m.id = d.message_id) = any ($10))
  and ($11::text is null or $11 = (select m.reference from message m
    where m.tenant_id = d.tenant_id and m.id = d.message_id))";

fn filtered<'q>(sql: String, tenant: TenantId, filter: &DeadLetterFilter) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(filter.states.iter().map(|it| it.as_str()).collect::<Vec<_>>())
        .bind(filter.connection.map(ConnectionId::uuid))
        .bind(filter.provider.clone())
        .bind(filter.code.clone())
        .bind(filter.since.map(micros))
        .bind(filter.until.map(micros))
        .bind(filter.channel.clone())
        .bind(filter.route.map(RouteId::uuid))
        .bind(filter.recipient.as_deref().map(address::spellings))
        .bind(filter.reference.clone())
}

const COLUMNS: &str = "d.id, d.message_id, d.state, d.attempts, d.connection_id, d.provider, d.code, d.unified_code,
  d.detail, d.finished_at, d.discarded_at, d.discard_reason, m.recipient, m.reference, m.created_at, m.expires_at,
  m.content_purged_at, a.route_id, coalesce(a.channel, m.channel) as channel, c.uid as connection_uid";

/// The tables of [`COLUMNS`].
const TABLES: &str = "delivery d join message m on m.tenant_id = d.tenant_id and m.id = d.message_id
  left join attempt a on a.tenant_id = d.tenant_id and a.delivery_id = d.id and a.number = d.attempts
  left join connection c on c.tenant_id = d.tenant_id and c.id = d.connection_id";

fn letter_from(row: &PgRow) -> Result<DeadLetter> {
    let time = |column: &str| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column)?.map(jiff_sqlx::Timestamp::to_jiff))
    };
    Ok(DeadLetter {
        delivery: row.try_get::<Uuid, _>("id")?.into(),
        message: row.try_get::<Uuid, _>("message_id")?.into(),
        state: parsed(row.try_get("state")?)?,
        channel: row.try_get("channel")?,
        recipient: row.try_get("recipient")?,
        reference: row.try_get("reference")?,
        attempts: row.try_get::<i32, _>("attempts")?.unsigned_abs(),
        connection: row.try_get::<Option<Uuid>, _>("connection_id")?.map(Into::into),
        connection_uid: row.try_get("connection_uid")?,
        route: row.try_get::<Option<Uuid>, _>("route_id")?.map(Into::into),
        provider: row.try_get("provider")?,
        code: row.try_get("code")?,
        unified_code: row.try_get("unified_code")?,
        detail: row.try_get("detail")?,
        created_at: time("created_at")?.unwrap_or_default(),
        expires_at: time("expires_at")?,
        content_purged_at: time("content_purged_at")?,
        finished_at: time("finished_at")?,
        discarded_at: time("discarded_at")?,
        discard_reason: row.try_get("discard_reason")?,
    })
}

/// The tenant's dead letters that match, the newest message's first, from before `before`.
pub async fn dead_letter_list(
    db: &mut PgConnection,
    tenant: TenantId,
    filter: &DeadLetterFilter,
    before: Option<DeliveryId>,
    limit: u32,
) -> Result<PageRows<DeadLetter>> {
    let sql = format!(
        "select {COLUMNS} from {TABLES}
         where {DEAD} and {MATCHES} and d.id < $12 order by d.id desc limit $13"
    );
    let rows = filtered(sql, tenant, filter)
        .bind(before.map_or(Uuid::max(), DeliveryId::uuid))
        .bind(one_more(limit))
        .fetch(db);
    page(rows, limit, letter_from).await
}

/// A dead letter, discarded or not, by its delivery's or its message's id; of a message with several,
/// the first.
pub async fn dead_letter_get(db: &mut PgConnection, tenant: TenantId, id: LetterId) -> Result<Option<DeadLetter>> {
    let ((first, last), message) = match id {
        LetterId::Delivery(delivery) => ((delivery.uuid(), delivery.uuid()), None),
        LetterId::Message(message) => (legs_of(message), Some(message.uuid())),
    };
    let sql = format!(
        "select {COLUMNS} from {TABLES}
         where {DEAD} and d.id >= $2 and d.id <= $3 and ($4::uuid is null or d.message_id = $4)
         order by d.id limit 1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(first)
        .bind(last)
        .bind(message)
        .fetch_optional(db)
        .await?;
    row.as_ref().map(letter_from).transpose()
}

/// How many dead letters match.
pub async fn dead_letter_count(db: &mut PgConnection, tenant: TenantId, filter: &DeadLetterFilter) -> Result<i64> {
    let sql = format!("select count(*) from delivery d where {DEAD} and {MATCHES}");
    Ok(filtered(sql, tenant, filter).fetch_one(db).await?.try_get(0)?)
}

/// The next dead letters that match, in order of their ids, from behind `after`.
pub async fn dead_letter_next(
    db: &mut PgConnection,
    tenant: TenantId,
    filter: &DeadLetterFilter,
    after: Option<DeliveryId>,
    limit: u32,
) -> Result<Vec<DeliveryId>> {
    let sql = format!("select d.id from delivery d where {DEAD} and {MATCHES} and d.id > $12 order by d.id limit $13");
    let rows = filtered(sql, tenant, filter)
        .bind(after.map_or(Uuid::nil(), DeliveryId::uuid))
        .bind(i64::from(limit))
        .fetch_all(db)
        .await?;
    rows.iter().map(|row| Ok(row.try_get::<Uuid, _>(0)?.into())).collect()
}

/// Takes dead letters off the list; returns which, with their messages: not those that are none any more, or were
/// discarded before.
pub async fn dead_letter_discard(
    db: &mut PgConnection,
    tenant: TenantId,
    deliveries: &[DeliveryId],
    reason: &str,
) -> Result<Vec<(MessageId, DeliveryId)>> {
    let sql = format!(
        "update delivery d set discarded_at = now(), discard_reason = $3, updated_at = now()
         where {DEAD} and d.id = any ($2::uuid[]) and d.discarded_at is null returning d.message_id, d.id"
    );
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(deliveries.iter().map(|it| it.uuid()).collect::<Vec<_>>())
        .bind(reason)
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().map(|(message, delivery)| (message.into(), delivery.into())).collect())
}

/// The deliveries of a message that are unknown.
pub async fn delivery_unknown(db: &mut PgConnection, tenant: TenantId, message: MessageId) -> Result<Vec<DeliveryId>> {
    let (first, last) = legs_of(message);
    let found: Vec<Uuid> = sqlx::query_scalar(
        "select id from delivery where tenant_id = $1 and id >= $2 and id <= $3 and message_id = $4
           and state = 'unknown' order by id",
    )
    .bind(tenant.uuid())
    .bind(first)
    .bind(last)
    .bind(message.uuid())
    .fetch_all(db)
    .await?;
    Ok(found.into_iter().map(DeliveryId::from).collect())
}

/// The first and the last id that deliveries of a message may have: they differ in their last four bits.
fn legs_of(message: MessageId) -> (Uuid, Uuid) {
    let bits = message.uuid().as_u128();
    (Uuid::from_u128(bits & !0xf), Uuid::from_u128(bits | 0xf))
}

/// Dead letters of one channel and state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterCount {
    /// Empty if no connection could be asked: the word is then arbitrary.
    pub channel: String,
    pub state: DeliveryState,
    pub count: i64,
}

/// How many dead letters all tenants have, all together counted up to `cap`.
pub async fn dead_letter_depth(db: &mut PgConnection, cap: i64) -> Result<Vec<DeadLetterCount>> {
    // In the order of the index, so that nothing else is read.
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "select case when d.connection_id is null then '' else m.channel end, d.state, count(*) from (
           select tenant_id, message_id, state, connection_id from delivery
           where state in ('failed', 'bounced', 'expired', 'unroutable', 'unknown') and discarded_at is null
             and angarium_leg_counts(tenant_id, id, message_id, begun_at)
           order by tenant_id, id limit $1
         ) as d join message m on m.tenant_id = d.tenant_id and m.id = d.message_id group by 1, 2",
    )
    .bind(cap)
    .fetch_all(db)
    .await?;
    let count =
        |(channel, state, count): (String, String, i64)| Ok(DeadLetterCount { channel, state: parsed(&state)?, count });
    rows.into_iter().map(count).collect()
}
