//! The decision after an attempt. Pure: the verdict, the past and the clock are arguments.

mod limit;
mod retry_decision;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub use self::{
    limit::{Bounds, Limit},
    retry_decision::RetryDecision,
};
use crate::{
    attempt::{FallbackReason, HOST_NOT_GRANTED, PastAttempt, SECRET_UNAVAILABLE, Verdict},
    delivery::DeliveryState,
    provider::Disposition,
    retry::{LONGEST_ELAPSED_MS, RetryLimits, RetryPolicy},
    route::OnUnknown,
    routing,
    transmission::{Fault, FaultKind},
};

/// The longest that a provider's `Retry-After` is followed.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(6 * 3600);

/// The longest time between two checks whether the operator has removed the cause of a wait.
pub const LONGEST_WAIT_FOR_OPERATOR: Duration = Duration::from_secs(300);

/// How long after its first due time a delivery is still tried.
pub const LIFETIME: SignedDuration = SignedDuration::from_millis(LONGEST_ELAPSED_MS as i64);

/// The next step of a delivery.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The provider took it.
    Sent,
    /// The next candidate is asked at once.
    FallBack(FallbackReason),
    /// Again at this time.
    Retry(Timestamp),
    /// Nothing more of the gateway's own accord.
    End(DeliveryState),
}

impl Outcome {
    /// The state it leaves the delivery in; `None` while it is still being worked on.
    #[must_use]
    pub const fn state(&self) -> Option<DeliveryState> {
        match self {
            Self::Sent => Some(DeliveryState::Sent),
            Self::FallBack(_) => None,
            Self::Retry(_) => Some(DeliveryState::Queued),
            Self::End(state) => Some(*state),
        }
    }
}

/// How the copies of a mail stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Copies {
    /// There are none, or the recipient of the `To` header has not got the mail.
    #[default]
    None,
    /// The recipient has it, and no copy waits.
    Settled,
    /// That recipient has it, and some copies were refused for now.
    Waiting,
    /// As `Waiting`, and a further transaction may take some of them at once.
    Further,
}

/// The input of a retry decision.
#[derive(Debug, Clone)]
pub struct RetryInput<'a> {
    pub policy: &'a RetryPolicy,
    pub limits: RetryLimits,
    pub on_unknown: OnUnknown,
    /// Whether another candidate can be asked in this round.
    pub another_candidate: bool,
    /// Whether another one of this round only waits for its turn: it is asked before the delivery
    /// ends.
    pub another_in_turn: bool,
    /// The attempts that count, this one last.
    pub past: &'a [PastAttempt],
    /// Whether a later round can ask anybody: some candidate did not refuse for good.
    pub may_ask_again: bool,
    pub copies: Copies,
    pub first_due: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub now: Timestamp,
    /// In 0..1.
    pub chance: f64,
}

impl RetryInput<'_> {
    /// Returns the time limits of a retry.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        Bounds {
            expires_at: self.expires_at,
            first_due: self.first_due,
            first_attempt: self.past.first().map(|it| it.started_at),
            max_elapsed_ms: self.limits.max_elapsed_ms,
        }
    }
}

/// The next step after an attempt, and the limit of time that ends the delivery, if one does.
#[derive(Debug, Clone, PartialEq)]
pub struct NextStep {
    pub outcome: Outcome,
    pub limit: Option<Limit>,
}

impl From<Outcome> for NextStep {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, limit: None }
    }
}

/// The decision after an attempt: without a rule's answer, and open for one.
#[derive(Debug, Clone, PartialEq)]
pub struct AfterAttempt<'a> {
    /// The step by the policy alone.
    pub by_policy: NextStep,
    /// The rule that the policy leaves the decision to; `None` if no rule is to be asked.
    pub rule: Option<&'a str>,
}

impl AfterAttempt<'_> {
    /// Returns the step once the rule has answered; without an answer it is the policy's.
    #[must_use]
    pub fn answered(self, answer: Option<RetryDecision>, verdict: &Verdict, retry_input: &RetryInput<'_>) -> NextStep {
        match answer.filter(|_| self.rule.is_some()) {
            Some(decision) => follow(decision, verdict, retry_input).unwrap_or(self.by_policy),
            None => self.by_policy,
        }
    }
}

/// Decides the next step after an attempt.
#[must_use]
pub fn decide<'a>(verdict: &Verdict, retry_input: &RetryInput<'a>) -> AfterAttempt<'a> {
    let held = retry_input.on_unknown == OnUnknown::Hold;
    let step = |by_policy: NextStep| AfterAttempt { by_policy, rule: None };
    match (verdict.disposition, retry_input.copies) {
        (_, Copies::Settled) | (Disposition::Accepted, Copies::None) => step(Outcome::Sent.into()),
        (Disposition::Unknown, _) if held => step(Outcome::End(DeliveryState::Unknown).into()),
        (_, Copies::Further) => step(retry(Duration::ZERO, verdict, retry_input)),
        // No policy of the tenant's can say how long the operator takes.
        _ if verdict.waits_for_operator() => step(by_policy(verdict, retry_input)),
        _ => AfterAttempt { by_policy: by_policy(verdict, retry_input), rule: rule_of(retry_input.policy) },
    }
}

fn rule_of(policy: &RetryPolicy) -> Option<&str> {
    match policy {
        RetryPolicy::Custom { rule, .. } => Some(rule),
        RetryPolicy::None
        | RetryPolicy::Linear { .. }
        | RetryPolicy::Exponential { .. }
        | RetryPolicy::Schedule { .. } => None,
    }
}

fn by_policy(verdict: &Verdict, retry_input: &RetryInput<'_>) -> NextStep {
    let exhausted = given_up(last_word(verdict, retry_input));
    let fall_back = || NextStep::from(Outcome::FallBack(fallback_reason(verdict.disposition)));
    if exhausted != DeliveryState::Unknown {
        // A server that took the mail for one recipient is asked again: others would defer its copies as well.
        if retry_input.another_candidate && verdict.disposition != Disposition::Accepted {
            return fall_back();
        }
        if !retry_input.may_ask_again {
            return Outcome::End(exhausted).into();
        }
    }
    let step = match delay(verdict, retry_input) {
        Some(delay) => retry(delay, verdict, retry_input),
        None => Outcome::End(exhausted).into(),
    };
    let failed = step.outcome == Outcome::End(DeliveryState::Failed);
    if failed && retry_input.another_in_turn { fall_back() } else { step }
}

/// Applies a rule's answer within the limits of every policy: an unknown delivery does not move, a candidate that
/// refused for good is not asked, and a provider's `Retry-After` is respected. `None` if the policy decides after all.
fn follow(decision: RetryDecision, verdict: &Verdict, retry_input: &RetryInput<'_>) -> Option<NextStep> {
    let unknown = verdict.disposition == Disposition::Unknown;
    match decision {
        RetryDecision::GiveUp => Some(Outcome::End(given_up(verdict.disposition)).into()),
        RetryDecision::After(delay) if unknown || retry_input.may_ask_again => {
            Some(retry(delay.max(asked_for(verdict)), verdict, retry_input))
        }
        RetryDecision::After(_) | RetryDecision::FallBack => None,
    }
}

/// Returns the state of a delivery after an answer of this kind, once nothing more is tried.
#[must_use]
pub const fn given_up(last: Disposition) -> DeliveryState {
    match last {
        Disposition::Unknown => DeliveryState::Unknown,
        Disposition::Accepted
        | Disposition::RejectedPermanent
        | Disposition::RejectedTransient
        | Disposition::Throttled
        | Disposition::AuthFailed
        | Disposition::NotSent => DeliveryState::Failed,
    }
}

/// Why another candidate is asked after such an answer.
#[must_use]
pub const fn fallback_reason(disposition: Disposition) -> FallbackReason {
    match disposition {
        Disposition::Throttled => FallbackReason::RateLimited,
        Disposition::NotSent => FallbackReason::ProviderUnavailable,
        Disposition::Accepted
        | Disposition::RejectedPermanent
        | Disposition::RejectedTransient
        | Disposition::AuthFailed
        | Disposition::Unknown => FallbackReason::PrimaryFailed,
    }
}

/// Returns the disposition of the last attempt that asked a provider. An attempt that waited for the operator says
/// nothing about an earlier unknown request.
fn last_word(verdict: &Verdict, retry_input: &RetryInput<'_>) -> Disposition {
    let asked = || retry_input.past.iter().rev().find(|attempt| !attempt.waits_for_operator);
    match verdict.waits_for_operator() {
        true => asked().map_or(verdict.disposition, |attempt| attempt.disposition),
        false => verdict.disposition,
    }
}

/// The next round after this wait, unless the time is up by then.
fn retry(wait: Duration, verdict: &Verdict, retry_input: &RetryInput<'_>) -> NextStep {
    let at = retry_input.now.checked_add(wait).unwrap_or(Timestamp::MAX);
    match retry_input.bounds().limit(at) {
        None => Outcome::Retry(at).into(),
        Some(limit) => {
            let state = limit.ends_in(given_up(last_word(verdict, retry_input)));
            NextStep { outcome: Outcome::End(state), limit: Some(limit) }
        }
    }
}

/// How long the policy waits, or `None` when nothing more is tried.
fn delay(verdict: &Verdict, retry_input: &RetryInput<'_>) -> Option<Duration> {
    if verdict.waits_for_operator() {
        return Some(wait_for_operator(retry_input));
    }
    let made = routing::rounds_made(retry_input.past);
    let by_policy = if verdict.disposition == Disposition::Throttled {
        // It consumes no attempt, so it never exhausts the policy either: time ends it.
        Some(retry_input.policy.throttled_delay(routing::rounds_walked(retry_input.past), retry_input.chance))
    } else {
        retry_input.policy.delay(made, retry_input.chance)
    };
    by_policy.map(|by_policy| asked_for(verdict).max(by_policy))
}

/// The wait for the operator: a second, twice as long each time, up to [`LONGEST_WAIT_FOR_OPERATOR`]. The tenant's
/// policy is about providers, and would either give up or ask many times a second.
fn wait_for_operator(retry_input: &RetryInput<'_>) -> Duration {
    let waits = retry_input.past.iter().rev().take_while(|attempt| attempt.waits_for_operator).count();
    let doublings = u32::try_from(waits.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let wait = Duration::from_secs(1 << doublings).min(LONGEST_WAIT_FOR_OPERATOR);
    wait.mul_f64(1.0 - retry_input.chance / 10.0)
}

/// The wait that the provider asks for.
fn asked_for(verdict: &Verdict) -> Duration {
    verdict.retry_after_ms.map(|ms| Duration::from_millis(ms).min(LONGEST_RETRY_AFTER)).unwrap_or_default()
}

/// The host's verdict where no definite answer came.
#[must_use]
pub fn judge_fault(fault: &Fault) -> Verdict {
    let (disposition, code) = match fault.kind {
        FaultKind::EgressRefused => (Disposition::RejectedPermanent, "egress_refused"),
        FaultKind::InvalidTransmission => (Disposition::RejectedPermanent, "invalid_transmission"),
        FaultKind::Unauthorized => (Disposition::AuthFailed, "unauthorized"),
        FaultKind::SecretUnavailable => (Disposition::NotSent, SECRET_UNAVAILABLE),
        FaultKind::HostNotGranted => (Disposition::NotSent, HOST_NOT_GRANTED),
        FaultKind::Dns => (Disposition::NotSent, "dns"),
        FaultKind::Connect => (Disposition::NotSent, "connect"),
        FaultKind::Tls => (Disposition::NotSent, "tls"),
        FaultKind::Timeout => (Disposition::NotSent, "timeout"),
        FaultKind::Reset => (Disposition::NotSent, "reset"),
        FaultKind::UnreadableAnswer => (Disposition::NotSent, "unreadable_answer"),
    };
    let disposition = if fault.may_have_been_sent { Disposition::Unknown } else { disposition };
    host_verdict(disposition, code, fault.detail.clone())
}

/// A verdict of the host's own, in its vocabulary.
#[must_use]
pub fn host_verdict(disposition: Disposition, code: &str, detail: String) -> Verdict {
    Verdict {
        disposition,
        status: None,
        code: code.to_owned(),
        unified_code: code.to_owned(),
        detail,
        external_id: None,
        retry_after_ms: None,
        cost: None,
        units: None,
        overridden: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{attempt::Trigger, ids::ConnectionId};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn verdict(disposition: Disposition) -> Verdict {
        host_verdict(disposition, "x", String::new())
    }

    fn past(disposition: Disposition, rounds: usize) -> Vec<PastAttempt> {
        let attempt = PastAttempt {
            connection: Some(ConnectionId::new()),
            disposition,
            waits_for_operator: false,
            trigger: Trigger::Retry,
            started_at: NOW,
            round_closed: true,
        };
        vec![attempt; rounds]
    }

    fn after(verdict: &Verdict, change: impl FnOnce(&mut RetryInput<'_>)) -> Outcome {
        after_rounds(1, verdict, change)
    }

    fn after_rounds(rounds: usize, verdict: &Verdict, change: impl FnOnce(&mut RetryInput<'_>)) -> Outcome {
        let past = past(verdict.disposition, rounds);
        let mut retry_input = RetryInput {
            policy: &RetryPolicy::linear(1_000, 2),
            on_unknown: OnUnknown::Retry,
            another_candidate: false,
            another_in_turn: false,
            past: &past,
            may_ask_again: true,
            copies: Copies::None,
            first_due: NOW,
            expires_at: None,
            limits: RetryLimits::default(),
            now: NOW,
            chance: 0.0,
        };
        change(&mut retry_input);
        decide(verdict, &retry_input).by_policy.outcome
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn only_what_certainly_was_not_taken_falls_back() {
        use Disposition::*;
        for disposition in [RejectedPermanent, RejectedTransient, Throttled, AuthFailed, NotSent] {
            let outcome = after(&verdict(disposition), |it| it.another_candidate = true);
            assert!(matches!(outcome, Outcome::FallBack(_)), "{disposition:?}: {outcome:?}");
        }
        let outcome = after(&verdict(Unknown), |it| it.another_candidate = true);
        assert_eq!(outcome, Outcome::Retry(at(1_000)));
    }

    #[test]
    fn an_unknown_is_held_when_the_route_says_so() {
        let outcome = after(&verdict(Disposition::Unknown), |it| it.on_unknown = OnUnknown::Hold);
        assert_eq!(outcome, Outcome::End(DeliveryState::Unknown));
    }

    #[test]
    fn an_exhausted_policy_ends_in_failed_but_an_unknown_stays_unknown() {
        let outcome = after_rounds(2, &verdict(Disposition::RejectedTransient), |_| ());
        assert_eq!(outcome, Outcome::End(DeliveryState::Failed));
        let outcome = after_rounds(2, &verdict(Disposition::Unknown), |_| ());
        assert_eq!(outcome, Outcome::End(DeliveryState::Unknown));
    }

    #[test]
    fn a_retry_after_is_followed_and_capped() {
        let mut slow = verdict(Disposition::RejectedTransient);
        slow.retry_after_ms = Some(7_000);
        assert_eq!(after(&slow, |_| ()), Outcome::Retry(at(7_000)));
        slow.retry_after_ms = Some(u64::MAX);
        assert_eq!(after(&slow, |_| ()), Outcome::Retry(at(LONGEST_RETRY_AFTER.as_millis() as i64)));
    }

    #[test]
    fn a_throttled_delivery_consumes_no_attempt() {
        let throttled = verdict(Disposition::Throttled);
        let outcomes = [1, 2, 5, 50].map(|rounds| after_rounds(rounds, &throttled, |_| ()));
        assert_eq!(
            outcomes,
            [1_000, 2_000, 16_000, 600_000].map(|ms| Outcome::Retry(at(ms))),
            "it waits longer each time"
        );
        let limits = RetryLimits { max_elapsed_ms: Some(60_000), ..RetryLimits::default() };
        let outcome = after_rounds(50, &throttled, |it| it.limits = limits);
        assert_eq!(outcome, Outcome::End(DeliveryState::Failed), "an end by time");
    }

    #[test]
    fn what_only_the_operator_can_mend_consumes_no_attempt_and_is_asked_for_less_and_less() {
        let lacking = host_verdict(Disposition::NotSent, SECRET_UNAVAILABLE, String::new());
        let waits = |rounds: usize| {
            let mut past = past(Disposition::NotSent, rounds);
            past.iter_mut().for_each(|attempt| attempt.waits_for_operator = true);
            after(&lacking, |it| it.past = past.leak())
        };
        assert_eq!([waits(1), waits(2), waits(5)], [at(1_000), at(2_000), at(16_000)].map(Outcome::Retry));
        assert_eq!(waits(200), Outcome::Retry(at(300_000)), "the policy has two attempts");
        let outcome = after(&lacking, |it| it.another_candidate = true);
        assert_eq!(outcome, Outcome::FallBack(FallbackReason::ProviderUnavailable));
        let outcome = after(&lacking, |it| it.limits.max_elapsed_ms = Some(999));
        assert_eq!(outcome, Outcome::End(DeliveryState::Failed), "not beyond the delivery's time");
    }

    #[test]
    fn copies_are_tried_again_and_never_make_a_failure_of_a_mail_that_was_sent() {
        let sent = verdict(Disposition::Accepted);
        let with = |copies, verdict: &Verdict, rounds| after_rounds(rounds, verdict, |it| it.copies = copies);
        assert_eq!(with(Copies::None, &sent, 1), Outcome::Sent);
        assert_eq!(with(Copies::Settled, &sent, 1), Outcome::Sent);
        assert_eq!(with(Copies::Waiting, &sent, 1), Outcome::Retry(at(1_000)));
        assert_eq!(with(Copies::Further, &sent, 9), Outcome::Retry(NOW), "a further transaction is no retry");
        let refused = verdict(Disposition::RejectedTransient);
        assert_eq!(with(Copies::Waiting, &refused, 1), Outcome::Retry(at(1_000)));
        assert_eq!(with(Copies::Settled, &verdict(Disposition::RejectedPermanent), 1), Outcome::Sent);
        let lost = after(&verdict(Disposition::Unknown), |it| {
            (it.copies, it.on_unknown) = (Copies::Waiting, OnUnknown::Hold);
        });
        assert_eq!(lost, Outcome::End(DeliveryState::Unknown), "a copy may have come: a person looks");
    }

    #[test]
    fn a_server_that_took_the_mail_is_asked_for_its_copies_again() {
        let another = |it: &mut RetryInput<'_>| (it.copies, it.another_candidate) = (Copies::Waiting, true);
        assert_eq!(after(&verdict(Disposition::Accepted), another), Outcome::Retry(at(1_000)));
        assert!(matches!(after(&verdict(Disposition::NotSent), another), Outcome::FallBack(_)));
    }

    #[test]
    fn a_retry_past_the_expiry_is_not_made() {
        let outcome = after(&verdict(Disposition::NotSent), |it| it.expires_at = Some(at(1_000)));
        assert_eq!(outcome, Outcome::End(DeliveryState::Expired));
    }

    #[test]
    fn a_retry_that_would_begin_too_late_is_not_made() {
        let limited = |ms| RetryLimits { max_elapsed_ms: Some(ms), ..RetryLimits::default() };
        for disposition in [Disposition::RejectedTransient, Disposition::Throttled, Disposition::NotSent] {
            let outcome = after(&verdict(disposition), |it| it.limits = limited(1_000));
            assert_eq!(outcome, Outcome::Retry(at(1_000)), "just in time");
            let outcome = after(&verdict(disposition), |it| it.limits = limited(999));
            assert_eq!(outcome, Outcome::End(DeliveryState::Failed), "{disposition:?}");
        }
        let outcome = after(&verdict(Disposition::Unknown), |it| it.limits = limited(999));
        assert_eq!(outcome, Outcome::End(DeliveryState::Unknown));
        let outcome = after(&verdict(Disposition::NotSent), |it| {
            (it.limits, it.another_candidate) = (limited(1), true);
        });
        assert!(matches!(outcome, Outcome::FallBack(_)), "whom it falls back to is asked at once");
    }

    #[test]
    fn a_retry_after_beyond_the_time_limit_ends_it_and_says_so() {
        let mut slow = verdict(Disposition::Throttled);
        slow.retry_after_ms = Some(60_000);
        let past = past(slow.disposition, 1);
        let retry_input = RetryInput {
            policy: &RetryPolicy::None,
            on_unknown: OnUnknown::Retry,
            another_candidate: false,
            another_in_turn: false,
            past: &past,
            may_ask_again: true,
            copies: Copies::None,
            first_due: NOW,
            expires_at: None,
            limits: RetryLimits { max_elapsed_ms: Some(59_999), ..RetryLimits::default() },
            now: NOW,
            chance: 0.0,
        };
        let ended =
            NextStep { outcome: Outcome::End(DeliveryState::Failed), limit: Some(Limit::MaxElapsed { ms: 59_999 }) };
        assert_eq!(decide(&slow, &retry_input).by_policy, ended);
        let refused = verdict(Disposition::RejectedPermanent);
        let retry_input = RetryInput { may_ask_again: false, ..retry_input };
        assert_eq!(decide(&refused, &retry_input).by_policy.limit, None, "it was not the time");
    }

    #[test]
    fn who_only_waits_for_its_turn_is_asked_before_the_delivery_ends() {
        let waits = |retry_input: &mut RetryInput<'_>| retry_input.another_in_turn = true;
        let refused = verdict(Disposition::RejectedTransient);
        assert_eq!(after(&refused, waits), Outcome::Retry(at(1_000)));
        assert_eq!(after_rounds(2, &refused, waits), Outcome::FallBack(FallbackReason::PrimaryFailed));
    }

    #[test]
    fn a_refusal_by_all_ends_at_once() {
        let outcome = after(&verdict(Disposition::RejectedPermanent), |it| it.may_ask_again = false);
        assert_eq!(outcome, Outcome::End(DeliveryState::Failed));
    }

    #[test]
    fn a_fault_after_the_first_byte_is_unknown() {
        let fault = |kind, may_have_been_sent| Fault { kind, detail: String::new(), may_have_been_sent };
        assert_eq!(judge_fault(&fault(FaultKind::Timeout, true)).disposition, Disposition::Unknown);
        assert_eq!(judge_fault(&fault(FaultKind::Timeout, false)).disposition, Disposition::NotSent);
        assert_eq!(judge_fault(&fault(FaultKind::EgressRefused, false)).disposition, Disposition::RejectedPermanent);
    }
}
