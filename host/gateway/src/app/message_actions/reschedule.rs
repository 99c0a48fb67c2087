//! A waiting message is moved: to another time, another end, or another priority.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{MISSING, MessageActions, MessageView, not_now};
use crate::{
    app::{Result, error::UseCaseError, fields::Fields},
    clock,
};
use angarium_domain::{
    audit::Action,
    ids::{MessageId, TenantId},
    message::{Message, Priority, check_times},
};
use angarium_store::{
    audit::AuditEntry,
    delivery::delivery_reschedule,
    event::event_insert,
    message::{DeliveryView, message_get, message_reschedule},
    queue::{QueueEntry, queue_insert, queue_remove},
};

/// The new values; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reschedule {
    /// `Some(None)`: as soon as possible.
    pub send_at: Option<Option<Timestamp>>,
    /// `Some(None)`: it never expires.
    pub expires_at: Option<Option<Timestamp>>,
    pub priority: Option<Priority>,
}

impl MessageActions<'_> {
    /// Moves a message that waits and was never attempted; returns it as it is now.
    ///
    /// # Errors
    /// When it has an ordering key, was attempted or is in a worker's hand, or the times contradict each other.
    pub async fn reschedule(&self, id: MessageId, to: Reschedule) -> Result<MessageView> {
        let tenant = self.by.tenant;
        let now = clock::now();
        let mut change = self.begin_on(id).await?;
        let view = message_get(&mut change, tenant, id).await?.ok_or(MISSING)?;
        let message = &view.message;
        check_movable(&view)?;
        let moved = moved(message, to);
        // What changes nothing is no action.
        if shown(&moved) == shown(message) {
            return Ok(view);
        }
        check(&moved, now)?;
        let due_at = moved.due_at();
        let mut queued = Vec::with_capacity(view.legs.len());
        for entry in waiting(tenant, &view) {
            if !queue_remove(&mut change, &entry).await? {
                return Err(UseCaseError::conflict(
                    "wrong_state",
                    "a worker has the message, and it can't be moved now",
                ));
            }
            delivery_reschedule(&mut change, tenant, entry.delivery, due_at).await?;
            queued.push(QueueEntry { due_at, priority: moved.priority, ..entry });
        }
        message_reschedule(&mut change, tenant, &moved).await?;
        queue_insert(&mut change, &queued).await?;
        event_insert(&mut change, tenant, id, "message.rescheduled", Some(&shown(&moved).to_string())).await?;
        let after = message_get(&mut change, tenant, id).await?.ok_or(MISSING)?;
        let entry = AuditEntry::new(Action::MessageRescheduled, id).before(shown(message)).after(shown(&moved));
        change.commit(entry).await?;
        self.bell.notify_one();
        Ok(after)
    }
}

/// Checks that a message waits, was never attempted and has no place in a line.
fn check_movable(view: &MessageView) -> Result<()> {
    if view.state.is_end() {
        return Err(not_now(view.state, "moved"));
    }
    if view.message.ordering_key.is_some() {
        let detail = "a message with an ordering key keeps its place in the line: cancel it, and send another one";
        return Err(UseCaseError::conflict("ordered", detail));
    }
    if view.legs.iter().any(|leg| leg.attempts > 0 || leg.state.is_end()) {
        return Err(UseCaseError::conflict("wrong_state", "the message was attempted, and can't be moved any more"));
    }
    Ok(())
}

fn moved(message: &Message, to: Reschedule) -> Message {
    let stored = |time: Option<Timestamp>| time.map(clock::as_stored);
    Message {
        send_at: to.send_at.map_or(message.send_at, stored),
        expires_at: to.expires_at.map_or(message.expires_at, stored),
        priority: to.priority.unwrap_or(message.priority),
        ..message.clone()
    }
}

fn check(message: &Message, now: Timestamp) -> Result<()> {
    let mut fields = Fields::default();
    for (field, code, detail) in check_times(message.send_at, message.expires_at, now) {
        fields.check(false, field, code, || detail.to_owned());
    }
    fields.finish()
}

/// Returns the queue's entries of a message that was never attempted.
fn waiting(tenant: TenantId, view: &MessageView) -> Vec<QueueEntry> {
    let entry = |leg: &DeliveryView| QueueEntry {
        tenant,
        delivery: leg.id,
        due_at: leg.next_attempt_at.unwrap_or_else(|| view.message.due_at()),
        priority: view.message.priority,
    };
    view.legs.iter().map(entry).collect()
}

fn shown(message: &Message) -> Value {
    json!({"send_at": message.send_at, "expires_at": message.expires_at, "priority": message.priority})
}
