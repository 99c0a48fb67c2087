//! A channel's routing configuration: candidates, strategy, retry policy, fallback.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ids::ConnectionId, overrides::Overrides, provider::Cost, retry::RetryPolicy};

/// The order of the candidates. The first is asked first, the others follow where it did not accept the delivery.
///
/// - `primary`: as the route lists them.
/// - `round_robin`: in turn, each as often as its weight says.
/// - `weighted_random`: at random, each as often as its weight says.
/// - `least_cost`: the cheapest for this delivery first; unknown costs come last.
/// - `highest_reliability`: the candidate that succeeded most often lately with the destination's country first, the
///   quickest among equals. One in fifty deliveries asks another candidate, to learn its success rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    #[default]
    Primary,
    RoundRobin,
    WeightedRandom,
    LeastCost,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// One connection of a route. `C` names the connection: by id, or as a client did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(bound = "", description = "One connection of a route.")]
pub struct Candidate<C = ConnectionId> {
    /// Its id or uid.
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    pub connection: C,
    /// Its share under `round_robin` and `weighted_random`; 1, if left out. With 0 it is asked only after the others,
    /// whatever the strategy is.
    #[serde(default = "one")]
    #[schema(maximum = 100)]
    pub weight: u32,
    /// The cost of a unit (a message, or a segment of one), in place of its provider's.
    #[serde(default)]
    pub cost: Option<Cost>,
    /// The most that a delivery through it may cost, beside the route's own ceiling.
    #[serde(default)]
    pub max_cost: Option<Cost>,
}

impl Candidate {
    /// With a weight of one, and without costs.
    #[must_use]
    pub const fn new(connection: ConnectionId) -> Self {
        Self { connection, weight: one(), cost: None, max_cost: None }
    }
}

const fn one() -> u32 {
    1
}

/// The routing of a channel's messages. `C` names connections: by id, or as a client did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(bound = "", description = "The routing of a channel's messages.")]
pub struct RouteSpec<C = ConnectionId> {
    /// In order of preference; each once.
    // Without a default, serde would refuse the whole specification, and the rest of it would not be checked.
    #[serde(default)]
    #[schema(value_type = Vec<Candidate>, required = true, min_items = 1, max_items = 20)]
    pub candidates: Vec<Candidate<C>>,
    #[serde(default)]
    pub strategy: Strategy,
    /// The most that a delivery may cost. A candidate is not asked if its estimate is higher, or in another currency.
    #[serde(default)]
    pub max_cost: Option<Cost>,
    /// A candidate that succeeded less often lately is not asked while another one succeeds as often.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1)]
    pub min_success_rate: Option<f64>,
    #[serde(default)]
    pub retry: RetryPolicy,
    /// Meanings of providers' codes; they take precedence over the tenant's settings.
    #[serde(default)]
    pub overrides: Overrides,
    /// Whether the next candidate is asked at once when one did not accept the delivery; true, if left out.
    #[serde(default = "yes")]
    pub fallback: bool,
    /// Null or left out: `retry` where the provider recognises a repetition, `hold` where it does not.
    #[serde(default)]
    pub on_unknown: Option<OnUnknown>,
}

const fn yes() -> bool {
    true
}

impl<C> RouteSpec<C> {
    /// The same route with its connections named otherwise, in the same order.
    #[must_use]
    pub fn with_connections<D>(self, connections: impl IntoIterator<Item = D>) -> RouteSpec<D> {
        let named = self.candidates.into_iter().zip(connections);
        let candidates = named
            .map(|(Candidate { weight, cost, max_cost, .. }, connection)| Candidate {
                connection,
                weight,
                cost,
                max_cost,
            })
            .collect();
        RouteSpec {
            candidates,
            strategy: self.strategy,
            max_cost: self.max_cost,
            min_success_rate: self.min_success_rate,
            retry: self.retry,
            overrides: self.overrides,
            fallback: self.fallback,
            on_unknown: self.on_unknown,
        }
    }
}

impl RouteSpec {
    /// The route of a message that names its own connection.
    #[must_use]
    pub fn pinned(connection: ConnectionId) -> Self {
        Self {
            candidates: vec![Candidate::new(connection)],
            strategy: Strategy::Primary,
            max_cost: None,
            min_success_rate: None,
            retry: RetryPolicy::default(),
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
