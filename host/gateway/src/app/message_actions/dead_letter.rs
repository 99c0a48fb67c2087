//! A person's actions on one dead letter, or on all that match: replay, discard, resolve. Each is in the audit, in the
//! same transaction.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{MISSING as NO_MESSAGE, MessageActions, MessageView, purged};
use crate::{
    app::{App, PageRows, Result, audit::without_recipient, error::UseCaseError},
    clock,
    engine::legs,
};
use angarium_domain::{
    audit::Action,
    dead_letter::DeadLetterFilter,
    delivery::DeliveryState,
    ids::{DeliveryId, MessageId, TenantId},
    job::UnknownResolution,
};
use angarium_store::{
    self as store, Connection,
    attempt::attempt_list,
    audit::AuditEntry,
    dead_letter::{dead_letter_discard, dead_letter_get, dead_letter_list, dead_letter_next, delivery_unknown},
    delivery::{Reopening, Resolution, delivery_reopen_all, delivery_resolve},
    event::event_insert_all,
    follow_up::{EndedDelivery, follow_up_note_where_asked},
    legs::legs_hold_of,
    message::message_get,
    queue::{QueueEntry, queue_insert},
};

pub use angarium_store::{
    attempt::AttemptView,
    dead_letter::{DeadLetter, LetterId},
};

/// The most that one request discards.
const DISCARDED: u32 = 10_000;

/// Returns a page of the dead letters that match, the latest first, from behind `after`.
pub async fn list(
    app: &App,
    tenant: TenantId,
    filter: &DeadLetterFilter,
    after: Option<DeliveryId>,
    limit: u32,
) -> Result<PageRows<DeadLetter>> {
    let mut txn = app.store.snapshot(tenant).await?;
    Ok(dead_letter_list(&mut txn, tenant, filter, after, limit).await?)
}

/// Returns a dead letter, discarded or not, with every attempt.
pub async fn get(app: &App, tenant: TenantId, id: LetterId) -> Result<(DeadLetter, Vec<AttemptView>)> {
    let mut txn = app.store.snapshot(tenant).await?;
    let letter = dead_letter_get(&mut txn, tenant, id).await?.ok_or(NO_LETTER)?;
    let attempts = attempt_list(&mut txn, tenant, letter.delivery).await?;
    Ok((letter, attempts))
}

const NO_LETTER: UseCaseError = UseCaseError::NotFound("dead letter");

fn not_now(what: &str, state: DeliveryState) -> UseCaseError {
    UseCaseError::conflict("wrong_state", format!("the {what} is {}, and this can't be done now", state.as_str()))
}

impl MessageActions<'_> {
    /// Opens a dead letter for another attempt, now. One that may have been sent goes to the same
    /// connection again, with the same key.
    pub async fn replay(&self, id: LetterId, reason: Option<&str>) -> Result<MessageView> {
        let mut change = self.changes.begin(self.by).await?;
        let letter = dead_letter_get(&mut change, self.by.tenant, id).await?.ok_or(NO_LETTER)?;
        check_sendable(letter.content_purged_at, letter.expires_at, clock::now())?;
        if !self.reopen(&mut change, letter.delivery, &DeliveryState::DEAD).await? {
            return Err(not_now("dead letter", letter.state));
        }
        let view = message_get(&mut change, self.by.tenant, letter.message).await?.ok_or(NO_LETTER)?;
        let entry = AuditEntry::new(Action::DeadLetterReplayed, letter.delivery)
            .before(json!({"state": letter.state}))
            .because(reason);
        change.commit(entry).await?;
        self.bell.notify_one();
        Ok(view)
    }

    /// Takes a dead letter off the list.
    pub async fn discard(&self, id: LetterId, reason: &str) -> Result<DeadLetter> {
        let mut change = self.changes.begin(self.by).await?;
        let letter = dead_letter_get(&mut change, self.by.tenant, id).await?.ok_or(NO_LETTER)?;
        let discarded = dead_letter_discard(&mut change, self.by.tenant, &[letter.delivery], reason).await?;
        if discarded.is_empty() {
            return Err(UseCaseError::conflict("discarded", "the dead letter was discarded before"));
        }
        tell(&mut change, self.by.tenant, &discarded, "message.discarded", Some(json!({"reason": reason}))).await?;
        let entry = AuditEntry::new(Action::DeadLetterDiscarded, letter.delivery)
            .before(json!({"state": letter.state}))
            .because(Some(reason));
        let letter = dead_letter_get(&mut change, self.by.tenant, LetterId::Delivery(letter.delivery)).await?;
        change.commit(entry).await?;
        letter.ok_or(NO_LETTER)
    }

    /// Takes the dead letters that match off the list, the oldest first, as many as one request does; returns how many,
    /// and whether more match.
    pub async fn discard_all(&self, filter: &DeadLetterFilter, reason: &str) -> Result<(usize, bool)> {
        let mut change = self.changes.begin(self.by).await?;
        let next = dead_letter_next(&mut change, self.by.tenant, filter, None, DISCARDED).await?;
        let discarded = dead_letter_discard(&mut change, self.by.tenant, &next, reason).await?;
        tell(&mut change, self.by.tenant, &discarded, "message.discarded", Some(json!({"reason": reason}))).await?;
        let entry = AuditEntry::new(Action::DeadLettersDiscarded, "")
            .after(json!({"filter": without_recipient(filter)?, "discarded": discarded.len()}))
            .because(Some(reason));
        change.commit(entry).await?;
        Ok((discarded.len(), next.len() == DISCARDED as usize))
    }

    /// Resolves an unknown delivery of a message by a person's decision.
    pub async fn resolve(&self, message: MessageId, wanted: &WantedResolution) -> Result<MessageView> {
        let mut change = self.begin().await?;
        let view = message_get(&mut change, self.by.tenant, message).await?.ok_or(NO_MESSAGE)?;
        let unknown = delivery_unknown(&mut change, self.by.tenant, message).await?;
        let delivery = match (wanted.delivery, unknown.as_slice()) {
            (Some(named), unknown) if unknown.contains(&named) => named,
            (None, [only]) => *only,
            (None, [_, _, ..]) => {
                let detail = "several deliveries of the message are unknown: `delivery` says which is meant";
                return Err(UseCaseError::conflict("several_unknown", detail));
            }
            (Some(_) | None, _) => return Err(not_now("message", view.delivery.state)),
        };
        let done = match wanted.resolution {
            UnknownResolution::Again => {
                check_sendable(view.content_purged_at, view.message.expires_at, clock::now())?;
                self.reopen(&mut change, delivery, &[DeliveryState::Unknown]).await?
            }
            as_ended => self.settle(&mut change, (message, delivery), as_ended.state(), wanted).await?,
        };
        if !done {
            return Err(not_now("message", view.delivery.state));
        }
        let entry = AuditEntry::new(Action::MessageResolved, message)
            .before(json!({"delivery": delivery, "state": DeliveryState::Unknown}))
            .after(json!({"state": wanted.resolution.state(), "external_id": wanted.external_id}))
            .because(Some(&wanted.reason));
        let view = message_get(&mut change, self.by.tenant, message).await?.ok_or(NO_MESSAGE)?;
        change.commit(entry).await?;
        self.bell.notify_one();
        Ok(view)
    }

    /// Opens one delivery again, due now, and tells of it.
    async fn reopen(&self, db: &mut Connection, delivery: DeliveryId, from: &[DeliveryState]) -> store::Result<bool> {
        let now = clock::now();
        let how = Reopening { from, at: now, keeps_unknown: true, only_sendable: true, replay: None };
        legs_hold_of(db, self.by.tenant, &[delivery]).await?;
        let (reopened, moved) = delivery_reopen_all(db, self.by.tenant, &[delivery], how).await?;
        legs::advance(db, moved).await?;
        let [one] = reopened.as_slice() else { return Ok(false) };
        let entry = QueueEntry { tenant: self.by.tenant, delivery, due_at: now, priority: one.priority };
        queue_insert(db, &[entry]).await?;
        tell(db, self.by.tenant, &[(one.message, delivery)], "message.retry_requested", None).await?;
        Ok(true)
    }

    /// Ends an unknown delivery, and tells of it as an outcome would.
    async fn settle(
        &self,
        db: &mut Connection,
        (message, delivery): (MessageId, DeliveryId),
        state: DeliveryState,
        wanted: &WantedResolution,
    ) -> store::Result<bool> {
        let resolution = Resolution { state, reason: &wanted.reason, external_id: wanted.external_id.as_deref() };
        legs_hold_of(db, self.by.tenant, &[delivery]).await?;
        let resolved = delivery_resolve(db, self.by.tenant, delivery, resolution).await?;
        let Some((state, moved)) = resolved else { return Ok(false) };
        legs::advance(db, moved).await?;
        follow_up_note_where_asked(db, &[EndedDelivery { tenant: self.by.tenant, delivery, message, state }]).await?;
        let kind = if state == DeliveryState::Sent { "message.sent" } else { "message.failed" };
        let data = json!({"resolved_by": self.by.actor.name, "detail": wanted.reason});
        tell(db, self.by.tenant, &[(message, delivery)], kind, Some(data)).await?;
        Ok(true)
    }
}

/// A person's decision about an unknown delivery.
#[derive(Debug, Clone)]
pub struct WantedResolution {
    pub resolution: UnknownResolution,
    pub reason: String,
    /// The provider's own id of it, if the person found it.
    pub external_id: Option<String>,
    /// The delivery, if several of the message are unknown.
    pub delivery: Option<DeliveryId>,
}

/// Refuses what could only end again.
fn check_sendable(purged_at: Option<Timestamp>, expires_at: Option<Timestamp>, now: Timestamp) -> Result<()> {
    if purged_at.is_some() {
        return Err(purged());
    }
    match expires_at.filter(|expires_at| *expires_at <= now) {
        None => Ok(()),
        Some(at) => {
            let detail = format!("the message was not to be sent any more after {at}: send it as a new one");
            Err(UseCaseError::conflict("expired", detail))
        }
    }
}

async fn tell(
    db: &mut Connection,
    tenant: TenantId,
    deliveries: &[(MessageId, DeliveryId)],
    kind: &str,
    data: Option<Value>,
) -> store::Result<()> {
    let data = data.map(|data| data.to_string());
    event_insert_all(db, tenant, deliveries, kind, data.as_deref()).await
}
