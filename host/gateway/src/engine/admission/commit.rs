//! The last stage: the messages become durable, and only then is a 202 said. Requests share a transaction, those with a
//! claim have one of their own. It refuses nothing but what the database refuses.

pub(super) mod claim;
mod doubt;
mod known;
mod part;
pub(super) mod writer;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use self::known::KnownMessages;
use super::{
    Admission, AdmitError, Admitted,
    intake::{Intake, OpenMessage, RefusedMessage},
};
use crate::engine::small_tenant_priority::PriorityGuard;
use angarium_domain::ids::TenantId;
use angarium_store as store;

/// The time that a transaction waits for the database before its clients are asked to repeat their requests.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// How long a COMMIT without an answer is asked after, beyond that.
const DOUBT: Duration = Duration::from_millis(500);

/// One answer for each message of a request, in order.
pub type Answers = Vec<Result<Admitted, AdmitError>>;

/// The same while some are still open.
type OpenAnswers = Vec<Option<Result<Admitted, AdmitError>>>;

/// The open messages of one request, of one tenant.
pub(super) struct AdmitRequest {
    tenant: TenantId,
    messages: Vec<OpenMessage>,
    answer: oneshot::Sender<Answers>,
    priority_guard: Option<Arc<PriorityGuard>>,
}

impl AdmitRequest {
    fn size(&self) -> usize {
        self.messages.iter().map(|it| it.new.size()).sum()
    }
}

impl Admission {
    /// Writes the open messages, together with those of other requests; one answer for each message, in order.
    pub(super) async fn commit(&self, mut intake: Intake) -> Answers {
        let (open, refused) = intake.take_messages();
        let answers = self.recall(intake.tenant, refused).await;
        if open.is_empty() {
            return filled(answers, Vec::new());
        }
        let count = open.len();
        let began = Instant::now();
        let (answer, answered) = oneshot::channel();
        let priority_guard = intake.priority_guard.take();
        let request = AdmitRequest { tenant: intake.tenant, messages: open, answer, priority_guard };
        let stored = match self.requests.send(request).await {
            Ok(()) => answered.await.unwrap_or_else(|_| unavailable(count)),
            Err(_) => unavailable(count),
        };
        self.time.record(began.elapsed());
        filled(answers, stored)
    }

    /// Returns the answers of refused messages: the first one again where the idempotency key is known. The others stay
    /// open.
    async fn recall(&self, tenant: TenantId, refused: Vec<Option<RefusedMessage>>) -> OpenAnswers {
        let keys: Vec<_> =
            refused.iter().flatten().filter_map(|it| it.key.as_ref()).map(|it| it.key.as_str()).collect();
        let known = match keys.is_empty() {
            true => Ok(KnownMessages::default()),
            false => self.known(tenant, &keys).await,
        };
        let answer = |RefusedMessage { error, key }| match (key, &known) {
            (None, _) => Err(error),
            (Some(_), Err(unknown)) => Err(AdmitError::from(unknown)),
            (Some(key), Ok(known)) => match (known.answer(&key), error) {
                (None, error) | (Some(Err(_)), error @ AdmitError::Invalid(_)) => Err(error),
                (Some(answer), _) => answer,
            },
        };
        refused.into_iter().map(|it| it.map(answer)).collect()
    }

    async fn known(&self, tenant: TenantId, keys: &[&str]) -> store::Result<KnownMessages> {
        let mut txn = self.store.tenant(tenant).await?;
        KnownMessages::load(&mut txn, tenant, keys).await
    }
}

/// Returns all answers: the gaps take the stored messages' in turn.
fn filled(answers: OpenAnswers, stored: Answers) -> Answers {
    let mut stored = stored.into_iter();
    answers.into_iter().map(|it| it.unwrap_or_else(|| stored.next().unwrap_or(Err(AdmitError::Unavailable)))).collect()
}

fn unavailable(count: usize) -> Answers {
    vec![Err(AdmitError::Unavailable); count]
}
