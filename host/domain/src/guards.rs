//! Limits on asking a connection: its circuit breaker's policy and its rate limit, as a tenant sets them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A connection's guards, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guards {
    pub breaker: BreakerPolicy,
    /// `None`: as fast as it goes.
    pub rate_limit: Option<RateLimit>,
}

/// When a connection is no longer asked, and how it is found to work again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerPolicy {
    /// Without it, only a person opens the breaker.
    pub enabled: bool,
    /// How far back answers count for the failure rate.
    pub window_ms: u64,
    /// Fewer answers than these have no failure rate.
    pub min_requests: u32,
    /// In 0..=1: at such a part of failures it opens.
    pub failure_rate: f64,
    /// After so many failures, one upon the other, it opens.
    pub consecutive_failures: u32,
    /// How long it stays open; twice as long each time that its probes fail.
    pub open_ms: u64,
    /// How many deliveries try it afterwards: when all of them go well it closes.
    pub probes: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            window_ms: 60_000,
            min_requests: 20,
            failure_rate: 0.5,
            consecutive_failures: 20,
            open_ms: 30_000,
            probes: 3,
        }
    }
}

/// How often a connection may be asked, by all nodes together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub per_second: f64,
    /// How many at once after a pause.
    pub burst: u32,
}

impl RateLimit {
    /// Returns a limit whose burst is the allowance of a second.
    #[must_use]
    pub fn per_second(per_second: f64) -> Self {
        Self { per_second, burst: (per_second.ceil() as u32).max(1) }
    }

    /// The time from one request to the next.
    #[must_use]
    pub fn step(&self) -> Duration {
        Duration::try_from_secs_f64(1.0 / self.per_second).unwrap_or(Duration::MAX)
    }
}

/// The longest time that a policy may name: an hour.
const LONGEST_MS: u64 = 3_600_000;

impl BreakerPolicy {
    /// Returns each invalid field with its requirement.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let checks = [
            ((1_000..=LONGEST_MS).contains(&self.window_ms), "window_ms", "1000 to 3600000 (an hour)"),
            ((1..=100_000).contains(&self.min_requests), "min_requests", "1 to 100000"),
            ((0.01..=1.0).contains(&self.failure_rate), "failure_rate", "0.01 to 1"),
            ((1..=100_000).contains(&self.consecutive_failures), "consecutive_failures", "1 to 100000"),
            ((100..=LONGEST_MS).contains(&self.open_ms), "open_ms", "100 to 3600000 (an hour)"),
            ((1..=100).contains(&self.probes), "probes", "1 to 100"),
        ];
        checks.into_iter().filter(|(ok, ..)| !ok).map(|(_, field, detail)| (field, detail)).collect()
    }
}

impl RateLimit {
    /// Returns each invalid field with its requirement.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let checks = [
            ((0.001..=100_000.0).contains(&self.per_second), "per_second", "0.001 to 100000"),
            ((1..=100_000).contains(&self.burst), "burst", "1 to 100000"),
        ];
        checks.into_iter().filter(|(ok, ..)| !ok).map(|(_, field, detail)| (field, detail)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        let guards: Guards = serde_json::from_str(r#"{"breaker": {"probes": 1}}"#).unwrap();
        assert_eq!(guards, Guards { breaker: BreakerPolicy { probes: 1, ..Default::default() }, rate_limit: None });
        assert!(guards.breaker.problems().is_empty());
    }

    #[test]
    fn every_bad_field_is_named() {
        let policy = BreakerPolicy {
            enabled: true,
            window_ms: 0,
            min_requests: 0,
            failure_rate: f64::NAN,
            consecutive_failures: 0,
            open_ms: u64::MAX,
            probes: 0,
        };
        let fields: Vec<_> = policy.problems().into_iter().map(|(field, _)| field).collect();
        let all = ["window_ms", "min_requests", "failure_rate", "consecutive_failures", "open_ms", "probes"];
        assert_eq!(fields, all);
        assert_eq!(RateLimit { per_second: 0.0, burst: 0 }.problems().len(), 2);
        assert_eq!(RateLimit::per_second(0.1).burst, 1);
    }
}
