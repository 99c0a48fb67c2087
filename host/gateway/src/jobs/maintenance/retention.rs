//! Retention: removes content after its days, messages after theirs, and whole weeks once all tenants' time is over. It
//! uses small transactions, so that no other waits long for it.

use tokio_util::sync::CancellationToken;

use super::pause;
use crate::node::config::{RetentionClass, RetentionConfig};
use angarium_domain::ids::{MessageId, TenantId};
use angarium_store::{
    self as store, Connection as Db, Store,
    retention::{
        PurgedBy, content_due, content_purge, content_recall, content_remember, ledger_expire, partition_drop,
        partition_list_over, retention_list,
    },
    task_lease::{LeasedTask, task_lease_return, task_lease_take},
};

/// The most messages of one transaction.
const BATCH: i64 = 500;
/// A week is dropped at once when its last day is over; deleting its rows before would do the work twice.
const WEEK: u32 = 8;

/// Runs retention until it is stopped.
pub(super) async fn run(store: &Store, retention: &RetentionConfig, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = round(store, retention, stop).await {
            tracing::warn!(%error, "what is past its retention is still there; it is tried again");
        }
        pause(retention.interval(), stop).await;
    }
}

async fn round(store: &Store, retention: &RetentionConfig, stop: &CancellationToken) -> store::Result<()> {
    let longest = retention.classes.longest_ledger_days();
    drop_weeks(store, longest).await?;
    let mut txn = store.worker().await?;
    let tenants = retention_list(&mut txn).await?;
    txn.commit().await?;
    for (tenant, name) in tenants {
        let Some(class) = retention.classes.get(&name) else {
            tracing::warn!(tenant.id = %tenant, class = name, "the configuration has no such retention class: the tenant's messages are kept as long as anybody's");
            continue;
        };
        while !stop.is_cancelled() && purge(store, tenant, class).await? {}
        purge_late(store, tenant).await?;
        let days = if class.ledger_days == longest { longest + WEEK } else { class.ledger_days };
        while !stop.is_cancelled() && expire(store, tenant, days).await? {}
    }
    let mut txn = store.worker().await?;
    task_lease_return(&mut txn, LeasedTask::Retention, store.holder()).await?;
    txn.commit().await?;
    Ok(())
}

/// Takes or prolongs the lease of this task: one node at a time does it, and goes on to the end of a round.
async fn is_ours(db: &mut Db, store: &Store) -> store::Result<bool> {
    task_lease_take(db, LeasedTask::Retention, store.holder()).await
}

async fn drop_weeks(store: &Store, days: u32) -> store::Result<()> {
    let mut txn = store.worker().await?;
    let over = partition_list_over(&mut txn, days).await?;
    txn.commit().await?;
    for partition in over {
        let mut txn = store.worker().await?;
        if !is_ours(&mut txn, store).await? {
            return Ok(());
        }
        partition_drop(&mut txn, &partition).await?;
        txn.commit().await?;
        tracing::info!(table = partition.parent, week = partition.week, "a week left the ledger");
    }
    Ok(())
}

/// Purges one batch of messages that were not examined before; returns whether there may be more.
async fn purge(store: &Store, tenant: TenantId, class: RetentionClass) -> store::Result<bool> {
    let mut txn = store.worker().await?;
    if !is_ours(&mut txn, store).await? {
        return Ok(false);
    }
    let due = content_due(&mut txn, tenant, class.content_days, BATCH).await?;
    purge_ended(&mut txn, tenant, &due).await?;
    txn.commit().await?;
    Ok(due.len() as i64 == BATCH)
}

/// Purges one batch of messages that had not ended when it was their time.
async fn purge_late(store: &Store, tenant: TenantId) -> store::Result<()> {
    let mut txn = store.worker().await?;
    if is_ours(&mut txn, store).await? {
        let late = content_recall(&mut txn, tenant, BATCH).await?;
        purge_ended(&mut txn, tenant, &late).await?;
    }
    txn.commit().await?;
    Ok(())
}

async fn purge_ended(db: &mut Db, tenant: TenantId, messages: &[MessageId]) -> store::Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let purged = content_purge(db, tenant, messages, PurgedBy::Retention).await?;
    if purged.len() < messages.len() {
        content_remember(db, tenant, messages).await?;
    }
    Ok(())
}

/// Expires one batch; returns whether there may be more.
async fn expire(store: &Store, tenant: TenantId, days: u32) -> store::Result<bool> {
    let mut txn = store.worker().await?;
    if !is_ours(&mut txn, store).await? {
        return Ok(false);
    }
    let gone = ledger_expire(&mut txn, tenant, days, BATCH).await?;
    txn.commit().await?;
    Ok(gone as i64 >= BATCH)
}
