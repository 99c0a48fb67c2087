//! A person's actions on one dead letter, or on all that match: replay, discard, resolve. Each is in the audit, in the
//! same transaction.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{clock, engine::legs};
use angarium_domain::{
    audit::{Action, Actor},
    dead_letter::DeadLetterFilter,
    delivery::DeliveryState,
    ids::{DeliveryId, JobId, MessageId, TenantId},
};
use angarium_store::{
    self as store, Connection, Store,
    audit::{AuditEntry, audit_insert},
    dead_letter::{
        DeadLetter, LetterId, NewReplay, Replay, dead_letter_count, dead_letter_discard, dead_letter_get,
        dead_letter_next, delivery_unknown, replay_cancel, replay_get, replay_insert,
    },
    delivery::{Reopening, Resolution, delivery_reopen_all, delivery_resolve},
    event::event_insert_all,
    follow_up::{EndedDelivery, follow_up_note_where_asked},
    legs::legs_hold_of,
    message::{MessageView, message_get},
    queue::{QueueEntry, queue_insert},
};

/// The most that one request discards.
const DISCARDED: u32 = 10_000;

/// Why something is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The tenant has no such thing.
    NotFound,
    /// It is in another state by now.
    NotNow(DeliveryState),
    /// A replay that has come to its end.
    Ended,
    /// It was discarded before.
    Discarded,
    /// It was not to be sent any more after this time.
    Expired(Timestamp),
    /// There is nothing left that could be sent.
    Purged,
    /// Several deliveries of the message are unknown, and none is named.
    Several,
}

/// The result of an action.
pub type Handled<T> = store::Result<Result<T, Refusal>>;

/// The store, the tenant and the actor of actions on dead letters.
pub struct Hand<'a> {
    pub store: &'a Store,
    /// Rung when something due was put into the queue.
    pub bell: &'a Arc<Notify>,
    pub tenant: TenantId,
    pub actor: &'a Actor,
}

impl Hand<'_> {
    /// Opens a dead letter for another attempt, now. One that may have been sent goes to the same
    /// connection again, with the same key.
    pub async fn replay(&self, id: LetterId, reason: Option<&str>) -> Handled<MessageView> {
        let mut txn = self.store.tenant(self.tenant).await?;
        let Some(letter) = dead_letter_get(&mut txn, self.tenant, id).await? else {
            return Ok(Err(Refusal::NotFound));
        };
        if let Some(refusal) = unsendable(&letter, clock::now()) {
            return Ok(Err(refusal));
        }
        if !self.reopen(&mut txn, letter.delivery, &DeliveryState::DEAD).await? {
            return Ok(Err(Refusal::NotNow(letter.state)));
        }
        let entry = AuditEntry::new(Action::DeadLetterReplayed, letter.delivery)
            .before(json!({"state": letter.state}))
            .because(reason);
        audit_insert(&mut txn, self.tenant, self.actor, &entry).await?;
        let view = message_get(&mut txn, self.tenant, letter.message).await?;
        txn.commit().await?;
        self.bell.notify_one();
        Ok(view.ok_or(Refusal::NotFound))
    }

    /// Takes a dead letter off the list.
    pub async fn discard(&self, id: LetterId, reason: &str) -> Handled<DeadLetter> {
        let mut txn = self.store.tenant(self.tenant).await?;
        let Some(letter) = dead_letter_get(&mut txn, self.tenant, id).await? else {
            return Ok(Err(Refusal::NotFound));
        };
        let discarded = dead_letter_discard(&mut txn, self.tenant, &[letter.delivery], reason).await?;
        if discarded.is_empty() {
            return Ok(Err(Refusal::Discarded));
        }
        tell(&mut txn, self.tenant, &discarded, "message.discarded", Some(json!({"reason": reason}))).await?;
        let entry = AuditEntry::new(Action::DeadLetterDiscarded, letter.delivery)
            .before(json!({"state": letter.state}))
            .because(Some(reason));
        audit_insert(&mut txn, self.tenant, self.actor, &entry).await?;
        let letter = dead_letter_get(&mut txn, self.tenant, LetterId::Delivery(letter.delivery)).await?;
        txn.commit().await?;
        Ok(letter.ok_or(Refusal::NotFound))
    }

    /// Takes the dead letters that match off the list, the oldest first, as many as one request does; returns how many,
    /// and whether more match.
    pub async fn discard_all(&self, filter: &DeadLetterFilter, reason: &str) -> store::Result<(usize, bool)> {
        let mut txn = self.store.tenant(self.tenant).await?;
        let next = dead_letter_next(&mut txn, self.tenant, filter, None, DISCARDED).await?;
        let discarded = dead_letter_discard(&mut txn, self.tenant, &next, reason).await?;
        tell(&mut txn, self.tenant, &discarded, "message.discarded", Some(json!({"reason": reason}))).await?;
        let entry = AuditEntry::new(Action::DeadLettersDiscarded, "")
            .after(json!({"filter": filter, "discarded": discarded.len()}))
            .because(Some(reason));
        audit_insert(&mut txn, self.tenant, self.actor, &entry).await?;
        txn.commit().await?;
        Ok((discarded.len(), next.len() == DISCARDED as usize))
    }

    /// Begins a replay of all dead letters that match and have ended by now: what fails again is not
    /// met again.
    pub async fn start_replay(&self, wanted: WantedReplay) -> store::Result<Option<Replay>> {
        let now = clock::now();
        let until = wanted.filter.until.map_or(now, |until| until.min(now));
        let filter = DeadLetterFilter { until: Some(until), ..wanted.filter };
        let mut txn = self.store.tenant(self.tenant).await?;
        let matched = dead_letter_count(&mut txn, self.tenant, &filter).await?;
        let WantedReplay { rate_per_second, most, reason, .. } = wanted;
        let new = NewReplay { id: JobId::new(), filter, rate_per_second, most, reason, matched };
        replay_insert(&mut txn, self.tenant, &new).await?;
        let about =
            json!({"filter": new.filter, "rate_per_second": rate_per_second, "limit": most, "matched": matched});
        let entry = AuditEntry::new(Action::ReplayStarted, new.id).after(about).because(new.reason.as_deref());
        audit_insert(&mut txn, self.tenant, self.actor, &entry).await?;
        let replay = replay_get(&mut txn, self.tenant, new.id).await?;
        txn.commit().await?;
        Ok(replay)
    }

    /// Stops a replay; deliveries that it has opened stay open.
    pub async fn cancel_replay(&self, id: JobId) -> Handled<Replay> {
        let mut txn = self.store.tenant(self.tenant).await?;
        if replay_cancel(&mut txn, self.tenant, id).await? {
            audit_insert(&mut txn, self.tenant, self.actor, &AuditEntry::new(Action::ReplayCanceled, id)).await?;
        } else if replay_get(&mut txn, self.tenant, id).await?.is_some() {
            return Ok(Err(Refusal::Ended));
        }
        let replay = replay_get(&mut txn, self.tenant, id).await?;
        txn.commit().await?;
        Ok(replay.ok_or(Refusal::NotFound))
    }

    /// Resolves an unknown delivery of a message by a person's decision.
    pub async fn resolve(&self, message: MessageId, wanted: &WantedResolution) -> Handled<MessageView> {
        let mut txn = self.store.tenant(self.tenant).await?;
        let Some(view) = message_get(&mut txn, self.tenant, message).await? else {
            return Ok(Err(Refusal::NotFound));
        };
        let unknown = delivery_unknown(&mut txn, self.tenant, message).await?;
        let delivery = match (wanted.delivery, unknown.as_slice()) {
            (Some(named), unknown) if unknown.contains(&named) => named,
            (None, [only]) => *only,
            (None, [_, _, ..]) => return Ok(Err(Refusal::Several)),
            (Some(_) | None, _) => return Ok(Err(Refusal::NotNow(view.delivery.state))),
        };
        let done = match wanted.resolution {
            Resolved::Again => match unsendable_view(&view, clock::now()) {
                Some(refusal) => return Ok(Err(refusal)),
                None => self.reopen(&mut txn, delivery, &[DeliveryState::Unknown]).await?,
            },
            Resolved::As(state) => self.settle(&mut txn, (message, delivery), state, wanted).await?,
        };
        if !done {
            return Ok(Err(Refusal::NotNow(view.delivery.state)));
        }
        let entry = AuditEntry::new(Action::MessageResolved, message)
            .before(json!({"delivery": delivery, "state": DeliveryState::Unknown}))
            .after(json!({"state": wanted.resolution.state(), "external_id": wanted.external_id}))
            .because(Some(&wanted.reason));
        audit_insert(&mut txn, self.tenant, self.actor, &entry).await?;
        let view = message_get(&mut txn, self.tenant, message).await?;
        txn.commit().await?;
        self.bell.notify_one();
        Ok(view.ok_or(Refusal::NotFound))
    }

    /// Opens one delivery again, due now, and tells of it.
    async fn reopen(&self, db: &mut Connection, delivery: DeliveryId, from: &[DeliveryState]) -> store::Result<bool> {
        let now = clock::now();
        let how = Reopening { from, at: now, keeps_unknown: true, only_sendable: true, replay: None };
        legs_hold_of(db, self.tenant, &[delivery]).await?;
        let (reopened, moved) = delivery_reopen_all(db, self.tenant, &[delivery], how).await?;
        legs::advance(db, moved).await?;
        let [one] = reopened.as_slice() else { return Ok(false) };
        let entry = QueueEntry { tenant: self.tenant, delivery, due_at: now, priority: one.priority };
        queue_insert(db, &[entry]).await?;
        tell(db, self.tenant, &[(one.message, delivery)], "message.retry_requested", None).await?;
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
        legs_hold_of(db, self.tenant, &[delivery]).await?;
        let resolved = delivery_resolve(db, self.tenant, delivery, resolution).await?;
        let Some((state, moved)) = resolved else { return Ok(false) };
        legs::advance(db, moved).await?;
        follow_up_note_where_asked(db, &[EndedDelivery { tenant: self.tenant, delivery, message, state }]).await?;
        let kind = if state == DeliveryState::Sent { "message.sent" } else { "message.failed" };
        let data = json!({"resolved_by": self.actor.name, "detail": wanted.reason});
        tell(db, self.tenant, &[(message, delivery)], kind, Some(data)).await?;
        Ok(true)
    }
}

/// A replay as a person asks for it.
#[derive(Debug, Clone)]
pub struct WantedReplay {
    pub filter: DeadLetterFilter,
    pub rate_per_second: u32,
    /// The most deliveries.
    pub most: Option<i64>,
    pub reason: Option<String>,
}

/// A person's decision about an unknown delivery.
#[derive(Debug, Clone)]
pub struct WantedResolution {
    pub resolution: Resolved,
    pub reason: String,
    /// The provider's own id of it, if the person found it.
    pub external_id: Option<String>,
    /// The delivery, if several of the message are unknown.
    pub delivery: Option<DeliveryId>,
}

/// How an unknown delivery is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// As `sent` or `failed`.
    As(DeliveryState),
    /// It is sent again, through the same connection with the same key.
    Again,
}

impl Resolved {
    const fn state(self) -> DeliveryState {
        match self {
            Self::As(state) => state,
            Self::Again => DeliveryState::Queued,
        }
    }
}

/// Returns the reason for which it could only end again.
fn unsendable(letter: &DeadLetter, now: Timestamp) -> Option<Refusal> {
    refusal(letter.content_purged_at, letter.expires_at, now)
}

fn unsendable_view(view: &MessageView, now: Timestamp) -> Option<Refusal> {
    refusal(view.content_purged_at, view.message.expires_at, now)
}

fn refusal(purged_at: Option<Timestamp>, expires_at: Option<Timestamp>, now: Timestamp) -> Option<Refusal> {
    if purged_at.is_some() {
        return Some(Refusal::Purged);
    }
    expires_at.filter(|expires_at| *expires_at <= now).map(Refusal::Expired)
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
