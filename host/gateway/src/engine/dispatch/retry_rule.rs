//! The script that decides the next step after an attempt, if the route leaves it to one. A failure leaves the retry
//! policy's own decision.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Dispatcher;
use crate::{engine::queue::Work, engine::rule_runner::PATIENCE, node::tenant_config::Endpoint};
use angarium_domain::{
    attempt::Verdict,
    outcome::{RetryDecision, RetryInput},
    rule_input::RuleInput,
};
use angarium_rules::{
    question::RetryQuestion,
    rulebook::Rulebook,
    script::{
        Given, RetryAnswer,
        facts::{AttemptFacts, MessageFacts},
    },
};

/// A script's decision, or its fault; neither if it leaves the decision to the policy.
#[derive(Debug, Default)]
pub(super) struct RetryRuleAnswer {
    pub decision: Option<RetryDecision>,
    pub fault: Option<String>,
}

impl Dispatcher {
    /// Asks the script of this name for the next step.
    pub(super) async fn ask_retry_rule(
        &self,
        work: &Work,
        book: &Arc<Rulebook>,
        rule: &str,
        facts: &AttemptFacts,
        given: Given,
    ) -> RetryRuleAnswer {
        let Work { tenant, message, .. } = work;
        let (until, question) = (Instant::now() + PATIENCE, RetryQuestion { message, script: rule, attempt: facts });
        let decided = |decision| RetryRuleAnswer { decision: Some(decision), fault: None };
        match self.planner.hooks().ask(*tenant, book, until, given, &question).await {
            None | Some(Ok(RetryAnswer::Default)) => RetryRuleAnswer::default(),
            Some(Ok(RetryAnswer::Retry { after })) => decided(RetryDecision::After(after)),
            Some(Ok(RetryAnswer::GiveUp { .. })) => decided(RetryDecision::GiveUp),
            Some(Ok(RetryAnswer::FallBack { .. })) => decided(RetryDecision::FallBack),
            Some(Err(failure)) => RetryRuleAnswer { decision: None, fault: Some(failure.describe()) },
        }
    }
}

/// Returns an attempt as scripts see it.
pub(super) fn attempt_facts(
    work: &Work,
    endpoint: &Endpoint,
    verdict: &Verdict,
    retry_input: &RetryInput<'_>,
) -> AttemptFacts {
    let message = &work.message;
    let made = u32::try_from(retry_input.past.len()).unwrap_or(u32::MAX);
    let policy_wait = retry_input.policy.delay(made, retry_input.chance);
    AttemptFacts {
        number: work.attempts + 1,
        connection: endpoint.name(),
        provider: endpoint.connection.provider.clone(),
        channel: message.first().channel.as_str().to_owned(),
        disposition: verdict.disposition.as_str().to_owned(),
        status: verdict.status,
        code: verdict.code.clone(),
        detail: verdict.detail.clone(),
        retry_after: verdict.retry_after_ms.map(|ms| Duration::from_millis(ms).as_secs_f64()),
        at: Some(retry_input.now),
        policy_wait: policy_wait.map(|wait| wait.as_secs_f64()),
        seconds_since_accepted: retry_input.now.duration_since(message.created_at).as_secs_f64(),
        candidates_left: u32::from(retry_input.another_candidate),
        message: MessageFacts::of(RuleInput::of(message)),
    }
}
