//! The scripts' answers about a route's candidates, before the strategy orders them. A failure leaves the route's own
//! decision.

use std::{sync::Arc, time::Instant};

use super::{PlanRequest, Planner, candidates::country};
use crate::{clock, engine::rule_hooks::RuleHooks, engine::rule_runner::PATIENCE, node::tenant_config::Endpoint};
use angarium_domain::{ids::TenantId, message::Message, route::Candidate, routing::Estimate, rule_input::RuleInput};
use angarium_rules::{
    question::RouteQuestion,
    rulebook::{Routed, Rulebook},
    script::{Given, Hook, facts::CandidateFacts},
};

impl Planner {
    /// Asks the tenant's scripts within its time, and shadows beside them; `None` if no script is asked.
    pub(super) async fn ask_scripts(
        &self,
        tenant: TenantId,
        book: &Arc<Rulebook>,
        request: &mut PlanRequest<'_, '_>,
    ) -> Option<Routed> {
        if !book.asks(Hook::Route) {
            return None;
        }
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let until = request.judged.until.unwrap_or_else(|| Instant::now() + PATIENCE);
        let (message, (input, candidates)) = (request.message, self.script_facts(request));
        let question = RouteQuestion { message, input: &input, candidates: &candidates };
        Some(self.hooks().ask(tenant, book, until, given, &question).await)
    }

    /// Returns the facts that scripts are asked about: the message and the route's candidates.
    pub(super) fn script_facts(&self, request: &mut PlanRequest<'_, '_>) -> (RuleInput, Vec<CandidateFacts>) {
        let candidates = self.candidate_facts(request);
        (RuleInput::with(request.message, request.judged.input.take()), candidates)
    }

    /// Returns the way to ask the tenants' rules and scripts.
    pub fn hooks(&self) -> RuleHooks<'_> {
        RuleHooks { store: &self.store, experiments: &self.experiments, runner: &self.rules }
    }

    /// Returns a route's candidates as scripts see them.
    fn candidate_facts(&self, request: &PlanRequest<'_, '_>) -> Vec<CandidateFacts> {
        let PlanRequest { config, route, message, .. } = request;
        let known = |candidate: &Candidate| {
            let endpoint = config.endpoints.get(&candidate.connection)?;
            let score = route.score_of(candidate.connection);
            let mut facts = route_facts(candidate, endpoint, message, score);
            if let Some(Estimate { cost, .. }) = self.estimate(candidate, endpoint, message) {
                facts.cost = Some(cost.micros as f64 / 1e6);
                facts.currency = Some(cost.currency);
            }
            let record = self.observations.read(candidate.connection, country(message), Instant::now());
            facts.success_rate = (record.answers > 0.0).then_some(record.success_rate);
            facts.answers = record.answers;
            facts.latency_ms = record.latency_ms;
            let skip = self.skip(config, candidate.connection, message);
            facts.skip_reason = skip.map(|it| it.as_str().to_owned());
            Some(facts)
        };
        route.spec.candidates.iter().filter_map(known).collect()
    }
}

/// Returns the facts of a candidate by its route and its rules.
fn route_facts(candidate: &Candidate, endpoint: &Endpoint, message: &Message, score: Option<f64>) -> CandidateFacts {
    CandidateFacts {
        connection: endpoint.name(),
        provider: endpoint.connection.provider.clone(),
        channel: message.first().channel.as_str().to_owned(),
        weight: Some(f64::from(candidate.weight)),
        score,
        ..CandidateFacts::default()
    }
}
