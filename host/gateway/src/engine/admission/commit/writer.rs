//! One writer: gathers requests while the last transaction commits, and writes them together, each
//! tenant's under that tenant's row-level security.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use metrics::Histogram;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{
    super::{AdmitError, Outlet},
    AdmitRequest, Answers, DOUBT, OpenAnswers, PATIENCE,
    doubt::asked_after,
    part::{Part, Written},
};
use angarium_domain::ids::TenantId;
use angarium_store::{
    self as store, DatabaseRole, DatabaseSession, Store, StoreError, TransactionId, failpoint, tenant_set,
};

/// The most requests of one transaction.
const REQUESTS: usize = 256;

/// The bytes after which no further request joins a transaction: its statement is held in memory several times.
const BYTES: usize = 4 << 20;

type Receiver = Arc<Mutex<mpsc::Receiver<AdmitRequest>>>;

pub(in crate::engine::admission) struct AdmissionWriter {
    store: Store,
    outlet: Outlet,
    session: Option<DatabaseSession>,
    /// The transaction whose COMMIT was sent and not answered.
    in_doubt: Option<TransactionId>,
    sizes: Histogram,
}

impl AdmissionWriter {
    pub(in crate::engine::admission) fn new(store: Store, outlet: Outlet) -> Self {
        Self { store, outlet, session: None, in_doubt: None, sizes: metrics::histogram!("angarium_accept_batch_size") }
    }

    pub(in crate::engine::admission) async fn run(mut self, requests: Receiver) {
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

    async fn serve(&mut self, requests: Vec<AdmitRequest>) {
        let mut answers: Vec<OpenAnswers> = requests.iter().map(|request| vec![None; request.messages.len()]).collect();
        let (parts, senders) = self.gather(requests);
        self.sizes.record(parts.iter().map(|part| part.messages.len()).sum::<usize>() as f64);
        let asked_at = Instant::now();
        match self.store_parts(&parts).await {
            Ok(written) => {
                for (part, written) in parts.into_iter().zip(written) {
                    part.close(&self.outlet, &written, asked_at, &mut answers);
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
    fn gather(&self, requests: Vec<AdmitRequest>) -> (Vec<Part>, Vec<oneshot::Sender<Answers>>) {
        let mut parts: BTreeMap<TenantId, Part> = BTreeMap::new();
        let mut senders = Vec::with_capacity(requests.len());
        for (number, AdmitRequest { tenant, messages, answer, priority_guard }) in requests.into_iter().enumerate() {
            senders.push(answer);
            let part = parts.entry(tenant).or_insert_with(|| Part::new(tenant));
            part.add(&self.outlet, number, messages, priority_guard.as_ref());
        }
        (parts.into_values().collect(), senders)
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
            Some(transaction) => asked_after(&self.store, &transaction, patience + DOUBT, parts).await,
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
            let (of_part, id) = part.write(&mut txn, &self.outlet).await?;
            written.push(of_part);
            transaction = Some(id);
        }
        failpoint!(AcceptBeforeCommit);
        self.in_doubt = transaction;
        txn.commit().await?;
        failpoint!(AcceptAfterCommit);
        self.in_doubt = None;
        Ok(written)
    }
}

/// The requests that go into the next transaction: at least one.
fn one_transaction(waiting: &mut impl Iterator<Item = AdmitRequest>) -> Vec<AdmitRequest> {
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

fn size(requests: &[AdmitRequest]) -> usize {
    requests.iter().map(AdmitRequest::size).sum()
}

fn refuse(parts: &[Part], error: &StoreError, answers: &mut [OpenAnswers]) {
    let refusal = AdmitError::from(error);
    tracing::warn!(%error, "messages could not be stored");
    for pending in parts.iter().flat_map(|part| &part.messages) {
        answers[pending.request][pending.index] = Some(Err(refusal.clone()));
    }
}
