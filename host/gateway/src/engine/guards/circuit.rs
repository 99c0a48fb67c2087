//! A node's view of one connection's circuit breaker. Pure: times are arguments, and messages to other nodes are
//! results.

use std::time::{Duration, Instant};

use angarium_domain::{
    breaker::{BreakerStep, BreakerTally, BreakerWindow, Cause, Phase, Weight, judge, open_time},
    guards::BreakerPolicy,
};

/// The time after a refused probe in which this node asks for no other.
pub const CLAIM_PAUSE: Duration = Duration::from_millis(250);

/// The time between two looks at a breaker that a person opened.
const HELD: Duration = Duration::from_secs(60);

/// Whether a delivery may go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitEntry {
    Open,
    /// If the other nodes agree: it would be a probe.
    Probe,
    /// The earliest time to send.
    Shut(Instant),
}

/// A breaker as this node knows it.
#[derive(Debug)]
pub struct Circuit {
    window: BreakerWindow,
    /// The origin of the window's times.
    origin: Instant,
    phase: Phase,
    epoch: i64,
    /// When it is tried again; `None` while a person keeps it open.
    until: Option<Instant>,
    /// A person opened it: it holds even without a policy.
    by_hand: bool,
    /// This node has opened it, and the others do not know yet.
    untold: bool,
    /// The time of the question behind the known state: an earlier question's answer is older.
    learned_at: Instant,
    /// No probe is asked for before.
    claim_at: Instant,
    claiming: bool,
}

/// The shared state, with its times on this node's clock.
#[derive(Debug, Clone, Copy)]
pub struct SharedBreaker {
    pub phase: Phase,
    pub epoch: i64,
    pub until: Option<Instant>,
    pub by_hand: bool,
}

impl Circuit {
    pub fn new(now: Instant) -> Self {
        Self {
            window: BreakerWindow::default(),
            origin: now,
            phase: Phase::Closed,
            epoch: 0,
            until: None,
            by_hand: false,
            untold: false,
            learned_at: now,
            claim_at: now,
            claiming: false,
        }
    }

    pub const fn phase(&self) -> Phase {
        self.phase
    }

    pub fn tally(&self, policy: &BreakerPolicy, now: Instant) -> BreakerTally {
        self.window.tally(self.time(now), policy)
    }

    pub fn entry(&self, policy: &BreakerPolicy, now: Instant) -> CircuitEntry {
        if self.phase == Phase::Closed || !policy.enabled && !self.by_hand {
            return CircuitEntry::Open;
        }
        let shut_until = match (self.phase, self.until) {
            (Phase::Open, None) => now + HELD,
            (Phase::Open, Some(until)) if until > now => until,
            _ if self.claiming || self.untold => now + CLAIM_PAUSE,
            _ => self.claim_at,
        };
        if shut_until > now { CircuitEntry::Shut(shut_until) } else { CircuitEntry::Probe }
    }

    /// The same for what goes to an origin that the message named: only a person shuts it.
    pub fn entry_by_hand(&self, policy: &BreakerPolicy, now: Instant) -> CircuitEntry {
        if self.by_hand { self.entry(policy, now) } else { CircuitEntry::Open }
    }

    /// A task asks for a probe; the others wait for the answer.
    pub const fn claim(&mut self) {
        self.claiming = true;
    }

    /// Takes the result of the claim.
    pub fn claimed(&mut self, granted: bool, now: Instant) {
        self.claiming = false;
        self.claim_at = if granted { now } else { now + CLAIM_PAUSE };
    }

    /// Counts an answer; `probe` is the epoch of a probe's answer. Returns the message to the other nodes.
    pub fn record(
        &mut self,
        weight: Weight,
        probe: Option<i64>,
        detail: impl Fn() -> String,
        policy: &BreakerPolicy,
        now: Instant,
    ) -> Option<BreakerStep> {
        if let Some(epoch) = probe {
            return Some(self.probed(weight, epoch, detail, policy, now));
        }
        // A request that began before the opening says nothing new.
        if self.phase != Phase::Closed || !policy.enabled || weight == Weight::Nothing {
            return None;
        }
        let at = self.time(now);
        self.window.count(at, weight != Weight::Good, policy);
        let cause = match weight {
            Weight::Good | Weight::Nothing => return None,
            Weight::Disabled => Cause::AuthFailed,
            Weight::Bad => judge(&self.window.tally(at, policy), policy)?,
        };
        let step = BreakerStep::Trip {
            epoch: self.epoch,
            within: at.min(Duration::from_millis(policy.window_ms)),
            cause,
            detail: detail(),
        };
        self.open(policy, now);
        Some(step)
    }

    fn probed(
        &mut self,
        weight: Weight,
        epoch: i64,
        detail: impl Fn() -> String,
        policy: &BreakerPolicy,
        now: Instant,
    ) -> BreakerStep {
        let cause = match weight {
            Weight::Good => return BreakerStep::Passed { epoch },
            Weight::Nothing => return BreakerStep::Returned { epoch },
            Weight::Bad => Cause::ProbeFailed,
            Weight::Disabled => Cause::AuthFailed,
        };
        if self.phase == Phase::HalfOpen && self.epoch == epoch {
            self.open(policy, now);
        }
        BreakerStep::Failed { epoch, cause, detail: detail() }
    }

    /// At once here; how long it is for all, they agree upon.
    fn open(&mut self, policy: &BreakerPolicy, now: Instant) {
        self.phase = Phase::Open;
        self.until = Some(now + open_time(policy, 1));
        self.untold = true;
    }

    /// Marks this node's message to the others as sent, or as never to be sent.
    pub const fn told(&mut self) {
        self.untold = false;
    }

    /// Takes over what all nodes know; `None`: it is closed. Tells whether the phase is another.
    pub fn learn(&mut self, known: Option<SharedBreaker>, asked_at: Instant) -> bool {
        if self.untold || asked_at < self.learned_at {
            return false;
        }
        self.learned_at = asked_at;
        let was = self.phase;
        match known {
            Some(known) if known.epoch >= self.epoch => {
                (self.phase, self.epoch, self.until, self.by_hand) =
                    (known.phase, known.epoch, known.until, known.by_hand);
            }
            Some(_) => {}
            None => (self.phase, self.until, self.by_hand) = (Phase::Closed, None, false),
        }
        if self.phase == Phase::Closed && was != Phase::Closed {
            self.window = BreakerWindow::default();
        }
        was != self.phase
    }

    /// Starts the window over: its parts have another length.
    pub fn forget(&mut self) {
        self.window = BreakerWindow::default();
    }

    fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy {
        enabled: true,
        window_ms: 10_000,
        min_requests: 100,
        failure_rate: 0.5,
        consecutive_failures: 3,
        open_ms: 1_000,
        probes: 1,
    };

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn tripped(now: Instant) -> Circuit {
        let mut circuit = Circuit::new(now);
        for _ in 0..2 {
            assert_eq!(circuit.record(Weight::Bad, None, String::new, &POLICY, now), None);
        }
        let step = circuit.record(Weight::Bad, None, String::new, &POLICY, now);
        assert!(matches!(step, Some(BreakerStep::Trip { cause: Cause::ConsecutiveFailures, .. })), "{step:?}");
        circuit
    }

    fn known(phase: Phase, epoch: i64, until: Option<Instant>) -> Option<SharedBreaker> {
        Some(SharedBreaker { phase, epoch, until, by_hand: false })
    }

    #[test]
    fn it_shuts_at_once_and_before_the_others_know() {
        let now = Instant::now();
        let mut circuit = tripped(now);
        assert_eq!(circuit.entry(&POLICY, now), CircuitEntry::Shut(now + ms(1_000)));
        assert!(!circuit.learn(None, now), "the look was before it was told");
        assert!(circuit.record(Weight::Bad, None, String::new, &POLICY, now).is_none(), "told once");
        circuit.told();
        circuit.learn(known(Phase::Open, 1, Some(now + ms(900))), now);
        assert_eq!(circuit.entry(&POLICY, now), CircuitEntry::Shut(now + ms(900)));
    }

    #[test]
    fn one_delivery_at_a_time_asks_to_be_a_probe() {
        let now = Instant::now();
        let mut circuit = tripped(now);
        circuit.told();
        circuit.learn(known(Phase::Open, 1, Some(now)), now);
        assert_eq!(circuit.entry(&POLICY, now), CircuitEntry::Probe);
        circuit.claim();
        assert!(matches!(circuit.entry(&POLICY, now), CircuitEntry::Shut(_)));
        circuit.claimed(false, now);
        assert_eq!(circuit.entry(&POLICY, now), CircuitEntry::Shut(now + CLAIM_PAUSE));
        assert_eq!(circuit.entry(&POLICY, now + CLAIM_PAUSE), CircuitEntry::Probe);
        circuit.claimed(true, now);
        circuit.learn(known(Phase::HalfOpen, 2, None), now);
        let step = circuit.record(Weight::Good, Some(2), String::new, &POLICY, now);
        assert_eq!(step, Some(BreakerStep::Passed { epoch: 2 }));
        assert!(circuit.learn(known(Phase::Closed, 3, None), now));
        assert_eq!((circuit.entry(&POLICY, now), circuit.tally(&POLICY, now).answers), (CircuitEntry::Open, 0));
    }

    #[test]
    fn a_failed_probe_shuts_it_again_at_once() {
        let now = Instant::now();
        let mut circuit = tripped(now);
        circuit.told();
        circuit.learn(known(Phase::HalfOpen, 2, None), now);
        let step = circuit.record(Weight::Bad, Some(2), String::new, &POLICY, now);
        assert!(matches!(step, Some(BreakerStep::Failed { epoch: 2, cause: Cause::ProbeFailed, .. })), "{step:?}");
        assert!(matches!(circuit.entry(&POLICY, now), CircuitEntry::Shut(_)));
    }

    #[test]
    fn refused_credentials_open_it_at_once() {
        let now = Instant::now();
        let mut circuit = Circuit::new(now);
        let step = circuit.record(Weight::Disabled, None, String::new, &POLICY, now);
        assert!(matches!(step, Some(BreakerStep::Trip { cause: Cause::AuthFailed, .. })), "{step:?}");
    }

    #[test]
    fn without_a_policy_only_a_person_shuts_it() {
        let now = Instant::now();
        let off = BreakerPolicy { enabled: false, ..POLICY };
        let mut circuit = Circuit::new(now);
        for _ in 0..10 {
            assert_eq!(circuit.record(Weight::Bad, None, String::new, &off, now), None);
        }
        circuit.learn(Some(SharedBreaker { phase: Phase::Open, epoch: 1, until: None, by_hand: true }), now);
        assert_eq!(circuit.entry(&off, now), CircuitEntry::Shut(now + HELD));
        assert!(!circuit.learn(known(Phase::Closed, 0, None), now), "older than what is known");
    }
}
