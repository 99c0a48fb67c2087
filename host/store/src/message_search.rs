//! The search for messages: ids of a page, and counts. Each filter has an index in the order of pages, or is met by
//! walking messages from the newest on, or for a job from the oldest on.

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
    ids::{BatchId, ConnectionId, JobId, MessageId, TenantId},
    message::metadata_hash,
};

/// The most legs of a message: so many rows of deliveries may belong to one message.
const MOST_LEGS: i64 = 16;
/// Up to so many waiting deliveries are looked at to find the queued messages. Where more wait, queued messages are
/// common, and a walk from the newest message on meets them soon.
const FEW: i64 = 10_000;

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

/// Returns a page of the tenant's messages that match, the newest first, from before `before`.
pub async fn message_list(
    db: &mut PgConnection,
    tenant: TenantId,
    filter: &MessageFilter,
    before: Option<MessageId>,
    limit: u32,
) -> Result<PageRows<MessageView>> {
    let walk = Walk { oldest_first: false, after: None, before: before.map(MessageId::uuid) };
    let ids = message_find(db, tenant, filter, walk, one_more(limit)).await?;
    message_views(db, tenant, &ids, limit).await
}

/// The direction of a search, and the ids between which it finds messages.
#[derive(Debug, Clone, Copy, Default)]
struct Walk {
    oldest_first: bool,
    after: Option<MessageId>,
    before: Option<Uuid>,
}

/// Returns the ids of up to `limit` messages that match, the oldest first: those behind `after` that were accepted
/// before a job with the id `job` was made.
pub async fn message_find_for_job(
    db: &mut PgConnection,
    tenant: TenantId,
    filter: &MessageFilter,
    job: JobId,
    after: Option<MessageId>,
    limit: i64,
) -> Result<Vec<MessageId>> {
    // The ids of both are UUIDv7: they are in the order of time.
    message_find(db, tenant, filter, Walk { oldest_first: true, after, before: Some(job.uuid()) }, limit).await
}

async fn message_find(
    db: &mut PgConnection,
    tenant: TenantId,
    filter: &MessageFilter,
    walk: Walk,
    limit: i64,
) -> Result<Vec<MessageId>> {
    let few_wait = prepared(db, tenant, filter).await?;
    let mut search = Search { sql: Sql::new(""), tenant, filter, walk, limit: Some(limit) };
    search.push(few_wait);
    let ids: Vec<Uuid> = search.sql.build_query_scalar().persistent(false).fetch_all(db).await?;
    Ok(ids.into_iter().map(MessageId::from).collect())
}

/// Returns how many messages match.
pub async fn message_count(db: &mut PgConnection, tenant: TenantId, filter: &MessageFilter) -> Result<i64> {
    let few_wait = prepared(db, tenant, filter).await?;
    let mut search =
        Search { sql: Sql::new("select count(*) from ("), tenant, filter, walk: Walk::default(), limit: None };
    search.push(few_wait);
    search.sql.push(") as found");
    Ok(search.sql.build_query_scalar().persistent(false).fetch_one(db).await?)
}

/// Prepares a search: its statement is planned for the values that are looked for, since a plan that suits a common
/// value takes seconds for a rare one. Returns whether so few deliveries wait that all can be looked at, if that matters.
async fn prepared(db: &mut PgConnection, tenant: TenantId, filter: &MessageFilter) -> Result<bool> {
    sqlx::query("set local plan_cache_mode = force_custom_plan").execute(&mut *db).await?;
    if filter.state != Some(DeliveryState::Queued) || filter.asks_deliveries() {
        return Ok(false);
    }
    let waiting: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "select count(*) from (
           select 1 from queue where tenant_id = $1 and {DUE} union all select 1 from ordering_line where tenant_id = $1
           limit $2
         ) as waiting"
    )))
    .bind(tenant.uuid())
    .bind(FEW + 1)
    .fetch_one(db)
    .await?;
    Ok(waiting <= FEW)
}

/// The entries of the queue that are due, or about to be: a message's time is by its node's clock.
const DUE: &str = "priority = any ('{0,1,2,3}') and due_at <= now() + interval '1 minute'";

type Sql = QueryBuilder<Postgres>;

/// How a walk of messages meets the filter's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChannelMatch {
    /// It is one of the message's channels.
    Any,
    /// It is the first one: an index has the messages in their order.
    First,
    /// It is a further one, which has an index of its own.
    Further,
}

/// A search's statement. Only the conditions that there are become part of it, so that the database plans for them.
struct Search<'a> {
    sql: Sql,
    tenant: TenantId,
    filter: &'a MessageFilter,
    walk: Walk,
    limit: Option<i64>,
}

impl Search<'_> {
    fn push(&mut self, few_wait: bool) {
        let asks_deliveries = self.filter.asks_deliveries();
        match self.filter.state {
            // No message is stored as accepted: it is scheduled or queued at once.
            Some(DeliveryState::Accepted) => drop(self.sql.push("select m.id from message m where false")),
            Some(DeliveryState::Queued) if few_wait => self.push_queued(),
            // Without an attempt a message may have no delivery.
            Some(DeliveryState::Queued | DeliveryState::Scheduled) if !asks_deliveries => {
                self.push_messages_by_channel()
            }
            Some(state) => self.push_in_state(state),
            None if asks_deliveries => self.push_deliveries(None),
            None => self.push_messages_by_channel(),
        }
    }

    /// Walks the messages whose first channel it is, and those that have it further on; or all messages.
    fn push_messages_by_channel(&mut self) {
        if self.filter.channel.is_none() {
            return self.push_messages(ChannelMatch::Any);
        }
        self.sql.push("select found.id from ((");
        self.push_messages(ChannelMatch::First);
        self.sql.push(") union all (");
        self.push_messages(ChannelMatch::Further);
        self.push_end_of_union();
    }

    fn push_messages(&mut self, channel: ChannelMatch) {
        self.sql.push("select m.id from message m");
        self.push_joins(channel);
        if self.filter.state.is_some() {
            self.sql.push(" left join delivery first on first.tenant_id = m.tenant_id and first.id = m.id");
        }
        self.sql.push(" where m.tenant_id = ").push_bind(self.tenant.uuid());
        if let Some(state) = self.filter.state {
            self.push_state(state);
        }
        self.push_end_of_walk(channel);
    }

    /// Walks the deliveries in this state of messages with one channel, which have not begun as a leg, and the messages
    /// with several channels in this state.
    fn push_in_state(&mut self, state: DeliveryState) {
        self.sql.push("select found.id from ((");
        self.push_deliveries(Some(state));
        self.sql.push(") union all (");
        self.push_lists_in(state);
        self.push_end_of_union();
    }

    /// Walks the deliveries that wait again, the open messages with several channels, and the messages that no attempt
    /// was made for: those are in the queue, in a line, or under a lease.
    fn push_queued(&mut self) {
        self.sql.push("select found.id from ((");
        self.push_deliveries(Some(DeliveryState::Queued));
        self.sql.push(") union all (");
        self.push_lists_in(DeliveryState::Queued);
        self.sql.push(") union all (select m.id from (");
        self.push_waiting();
        self.sql.push(") as waiting join message m on m.id = waiting.delivery_id");
        self.push_joins(ChannelMatch::First);
        self.sql.push(" where m.tenant_id = ").push_bind(self.tenant.uuid());
        self.sql.push(
            " and m.legs is null and (m.send_at is null or m.send_at <= now()) and not exists (
            select from delivery d where d.tenant_id = m.tenant_id and d.id = m.id)",
        );
        self.push_end_of_walk(ChannelMatch::First);
        self.push_end_of_union();
    }

    /// The deliveries that may be waiting for their first attempt, sorted, so that their messages are met in this order.
    fn push_waiting(&mut self) {
        let tenant = self.tenant.uuid();
        self.sql.push("select delivery_id from (select delivery_id from queue where tenant_id = ").push_bind(tenant);
        self.sql.push(format!(" and {DUE} union select unnest(deliveries) from lease where tenant_id = "));
        self.sql.push_bind(tenant).push(" union select delivery_id from ordering_line where tenant_id = ");
        self.sql.push_bind(tenant).push(") as some_wait");
        self.push_order("delivery_id");
        self.sql.push(" offset 0");
    }

    /// Walks the messages with several channels in this state.
    fn push_lists_in(&mut self, state: DeliveryState) {
        self.sql.push("select m.id from message m");
        self.push_joins(ChannelMatch::Any);
        self.sql.push(" where m.tenant_id = ").push_bind(self.tenant.uuid());
        match state {
            DeliveryState::Queued => self
                .sql
                .push(" and m.legs is not null and m.state is null and (m.send_at is null or m.send_at <= now())"),
            DeliveryState::Scheduled => {
                self.sql.push(" and m.legs is not null and m.state is null and m.send_at > now()")
            }
            ended => self.sql.push(" and m.state = ").push_bind(ended.as_str()),
        };
        if self.filter.asks_deliveries() {
            self.push_a_leg();
        }
        self.push_end_of_walk(ChannelMatch::Any);
    }

    /// The condition that a leg of the message meets what is asked of deliveries.
    fn push_a_leg(&mut self) {
        let MessageFilter { connection, provider, code, .. } = self.filter;
        // A column, as `legs::WANTED` has one.
        self.sql.push(" and exists (select from (select angarium_last_leg(m.id) as last offset 0) as legs");
        self.sql
            .push(" join delivery d on d.tenant_id = m.tenant_id and d.id >= m.id and d.id <= legs.last where true");
        if let Some(connection) = connection {
            self.sql.push(" and d.connection_id = ").push_bind(connection.uuid());
        }
        if let Some(provider) = provider {
            self.sql.push(" and d.provider = ").push_bind(provider.clone());
        }
        if let Some(code) = code {
            self.sql.push(" and d.state not in ('sent', 'delivered') and (d.code = ").push_bind(code.clone());
            self.sql.push(" or d.unified_code = ").push_bind(code.clone()).push(")");
        }
        self.sql.push(")");
    }

    /// Walks deliveries: with a state, those in this state of messages with one channel.
    fn push_deliveries(&mut self, state: Option<DeliveryState>) {
        let MessageFilter { provider, code, .. } = self.filter;
        self.sql.push("select found.id from ");
        if let (true, Some(provider)) = (self.walks_connections(), provider) {
            self.sql.push("(select c.id from connection c where c.tenant_id = ").push_bind(self.tenant.uuid());
            self.sql.push(" and c.provider = ").push_bind(provider.clone()).push(") as c cross join lateral ");
        }
        self.sql.push("(");
        match code {
            // Each column has an index of its own.
            Some(code) => {
                self.push_delivery_walk(state, Some(("code", code)));
                self.sql.push(" union all ");
                self.push_delivery_walk(state, Some(("unified_code", code)));
            }
            None => self.push_delivery_walk(state, None),
        }
        self.sql.push(") as found");
        if state.is_none() || code.is_some() {
            self.sql.push(" group by found.id");
        }
        self.push_order("found.id");
        self.push_limit(self.limit);
    }

    /// One walk of deliveries; their messages are met only where a condition asks for them.
    fn push_delivery_walk(&mut self, state: Option<DeliveryState>, code: Option<(&str, &String)>) {
        // In one state are messages with one channel alone.
        let channel = if state.is_some() { ChannelMatch::First } else { ChannelMatch::Any };
        self.sql.push("(select d.message_id as id from delivery d");
        if self.asks_messages() {
            self.sql.push(" join message m on m.tenant_id = d.tenant_id and m.id = d.message_id");
            self.push_joins(channel);
        }
        self.sql.push(" where d.tenant_id = ").push_bind(self.tenant.uuid());
        if let Some(connection) = self.filter.connection {
            self.sql.push(" and d.connection_id = ").push_bind(connection.uuid());
        }
        match &self.filter.provider {
            Some(_) if self.walks_connections() => drop(self.sql.push(" and d.connection_id = c.id")),
            Some(provider) => drop(self.sql.push(" and d.provider = ").push_bind(provider.clone())),
            None => {}
        }
        if let Some((column, code)) = code {
            self.sql
                .push(format!(" and d.state not in ('sent', 'delivered') and d.{column} = "))
                .push_bind(code.clone());
        }
        if let Some(state) = state {
            self.sql.push(" and d.begun_at is null and d.state = ").push_bind(state.as_str());
        }
        // A message's legs have ids from its own on.
        if let Some(after) = self.walk.after {
            self.sql.push(" and d.id > angarium_last_leg(").push_bind(after.uuid()).push(")");
        }
        if let Some(before) = self.walk.before {
            self.sql.push(" and d.id < ").push_bind(before);
        }
        self.push_conditions(channel);
        self.push_order("d.id");
        let legs = if state.is_some() { 1 } else { MOST_LEGS };
        self.push_limit(self.limit.map(|limit| limit * legs));
        self.sql.push(")");
    }

    /// Whether deliveries are walked connection by connection: a provider has no index of its own.
    const fn walks_connections(&self) -> bool {
        self.filter.provider.is_some() && self.filter.connection.is_none()
    }

    /// Whether a walk of deliveries has to look at their messages.
    fn asks_messages(&self) -> bool {
        let MessageFilter { channel, reference, recipients, since, until, batch, metadata, ids, .. } = self.filter;
        channel.is_some()
            || reference.is_some()
            || !recipients.is_empty()
            || since.is_some()
            || until.is_some()
            || batch.is_some()
            || metadata.is_some()
            || !ids.is_empty()
    }

    /// The tables beside `m` that the conditions need. Each has at most one row of a message.
    fn push_joins(&mut self, channel: ChannelMatch) {
        if let Some((name, value)) = &self.filter.metadata {
            self.sql
                .push(" join message_metadata t on t.tenant_id = m.tenant_id and t.message_id = m.id and t.hash = ");
            self.sql.push_bind(metadata_hash(self.tenant, name, value));
        }
        if let (ChannelMatch::Further, Some(channel)) = (channel, &self.filter.channel) {
            self.sql.push(" join message_further_channel f on f.tenant_id = m.tenant_id and f.message_id = m.id");
            self.sql.push(" and f.channel = ").push_bind(channel.clone());
        }
    }

    fn push_end_of_walk(&mut self, channel: ChannelMatch) {
        if let Some(after) = self.walk.after {
            self.sql.push(" and m.id > ").push_bind(after.uuid());
        }
        if let Some(before) = self.walk.before {
            self.sql.push(" and m.id < ").push_bind(before);
        }
        self.push_conditions(channel);
        self.push_order("m.id");
        self.push_limit(self.limit);
    }

    fn push_end_of_union(&mut self) {
        self.sql.push(")) as found");
        self.push_order("found.id");
        self.push_limit(self.limit);
    }

    fn push_order(&mut self, id: &str) {
        self.sql.push(format!(" order by {id}{}", if self.walk.oldest_first { "" } else { " desc" }));
    }

    fn push_limit(&mut self, limit: Option<i64>) {
        if let Some(limit) = limit {
            self.sql.push(" limit ").push_bind(limit);
        }
    }

    /// The conditions on messages, but for their state and those of [`Self::push_joins`].
    fn push_conditions(&mut self, channel: ChannelMatch) {
        if !self.filter.ids.is_empty() {
            let ids: Vec<Uuid> = self.filter.ids.iter().map(|id| id.uuid()).collect();
            self.sql.push(" and m.id = any (").push_bind(ids).push(")");
        }
        self.push_times();
        if let Some(wanted) = &self.filter.channel {
            match channel {
                ChannelMatch::First => drop(self.sql.push(" and m.channel = ").push_bind(wanted.clone())),
                ChannelMatch::Further => {}
                ChannelMatch::Any => {
                    self.sql.push(" and (m.channel = ").push_bind(wanted.clone());
                    self.sql.push(" or exists (select from message_further_channel f where f.tenant_id = m.tenant_id");
                    self.sql.push(" and f.message_id = m.id and f.channel = ").push_bind(wanted.clone()).push("))");
                }
            }
        }
        if let Some(reference) = &self.filter.reference {
            self.sql.push(" and m.reference = ").push_bind(reference.clone());
        }
        match &self.filter.recipients[..] {
            [] => {}
            // Equal to one key, an index has the messages in their order.
            [only] => drop(self.sql.push(" and m.recipient_key = ").push_bind(only.clone())),
            several => drop(self.sql.push(" and m.recipient_key = any (").push_bind(several.to_vec()).push(")")),
        }
        if let Some(batch) = self.filter.batch {
            self.sql.push(" and m.batch_id = ").push_bind(batch.uuid());
        }
    }

    /// An id has the time of its making in milliseconds, which comes a moment after the acceptance's: the bounds on ids
    /// only keep the search short.
    fn push_times(&mut self) {
        const TIME: &str = "timestamptz 'epoch' + interval '1 microsecond' * ";
        if let Some(since) = self.filter.since {
            self.sql.push(format!(" and m.created_at >= {TIME}")).push_bind(micros(since));
            self.sql.push(format!(" and m.id >= angarium_uuid_at({TIME}"));
            self.sql.push_bind(micros(since)).push(" - interval '1 minute')");
        }
        if let Some(until) = self.filter.until {
            self.sql.push(format!(" and m.created_at < {TIME}")).push_bind(micros(until));
            self.sql.push(format!(" and m.id < angarium_uuid_at({TIME}"));
            self.sql.push_bind(micros(until)).push(" + interval '1 minute')");
        }
    }

    /// The state of a message with several channels is in its row, that of any other in its first delivery's.
    fn push_state(&mut self, state: DeliveryState) {
        self.sql.push(
            " and coalesce(m.state, case when m.legs is null then first.state end,
                case when m.send_at > now() then 'scheduled' else 'queued' end) = ",
        );
        self.sql.push_bind(state.as_str());
        if state == DeliveryState::Scheduled {
            self.sql.push(" and m.send_at > now()");
        }
    }
}
