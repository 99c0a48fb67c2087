//! The scripts' answers about a route's candidates, before the strategy orders them. A failure leaves the route's own
//! decision.

use std::{sync::Arc, time::Instant};

use super::{PlanRequest, Planner, candidates::country};
use crate::{clock, engine::rule_runner::PATIENCE, engine::script_failures, node::tenant_config::Endpoint};
use angarium_domain::{ids::TenantId, message::Message, route::Candidate, routing::Estimate, rule_input::RuleInput};
use angarium_rules::{
    experiment::ShadowQuestion,
    rulebook::{Failure, Routed, Rulebook},
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
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        if book.shadows(Hook::Route).next().is_some() {
            let candidates = self.candidate_facts(request);
            let question = ShadowQuestion::Route { message: Arc::new(request.message.clone()), candidates };
            self.experiments.ask(tenant, book, question, given);
        }
        let serving = book.for_message(request.message);
        let (input, candidates) = self.script_question(&serving, request)?;
        let until = request.judged.until.unwrap_or_else(|| Instant::now() + PATIENCE);
        Some(self.rules.ask(tenant, until, || serving.route(&input, candidates.clone(), &given)).await)
    }

    /// Returns the question to the scripts of `book`; `None` if no script is asked.
    pub(super) fn script_question(
        &self,
        book: &Rulebook,
        request: &mut PlanRequest<'_, '_>,
    ) -> Option<(RuleInput, Vec<CandidateFacts>)> {
        book.with(Hook::Route).chain(book.with(Hook::Score)).next()?;
        let candidates = self.candidate_facts(request);
        Some((RuleInput::with(request.message, request.judged.input.take()), candidates))
    }

    /// Reports a script's fault, and returns it for the attempt.
    pub fn script_failed(&self, book: &Rulebook, tenant: TenantId, message: &Message, failure: &Failure) -> String {
        self.experiments.failed(tenant, book, message, &failure.script);
        script_failures::report(&self.store, tenant, message.id, failure, "the route decides");
        let what = if failure.fault.unasked().is_some() { "was not asked" } else { "failed" };
        format!("the script {what}: {}", failure.fault)
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
        channel: message.channel.as_str().to_owned(),
        weight: Some(f64::from(candidate.weight)),
        score,
        ..CandidateFacts::default()
    }
}
