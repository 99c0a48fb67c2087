//! The third stage: may the messages go? The tenant's rules and scripts are asked first, and may change them; then
//! somebody must be able to take them. It sends and stores nothing.

mod content;

use std::{sync::Arc, time::Instant};

use super::{
    Admission, AdmitError,
    intake::{Intake, IntakeMessage, OpenMessage, Purpose},
    resolve::no_route,
};
use crate::{clock, engine::rule_hooks::RuleHooks, engine::script_failures, node::tenant_config::TenantConfig};
use angarium_domain::{
    ids::{MessageId, TenantId},
    rule_input::RuleInput,
};
use angarium_rules::{
    question::AdmitQuestion,
    rulebook::{JudgedMessage, MessageJudgement, Rulebook},
    ruling::MessageRefusal,
    script::Given,
};

impl Admission {
    /// Asks about each open message, and refuses those that may not go.
    pub(super) async fn judge(&self, intake: &mut Intake) {
        let until = intake.patience();
        let (tenant, purpose, config) = (intake.tenant, intake.purpose, Arc::clone(&intake.config));
        for message in &mut intake.messages {
            let IntakeMessage::Open(open) = message else { continue };
            if let Err(error) = self.judge_one(tenant, &config, purpose, until, open).await {
                message.refuse(error);
            }
            // A request may have a thousand messages: others are let through between.
            tokio::task::coop::consume_budget().await;
        }
    }

    async fn judge_one(
        &self,
        tenant: TenantId,
        config: &TenantConfig,
        purpose: Purpose,
        until: Instant,
        open: &mut OpenMessage,
    ) -> Result<(), AdmitError> {
        match (&config.rulebook, purpose) {
            (None, _) => open.judged.input = open.new.rule_input.take(),
            // Boxed, so that a request's future stays small.
            (Some(book), Purpose::Send) => Box::pin(self.ask_rules(tenant, book, until, open)).await?,
            (Some(book), Purpose::Try) => Box::pin(self.try_rules(tenant, book, open)).await?,
        }
        // A dry run shows a message without a route as it is.
        if purpose == Purpose::Send
            && let Some(error) = no_route(config, &open.new.message)
        {
            return Err(error);
        }
        let problems = self.content_problems(tenant, config, &open.new);
        if problems.is_empty() { Ok(()) } else { Err(AdmitError::Content(problems)) }
    }

    /// Asks the tenant's rules and scripts within its time, and follows their answers.
    async fn ask_rules(
        &self,
        tenant: TenantId,
        book: &Arc<Rulebook>,
        until: Instant,
        open: &mut OpenMessage,
    ) -> Result<(), AdmitError> {
        let message = &mut open.new.message;
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let input = RuleInput::with(message, open.new.rule_input.take()).unaccepted();
        let hooks = RuleHooks { store: &self.store, experiments: &self.experiments, runner: &self.rules };
        let heard = hooks.ask(tenant, book, until, given, &AdmitQuestion { message, input: &input }).await;
        let mut judgement = book.follow(heard, input, message, &given);
        self.experiments.judged(tenant, book, message, &judgement);
        self.report(tenant, message.id, &mut judgement);
        unless_refused(judgement.refused.take())?;
        open.judged = JudgedMessage::from(judgement);
        Ok(())
    }

    /// Asks them for a dry run: nothing of it counts.
    async fn try_rules(&self, tenant: TenantId, book: &Rulebook, open: &mut OpenMessage) -> Result<(), AdmitError> {
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let message = &mut open.new.message;
        let ask = || self.rules.as_for_a_message(|| book.rehearsal().admit(message, &given).refused).0;
        unless_refused(self.rules.try_out(tenant, ask).await)
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
}

fn unless_refused(refused: Option<MessageRefusal>) -> Result<(), AdmitError> {
    refused.map_or(Ok(()), |refused| Err(AdmitError::Refused(refused)))
}
