//! The search for messages: ids of a page, and counts. Each filter has an index, or is met by walking from the newest
//! message on.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Result,
    message::{MessageView, message_views},
    page::{PageRows, one_more},
    time::micros,
};
use angarium_domain::{
    delivery::DeliveryState,
    ids::{BatchId, ConnectionId, MessageId, TenantId},
    message::metadata_hash,
};

/// The most legs of a message: so many rows of deliveries may belong to one message.
const MOST_LEGS: i64 = 16;

/// The filter of messages: all of its members must hold.
///
/// A member that this version does not know is refused: a node of an older version would act on more than was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MessageFilter {
    pub state: Option<DeliveryState>,
    pub channel: Option<String>,
    pub reference: Option<String>,
    /// The spellings under which a recipient is stored; empty: any recipient.
    pub recipients: Vec<String>,
    /// The connection of a delivery's last attempt.
    pub connection: Option<ConnectionId>,
    /// The provider of a delivery's last attempt.
    pub provider: Option<String>,
    /// The provider's code, or the gateway's word for it, of a delivery that did not succeed.
    pub code: Option<String>,
    /// Accepted at this time or later.
    pub since: Option<Timestamp>,
    /// Accepted before this time.
    pub until: Option<Timestamp>,
    pub batch: Option<BatchId>,
    /// A member of the metadata, and its value.
    pub metadata: Option<(String, String)>,
    /// These messages alone; empty: any message.
    pub ids: Vec<MessageId>,
}

impl MessageFilter {
    /// Whether it asks for what only deliveries know.
    const fn asks_deliveries(&self) -> bool {
        self.connection.is_some() || self.provider.is_some() || self.code.is_some()
    }
}

type Sql = QueryBuilder<Postgres>;

/// Returns a page of the tenant's messages that match, the newest first, from before `before`.
pub async fn message_list(
    db: &mut PgConnection,
    tenant: TenantId,
    filter: &MessageFilter,
    before: Option<MessageId>,
    limit: u32,
) -> Result<PageRows<MessageView>> {
    let ids = message_find(db, tenant, filter, before, one_more(limit)).await?;
    message_views(db, tenant, &ids, limit).await
}

/// Returns the ids of up to `limit` messages that match, the newest first, from before `before`.
pub async fn message_find(
    db: &mut PgConnection,
    tenant: TenantId,
    filter: &MessageFilter,
    before: Option<MessageId>,
    limit: i64,
) -> Result<Vec<MessageId>> {
    let mut sql = search(tenant, filter, before, Some(limit));
    let ids: Vec<Uuid> = sql.build_query_scalar().persistent(false).fetch_all(db).await?;
    Ok(ids.into_iter().map(MessageId::from).collect())
}

/// Returns how many messages match.
pub async fn message_count(db: &mut PgConnection, tenant: TenantId, filter: &MessageFilter) -> Result<i64> {
    let mut sql = Sql::new("select count(*) from (");
    push_search(&mut sql, tenant, filter, None, None);
    sql.push(") as found");
    Ok(sql.build_query_scalar().persistent(false).fetch_one(db).await?)
}

fn search(tenant: TenantId, filter: &MessageFilter, before: Option<MessageId>, limit: Option<i64>) -> Sql {
    let mut sql = Sql::new("");
    push_search(&mut sql, tenant, filter, before, limit);
    sql
}

/// Only the conditions that there are become part of the statement, so that the database plans for them.
fn push_search(sql: &mut Sql, tenant: TenantId, filter: &MessageFilter, before: Option<MessageId>, limit: Option<i64>) {
    if filter.asks_deliveries() {
        return push_deliveries(sql, tenant, filter, before, limit);
    }
    match filter.state {
        Some(state) if is_indexed(state) => push_ended(sql, tenant, filter, state, before, limit),
        _ => push_messages(sql, tenant, filter, before, limit),
    }
}

/// Whether an index has the deliveries in this state: the states in which most of them end have none.
const fn is_indexed(state: DeliveryState) -> bool {
    !matches!(state, DeliveryState::Accepted | DeliveryState::Scheduled | DeliveryState::Queued | DeliveryState::Sent)
}

fn push_messages(
    sql: &mut Sql,
    tenant: TenantId,
    filter: &MessageFilter,
    before: Option<MessageId>,
    limit: Option<i64>,
) {
    sql.push(
        "select m.id from message m left join delivery first on first.tenant_id = m.tenant_id and first.id = m.id",
    );
    sql.push(" where m.tenant_id = ").push_bind(tenant.uuid());
    if let Some(before) = before {
        sql.push(" and m.id < ").push_bind(before.uuid());
    }
    if let Some(state) = filter.state {
        push_state(sql, state);
    }
    push_conditions(sql, tenant, filter);
    sql.push(" order by m.id desc");
    push_limit(sql, limit);
}

/// Walks the deliveries that ended so of messages with one channel, which have not begun as a leg, and the messages with
/// several channels that ended so.
fn push_ended(
    sql: &mut Sql,
    tenant: TenantId,
    filter: &MessageFilter,
    state: DeliveryState,
    before: Option<MessageId>,
    limit: Option<i64>,
) {
    // A partial index needs the state as it stands in its condition.
    let state = state.as_str();
    sql.push("select found.id from ((");
    push_delivery_source(sql, tenant, filter, before);
    sql.push(format!(" and d.begun_at is null and d.state = '{state}'"));
    if state != "delivered" {
        sql.push(" and d.state <> 'sent' and d.state <> 'delivered'");
    }
    sql.push(" order by d.id desc");
    push_limit(sql, limit);
    sql.push(") union all (select m.id from message m where m.tenant_id = ").push_bind(tenant.uuid());
    sql.push(format!(" and m.state = '{state}'"));
    if let Some(before) = before {
        sql.push(" and m.id < ").push_bind(before.uuid());
    }
    push_conditions(sql, tenant, filter);
    sql.push(" order by m.id desc");
    push_limit(sql, limit);
    sql.push(")) as found order by found.id desc");
    push_limit(sql, limit);
}

/// Walks the deliveries of each connection, which an index has in the order of their ids.
fn push_deliveries(
    sql: &mut Sql,
    tenant: TenantId,
    filter: &MessageFilter,
    before: Option<MessageId>,
    limit: Option<i64>,
) {
    sql.push("select found.id from ");
    let by_connection = filter.connection.is_some() || filter.provider.is_some();
    if by_connection {
        sql.push("(select c.id from connection c where c.tenant_id = ").push_bind(tenant.uuid());
        if let Some(connection) = filter.connection {
            sql.push(" and c.id = ").push_bind(connection.uuid());
        }
        if let Some(provider) = &filter.provider {
            sql.push(" and c.provider = ").push_bind(provider.clone());
        }
        sql.push(") as c cross join lateral ");
    }
    sql.push("(");
    push_delivery_source(sql, tenant, filter, before);
    if by_connection {
        sql.push(" and d.connection_id = c.id");
    }
    if let Some(code) = &filter.code {
        sql.push(" and d.state not in ('sent', 'delivered') and (d.code = ").push_bind(code.clone());
        sql.push(" or d.unified_code = ").push_bind(code.clone()).push(")");
    }
    if let Some(state) = filter.state {
        push_state(sql, state);
    }
    sql.push(" order by d.id desc");
    push_limit(sql, limit.map(|limit| limit * MOST_LEGS));
    sql.push(") as found group by found.id order by found.id desc");
    push_limit(sql, limit);
}

/// Begins a walk of deliveries; their messages are met only where a condition asks for them.
fn push_delivery_source(sql: &mut Sql, tenant: TenantId, filter: &MessageFilter, before: Option<MessageId>) {
    let MessageFilter { state, channel, reference, recipients, since, until, batch, metadata, ids, .. } = filter;
    let asks_messages = state.is_some_and(|state| !is_indexed(state) || filter.asks_deliveries())
        || channel.is_some()
        || reference.is_some()
        || !recipients.is_empty()
        || since.is_some()
        || until.is_some()
        || batch.is_some()
        || metadata.is_some()
        || !ids.is_empty();
    sql.push("select d.message_id as id from delivery d");
    if asks_messages {
        sql.push(" join message m on m.tenant_id = d.tenant_id and m.id = d.message_id");
        sql.push(" left join delivery first on first.tenant_id = m.tenant_id and first.id = m.id");
    }
    sql.push(" where d.tenant_id = ").push_bind(tenant.uuid());
    // A message's legs have ids from its own on.
    if let Some(before) = before {
        sql.push(" and d.id < ").push_bind(before.uuid());
    }
    push_conditions(sql, tenant, filter);
}

fn push_limit(sql: &mut Sql, limit: Option<i64>) {
    if let Some(limit) = limit {
        sql.push(" limit ").push_bind(limit);
    }
}

/// The conditions on messages, but for their state.
fn push_conditions(sql: &mut Sql, tenant: TenantId, filter: &MessageFilter) {
    if !filter.ids.is_empty() {
        let ids: Vec<Uuid> = filter.ids.iter().map(|id| id.uuid()).collect();
        sql.push(" and m.id = any (").push_bind(ids).push(")");
    }
    push_times(sql, filter);
    if let Some(channel) = &filter.channel {
        sql.push(" and (m.channel = ").push_bind(channel.clone());
        sql.push(" or m.legs @> jsonb_build_object('legs', jsonb_build_array(jsonb_build_object('channel', ")
            .push_bind(channel.clone())
            .push("::text))))");
    }
    if let Some(reference) = &filter.reference {
        sql.push(" and m.reference = ").push_bind(reference.clone());
    }
    match &filter.recipients[..] {
        [] => {}
        // Equal to one key, an index has the messages in their order.
        [only] => drop(sql.push(" and m.recipient_key = ").push_bind(only.clone())),
        several => drop(sql.push(" and m.recipient_key = any (").push_bind(several.to_vec()).push(")")),
    }
    if let Some(batch) = filter.batch {
        sql.push(" and m.batch_id = ").push_bind(batch.uuid());
    }
    if let Some((name, value)) = &filter.metadata {
        sql.push(" and m.metadata_hashes @> ").push_bind(vec![metadata_hash(tenant, name, value)]);
    }
}

/// An id has the time of its making in milliseconds, which comes a moment after the acceptance's: the bounds on ids only
/// keep the search short.
fn push_times(sql: &mut Sql, filter: &MessageFilter) {
    const TIME: &str = "timestamptz 'epoch' + interval '1 microsecond' * ";
    if let Some(since) = filter.since {
        sql.push(format!(" and m.created_at >= {TIME}")).push_bind(micros(since));
        sql.push(format!(" and m.id >= angarium_uuid_at({TIME}"))
            .push_bind(micros(since))
            .push(" - interval '1 minute')");
    }
    if let Some(until) = filter.until {
        sql.push(format!(" and m.created_at < {TIME}")).push_bind(micros(until));
        sql.push(format!(" and m.id < angarium_uuid_at({TIME}"))
            .push_bind(micros(until))
            .push(" + interval '1 minute')");
    }
}

/// The state of a message with several channels is in its row, that of any other in its delivery's.
fn push_state(sql: &mut Sql, state: DeliveryState) {
    sql.push(
        " and coalesce(m.state, case when m.legs is null then first.state end,
            case when m.send_at > now() then 'scheduled' else 'queued' end) = ",
    )
    .push_bind(state.as_str());
    if state == DeliveryState::Scheduled {
        sql.push(" and m.send_at > now()");
    }
}
