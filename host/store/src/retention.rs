//! Removal from the ledger: purged content, expired messages, whole weeks.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Result, legs::WANTED};
use angarium_domain::ids::{EventId, MessageId, TenantId};

/// Whether the message `m` has a delivery, every one of its deliveries has ended, and no receipt is
/// waited for after which another would begin. The legs of a message differ from it in the last four
/// bits of their ids.
const ENDED: &str = "exists (select from delivery d where d.tenant_id = m.tenant_id and d.id >= m.id
    and d.id <= (left(m.id::text, 35) || 'f')::uuid)
  and not exists (select from delivery d where d.tenant_id = m.tenant_id and d.id >= m.id
    and d.id <= (left(m.id::text, 35) || 'f')::uuid and d.state = 'queued')
  and not exists (select from receipt_watch w where w.tenant_id = m.tenant_id and w.delivery_id >= m.id
    and w.delivery_id <= (left(m.id::text, 35) || 'f')::uuid)";

/// Whether all facts of the message `m` are in the roll-ups: once they are deleted nothing else tells of them.
const FOLDED: &str = "coalesce(m.written_in, 0) < (select folded_to from stat_watermark)
  and not exists (select from attempt a where a.tenant_id = m.tenant_id and a.delivery_id >= m.id
    and a.delivery_id <= (left(m.id::text, 35) || 'f')::uuid
    and a.written_in >= (select folded_to from stat_watermark))
  and not exists (select from transition t where t.tenant_id = m.tenant_id and t.delivery_id >= m.id
    and t.delivery_id <= (left(m.id::text, 35) || 'f')::uuid
    and t.written_in >= (select folded_to from stat_watermark))";

/// The data of the event `e`. What a provider wrote into it may have `\u0000`, which jsonb does not take.
const EVENT_DATA: &str = r"regexp_replace(e.data, '(?<!\\)((\\\\)*)\\u0000', '\1\\ufffd', 'g')::jsonb";

/// The author of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PurgedBy {
    /// A request of the tenant's.
    Request,
    /// Its retention class.
    Retention,
}

impl PurgedBy {
    const fn as_json(self) -> &'static str {
        match self {
            Self::Request => r#"{"by": "request"}"#,
            Self::Retention => r#"{"by": "retention"}"#,
        }
    }
}

/// Removes recipient, content and attachments from those messages that have ended, and the attempts' free text, in
/// which providers often repeat a recipient; returns their ids. Events, their effects, times and cost stay.
pub async fn content_purge(
    db: &mut PgConnection,
    tenant: TenantId,
    messages: &[MessageId],
    by: PurgedBy,
) -> Result<Vec<MessageId>> {
    let ids: Vec<Uuid> = messages.iter().map(|it| it.uuid()).collect();
    // A decision about a message's legs locks the message first.
    sqlx::query("select from message where tenant_id = $1 and id = any ($2::uuid[]) order by id for no key update")
        .bind(tenant.uuid())
        .bind(&ids)
        .execute(&mut *db)
        .await?;
    // A retry by hand opens a delivery again: it waits, or has been seen.
    let hold = format!(
        "select from {WANTED} join delivery d on d.tenant_id = $1 and d.id >= wanted.id and d.id <= wanted.last
         order by d.id for update of d"
    );
    sqlx::query(sqlx::AssertSqlSafe(hold)).bind(tenant.uuid()).bind(&ids).execute(&mut *db).await?;
    let sql = format!(
        "with purged as (
           update message m set recipient = '', body = '{{}}', excerpt = null, content_purged_at = now()
           where m.tenant_id = $1 and m.id = any ($2::uuid[]) and m.content_purged_at is null and {ENDED}
           returning m.id, (left(m.id::text, 35) || 'f')::uuid as last
         ), members as (
           delete from message_metadata t using purged where t.tenant_id = $1 and t.message_id = purged.id
         ), files as (
           delete from attachment f using purged where f.tenant_id = $1 and f.message_id >= purged.id and f.message_id <= purged.last
         ), words as (
           update attempt a set detail = null, recipients = null from purged
           where a.tenant_id = $1 and a.delivery_id >= purged.id and a.delivery_id <= purged.last
         ), last_words as (
           update delivery d set detail = null, recipients = null from purged
           where d.tenant_id = $1 and d.id >= purged.id and d.id <= purged.last
         ), told as (
           update event e set data = ({EVENT_DATA} - 'detail' - 'recipient')::text from purged
           where e.tenant_id = $1 and e.message_id = purged.id and e.data is not null
         ), receipts as (
           update receipt r set recipient = null, message = '', detail = '{{}}' from purged
           where r.tenant_id = $1 and r.delivery_id >= purged.id and r.delivery_id <= purged.last
         ), shadows as (
           delete from experiment_difference t using purged where t.tenant_id = $1 and t.message_id = purged.id
         ), audit as (
           insert into event (tenant_id, message_id, id, delivery_id, type, at, data)
           select $1, purged.id, fresh.event_id, null, 'message.content_purged', now(), $4
           from purged join unnest($2::uuid[], $3::uuid[]) as fresh (id, event_id) on fresh.id = purged.id
         )
         select id from purged"
    );
    let purged: Vec<Uuid> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(tenant.uuid())
        .bind(&ids)
        .bind(ids.iter().map(|_| EventId::new().uuid()).collect::<Vec<_>>())
        .bind(by.as_json())
        .fetch_all(db)
        .await?;
    Ok(purged.into_iter().map(MessageId::from).collect())
}

/// A tenant and the name of its retention class.
pub async fn retention_list(db: &mut PgConnection) -> Result<Vec<(TenantId, String)>> {
    let rows: Vec<(Uuid, String)> =
        sqlx::query_as("select id, retention_class from tenant order by id").fetch_all(db).await?;
    Ok(rows.into_iter().map(|(id, class)| (id.into(), class)).collect())
}

/// Returns up to `limit` messages that are older than this number of days and were not examined before. The caller
/// purges them, and remembers those that have not ended.
pub async fn content_due(db: &mut PgConnection, tenant: TenantId, days: u32, limit: i64) -> Result<Vec<MessageId>> {
    let due: Vec<Uuid> = sqlx::query_scalar(
        "with due as (
           select m.id from message m
           where m.tenant_id = $1 and m.id < angarium_uuid_at(now() - $2 * interval '1 day')
             and m.id > coalesce((select seen from content_seen where tenant_id = $1), '00000000-0000-0000-0000-000000000000')
           order by m.id limit $3
         ), seen as (
           insert into content_seen as s (tenant_id, seen)
           select $1, id from due order by id desc limit 1
           on conflict (tenant_id) do update set seen = excluded.seen
         )
         select id from due",
    )
    .bind(tenant.uuid())
    .bind(f64::from(days))
    .bind(limit)
    .fetch_all(db)
    .await?;
    Ok(due.into_iter().map(MessageId::from).collect())
}

/// Up to `limit` of the messages that had not ended when they were looked at; they are no longer
/// remembered.
pub async fn content_recall(db: &mut PgConnection, tenant: TenantId, limit: i64) -> Result<Vec<MessageId>> {
    let open: Vec<Uuid> = sqlx::query_scalar(
        "delete from content_open where tenant_id = $1 and message_id = any (array (
           select message_id from content_open where tenant_id = $1 order by remembered_at limit $2))
         returning message_id",
    )
    .bind(tenant.uuid())
    .bind(limit)
    .fetch_all(db)
    .await?;
    Ok(open.into_iter().map(MessageId::from).collect())
}

/// Remembers those of these messages that still have their content, because they have not ended.
pub async fn content_remember(db: &mut PgConnection, tenant: TenantId, messages: &[MessageId]) -> Result<()> {
    sqlx::query(
        "insert into content_open (tenant_id, message_id)
         select m.tenant_id, m.id from message m
         where m.tenant_id = $1 and m.id = any ($2::uuid[]) and m.content_purged_at is null
         on conflict do nothing",
    )
    .bind(tenant.uuid())
    .bind(messages.iter().map(|it| it.uuid()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Deletes up to `limit` messages that are older than this number of days and have ended, with all of their rows in the
/// ledger; returns their number.
pub async fn ledger_expire(db: &mut PgConnection, tenant: TenantId, days: u32, limit: i64) -> Result<u64> {
    let sql = format!(
        "with old as materialized (
           select m.id, (left(m.id::text, 35) || 'f')::uuid as last from message m
           where m.tenant_id = $1 and m.id < angarium_uuid_at(now() - $2 * interval '1 day') and {ENDED} and {FOLDED}
           order by m.id limit $3
         ), members as (
           delete from message_metadata t using old where t.tenant_id = $1 and t.message_id = old.id
         ), channels as (
           delete from message_further_channel t using old where t.tenant_id = $1 and t.message_id = old.id
         ), files as (
           delete from attachment f using old where f.tenant_id = $1 and f.message_id >= old.id and f.message_id <= old.last
         ), facts as (
           delete from event e using old where e.tenant_id = $1 and e.message_id = old.id
         ), tries as (
           delete from attempt a using old
           where a.tenant_id = $1 and a.delivery_id >= old.id and a.delivery_id <= old.last
         ), receipts as (
           delete from receipt r using old
           where r.tenant_id = $1 and r.delivery_id >= old.id and r.delivery_id <= old.last
         ), changes as (
           delete from transition t using old
           where t.tenant_id = $1 and t.delivery_id >= old.id and t.delivery_id <= old.last
         ), legs as (
           delete from delivery d using old where d.tenant_id = $1 and d.id >= old.id and d.id <= old.last
         )
         delete from message m using old where m.tenant_id = $1 and m.id = old.id"
    );
    let done =
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(tenant.uuid()).bind(f64::from(days)).bind(limit).execute(db).await?;
    Ok(done.rows_affected())
}

/// A table of the ledger that holds one week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub parent: String,
    /// Such as `2026w20`.
    pub week: String,
}

/// Returns the tables of the weeks that ended more than this number of days ago and in which everything has ended.
pub async fn partition_list_over(db: &mut PgConnection, days: u32) -> Result<Vec<Partition>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("select parent, week from angarium_partitions_over(now() - $1 * interval '1 day')")
            .bind(f64::from(days))
            .fetch_all(db)
            .await?;
    Ok(rows.into_iter().map(|(parent, week)| Partition { parent, week }).collect())
}

/// Drops one, in a transaction of its own; not while a fact of its week is not folded, which is tried again. It waits for
/// others for two seconds at most, since they wait for it meanwhile.
pub async fn partition_drop(db: &mut PgConnection, partition: &Partition) -> Result<()> {
    sqlx::query("set local lock_timeout = '2s'").execute(&mut *db).await?;
    sqlx::query("select angarium_partition_drop($1, $2) where angarium_week_is_folded($2)")
        .bind(&partition.parent)
        .bind(&partition.week)
        .execute(db)
        .await?;
    Ok(())
}
