//! The retry budgets: whether a retry begins now, by the remaining budget of each connection on this node. If messages
//! name the endpoint, each origin has a budget of its own: a failing one uses up no other's.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Dispatcher, bounds, connection_permit::PermitRequest};
use crate::{
    clock,
    engine::{planning::EffectiveRoute, queue::Work},
};
use angarium_domain::{
    attempt::{Attempt, Trigger},
    delivery::DeliveryState,
    ids::ConnectionId,
    outcome::{Limit, given_up},
    provider::Disposition,
    retry::budget::{Allowance, MEMORY, RetryBudget},
};

/// The most that are counted; beyond them those that were used lately.
const MOST_ALLOWANCES: usize = 100_000;

/// The remaining retry budgets of this node's connections.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<HashMap<Key, Allowance>>);

/// A connection, and the origin that the message names, if it does.
type Key = (ConnectionId, Option<Box<str>>);

/// A retry that does not begin now.
pub(super) enum Postponed {
    /// It asks again at this time.
    Until(Timestamp),
    /// The delivery's time is up before that.
    Ended(DeliveryState, Limit),
}

impl Dispatcher {
    /// Counts the attempt that is about to begin. A retry for which nothing is left is put off.
    pub(super) fn within_budget(
        &self,
        work: &Work,
        route: &EffectiveRoute<'_>,
        wanted: &PermitRequest,
    ) -> Result<(), Postponed> {
        let budget = &route.spec.retry.limits().budget;
        let Some(wait) = self.budgets.ask(budget, work, wanted) else { return Ok(()) };
        let at = clock::now().checked_add(wait).unwrap_or(Timestamp::MAX);
        let last = work.past.iter().rev().find(|attempt| attempt.connection.is_some());
        Err(match bounds(work, &route.spec).limit(at) {
            None => Postponed::Until(at),
            Some(limit) => {
                let exhausted = given_up(last.map_or(Disposition::NotSent, |attempt| attempt.disposition));
                Postponed::Ended(limit.ends_in(exhausted), limit)
            }
        })
    }

    /// Records the result of an attempt that is not part of the delivery's past yet.
    pub(super) fn spent(&self, work: &Work, route: &EffectiveRoute<'_>, wanted: &PermitRequest, attempt: &Attempt) {
        if attempt.verdict.disposition == Disposition::Accepted && kind(work, wanted.connection) == Kind::Retry {
            self.budgets.accepted(&route.spec.retry.limits().budget, wanted);
        }
    }
}

impl Budgets {
    /// How long the attempt has to wait, if it does.
    fn ask(&self, budget: &RetryBudget, work: &Work, wanted: &PermitRequest) -> Option<Duration> {
        let now = Instant::now();
        let mut known = self.known(now);
        let allowance = known.entry(key(wanted)).or_insert_with(|| Allowance::new(budget, now));
        match kind(work, wanted.connection) {
            Kind::First => {
                allowance.earn(budget, now);
                None
            }
            Kind::Retry => allowance.retry(budget, fastrand::f64(), now).err(),
            Kind::Further => None,
        }
    }

    fn accepted(&self, budget: &RetryBudget, wanted: &PermitRequest) {
        let now = Instant::now();
        if let Some(allowance) = self.known(now).get_mut(&key(wanted)) {
            allowance.accepted(budget, now);
        }
    }

    fn known(&self, now: Instant) -> MutexGuard<'_, HashMap<Key, Allowance>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_ALLOWANCES {
            known.retain(|_, allowance| now.saturating_duration_since(allowance.last_used()) < MEMORY);
        }
        known
    }
}

fn key(wanted: &PermitRequest) -> Key {
    (wanted.connection, wanted.origin.as_deref().map(Into::into))
}

/// An attempt's effect on the budget of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The delivery never asked it before.
    First,
    /// A round of the retry policy begins with it, and it was asked before.
    Retry,
    /// A request to a connection that was asked before, within a round, by hand, or after a lost worker: the budget of
    /// the round's beginning limits these.
    Further,
}

fn kind(work: &Work, connection: ConnectionId) -> Kind {
    let asked_before = work.past.iter().any(|attempt| attempt.connection == Some(connection));
    match (asked_before, work.trigger) {
        (false, _) => Kind::First,
        (true, Trigger::Retry) => Kind::Retry,
        (true, Trigger::Scheduled | Trigger::Fallback | Trigger::Manual | Trigger::Recovery) => Kind::Further,
    }
}
