//! Who is asked, and in which order. Pure: the route, the candidates' standing and the delivery's
//! past go in, a plan with its reasons comes out. Nothing here does I/O.

mod primary;

use serde::Serialize;

use crate::domain::{
    attempt::{PastAttempt, Trigger},
    ids::ConnectionId,
    provider::Disposition,
    route::{RouteSpec, Strategy},
};

/// What a strategy may know of a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub connection: ConnectionId,
    /// Why it can't be asked at all, if so.
    pub barred: Option<Barred>,
}

/// Why a connection of the route can't be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Barred {
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
}

impl Barred {
    /// Whether it may pass by itself, or by an operator's hand: worth waiting for.
    #[must_use]
    pub const fn may_pass(self) -> bool {
        matches!(self, Self::ConnectionDisabled | Self::ProviderMissing)
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
        }
    }
}

/// A candidate in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranked {
    pub connection: ConnectionId,
    /// Higher is better; what it measures is the strategy's.
    pub score: f64,
    pub reason: &'static str,
}

/// A candidate that is passed over, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Skipped {
    pub connection: ConnectionId,
    pub reason: Barred,
}

/// What routing answers: whom to ask, in order, and who is passed over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub strategy: &'static str,
    pub candidates: Vec<Ranked>,
    pub skipped: Vec<Skipped>,
}

/// Orders the route's candidates for the next attempt.
///
/// `past` holds the attempts that count, oldest first. A candidate is asked once a round; a round
/// ends where the retry policy waits.
#[must_use]
pub fn plan(route: &RouteSpec, standings: &[Standing], past: &[PastAttempt]) -> Plan {
    let (open, skipped) = standings.iter().map(|standing| (standing, bar(route, standing, past))).fold(
        (Vec::new(), Vec::new()),
        |(mut open, mut skipped), (standing, barred)| {
            match barred {
                None => open.push(standing),
                Some(reason) => skipped.push(Skipped { connection: standing.connection, reason }),
            }
            (open, skipped)
        },
    );
    match route.strategy {
        Strategy::Primary => Plan { strategy: "primary", candidates: primary::order(&open), skipped },
    }
}

fn bar(route: &RouteSpec, standing: &Standing, past: &[PastAttempt]) -> Option<Barred> {
    let mine = |attempt: &&PastAttempt| attempt.connection == Some(standing.connection);
    let refused =
        |attempt: &PastAttempt| matches!(attempt.disposition, Disposition::RejectedPermanent | Disposition::AuthFailed);
    if standing.barred.is_some() {
        return standing.barred;
    }
    if let Some(elsewhere) = unanswered(past)
        && elsewhere != standing.connection
    {
        return Some(Barred::UnknownElsewhere);
    }
    if past.iter().filter(mine).any(refused) {
        return Some(Barred::RefusedBefore);
    }
    let asked_another = past.iter().any(|attempt| attempt.connection.is_some_and(|it| it != standing.connection));
    if !route.fallback && asked_another {
        return Some(Barred::FallbackOff);
    }
    this_round(past).iter().any(|attempt| mine(&attempt)).then_some(Barred::AskedThisRound)
}

/// The connection whose last request has no answer: only it may be asked again.
fn unanswered(past: &[PastAttempt]) -> Option<ConnectionId> {
    past.iter()
        .rev()
        .find(|attempt| attempt.connection.is_some())
        .and_then(|last| (last.disposition == Disposition::Unknown).then_some(last.connection).flatten())
}

/// The attempts since the last wait. An attempt is made in the round of the one before it only as
/// a fallback; whatever else began an attempt began a round.
fn this_round(past: &[PastAttempt]) -> &[PastAttempt] {
    if past.last().is_some_and(|last| last.round_closed) {
        return &[];
    }
    let start = past.iter().rposition(|attempt| attempt.trigger != Trigger::Fallback).unwrap_or(0);
    &past[start..]
}

/// How many rounds consumed an attempt of the retry policy: those in which somebody was asked and
/// not merely throttled. A lost worker (no connection) consumes none.
#[must_use]
pub fn rounds_made(past: &[PastAttempt]) -> u32 {
    let mut rounds = 0;
    let mut counted = true;
    for attempt in past {
        if attempt.trigger != Trigger::Fallback {
            counted = false;
        }
        if !counted && attempt.connection.is_some() && attempt.disposition != Disposition::Throttled {
            counted = true;
            rounds += 1;
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::route::Candidate;

    struct Case {
        connections: Vec<ConnectionId>,
        past: Vec<PastAttempt>,
        fallback: bool,
    }

    impl Case {
        fn of(count: usize) -> Self {
            Self { connections: (0..count).map(|_| ConnectionId::new()).collect(), past: Vec::new(), fallback: true }
        }

        fn then(mut self, connection: usize, disposition: Disposition, trigger: Trigger) -> Self {
            let connection = Some(self.connections[connection]);
            self.past.push(PastAttempt { connection, disposition, trigger, round_closed: false });
            self
        }

        fn waited(mut self) -> Self {
            self.past.last_mut().unwrap().round_closed = true;
            self
        }

        fn plan(&self) -> Vec<usize> {
            let candidates = self.connections.iter().map(|&connection| Candidate { connection }).collect();
            let fallback = self.fallback;
            let route = RouteSpec { candidates, fallback, ..RouteSpec::pinned(self.connections[0]) };
            let standings: Vec<_> =
                self.connections.iter().map(|&connection| Standing { connection, barred: None }).collect();
            plan(&route, &standings, &self.past)
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
        assert_eq!(rounds_made(&case.past), 1);
    }

    #[test]
    fn a_lost_worker_bars_nobody() {
        let mut case = Case::of(2);
        case.past.push(PastAttempt {
            connection: None,
            disposition: Unknown,
            trigger: Trigger::Scheduled,
            round_closed: true,
        });
        assert_eq!(case.plan(), [0, 1]);
    }
}
