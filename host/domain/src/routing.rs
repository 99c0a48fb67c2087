//! Routing: the order of a route's candidates for a delivery. Pure: the route, the candidates' states and the
//! delivery's past are arguments, and the result is a plan with its reasons. Nothing here does I/O; time, turn and
//! chance are arguments.

mod accept_time_plan;
mod highest_reliability;
mod least_cost;
mod primary;
#[cfg(test)]
mod properties;
mod round_robin;
mod threshold;
mod weighted_random;

use std::borrow::Cow;

use serde::Serialize;

pub use self::accept_time_plan::AcceptTimePlan;
use crate::{
    attempt::{FallbackReason, PastAttempt, Trigger},
    ids::ConnectionId,
    provider::{Cost, Disposition},
    route::{Candidate, RouteSpec, Strategy},
};

/// The known state of a route's candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct CandidateState {
    pub connection: ConnectionId,
    /// Why it can't be asked at all, if so.
    pub skip: Option<SkipReason>,
    pub facts: Facts,
}

/// The data that strategies use.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// The estimated cost of this delivery through it; `None` if it is unknown.
    pub cost: Option<Estimate>,
    pub record: Record,
}

/// An estimated cost, and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimate {
    pub cost: Cost,
    pub basis: Basis,
}

/// The source of an estimated cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The route's candidate.
    Route,
    /// The provider's recent answers.
    Answers,
    /// The provider's cost model.
    PriceList,
}

impl Basis {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Route => "as the route says",
            Self::Answers => "as its answers said lately",
            Self::PriceList => "as the provider's price list says",
        }
    }
}

/// A connection's recent record with this destination; older answers count less and less.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// How many answers are remembered.
    pub answers: f64,
    /// In 0..=1. Where nothing is remembered it is taken for perfect, so that it is tried.
    pub success_rate: f64,
    /// The latency of its accepted requests; `None` if none is remembered.
    pub latency_ms: Option<f64>,
}

impl Default for Record {
    fn default() -> Self {
        Self { answers: 0.0, success_rate: 1.0, latency_ms: None }
    }
}

/// The input of a decision beside the route and its candidates.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// The attempts that count, oldest first.
    pub past: &'a [PastAttempt],
    /// The recorded first connection of the delivery, if there is one.
    pub first: Option<ConnectionId>,
    /// Counts the deliveries of the route, from any start.
    pub turn: u64,
    /// In 0..1.
    pub chance: f64,
}

/// Why a connection of the route can't be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// It was deleted after the route was written.
    ConnectionMissing,
    ConnectionDisabled,
    ProviderMissing,
    ChannelNotServed,
    /// It refused this delivery for good.
    RefusedBefore,
    /// It was asked in this round and did not take it.
    AskedThisRound,
    /// A request to another connection began and has no answer; keys do not span providers.
    UnknownElsewhere,
    /// Another one was asked, and the route does not fall back.
    FallbackOff,
    /// It would cost more than the route allows.
    CostCeiling,
    /// It succeeds less often than the route asks for, and another one as often.
    QualityThreshold,
    /// Its circuit breaker is open, or others try it.
    CircuitOpen,
    /// It is asked as often as it may be.
    RateLimited,
}

impl SkipReason {
    /// Whether it may pass by itself, or by an operator's hand: worth waiting for.
    #[must_use]
    pub const fn may_pass(self) -> bool {
        matches!(self, Self::ConnectionDisabled | Self::ProviderMissing)
    }

    /// Whether it passes by itself, and only has to be waited for.
    #[must_use]
    pub const fn is_a_guard(self) -> bool {
        matches!(self, Self::CircuitOpen | Self::RateLimited)
    }

    /// Returns the attempt's reason if another candidate serves because of this one; `None` if it is only the
    /// delivery's own past, or the configuration.
    #[must_use]
    pub const fn fallback_reason(self) -> Option<FallbackReason> {
        match self {
            Self::CostCeiling => Some(FallbackReason::CostThreshold),
            Self::QualityThreshold => Some(FallbackReason::QualityThreshold),
            Self::CircuitOpen => Some(FallbackReason::CircuitOpen),
            Self::RateLimited => Some(FallbackReason::RateLimited),
            Self::ConnectionMissing
            | Self::ConnectionDisabled
            | Self::ProviderMissing
            | Self::ChannelNotServed
            | Self::RefusedBefore
            | Self::AskedThisRound
            | Self::UnknownElsewhere
            | Self::FallbackOff => None,
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionMissing => "the connection was deleted",
            Self::ConnectionDisabled => "the connection is disabled",
            Self::ProviderMissing => "its provider is not installed",
            Self::ChannelNotServed => "its provider does not serve the channel",
            Self::RefusedBefore => "it refused this delivery for good",
            Self::AskedThisRound => "it was asked and did not take it",
            Self::UnknownElsewhere => "another connection may have sent it",
            Self::FallbackOff => "the route does not fall back",
            Self::CostCeiling => "it costs more than the ceiling, or in another currency",
            Self::QualityThreshold => "it succeeds less often than the route asks for",
            Self::CircuitOpen => "its circuit breaker is open",
            Self::RateLimited => "it is asked as often as it may be",
        }
    }
}

/// A candidate in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranked {
    pub connection: ConnectionId,
    /// Higher is better; the strategy defines its meaning. `None` without data.
    pub score: Option<f64>,
    pub reason: Cow<'static, str>,
}

/// A candidate that is passed over, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Skipped {
    pub connection: ConnectionId,
    pub reason: SkipReason,
}

/// The result of routing: the candidates in order, and the skipped ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub strategy: &'static str,
    pub candidates: Vec<Ranked>,
    pub skipped: Vec<Skipped>,
    /// Why the first serves in place of the one that otherwise would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead: Option<FallbackReason>,
}

impl Plan {
    /// Returns the first candidate to ask.
    #[must_use]
    pub fn first(&self) -> Option<ConnectionId> {
        self.candidates.first().map(|it| it.connection)
    }

    /// Puts a candidate into the plan that a guard excluded, and that it now lets pass.
    pub fn admit(&mut self, connection: ConnectionId) {
        self.skipped.retain(|skipped| skipped.connection != connection);
        let reason = Cow::Borrowed("was waited for: nobody else could be asked");
        self.candidates.insert(0, Ranked { connection, score: None, reason });
    }
}

/// A candidate as strategies see it.
#[derive(Debug, Clone, Copy)]
struct Contender<'a> {
    candidate: &'a Candidate,
    facts: &'a Facts,
}

impl Contender<'_> {
    fn ranked(&self, score: Option<f64>, reason: impl Into<Cow<'static, str>>) -> Ranked {
        Ranked { connection: self.candidate.connection, score, reason: reason.into() }
    }
}

/// Orders the route's candidates for the next attempt. `candidate_states` has one for each candidate, in
/// the route's order.
///
/// A candidate is asked once a round; a round ends when the retry policy waits.
#[must_use]
pub fn plan(route: &RouteSpec, candidate_states: &[CandidateState], plan_input: &PlanInput<'_>) -> Plan {
    let contenders = contenders(route, candidate_states);
    let bars = bars(route, candidate_states, plan_input.past, plan_input.first);
    let with = |admits: fn(&Option<SkipReason>) -> bool| {
        contenders.iter().zip(&bars).filter(move |(_, bar)| admits(bar)).map(|(contender, _)| *contender).collect()
    };
    let candidates = order(route, with(Option::is_none), plan_input);
    let held_back = |bar: &Option<SkipReason>| bar.is_none_or(|bar| bar.fallback_reason().is_some());
    let instead = bars.iter().flatten().any(|bar| bar.fallback_reason().is_some()).then(|| {
        let first = order(route, with(held_back), plan_input).into_iter().next()?.connection;
        let place = contenders.iter().position(|contender| contender.candidate.connection == first)?;
        bars[place]?.fallback_reason()
    });
    let skipped = candidate_states.iter().zip(&bars).filter_map(|(candidate_state, bar)| {
        bar.map(|reason| Skipped { connection: candidate_state.connection, reason })
    });
    Plan { strategy: route.strategy.as_str(), candidates, skipped: skipped.collect(), instead: instead.flatten() }
}

/// Whether any candidate can be asked, whichever is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Availability {
    Nobody,
    /// Once a circuit breaker lets something through.
    OnceClosed,
    /// As soon as its rate allows.
    InTurn,
    Now,
}

/// Returns whether any candidate can be asked, whichever is the first.
#[must_use]
pub fn availability(
    route: &RouteSpec,
    candidate_states: &[CandidateState],
    past: &[PastAttempt],
    first: Option<ConnectionId>,
) -> Availability {
    let each = bars(route, candidate_states, past, first).into_iter().map(|bar| match bar {
        None => Availability::Now,
        Some(SkipReason::RateLimited) => Availability::InTurn,
        Some(SkipReason::CircuitOpen) => Availability::OnceClosed,
        Some(_) => Availability::Nobody,
    });
    each.max().unwrap_or(Availability::Nobody)
}

fn contenders<'a>(route: &'a RouteSpec, candidate_states: &'a [CandidateState]) -> Vec<Contender<'a>> {
    let pairs = route.candidates.iter().zip(candidate_states);
    pairs.map(|(candidate, candidate_state)| Contender { candidate, facts: &candidate_state.facts }).collect()
}

/// Returns the reason for which each candidate cannot be asked, or `None`.
fn bars(
    route: &RouteSpec,
    candidate_states: &[CandidateState],
    past: &[PastAttempt],
    first: Option<ConnectionId>,
) -> Vec<Option<SkipReason>> {
    let contenders = contenders(route, candidate_states);
    let unanswered = unanswered(route, past, first);
    let mut bars: Vec<_> =
        candidate_states.iter().map(|candidate_state| bar(route, candidate_state, past, unanswered)).collect();
    // A candidate that may already have the delivery is asked again, whatever its price is now.
    let fresh = unanswered.is_none();
    if fresh {
        threshold::bar_the_dear(route, &contenders, &mut bars);
    }
    // A candidate that is excluded anyway is not waited for.
    for (bar, candidate_state) in bars.iter_mut().zip(candidate_states) {
        *bar = bar.or(candidate_state.skip);
    }
    if fresh {
        threshold::bar_the_unreliable(route, &contenders, &mut bars);
    }
    bars
}

/// Returns the strategy's order; stand-ins come after all others.
fn order(route: &RouteSpec, contenders: Vec<Contender<'_>>, plan_input: &PlanInput<'_>) -> Vec<Ranked> {
    let (serving, stand_ins): (Vec<_>, Vec<_>) =
        contenders.into_iter().partition(|contender| contender.candidate.weight > 0);
    let by_strategy = |contenders: &[Contender<'_>]| match route.strategy {
        Strategy::Primary => primary::order(contenders),
        Strategy::RoundRobin => round_robin::order(contenders, plan_input.turn),
        Strategy::WeightedRandom => weighted_random::order(contenders, plan_input.chance),
        Strategy::LeastCost => least_cost::order(route, contenders),
        Strategy::HighestReliability => highest_reliability::order(contenders, plan_input.chance),
    };
    let mut ranked = by_strategy(&serving);
    ranked.extend(by_strategy(&stand_ins).into_iter().map(|it| Ranked {
        reason: format!("has no weight of its own: it only stands in ({})", it.reason).into(),
        ..it
    }));
    ranked
}

fn bar(
    route: &RouteSpec,
    candidate_state: &CandidateState,
    past: &[PastAttempt],
    unanswered: Option<ConnectionId>,
) -> Option<SkipReason> {
    let mine = |attempt: &&PastAttempt| attempt.connection == Some(candidate_state.connection);
    let refused =
        |attempt: &PastAttempt| matches!(attempt.disposition, Disposition::RejectedPermanent | Disposition::AuthFailed);
    if candidate_state.skip.is_some_and(|skip| !skip.is_a_guard()) {
        return candidate_state.skip;
    }
    if unanswered.is_some_and(|it| it != candidate_state.connection) {
        return Some(SkipReason::UnknownElsewhere);
    }
    if past.iter().filter(mine).any(refused) {
        return Some(SkipReason::RefusedBefore);
    }
    let asked_another =
        past.iter().any(|attempt| attempt.connection.is_some_and(|it| it != candidate_state.connection));
    if !route.fallback && asked_another {
        return Some(SkipReason::FallbackOff);
    }
    this_round(past).iter().any(|attempt| mine(&attempt)).then_some(SkipReason::AskedThisRound)
}

/// Returns the connection whose last request has no answer: only it may be asked again. If a worker was lost with a
/// fresh delivery and had committed no intent, that is the candidate that may be asked without one.
fn unanswered(route: &RouteSpec, past: &[PastAttempt], first: Option<ConnectionId>) -> Option<ConnectionId> {
    let unknown = |attempt: &PastAttempt| attempt.disposition == Disposition::Unknown;
    // An attempt that only waited for the operator asked no candidate.
    match past.iter().rev().find(|attempt| attempt.connection.is_some() && !attempt.waits_for_operator) {
        Some(last) => unknown(last).then_some(last.connection).flatten(),
        None => {
            let lost_fresh = |attempt: &PastAttempt| unknown(attempt) && attempt.trigger == Trigger::Scheduled;
            past.iter().any(lost_fresh).then(|| first.or_else(|| route.certain_first())).flatten()
        }
    }
}

/// Returns the attempts since the last wait. Only a fallback belongs to the round of the attempt before it; every other
/// attempt began a round.
fn this_round(past: &[PastAttempt]) -> &[PastAttempt] {
    if past.last().is_some_and(|last| last.round_closed) {
        return &[];
    }
    let start = past.iter().rposition(|attempt| attempt.trigger != Trigger::Fallback).unwrap_or(0);
    &past[start..]
}

/// Returns how many rounds consumed an attempt of the retry policy: those in which a candidate was asked and not merely
/// throttled. A lost worker (no connection) consumes none, nor does a further transaction that took a mail for some
/// more of its recipients.
#[must_use]
pub fn rounds_made(past: &[PastAttempt]) -> u32 {
    let taken = past.iter().find(|attempt| attempt.disposition == Disposition::Accepted);
    rounds(past, |attempt| match attempt.disposition {
        Disposition::Throttled => false,
        Disposition::Accepted => taken.is_some_and(|first| std::ptr::eq(first, attempt)),
        _ => true,
    })
}

/// How many rounds were walked, throttled ones too.
#[must_use]
pub fn rounds_walked(past: &[PastAttempt]) -> u32 {
    rounds(past, |_| true)
}

/// How many rounds have an attempt that counts.
fn rounds(past: &[PastAttempt], counts: impl Fn(&PastAttempt) -> bool) -> u32 {
    let mut rounds = 0;
    let mut counted = true;
    for attempt in past {
        if attempt.trigger != Trigger::Fallback {
            counted = false;
        }
        if !counted && attempt.connection.is_some() && !attempt.waits_for_operator && counts(attempt) {
            counted = true;
            rounds += 1;
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    struct Case {
        connections: Vec<ConnectionId>,
        past: Vec<PastAttempt>,
        fallback: bool,
        first: Option<usize>,
    }

    impl Case {
        fn of(count: usize) -> Self {
            Self {
                connections: (0..count).map(|_| ConnectionId::new()).collect(),
                past: Vec::new(),
                fallback: true,
                first: None,
            }
        }

        fn then(mut self, connection: usize, disposition: Disposition, trigger: Trigger) -> Self {
            let connection = Some(self.connections[connection]);
            self.past.push(PastAttempt {
                connection,
                disposition,
                waits_for_operator: false,
                trigger,
                started_at: Timestamp::UNIX_EPOCH,
                round_closed: false,
            });
            self
        }

        fn waited(mut self) -> Self {
            self.past.last_mut().unwrap().round_closed = true;
            self
        }

        fn plan(&self) -> Vec<usize> {
            let candidates = self.connections.iter().map(|&connection| Candidate::new(connection)).collect();
            let fallback = self.fallback;
            let route = RouteSpec { candidates, fallback, ..RouteSpec::pinned(self.connections[0]) };
            let candidate_state = |&connection| CandidateState { connection, skip: None, facts: Facts::default() };
            let candidate_states: Vec<_> = self.connections.iter().map(candidate_state).collect();
            let first = self.first.map(|it| self.connections[it]);
            plan(&route, &candidate_states, &PlanInput { past: &self.past, first, turn: 0, chance: 0.5 })
                .candidates
                .iter()
                .map(|ranked| self.connections.iter().position(|id| *id == ranked.connection).unwrap())
                .collect()
        }
    }

    use Disposition::{NotSent, RejectedPermanent, RejectedTransient, Throttled, Unknown};

    #[test]
    fn a_fresh_delivery_asks_in_the_order_listed() {
        assert_eq!(Case::of(3).plan(), [0, 1, 2]);
    }

    #[test]
    fn who_was_asked_in_this_round_is_passed_over() {
        let case = Case::of(3).then(0, NotSent, Trigger::Scheduled);
        assert_eq!(case.plan(), [1, 2]);
        let case = case.then(1, RejectedTransient, Trigger::Fallback);
        assert_eq!(case.plan(), [2]);
    }

    #[test]
    fn a_new_round_begins_with_all_but_those_who_refused_for_good() {
        let case = Case::of(3)
            .then(0, NotSent, Trigger::Scheduled)
            .then(1, RejectedPermanent, Trigger::Fallback)
            .then(2, RejectedTransient, Trigger::Fallback)
            .waited();
        assert_eq!(case.plan(), [0, 2]);
    }

    #[test]
    fn an_unanswered_request_is_asked_of_nobody_else() {
        let case = Case::of(3).then(1, Unknown, Trigger::Scheduled).waited();
        assert_eq!(case.plan(), [1]);
    }

    #[test]
    fn without_fallback_nobody_else_is_ever_asked() {
        let mut case = Case::of(2).then(0, RejectedPermanent, Trigger::Scheduled).waited();
        case.fallback = false;
        assert_eq!(case.plan(), [0; 0]);
    }

    #[test]
    fn a_throttled_round_is_not_counted() {
        let case = Case::of(2)
            .then(0, Throttled, Trigger::Scheduled)
            .waited()
            .then(0, NotSent, Trigger::Retry)
            .then(1, Throttled, Trigger::Fallback)
            .waited()
            .then(0, Throttled, Trigger::Retry);
        assert_eq!((rounds_made(&case.past), rounds_walked(&case.past)), (1, 3));
    }

    #[test]
    fn a_worker_lost_with_a_fresh_delivery_may_have_asked_the_first_and_nobody_else() {
        let mut case = Case::of(2);
        let lost = |trigger| PastAttempt {
            connection: None,
            disposition: Unknown,
            waits_for_operator: false,
            trigger,
            started_at: Timestamp::UNIX_EPOCH,
            round_closed: true,
        };
        case.past.push(lost(Trigger::Scheduled));
        assert_eq!(case.plan(), [0]);
        case.first = Some(1);
        assert_eq!(case.plan(), [1], "who was to be the first is on record");
        case.first = None;
        let case = case.then(0, NotSent, Trigger::Recovery);
        assert_eq!(case.plan(), [1], "it has said that it has nothing");
        let mut case = Case::of(2);
        case.past.push(lost(Trigger::Recovery));
        assert_eq!(case.plan(), [0, 1], "whoever is asked again is committed to first");
    }

    #[test]
    fn what_a_guard_bars_is_waited_for_where_nobody_else_is_left_and_otherwise_stood_in_for() {
        let connections: Vec<_> = (0..3).map(|_| ConnectionId::new()).collect();
        let candidates = connections.iter().map(|&connection| Candidate::new(connection)).collect();
        let route = RouteSpec { candidates, fallback: true, ..RouteSpec::pinned(connections[0]) };
        let candidate_state = |bars: [Option<SkipReason>; 3]| -> Vec<_> {
            let pairs = connections.iter().zip(bars);
            pairs.map(|(&connection, skip)| CandidateState { connection, skip, facts: Facts::default() }).collect()
        };
        let (open, limited) = (Some(SkipReason::CircuitOpen), Some(SkipReason::RateLimited));
        let plan_input = PlanInput { past: &[], first: None, turn: 0, chance: 0.5 };
        let served = plan(&route, &candidate_state([open, limited, None]), &plan_input);
        assert_eq!(
            (served.candidates[0].connection, served.instead),
            (connections[2], Some(FallbackReason::CircuitOpen))
        );
        let disabled = Some(SkipReason::ConnectionDisabled);
        for (bars, expected) in [
            ([open, limited, None], Availability::Now),
            ([open, limited, disabled], Availability::InTurn),
            ([open, disabled, disabled], Availability::OnceClosed),
            ([disabled; 3], Availability::Nobody),
        ] {
            assert_eq!(availability(&route, &candidate_state(bars), &[], None), expected);
        }
        let refused = |connection| PastAttempt {
            connection: Some(connection),
            disposition: RejectedPermanent,
            waits_for_operator: false,
            trigger: Trigger::Scheduled,
            started_at: Timestamp::UNIX_EPOCH,
            round_closed: true,
        };
        let past = [refused(connections[0])];
        let after =
            plan(&route, &candidate_state([open, disabled, disabled]), &PlanInput { past: &past, ..plan_input });
        assert_eq!(after.skipped[0].reason, SkipReason::RefusedBefore, "who refused for good is not waited for");
    }
}
