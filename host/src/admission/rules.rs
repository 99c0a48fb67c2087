//! What rules and scripts say to messages before they are written.

use std::sync::Arc;

use super::{Admission, AdmitError};
use crate::{
    clock,
    directory::TenantConfig,
    domain::{ids::TenantId, message::NewMessage, subject::Subject},
    rules::{
        rulebook::{Judgement, Rulebook},
        script::{Given, Hook},
        trial::Question,
    },
    script_failures,
    store::message::idempotency_find,
};

impl Admission {
    /// Lets a tenant's rules have their say on messages; for each, why it is not taken. A key that is known is
    /// answered as it was, whatever rules say now.
    pub(super) async fn refused(
        &self,
        tenant: TenantId,
        config: &TenantConfig,
        messages: &mut [NewMessage],
    ) -> Result<Vec<Option<AdmitError>>, AdmitError> {
        let Some(book) = &config.rulebook else { return Ok(vec![None; messages.len()]) };
        let mut refusals: Vec<_> = messages.iter_mut().map(|new| self.judged(book, tenant, new)).collect();
        let keyed = |(new, refusal): (&NewMessage, &Option<AdmitError>)| {
            refusal.as_ref().and_then(|_| Some(new.idempotency.as_ref()?.key.clone()))
        };
        let keys: Vec<_> = messages.iter().zip(&refusals).filter_map(keyed).collect();
        if keys.is_empty() {
            return Ok(refusals);
        }
        let known = self.known(tenant, &keys).await.map_err(|_| AdmitError::Unavailable)?;
        for (new, refusal) in messages.iter().zip(&mut refusals) {
            let key = new.idempotency.as_ref().map(|it| &it.key);
            if key.is_some_and(|key| known.contains(key)) {
                *refusal = None;
            }
        }
        Ok(refusals)
    }

    fn judged(&self, book: &Arc<Rulebook>, tenant: TenantId, new: &mut NewMessage) -> Option<AdmitError> {
        let NewMessage { message, subject, .. } = new;
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let question = book.shadows(Hook::Admit).next().map(|_| Question::admit(message));
        let judgement = book.admit_as(Subject::with(message, subject.take()), message, &given);
        self.trials.judged(tenant, book, message, &judgement);
        if let Some(question) = question {
            self.trials.ask(tenant, book, question, given);
        }
        let Judgement { refused, failures, subject: now, .. } = judgement;
        *subject = now;
        for failure in failures {
            script_failures::report(&self.store, tenant, message.id, &failure, "the message is taken as without it");
        }
        refused.map(AdmitError::Refused)
    }

    async fn known(&self, tenant: TenantId, keys: &[String]) -> crate::store::Result<Vec<String>> {
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let mut txn = self.store.tenant(tenant).await?;
        Ok(idempotency_find(&mut txn, tenant, &keys).await?.into_iter().map(|it| it.key).collect())
    }
}
