//! The answers of rules and scripts to messages before they are written.

use std::{sync::Arc, time::Instant};

use super::{Admission, AdmitError};
use crate::{clock, engine::rule_runner::patience, engine::script_failures};
use angarium_domain::{
    ids::{MessageId, TenantId},
    message::NewMessage,
    rule_input::RuleInput,
};
use angarium_rules::{
    experiment::ShadowQuestion,
    rulebook::{JudgedMessage, MessageJudgement, Rulebook},
    script::{Given, Hook},
};
use angarium_store::message::idempotency_find;

impl Admission {
    /// Asks a tenant's rules about messages; returns for each its parsed data, or the reason for its refusal.
    pub(super) async fn judged(
        &self,
        tenant: TenantId,
        book: &Arc<Rulebook>,
        messages: &mut [NewMessage],
    ) -> Result<Vec<Result<JudgedMessage, AdmitError>>, AdmitError> {
        let until = patience(messages.len());
        let mut judged = Vec::with_capacity(messages.len());
        for new in &mut *messages {
            judged.push(self.judge(book, tenant, new, until).await);
            // A request may have a thousand messages: others are let through between.
            tokio::task::coop::consume_budget().await;
        }
        Ok(judged)
    }

    /// Lets a refused message with a known key pass: it returns its first answer.
    pub(super) async fn excuse_known(
        &self,
        tenant: TenantId,
        messages: &[NewMessage],
        judged: &mut [Result<JudgedMessage, AdmitError>],
    ) -> Result<(), AdmitError> {
        let keyed = |(new, judged): (&NewMessage, &Result<_, _>)| {
            judged.as_ref().err().and_then(|_| Some(new.idempotency.as_ref()?.key.clone()))
        };
        let keys: Vec<_> = messages.iter().zip(&*judged).filter_map(keyed).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let known = self.known(tenant, &keys).await.map_err(|_| AdmitError::Unavailable)?;
        for (new, judged) in messages.iter().zip(judged).filter(|(_, judged)| judged.is_err()) {
            let key = new.idempotency.as_ref().map(|it| &it.key);
            if key.is_some_and(|key| known.contains(key)) {
                *judged = Ok(JudgedMessage::default());
            }
        }
        Ok(())
    }

    async fn judge(
        &self,
        book: &Arc<Rulebook>,
        tenant: TenantId,
        new: &mut NewMessage,
        until: Instant,
    ) -> Result<JudgedMessage, AdmitError> {
        let NewMessage { message, subject, .. } = new;
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let question = book.shadows(Hook::Admit).next().map(|_| ShadowQuestion::admit(message));
        let subject = RuleInput::with(message, subject.take()).unaccepted();
        let heard = self.rules.ask(tenant, until, || book.hear(&subject, message, &given)).await;
        let mut judgement = book.follow(heard, subject, message, &given);
        self.experiments.judged(tenant, book, message, &judgement);
        if let Some(question) = question {
            self.experiments.ask(tenant, book, question, given);
        }
        self.report(tenant, message.id, &mut judgement);
        match judgement.refused.take() {
            Some(refused) => Err(AdmitError::Refused(refused)),
            None => Ok(judgement.into()),
        }
    }

    fn report(&self, tenant: TenantId, message: MessageId, judgement: &mut MessageJudgement) {
        let closed = judgement.refused.is_some() || judgement.ruling.on_hold.is_some();
        let instead = if closed { "the message is not let through" } else { "the message is taken as without it" };
        for failure in judgement.failures.drain(..) {
            script_failures::report(&self.store, tenant, message, &failure, instead);
        }
        for failure in judgement.failed_rules.drain(..) {
            script_failures::report_rule(&self.store, tenant, message, &failure);
        }
        if let Some(ended) = &judgement.ruling.ended {
            script_failures::report_end(&self.store, tenant, message, ended, self.rules.is_news(tenant));
        }
    }

    async fn known(&self, tenant: TenantId, keys: &[String]) -> angarium_store::Result<Vec<String>> {
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let mut txn = self.store.tenant(tenant).await?;
        Ok(idempotency_find(&mut txn, tenant, &keys).await?.into_iter().map(|it| it.key).collect())
    }
}
