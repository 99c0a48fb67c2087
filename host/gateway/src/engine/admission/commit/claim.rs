//! Requests with a claim: a compare-and-set of their producer runs first in the transaction of their messages, which is
//! theirs alone. No row hit: nothing is written.

use std::{slice, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        Admission, AdmitError, Admitted,
        intake::{Intake, IntakeMessage, Purpose},
    },
    Answers, DOUBT, OpenAnswers, PATIENCE,
    doubt::asked_after,
    filled,
    part::{Part, Written},
};
use angarium_domain::{
    ids::{MessageId, TenantId},
    message::NewMessage,
};
use angarium_store::{self as store, StoreError, TransactionId, failpoint, transaction_id};

/// How long rules and scripts are asked about messages that a claim returns: its rows are locked meanwhile.
const RULES_UNDER_LOCK: Duration = Duration::from_millis(500);

/// A producer's compare-and-set: a job's cursor, a schedule's next time, an end that is to be followed up.
///
/// It runs first in the transaction of the messages. So a step happens once, whichever node dies or races: its messages
/// are written with the change that marks it as done, or neither is.
///
/// A message that is refused does not undo the claim, since it would be refused again: [`ProducerClaim::record`] tells the
/// producer in the same transaction. An obstacle that passes ([`AdmitError::passes`]) undoes all: nothing is written,
/// and the producer tries again.
pub trait ProducerClaim: Send + Sync + 'static {
    /// Makes the change. Returns further messages, for a producer that learns only here whom to tell; `None` if no row
    /// was hit. The returned messages pass the stages too, while the rows are locked.
    ///
    /// # Errors
    /// When the database fails; nothing is written then.
    fn take(&self, db: &mut store::Connection) -> impl Future<Output = store::Result<Option<Vec<NewMessage>>>> + Send;

    /// Records the results, after the messages were written and in the same transaction: first those of the request's
    /// messages, then those of the returned ones.
    ///
    /// # Errors
    /// When the database fails; nothing is written then.
    fn record(
        &self,
        db: &mut store::Connection,
        results: &[Result<MessageId, AdmitError>],
    ) -> impl Future<Output = store::Result<()>> + Send {
        let _ = (db, results);
        std::future::ready(Ok(()))
    }
}

/// The end of a request with a claim.
#[derive(Debug, Clone)]
pub enum ClaimEnd {
    /// The claim hit no row: nothing was written.
    Missed,
    /// The claim and the messages are durable: one answer for each message, in the order of [`ProducerClaim::record`].
    Taken(Answers),
}

/// A request with a claim on its way into the database.
struct ClaimRequest<C> {
    claim: C,
    intake: Intake,
    /// The answers of refused messages; the others stay open.
    answers: OpenAnswers,
    part: Part,
    /// Set once the COMMIT was sent, until it is answered.
    in_doubt: Option<TransactionId>,
}

/// The end of one try.
enum Tried {
    Missed,
    Later(AdmitError),
    Written(Written),
}

impl Admission {
    /// Writes the open messages in a transaction of their own, after the claim.
    pub(in crate::engine::admission) async fn commit_with<C: ProducerClaim>(
        &self,
        claim: C,
        mut intake: Intake,
    ) -> Result<ClaimEnd, AdmitError> {
        let (open, refused) = intake.take_messages();
        let answers = self.recall(intake.tenant, refused).await;
        if let Some(error) = passing(answers.iter().flatten()) {
            return Err(error);
        }
        let mut part = Part::new(intake.tenant);
        part.add(&self.outlet, 0, open, intake.priority_guard.as_ref());
        place(&mut part, &answers);
        let request = ClaimRequest { claim, intake, answers, part, in_doubt: None };
        let this = self.clone();
        // In a task of its own: a caller that goes away amid the COMMIT would leave the lease to recovery.
        let done = tokio::spawn(async move { this.commit_claim(request).await });
        done.await.unwrap_or(Err(AdmitError::Unavailable))
    }

    async fn commit_claim<C: ProducerClaim>(&self, mut request: ClaimRequest<C>) -> Result<ClaimEnd, AdmitError> {
        let asked_at = std::time::Instant::now();
        let patience = Instant::now() + PATIENCE;
        let tried = tokio::time::timeout_at(patience, self.try_claim(&mut request)).await;
        let tried = match request.in_doubt.take() {
            Some(transaction) => {
                let parts = slice::from_ref(&request.part);
                let written = asked_after(&self.store, &transaction, patience + DOUBT, parts).await;
                written.map(|written| written.into_iter().next().map_or(Tried::Missed, Tried::Written))
            }
            None => tried.unwrap_or_else(|_| Err(StoreError::Unavailable(store::lost_connection()))),
        };
        self.time.record(asked_at.elapsed());
        let ClaimRequest { part, answers, .. } = request;
        match tried {
            Ok(Tried::Missed) => Ok(ClaimEnd::Missed),
            Ok(Tried::Later(error)) => Err(error),
            Ok(Tried::Written(written)) => {
                let mut answers = [answers];
                part.close(&self.outlet, &written, asked_at, &mut answers);
                let [answers] = answers;
                Ok(ClaimEnd::Taken(filled(answers, Vec::new())))
            }
            Err(error) => {
                tracing::warn!(%error, "messages with a claim could not be stored");
                Err(AdmitError::from(error))
            }
        }
    }

    async fn try_claim<C: ProducerClaim>(&self, request: &mut ClaimRequest<C>) -> store::Result<Tried> {
        let tenant = request.intake.tenant;
        let mut txn = self.store.tenant(tenant).await?;
        let Some(returned) = request.claim.take(&mut txn).await? else { return Ok(Tried::Missed) };
        let transaction = transaction_id(&mut txn).await?;
        if !returned.is_empty() {
            // Boxed, so that a request without them stays small.
            Box::pin(self.add_returned(tenant, request, returned)).await;
        }
        let ClaimRequest { claim, answers, part, in_doubt, .. } = request;
        let written = part.write(&mut txn, &self.outlet).await?.0;
        let results = results(part, &written, answers);
        if let Some(error) = passing(&results) {
            return Ok(Tried::Later(error));
        }
        claim.record(&mut txn, &results).await?;
        failpoint!(AcceptBeforeCommit);
        *in_doubt = Some(transaction);
        txn.commit().await?;
        failpoint!(AcceptAfterCommit);
        *in_doubt = None;
        Ok(Tried::Written(written))
    }

    /// Leads the messages that a claim returned through the stages, within bounds of time.
    async fn add_returned<C: ProducerClaim>(
        &self,
        tenant: TenantId,
        request: &mut ClaimRequest<C>,
        returned: Vec<NewMessage>,
    ) {
        let messages = returned.into_iter().map(IntakeMessage::parsed).collect();
        let mut intake = self.intake(tenant, Purpose::Send, Arc::clone(&request.intake.config), messages);
        intake.deadline = Some(std::time::Instant::now() + RULES_UNDER_LOCK);
        self.prepare(&mut intake).await;
        let (open, refused) = intake.take_messages();
        request.answers.extend(self.recall(tenant, refused).await);
        request.part.add(&self.outlet, 0, open, intake.priority_guard.as_ref());
        place(&mut request.part, &request.answers);
        // Their memory is held as long as that of the others.
        request.intake.permits.append(&mut intake.permits);
    }
}

/// Returns the obstacle that passes by itself, if a message is refused for one.
fn passing<'a, T: 'a>(results: impl IntoIterator<Item = &'a Result<T, AdmitError>>) -> Option<AdmitError> {
    results.into_iter().filter_map(|it| it.as_ref().err()).find(|error| error.passes()).cloned()
}

/// Gives the part's messages their places among the request's: the open ones, in order.
fn place(part: &mut Part, answers: &OpenAnswers) {
    let open = answers.iter().enumerate().filter(|(_, answer)| answer.is_none());
    for (pending, (index, _)) in part.messages.iter_mut().zip(open) {
        pending.index = index;
    }
}

/// Returns the results of all messages as they will be, once the transaction is committed.
fn results(part: &Part, written: &Written, answers: &OpenAnswers) -> Vec<Result<MessageId, AdmitError>> {
    let mut pending = part.messages.iter().map(|it| match written.fresh.contains(&it.id()) {
        true => Ok(it.id()),
        false => written.replay(it).map(|known| known.message.id),
    });
    let result = |answer: &Option<Result<Admitted, AdmitError>>| match answer {
        Some(Ok(admitted)) => Ok(admitted.message.id),
        Some(Err(error)) => Err(error.clone()),
        None => pending.next().unwrap_or(Err(AdmitError::Unavailable)),
    };
    answers.iter().map(result).collect()
}
