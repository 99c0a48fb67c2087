//! Plans a delivery's next attempt: which connections are asked, in which order, and why others are not. Dispatch, the
//! first attempt at acceptance, dry runs, evaluations and backtests use one function. It sends and stores nothing, and
//! does not decide what follows an attempt.

mod candidates;
mod effective_route;
mod first_attempt;
mod round_robin_counter;
mod scripts;

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

pub use self::{candidates::country, effective_route::EffectiveRoute, round_robin_counter::RoundRobinCounter};
use crate::{
    clock,
    engine::experiments::Experiments,
    engine::observations::Observations,
    engine::rule_runner::RuleRunner,
    node::providers::Providers,
    node::tenant_config::{Endpoint, TenantConfig},
};
use angarium_domain::{
    attempt::PastAttempt,
    ids::TenantId,
    message::Message,
    routing::{self, AcceptTimePlan, Plan, PlanInput},
};
use angarium_rules::{
    rulebook::{Failure, JudgedMessage, Routed, Rulebook},
    script::{Given, Hook},
};
use angarium_store::Store;

/// Makes plans from what this node knows.
pub struct Planner {
    /// Stores the events about scripts that fail.
    pub store: Store,
    pub experiments: Arc<Experiments>,
    pub rules: Arc<RuleRunner>,
    pub providers: Arc<Providers>,
    pub observations: Arc<Observations>,
    pub turns: RoundRobinCounter,
}

/// The input of a plan, in which its users differ.
pub struct PlanRequest<'c, 'm> {
    pub config: &'c TenantConfig,
    pub route: EffectiveRoute<'c>,
    pub message: &'m Message,
    /// The attempts that count, oldest first.
    pub past: &'m [PastAttempt],
    /// The data that acceptance has parsed of the message.
    pub judged: JudgedMessage,
    pub guards: GuardUse,
    /// The delivery's turn among those of its route.
    pub turn: u64,
    /// In 0..1.
    pub chance: f64,
}

/// Whether circuit breakers and rates exclude a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardUse {
    Respected,
    /// They pass: a backtest looks at other times.
    Ignored,
}

/// A plan and the route that it follows.
pub struct RoutePlan<'c> {
    pub route: EffectiveRoute<'c>,
    pub plan: Plan,
    /// The scripts' answers about the candidates, as JSON.
    pub scripts: Option<Box<RawValue>>,
    /// The scripts' faults.
    pub faults: Vec<String>,
}

/// A plan as dry runs and evaluations show it.
#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    #[serde(flatten)]
    pub plan: Plan,
    /// The scripts' answers about the candidates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scripts: Option<Box<RawValue>>,
    /// The parts that cannot be followed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

impl Planner {
    /// Plans the next attempt of a tenant's delivery. The tenant's own scripts are asked within its time; experiments
    /// are asked beside them, and faults are reported.
    pub async fn plan<'c>(&self, tenant: TenantId, mut request: PlanRequest<'c, '_>) -> RoutePlan<'c> {
        let config = request.config;
        request.score();
        let Some(book) = config.rulebook.as_ref().filter(|_| request.route.is_open()) else {
            return self.ordered(request, None);
        };
        let mut routed = self.ask_scripts(tenant, book, &mut request).await;
        let failures = routed.as_mut().map(|it| std::mem::take(&mut it.failures)).unwrap_or_default();
        let mut planned = self.ordered(request, routed);
        planned.faults.extend(failures.iter().map(Failure::describe));
        planned
    }

    /// Plans as a trial: the scripts of `book` are asked on this thread, and nothing of it counts. The caller limits
    /// their time.
    fn plan_trial<'c>(
        &self,
        mut request: PlanRequest<'c, '_>,
        book: Option<&Rulebook>,
        given: &Given,
    ) -> RoutePlan<'c> {
        request.score();
        let book = book.filter(|_| request.route.is_open());
        let routed = book.filter(|book| book.runs(Hook::Route)).map(|book| {
            let (input, candidates) = self.script_facts(&mut request);
            book.route(&input, &candidates, given)
        });
        self.ordered(request, routed)
    }

    /// The one plan behind all of them: the scripts' selection, then the strategy's order, then the rules' scores.
    fn ordered<'c>(&self, request: PlanRequest<'c, '_>, routed: Option<Routed>) -> RoutePlan<'c> {
        let PlanRequest { config, mut route, message, past, guards, turn, chance, .. } = request;
        let (mut scripts, mut faults) = (None, Vec::new());
        if let Some(Routed { order, hook_records, .. }) = routed {
            // Records are plain data: they always have a JSON form.
            scripts = if hook_records.is_empty() { None } else { serde_json::value::to_raw_value(&hook_records).ok() };
            faults = order.map(|order| route.follow_scripts(config, order, past)).unwrap_or_default();
        }
        let mut states = self.candidate_states(config, &route.spec, message);
        if guards == GuardUse::Ignored {
            states.iter_mut().for_each(|it| it.skip = it.skip.filter(|skip| !skip.is_a_guard()));
        }
        let plan_input = PlanInput { past, first: message.body.first, turn, chance };
        let mut plan = routing::plan(&route.spec, &states, &plan_input);
        route.prefer(&mut plan);
        RoutePlan { route, plan, scripts, faults }
    }

    /// Plans a message that is not accepted, for a dry run or an evaluation: it takes no turn, and a script's fault does
    /// not count. `None` if no route serves its channel.
    #[must_use]
    pub fn plan_dry_run(&self, config: &TenantConfig, message: &Message) -> Option<Planned> {
        let route = EffectiveRoute::of(config, message)?;
        let book = config.rulebook.as_ref().filter(|_| route.is_open());
        let book = book.map(|book| book.for_message(message).rehearsal());
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        let turn = route.route.map_or(0, |(id, _)| self.turns.upcoming(id));
        let request = PlanRequest::new(config, route, message, turn, fastrand::f64());
        let (planned, _) = self.rules.as_for_a_message(|| self.plan_trial(request, book.as_ref(), &given));
        Some(Planned { plan: planned.plan, scripts: planned.scripts, problems: planned.faults })
    }

    /// Returns the connection that would be asked first under other rules. A passing obstacle, such as an open breaker,
    /// excludes none. The caller limits the scripts' time.
    #[must_use]
    pub fn backtest_first_connection<'c>(
        &self,
        config: &'c TenantConfig,
        book: &Rulebook,
        message: &Message,
        given: &Given,
    ) -> Option<&'c Endpoint> {
        let route = EffectiveRoute::of(config, message)?;
        let turn = (given.chance * 10_000.0) as u64;
        let request = PlanRequest::new(config, route, message, turn, given.chance);
        let request = PlanRequest { guards: GuardUse::Ignored, ..request };
        let planned = self.plan_trial(request, Some(book), given);
        config.endpoints.get(&planned.plan.first()?).map(|endpoint| &**endpoint)
    }

    /// Takes the next turn of a route; a message that names its connection needs none.
    pub fn take_turn(&self, route: &EffectiveRoute<'_>) -> u64 {
        route.route.map_or(0, |(id, _)| self.turns.take(id))
    }
}

impl<'c, 'm> PlanRequest<'c, 'm> {
    /// Requests a plan for a message without attempts, within its guards.
    #[must_use]
    pub fn new(
        config: &'c TenantConfig,
        route: EffectiveRoute<'c>,
        message: &'m Message,
        turn: u64,
        chance: f64,
    ) -> Self {
        let (judged, guards) = (JudgedMessage::default(), GuardUse::Respected);
        Self { config, route, message, past: &[], judged, guards, turn, chance }
    }

    /// Gives the route the rules' scores of acceptance.
    fn score(&mut self) {
        self.route.score(self.config, self.message, self.judged.scores.take());
    }
}

impl<'c> RoutePlan<'c> {
    /// Follows the plan that was made at acceptance.
    #[must_use]
    pub fn of_acceptance(route: EffectiveRoute<'c>, accepted: AcceptTimePlan) -> Self {
        let AcceptTimePlan { plan, by_scripts, scripts, faults, .. } = accepted;
        Self { route: route.replaced(by_scripts), plan, scripts, faults }
    }

    /// Describes the plan for the attempt's record, with the scripts' answers.
    #[must_use]
    pub fn describe(&self) -> Arc<str> {
        // A plan is plain data: it always has a JSON form.
        let json = match &self.scripts {
            None => serde_json::to_string(&self.plan),
            Some(scripts) => serde_json::to_string(&Described { plan: &self.plan, scripts }),
        };
        json.unwrap_or_default().into()
    }
}

/// A plan with the scripts' answers before it was made.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    scripts: &'a RawValue,
}
