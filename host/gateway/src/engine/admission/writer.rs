//! One writer: gathers requests while the last transaction commits, and writes them together, each
//! tenant's under that tenant's row-level security.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::Histogram;
use tokio::sync::{Mutex, mpsc, oneshot};
use uuid::Uuid;

use super::{Accepted, AdmitError, Admitted, Answer, Answers, DOUBT, Outlet, PATIENCE, Request, may_start};
use crate::{clock, engine::capacity::Slot, engine::queue::Work, engine::small_tenant_priority::PriorityGuard};
use angarium_domain::{
    attempt::Trigger,
    ids::{MessageId, TenantId},
    message::{Message, NewMessage},
    recipients::Recipients,
    routing::AcceptTimePlan,
};
use angarium_store::{
    self as store, DatabaseRole, DatabaseSession, Store, StoreError, TransactionEnd, TransactionId, failpoint,
    legs::leg_insert,
    message::{
        BirthLease, KnownKey, MessageRow, attachment_insert, idempotency_find, message_exists, message_insert,
        message_load,
    },
    ordering::ordering_join,
    queue::QueueEntry,
    tenant_set, transaction_end,
};

/// The most requests of one transaction.
const REQUESTS: usize = 256;

/// The bytes after which no further request joins a transaction: its statement is held in memory several times.
const BYTES: usize = 4 << 20;

/// Between two questions about a COMMIT without an answer.
const PAUSE: Duration = Duration::from_millis(20);

type Receiver = Arc<Mutex<mpsc::Receiver<Request>>>;

pub(super) struct AdmissionWriter {
    store: Store,
    outlet: Outlet,
    session: Option<DatabaseSession>,
    /// The transaction whose COMMIT was sent and not answered.
    in_doubt: Option<TransactionId>,
    sizes: Histogram,
}

/// One tenant's part of a batch.
struct Part {
    tenant: TenantId,
    lease: Uuid,
    messages: Vec<Pending>,
}

/// A message on its way into the database.
struct Pending {
    new: NewMessage,
    /// The whole body's JSON; a large message itself is abridged.
    json: Vec<u8>,
    excerpt: Option<Vec<u8>>,
    /// Room on this node; without it, the delivery waits in the queue.
    slot: Option<Slot>,
    /// The request that it belongs to, and its place among the request's messages.
    request: usize,
    index: usize,
    priority_guard: Option<Arc<PriorityGuard>>,
    first_attempt: Option<Box<AcceptTimePlan>>,
}

/// The result of a part, once committed.
#[derive(Default)]
struct Written {
    fresh: HashSet<MessageId>,
    known: Vec<KnownKey>,
    replayed: HashMap<MessageId, Arc<Message>>,
}

/// A message with the JSON that is written of it.
struct Fresh {
    new: NewMessage,
    json: Vec<u8>,
    excerpt: Option<Vec<u8>>,
    first_attempt: Option<Box<AcceptTimePlan>>,
}

impl Fresh {
    /// A large message is abridged from here on. A body is plain data: it always has a JSON form.
    fn of(Accepted { mut new, first_attempt }: Accepted) -> Self {
        let json = |new: &NewMessage| serde_json::to_vec(&new.message.body).unwrap_or_default();
        let whole = json(&new);
        let excerpt = new.message.abridge().then(|| json(&new));
        Self { new, json: whole, excerpt, first_attempt }
    }
}

impl AdmissionWriter {
    pub(super) fn new(store: Store, outlet: Outlet) -> Self {
        Self { store, outlet, session: None, in_doubt: None, sizes: metrics::histogram!("angarium_accept_batch_size") }
    }

    pub(super) async fn run(mut self, requests: Receiver) {
        let mut batch = Vec::with_capacity(REQUESTS);
        while requests.lock().await.recv_many(&mut batch, REQUESTS).await > 0 {
            let mut waiting = std::mem::take(&mut batch).into_iter().peekable();
            while waiting.peek().is_some() {
                let together = one_transaction(&mut waiting);
                let large = size(&together) > BYTES;
                self.serve(together).await;
                if let (true, Some(session)) = (large, &mut self.session) {
                    session.shrink();
                }
            }
        }
    }

    async fn serve(&mut self, requests: Vec<Request>) {
        let mut answers: Vec<Answers> = requests.iter().map(|request| vec![None; request.messages.len()]).collect();
        let (parts, senders) = self.gather(requests);
        self.sizes.record(parts.iter().map(|part| part.messages.len()).sum::<usize>() as f64);
        let asked_at = Instant::now();
        match self.store_parts(&parts).await {
            Ok(written) => {
                for (part, written) in parts.into_iter().zip(written) {
                    self.close(part, &written, asked_at, &mut answers);
                }
            }
            Err(error) => refuse(&parts, &error, &mut answers),
        }
        for (sender, answers) in senders.into_iter().zip(answers) {
            let answers = answers.into_iter().map(|it| it.unwrap_or(Err(AdmitError::Unavailable)));
            // A client that went away finds its message by its key.
            let _ = sender.send(answers.collect());
        }
    }

    /// Sorts the requests' messages by tenant: always the same order, so that no two writers wait
    /// for each other's keys in a circle.
    fn gather(&self, requests: Vec<Request>) -> (Vec<Part>, Vec<oneshot::Sender<Answer>>) {
        let now = clock::now();
        let mut parts: BTreeMap<TenantId, Part> = BTreeMap::new();
        let mut senders = Vec::with_capacity(requests.len());
        for (request, Request { tenant, messages, answer, priority_guard }) in requests.into_iter().enumerate() {
            senders.push(answer);
            let messages: Vec<_> = messages.into_iter().map(Fresh::of).collect();
            let starts = |it: &Fresh| may_start(&it.new.message, now);
            let each: Vec<_> = messages.iter().filter(|it| starts(it)).map(|it| it.new.message.size()).collect();
            let mut places = self.reserve(tenant, &each).into_iter();
            let part =
                parts.entry(tenant).or_insert_with(|| Part { tenant, lease: Uuid::now_v7(), messages: Vec::new() });
            for (index, it) in messages.into_iter().enumerate() {
                let slot = if starts(&it) { places.next() } else { None };
                let priority_guard = priority_guard.clone();
                let Fresh { new, json, excerpt, first_attempt } = it;
                part.messages.push(Pending { new, json, excerpt, slot, request, index, priority_guard, first_attempt });
            }
        }
        (parts.into_values().collect(), senders)
    }

    /// Room for all or none, so that a burst beyond it waits in the queue, in order.
    fn reserve(&self, tenant: TenantId, each: &[usize]) -> Vec<Slot> {
        let dispatches = self.outlet.handoff.is_some() && !each.is_empty();
        dispatches.then(|| self.outlet.capacity.reserve(tenant, each)).flatten().unwrap_or_default()
    }

    /// Writes all parts in one transaction. A session that had broken while idle is replaced once; if a COMMIT was sent
    /// and not answered, the database is asked for the transaction's end.
    async fn store_parts(&mut self, parts: &[Part]) -> store::Result<Vec<Written>> {
        let patience = tokio::time::Instant::now() + PATIENCE;
        let was_idle = self.session.is_some();
        let mut tried = self.try_until(patience, parts).await;
        if was_idle && self.in_doubt.is_none() && matches!(tried, Err(StoreError::Unavailable(_))) {
            tried = self.try_until(patience, parts).await;
        }
        match self.in_doubt.take() {
            Some(transaction) => self.asked_after(&transaction, patience + DOUBT, parts).await,
            None => tried,
        }
    }

    /// One try; a session that failed is not used again.
    async fn try_until(&mut self, patience: tokio::time::Instant, parts: &[Part]) -> store::Result<Vec<Written>> {
        let tried = tokio::time::timeout_at(patience, self.try_store(parts)).await;
        let tried = tried.unwrap_or_else(|_| Err(StoreError::Unavailable(store::lost_connection())));
        if tried.is_err() {
            self.session = None;
        }
        tried
    }

    /// Looks up the fate of the transaction within a limited time. The server may be restarting, or may not have
    /// noticed yet that its client is gone.
    async fn asked_after(
        &mut self,
        transaction: &TransactionId,
        patience: tokio::time::Instant,
        parts: &[Part],
    ) -> store::Result<Vec<Written>> {
        let asked = async {
            loop {
                match self.what_was_stored(transaction, parts).await {
                    Ok(Some(written)) => return Ok(written),
                    Ok(None) => return Err(StoreError::Unavailable(store::lost_connection())),
                    Err(error) => tracing::debug!(%error, "a COMMIT without an answer can't be asked after yet"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let asked = tokio::time::timeout_at(patience, asked).await;
        asked.unwrap_or_else(|_| Err(StoreError::Unavailable(store::lost_connection())))
    }

    async fn try_store(&mut self, parts: &[Part]) -> store::Result<Vec<Written>> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(self.store.session(DatabaseRole::App).await?),
        };
        let Some(first) = parts.first() else { return Ok(Vec::new()) };
        let mut txn = session.begin_as(first.tenant).await?;
        let mut written = Vec::with_capacity(parts.len());
        let mut transaction = None;
        for (number, part) in parts.iter().enumerate() {
            if number > 0 {
                tenant_set(&mut txn, part.tenant).await?;
            }
            let lease = BirthLease {
                id: part.lease,
                node: self.outlet.leases.node,
                length_ms: self.outlet.leases.length.as_millis() as i64,
            };
            let stored = message_insert(&mut txn, part.tenant, &rows(part), lease).await?;
            let fresh: HashSet<MessageId> = stored.fresh.into_iter().collect();
            transaction = Some(stored.transaction);
            for pending in part.messages.iter().filter(|it| fresh.contains(&it.new.message.id)) {
                if !pending.new.attachments.is_empty() {
                    attachment_insert(&mut txn, part.tenant, pending.new.message.id, &pending.new.attachments).await?;
                }
            }
            let several = part.messages.iter().map(|it| &it.new.message);
            let several: Vec<_> = several.filter(|it| it.legs.is_some() && fresh.contains(&it.id)).collect();
            if !several.is_empty() {
                leg_insert(&mut txn, part.tenant, &several).await?;
            }
            ordering_join(&mut txn, &entrants(part, &fresh)).await?;
            written.push(replays(&mut txn, part, fresh).await?);
        }
        failpoint!(AcceptBeforeCommit);
        self.in_doubt = transaction;
        txn.commit().await?;
        failpoint!(AcceptAfterCommit);
        self.in_doubt = None;
        Ok(written)
    }

    /// Returns the stored rows of the parts, read on a new session; `None` if the transaction was rolled back.
    async fn what_was_stored(
        &self,
        transaction: &TransactionId,
        parts: &[Part],
    ) -> store::Result<Option<Vec<Written>>> {
        let mut session = self.store.session(DatabaseRole::App).await?;
        let mut txn = session.begin().await?;
        match transaction_end(&mut txn, transaction).await? {
            TransactionEnd::Committed => {}
            TransactionEnd::Aborted => return Ok(None),
            TransactionEnd::Open => return Err(StoreError::Unavailable(store::lost_connection())),
        }
        let mut written = Vec::with_capacity(parts.len());
        for part in parts {
            tenant_set(&mut txn, part.tenant).await?;
            let ids: Vec<_> = part.messages.iter().map(|it| it.new.message.id).collect();
            let fresh: HashSet<_> = message_exists(&mut txn, part.tenant, &ids).await?.into_iter().collect();
            written.push(replays(&mut txn, part, fresh).await?);
        }
        Ok(Some(written))
    }

    /// Hands a committed part over and answers its requests.
    fn close(&self, part: Part, written: &Written, asked_at: Instant, answers: &mut [Answers]) {
        let Part { tenant, lease, messages } = part;
        let born = messages.iter().filter(|it| it.slot.is_some() && written.fresh.contains(&it.new.message.id)).count();
        let held = (born > 0).then(|| self.outlet.leases.take(tenant, lease, born, asked_at));
        let mut work = Vec::with_capacity(born);
        let mut queued_now = false;
        for Pending { new, slot, request, index, priority_guard, first_attempt, .. } in messages {
            if !written.fresh.contains(&new.message.id) {
                answers[request][index] = Some(replay(&new, written));
                continue;
            }
            let message = Arc::new(new.message);
            answers[request][index] = Some(Ok(Admitted { message: Arc::clone(&message), replayed: false }));
            // Further channels that begin now wait in the queue.
            queued_now |= message.legs.as_ref().is_some_and(|legs| legs.at_first().len() > 1);
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
        if let Some(handoff) = &self.outlet.handoff
            && !work.is_empty()
        {
            // The other end closes only when the node stops; recovery then takes the lease.
            let _ = handoff.send(work);
        }
        if queued_now {
            self.outlet.bell.notify_one();
        }
    }
}

/// The requests that go into the next transaction: at least one.
fn one_transaction(waiting: &mut impl Iterator<Item = Request>) -> Vec<Request> {
    let mut together = Vec::new();
    let mut bytes = 0;
    while bytes < BYTES
        && let Some(request) = waiting.next()
    {
        bytes += request.size();
        together.push(request);
    }
    together
}

fn size(requests: &[Request]) -> usize {
    requests.iter().map(Request::size).sum()
}

/// The message as its first channel sees it, which begins when the message is due.
fn first_leg(message: Arc<Message>) -> Arc<Message> {
    if message.legs.is_some() { Arc::new(message.as_leg(0, message.due_at())) } else { message }
}

fn rows(part: &Part) -> Vec<MessageRow<'_>> {
    let row = |it: &Pending| it.new.message.ordering_key.is_none().then_some(it.slot.is_none());
    part.messages
        .iter()
        .map(|it| MessageRow { new: &it.new, json: &it.json, excerpt: it.excerpt.as_deref(), queued: row(it) })
        .collect()
}

/// The messages that join their keys' lines, in the order in which they came.
fn entrants<'a>(part: &'a Part, fresh: &HashSet<MessageId>) -> Vec<(&'a str, QueueEntry)> {
    let messages = part.messages.iter().map(|it| &it.new.message).filter(|it| fresh.contains(&it.id));
    messages
        .filter_map(|message| {
            let entry = QueueEntry {
                tenant: part.tenant,
                delivery: message.id.first_delivery(),
                due_at: message.due_at(),
                priority: message.priority,
            };
            Some((message.ordering_key.as_deref()?, entry))
        })
        .collect()
}

/// Returns the messages behind keys that were not new.
async fn replays(txn: &mut store::Transaction<'_>, part: &Part, fresh: HashSet<MessageId>) -> store::Result<Written> {
    let stale = part.messages.iter().filter(|it| !fresh.contains(&it.new.message.id));
    let keys: Vec<&str> = stale.filter_map(|it| it.new.idempotency.as_ref()).map(|it| it.key.as_str()).collect();
    if keys.is_empty() {
        return Ok(Written { fresh, ..Written::default() });
    }
    let known = idempotency_find(txn, part.tenant, &keys).await?;
    let ids: Vec<_> = known.iter().map(|it| (part.tenant, it.message)).collect();
    let messages = message_load(txn, &ids).await?;
    let replayed = messages.into_iter().map(|(_, message)| (message.id, Arc::new(message))).collect();
    Ok(Written { fresh, known, replayed })
}

fn replay(new: &NewMessage, written: &Written) -> Result<Admitted, AdmitError> {
    let key = new.idempotency.as_ref().ok_or(AdmitError::Unavailable)?;
    let known = written.known.iter().find(|it| it.key == key.key).ok_or(AdmitError::Unavailable)?;
    if !key.is_of(&known.fingerprint) {
        return Err(AdmitError::KeyReused);
    }
    let message = written.replayed.get(&known.message).ok_or(AdmitError::Unavailable)?;
    Ok(Admitted { message: Arc::clone(message), replayed: true })
}

fn refuse(parts: &[Part], error: &StoreError, answers: &mut [Answers]) {
    let refusal = match error {
        StoreError::Unavailable(_) => AdmitError::Unavailable,
        StoreError::Full(_) => AdmitError::DiskFull,
        StoreError::Conflict { .. } | StoreError::ConfigTooLarge { .. } | StoreError::Failed(_) => {
            AdmitError::Failed(error.to_string())
        }
    };
    tracing::warn!(%error, "messages could not be stored");
    for pending in parts.iter().flat_map(|part| &part.messages) {
        answers[pending.request][pending.index] = Some(Err(refusal.clone()));
    }
}
