//! The plan at acceptance: it is made before the message is written and its first connection is stored with it, so that
//! no commit is needed between acceptance and the first request.

use std::time::Instant;

use super::{EffectiveRoute, PlanRequest, Planner};
use crate::node::tenant_config::TenantConfig;
use angarium_domain::{ids::TenantId, message::Message, routing::AcceptTimePlan};
use angarium_rules::rulebook::JudgedMessage;

impl Planner {
    /// Plans the first attempt of a message that is about to be accepted. `None` if it is not to be decided before the
    /// message is due, or if no connection can be asked.
    pub async fn plan_first_attempt(
        &self,
        tenant: TenantId,
        config: &TenantConfig,
        message: &Message,
        judged: JudgedMessage,
    ) -> Option<AcceptTimePlan> {
        if message.legs.is_list() || message.body.condition.is_some() {
            return None;
        }
        let route = EffectiveRoute::of(config, message).filter(EffectiveRoute::is_open)?;
        let turn = self.take_turn(&route);
        let request = PlanRequest::new(config, route, message, turn, fastrand::f64());
        let planned = self.plan(tenant, PlanRequest { judged, ..request }).await;
        let endpoint = config.endpoints.get(&planned.plan.first()?)?;
        let first = self.may_be_asked_again(&planned.route.spec, endpoint).then_some(endpoint.connection.id);
        Some(AcceptTimePlan {
            plan: planned.plan,
            first,
            by_scripts: planned.route.into_spec_by_scripts(),
            scripts: planned.scripts,
            faults: planned.faults,
            turn,
            config: config.reading,
            at: Instant::now(),
        })
    }
}
