//! The condition of a message that names a script: it is asked before the first attempt, and again later while it does
//! not hold.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

use super::{Dispatcher, readiness::Readiness};
use crate::{
    clock, engine::queue::Work, engine::rule_runner::PATIENCE, node::telemetry, node::tenant_config::TenantConfig,
};
use angarium_domain::delivery::DeliveryState;
use angarium_rules::{
    question::ConditionQuestion,
    script::{Given, facts::ContextFacts},
};

impl Dispatcher {
    /// Asks a delivery's condition, if it has one and was not attempted yet.
    pub(super) async fn condition(&self, config: &TenantConfig, work: &Work) -> Readiness {
        let message = &work.message;
        let Some(script) = message.body.condition.as_deref().filter(|_| work.attempts == 0) else {
            return Readiness::Ready(None);
        };
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let context = ContextFacts::of(message);
        let question = ConditionQuestion { message, script, context: &context };
        let answer = match &config.rulebook {
            Some(book) => {
                let until = Instant::now() + PATIENCE;
                self.planner.hooks().ask(work.tenant, book, until, given, &question).await
            }
            None => None,
        };
        let readiness = match answer {
            Some(Ok(true)) => Readiness::Ready(None),
            Some(Ok(false)) => again(script, message.expires_at, given.now, self.condition_pause),
            // A moment later there may be time to ask.
            Some(Err(failure)) if failure.had_no_time() => {
                again(script, message.expires_at, given.now, self.condition_pause)
            }
            Some(Err(failure)) => Readiness::Ready(Some(failure.describe())),
            None => Readiness::Ready(Some(format!("the condition `{script}` is not in service: it went without"))),
        };
        if matches!(readiness, Readiness::Waits(_)) {
            telemetry::condition_waits();
        }
        readiness
    }
}

fn again(script: &str, expires_at: Option<Timestamp>, now: Timestamp, pause: SignedDuration) -> Readiness {
    if expires_at.is_some_and(|end| end <= now) {
        let why = format!("the condition `{script}` did not hold before it expired");
        return Readiness::Ends(DeliveryState::Expired, "condition_not_met", why);
    }
    let next = now.checked_add(pause).unwrap_or(Timestamp::MAX);
    Readiness::Waits(expires_at.map_or(next, |end| next.min(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_asked_again_until_it_expires() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let asked =
            |expires_at: Option<i64>, now| again("open", expires_at.map(at), at(now), SignedDuration::from_secs(30));
        assert_eq!(asked(None, 100), Readiness::Waits(at(130)));
        assert_eq!(asked(Some(200), 100), Readiness::Waits(at(130)));
        assert_eq!(asked(Some(110), 100), Readiness::Waits(at(110)), "once more at the end");
        let expired = asked(Some(110), 110);
        assert!(matches!(&expired, Readiness::Ends(DeliveryState::Expired, _, why) if why.contains("`open`")));
    }
}
