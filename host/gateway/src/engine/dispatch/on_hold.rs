//! A message on hold: a script that may refuse it could not be asked at acceptance. It is asked again before the first
//! attempt, and the message is sent only once it agrees.

use std::time::Instant;

use jiff::Timestamp;

use super::{Dispatcher, readiness::Readiness};
use crate::{clock, engine::queue::Work, engine::rule_runner::PATIENCE, node::tenant_config::TenantConfig};
use angarium_domain::delivery::DeliveryState;
use angarium_rules::{
    question::HoldQuestion,
    rulebook::Heard,
    ruling::{Failed, MessageRefusal, OnHold, Ruling},
    script::Given,
};

impl Dispatcher {
    /// Asks again about a message that waits for it, and was not attempted yet.
    pub(super) async fn asked_again(&self, config: &TenantConfig, work: &Work) -> Readiness {
        let message = &work.message;
        let Some(book) = config.rulebook.as_ref().filter(|_| work.attempts == 0 && Ruling::is_on_hold(message)) else {
            return Readiness::Ready(None);
        };
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let (until, question) = (Instant::now() + PATIENCE, HoldQuestion { message });
        let heard = self.planner.hooks().ask(work.tenant, book, until, given, &question).await;
        let Heard { refused, on_hold, send_at, .. } = heard;
        decided(refused, on_hold, send_at, given.now, message.expires_at)
    }
}

/// If the condition is still unknown, it waits; if it is refused, it ends.
fn decided(
    refused: Option<MessageRefusal>,
    on_hold: Option<OnHold>,
    send_at: Option<Timestamp>,
    now: Timestamp,
    expires_at: Option<Timestamp>,
) -> Readiness {
    let expired = expires_at.is_some_and(|end| end <= now);
    match (refused, on_hold) {
        (Some(MessageRefusal { name, reason, failed: None, .. }), _) => {
            Readiness::Ends(DeliveryState::Failed, "refused_by_rule", format!("`{name}` refuses it: {reason}"))
        }
        (Some(MessageRefusal { name, reason, failed: Some(Failed::Fault), .. }), _) => {
            Readiness::Ends(DeliveryState::Failed, "script_failed", format!("`{name}` could not be asked: {reason}"))
        }
        (_, Some(on_hold)) if expired => {
            let why = format!("`{}` could not be asked before it expired: {}", on_hold.by, on_hold.reason);
            Readiness::Ends(DeliveryState::Expired, "script_failed", why)
        }
        (Some(MessageRefusal { failed: Some(Failed::NoTime), .. }), _) => {
            Readiness::Waits(later(now, send_at, expires_at))
        }
        (None, _) => match send_at.filter(|at| *at > now) {
            Some(at) => Readiness::Waits(later(now, Some(at), expires_at)),
            None => Readiness::Ready(None),
        },
    }
}

/// A second from now at the earliest, and at the message's end at the latest.
fn later(now: Timestamp, send_at: Option<Timestamp>, expires_at: Option<Timestamp>) -> Timestamp {
    let soon = now.checked_add(std::time::Duration::from_secs(1)).unwrap_or(Timestamp::MAX);
    let at = send_at.map_or(soon, |at| at.max(soon));
    expires_at.filter(|end| *end > now).map_or(at, |end| at.min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn it_goes_only_once_it_was_asked() {
        let on_hold = || Some(OnHold { by: "gate".into(), reason: "it threw".into() });
        let refused =
            |failed| Some(MessageRefusal { by: "gate".into(), name: "gate".into(), reason: "no".into(), failed });
        let now = at(100);
        assert_eq!(decided(None, None, None, now, None), Readiness::Ready(None));
        let waits = |expires_at| decided(None, on_hold(), Some(at(160)), now, expires_at);
        assert_eq!(waits(None), Readiness::Waits(at(160)));
        assert_eq!(waits(Some(at(130))), Readiness::Waits(at(130)), "once more at the end");
        assert!(matches!(waits(Some(at(100))), Readiness::Ends(DeliveryState::Expired, ..)));
        for (failed, code) in [(None, "refused_by_rule"), (Some(Failed::Fault), "script_failed")] {
            let ended = decided(refused(failed), None, None, now, None);
            assert!(matches!(&ended, Readiness::Ends(DeliveryState::Failed, its, _) if *its == code), "{ended:?}");
        }
        let busy = decided(refused(Some(Failed::NoTime)), None, None, now, None);
        assert_eq!(busy, Readiness::Waits(at(101)));
    }
}
