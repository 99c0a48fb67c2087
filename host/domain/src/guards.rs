//! Limits on asking a connection: its circuit breaker's policy and its rate limit, as a tenant sets them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Protection of a connection against too many requests.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Guards {
    /// Members that are left out have their defaults.
    pub breaker: BreakerPolicy,
    /// Null or left out: no limit.
    pub rate_limit: Option<RateLimit>,
}

/// When a connection's circuit breaker opens, and how it closes again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerPolicy {
    /// Whether failures open the breaker; true, if left out. Where it is false only a person opens it.
    pub enabled: bool,
    /// How far back answers count for the failure rate; 60000, if left out.
    #[schema(minimum = 1000, maximum = 3_600_000)]
    pub window_ms: u64,
    /// Answers within the window below which there is no failure rate; 20, if left out.
    #[schema(minimum = 1, maximum = 100_000)]
    pub min_requests: u32,
    /// The share of failures at which the breaker opens; 0.5, if left out.
    #[schema(minimum = 0.01, maximum = 1)]
    pub failure_rate: f64,
    /// The failures in a row after which the breaker opens; 20, if left out.
    #[schema(minimum = 1, maximum = 100_000)]
    pub consecutive_failures: u32,
    /// How long the breaker stays open, twice as long each time that its probes fail; 30000, if left out.
    #[schema(minimum = 100, maximum = 3_600_000)]
    pub open_ms: u64,
    /// Deliveries that try the connection afterwards, of all nodes together: when all succeed the breaker closes. 3, if
    /// left out.
    #[schema(minimum = 1, maximum = 100)]
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

/// The most requests through a connection, of all nodes together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(from = "GivenRateLimit", deny_unknown_fields)]
pub struct RateLimit {
    #[schema(minimum = 0.001, maximum = 100_000, example = 10)]
    pub per_second: f64,
    /// Requests at once after a pause; left out, as many as in a second.
    #[schema(required = false, minimum = 1, maximum = 100_000)]
    pub burst: u32,
}

/// A limit as a tenant gives it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenRateLimit {
    per_second: f64,
    burst: Option<u32>,
}

impl From<GivenRateLimit> for RateLimit {
    fn from(given: GivenRateLimit) -> Self {
        let whole = Self::per_second(given.per_second);
        Self { burst: given.burst.unwrap_or(whole.burst), ..whole }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        let guards: Guards = serde_json::from_str(r#"{"breaker": {"probes": 1}}"#).unwrap();
        assert_eq!(guards, Guards { breaker: BreakerPolicy { probes: 1, ..Default::default() }, rate_limit: None });
    }

    #[test]
    fn a_burst_that_is_left_out_is_that_of_a_second() {
        let burst = |json: &str| serde_json::from_str::<RateLimit>(json).unwrap().burst;
        assert_eq!((burst(r#"{"per_second": 2.5}"#), burst(r#"{"per_second": 0.1}"#)), (3, 1));
        assert_eq!(burst(r#"{"per_second": 2.5, "burst": 9}"#), 9);
    }
}
