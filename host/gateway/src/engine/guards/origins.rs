//! The origins that messages name, of one connection: each has a circuit breaker and a pause of its own, so that one
//! customer's endpoint does not stop what goes to the others. They are this node's own, in memory, and only those that
//! failed lately are known. Pure: times are arguments.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{CLAIM_PAUSE, FURTHEST, GuardRefusal, LeftAlone, SPREAD, brake::Brake, told_of};
use angarium_domain::{
    attempt::Verdict,
    breaker::{Breaker, BreakerEffect, BreakerStep, BreakerWindow, Cause, Phase, Weight, judge, weigh_recipient},
    guards::BreakerPolicy,
    provider::Disposition,
    routing::SkipReason,
};

/// The most origins of one connection that are known; beyond them those that were not asked for longest are forgotten.
const MOST_ORIGINS: usize = 1_000;

/// How long a delivery waits for room before it looks again.
const FULL_PAUSE: Duration = Duration::from_millis(250);

/// The state of a connection's origins.
#[derive(Debug)]
pub struct Origins {
    /// The origin of the breakers' times.
    began: Instant,
    most: usize,
    probe_lasts: Duration,
    known: HashMap<Box<str>, Origin>,
    under_way: HashMap<Box<str>, UnderWay>,
}

/// The deliveries that are under way to an origin.
#[derive(Debug)]
struct UnderWay {
    count: usize,
    /// The last delivery that was put off since they are too many, and until when.
    put_off: Instant,
}

#[derive(Debug)]
struct Origin {
    window: BreakerWindow,
    breaker: Breaker,
    brake: Brake,
    /// The last delivery that was put off, and until when.
    put_off: Instant,
    used: Instant,
}

impl Origins {
    /// At most `most` deliveries are under way to an origin; a probe that is never heard of counts for `probe_lasts`.
    pub fn new(most: usize, probe_lasts: Duration, now: Instant) -> Self {
        Self { began: now, most, probe_lasts, known: HashMap::new(), under_way: HashMap::new() }
    }

    /// Returns the reason for which no request goes to an origin now. An origin without a reason also passes
    /// [`enter`](Self::enter).
    pub fn refusal(&self, origin: &str, policy: &BreakerPolicy, now: Instant) -> Option<GuardRefusal> {
        if self.under_way.get(origin).is_some_and(|it| it.count >= self.most) {
            return Some(GuardRefusal::rate(now + FULL_PAUSE).of_origin());
        }
        let known = self.known.get(origin)?;
        if let Some(until) = known.brake.until(now) {
            return Some(GuardRefusal::rate(until).of_origin());
        }
        let breaker = &known.breaker;
        let until = match breaker.phase {
            Phase::Closed => return None,
            Phase::Open => self.instant(breaker.opened_until?),
            Phase::HalfOpen => {
                let have_lapsed = breaker.probes_until.is_some_and(|until| self.instant(until) <= now);
                if breaker.probes < policy.probes || have_lapsed { now } else { now + CLAIM_PAUSE }
            }
        };
        (policy.enabled && until > now).then(|| GuardRefusal::circuit(until).of_origin())
    }

    /// The origins to which nothing goes now, those that wait longest first.
    pub fn left_alone(&self, policy: &BreakerPolicy, now: Instant) -> Vec<LeftAlone> {
        let left_alone = |(origin, known): (&str, &Origin)| {
            let GuardRefusal { skip, until, .. } = self.refusal(origin, policy, now)?;
            let detail = if skip == SkipReason::CircuitOpen { known.breaker.detail.clone() } else { String::new() };
            Some(LeftAlone { origin: origin.to_string(), skip, until, detail })
        };
        let mut all: Vec<_> =
            self.known.iter().map(|(origin, known)| (&**origin, known)).filter_map(left_alone).collect();
        all.sort_by(|a, b| b.until.cmp(&a.until).then_with(|| a.origin.cmp(&b.origin)));
        all
    }

    /// Lets a delivery pass, until it has [`left`](Self::left); returns the epoch of the breaker that it probes, if it
    /// does.
    ///
    /// # Errors
    /// Returns the reason for which it does not go now.
    pub fn enter(&mut self, origin: &str, policy: &BreakerPolicy, now: Instant) -> Result<Option<i64>, GuardRefusal> {
        if let Some(refusal) = self.refusal(origin, policy, now) {
            return Err(refusal);
        }
        if let Some(known) = self.known.get_mut(origin) {
            known.brake.enter(now).map_err(|again| GuardRefusal::rate(again).of_origin())?;
        }
        let probe = self.probe(origin, policy, now);
        self.under_way.entry(origin.into()).or_insert(UnderWay { count: 0, put_off: now }).count += 1;
        Ok(probe)
    }

    /// A delivery is no longer under way.
    pub fn left(&mut self, origin: &str) {
        if let Some(under_way) = self.under_way.get_mut(origin) {
            under_way.count -= 1;
            if under_way.count == 0 {
                self.under_way.remove(origin);
            }
        }
    }

    fn probe(&mut self, origin: &str, policy: &BreakerPolicy, now: Instant) -> Option<i64> {
        let (at, lasts) = (self.time(now), self.probe_lasts);
        let known = self.known.get_mut(origin)?;
        known.used = now;
        let claimed =
            policy.enabled && known.breaker.take(BreakerStep::Claim { lasts }, policy, at) != BreakerEffect::None;
        claimed.then_some(known.breaker.epoch)
    }

    /// Counts an answer; `probe` is the epoch of one that was a probe. Tells the breaker's new phase, if it is another.
    pub fn record(
        &mut self,
        origin: &str,
        verdict: &Verdict,
        probe: Option<i64>,
        policy: &BreakerPolicy,
        now: Instant,
    ) -> Option<Phase> {
        let (weight, throttled) = (weigh_recipient(verdict), verdict.disposition == Disposition::Throttled);
        if weight != Weight::Bad && !throttled && !self.known.contains_key(origin) {
            return None;
        }
        let at = self.time(now);
        let known = self.known_or_new(origin, now);
        known.used = now;
        known.brake.record(verdict, weight, now);
        let was = known.breaker.phase;
        known.count(weight, verdict, probe, policy, at);
        let phase = known.breaker.phase;
        if phase == Phase::Closed && was != Phase::Closed {
            known.window = BreakerWindow::default();
        }
        if known.is_idle(policy, at, now) {
            self.known.remove(origin);
        }
        (phase != was).then_some(phase)
    }

    /// A delivery that was let through was not made; `probe` is the epoch of one that was a probe.
    pub fn returned(&mut self, origin: &str, probe: Option<i64>, policy: &BreakerPolicy, now: Instant) {
        let at = self.time(now);
        let Some(known) = self.known.get_mut(origin) else { return };
        known.brake.returned();
        if let Some(epoch) = probe {
            known.breaker.take(BreakerStep::Returned { epoch }, policy, at);
        }
    }

    /// Returns when a refused delivery looks again: each a step later than the one before it.
    pub fn put_off(&mut self, origin: &str, until: Instant, now: Instant) -> Instant {
        let at = |before: Instant| (before.max(now) + SPREAD).max(until).min(now + FURTHEST);
        let of_known = self.known.get_mut(origin).map(|it| &mut it.put_off);
        let of_under_way = self.under_way.get_mut(origin).map(|it| &mut it.put_off);
        let Some(last) = of_known.or(of_under_way) else { return at(now) };
        *last = at(*last);
        *last
    }

    fn known_or_new(&mut self, origin: &str, now: Instant) -> &mut Origin {
        if self.known.len() >= MOST_ORIGINS && !self.known.contains_key(origin) {
            self.forget_the_oldest();
        }
        let began = self.time(now);
        self.known.entry(origin.into()).or_insert_with(|| Origin {
            window: BreakerWindow::default(),
            breaker: Breaker::new(began),
            brake: Brake::default(),
            put_off: now,
            used: now,
        })
    }

    /// Forgets the half that was not asked for longest.
    fn forget_the_oldest(&mut self) {
        let mut used: Vec<_> = self.known.values().map(|known| known.used).collect();
        used.sort_unstable();
        let middle = used[used.len() / 2];
        self.known.retain(|_, known| known.used > middle);
    }

    fn time(&self, now: Instant) -> Timestamp {
        Timestamp::UNIX_EPOCH.checked_add(now.saturating_duration_since(self.began)).unwrap_or(Timestamp::MAX)
    }

    fn instant(&self, at: Timestamp) -> Instant {
        self.began + Duration::try_from(at.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default()
    }
}

impl Origin {
    fn count(&mut self, weight: Weight, verdict: &Verdict, probe: Option<i64>, policy: &BreakerPolicy, now: Timestamp) {
        if let Some(epoch) = probe {
            let step = match weight {
                Weight::Good => BreakerStep::Passed { epoch },
                Weight::Nothing => BreakerStep::Returned { epoch },
                Weight::Bad | Weight::Disabled => {
                    BreakerStep::Failed { epoch, cause: Cause::ProbeFailed, detail: told_of(verdict) }
                }
            };
            self.breaker.take(step, policy, now);
            return;
        }
        // A request that began before the opening says nothing new.
        if self.breaker.phase != Phase::Closed || !policy.enabled || weight == Weight::Nothing {
            return;
        }
        let time = since_epoch(now);
        self.window.count(time, weight != Weight::Good, policy);
        if let Some(cause) = judge(&self.window.tally(time, policy), policy) {
            let (epoch, within) = (self.breaker.epoch, Duration::from_millis(policy.window_ms));
            self.breaker.take(BreakerStep::Trip { epoch, within, cause, detail: told_of(verdict) }, policy, now);
        }
    }

    /// Whether it equals an unknown origin.
    fn is_idle(&self, policy: &BreakerPolicy, at: Timestamp, now: Instant) -> bool {
        let tally = self.window.tally(since_epoch(at), policy);
        self.breaker.phase == Phase::Closed
            && self.brake.is_idle(now)
            && (!policy.enabled || (tally.failures, tally.consecutive) == (0, 0))
    }
}

fn since_epoch(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default()
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
    const LASTS: Duration = Duration::from_secs(40);
    const MOST: usize = 10;
    const ILL: &str = "https://ill.example";
    const WELL: &str = "https://well.example";

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn verdict(disposition: Disposition, unified_code: &str) -> Verdict {
        Verdict {
            disposition,
            status: None,
            code: String::new(),
            unified_code: unified_code.to_owned(),
            detail: String::new(),
            external_id: None,
            retry_after_ms: None,
            cost: None,
            units: None,
            overridden: None,
        }
    }

    fn failed() -> Verdict {
        verdict(Disposition::RejectedTransient, "provider_error")
    }

    fn sent() -> Verdict {
        verdict(Disposition::Accepted, "ok")
    }

    /// Returns origins with one open breaker.
    fn tripped(now: Instant) -> Origins {
        let mut origins = Origins::new(MOST, LASTS, now);
        let phases = [(); 3].map(|()| origins.record(ILL, &failed(), None, &POLICY, now));
        assert_eq!(phases, [None, None, Some(Phase::Open)]);
        origins
    }

    #[test]
    fn one_that_fails_is_left_alone_and_the_others_are_not() {
        let now = Instant::now();
        let mut origins = tripped(now);
        let refusal = origins.refusal(ILL, &POLICY, now).unwrap();
        assert_eq!((refusal.skip, refusal.until), (SkipReason::CircuitOpen, now + ms(1_000)));
        assert_eq!(origins.enter(ILL, &POLICY, now), Err(refusal));
        let [left_alone] = <[_; 1]>::try_from(origins.left_alone(&POLICY, now)).unwrap();
        assert_eq!((left_alone.origin.as_str(), left_alone.until), (ILL, refusal.until));
        assert!(left_alone.detail.contains("rejected_transient"), "{left_alone:?}");
        assert_eq!(origins.enter(WELL, &POLICY, now), Ok(None));
        let off = BreakerPolicy { enabled: false, ..POLICY };
        assert_eq!(origins.enter(ILL, &off, now), Ok(None));
    }

    #[test]
    fn one_delivery_tries_it_and_what_comes_of_it_decides() {
        let now = Instant::now();
        let mut origins = tripped(now);
        let later = now + ms(1_000);
        assert_eq!(origins.refusal(ILL, &POLICY, later), None);
        let epoch = origins.enter(ILL, &POLICY, later).unwrap().unwrap();
        let waits = origins.enter(ILL, &POLICY, later).unwrap_err();
        assert_eq!(waits.until, later + CLAIM_PAUSE, "others wait for it");
        assert_eq!(origins.refusal(ILL, &POLICY, later), Some(waits), "and are not told that they may go");
        origins.returned(ILL, Some(epoch), &POLICY, later);
        let epoch = origins.enter(ILL, &POLICY, later).unwrap().unwrap();
        assert_eq!(origins.record(ILL, &failed(), Some(epoch), &POLICY, later), Some(Phase::Open));
        let twice = origins.refusal(ILL, &POLICY, later).unwrap();
        assert_eq!(twice.until, later + ms(2_000), "twice as long");
        let epoch = origins.enter(ILL, &POLICY, twice.until).unwrap().unwrap();
        assert_eq!(origins.record(ILL, &sent(), Some(epoch), &POLICY, twice.until), Some(Phase::Closed));
        assert_eq!(origins.enter(ILL, &POLICY, twice.until), Ok(None));
        assert!(origins.known.is_empty(), "as one of which nothing is known");
    }

    #[test]
    fn what_an_endpoint_refuses_is_its_own_matter() {
        let (mut origins, now) = (Origins::new(MOST, LASTS, Instant::now()), Instant::now());
        for _ in 0..50 {
            for refused in [
                verdict(Disposition::AuthFailed, "unauthorized"),
                verdict(Disposition::RejectedTransient, "unauthorized"),
                verdict(Disposition::RejectedTransient, "not_found"),
                verdict(Disposition::RejectedTransient, "rejected"),
                verdict(Disposition::RejectedPermanent, "gone"),
            ] {
                assert_eq!(origins.record(ILL, &refused, None, &POLICY, now), None);
            }
        }
        assert!(origins.known.is_empty());
    }

    #[test]
    fn a_throttle_holds_one_origin() {
        let now = Instant::now();
        let mut origins = Origins::new(MOST, LASTS, now);
        let slow = Verdict { retry_after_ms: Some(5_000), ..verdict(Disposition::Throttled, "rate_limited") };
        assert_eq!(origins.record(ILL, &slow, None, &POLICY, now), None);
        let refusal = origins.refusal(ILL, &POLICY, now).unwrap();
        assert_eq!((refusal.skip, refusal.until), (SkipReason::RateLimited, now + ms(5_000)));
        assert_eq!(origins.refusal(WELL, &POLICY, now), None);
        let places = [(); 2].map(|()| origins.put_off(ILL, refusal.until, now));
        assert_eq!(places, [refusal.until, refusal.until + SPREAD]);
        assert_eq!(origins.put_off(WELL, now, now), now + SPREAD, "they do not wait for each other");
        origins.record(ILL, &sent(), None, &POLICY, refusal.until);
        assert!(origins.known.is_empty());
    }

    #[test]
    fn one_that_answers_late_leaves_room_for_the_others() {
        let now = Instant::now();
        let mut origins = Origins::new(MOST, LASTS, now);
        let enter = |origins: &mut Origins, origin| origins.enter(origin, &POLICY, now);
        for _ in 0..MOST {
            assert_eq!(enter(&mut origins, ILL), Ok(None));
        }
        let refusal = enter(&mut origins, ILL).unwrap_err();
        assert_eq!((refusal.skip, refusal.until), (SkipReason::RateLimited, now + FULL_PAUSE));
        assert_eq!(origins.refusal(ILL, &POLICY, now), Some(refusal));
        let places = [(); 2].map(|()| origins.put_off(ILL, refusal.until, now));
        assert_eq!(places, [refusal.until, refusal.until + SPREAD], "they do not come back all at once");
        assert_eq!(enter(&mut origins, WELL), Ok(None));
        origins.left(ILL);
        assert_eq!(enter(&mut origins, ILL), Ok(None));
        origins.left(WELL);
        for _ in 0..MOST {
            origins.left(ILL);
        }
        assert!(origins.under_way.is_empty());
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let now = Instant::now();
        let mut origins = Origins::new(MOST, LASTS, now);
        for number in 0..5 * MOST_ORIGINS {
            let at = now + ms(number as u64);
            origins.record(&format!("https://{number}.example"), &failed(), None, &POLICY, at);
            assert!(origins.known.len() <= MOST_ORIGINS);
        }
        let last = format!("https://{}.example", 5 * MOST_ORIGINS - 1);
        assert!(origins.known.contains_key(last.as_str()), "the latest are known");
    }
}
