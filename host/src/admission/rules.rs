//! What rules and scripts say to messages before they are written.

use std::sync::Arc;

use super::{Admission, AdmitError};
use crate::{
    clock,
    domain::{ids::TenantId, message::NewMessage, subject::Subject},
    rules::{
        rulebook::{Known, Rulebook},
        script::{Given, Hook},
        trial::Question,
    },
    script_failures,
    store::message::idempotency_find,
};

impl Admission {
    /// Lets a tenant's rules have their say on messages; for each, what is known of it then, or why it is not taken.
    /// A key that is known is answered as it was, whatever rules say now.
    pub(super) async fn judged(
        &self,
        tenant: TenantId,
        book: &Arc<Rulebook>,
        messages: &mut [NewMessage],
    ) -> Result<Vec<Result<Known, AdmitError>>, AdmitError> {
        let mut judged: Vec<_> = messages.iter_mut().map(|new| self.judge(book, tenant, new)).collect();
        let keyed = |(new, judged): (&NewMessage, &Result<_, _>)| {
            judged.as_ref().err().and_then(|_| Some(new.idempotency.as_ref()?.key.clone()))
        };
        let keys: Vec<_> = messages.iter().zip(&judged).filter_map(keyed).collect();
        if keys.is_empty() {
            return Ok(judged);
        }
        let known = self.known(tenant, &keys).await.map_err(|_| AdmitError::Unavailable)?;
        for (new, judged) in messages.iter().zip(&mut judged).filter(|(_, judged)| judged.is_err()) {
            let key = new.idempotency.as_ref().map(|it| &it.key);
            if key.is_some_and(|key| known.contains(key)) {
                *judged = Ok(Known::default());
            }
        }
        Ok(judged)
    }

    fn judge(&self, book: &Arc<Rulebook>, tenant: TenantId, new: &mut NewMessage) -> Result<Known, AdmitError> {
        let NewMessage { message, subject, .. } = new;
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let question = book.shadows(Hook::Admit).next().map(|_| Question::admit(message));
        let mut judgement = book.admit_as(Subject::with(message, subject.take()), message, &given);
        self.trials.judged(tenant, book, message, &judgement);
        if let Some(question) = question {
            self.trials.ask(tenant, book, question, given);
        }
        for failure in judgement.failures.drain(..) {
            script_failures::report(&self.store, tenant, message.id, &failure, "the message is taken as without it");
        }
        match judgement.refused.take() {
            Some(refused) => Err(AdmitError::Refused(refused)),
            None => Ok(judgement.into()),
        }
    }

    async fn known(&self, tenant: TenantId, keys: &[String]) -> crate::store::Result<Vec<String>> {
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let mut txn = self.store.tenant(tenant).await?;
        Ok(idempotency_find(&mut txn, tenant, &keys).await?.into_iter().map(|it| it.key).collect())
    }
}
