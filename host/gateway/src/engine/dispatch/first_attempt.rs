//! The plan at acceptance: it is decided before the message is written and stored with it, so that no commit is needed
//! between acceptance and the first request. Backtests use it for the first connection under other rules.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

use super::{Dispatcher, EffectiveRoute, Pending, rule_hooks::follow_scripts};
use crate::{
    engine::queue::{AcceptTimePlan, FirstAttemptPlanner},
    node::tenant_config::{Endpoint, TenantConfig},
};
use angarium_domain::{
    ids::TenantId,
    message::Message,
    routing::{self, Plan, PlanInput, SkipReason},
};
use angarium_rules::{
    rulebook::{JudgedMessage, Rulebook},
    script::Given,
};

/// The lifetime of the plan: a delivery that waits longer may meet other conditions. Breakers and limits are asked when
/// it goes in any case.
const LIFETIME: Duration = Duration::from_secs(10);

impl AcceptTimePlan {
    /// Whether it may still be followed.
    pub(super) fn holds(&self, config: &Arc<TenantConfig>) -> bool {
        Arc::ptr_eq(&self.config, config) && self.at.elapsed() < LIFETIME
    }
}

impl EffectiveRoute<'_> {
    /// The course that was foreseen, with its plan.
    pub(super) fn following(mut self, first_attempt: AcceptTimePlan) -> (Self, Plan) {
        let AcceptTimePlan { plan, by_scripts, hook_records, faults, .. } = first_attempt;
        if let Some(spec) = by_scripts {
            (self.spec, self.by_script) = (Cow::Owned(*spec), true);
        }
        (Self { hook_records, faults, ..self }, plan)
    }
}

impl FirstAttemptPlanner for Dispatcher {
    fn plan_first<'a>(
        &'a self,
        tenant: TenantId,
        config: &'a Arc<TenantConfig>,
        message: &'a Message,
        known: JudgedMessage,
    ) -> BoxFuture<'a, Option<AcceptTimePlan>> {
        Box::pin(self.plan_first_attempt(tenant, config, message, known))
    }
}

impl Dispatcher {
    async fn plan_first_attempt(
        &self,
        tenant: TenantId,
        config: &Arc<TenantConfig>,
        message: &Message,
        known: JudgedMessage,
    ) -> Option<AcceptTimePlan> {
        if message.legs.is_some() || message.body.condition.is_some() {
            return None;
        }
        let effective = EffectiveRoute::of(config, message).filter(|effective| effective.route.is_some())?;
        let mut turn = None;
        let pending = Pending { known, ..Pending::fresh(message) };
        let (effective, plan) = self.decided(config, effective, tenant, pending, &mut turn).await;
        let endpoint = config.endpoints.get(&plan.first()?)?;
        Some(AcceptTimePlan {
            first: self.may_be_asked_again(&effective.spec, endpoint).then_some(endpoint.connection.id),
            plan,
            by_scripts: effective.by_script.then(|| Box::new(effective.spec.into_owned())),
            hook_records: effective.hook_records,
            faults: effective.faults,
            turn: turn.unwrap_or_default(),
            config: Arc::clone(config),
            at: Instant::now(),
        })
    }

    /// Returns the connection that would be asked first under other rules. No connection is asked, and a passing
    /// obstacle, such as an open breaker, excludes none.
    #[must_use]
    pub fn backtest_first_connection<'a>(
        &self,
        config: &'a TenantConfig,
        book: &Rulebook,
        message: &Message,
        given: &Given,
    ) -> Option<&'a Endpoint> {
        let mut effective = EffectiveRoute::of(config, message)?.favoured(config, message, None);
        if effective.route.is_some() {
            let mut pending = Pending::fresh(message);
            if let Some((subject, candidates)) = self.scripts_question(config, book, &effective, &mut pending) {
                follow_scripts(config, &mut effective, book.route(&subject, candidates, given), &pending);
            }
        }
        let mut candidate_states = self.candidate_states(config, &effective.spec, message);
        for candidate_state in &mut candidate_states {
            candidate_state.skip = candidate_state.skip.filter(|skip: &SkipReason| !skip.is_a_guard());
        }
        let turn = (given.chance * 10_000.0) as u64;
        let plan_input = PlanInput { past: &[], first: None, turn, chance: given.chance };
        let mut plan = routing::plan(&effective.spec, &candidate_states, &plan_input);
        effective.prefer(&mut plan);
        config.endpoints.get(&plan.first()?).map(|endpoint| &**endpoint)
    }
}
