//! The circuit breaker of a connection. Pure: the answers that count against a provider, the thresholds, and the
//! transitions of the state that all nodes share.

use std::{str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{attempt::Verdict, guards::BreakerPolicy, provider::Disposition};

/// The longest time that a breaker stays open by itself, however often its probes have failed, unless the policy's own
/// time is longer.
const LONGEST_OPEN: Duration = Duration::from_secs(600);

/// The effect of an answer on the provider's breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It works.
    Good,
    /// It does not.
    Bad,
    /// It refuses the connection's credentials: so it will the next time.
    Disabled,
    /// Nothing: too fast, or the fault is the message's, the gateway's or the component's.
    Nothing,
}

/// Weighs an answer, or the lack of one.
#[must_use]
pub fn weigh(verdict: &Verdict) -> Weight {
    if verdict.blames_gateway() || verdict.code.starts_with("plugin_") {
        return Weight::Nothing;
    }
    match verdict.disposition {
        Disposition::Accepted | Disposition::RejectedPermanent => Weight::Good,
        // A provider that refuses a message for its content works.
        Disposition::RejectedTransient if verdict.blames_message() => Weight::Good,
        Disposition::RejectedTransient | Disposition::NotSent | Disposition::Unknown => Weight::Bad,
        Disposition::AuthFailed => Weight::Disabled,
        Disposition::Throttled => Weight::Nothing,
    }
}

/// Weighs the answer of an endpoint that the message named. Any refusal is its owner's decision: it works. Other owners
/// may have the same host.
#[must_use]
pub fn weigh_recipient(verdict: &Verdict) -> Weight {
    match weigh(verdict) {
        // Without a status no endpoint answered: credentials could not be had.
        Weight::Disabled if verdict.status.is_none() => Weight::Nothing,
        Weight::Disabled => Weight::Good,
        Weight::Bad if verdict.is_refusal() => Weight::Good,
        weight @ (Weight::Good | Weight::Bad | Weight::Nothing) => weight,
    }
}

const BUCKETS: usize = 10;

/// Recent answers of a connection: a ring of buckets, each a part of the policy's window. Times count from an arbitrary
/// start.
#[derive(Debug, Clone, Default)]
pub struct BreakerWindow {
    buckets: [Bucket; BUCKETS],
    newest: u64,
    consecutive: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    answers: u32,
    failures: u32,
}

/// The totals of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BreakerTally {
    pub answers: u32,
    pub failures: u32,
    /// The failures since the last good answer, however long ago.
    pub consecutive: u32,
}

impl BreakerTally {
    /// `None` if there was no answer.
    #[must_use]
    pub fn failure_rate(&self) -> Option<f64> {
        (self.answers > 0).then(|| f64::from(self.failures) / f64::from(self.answers))
    }
}

impl BreakerWindow {
    /// Counts an answer.
    pub fn count(&mut self, at: Duration, failed: bool, policy: &BreakerPolicy) {
        let newest = self.advance(at, policy);
        let bucket = &mut self.buckets[newest];
        bucket.answers = bucket.answers.saturating_add(1);
        bucket.failures = bucket.failures.saturating_add(u32::from(failed));
        self.consecutive = if failed { self.consecutive.saturating_add(1) } else { 0 };
    }

    /// Returns the totals at a time.
    #[must_use]
    pub fn tally(&self, at: Duration, policy: &BreakerPolicy) -> BreakerTally {
        let mut seen = self.clone();
        seen.advance(at, policy);
        let sum = |part: fn(&Bucket) -> u32| seen.buckets.iter().map(part).fold(0, u32::saturating_add);
        BreakerTally { answers: sum(|it| it.answers), failures: sum(|it| it.failures), consecutive: seen.consecutive }
    }

    /// Makes way for the bucket of a time, and returns its place.
    fn advance(&mut self, at: Duration, policy: &BreakerPolicy) -> usize {
        let length = u128::from((policy.window_ms / BUCKETS as u64).max(1));
        let number = u64::try_from(at.as_millis() / length).unwrap_or(u64::MAX).max(self.newest);
        for passed in (self.newest + 1..=number).rev().take(BUCKETS) {
            self.buckets[place(passed)] = Bucket::default();
        }
        self.newest = number;
        place(number)
    }
}

fn place(number: u64) -> usize {
    (number % BUCKETS as u64) as usize
}

/// Why a breaker opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    ConsecutiveFailures,
    FailureRate,
    /// The credentials were refused.
    AuthFailed,
    /// It was tried again, and failed again.
    ProbeFailed,
    /// A person did it.
    Manual,
}

impl Cause {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::FailureRate => "failure_rate",
            Self::AuthFailed => "auth_failed",
            Self::ProbeFailed => "probe_failed",
            Self::Manual => "manual",
        }
    }
}

/// A text that names no cause, or no phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a phase or a cause of a breaker (got `{0}`)")]
pub struct InvalidWord(String);

impl FromStr for Cause {
    type Err = InvalidWord;

    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        [Self::ConsecutiveFailures, Self::FailureRate, Self::AuthFailed, Self::ProbeFailed, Self::Manual]
            .into_iter()
            .find(|cause| cause.as_str() == text)
            .ok_or_else(|| InvalidWord(text.to_owned()))
    }
}

/// Whether the observed failures are too many.
#[must_use]
pub fn judge(tally: &BreakerTally, policy: &BreakerPolicy) -> Option<Cause> {
    if tally.consecutive >= policy.consecutive_failures {
        return Some(Cause::ConsecutiveFailures);
    }
    let rate = tally.failure_rate().filter(|_| tally.answers >= policy.min_requests)?;
    (rate >= policy.failure_rate).then_some(Cause::FailureRate)
}

/// How long it stays open the first time, the second time in a row, and so on.
#[must_use]
pub fn open_time(policy: &BreakerPolicy, openings: u32) -> Duration {
    let first = Duration::from_millis(policy.open_ms);
    let doubled = first.saturating_mul(2_u32.saturating_pow(openings.saturating_sub(1)));
    doubled.min(LONGEST_OPEN.max(first))
}

/// The phase of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BreakerState)]
pub enum Phase {
    /// All deliveries may start.
    #[default]
    Closed,
    /// None may start.
    Open,
    /// A few deliveries try the connection.
    HalfOpen,
}

impl Phase {
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl FromStr for Phase {
    type Err = InvalidWord;

    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text).ok_or_else(|| InvalidWord(text.to_owned()))
    }
}

/// The state that all nodes share. Its times are the database's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    pub phase: Phase,
    /// Grows with each change of the phase: a message about an older one is too late.
    pub epoch: i64,
    pub since: Timestamp,
    /// While it is open: when it is tried again. `None`: when a person says so.
    pub opened_until: Option<Timestamp>,
    /// How often it opened since it was closed.
    pub openings: u32,
    /// Why it opened last.
    pub cause: Option<Cause>,
    /// In words, for people.
    pub detail: String,
    /// While it is half open: probes that were let through and count.
    pub probes: u32,
    /// The number of successful probes.
    pub successes: u32,
    /// When those without an answer no longer count.
    pub probes_until: Option<Timestamp>,
}

/// A step that may change the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BreakerStep {
    /// A node has seen too many failures; `within` is how long ago the first of them was at most.
    Trip { epoch: i64, within: Duration, cause: Cause, detail: String },
    /// A delivery would try it; if it is never heard of again, it counts for `lasts`.
    Claim { lasts: Duration },
    /// A probe went well.
    Passed { epoch: i64 },
    /// A probe failed.
    Failed { epoch: i64, cause: Cause, detail: String },
    /// A probe tells nothing: it was not made, or its answer says nothing of the provider.
    Returned { epoch: i64 },
    /// The cause of the opening may be repaired: the breaker tries it at once.
    Mended,
    /// A person opens or closes it.
    ByHand { open: bool, reason: String },
}

/// The effect of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerEffect {
    /// It comes too late, or not now.
    None,
    /// It was noted.
    Noted,
    /// The phase is another.
    Changed,
}

impl Breaker {
    /// Returns the breaker of an unknown connection.
    #[must_use]
    pub const fn new(now: Timestamp) -> Self {
        Self {
            phase: Phase::Closed,
            epoch: 0,
            since: now,
            opened_until: None,
            openings: 0,
            cause: None,
            detail: String::new(),
            probes: 0,
            successes: 0,
            probes_until: None,
        }
    }

    /// Takes a step.
    pub fn take(&mut self, step: BreakerStep, policy: &BreakerPolicy, now: Timestamp) -> BreakerEffect {
        match step {
            BreakerStep::Trip { epoch, within, cause, detail } => {
                // Failures of before it was closed say nothing of now.
                let since_then = epoch == self.epoch || before(now, within) >= self.since;
                if self.phase != Phase::Closed || !since_then {
                    return BreakerEffect::None;
                }
                self.open(cause, detail, policy, now)
            }
            BreakerStep::Claim { lasts } => self.claim(lasts, policy, now),
            BreakerStep::Passed { epoch } if self.probing(epoch) => {
                self.successes += 1;
                if self.successes < policy.probes {
                    return BreakerEffect::Noted;
                }
                self.close("its probes went well".to_owned(), now)
            }
            BreakerStep::Failed { epoch, cause, detail } if self.probing(epoch) => {
                self.open(cause, detail, policy, now)
            }
            BreakerStep::Returned { epoch } if self.probing(epoch) => {
                self.probes = self.probes.saturating_sub(1).max(self.successes);
                BreakerEffect::Noted
            }
            BreakerStep::Passed { .. } | BreakerStep::Failed { .. } | BreakerStep::Returned { .. } => {
                BreakerEffect::None
            }
            BreakerStep::Mended if self.phase == Phase::Open && self.cause == Some(Cause::AuthFailed) => {
                self.opened_until = Some(now);
                BreakerEffect::Noted
            }
            BreakerStep::Mended => BreakerEffect::None,
            BreakerStep::ByHand { open: true, reason } => {
                self.enter(Phase::Open, now);
                (self.opened_until, self.cause, self.detail) = (None, Some(Cause::Manual), reason);
                BreakerEffect::Changed
            }
            BreakerStep::ByHand { open: false, .. } if self.phase == Phase::Closed => BreakerEffect::None,
            BreakerStep::ByHand { open: false, reason } => self.close(reason, now),
        }
    }

    /// Claims a probe, as long as the probes under way or successful are fewer than the policy allows.
    fn claim(&mut self, lasts: Duration, policy: &BreakerPolicy, now: Timestamp) -> BreakerEffect {
        let effect = match self.phase {
            Phase::Closed => return BreakerEffect::None,
            Phase::Open if self.opened_until.is_none_or(|until| until > now) => return BreakerEffect::None,
            Phase::Open => {
                self.enter(Phase::HalfOpen, now);
                BreakerEffect::Changed
            }
            Phase::HalfOpen => {
                if self.probes_until.is_some_and(|until| until <= now) {
                    self.probes = self.successes;
                }
                if self.probes >= policy.probes {
                    return BreakerEffect::None;
                }
                BreakerEffect::Noted
            }
        };
        self.probes += 1;
        self.probes_until = Some(after(now, lasts));
        effect
    }

    const fn probing(&self, epoch: i64) -> bool {
        matches!(self.phase, Phase::HalfOpen) && self.epoch == epoch
    }

    fn open(&mut self, cause: Cause, detail: String, policy: &BreakerPolicy, now: Timestamp) -> BreakerEffect {
        self.enter(Phase::Open, now);
        self.openings = self.openings.saturating_add(1);
        self.opened_until = Some(after(now, open_time(policy, self.openings)));
        (self.cause, self.detail) = (Some(cause), detail);
        BreakerEffect::Changed
    }

    fn close(&mut self, detail: String, now: Timestamp) -> BreakerEffect {
        self.enter(Phase::Closed, now);
        (self.openings, self.cause, self.detail) = (0, None, detail);
        BreakerEffect::Changed
    }

    fn enter(&mut self, phase: Phase, now: Timestamp) {
        (self.phase, self.epoch, self.since) = (phase, self.epoch + 1, now);
        (self.opened_until, self.probes, self.successes, self.probes_until) = (None, 0, 0, None);
    }
}

fn after(now: Timestamp, time: Duration) -> Timestamp {
    now.checked_add(time).unwrap_or(Timestamp::MAX)
}

fn before(now: Timestamp, time: Duration) -> Timestamp {
    now.checked_sub(time).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy {
        enabled: true,
        window_ms: 10_000,
        min_requests: 4,
        failure_rate: 0.5,
        consecutive_failures: 100,
        open_ms: 1_000,
        probes: 2,
    };
    const LASTS: Duration = Duration::from_secs(40);

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn trip(epoch: i64) -> BreakerStep {
        let within = Duration::from_secs(10);
        BreakerStep::Trip { epoch, within, cause: Cause::FailureRate, detail: String::new() }
    }

    fn failed(epoch: i64) -> BreakerStep {
        BreakerStep::Failed { epoch, cause: Cause::ProbeFailed, detail: String::new() }
    }

    fn claim() -> BreakerStep {
        BreakerStep::Claim { lasts: LASTS }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn few_failures_or_long_ones_ago_are_no_judgement() {
        let mut window = BreakerWindow::default();
        for second in 0..3 {
            window.count(seconds(second), true, &POLICY);
        }
        assert_eq!(judge(&window.tally(seconds(3), &POLICY), &POLICY), None, "fewer than four answers");
        window.count(seconds(3), true, &POLICY);
        assert_eq!(judge(&window.tally(seconds(3), &POLICY), &POLICY), Some(Cause::FailureRate));
        let later = window.tally(seconds(12), &POLICY);
        assert_eq!((later.answers, later.consecutive), (1, 4), "the others have left the window");
        assert_eq!(window.tally(seconds(1_000_000), &POLICY).answers, 0);
    }

    #[test]
    fn failures_upon_failures_count_however_far_apart() {
        let policy = BreakerPolicy { consecutive_failures: 3, ..POLICY };
        let mut window = BreakerWindow::default();
        for hour in 0..3 {
            assert_eq!(judge(&window.tally(seconds(hour * 3600), &policy), &policy), None);
            window.count(seconds(hour * 3600), true, &policy);
        }
        let judged = |window: &BreakerWindow| judge(&window.tally(seconds(7200), &policy), &policy);
        assert_eq!(judged(&window), Some(Cause::ConsecutiveFailures));
        window.count(seconds(7200), false, &policy);
        assert_eq!(judged(&window), None);
    }

    #[test]
    fn it_opens_half_opens_after_its_time_and_closes_when_its_probes_go_well() {
        let mut breaker = Breaker::new(at(0));
        assert_eq!(breaker.take(trip(0), &POLICY, at(0)), BreakerEffect::Changed);
        assert_eq!(breaker.take(trip(0), &POLICY, at(1)), BreakerEffect::None, "another node was first");
        assert_eq!(breaker.take(claim(), &POLICY, at(999)), BreakerEffect::None);
        assert_eq!(breaker.take(claim(), &POLICY, at(1_000)), BreakerEffect::Changed);
        assert_eq!(breaker.take(claim(), &POLICY, at(1_001)), BreakerEffect::Noted);
        assert_eq!(breaker.take(claim(), &POLICY, at(1_002)), BreakerEffect::None, "two probes and no more");
        assert_eq!(
            breaker.take(BreakerStep::Passed { epoch: 1 }, &POLICY, at(1_003)),
            BreakerEffect::None,
            "of another time"
        );
        assert_eq!(breaker.take(BreakerStep::Passed { epoch: 2 }, &POLICY, at(1_003)), BreakerEffect::Noted);
        assert_eq!(breaker.take(claim(), &POLICY, at(1_004)), BreakerEffect::None, "what went well counts");
        assert_eq!(breaker.take(BreakerStep::Passed { epoch: 2 }, &POLICY, at(1_005)), BreakerEffect::Changed);
        assert_eq!((breaker.phase, breaker.openings), (Phase::Closed, 0));
    }

    #[test]
    fn it_stays_open_for_longer_each_time_that_a_probe_fails() {
        let mut breaker = Breaker::new(at(0));
        breaker.take(trip(0), &POLICY, at(0));
        let mut waits = Vec::new();
        for _ in 0..12 {
            let until = breaker.opened_until.unwrap();
            waits.push(until.duration_since(breaker.since).as_millis());
            assert_eq!(breaker.take(claim(), &POLICY, until), BreakerEffect::Changed);
            let epoch = breaker.epoch;
            assert_eq!(breaker.take(failed(epoch), &POLICY, until), BreakerEffect::Changed);
        }
        assert_eq!(waits[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(waits[11], 600_000);
        let slow = BreakerPolicy { open_ms: 3_600_000, ..POLICY };
        assert_eq!(open_time(&slow, 9), seconds(3600));
    }

    #[test]
    fn a_probe_that_says_nothing_is_given_back_and_a_lost_one_is_forgotten() {
        let mut breaker = Breaker::new(at(0));
        breaker.take(trip(0), &POLICY, at(0));
        let now = at(1_000);
        for _ in 0..2 {
            breaker.take(claim(), &POLICY, now);
        }
        assert_eq!(breaker.take(BreakerStep::Returned { epoch: 2 }, &POLICY, now), BreakerEffect::Noted);
        assert_eq!(breaker.take(claim(), &POLICY, now), BreakerEffect::Noted);
        assert_eq!(breaker.take(claim(), &POLICY, now), BreakerEffect::None);
        assert_eq!(breaker.take(claim(), &POLICY, after(now, LASTS)), BreakerEffect::Noted);
    }

    #[test]
    fn what_a_person_opened_stays_so_and_old_failures_do_not_open_what_was_closed() {
        let mut breaker = Breaker::new(at(0));
        let by_hand = |open| BreakerStep::ByHand { open, reason: "maintenance".to_owned() };
        assert_eq!(breaker.take(by_hand(true), &POLICY, at(0)), BreakerEffect::Changed);
        assert_eq!(breaker.take(claim(), &POLICY, at(1_000_000_000)), BreakerEffect::None);
        assert_eq!(breaker.take(by_hand(false), &POLICY, at(1_000_000_000)), BreakerEffect::Changed);
        assert_eq!(breaker.take(by_hand(false), &POLICY, at(1_000_000_000)), BreakerEffect::None);
        assert_eq!(breaker.take(trip(0), &POLICY, at(1_000_000_001)), BreakerEffect::None);
        assert_eq!(breaker.take(trip(0), &POLICY, at(1_000_020_000)), BreakerEffect::Changed, "all of them are newer");
    }

    #[test]
    fn refused_credentials_are_tried_at_once_when_they_may_be_mended() {
        let mut breaker = Breaker::new(at(0));
        breaker.take(
            BreakerStep::Trip { epoch: 0, within: LASTS, cause: Cause::AuthFailed, detail: String::new() },
            &POLICY,
            at(0),
        );
        assert_eq!(breaker.take(BreakerStep::Mended, &POLICY, at(5)), BreakerEffect::Noted);
        assert_eq!(breaker.take(claim(), &POLICY, at(5)), BreakerEffect::Changed);
    }

    /// After any steps in any order, no more probes are out than the policy allows, and the breaker closes only by them
    /// or by a person.
    #[test]
    fn any_steps_leave_it_sound() {
        let mut rng = crate::seed::rng();
        let mut breaker = Breaker::new(at(0));
        let (mut now, mut out) = (0, 0_u32);
        for _ in 0..20_000 {
            now += rng.i64(0..400);
            let epoch = breaker.epoch - i64::from(rng.u8(0..10) == 0);
            let step = match rng.u8(0..40) {
                0..=5 => trip(epoch),
                6..=20 => claim(),
                21..=30 if out > 0 => BreakerStep::Passed { epoch },
                31..=34 if out > 0 => failed(epoch),
                35..=37 if out > 0 => BreakerStep::Returned { epoch },
                38 => BreakerStep::ByHand { open: rng.bool(), reason: String::new() },
                39 => BreakerStep::Mended,
                _ => continue,
            };
            let old = breaker.clone();
            let effect = breaker.take(step.clone(), &POLICY, at(now));
            assert_eq!(effect == BreakerEffect::Changed, breaker.epoch != old.epoch);
            if effect == BreakerEffect::None {
                assert_eq!(breaker, old);
            }
            out = match (&step, effect) {
                (_, BreakerEffect::None) => out,
                (BreakerStep::Claim { .. }, BreakerEffect::Changed) => 1,
                // The lost ones no longer count.
                (BreakerStep::Claim { .. }, _) if old.probes_until.is_some_and(|until| until <= at(now)) => 1,
                (BreakerStep::Claim { .. }, _) => out + 1,
                (BreakerStep::Passed { .. } | BreakerStep::Returned { .. }, BreakerEffect::Noted) => out - 1,
                (_, BreakerEffect::Changed) => 0,
                (_, BreakerEffect::Noted) => out,
            };
            assert!(out + breaker.successes <= POLICY.probes, "{out} probes are out: {breaker:?}");
            assert_eq!(breaker.phase == Phase::HalfOpen, breaker.probes_until.is_some());
            if breaker.phase == Phase::Closed && old.phase != Phase::Closed {
                assert!(
                    matches!(step, BreakerStep::Passed { .. } | BreakerStep::ByHand { open: false, .. }),
                    "{step:?}"
                );
            }
        }
    }
}
