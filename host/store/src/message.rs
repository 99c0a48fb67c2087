//! Messages with their idempotency keys, attachments, queue entries and birth leases: what one
//! acceptance commits together.

mod stored;

use std::{collections::HashMap, str::FromStr};

use bytes::Bytes;
use jiff::Timestamp;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Result, StoreError, TransactionId,
    attempt::parsed_recipients,
    legs::WANTED,
    page::{PageRows, page},
    time::micros,
};
use angarium_domain::{
    delivery::DeliveryState,
    ids::{BatchId, ConnectionId, DeliveryId, MessageId, TenantId},
    legs::{self, Leg},
    message::{Attachment, Message, NewMessage, Priority, metadata_hashes},
    provider::{BlobInfo, Cost},
    recipients::Recipients,
};
pub use stored::body_json;
pub(super) use stored::{StoredLegs, body_metadata};

/// The lease that an acceptance writes for the messages that its node dispatches at once.
#[derive(Debug, Clone, Copy)]
pub struct BirthLease {
    pub id: Uuid,
    pub node: Uuid,
    /// Milliseconds, on the database's clock.
    pub length_ms: i64,
}

/// A message to be written, with its JSON and its destination.
#[derive(Debug)]
pub struct MessageRow<'a> {
    pub new: &'a NewMessage,
    /// The whole message's [`body_json`].
    pub json: &'a [u8],
    /// The same of the abridged message.
    pub excerpt: Option<&'a [u8]>,
    /// Into the queue, rather than under the birth lease; `None` for what joins its key's line.
    pub queued: Option<bool>,
}

/// The result of [`message_insert`].
#[derive(Debug)]
pub struct Inserted {
    /// The messages that were not accepted before.
    pub fresh: Vec<MessageId>,
    /// Names the transaction, so that it can be asked after should its COMMIT not be answered.
    pub transaction: TransactionId,
}

/// Writes the messages of one tenant whose idempotency keys are new, and returns their ids. The rest was accepted
/// before: [`idempotency_find`] tells as what.
pub async fn message_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    rows: &[MessageRow<'_>],
    lease: BirthLease,
) -> Result<Inserted> {
    let messages = || rows.iter().map(|row| &row.new.message);
    let keys = || rows.iter().map(|row| row.new.idempotency.as_ref());
    let (fresh, transaction): (Vec<Uuid>, String) = sqlx::query_as(
        "with input as (
           select id, timestamptz 'epoch' + created_at * interval '1 microsecond' as created_at, channel, recipient,
             priority, timestamptz 'epoch' + send_at * interval '1 microsecond' as send_at,
             timestamptz 'epoch' + expires_at * interval '1 microsecond' as expires_at,
             reference, connection_id, body, key, fingerprint, queued, ordering_key, legs, excerpt, batch_id, metadata_hashes
           from unnest($2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::smallint[], $7::bigint[], $8::bigint[],
             $9::text[], $10::uuid[], $11::bytea[], $12::text[], $13::bytea[], $14::bool[],
             $18::text[], $19::text[], $20::bytea[], $21::uuid[], $22::text[])
             as input (id, created_at, channel, recipient, priority, send_at, expires_at, reference, connection_id,
               body, key, fingerprint, queued, ordering_key, legs, excerpt, batch_id, metadata_hashes)
         ), keyed as (
           -- In order of the key, so that two writers never wait for each other in a circle.
           insert into idempotency (tenant_id, key, fingerprint, message_id, created_at)
           select $1, key, fingerprint, id, created_at from input where key is not null order by key
           on conflict do nothing
           returning message_id
         ), fresh as materialized (
           select * from input where key is null or id = any (array (select message_id from keyed))
         ), stored as (
           insert into message (tenant_id, id, created_at, channel, recipient, priority, send_at, expires_at,
             reference, connection_id, body, ordering_key, legs, excerpt, batch_id)
           select $1, id, created_at, channel, recipient, priority, send_at, expires_at, reference, connection_id, body,
             ordering_key, legs::jsonb, excerpt, batch_id
           from fresh
         ), members as (
           insert into message_metadata (tenant_id, message_id, hash)
           select $1, id, hash from fresh cross join lateral unnest(metadata_hashes::bigint[]) as hash
           on conflict do nothing
         ), queued as (
           insert into queue (tenant_id, delivery_id, due_at, priority)
           select $1, id, coalesce(send_at, created_at), priority from fresh where queued
         ), leased as (
           insert into lease (tenant_id, id, node, expires_at, deliveries)
           select $1, $15, $16, now() + $17 * interval '1 millisecond', array_agg(id)
           from fresh where not queued having count(*) > 0
         )
         select coalesce(array_agg(id), '{}'), pg_current_xact_id()::text from fresh",
    )
    .bind(tenant.uuid())
    .bind(messages().map(|m| m.id.uuid()).collect::<Vec<_>>())
    .bind(messages().map(|m| micros(m.created_at)).collect::<Vec<_>>())
    .bind(messages().map(|m| m.first().channel.as_str()).collect::<Vec<_>>())
    .bind(messages().map(|m| m.first().recipient()).collect::<Vec<_>>())
    .bind(messages().map(|m| m.priority.rank()).collect::<Vec<_>>())
    .bind(messages().map(|m| m.send_at.map(micros)).collect::<Vec<_>>())
    .bind(messages().map(|m| m.expires_at.map(micros)).collect::<Vec<_>>())
    .bind(messages().map(|m| m.reference.as_deref()).collect::<Vec<_>>())
    .bind(messages().map(|m| m.first().connection.map(ConnectionId::uuid)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.json).collect::<Vec<_>>())
    .bind(keys().map(|key| key.map(|it| it.key.as_str())).collect::<Vec<_>>())
    .bind(keys().map(|key| key.map(|it| it.fingerprint.as_slice())).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.queued).collect::<Vec<_>>())
    .bind(lease.id)
    .bind(lease.node)
    .bind(lease.length_ms as f64)
    .bind(messages().map(|m| m.ordering_key.as_deref()).collect::<Vec<_>>())
    .bind(messages().map(|m| stored::legs_json(&m.legs)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.excerpt).collect::<Vec<_>>())
    .bind(messages().map(|m| m.batch.map(BatchId::uuid)).collect::<Vec<_>>())
    .bind(messages().map(|m| hashes_of(tenant, m)).collect::<Vec<_>>())
    .fetch_one(db)
    .await?;
    let fresh = fresh.into_iter().map(MessageId::from).collect();
    Ok(Inserted { fresh, transaction: TransactionId(transaction) })
}

/// Returns the hashes of its metadata's members as an array's text; `None` without members.
fn hashes_of(tenant: TenantId, message: &Message) -> Option<String> {
    let hashes = metadata_hashes(tenant, message.body.metadata.as_deref()?);
    let texts: Vec<_> = hashes.iter().map(i64::to_string).collect();
    (!texts.is_empty()).then(|| format!("{{{}}}", texts.join(",")))
}

/// Writes the attachments of a message that was just inserted, each under the leg that it travels with.
pub async fn attachment_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    message: MessageId,
    attachments: &[Attachment],
) -> Result<()> {
    sqlx::query(
        "insert into attachment (tenant_id, message_id, number, name, media_type, content_id, content)
         select $1, t.leg, t.number, t.name, t.media_type, t.content_id, t.content
         from unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::bytea[]) with ordinality
           as t (leg, name, media_type, content_id, content, number)",
    )
    .bind(tenant.uuid())
    .bind(attachments.iter().map(|it| message.leg(it.leg).uuid()).collect::<Vec<_>>())
    .bind(attachments.iter().map(|it| it.name.as_str()).collect::<Vec<_>>())
    .bind(attachments.iter().map(|it| it.media_type.as_str()).collect::<Vec<_>>())
    .bind(attachments.iter().map(|it| it.content_id.as_deref()).collect::<Vec<_>>())
    .bind(attachments.iter().map(|it| it.content.as_ref()).collect::<Vec<&[u8]>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Returns the bytes of a message's body, and of all attachments of one of its legs; `None` if it is gone.
pub async fn content_size(
    db: &mut PgConnection,
    tenant: TenantId,
    message: MessageId,
    leg: DeliveryId,
) -> Result<Option<(usize, usize)>> {
    let size: Option<(i64, i64)> = sqlx::query_as(
        "select octet_length(body)::bigint, coalesce((select sum(octet_length(content)) from attachment
           where tenant_id = $1 and message_id = $3), 0)::bigint
         from message where tenant_id = $1 and id = $2",
    )
    .bind(tenant.uuid())
    .bind(message.uuid())
    .bind(leg.uuid())
    .fetch_optional(db)
    .await?;
    let bytes = |count: i64| usize::try_from(count).unwrap_or(usize::MAX);
    Ok(size.map(|(body, files)| (bytes(body), bytes(files))))
}

/// Returns a message with its whole content, which may be large; `None` if it is gone.
pub async fn message_whole(db: &mut PgConnection, tenant: TenantId, id: MessageId) -> Result<Option<Message>> {
    let sql = format!(
        "select {MESSAGE_COLUMNS}, m.body as json, false as abridged from message m
         where m.tenant_id = $1 and m.id = $2"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(tenant.uuid()).bind(id.uuid()).fetch_optional(db).await?;
    row.as_ref().map(message_from).transpose()
}

/// Returns the attachments of a message's leg, in their order and without their bytes.
pub async fn attachment_list(db: &mut PgConnection, tenant: TenantId, leg: DeliveryId) -> Result<Vec<BlobInfo>> {
    let rows = sqlx::query(
        "select name, media_type, content_id, octet_length(content) from attachment
         where tenant_id = $1 and message_id = $2 order by number",
    )
    .bind(tenant.uuid())
    .bind(leg.uuid())
    .fetch_all(db)
    .await?;
    let info = |(id, row): (u32, &PgRow)| {
        Ok(BlobInfo {
            id,
            name: row.try_get(0)?,
            media_type: row.try_get(1)?,
            content_id: row.try_get(2)?,
            size: row.try_get::<i32, _>(3)?.into(),
        })
    };
    (0..).zip(&rows).map(info).collect()
}

/// The bytes of those attachments of a message's leg that have these places in [`attachment_list`].
pub async fn attachment_load(
    db: &mut PgConnection,
    tenant: TenantId,
    leg: DeliveryId,
    places: &[u32],
) -> Result<Vec<(u32, Bytes)>> {
    let rows = sqlx::query(
        "select listed.place, a.content
         from (select number, row_number() over (order by number) - 1 as place from attachment
               where tenant_id = $1 and message_id = $2) as listed
         join attachment a on a.tenant_id = $1 and a.message_id = $2 and a.number = listed.number
         where listed.place = any ($3::bigint[])",
    )
    .bind(tenant.uuid())
    .bind(leg.uuid())
    .bind(places.iter().copied().map(i64::from).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let bytes = |row: PgRow| {
        let place = u32::try_from(row.try_get::<i64, _>(0)?).unwrap_or(u32::MAX);
        Ok((place, Bytes::from(row.try_get::<Vec<u8>, _>(1)?)))
    };
    rows.into_iter().map(bytes).collect()
}

/// Returns a piece of an attachment that has this place in [`attachment_list`], from `offset` on; `None` if it is gone.
pub async fn attachment_chunk(
    db: &mut PgConnection,
    tenant: TenantId,
    leg: DeliveryId,
    place: u32,
    offset: usize,
    length: usize,
) -> Result<Option<Vec<u8>>> {
    let piece = sqlx::query_scalar(
        "select substring(content from $4 for $5) from attachment
         where tenant_id = $1 and message_id = $2 order by number limit 1 offset $3",
    )
    .bind(tenant.uuid())
    .bind(leg.uuid())
    .bind(i64::from(place))
    .bind(i32::try_from(offset.saturating_add(1)).unwrap_or(i32::MAX))
    .bind(i32::try_from(length).unwrap_or(i32::MAX))
    .fetch_optional(db)
    .await?;
    Ok(piece)
}

/// The message behind an idempotency key.
#[derive(Debug, Clone)]
pub struct KnownKey {
    pub key: String,
    pub fingerprint: Vec<u8>,
    pub message: MessageId,
}

/// Looks up idempotency keys of one tenant.
pub async fn idempotency_find(db: &mut PgConnection, tenant: TenantId, keys: &[&str]) -> Result<Vec<KnownKey>> {
    let rows = sqlx::query(
        "select key, fingerprint, message_id from idempotency where tenant_id = $1 and key = any ($2::text[])",
    )
    .bind(tenant.uuid())
    .bind(keys)
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(KnownKey {
                key: row.try_get(0)?,
                fingerprint: row.try_get(1)?,
                message: row.try_get::<Uuid, _>(2)?.into(),
            })
        })
        .collect()
}

/// Forgets keys older than a day; returns how many.
pub async fn idempotency_expire(db: &mut PgConnection) -> Result<u64> {
    let done = sqlx::query(
        "delete from idempotency where ctid = any (array (
           select ctid from idempotency where created_at < now() - interval '24 hours' limit 10000))",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

const MESSAGE_COLUMNS: &str = "m.tenant_id, m.id, m.created_at, m.channel, m.priority, m.send_at, m.expires_at,
  m.reference, m.connection_id, m.ordering_key, m.batch_id, m.legs::text as legs,
  (select count(*) from attachment a where a.tenant_id = m.tenant_id and a.message_id = m.id)::int as attachments";

/// The content as it is looked at: of a large message the excerpt.
const EXCERPT_COLUMNS: &str = "coalesce(m.excerpt, m.body) as json, m.excerpt is not null as abridged";

fn message_from(row: &PgRow) -> Result<Message> {
    let time = |column: &str| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column)?.map(|it| it.to_jiff()))
    };
    let first = Leg {
        connection: row.try_get::<Option<Uuid>, _>("connection_id")?.map(Into::into),
        attachments: row.try_get::<i32, _>("attachments")?.unsigned_abs(),
        ..Leg::on(parsed(row.try_get::<&str, _>("channel")?)?)
    };
    let (legs, body) = stored::read(first, row.try_get("json")?, row.try_get("legs")?)?;
    Ok(Message {
        id: row.try_get::<Uuid, _>("id")?.into(),
        created_at: time("created_at")?.unwrap_or_default(),
        priority: Priority::from_rank(row.try_get("priority")?),
        send_at: time("send_at")?,
        expires_at: time("expires_at")?,
        reference: row.try_get("reference")?,
        batch: row.try_get::<Option<Uuid>, _>("batch_id")?.map(Into::into),
        ordering_key: row.try_get("ordering_key")?,
        legs,
        body,
        abridged: row.try_get("abridged")?,
    })
}

pub(super) fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(text: &str) -> Result<T> {
    text.parse().map_err(corrupt)
}

pub(super) fn corrupt(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Failed(sqlx::Error::Decode(Box::new(error)))
}

/// Returns messages of any tenants by their ids; missing ones are left out.
pub async fn message_load(db: &mut PgConnection, ids: &[(TenantId, MessageId)]) -> Result<Vec<(TenantId, Message)>> {
    let sql = format!(
        "select {MESSAGE_COLUMNS}, {EXCERPT_COLUMNS} from unnest($1::uuid[], $2::uuid[]) as wanted (tenant_id, id)
         join message m on m.tenant_id = wanted.tenant_id and m.id = wanted.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(ids.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
        .bind(ids.iter().map(|(_, id)| id.uuid()).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    rows.iter().map(|row| Ok((row.try_get::<Uuid, _>("tenant_id")?.into(), message_from(row)?))).collect()
}

/// A message and where its deliveries stand.
#[derive(Debug, Clone)]
pub struct MessageView {
    pub message: Message,
    /// The time of the purge: after it recipient, content and attachments are gone.
    pub content_purged_at: Option<Timestamp>,
    pub state: DeliveryState,
    /// The delivery that determined the state.
    pub delivery: DeliveryView,
    /// The legs that have begun, in order: at least one.
    pub legs: Vec<DeliveryView>,
}

impl MessageView {
    /// The legs that have begun, as the decisions see them.
    #[must_use]
    pub fn begun(&self) -> Vec<legs::Begun> {
        let begun = |it: &DeliveryView| legs::Begun {
            number: it.id.leg_of(self.message.id),
            state: it.state,
            handed_over: false,
            receipt: legs::LegReceipt::NotAwaited,
        };
        self.legs.iter().map(begun).collect()
    }
}

/// The state of a delivery.
#[derive(Debug, Clone)]
pub struct DeliveryView {
    pub id: DeliveryId,
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    pub connection: Option<ConnectionId>,
    pub provider: Option<String>,
    pub external_id: Option<String>,
    pub code: Option<String>,
    pub unified_code: Option<String>,
    pub detail: Option<String>,
    /// The outcome for each recipient of a mail with copies.
    pub recipients: Recipients,
    pub cost: Option<Cost>,
    /// The recipient's actions, as far as receipts report them.
    pub engagement: Vec<String>,
    pub next_attempt_at: Option<Timestamp>,
    /// The time until which a receipt is waited for.
    pub receipt_until: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

const DELIVERY_COLUMNS: &str =
    "case when d.state = 'queued' and d.begun_at > now() then 'scheduled' else d.state end as state,
  d.attempts, d.connection_id as d_connection_id, d.provider, d.external_id, d.code, d.unified_code, d.detail,
  d.cost_micros, d.cost_currency, d.engagement, d.next_attempt_at, d.receipt_until, d.finished_at,
  d.recipients::text as recipients";

const VIEW_COLUMNS: &str = "coalesce(m.send_at > now(), false) as in_future, m.content_purged_at, m.state as m_state";

fn view_from(row: &PgRow) -> Result<MessageView> {
    let message = message_from(row)?;
    // Without a row no attempt was settled yet.
    let fresh = if row.try_get("in_future")? { DeliveryState::Scheduled } else { DeliveryState::Queued };
    let delivery = delivery_from(row, message.id.first_delivery(), fresh)?;
    let state = match row.try_get::<Option<&str>, _>("m_state")? {
        Some(state) => parsed(state)?,
        None if message.legs.is_list() && delivery.state != DeliveryState::Scheduled => DeliveryState::Queued,
        None => delivery.state,
    };
    let content_purged_at = row.try_get::<Option<jiff_sqlx::Timestamp>, _>("content_purged_at")?.map(|it| it.to_jiff());
    let legs = vec![delivery.clone()];
    Ok(MessageView { message, content_purged_at, state, delivery, legs })
}

fn delivery_from(row: &PgRow, id: DeliveryId, fresh: DeliveryState) -> Result<DeliveryView> {
    let time = |column: &str| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column)?.map(|it| it.to_jiff()))
    };
    let cost = row.try_get::<Option<i64>, _>("cost_micros")?.zip(row.try_get::<Option<String>, _>("cost_currency")?);
    Ok(DeliveryView {
        id,
        state: row.try_get::<Option<&str>, _>("state")?.map_or(Ok(fresh), parsed)?,
        attempts: row.try_get::<Option<i32>, _>("attempts")?.unwrap_or(0).unsigned_abs(),
        connection: row.try_get::<Option<Uuid>, _>("d_connection_id")?.map(Into::into),
        provider: row.try_get("provider")?,
        external_id: row.try_get("external_id")?,
        code: row.try_get("code")?,
        unified_code: row.try_get("unified_code")?,
        detail: row.try_get("detail")?,
        recipients: parsed_recipients(row.try_get("recipients")?)?,
        cost: cost.map(|(micros, currency)| Cost { micros, currency }),
        engagement: row.try_get::<Option<Vec<String>>, _>("engagement")?.unwrap_or_default(),
        next_attempt_at: time("next_attempt_at")?,
        receipt_until: time("receipt_until")?,
        finished_at: time("finished_at")?,
    })
}

/// Adds their legs to those messages that name a list.
async fn with_legs(db: &mut PgConnection, tenant: TenantId, views: &mut [MessageView]) -> Result<()> {
    let lists: Vec<MessageId> = views.iter().filter(|it| it.message.legs.is_list()).map(|it| it.message.id).collect();
    if lists.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "select wanted.id as message_id, d.id, {DELIVERY_COLUMNS} from {WANTED}
         join delivery d on d.tenant_id = $1 and d.id >= wanted.id and d.id <= wanted.last order by d.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(lists.iter().map(|it| it.uuid()).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    let mut legs: HashMap<MessageId, Vec<DeliveryView>> = HashMap::new();
    for row in &rows {
        let leg = delivery_from(row, row.try_get::<Uuid, _>("id")?.into(), DeliveryState::Queued)?;
        legs.entry(row.try_get::<Uuid, _>("message_id")?.into()).or_default().push(leg);
    }
    for view in views {
        let Some(begun) = legs.remove(&view.message.id) else { continue };
        let speaks = begun.iter().find(|it| it.state == view.state).or(begun.last());
        view.delivery = speaks.unwrap_or(&view.delivery).clone();
        view.legs = begun;
    }
    Ok(())
}

/// Returns one message of the transaction's tenant.
pub async fn message_get(db: &mut PgConnection, tenant: TenantId, id: MessageId) -> Result<Option<MessageView>> {
    let sql = format!(
        "select {MESSAGE_COLUMNS}, {EXCERPT_COLUMNS}, {DELIVERY_COLUMNS}, {VIEW_COLUMNS} from message m
         left join delivery d on d.tenant_id = m.tenant_id and d.id = m.id
         where m.tenant_id = $1 and m.id = $2"
    );
    let row =
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(tenant.uuid()).bind(id.uuid()).fetch_optional(&mut *db).await?;
    let mut view = row.as_ref().map(view_from).transpose()?;
    with_legs(db, tenant, view.as_mut_slice()).await?;
    Ok(view)
}

/// Holds a message until the transaction's end, so that actions on it come one after another. False if there is none.
pub async fn message_hold(db: &mut PgConnection, tenant: TenantId, id: MessageId) -> Result<bool> {
    let held = sqlx::query("select from message where tenant_id = $1 and id = $2 for update")
        .bind(tenant.uuid())
        .bind(id.uuid())
        .fetch_optional(db)
        .await?;
    Ok(held.is_some())
}

/// A message as it is recorded, and whether its content is gone.
pub type Recorded = (Message, bool);

/// The messages that were accepted since a time, the newest first, from before `before`.
pub async fn message_history(
    db: &mut PgConnection,
    tenant: TenantId,
    since: Timestamp,
    before: MessageId,
    limit: u32,
) -> Result<Vec<Recorded>> {
    let sql = format!(
        "select {MESSAGE_COLUMNS}, {EXCERPT_COLUMNS}, m.content_purged_at is not null as purged from message m
         where m.tenant_id = $1 and m.id < $2 and m.created_at >= timestamptz 'epoch' + $3 * interval '1 microsecond'
           and m.id >= angarium_uuid_at(timestamptz 'epoch' + $3 * interval '1 microsecond')
         order by m.id desc limit $4"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(before.uuid())
        .bind(micros(since))
        .bind(i64::from(limit))
        .fetch_all(db)
        .await?;
    rows.iter().map(|row| Ok((message_from(row)?, row.try_get("purged")?))).collect()
}

/// A connection that was asked for a message.
#[derive(Debug, Clone)]
pub struct AskedRow {
    pub message: MessageId,
    pub connection: ConnectionId,
    /// Whether the delivery ended well through it; `None` while that is open.
    pub went_well: Option<bool>,
    pub cost: Option<Cost>,
}

/// The connections that were asked for these messages, each once a delivery.
pub async fn message_asked(db: &mut PgConnection, tenant: TenantId, messages: &[MessageId]) -> Result<Vec<AskedRow>> {
    let sql = format!(
        "select distinct on (d.id, a.connection_id) wanted.id as message_id, a.connection_id,
           case when d.state in ('queued', 'unknown', 'canceled') then null
             else d.state in ('sent', 'delivered') and d.connection_id = a.connection_id end as went_well,
           a.cost_micros, a.cost_currency
         from {WANTED}
         join delivery d on d.tenant_id = $1 and d.id >= wanted.id and d.id <= wanted.last
         join attempt a on a.tenant_id = $1 and a.delivery_id = d.id and a.connection_id is not null
         order by d.id, a.connection_id, a.number desc"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(messages.iter().map(|it| it.uuid()).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    let asked = |row: &PgRow| {
        let micros = row.try_get::<Option<i64>, _>("cost_micros")?;
        let cost = micros.zip(row.try_get::<Option<String>, _>("cost_currency")?);
        Ok(AskedRow {
            message: row.try_get::<Uuid, _>("message_id")?.into(),
            connection: row.try_get::<Uuid, _>("connection_id")?.into(),
            went_well: row.try_get("went_well")?,
            cost: cost.map(|(micros, currency)| Cost { micros, currency }),
        })
    };
    rows.iter().map(asked).collect()
}

/// Returns these messages of a tenant as a page, the newest first.
pub async fn message_views(
    db: &mut PgConnection,
    tenant: TenantId,
    ids: &[MessageId],
    limit: u32,
) -> Result<PageRows<MessageView>> {
    let sql = format!(
        "select {MESSAGE_COLUMNS}, {EXCERPT_COLUMNS}, {DELIVERY_COLUMNS}, {VIEW_COLUMNS} from message m
         left join delivery d on d.tenant_id = m.tenant_id and d.id = m.id
         where m.tenant_id = $1 and m.id = any ($2::uuid[]) order by m.id desc"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(ids.iter().map(|id| id.uuid()).collect::<Vec<_>>())
        .fetch(&mut *db);
    let mut views = page(rows, limit, view_from).await?;
    with_legs(db, tenant, &mut views.rows).await?;
    Ok(views)
}

/// Writes the times and the priority of a waiting message anew.
pub async fn message_reschedule(db: &mut PgConnection, tenant: TenantId, message: &Message) -> Result<()> {
    sqlx::query(
        "update message set send_at = timestamptz 'epoch' + $3 * interval '1 microsecond',
           expires_at = timestamptz 'epoch' + $4 * interval '1 microsecond', priority = $5
         where tenant_id = $1 and id = $2",
    )
    .bind(tenant.uuid())
    .bind(message.id.uuid())
    .bind(message.send_at.map(micros))
    .bind(message.expires_at.map(micros))
    .bind(message.priority.rank())
    .execute(db)
    .await?;
    Ok(())
}

/// Returns the stored ones of these messages: for a writer that lost its connection in a COMMIT.
pub async fn message_exists(db: &mut PgConnection, tenant: TenantId, ids: &[MessageId]) -> Result<Vec<MessageId>> {
    let found: Vec<Uuid> = sqlx::query_scalar("select id from message where tenant_id = $1 and id = any ($2::uuid[])")
        .bind(tenant.uuid())
        .bind(ids.iter().map(|id| id.uuid()).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    Ok(found.into_iter().map(MessageId::from).collect())
}
