//! Asks the question of a hook: the live versions or the canary in their place within the tenant's time, then the
//! shadows, whose answers nobody follows. It reports and counts failures, and does not follow the answer itself.

use std::{sync::Arc, time::Instant};

use super::{experiments::Experiments, rule_runner::RuleRunner, script_failures};
use angarium_domain::ids::TenantId;
use angarium_rules::{
    question::HookQuestion,
    rulebook::{Failure, Rulebook},
    script::Given,
};
use angarium_store::Store;

/// Asks rules and scripts, for all hooks.
pub struct RuleHooks<'a> {
    /// Stores the events about scripts that fail.
    pub store: &'a Store,
    pub experiments: &'a Experiments,
    pub runner: &'a RuleRunner,
}

impl RuleHooks<'_> {
    /// Asks a tenant's rules and scripts; the question waits for the tenant's time until `until`.
    pub async fn ask<Q: HookQuestion>(
        &self,
        tenant: TenantId,
        book: &Arc<Rulebook>,
        until: Instant,
        given: Given,
        question: &Q,
    ) -> Q::Answer {
        let serving = question.serving(book);
        let ask = || question.ask(&serving, &given);
        let answer = match serving.runs(question.hook()) {
            true => self.runner.ask_once(tenant, until, ask).await,
            false => self.runner.ask(tenant, until, ask).await,
        };
        drop(serving);
        let failures = question.failures(&answer);
        for failure in failures {
            let (message, instead) = (question.message().id, question.instead(&answer));
            self.experiments.failed(tenant, book, &question.canaries(&answer), &failure.script);
            script_failures::report(self.store, tenant, message, failure, instead);
        }
        // A question that went unasked is asked again later, or never mattered.
        if !failures.iter().any(Failure::had_no_time) {
            self.ask_shadows(tenant, book, given, question);
        }
        answer
    }

    fn ask_shadows<Q: HookQuestion>(&self, tenant: TenantId, book: &Arc<Rulebook>, given: Given, question: &Q) {
        let mut shadows = book.shadows(question.hook());
        let any = shadows.any(|it| question.script().is_none_or(|script| it.subject == script));
        if any && let Some(for_shadows) = question.for_shadows() {
            self.experiments.ask(tenant, book, for_shadows, given);
        }
    }
}
