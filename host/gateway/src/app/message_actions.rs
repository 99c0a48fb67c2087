//! A person's actions on a message: cancel it, ask for another attempt, or purge its content. Each is in the audit.

pub mod dead_letter;
mod reschedule;

pub use reschedule::Reschedule;

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Notify;

use super::{
    App, Principal, Result,
    change::{Change, Changes},
    error::UseCaseError,
};
use crate::{clock, engine::legs};
use angarium_domain::{
    self as domain,
    audit::Action,
    delivery::DeliveryState,
    ids::{DeliveryId, MessageId, TenantId},
};
use angarium_store::{
    audit::AuditEntry,
    delivery::{delivery_cancel, delivery_reopen},
    event::event_insert,
    follow_up::{EndedDelivery, follow_up_note_where_asked},
    job::{JobMove, job_advance},
    message::{message_get, message_hold},
    queue::{QueueEntry, queue_insert, queue_remove},
    retention::{PurgedBy, content_purge},
};

pub use angarium_store::message::MessageView;

/// Actions of one principal.
#[derive(Clone, Copy)]
pub struct MessageActions<'a> {
    pub changes: &'a Changes,
    /// Rung when something due was put into the queue.
    pub bell: &'a Arc<Notify>,
    pub by: &'a Principal,
    /// The job that the action belongs to: it moves on with it.
    pub job: Option<JobMove>,
}

/// The code of an action that another node has taken, or whose job was stopped.
pub const OVERTAKEN: &str = "overtaken";

impl<'a> MessageActions<'a> {
    #[must_use]
    pub fn new(app: &'a App, by: &'a Principal) -> Self {
        Self { changes: &app.changes, bell: &app.bell, by, job: None }
    }

    /// Begins the action's transaction.
    async fn begin(&self) -> Result<Change> {
        let mut change = self.changes.begin(self.by).await?;
        match &self.job {
            Some(step) if !job_advance(&mut change, step).await? => {
                Err(UseCaseError::conflict(OVERTAKEN, "the job was stopped, or another node has moved it"))
            }
            Some(_) | None => Ok(change),
        }
    }

    /// Begins an action on a message that may wait, after any other that is under way.
    async fn begin_on(&self, id: MessageId) -> Result<Change> {
        let mut change = self.begin().await?;
        if message_hold(&mut change, self.by.tenant, id).await? { Ok(change) } else { Err(MISSING) }
    }

    /// Ends a message that has not been handed to a worker; returns the message as it is now. A second time changes
    /// nothing.
    ///
    /// # Errors
    /// In another state. A message that was just handed to a worker is `queued`, and too late to cancel.
    pub async fn cancel(&self, id: MessageId) -> Result<MessageView> {
        let tenant = self.by.tenant;
        let mut change = self.begin_on(id).await?;
        let view = message_get(&mut change, tenant, id).await?.ok_or(MISSING)?;
        // A job's action that changes nothing is none.
        if view.state == DeliveryState::Canceled && self.job.is_none() {
            return Ok(view);
        }
        if view.message.legs.is_list() {
            return cancel_legs(change, tenant, view).await;
        }
        let entry = QueueEntry {
            tenant,
            delivery: view.delivery.id,
            due_at: view.delivery.next_attempt_at.unwrap_or_else(|| view.message.due_at()),
            priority: view.message.priority,
        };
        if view.delivery.state.is_end() || !queue_remove(&mut change, &entry).await? {
            return Err(not_now(view.delivery.state, "canceled"));
        }
        let Some((state, moved)) = delivery_cancel(&mut change, tenant, id, view.delivery.id).await? else {
            return Err(not_now(view.delivery.state, "canceled"));
        };
        legs::advance(&mut change, moved).await?;
        let ended = EndedDelivery { tenant, delivery: view.delivery.id, message: id, state };
        follow_up_note_where_asked(&mut change, &[ended]).await?;
        // A mail with only its copies canceled was sent.
        let event = if state == DeliveryState::Sent { "message.sent" } else { "message.canceled" };
        event_insert(&mut change, tenant, id, event, None).await?;
        canceled(change, tenant, view).await
    }

    /// Opens an ended message for another attempt, now; this leg of it, or those that `legs::to_retry`
    /// says.
    ///
    /// # Errors
    /// Where nothing of it can be tried again, or its content was purged.
    pub async fn retry(&self, id: MessageId, leg: Option<u8>) -> Result<MessageView> {
        let tenant = self.by.tenant;
        let mut change = self.begin().await?;
        legs::hold(&mut change, tenant, id).await?;
        let view = message_get(&mut change, tenant, id).await?.ok_or(MISSING)?;
        let now = clock::now();
        let wanted = to_retry(&view, leg);
        let mut opened = Vec::with_capacity(wanted.len());
        for delivery in wanted {
            if let Some(moved) = delivery_reopen(&mut change, tenant, delivery, now).await? {
                legs::advance(&mut change, moved).await?;
                opened.push(QueueEntry { tenant, delivery, due_at: now, priority: view.message.priority });
            }
        }
        if opened.is_empty() {
            return Err(not_now(view.state, "tried again"));
        }
        queue_insert(&mut change, &opened).await?;
        event_insert(&mut change, tenant, id, "message.retry_requested", None).await?;
        let before = view.state;
        let view = message_get(&mut change, tenant, id).await?.ok_or(MISSING)?;
        // Read once the delivery's row is held: a purge holds it, too.
        if view.content_purged_at.is_some() {
            return Err(purged());
        }
        let entry = AuditEntry::new(Action::MessageRetried, id);
        change.commit(entry.before(json!({"state": before})).after(json!({"state": view.state}))).await?;
        self.bell.notify_one();
        Ok(view)
    }

    /// Takes an ended message's recipient, content and attachments out of the ledger; what happened to it stays. A
    /// second time changes nothing.
    pub async fn purge(&self, id: MessageId) -> Result<MessageView> {
        let mut change = self.changes.begin(self.by).await?;
        let purged = content_purge(&mut change, self.by.tenant, &[id], PurgedBy::Request).await?;
        let view = message_get(&mut change, self.by.tenant, id).await?.ok_or(MISSING)?;
        if view.content_purged_at.is_none() {
            return Err(not_now(view.state, "purged"));
        }
        if !purged.is_empty() {
            change.commit(AuditEntry::new(Action::ContentPurged, id)).await?;
        }
        Ok(view)
    }
}

const MISSING: UseCaseError = UseCaseError::NotFound("message");

fn not_now(state: DeliveryState, done: &str) -> UseCaseError {
    UseCaseError::conflict("wrong_state", format!("the message is {}, and can't be {done} now", state.as_str()))
}

fn purged() -> UseCaseError {
    UseCaseError::conflict("content_purged", "the message's content was purged: send it as a new one")
}

/// Stops what of a message with several channels waits, and those channels that have not begun.
async fn cancel_legs(mut change: Change, tenant: TenantId, view: MessageView) -> Result<MessageView> {
    if !legs::cancel(&mut change, tenant, view.message.id).await? {
        return Err(not_now(view.state, "canceled"));
    }
    canceled(change, tenant, view).await
}

/// Commits the end of a message; `before` is the message as it was.
async fn canceled(mut change: Change, tenant: TenantId, before: MessageView) -> Result<MessageView> {
    let id = before.message.id;
    let view = message_get(&mut change, tenant, id).await?.ok_or(MISSING)?;
    let entry = AuditEntry::new(Action::MessageCanceled, id);
    change.commit(entry.before(json!({"state": before.state})).after(json!({"state": view.state}))).await?;
    Ok(view)
}

fn to_retry(view: &MessageView, leg: Option<u8>) -> Vec<DeliveryId> {
    let numbers = domain::legs::to_retry(view.message.legs.policy(), &view.begun(), leg).into_iter();
    numbers.map(|number| view.message.id.leg(number)).collect()
}
