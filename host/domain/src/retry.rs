//! When to try again.

pub mod budget;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::budget::RetryBudget;

/// How often, and after how long, a route tries again once none of its candidates took a delivery.
/// One walk down the candidates is one attempt of the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RetryPolicy {
    None,
    /// The same delay each time.
    Linear {
        delay_ms: u64,
        max_attempts: u32,
    },
    /// `initial_ms · factor^n`, at most `max_ms`, each shortened by up to `jitter` of itself at random.
    Exponential {
        initial_ms: u64,
        max_ms: u64,
        #[serde(default = "two")]
        factor: f64,
        #[serde(default = "half")]
        jitter: f64,
        max_attempts: u32,
    },
    /// One delay after each attempt.
    Schedule {
        delays_ms: Vec<u64>,
    },
    /// As the rule of this name decides; as `otherwise` says where it does not answer.
    Custom {
        rule: String,
        otherwise: Box<Self>,
    },
}

/// Limits that apply to every policy.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryLimits {
    /// Counted from the beginning of the first attempt: a retry that would begin later is not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_elapsed_ms: Option<u64>,
    #[serde(default)]
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
        }
    }
}

impl RetryPolicy {
    /// The wait after `made` attempts (1 or more), or `None` when there is no further one.
    /// `chance` lies in 0..1.
    #[must_use]
    pub fn delay(&self, made: u32, chance: f64) -> Option<Duration> {
        let made = made.max(1);
        let ms = match self {
            Self::None => return None,
            Self::Linear { delay_ms, max_attempts } => (made < *max_attempts).then_some(*delay_ms)?,
            Self::Exponential { initial_ms, max_ms, factor, jitter, max_attempts } => {
                (made < *max_attempts).then_some(())?;
                exponential(*initial_ms, *max_ms, *factor, *jitter, made, chance)
            }
            Self::Schedule { delays_ms } => *delays_ms.get(made as usize - 1)?,
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
            Self::Schedule { delays_ms } => match (delays_ms.get(rounds as usize - 1), delays_ms.last()) {
                (Some(delay), _) => *delay,
                (None, Some(last)) => doubled(*last, rounds - u32::try_from(delays_ms.len()).unwrap_or(rounds)),
                (None, None) => return Self::None.throttled_delay(rounds, chance),
            },
            Self::Custom { otherwise, .. } => return otherwise.throttled_delay(rounds, chance),
        };
        Duration::from_millis(ms.min(LONGEST_DELAY_MS))
    }

    /// Returns each invalid field with its requirement.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, field, detail: String| {
            if !ok {
                problems.push((field, detail));
            }
        };
        let delay = |ms: u64| ms <= LONGEST_DELAY_MS;
        let too_long = || format!("at most {LONGEST_DELAY_MS} (31 days)");
        match self {
            Self::None => {}
            Self::Linear { delay_ms, max_attempts } => {
                check(delay(*delay_ms), "delay_ms", too_long());
                check((1..=100).contains(max_attempts), "max_attempts", "1 to 100".into());
            }
            Self::Exponential { initial_ms, max_ms, factor, jitter, max_attempts } => {
                check(*initial_ms > 0, "initial_ms", "at least 1".into());
                check(
                    delay(*max_ms) && max_ms >= initial_ms,
                    "max_ms",
                    format!("`initial_ms` or more, {}", too_long()),
                );
                check((1.0..=10.0).contains(factor), "factor", "1 to 10".into());
                check((0.0..=1.0).contains(jitter), "jitter", "0 to 1".into());
                check((1..=100).contains(max_attempts), "max_attempts", "1 to 100".into());
            }
            Self::Schedule { delays_ms } => {
                check(delays_ms.len() <= 100, "delays_ms", "at most 100 delays".into());
                check(delays_ms.iter().all(|ms| delay(*ms)), "delays_ms", too_long());
            }
            Self::Custom { otherwise, .. } => return otherwise.problems(),
        }
        problems
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

    fn delays(policy: &RetryPolicy, chance: f64) -> Vec<u64> {
        (1..).map_while(|made| policy.delay(made, chance)).map(|delay| delay.as_millis() as u64).collect()
    }

    #[test]
    fn each_policy_gives_its_delays_and_then_ends() {
        assert_eq!(delays(&RetryPolicy::None, 0.0), [0; 0]);
        assert_eq!(delays(&RetryPolicy::Linear { delay_ms: 5, max_attempts: 3 }, 0.9), [5, 5]);
        assert_eq!(delays(&RetryPolicy::Schedule { delays_ms: vec![1, 7] }, 0.9), [1, 7]);
        let doubling =
            RetryPolicy::Exponential { initial_ms: 100, max_ms: 500, factor: 2.0, jitter: 0.5, max_attempts: 5 };
        assert_eq!(delays(&doubling, 0.0), [100, 200, 400, 500]);
        assert_eq!(delays(&doubling, 1.0), [50, 100, 200, 250]);
    }

    #[test]
    fn a_throttled_round_waits_longer_each_time_and_never_ends() {
        let waits = |policy: &RetryPolicy, rounds: &[u32]| {
            rounds.iter().map(|round| policy.throttled_delay(*round, 0.0).as_millis() as u64).collect::<Vec<_>>()
        };
        let doubling =
            RetryPolicy::Exponential { initial_ms: 100, max_ms: 500, factor: 2.0, jitter: 0.5, max_attempts: 2 };
        assert_eq!(waits(&doubling, &[1, 2, 3, 4, u32::MAX]), [100, 200, 400, 500, 500]);
        let linear = RetryPolicy::Linear { delay_ms: 50, max_attempts: 2 };
        assert_eq!(waits(&linear, &[1, 2, 5, 100]), [50, 100, 800, 600_000]);
        let hourly = RetryPolicy::Linear { delay_ms: 3_600_000, max_attempts: 2 };
        assert_eq!(waits(&hourly, &[1, 9]), [3_600_000, 3_600_000], "no shorter than the policy says");
        let schedule = RetryPolicy::Schedule { delays_ms: vec![10, 2_000] };
        assert_eq!(waits(&schedule, &[1, 2, 3, 4, 100]), [10, 2_000, 4_000, 8_000, 600_000]);
        let custom = RetryPolicy::Custom { rule: String::new(), otherwise: Box::new(RetryPolicy::None) };
        for policy in [RetryPolicy::None, custom, RetryPolicy::Schedule { delays_ms: vec![] }] {
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
        };
        assert_eq!(policy.delay(u32::MAX - 1, 0.0), Some(Duration::from_millis(LONGEST_DELAY_MS)));
    }

    #[test]
    fn every_bad_field_is_named() {
        let policy =
            RetryPolicy::Exponential { initial_ms: 0, max_ms: 0, factor: f64::NAN, jitter: 2.0, max_attempts: 0 };
        let fields: Vec<_> = policy.problems().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["initial_ms", "factor", "jitter", "max_attempts"]);
    }
}
