//! A channel's routing configuration: candidates, strategy, retry policy, fallback.

use serde::{Deserialize, Serialize};

use super::{
    ids::ConnectionId,
    overrides::Overrides,
    provider::Cost,
    retry::{RetryLimits, RetryPolicy},
};

/// How the candidates are ordered. Each is one pure function in `routing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// As the route lists them: the first serves, the others stand in.
    #[default]
    Primary,
    /// In turn, each as often as its weight says.
    RoundRobin,
    /// By lot, each as often as its weight says.
    WeightedRandom,
    /// The cheapest for this delivery first.
    LeastCost,
    /// The candidate with the best recent record for this destination; now and then another, to learn how it performs.
    HighestReliability,
}

impl Strategy {
    /// The word in the API and in plans.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::RoundRobin => "round_robin",
            Self::WeightedRandom => "weighted_random",
            Self::LeastCost => "least_cost",
            Self::HighestReliability => "highest_reliability",
        }
    }
}

/// The reaction to a request that began and got no definite answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// Again on the same connection with the same key.
    Retry,
    /// Wait for a receipt or a person.
    Hold,
}

impl OnUnknown {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Hold => "hold",
        }
    }
}

/// One connection of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    pub connection: ConnectionId,
    /// Its share under the strategies with shares; with 0 it only stands in for the others, under every strategy.
    #[serde(default = "one")]
    pub weight: u32,
    /// The price of a unit (a message, or a segment of one), in place of the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// The most that a delivery through it may cost, beside the route's own ceiling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Cost>,
}

impl Candidate {
    /// With a weight of one, and no word on costs.
    #[must_use]
    pub const fn new(connection: ConnectionId) -> Self {
        Self { connection, weight: one(), cost: None, max_cost: None }
    }
}

const fn one() -> u32 {
    1
}

/// A version of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// 1 to 20, each connection once.
    pub candidates: Vec<Candidate>,
    #[serde(default)]
    pub strategy: Strategy,
    /// The highest cost of a delivery: a candidate with a higher estimate is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Cost>,
    /// In 0..=1: a candidate with a lower recent success rate is not asked while another one reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_success_rate: Option<f64>,
    #[serde(default)]
    pub retry: RetryPolicy,
    #[serde(default)]
    pub retry_limits: RetryLimits,
    /// The meaning of providers' codes; it takes precedence over the tenant's.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub overrides: Overrides,
    /// Whether the next candidate serves at once when one did not take the delivery.
    #[serde(default = "yes")]
    pub fallback: bool,
    /// Left out: `retry` where the provider recognises a repetition, `hold` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown: Option<OnUnknown>,
}

const fn yes() -> bool {
    true
}

impl RouteSpec {
    /// Returns the route of a message that names its own connection.
    #[must_use]
    pub fn pinned(connection: ConnectionId) -> Self {
        Self {
            candidates: vec![Candidate::new(connection)],
            strategy: Strategy::Primary,
            max_cost: None,
            min_success_rate: None,
            retry: RetryPolicy::default(),
            retry_limits: RetryLimits::default(),
            overrides: Overrides::default(),
            fallback: false,
            on_unknown: None,
        }
    }

    /// Whether any decision of it depends on a delivery's cost.
    #[must_use]
    pub fn goes_by_cost(&self) -> bool {
        self.strategy == Strategy::LeastCost
            || self.max_cost.is_some()
            || self.candidates.iter().any(|it| it.max_cost.is_some())
    }

    /// Whether anything of it hangs on how the candidates have done lately.
    #[must_use]
    pub fn goes_by_record(&self) -> bool {
        self.strategy == Strategy::HighestReliability || self.min_success_rate.is_some()
    }

    /// Returns the candidate that every node asks first for a fresh delivery, if neither turns, chance nor a node's
    /// observations decide it.
    #[must_use]
    pub fn certain_first(&self) -> Option<ConnectionId> {
        let as_listed = self.strategy == Strategy::Primary && !self.goes_by_cost() && !self.goes_by_record();
        if !as_listed && self.candidates.len() > 1 {
            return None;
        }
        let serving = self.candidates.iter().find(|it| it.weight > 0);
        serving.or(self.candidates.first()).map(|it| it.connection)
    }
}
