//! When to try again.

pub mod budget;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::budget::RetryBudget;

/// When the next round begins after none of the candidates accepted a delivery. A round is one attempt of the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RetryPolicy {
    /// Never.
    None,
    /// After the same delay each time.
    Linear {
        #[schema(maximum = 2_678_400_000_u64)]
        delay_ms: u64,
        #[schema(minimum = 1, maximum = 100)]
        max_attempts: u32,
        /// Counted from the beginning of the first attempt: a retry that would begin later is not made.
        #[serde(default)]
        #[schema(minimum = 1, maximum = 259_200_000)]
        max_elapsed_ms: Option<u64>,
        #[serde(default)]
        budget: RetryBudget,
    },
    /// After `initial_ms · factor^n`, at most `max_ms`, shortened by up to `jitter` of itself at random.
    Exponential {
        #[schema(minimum = 1)]
        initial_ms: u64,
        /// At least `initial_ms`.
        #[schema(minimum = 1, maximum = 2_678_400_000_u64)]
        max_ms: u64,
        /// 2, if left out.
        #[serde(default = "two")]
        #[schema(minimum = 1, maximum = 10)]
        factor: f64,
        /// 0.5, if left out.
        #[serde(default = "half")]
        #[schema(minimum = 0, maximum = 1)]
        jitter: f64,
        #[schema(minimum = 1, maximum = 100)]
        max_attempts: u32,
        /// Counted from the beginning of the first attempt: a retry that would begin later is not made.
        #[serde(default)]
        #[schema(minimum = 1, maximum = 259_200_000)]
        max_elapsed_ms: Option<u64>,
        #[serde(default)]
        budget: RetryBudget,
    },
    /// One delay after each attempt.
    Schedule {
        #[schema(max_items = 100)]
        delays_ms: Vec<u64>,
        /// Counted from the beginning of the first attempt: a retry that would begin later is not made.
        #[serde(default)]
        #[schema(minimum = 1, maximum = 259_200_000)]
        max_elapsed_ms: Option<u64>,
        #[serde(default)]
        budget: RetryBudget,
    },
    /// The script of this name decides.
    Custom {
        #[schema(min_length = 1, max_length = 128)]
        rule: String,
        /// The policy where the script does not answer; its limits apply to the script too.
        #[schema(no_recursion)]
        otherwise: Box<Self>,
    },
}

/// The limits of a policy, whichever delays it has.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RetryLimits {
    /// Counted from the beginning of the first attempt: a retry that would begin later is not made.
    pub max_elapsed_ms: Option<u64>,
    pub budget: RetryBudget,
}

const fn two() -> f64 {
    2.0
}

const fn half() -> f64 {
    0.5
}

/// The longest time in which a delivery is tried, on any route: 72 hours.
pub const LONGEST_ELAPSED_MS: u64 = 72 * 3600 * 1000;

/// The longest wait that a policy may name: 31 days.
pub const LONGEST_DELAY_MS: u64 = 31 * 24 * 3600 * 1000;

/// The longest wait to which one grows beside the policy: ten minutes, as the default policy's.
pub const LONGEST_GROWN_MS: u64 = 600_000;

impl Default for RetryPolicy {
    /// Ten attempts over about half an hour.
    fn default() -> Self {
        Self::Exponential {
            initial_ms: 1_000,
            max_ms: LONGEST_GROWN_MS,
            factor: two(),
            jitter: half(),
            max_attempts: 10,
            max_elapsed_ms: None,
            budget: RetryBudget::default(),
        }
    }
}

impl RetryPolicy {
    /// The same delay each time, without further limits.
    #[must_use]
    pub fn linear(delay_ms: u64, max_attempts: u32) -> Self {
        Self::Linear { delay_ms, max_attempts, max_elapsed_ms: None, budget: RetryBudget::default() }
    }

    /// One delay after each attempt, without further limits.
    #[must_use]
    pub fn schedule(delays_ms: Vec<u64>) -> Self {
        Self::Schedule { delays_ms, max_elapsed_ms: None, budget: RetryBudget::default() }
    }

    /// The limits beside the delays; those of `otherwise` for a script.
    #[must_use]
    pub fn limits(&self) -> RetryLimits {
        match self {
            Self::None => RetryLimits::default(),
            Self::Linear { max_elapsed_ms, budget, .. }
            | Self::Exponential { max_elapsed_ms, budget, .. }
            | Self::Schedule { max_elapsed_ms, budget, .. } => {
                RetryLimits { max_elapsed_ms: *max_elapsed_ms, budget: *budget }
            }
            Self::Custom { otherwise, .. } => otherwise.limits(),
        }
    }

    /// The wait after `made` attempts (1 or more), or `None` when there is no further one.
    /// `chance` lies in 0..1.
    #[must_use]
    pub fn delay(&self, made: u32, chance: f64) -> Option<Duration> {
        let made = made.max(1);
        let ms = match self {
            Self::None => return None,
            Self::Linear { delay_ms, max_attempts, .. } => (made < *max_attempts).then_some(*delay_ms)?,
            Self::Exponential { initial_ms, max_ms, factor, jitter, max_attempts, .. } => {
                (made < *max_attempts).then_some(())?;
                exponential(*initial_ms, *max_ms, *factor, *jitter, made, chance)
            }
            Self::Schedule { delays_ms, .. } => *delays_ms.get(made as usize - 1)?,
            Self::Custom { otherwise, .. } => return otherwise.delay(made, chance),
        };
        Some(Duration::from_millis(ms.min(LONGEST_DELAY_MS)))
    }

    /// Returns the wait after this number of rounds (1 or more), the last of which was throttled. It grows as the
    /// policy's does, and has no end, because that round consumes no attempt. A policy that does not grow, or that has
    /// ended, doubles it each time, up to [`LONGEST_GROWN_MS`].
    #[must_use]
    pub fn throttled_delay(&self, rounds: u32, chance: f64) -> Duration {
        let rounds = rounds.max(1);
        let ms = match self {
            Self::None => return Self::default().throttled_delay(rounds, chance),
            Self::Linear { delay_ms, .. } => doubled(*delay_ms, rounds - 1),
            Self::Exponential { initial_ms, max_ms, factor, jitter, .. } => {
                exponential(*initial_ms, *max_ms, *factor, *jitter, rounds, chance)
            }
            Self::Schedule { delays_ms, .. } => match (delays_ms.get(rounds as usize - 1), delays_ms.last()) {
                (Some(delay), _) => *delay,
                (None, Some(last)) => doubled(*last, rounds - u32::try_from(delays_ms.len()).unwrap_or(rounds)),
                (None, None) => return Self::None.throttled_delay(rounds, chance),
            },
            Self::Custom { otherwise, .. } => return otherwise.throttled_delay(rounds, chance),
        };
        Duration::from_millis(ms.min(LONGEST_DELAY_MS))
    }

    /// Returns the faults that the document's schema cannot express: the field and the requirement.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Exponential { initial_ms, max_ms, .. } if max_ms < initial_ms => {
                vec![("max_ms", format!("must be at least `initial_ms`: {initial_ms} (got {max_ms})"))]
            }
            Self::Schedule { delays_ms, .. } => match delays_ms.iter().find(|ms| **ms > LONGEST_DELAY_MS) {
                Some(ms) => {
                    vec![("delays_ms", format!("must be at most {LONGEST_DELAY_MS} (31 days) each (got {ms})"))]
                }
                None => vec![],
            },
            Self::None | Self::Linear { .. } | Self::Exponential { .. } | Self::Custom { .. } => vec![],
        }
    }
}

/// Twice as long each time, up to the longest, unless it is longer from the first.
fn doubled(ms: u64, times: u32) -> u64 {
    ms.saturating_mul(1 << times.min(40)).min(LONGEST_GROWN_MS.max(ms))
}

fn exponential(initial_ms: u64, max_ms: u64, factor: f64, jitter: f64, made: u32, chance: f64) -> u64 {
    let exponent = i32::try_from(made - 1).unwrap_or(i32::MAX);
    let full = (initial_ms as f64 * factor.powi(exponent)).min(max_ms as f64);
    (full * (1.0 - jitter * chance)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponential_policy(initial_ms: u64, max_ms: u64, max_attempts: u32) -> RetryPolicy {
        let (factor, jitter, max_elapsed_ms, budget) = (2.0, 0.5, None, RetryBudget::default());
        RetryPolicy::Exponential { initial_ms, max_ms, factor, jitter, max_attempts, max_elapsed_ms, budget }
    }

    fn delays(policy: &RetryPolicy, chance: f64) -> Vec<u64> {
        (1..).map_while(|made| policy.delay(made, chance)).map(|delay| delay.as_millis() as u64).collect()
    }

    #[test]
    fn each_policy_gives_its_delays_and_then_ends() {
        assert_eq!(delays(&RetryPolicy::None, 0.0), [0; 0]);
        assert_eq!(delays(&RetryPolicy::linear(5, 3), 0.9), [5, 5]);
        assert_eq!(delays(&RetryPolicy::schedule(vec![1, 7]), 0.9), [1, 7]);
        let doubling = exponential_policy(100, 500, 5);
        assert_eq!(delays(&doubling, 0.0), [100, 200, 400, 500]);
        assert_eq!(delays(&doubling, 1.0), [50, 100, 200, 250]);
    }

    #[test]
    fn a_throttled_round_waits_longer_each_time_and_never_ends() {
        let waits = |policy: &RetryPolicy, rounds: &[u32]| {
            rounds.iter().map(|round| policy.throttled_delay(*round, 0.0).as_millis() as u64).collect::<Vec<_>>()
        };
        let doubling = exponential_policy(100, 500, 2);
        assert_eq!(waits(&doubling, &[1, 2, 3, 4, u32::MAX]), [100, 200, 400, 500, 500]);
        let linear = RetryPolicy::linear(50, 2);
        assert_eq!(waits(&linear, &[1, 2, 5, 100]), [50, 100, 800, 600_000]);
        let hourly = RetryPolicy::linear(3_600_000, 2);
        assert_eq!(waits(&hourly, &[1, 9]), [3_600_000, 3_600_000], "no shorter than the policy says");
        let schedule = RetryPolicy::schedule(vec![10, 2_000]);
        assert_eq!(waits(&schedule, &[1, 2, 3, 4, 100]), [10, 2_000, 4_000, 8_000, 600_000]);
        let custom = RetryPolicy::Custom { rule: String::new(), otherwise: Box::new(RetryPolicy::None) };
        for policy in [RetryPolicy::None, custom, RetryPolicy::schedule(vec![])] {
            assert_eq!(waits(&policy, &[1, 2, 100]), [1_000, 2_000, 600_000], "{policy:?}");
        }
    }

    #[test]
    fn a_late_attempt_does_not_overflow() {
        let policy = RetryPolicy::Exponential {
            initial_ms: 1,
            max_ms: LONGEST_DELAY_MS,
            factor: 10.0,
            jitter: 0.0,
            max_attempts: u32::MAX,
            max_elapsed_ms: None,
            budget: RetryBudget::default(),
        };
        assert_eq!(policy.delay(u32::MAX - 1, 0.0), Some(Duration::from_millis(LONGEST_DELAY_MS)));
    }

    #[test]
    fn what_the_document_cannot_say_is_named() {
        let fields = |policy: &RetryPolicy| policy.problems().into_iter().map(|(field, _)| field).collect::<Vec<_>>();
        assert_eq!(fields(&exponential_policy(2, 1, 5)), ["max_ms"]);
        assert_eq!(fields(&RetryPolicy::schedule(vec![1, LONGEST_DELAY_MS + 1])), ["delays_ms"]);
        assert_eq!(fields(&RetryPolicy::default()), [""; 0]);
    }

    #[test]
    fn a_scripts_limits_are_those_of_its_other_policy() {
        let budget = RetryBudget { share: 1.0, ..RetryBudget::default() };
        let limited = RetryPolicy::Schedule { delays_ms: vec![1], max_elapsed_ms: Some(7), budget };
        let custom = RetryPolicy::Custom { rule: "x".to_owned(), otherwise: Box::new(limited) };
        assert_eq!(custom.limits(), RetryLimits { max_elapsed_ms: Some(7), budget });
        assert_eq!(RetryPolicy::None.limits(), RetryLimits::default());
    }
}
