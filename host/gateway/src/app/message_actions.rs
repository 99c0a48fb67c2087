//! A person's actions on a message: cancel it, ask for another attempt, or purge its content. Each is in the audit.

pub mod dead_letter;

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Notify;

use crate::{clock, engine::legs};
use angarium_domain::{
    self as domain,
    audit::{Action, Actor},
    delivery::DeliveryState,
    ids::{DeliveryId, MessageId, TenantId},
};
use angarium_store::{
    self as store, Store, Transaction,
    audit::{AuditEntry, audit_insert},
    delivery::{delivery_cancel, delivery_reopen},
    event::event_insert,
    follow_up::{EndedDelivery, follow_up_note_where_asked},
    message::{MessageView, message_get},
    queue::{QueueEntry, queue_insert, queue_remove},
    retention::{PurgedBy, content_purge},
};

/// The result of an action.
#[derive(Debug)]
pub enum Controlled {
    /// It was done: the message as it is now.
    Done(Box<MessageView>),
    /// The tenant has no such message.
    NotFound,
    /// It can't be done in this state. A message that was just handed to a worker is `queued`, and
    /// too late to cancel.
    NotNow(DeliveryState),
    /// There is nothing left that could be sent.
    Purged,
}

/// Ends a message that has not been handed to a worker.
pub async fn cancel(store: &Store, tenant: TenantId, actor: &Actor, id: MessageId) -> store::Result<Controlled> {
    let mut txn = store.tenant(tenant).await?;
    let Some(view) = message_get(&mut txn, tenant, id).await? else { return Ok(Controlled::NotFound) };
    if view.state == DeliveryState::Canceled {
        return Ok(Controlled::Done(Box::new(view)));
    }
    if view.message.legs.is_some() {
        return cancel_legs(txn, tenant, actor, view).await;
    }
    let entry = QueueEntry {
        tenant,
        delivery: view.delivery.id,
        due_at: view.delivery.next_attempt_at.unwrap_or_else(|| view.message.due_at()),
        priority: view.message.priority,
    };
    if view.delivery.state.is_end() || !queue_remove(&mut txn, &entry).await? {
        return Ok(Controlled::NotNow(view.delivery.state));
    }
    let Some((state, moved)) = delivery_cancel(&mut txn, tenant, id, view.delivery.id).await? else {
        return Ok(Controlled::NotNow(view.delivery.state));
    };
    legs::advance(&mut txn, moved).await?;
    let ended = EndedDelivery { tenant, delivery: view.delivery.id, message: id, state };
    follow_up_note_where_asked(&mut txn, &[ended]).await?;
    // A mail with only its copies canceled was sent.
    let event = if state == DeliveryState::Sent { "message.sent" } else { "message.canceled" };
    event_insert(&mut txn, tenant, id, event, None).await?;
    audit_insert(&mut txn, tenant, actor, &AuditEntry::new(Action::MessageCanceled, id)).await?;
    let view = message_get(&mut txn, tenant, id).await?;
    txn.commit().await?;
    Ok(view.map_or(Controlled::NotFound, |view| Controlled::Done(Box::new(view))))
}

/// Stops what of a message with several channels waits, and those channels that have not begun.
async fn cancel_legs(
    mut txn: Transaction<'_>,
    tenant: TenantId,
    actor: &Actor,
    view: MessageView,
) -> store::Result<Controlled> {
    let id = view.message.id;
    if !legs::cancel(&mut txn, tenant, id).await? {
        return Ok(Controlled::NotNow(view.state));
    }
    audit_insert(&mut txn, tenant, actor, &AuditEntry::new(Action::MessageCanceled, id)).await?;
    let view = message_get(&mut txn, tenant, id).await?;
    txn.commit().await?;
    Ok(view.map_or(Controlled::NotFound, |view| Controlled::Done(Box::new(view))))
}

/// Opens an ended message for another attempt, now; of one with several channels this leg, or what
/// `legs::to_retry` says.
pub async fn retry(
    store: &Store,
    bell: &Arc<Notify>,
    tenant: TenantId,
    actor: &Actor,
    id: MessageId,
    leg: Option<u8>,
) -> store::Result<Controlled> {
    let mut txn = store.tenant(tenant).await?;
    legs::hold(&mut txn, tenant, id).await?;
    let Some(view) = message_get(&mut txn, tenant, id).await? else { return Ok(Controlled::NotFound) };
    let now = clock::now();
    let wanted = to_retry(&view, leg);
    let mut opened = Vec::with_capacity(wanted.len());
    for delivery in wanted {
        if let Some(moved) = delivery_reopen(&mut txn, tenant, delivery, now).await? {
            legs::advance(&mut txn, moved).await?;
            opened.push(QueueEntry { tenant, delivery, due_at: now, priority: view.message.priority });
        }
    }
    if opened.is_empty() {
        return Ok(Controlled::NotNow(view.state));
    }
    queue_insert(&mut txn, &opened).await?;
    event_insert(&mut txn, tenant, id, "message.retry_requested", None).await?;
    let entry = AuditEntry::new(Action::MessageRetried, id).before(json!({"state": view.state}));
    audit_insert(&mut txn, tenant, actor, &entry).await?;
    let view = message_get(&mut txn, tenant, id).await?;
    // Read once the delivery's row is held: a purge holds it, too.
    if view.as_ref().is_some_and(|view| view.content_purged_at.is_some()) {
        return Ok(Controlled::Purged);
    }
    txn.commit().await?;
    bell.notify_one();
    Ok(view.map_or(Controlled::NotFound, |view| Controlled::Done(Box::new(view))))
}

/// Takes an ended message's recipient, content and attachments out of the ledger; what happened to
/// it stays. A second time changes nothing.
pub async fn purge(store: &Store, tenant: TenantId, actor: &Actor, id: MessageId) -> store::Result<Controlled> {
    let mut txn = store.tenant(tenant).await?;
    let purged = content_purge(&mut txn, tenant, &[id], PurgedBy::Request).await?;
    let Some(view) = message_get(&mut txn, tenant, id).await? else { return Ok(Controlled::NotFound) };
    if view.content_purged_at.is_none() {
        return Ok(Controlled::NotNow(view.state));
    }
    if !purged.is_empty() {
        audit_insert(&mut txn, tenant, actor, &AuditEntry::new(Action::ContentPurged, id)).await?;
    }
    txn.commit().await?;
    Ok(Controlled::Done(Box::new(view)))
}

fn to_retry(view: &MessageView, leg: Option<u8>) -> Vec<DeliveryId> {
    match &view.message.legs {
        Some(several) => {
            let numbers = domain::legs::to_retry(several, &view.begun(), leg).into_iter();
            numbers.map(|number| view.message.id.leg(number)).collect()
        }
        None if leg.unwrap_or(0) == 0 && view.state.may_be_retried() => vec![view.delivery.id],
        None => Vec::new(),
    }
}
