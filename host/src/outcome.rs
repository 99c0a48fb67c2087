//! What happens to a delivery after an attempt. Pure: the verdict, the past and the clock go in.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::{
    domain::{
        attempt::{FallbackReason, PastAttempt, Verdict},
        delivery::DeliveryState,
        provider::Disposition,
        retry::RetryPolicy,
        route::OnUnknown,
        transmission::{Fault, FaultKind},
    },
    routing,
};

/// The longest that a provider's `Retry-After` is followed.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(6 * 3600);

/// How long after its first due time a delivery is still tried.
pub const LIFETIME: SignedDuration = SignedDuration::from_hours(72);

/// What happens next.
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

/// What a decision looks at.
#[derive(Debug, Clone)]
pub struct Circumstances<'a> {
    pub policy: &'a RetryPolicy,
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
    pub first_due: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub now: Timestamp,
    /// In 0..1.
    pub chance: f64,
}

/// Decides what follows an attempt.
#[must_use]
pub fn decide(verdict: &Verdict, circumstances: &Circumstances<'_>) -> Outcome {
    match verdict.disposition {
        Disposition::Accepted => Outcome::Sent,
        Disposition::Unknown => match circumstances.on_unknown {
            OnUnknown::Hold => Outcome::End(DeliveryState::Unknown),
            OnUnknown::Retry => retry(verdict, circumstances, DeliveryState::Unknown),
        },
        _ if circumstances.another_candidate => Outcome::FallBack(fallback_reason(verdict.disposition)),
        _ if circumstances.may_ask_again => match retry(verdict, circumstances, DeliveryState::Failed) {
            Outcome::End(DeliveryState::Failed) if circumstances.another_in_turn => {
                Outcome::FallBack(fallback_reason(verdict.disposition))
            }
            outcome => outcome,
        },
        _ => Outcome::End(DeliveryState::Failed),
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

/// The next round's time, or `exhausted` when there is none.
fn retry(verdict: &Verdict, circumstances: &Circumstances<'_>, exhausted: DeliveryState) -> Outcome {
    let Some(delay) = delay(verdict, circumstances) else { return Outcome::End(exhausted) };
    let at = circumstances.now.checked_add(delay).unwrap_or(Timestamp::MAX);
    if circumstances.expires_at.is_some_and(|expires_at| at >= expires_at) {
        // What is unknown stays unknown: expiry must not hide that it may have been sent.
        let end = if exhausted == DeliveryState::Unknown { exhausted } else { DeliveryState::Expired };
        return Outcome::End(end);
    }
    if at.duration_since(circumstances.first_due) > LIFETIME {
        return Outcome::End(exhausted);
    }
    Outcome::Retry(at)
}

fn delay(verdict: &Verdict, circumstances: &Circumstances<'_>) -> Option<Duration> {
    let asked_for = verdict.retry_after_ms.map(|ms| Duration::from_millis(ms).min(LONGEST_RETRY_AFTER));
    let made = routing::rounds_made(circumstances.past);
    let by_policy = if verdict.disposition == Disposition::Throttled {
        // It consumes no attempt, so it never exhausts the policy either.
        Some(circumstances.policy.delay(1, circumstances.chance).unwrap_or(Duration::from_secs(1)))
    } else {
        circumstances.policy.delay(made, circumstances.chance)
    };
    by_policy.map(|by_policy| asked_for.unwrap_or_default().max(by_policy))
}

/// The host's verdict where no definite answer came.
#[must_use]
pub fn judge_fault(fault: &Fault) -> Verdict {
    let (disposition, code) = match fault.kind {
        FaultKind::EgressRefused => (Disposition::RejectedPermanent, "egress_refused"),
        FaultKind::InvalidTransmission => (Disposition::RejectedPermanent, "invalid_transmission"),
        FaultKind::Unauthorized => (Disposition::AuthFailed, "unauthorized"),
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{attempt::Trigger, ids::ConnectionId};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn verdict(disposition: Disposition) -> Verdict {
        host_verdict(disposition, "x", String::new())
    }

    fn past(disposition: Disposition, rounds: usize) -> Vec<PastAttempt> {
        let attempt = PastAttempt {
            connection: Some(ConnectionId::new()),
            disposition,
            trigger: Trigger::Retry,
            round_closed: true,
        };
        vec![attempt; rounds]
    }

    fn after(verdict: &Verdict, change: impl FnOnce(&mut Circumstances<'_>)) -> Outcome {
        after_rounds(1, verdict, change)
    }

    fn after_rounds(rounds: usize, verdict: &Verdict, change: impl FnOnce(&mut Circumstances<'_>)) -> Outcome {
        let past = past(verdict.disposition, rounds);
        let mut circumstances = Circumstances {
            policy: &RetryPolicy::Linear { delay_ms: 1_000, max_attempts: 2 },
            on_unknown: OnUnknown::Retry,
            another_candidate: false,
            another_in_turn: false,
            past: &past,
            may_ask_again: true,
            first_due: NOW,
            expires_at: None,
            now: NOW,
            chance: 0.0,
        };
        change(&mut circumstances);
        decide(verdict, &circumstances)
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
        let outcome = after_rounds(50, &verdict(Disposition::Throttled), |_| ());
        assert_eq!(outcome, Outcome::Retry(at(1_000)));
    }

    #[test]
    fn a_retry_past_the_expiry_is_not_made() {
        let outcome = after(&verdict(Disposition::NotSent), |it| it.expires_at = Some(at(1_000)));
        assert_eq!(outcome, Outcome::End(DeliveryState::Expired));
    }

    #[test]
    fn who_only_waits_for_its_turn_is_asked_before_the_delivery_ends() {
        let waits = |circumstances: &mut Circumstances<'_>| circumstances.another_in_turn = true;
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
