//! One tenant's part of a transaction: its messages as they are written, under one lease of this node.

use std::{collections::HashSet, sync::Arc, time::Instant};

use uuid::Uuid;

use super::{
    super::{AdmitError, Admitted, Outlet, intake::OpenMessage},
    OpenAnswers,
    known::KnownMessages,
};
use crate::{engine::capacity::Slot, engine::queue::Work, engine::small_tenant_priority::PriorityGuard};
use angarium_domain::{
    attempt::Trigger,
    ids::{MessageId, TenantId},
    message::Message,
    recipients::Recipients,
};
use angarium_store::{
    self as store, TransactionId,
    legs::leg_insert,
    message::{BirthLease, MessageRow, attachment_insert, body_json, message_insert},
    ordering::ordering_join,
    queue::QueueEntry,
};

/// One tenant's part of a transaction.
pub(super) struct Part {
    pub tenant: TenantId,
    lease: Uuid,
    pub messages: Vec<PendingMessage>,
}

/// A message in the form in which it is written.
pub(super) struct PendingMessage {
    pub message: OpenMessage,
    /// The whole body's JSON; a large message itself is abridged.
    json: Vec<u8>,
    excerpt: Option<Vec<u8>>,
    /// Capacity of this node; without it, the delivery waits in the queue.
    slot: Option<Slot>,
    /// The request that it belongs to, and its place among the request's messages.
    pub request: usize,
    pub index: usize,
    priority_guard: Option<Arc<PriorityGuard>>,
}

/// The result of a part, once committed.
pub(super) struct Written {
    /// The messages that were not accepted before.
    pub fresh: HashSet<MessageId>,
    known: KnownMessages,
}

impl PendingMessage {
    pub fn id(&self) -> MessageId {
        self.message.new.message.id
    }
}

impl Part {
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, lease: Uuid::now_v7(), messages: Vec::new() }
    }

    /// Adds the messages of a request. They have slots all or none, so that a burst beyond the capacity waits in the
    /// queue, in order.
    pub fn add(
        &mut self,
        outlet: &Outlet,
        request: usize,
        messages: Vec<OpenMessage>,
        priority_guard: Option<&Arc<PriorityGuard>>,
    ) {
        let first = self.messages.len();
        for (index, mut message) in messages.into_iter().enumerate() {
            let json = body_json(&message.new.message);
            let excerpt = message.new.message.abridge().then(|| body_json(&message.new.message));
            let priority_guard = priority_guard.cloned();
            self.messages.push(PendingMessage { message, json, excerpt, slot: None, request, index, priority_guard });
        }
        let starting = self.messages[first..].iter().filter(|it| it.message.starts_here);
        let each: Vec<_> = starting.map(|it| it.message.new.message.size()).collect();
        let slots = if each.is_empty() { None } else { outlet.capacity.reserve(self.tenant, &each) };
        let starting = self.messages[first..].iter_mut().filter(|it| it.message.starts_here);
        for (message, slot) in starting.zip(slots.into_iter().flatten()) {
            message.slot = Some(slot);
        }
    }

    /// Writes the messages whose keys are new, with all that belongs to them. The transaction sees their tenant.
    pub async fn write(
        &self,
        txn: &mut store::Transaction<'_>,
        outlet: &Outlet,
    ) -> store::Result<(Written, TransactionId)> {
        let lease =
            BirthLease { id: self.lease, node: outlet.leases.node, length_ms: outlet.leases.length.as_millis() as i64 };
        let stored = message_insert(txn, self.tenant, &self.rows(), lease).await?;
        let fresh: HashSet<MessageId> = stored.fresh.into_iter().collect();
        for pending in self.messages.iter().filter(|it| fresh.contains(&it.id())) {
            let new = &pending.message.new;
            if !new.attachments.is_empty() {
                attachment_insert(txn, self.tenant, new.message.id, &new.attachments).await?;
            }
        }
        let messages = self.messages.iter().map(|it| &it.message.new.message);
        let lists: Vec<_> = messages.filter(|it| it.legs.is_list() && fresh.contains(&it.id)).collect();
        if !lists.is_empty() {
            leg_insert(txn, self.tenant, &lists).await?;
        }
        ordering_join(txn, &self.entrants(&fresh)).await?;
        Ok((self.written(txn, fresh).await?, stored.transaction))
    }

    /// Returns the result with the messages behind those keys that were not new.
    pub async fn written(&self, db: &mut store::Connection, fresh: HashSet<MessageId>) -> store::Result<Written> {
        let stale = self.messages.iter().filter(|it| !fresh.contains(&it.id()));
        let keys: Vec<_> =
            stale.filter_map(|it| it.message.new.idempotency.as_ref()).map(|it| it.key.as_str()).collect();
        let known = match keys.is_empty() {
            true => KnownMessages::default(),
            false => KnownMessages::load(db, self.tenant, &keys).await?,
        };
        Ok(Written { fresh, known })
    }

    /// Hands the committed messages over and answers their requests.
    pub fn close(self, outlet: &Outlet, written: &Written, asked_at: Instant, answers: &mut [OpenAnswers]) {
        let Self { tenant, lease, messages } = self;
        let born = messages.iter().filter(|it| it.slot.is_some() && written.fresh.contains(&it.id())).count();
        let held = (born > 0).then(|| outlet.leases.take(tenant, lease, born, asked_at));
        let mut work = Vec::with_capacity(born);
        let mut queued_now = false;
        for pending in messages {
            if !written.fresh.contains(&pending.id()) {
                answers[pending.request][pending.index] = Some(written.replay(&pending));
                continue;
            }
            let PendingMessage { message, slot, request, index, priority_guard, .. } = pending;
            let OpenMessage { new, first_attempt, .. } = message;
            let message = Arc::new(new.message);
            answers[request][index] = Some(Ok(Admitted { message: Arc::clone(&message), replayed: false }));
            // Further channels that begin now wait in the queue.
            queued_now |= message.legs.policy().at_first().len() > 1;
            match (slot, &held) {
                (Some(slot), Some(lease)) => work.push(Work {
                    tenant,
                    delivery: message.id.first_delivery(),
                    due_at: message.due_at(),
                    message: first_leg(message),
                    lease: Arc::clone(lease),
                    past: Vec::new(),
                    recipients: Recipients::default(),
                    attempts: 0,
                    deaths: 0,
                    trigger: Trigger::Scheduled,
                    fallback: None,
                    slot,
                    priority_guard,
                    first_attempt,
                }),
                _ => queued_now |= message.send_at.is_none(),
            }
        }
        if let Some(handoff) = &outlet.handoff
            && !work.is_empty()
        {
            // The other end closes only when the node stops; recovery then takes the lease.
            let _ = handoff.send(work);
        }
        if queued_now {
            outlet.bell.notify_one();
        }
    }

    fn rows(&self) -> Vec<MessageRow<'_>> {
        let row = |it: &PendingMessage| it.message.new.message.ordering_key.is_none().then_some(it.slot.is_none());
        self.messages
            .iter()
            .map(|it| MessageRow {
                new: &it.message.new,
                json: &it.json,
                excerpt: it.excerpt.as_deref(),
                queued: row(it),
            })
            .collect()
    }

    /// Returns the messages that join their keys' lines, in the order in which they came.
    fn entrants(&self, fresh: &HashSet<MessageId>) -> Vec<(&str, QueueEntry)> {
        let messages = self.messages.iter().map(|it| &it.message.new.message).filter(|it| fresh.contains(&it.id));
        messages
            .filter_map(|message| {
                let entry = QueueEntry {
                    tenant: self.tenant,
                    delivery: message.id.first_delivery(),
                    due_at: message.due_at(),
                    priority: message.priority,
                };
                Some((message.ordering_key.as_deref()?, entry))
            })
            .collect()
    }
}

impl Written {
    /// Returns the answer to a message whose key was not new.
    pub fn replay(&self, pending: &PendingMessage) -> Result<Admitted, AdmitError> {
        let key = pending.message.new.idempotency.as_ref();
        key.and_then(|key| self.known.answer(key)).unwrap_or(Err(AdmitError::Unavailable))
    }
}

/// Returns the message as its first channel sees it, which begins when the message is due.
fn first_leg(message: Arc<Message>) -> Arc<Message> {
    if message.legs.is_list() { Arc::new(message.as_leg(0, message.due_at())) } else { message }
}
