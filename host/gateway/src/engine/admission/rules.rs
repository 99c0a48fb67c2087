//! The answers of rules and scripts to messages before they are written.

use std::{sync::Arc, time::Instant};

use super::{Admission, AdmitError};
use crate::{clock, engine::rule_hooks::RuleHooks, engine::rule_runner::patience, engine::script_failures};
use angarium_domain::{
    ids::{MessageId, TenantId},
    message::NewMessage,
    rule_input::RuleInput,
};
use angarium_rules::{
    question::AdmitQuestion,
    rulebook::{JudgedMessage, MessageJudgement, Rulebook},
    script::Given,
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
        let NewMessage { message, rule_input, .. } = new;
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let input = RuleInput::with(message, rule_input.take()).unaccepted();
        let hooks = RuleHooks { store: &self.store, experiments: &self.experiments, runner: &self.rules };
        let heard = hooks.ask(tenant, book, until, given, &AdmitQuestion { message, input: &input }).await;
        let mut judgement = book.follow(heard, input, message, &given);
        self.experiments.judged(tenant, book, message, &judgement);
        self.report(tenant, message.id, &mut judgement);
        match judgement.refused.take() {
            Some(refused) => Err(AdmitError::Refused(refused)),
            None => Ok(judgement.into()),
        }
    }

    /// Reports what went wrong with rules; failures of scripts are reported where they are asked.
    fn report(&self, tenant: TenantId, message: MessageId, judgement: &mut MessageJudgement) {
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
