//! Switches off a script that keeps failing. Pure: the time is an argument.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;

/// The number of failures within [`WINDOW`] that switches a script off.
pub const MAX_FAILURES: usize = 20;
pub const WINDOW: Duration = Duration::from_secs(60);

/// Belongs to one version of a script: the next one begins with a new breaker.
#[derive(Debug, Clone, Default)]
pub struct FailureBreaker {
    failures: VecDeque<Timestamp>,
    off_since: Option<Timestamp>,
}

impl FailureBreaker {
    /// Records a failure; returns `true` if it is the one that switches the script off.
    pub fn failed(&mut self, now: Timestamp) -> bool {
        if self.off_since.is_some() {
            return false;
        }
        // A clock that was set back makes no failure eternal.
        self.failures.retain(|at| now.duration_since(*at).unsigned_abs() < WINDOW);
        self.failures.push_back(now);
        if self.failures.len() < MAX_FAILURES {
            return false;
        }
        self.failures = VecDeque::new();
        self.off_since = Some(now);
        true
    }

    /// Returns the time since when it has been off, if it is: its callers use the default.
    #[must_use]
    pub const fn off_since(&self) -> Option<Timestamp> {
        self.off_since
    }

    /// An operator's hand: it is asked again.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + millisecond).unwrap()
    }

    #[test]
    fn twenty_failures_in_a_minute_switch_it_off_for_good() {
        let mut breaker = FailureBreaker::default();
        let tripped: Vec<bool> = (0..25).map(|nth| breaker.failed(at(nth * 3_000))).collect();
        assert_eq!(tripped.iter().position(|it| *it), Some(19), "the twentieth");
        assert_eq!(tripped.iter().filter(|it| **it).count(), 1, "it is said once");
        assert_eq!(breaker.off_since(), Some(at(57_000)));
        breaker.reset();
        assert_eq!(breaker.off_since(), None);
        assert!(!breaker.failed(at(80_000)));
    }

    #[test]
    fn failures_that_are_far_apart_do_not() {
        let mut breaker = FailureBreaker::default();
        assert!((0..1_000).all(|nth| !breaker.failed(at(nth * 3_200))), "nineteen in any minute");
    }
}
