//! How many of the requests to a connection may be retries: a share of its other requests, and a
//! few a second beside it. Pure: time and chance are arguments.
//!
//! Unused budget is forgotten, so that a quiet hour permits no storm. An accepted retry returns its place and makes
//! room for another one: if half of them succeed, the budget limits nothing, and after an outage their number doubles
//! with each round trip.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The time after which a third of the earned budget is left; the minimum can be saved up for as long.
pub const MEMORY: Duration = Duration::from_secs(10);

/// The longest that a retry is put off before it asks again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The shortest.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// The gain of an accepted retry: its own place and another.
const FOR_AN_ACCEPTED_RETRY: f64 = 2.0;

/// The most retries through one connection, on each node. The budget does not apply while at least half of the retries
/// succeed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries for each other request; 0.2, if left out.
    #[schema(minimum = 0, maximum = 100)]
    pub share: f64,
    /// Retries a second in addition; 10, if left out.
    // Not 0: without other requests a delivery would wait for ever.
    #[schema(minimum = 0.1, maximum = 10_000)]
    pub min_per_second: f64,
}

impl Default for RetryBudget {
    /// A fifth of the traffic, and ten a second.
    fn default() -> Self {
        Self { share: 0.2, min_per_second: 10.0 }
    }
}

impl RetryBudget {
    /// The most of the minimum that can be saved up.
    fn reserve(&self) -> f64 {
        (self.min_per_second * MEMORY.as_secs_f64()).max(1.0)
    }
}

/// The remaining budget of one connection.
#[derive(Debug, Clone)]
pub struct Allowance {
    at: Instant,
    /// Of the minimum.
    reserve: f64,
    /// By other requests, and by retries that were accepted.
    earned: f64,
    /// The income alone, without the used part: it shows the rate of requests.
    income: f64,
    /// The time up to which the postponed retries have places.
    queue_end: Instant,
}

impl Allowance {
    /// Before the first request.
    #[must_use]
    pub fn new(budget: &RetryBudget, now: Instant) -> Self {
        Self { at: now, reserve: budget.reserve(), earned: 0.0, income: 0.0, queue_end: now }
    }

    /// A request that is no retry.
    pub fn earn(&mut self, budget: &RetryBudget, now: Instant) {
        self.pass(budget, now);
        self.add(budget.share);
    }

    /// A retry that was accepted.
    pub fn accepted(&mut self, budget: &RetryBudget, now: Instant) {
        self.pass(budget, now);
        self.add(FOR_AN_ACCEPTED_RETRY);
    }

    /// A retry, if there is one left.
    ///
    /// # Errors
    /// Returns the time after which to ask again: each postponed retry has a place behind the one before, up to the
    /// longest wait. `chance`, in 0..1, spreads those beyond it.
    pub fn retry(&mut self, budget: &RetryBudget, chance: f64, now: Instant) -> Result<(), Duration> {
        self.pass(budget, now);
        if self.earned + self.reserve < 1.0 {
            return Err(self.put_off(budget, chance, now));
        }
        let from_earned = self.earned.min(1.0);
        self.earned -= from_earned;
        self.reserve -= 1.0 - from_earned;
        Ok(())
    }

    /// When it last changed.
    #[must_use]
    pub const fn last_used(&self) -> Instant {
        self.at
    }

    fn put_off(&mut self, budget: &RetryBudget, chance: f64, now: Instant) -> Duration {
        let per_second = self.income / MEMORY.as_secs_f64() + budget.min_per_second;
        let place = self.queue_end.max(now) + Duration::from_secs_f64(1.0 / per_second);
        let wait = place.saturating_duration_since(now);
        if wait > LONGEST_WAIT {
            return LONGEST_WAIT.mul_f64(0.5 + chance / 2.0);
        }
        self.queue_end = place;
        wait.max(SHORTEST_WAIT)
    }

    fn add(&mut self, amount: f64) {
        self.earned += amount;
        self.income += amount;
    }

    fn pass(&mut self, budget: &RetryBudget, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let left = (-seconds / MEMORY.as_secs_f64()).exp();
        self.earned *= left;
        self.income *= left;
        self.reserve = (self.reserve + seconds * budget.min_per_second).min(budget.reserve());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: RetryBudget = RetryBudget { share: 0.2, min_per_second: 1.0 };

    /// A client that retries whenever it may, at `rate` new requests a second; answers requests and
    /// retries.
    fn storm(rate: u64, seconds: u64, accepted: f64, rng: &mut fastrand::Rng) -> (u64, u64) {
        let begin = Instant::now();
        let mut allowance = Allowance::new(&BUDGET, begin);
        let (mut first, mut retries, mut waiting) = (0, 0, 0_u64);
        for ms in 0..seconds * 1000 {
            let now = begin + Duration::from_millis(ms);
            for _ in 0..rate / 1000 + u64::from(rng.u64(0..1000) < rate % 1000) {
                allowance.earn(&BUDGET, now);
                first += 1;
                waiting += u64::from(rng.f64() >= accepted);
            }
            while waiting > 0 && allowance.retry(&BUDGET, rng.f64(), now).is_ok() {
                retries += 1;
                if rng.f64() < accepted {
                    allowance.accepted(&BUDGET, now);
                    waiting -= 1;
                }
            }
        }
        (first, retries)
    }

    #[test]
    fn while_nothing_succeeds_retries_are_a_share_of_the_traffic() {
        let mut rng = crate::seed::rng();
        for rate in [1, 20, 500, 3_000] {
            let (first, retries) = storm(rate, 60, 0.0, &mut rng);
            let most = 0.2 * first as f64 + 1.0 * (60.0 + MEMORY.as_secs_f64());
            assert!(retries as f64 <= most + 1e-6, "{retries} retries beside {first}, at most {most}");
            assert!(retries as f64 > most * 0.9, "what is allowed can be used: {retries} of {most}");
        }
    }

    #[test]
    fn where_most_succeed_it_binds_nobody() {
        let mut rng = crate::seed::rng();
        let (first, retries) = storm(500, 20, 0.7, &mut rng);
        let needed = first as f64 * 0.3 / 0.7;
        assert!(retries as f64 > needed * 0.9, "{retries} retries of {needed}");
    }

    #[test]
    fn no_sequence_of_events_exceeds_what_was_earned() {
        let mut rng = crate::seed::rng();
        for _ in 0..200 {
            let budget = RetryBudget { share: rng.f64() * 2.0, min_per_second: 0.1 + rng.f64() * 20.0 };
            let begin = Instant::now();
            let (mut now, mut allowance) = (begin, Allowance::new(&budget, begin));
            let (mut earned, mut retries) = (budget.reserve(), 0.0);
            for _ in 0..500 {
                now += Duration::from_millis(rng.u64(0..500));
                match rng.u8(0..8) {
                    0..3 => {
                        allowance.earn(&budget, now);
                        earned += budget.share;
                    }
                    3 if retries > 0.0 => {
                        allowance.accepted(&budget, now);
                        earned += FOR_AN_ACCEPTED_RETRY;
                    }
                    _ => match allowance.retry(&budget, rng.f64(), now) {
                        Ok(()) => retries += 1.0,
                        Err(wait) => assert!((SHORTEST_WAIT..=LONGEST_WAIT).contains(&wait), "{wait:?}"),
                    },
                }
                let most = earned + budget.min_per_second * (now - begin).as_secs_f64();
                assert!(retries <= most + 1e-6, "{retries} of {most} with {budget:?}");
            }
        }
    }

    #[test]
    fn who_is_put_off_has_a_place_behind_the_one_before() {
        let now = Instant::now();
        let mut allowance = Allowance::new(&BUDGET, now);
        while allowance.retry(&BUDGET, 0.0, now).is_ok() {}
        let waits: Vec<_> = (0..3).map(|_| allowance.retry(&BUDGET, 0.0, now).unwrap_err().as_secs()).collect();
        assert_eq!(waits, [2, 3, 4], "one a second; the first was asked for above");
        for _ in 0..100 {
            let _ = allowance.retry(&BUDGET, 0.0, now);
        }
        assert_eq!(allowance.retry(&BUDGET, 0.0, now), Err(LONGEST_WAIT / 2));
        assert!(allowance.retry(&BUDGET, 0.99, now).unwrap_err() < LONGEST_WAIT);
    }

    #[test]
    fn the_least_minimum_still_lets_each_through() {
        let least = RetryBudget { share: 0.0, min_per_second: 0.1 };
        let mut now = Instant::now();
        let mut allowance = Allowance::new(&least, now);
        for _ in 0..5 {
            assert!(allowance.retry(&least, 0.0, now).is_ok());
            assert!(allowance.retry(&least, 0.0, now).is_err());
            now += Duration::from_secs(11);
        }
    }
}
