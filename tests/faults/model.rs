//! The state machine of a delivery as a pure model, written from `docs/states.md` and not from the code: the asked
//! candidate, the next step after an answer, and the fate of a delivery whose worker is lost.

use angarium_domain::{
    delivery::DeliveryState,
    provider::Disposition,
    retry::RetryPolicy,
    route::{OnUnknown, RouteSpec},
};

/// Worker deaths that quarantine.
const DEATHS: u32 = 3;

/// The model's view of the route.
#[derive(Debug, Clone)]
pub struct Rules {
    pub candidates: usize,
    pub fallback: bool,
    /// Rounds that the retry policy allows.
    pub rounds: u32,
    pub on_unknown: OnUnknown,
    /// Whether the provider recognises a repetition.
    pub recognised: bool,
}

impl Rules {
    pub fn of(spec: &RouteSpec, recognised: bool) -> Self {
        let rounds = rounds(&spec.retry);
        let by_provider = if recognised { OnUnknown::Retry } else { OnUnknown::Hold };
        Self {
            candidates: spec.candidates.len(),
            fallback: spec.fallback,
            rounds,
            on_unknown: spec.on_unknown.unwrap_or(by_provider),
            recognised,
        }
    }
}

fn rounds(policy: &RetryPolicy) -> u32 {
    match policy {
        RetryPolicy::None => 1,
        RetryPolicy::Linear { max_attempts, .. } | RetryPolicy::Exponential { max_attempts, .. } => *max_attempts,
        RetryPolicy::Schedule { delays_ms, .. } => delays_ms.len() as u32 + 1,
        RetryPolicy::Custom { otherwise, .. } => rounds(otherwise),
    }
}

/// The position of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the queue.
    Queue { due: bool },
    /// In a worker's hands.
    Worker,
    /// In the hands of a worker that is lost, until its lease ends.
    LostWorker,
    /// Nowhere: it has ended.
    End(DeliveryState),
}

/// The result of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    AskAnother,
    Wait,
    End(DeliveryState),
}

/// A delivery.
#[derive(Debug, Clone)]
pub struct Model {
    rules: Rules,
    pub place: Place,
    /// All recorded attempts: the asked candidate, if known, and the disposition.
    pub attempts: Vec<(Option<usize>, Disposition)>,
    pub deaths: u32,
    /// The candidate that is being asked, if that was committed before the request.
    pub intent: Option<usize>,
    /// Since the last retry by hand:
    made: Made,
}

/// The part of the past that counts.
#[derive(Debug, Clone, Default)]
struct Made {
    attempts: u32,
    refused: Vec<usize>,
    asked_ever: Vec<usize>,
    /// Rounds in which a candidate was asked and not merely throttled.
    rounds: u32,
    /// The last request has no answer: to this candidate.
    unanswered: Option<usize>,
    asked_this_round: Vec<usize>,
    this_round_counts: bool,
}

impl Model {
    pub fn accepted(rules: Rules, queued: bool) -> Self {
        let place = if queued { Place::Queue { due: true } } else { Place::Worker };
        Self { rules, place, attempts: vec![], deaths: 0, intent: None, made: Made::default() }
    }

    pub fn state(&self) -> DeliveryState {
        match self.place {
            Place::Queue { .. } | Place::Worker | Place::LostWorker => DeliveryState::Queued,
            Place::End(state) => state,
        }
    }

    /// A worker takes it out of the queue.
    pub fn claimed(&mut self) {
        assert_eq!(self.place, Place::Queue { due: true });
        self.place = Place::Worker;
    }

    /// Time passes: its wait is over.
    pub fn came_due(&mut self) {
        if let Place::Queue { due } = &mut self.place {
            *due = true;
        }
    }

    /// Returns the candidate that the worker asks. An unknown request is only ever repeated where it went.
    pub fn candidate(&self) -> Option<usize> {
        (0..self.rules.candidates).find(|it| self.is_open(*it))
    }

    fn is_open(&self, candidate: usize) -> bool {
        let made = &self.made;
        let elsewhere = made.unanswered.is_some_and(|it| it != candidate);
        let another_asked = made.asked_ever.iter().any(|it| *it != candidate);
        !elsewhere
            && !made.refused.contains(&candidate)
            && !made.asked_this_round.contains(&candidate)
            && (self.rules.fallback || !another_asked)
    }

    /// The worker begins: it first commits its candidate if that matters after its loss.
    pub fn began(&mut self, candidate: usize) -> bool {
        let recognised = self.rules.recognised && self.rules.on_unknown == OnUnknown::Retry;
        let commits = !(recognised && candidate == 0 && self.attempts.is_empty());
        self.intent = commits.then_some(candidate);
        commits
    }

    /// An answer came.
    pub fn answered(&mut self, candidate: usize, disposition: Disposition) -> Next {
        use Disposition::*;
        self.record(Some(candidate), disposition);
        let next = match disposition {
            Accepted => Next::End(DeliveryState::Sent),
            Unknown if self.rules.on_unknown == OnUnknown::Hold => Next::End(DeliveryState::Unknown),
            Unknown => self.wait_or(DeliveryState::Unknown),
            _ if self.rules.fallback && self.candidate().is_some() => Next::AskAnother,
            _ if !self.anybody_later() => Next::End(DeliveryState::Failed),
            // It consumes no attempt.
            Throttled => Next::Wait,
            RejectedPermanent | RejectedTransient | AuthFailed | NotSent => self.wait_or(DeliveryState::Failed),
        };
        match next {
            Next::AskAnother => {}
            Next::Wait => {
                self.place = Place::Queue { due: false };
                self.end_round();
            }
            Next::End(state) => self.place = Place::End(state),
        }
        next
    }

    fn record(&mut self, candidate: Option<usize>, disposition: Disposition) {
        self.attempts.push((candidate, disposition));
        self.intent = None;
        let made = &mut self.made;
        made.attempts += 1;
        let Some(candidate) = candidate else { return };
        made.asked_ever.push(candidate);
        made.asked_this_round.push(candidate);
        made.unanswered = (disposition == Disposition::Unknown).then_some(candidate);
        if matches!(disposition, Disposition::RejectedPermanent | Disposition::AuthFailed) {
            made.refused.push(candidate);
        }
        if disposition != Disposition::Throttled && !made.this_round_counts {
            made.this_round_counts = true;
            made.rounds += 1;
        }
    }

    fn wait_or(&self, exhausted: DeliveryState) -> Next {
        if self.made.rounds < self.rules.rounds { Next::Wait } else { Next::End(exhausted) }
    }

    fn anybody_later(&self) -> bool {
        let mut later = self.clone();
        later.end_round();
        later.candidate().is_some()
    }

    fn end_round(&mut self) {
        self.made.asked_this_round.clear();
        self.made.this_round_counts = false;
    }

    /// The candidate is open or limited: the delivery waits, and nothing else changes.
    pub fn put_off(&mut self) {
        assert_eq!(self.place, Place::Worker);
        self.place = Place::Queue { due: false };
    }

    /// The worker is lost.
    pub fn worker_lost(&mut self) {
        assert_eq!(self.place, Place::Worker);
        self.place = Place::LostWorker;
    }

    /// The worker only slept, and its lease still holds.
    pub fn worker_woke(&mut self) {
        assert_eq!(self.place, Place::LostWorker);
        self.place = Place::Worker;
    }

    /// The lost worker's lease has ended, and another worker takes its delivery over.
    pub fn recovered(&mut self) {
        assert_eq!(self.place, Place::LostWorker);
        let intent = self.intent;
        self.deaths += 1;
        self.record(intent, Disposition::Unknown);
        self.end_round();
        let held = intent.is_some() && self.rules.on_unknown == OnUnknown::Hold;
        self.place =
            if held || self.deaths >= DEATHS { Place::End(DeliveryState::Unknown) } else { Place::Queue { due: true } };
    }

    /// A person cancels it: tells whether that can be done.
    pub fn canceled(&mut self) -> bool {
        match self.place {
            Place::Queue { .. } => {
                self.place = Place::End(DeliveryState::Canceled);
                true
            }
            Place::End(state) => state == DeliveryState::Canceled,
            Place::Worker | Place::LostWorker => false,
        }
    }

    /// A person has it tried again: tells whether that can be done.
    pub fn retried(&mut self) -> bool {
        let Place::End(state) = self.place else { return false };
        if matches!(state, DeliveryState::Sent | DeliveryState::Delivered | DeliveryState::Suppressed) {
            return false;
        }
        self.place = Place::Queue { due: true };
        self.deaths = 0;
        self.made = Made::default();
        true
    }
}
