//! A rule's answer to the question what follows an attempt: the policy `custom` names the rule.

use std::time::Duration;

/// A rule's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Again after this wait, or after the provider's `Retry-After` if that is longer; no other candidate is asked
    /// before.
    After(Duration),
    /// The next candidate; without one, the policy's `otherwise` applies.
    FallBack,
    /// Nothing more.
    GiveUp,
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        attempt::{FallbackReason, PastAttempt, Trigger},
        delivery::DeliveryState,
        ids::ConnectionId,
        outcome::{Copies, Outcome, RetryInput, decide, host_verdict},
        provider::Disposition,
        retry::{RetryLimits, RetryPolicy},
        route::OnUnknown,
    };

    /// The only rule, `by_code`, answers by the verdict's code.
    fn answer(rule: &str, code: &str) -> Option<RetryDecision> {
        match (rule, code) {
            ("by_code", "fall_back") => Some(RetryDecision::FallBack),
            ("by_code", "give_up") => Some(RetryDecision::GiveUp),
            ("by_code", code) => code.parse().ok().map(Duration::from_millis).map(RetryDecision::After),
            _ => None,
        }
    }

    struct Case {
        rule: &'static str,
        disposition: Disposition,
        another_candidate: bool,
        may_ask_again: bool,
        retry_after_ms: Option<u64>,
    }

    impl Case {
        fn new(disposition: Disposition) -> Self {
            Self { rule: "by_code", disposition, another_candidate: true, may_ask_again: true, retry_after_ms: None }
        }

        fn outcome(&self, code: &str) -> Outcome {
            let now = Timestamp::UNIX_EPOCH;
            let policy =
                RetryPolicy::Custom { rule: self.rule.to_owned(), otherwise: Box::new(RetryPolicy::linear(7_000, 5)) };
            let past = [PastAttempt {
                connection: Some(ConnectionId::new()),
                disposition: self.disposition,
                waits_for_operator: false,
                trigger: Trigger::Scheduled,
                started_at: now,
                round_closed: true,
            }];
            let mut verdict = host_verdict(self.disposition, code, String::new());
            verdict.retry_after_ms = self.retry_after_ms;
            let retry_input = RetryInput {
                policy: &policy,
                limits: RetryLimits { max_elapsed_ms: Some(60_000), ..RetryLimits::default() },
                on_unknown: OnUnknown::Retry,
                another_candidate: self.another_candidate,
                another_in_turn: false,
                past: &past,
                may_ask_again: self.may_ask_again,
                copies: Copies::None,
                first_due: now,
                expires_at: None,
                now,
                chance: 0.0,
            };
            let decision = decide(&verdict, &retry_input);
            let answer = decision.rule.and_then(|rule| answer(rule, code));
            decision.answered(answer, &verdict, &retry_input).outcome
        }
    }

    fn at(ms: i64) -> Outcome {
        Outcome::Retry(Timestamp::from_millisecond(ms).unwrap())
    }

    #[test]
    fn a_rule_decides() {
        let case = Case::new(Disposition::RejectedTransient);
        assert_eq!(case.outcome("1500"), at(1_500), "it waits although another could be asked");
        assert_eq!(case.outcome("fall_back"), Outcome::FallBack(FallbackReason::PrimaryFailed));
        assert_eq!(case.outcome("give_up"), Outcome::End(DeliveryState::Failed));
    }

    #[test]
    fn where_no_rule_answers_the_policy_is_what_it_is_otherwise() {
        let mut case = Case::new(Disposition::RejectedTransient);
        case.another_candidate = false;
        assert_eq!(case.outcome("neither a word nor a number"), at(7_000));
        assert_eq!(case.outcome("fall_back"), at(7_000), "there is nobody to fall back to");
        case.rule = "another";
        assert_eq!(case.outcome("give_up"), at(7_000));
    }

    #[test]
    fn no_rule_moves_what_is_unknown_or_asks_who_refused_for_good() {
        let unknown = Case::new(Disposition::Unknown);
        assert_eq!(unknown.outcome("fall_back"), at(7_000));
        assert_eq!(unknown.outcome("give_up"), Outcome::End(DeliveryState::Unknown));
        let mut refused = Case::new(Disposition::RejectedPermanent);
        (refused.another_candidate, refused.may_ask_again) = (false, false);
        assert_eq!(refused.outcome("1500"), Outcome::End(DeliveryState::Failed));
        assert_eq!(Case::new(Disposition::Accepted).outcome("give_up"), Outcome::Sent);
    }

    #[test]
    fn a_rule_neither_hurries_a_provider_nor_exceeds_the_limits() {
        let mut case = Case::new(Disposition::Throttled);
        case.retry_after_ms = Some(30_000);
        assert_eq!(case.outcome("1500"), at(30_000));
        assert_eq!(case.outcome("60001"), Outcome::End(DeliveryState::Failed));
    }
}
