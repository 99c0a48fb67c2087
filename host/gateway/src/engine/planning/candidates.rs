//! The facts of a route's candidates: whether they can be asked, their estimated cost, and their recent record. Only
//! facts that the route uses are looked up.

use std::time::Instant;

use super::Planner;
use crate::node::tenant_config::{Endpoint, TenantConfig};
use angarium_domain::{
    attempt::PastAttempt,
    country::Country,
    destination::origin,
    ids::ConnectionId,
    message::Message,
    price::{self, Price},
    provider::{Cost, Deduplication},
    route::{Candidate, OnUnknown, RouteSpec},
    routing::{self, Availability, Basis, CandidateState, Estimate, Facts, SkipReason},
};

impl Planner {
    /// Returns the state of each candidate of a route for a message.
    pub(super) fn candidate_states(
        &self,
        config: &TenantConfig,
        spec: &RouteSpec,
        message: &Message,
    ) -> Vec<CandidateState> {
        let candidate_state = |candidate: &Candidate| CandidateState {
            connection: candidate.connection,
            skip: self.skip(config, candidate.connection, message),
            facts: self.facts(config, spec, candidate, message),
        };
        spec.candidates.iter().map(candidate_state).collect()
    }

    /// Why a connection can't be asked at all.
    pub(super) fn skip(
        &self,
        config: &TenantConfig,
        connection: ConnectionId,
        message: &Message,
    ) -> Option<SkipReason> {
        let Some(endpoint) = config.endpoints.get(&connection) else { return Some(SkipReason::ConnectionMissing) };
        if !endpoint.connection.enabled {
            return Some(SkipReason::ConnectionDisabled);
        }
        let Some(serving) = self.providers.serving_for(&endpoint.connection.provider, endpoint.tenant) else {
            return Some(SkipReason::ProviderMissing);
        };
        let channel = message.first().channel.as_str();
        let served = serving.component.descriptor().channels.iter().any(|it| it == channel);
        if !served {
            return Some(SkipReason::ChannelNotServed);
        }
        endpoint.guard.candidate_state(self.named_origin(endpoint, message).as_deref(), Instant::now())
    }

    /// Returns the origin of the endpoint that a message names, if the connection's provider asks that one: its owner
    /// differs from those of the connection's other endpoints.
    pub fn named_origin(&self, endpoint: &Endpoint, message: &Message) -> Option<String> {
        let to = message.first().to.as_ref()?;
        let serving = self.providers.serving_for(&endpoint.connection.provider, endpoint.tenant)?;
        serving.component.descriptor().asks_recipients().then(|| origin(&to.address)).flatten()
    }

    fn facts(&self, config: &TenantConfig, spec: &RouteSpec, candidate: &Candidate, message: &Message) -> Facts {
        let mut facts = Facts::default();
        let Some(endpoint) = config.endpoints.get(&candidate.connection) else { return facts };
        if spec.goes_by_cost() {
            facts.cost = self.estimate(candidate, endpoint, message);
        }
        if spec.goes_by_record() {
            facts.record = self.observations.read(candidate.connection, country(message), Instant::now());
        }
        facts
    }

    /// Estimates a message's cost by the route, otherwise by recent answers, otherwise by the provider's price list.
    pub(super) fn estimate(&self, candidate: &Candidate, endpoint: &Endpoint, message: &Message) -> Option<Estimate> {
        let estimate = |unit: Cost, units, basis| Some(Estimate { cost: unit.times(units)?, basis });
        if let Some(unit) = candidate.cost.clone() {
            return estimate(unit, price::units(message), Basis::Route);
        }
        let country = country(message);
        if let Some(unit) = self.observations.unit_cost(candidate.connection, country, Instant::now()) {
            return estimate(unit, price::units(message), Basis::Answers);
        }
        let serving = self.providers.serving_for(&endpoint.connection.provider, endpoint.tenant)?;
        let price = Price::at(serving.component.descriptor(), message.first().channel.as_str(), country)?;
        let units = price.units(message);
        estimate(price.unit, units, Basis::PriceList)
    }

    /// Returns whether any candidate can be asked, whichever is the first.
    pub fn availability(
        &self,
        config: &TenantConfig,
        spec: &RouteSpec,
        message: &Message,
        past: &[PastAttempt],
    ) -> Availability {
        routing::availability(spec, &self.candidate_states(config, spec, message), past, message.body.first)
    }

    /// Returns the route's decision, or else the provider's default: a repetition that the other side recognises does
    /// no harm.
    pub fn on_unknown(&self, spec: &RouteSpec, endpoint: &Endpoint) -> OnUnknown {
        let by_provider = || match self.deduplication(endpoint) {
            Deduplication::Key => OnUnknown::Retry,
            Deduplication::None => OnUnknown::Hold,
        };
        spec.on_unknown.unwrap_or_else(by_provider)
    }

    /// Whether a crash during the attempt can be recovered by resending, because the provider deduplicates.
    pub fn may_be_asked_again(&self, spec: &RouteSpec, endpoint: &Endpoint) -> bool {
        self.deduplication(endpoint) == Deduplication::Key && self.on_unknown(spec, endpoint) == OnUnknown::Retry
    }

    fn deduplication(&self, endpoint: &Endpoint) -> Deduplication {
        self.providers
            .serving_for(&endpoint.connection.provider, endpoint.tenant)
            .map_or(Deduplication::None, |serving| serving.component.descriptor().deduplication)
    }
}

/// Where a message goes, as far as its address tells.
pub fn country(message: &Message) -> Option<Country> {
    let leg = message.first();
    Country::of_address(leg.channel.as_str(), leg.recipient())
}
