//! Delivers: asks planning for a plan, the provider for a request, the transport to perform it, and hands the result to
//! the ledger. Each delivery is a task of its own and holds no plugin instance while it waits for an answer.

mod attempt;
mod budgets;
mod condition;
mod connection_permit;
mod copies;
mod item;
mod observe;
mod on_hold;
mod payload;
mod preview;
mod readiness;
mod retry_rule;

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

pub use self::{
    budgets::Budgets,
    preview::{LegPreview, Preview, PreviewRequest},
};
use self::{
    budgets::Postponed,
    connection_permit::{PermitAnswer, PermitRequest},
    payload::Lost,
    readiness::Readiness,
    retry_rule::{RetryRuleAnswer, attempt_facts},
};
use crate::{
    clock,
    engine::fair_semaphore::{FairSemaphore, HeldPermit},
    engine::guards::GuardRefusal,
    engine::ledger::Ledger,
    engine::planning::{EffectiveRoute, PlanRequest, Planner, RoutePlan},
    engine::queue::Work,
    engine::rule_runner::RuleRunner,
    node::providers::Providers,
    node::telemetry::{self, Tracer},
    node::tenant_config::{Endpoint, TenantConfig, TenantConfigs},
};
use angarium_domain::{
    attempt::{Attempt, PastAttempt, Trigger},
    delivery::DeliveryState,
    ids::{AttemptId, TenantId},
    message::DEEPEST_FOLLOW_UP,
    outcome::{self, Bounds, NextStep, Outcome, RetryInput, host_verdict},
    provider::Disposition,
    recipients::Recipients,
    route::RouteSpec,
    routing::{Availability, Plan, SkipReason},
};
use angarium_rules::script::Given;
use angarium_store::{Store, attempt::Settlement};
use angarium_transport::{Transport, byte_budget::ByteBudget};

/// The time after which a delivery asks again for a missing resource.
const PAUSE: Duration = Duration::from_millis(200);

/// Everything that a delivery needs.
pub struct Dispatcher {
    pub store: Store,
    pub tenant_configs: Arc<TenantConfigs>,
    pub rules: Arc<RuleRunner>,
    pub planner: Arc<Planner>,
    pub providers: Arc<Providers>,
    pub transport: Arc<Transport>,
    pub ledger: Ledger,
    pub budgets: Budgets,
    /// The memory for the contents of large messages.
    pub bytes: Arc<ByteBudget>,
    /// Where deliveries wait for the processor, tenants in turn.
    pub semaphore: Arc<FairSemaphore>,
    pub tracer: Tracer,
    /// One transmission's total time.
    pub deadline: Duration,
    /// Between two questions whether a message's condition holds.
    pub condition_pause: SignedDuration,
}

/// The reason why a connection was not tried.
enum NotTried {
    /// Its guard lets nothing through.
    Refused(GuardRefusal),
    /// There are too many retries through it.
    Postponed(Postponed),
    /// The process ends, or the delivery is no longer this node's.
    Closed,
}

impl Dispatcher {
    /// Delivers incoming work until the other end closes.
    pub async fn run(self: Arc<Self>, mut incoming: mpsc::UnboundedReceiver<Vec<Work>>, deliveries: TaskTracker) {
        while let Some(batch) = incoming.recv().await {
            for work in batch {
                self.begin(work, &deliveries);
            }
        }
    }

    /// Delivers in the tenant's turn. A waiting delivery already counts as under way, so that a drain of the node waits
    /// for it.
    fn begin(self: &Arc<Self>, work: Work, deliveries: &TaskTracker) {
        let (this, deliveries, counted) = (Arc::clone(self), deliveries.clone(), deliveries.token());
        self.semaphore.begin(work.tenant, move |held| {
            deliveries.spawn(this.deliver(work, held));
            drop(counted);
        });
    }

    /// Walks the candidates until one takes the delivery, it waits, or it ends.
    async fn deliver(self: Arc<Self>, mut work: Work, mut held: HeldPermit) {
        // A delivery that was put back within a round continues it.
        let mut fallback = work.fallback.take().or_else(|| {
            let last = work.past.last().filter(|_| work.trigger == Trigger::Fallback)?;
            Some(outcome::fallback_reason(last.disposition))
        });
        let mut turn = work.first_attempt.as_ref().map(|it| it.turn);
        loop {
            let Some(config) = held.during(pin!(self.config(&work))).await else { return };
            let Some(route) = EffectiveRoute::of(&config, &work.message) else {
                return self.end(work, DeliveryState::Unroutable, "no_route", "no route of this channel is active");
            };
            let readiness = held.during(pin!(self.readiness(&config, &work))).await;
            let note = match readiness {
                Readiness::Ready(note) => note,
                Readiness::Waits(at) => return self.ledger.defer(work, at),
                Readiness::Ends(state, code, why) => return self.end(work, state, code, &why),
            };
            let mut planned = held.during(pin!(self.plan(&config, route, &mut work, &mut turn))).await;
            planned.faults.extend(note);
            let Some(wanted) = self.wanted(&planned.plan, &config, &work.message) else {
                return self.nobody(work, &config, &planned);
            };
            if work.message.expires_at.is_some_and(|at| at <= clock::now()) {
                return self.end(work, DeliveryState::Expired, "expired", "it expired before it could be sent");
            }
            let endpoint = Arc::clone(&config.endpoints[&wanted.connection]);
            let tried = self.try_connection(&work, &mut planned, &endpoint, &wanted, &mut held).await;
            let mut attempt = match tried {
                Ok(attempt) => attempt,
                Err(NotTried::Refused(_)) if wanted.is_free => continue,
                Err(NotTried::Refused(refusal)) => return self.put_off(work, &config, &planned, &wanted, refusal),
                Err(NotTried::Postponed(postponed)) => {
                    return self.postpone(work, &endpoint, &postponed, planned.describe());
                }
                Err(NotTried::Closed) => return,
            };
            attempt.plan = planned.describe();
            attempt.fallback_reason = fallback.take().or(planned.plan.instead);
            planned.faults.iter().for_each(|fault| add_reason(&mut attempt.verdict.detail, fault));
            let outcome =
                held.during(pin!(self.decide(&config, &planned.route.spec, &mut work, &mut attempt, &endpoint))).await;
            count(&work, &attempt, &outcome);
            match outcome {
                Outcome::FallBack(reason) => {
                    self.ledger.record(settlement(&work, attempt, &outcome));
                    work.attempts += 1;
                    work.trigger = Trigger::Fallback;
                    fallback = Some(reason);
                }
                Outcome::Sent | Outcome::Retry(_) | Outcome::End(_) => {
                    return self.settle(settlement(&work, attempt, &outcome), work);
                }
            }
        }
    }

    /// Makes an attempt through one connection, within the budget of its retries and with its permit.
    async fn try_connection(
        &self,
        work: &Work,
        planned: &mut RoutePlan<'_>,
        endpoint: &Endpoint,
        wanted: &PermitRequest,
        held: &mut HeldPermit,
    ) -> Result<Attempt, NotTried> {
        if let Some(withheld) = self.withheld(work, &planned.route, endpoint) {
            return Ok(withheld);
        }
        self.within_budget(work, &planned.route, wanted).map_err(NotTried::Postponed)?;
        let mut permit = match held.during(pin!(self.enter(work, endpoint, wanted))).await {
            PermitAnswer::In(permit) => permit,
            PermitAnswer::Refused(refusal) => return Err(NotTried::Refused(refusal)),
            PermitAnswer::Closed => return Err(NotTried::Closed),
        };
        if !wanted.is_free {
            planned.plan.admit(wanted.connection);
        }
        let made = self.attempt(work, &planned.route, endpoint, permit.permit(), held).await;
        let mut attempt = made.map_err(|Lost| NotTried::Closed)?;
        let by_copies = copies::are_refused(&attempt);
        if !by_copies {
            permit.record(&attempt.verdict);
        }
        if let Some(origin) = &mut attempt.origin {
            origin.at_recipient = by_copies || wanted.origin.is_some();
        }
        self.observe(&work.message, &attempt);
        self.spent(work, &planned.route, wanted, &attempt);
        Ok(attempt)
    }

    /// The tenant's configuration, however long the database is away; `None` once the delivery is
    /// no longer this node's.
    async fn config(&self, work: &Work) -> Option<Arc<TenantConfig>> {
        loop {
            match self.tenant_configs.tenant(work.tenant).await {
                Ok(config) => return Some(config),
                Err(error) => {
                    tracing::warn!(%error, delivery.id = %work.delivery, "a delivery waits for its configuration");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if work.lease.is_lost() {
                return None;
            }
        }
    }

    /// Returns the plan of the next attempt: the one made at acceptance, or a new one. A delivery takes one turn of its
    /// route.
    async fn plan<'c>(
        &self,
        config: &'c TenantConfig,
        route: EffectiveRoute<'c>,
        work: &mut Work,
        turn: &mut Option<u64>,
    ) -> RoutePlan<'c> {
        let accepted = work.first_attempt.take().filter(|it| it.holds(config.reading, Instant::now()));
        if let Some(accepted) = accepted {
            return RoutePlan::of_acceptance(route, *accepted);
        }
        let turn = *turn.get_or_insert_with(|| self.planner.take_turn(&route));
        let request = PlanRequest::new(config, route, &work.message, turn, fastrand::f64());
        self.planner.plan(work.tenant, PlanRequest { past: &work.past, ..request }).await
    }

    /// Decides the next step after an attempt, and adds the attempt to the delivery's past.
    async fn decide(
        &self,
        config: &TenantConfig,
        spec: &RouteSpec,
        work: &mut Work,
        attempt: &mut Attempt,
        endpoint: &Endpoint,
    ) -> Outcome {
        work.recipients.learn(&attempt.recipients);
        work.past.push(PastAttempt {
            connection: attempt.origin.as_ref().map(|origin| origin.connection),
            disposition: attempt.verdict.disposition,
            waits_for_operator: attempt.verdict.waits_for_operator(),
            trigger: attempt.trigger,
            started_at: attempt.started_at,
            round_closed: false,
        });
        let another = if spec.fallback {
            self.planner.availability(config, spec, &work.message, &work.past)
        } else {
            Availability::Nobody
        };
        if let Some(last) = work.past.last_mut() {
            last.round_closed = true;
        }
        let again = self.planner.availability(config, spec, &work.message, &work.past);
        let retry_input = RetryInput {
            policy: &spec.retry,
            limits: spec.retry.limits(),
            on_unknown: self.planner.on_unknown(spec, endpoint),
            another_candidate: another == Availability::Now,
            another_in_turn: another == Availability::InTurn,
            past: &work.past,
            may_ask_again: again != Availability::Nobody,
            copies: copies::after(work, attempt),
            first_due: work.message.due_at(),
            expires_at: work.message.expires_at,
            now: clock::now(),
            chance: fastrand::f64(),
        };
        let decision = outcome::decide(&attempt.verdict, &retry_input);
        let answer = match (decision.rule, &config.rulebook) {
            (Some(rule), Some(book)) => {
                let facts = attempt_facts(work, endpoint, &attempt.verdict, &retry_input);
                let given = Given { now: retry_input.now, chance: retry_input.chance };
                self.ask_retry_rule(work, book, rule, &facts, given).await
            }
            _ => RetryRuleAnswer::default(),
        };
        let NextStep { outcome, limit } = decision.answered(answer.decision, &attempt.verdict, &retry_input);
        let reasons = limit.map(|limit| limit.to_string()).into_iter().chain(answer.fault);
        reasons.for_each(|reason| add_reason(&mut attempt.verdict.detail, &reason));
        if let (Outcome::FallBack(_), Some(last)) = (&outcome, work.past.last_mut()) {
            last.round_closed = false;
        }
        copies::concluded(work, attempt, outcome)
    }

    /// Handles a delivery without any candidate to ask or wait for: it waits if the cause can pass, as the retry policy
    /// says.
    fn nobody(&self, work: Work, config: &TenantConfig, planned: &RoutePlan<'_>) {
        let (spec, plan) = (&planned.route.spec, &planned.plan);
        let may_pass = plan.skipped.iter().any(|skipped| skipped.reason.may_pass());
        let made = u32::try_from(work.past.len()).unwrap_or(u32::MAX).saturating_add(1);
        let delay = may_pass.then(|| spec.retry.delay(made, fastrand::f64())).flatten();
        let outcome = match delay.and_then(|delay| clock::now().checked_add(delay).ok()) {
            Some(at) if bounds(&work, spec).limit(at).is_none() => Outcome::Retry(at),
            _ => Outcome::End(DeliveryState::Unroutable),
        };
        let why = self.why_nobody(work.tenant, config, plan);
        self.close(work, outcome, "no_candidate", &why, planned.describe());
    }

    /// Returns the reason for which each connection of the route is skipped; a provider without a serving version gives
    /// its own.
    fn why_nobody(&self, tenant: TenantId, config: &TenantConfig, plan: &Plan) -> String {
        if plan.skipped.is_empty() {
            return "the route has no candidate".to_owned();
        }
        let why = plan.skipped.iter().map(|skipped| {
            let endpoint = config.endpoints.get(&skipped.connection);
            let reason = match (skipped.reason, endpoint) {
                (SkipReason::ProviderMissing, Some(endpoint)) => {
                    self.providers.absence(&endpoint.connection.provider, tenant)
                }
                (reason, _) => reason.as_str().to_owned(),
            };
            format!("{}: {reason}", config.name_of(skipped.connection))
        });
        format!("no connection of the route can be asked ({})", why.collect::<Vec<_>>().join("; "))
    }

    /// A retry for which there is no room now goes back to the queue, unless its time is up by then.
    fn postpone(&self, work: Work, endpoint: &Endpoint, postponed: &Postponed, plan: Arc<str>) {
        let (channel, provider) = (work.message.first().channel.as_str(), &endpoint.connection.provider);
        match postponed {
            Postponed::Until(at) => {
                telemetry::lane(channel, provider).postponed();
                self.ledger.defer(work, *at);
            }
            Postponed::Ended(state, limit) => {
                let detail = format!("no room for a retry while the provider fails; {limit}");
                self.close(work, Outcome::End(*state), "retry_budget", &detail, plan);
            }
        }
    }

    /// Ends a delivery for which no candidate could be asked; the ledger records the reason.
    fn end(&self, work: Work, state: DeliveryState, code: &str, detail: &str) {
        self.close(work, Outcome::End(state), code, detail, Arc::from("{}"));
    }

    fn close(&self, mut work: Work, outcome: Outcome, code: &str, detail: &str, plan: Arc<str>) {
        let now = clock::now();
        let mut attempt = Attempt {
            id: AttemptId::new(),
            number: work.attempts + 1,
            trigger: work.trigger,
            origin: None,
            plan,
            started_at: now,
            finished_at: now,
            verdict: host_verdict(Disposition::NotSent, code, detail.to_owned()),
            fallback_reason: None,
            plugin_micros: 0,
            plugin_memory: 0,
            recipients: Recipients::default(),
            further: false,
        };
        let outcome = copies::concluded(&mut work, &mut attempt, outcome);
        count(&work, &attempt, &outcome);
        self.settle(settlement(&work, attempt, &outcome), work);
    }

    fn settle(&self, settlement: Settlement, work: Work) {
        let asks = work.message.depth() < DEEPEST_FOLLOW_UP && self.tenant_configs.asks_outcomes(work.tenant);
        self.ledger.settle(settlement, work, asks);
    }
}

/// Returns the time limits of a delivery's next attempt.
fn bounds(work: &Work, spec: &RouteSpec) -> Bounds {
    Bounds {
        expires_at: work.message.expires_at,
        first_due: work.message.due_at(),
        first_attempt: work.past.first().map(|attempt| attempt.started_at),
        max_elapsed_ms: spec.retry.limits().max_elapsed_ms,
    }
}

fn add_reason(detail: &mut String, reason: &str) {
    if !detail.is_empty() {
        detail.push_str("; ");
    }
    detail.push_str(reason);
}

fn settlement(work: &Work, attempt: Attempt, outcome: &Outcome) -> Settlement {
    Settlement {
        tenant: work.tenant,
        delivery: work.delivery,
        message: work.message.id,
        channel: work.message.first().channel.as_str().to_owned(),
        priority: work.message.priority,
        lease: work.lease.id,
        state: outcome.state(),
        next: match outcome {
            Outcome::Retry(at) => Some((*at, Trigger::Retry)),
            Outcome::Sent | Outcome::FallBack(_) | Outcome::End(_) => None,
        },
        deaths: work.deaths,
        ordered: work.message.ordering_key.is_some(),
        recipients: work.recipients.clone(),
        attempt,
    }
}

fn count(work: &Work, attempt: &Attempt, outcome: &Outcome) {
    // A channel that no provider serves is an arbitrary word of a client.
    let (channel, provider) =
        attempt.origin.as_ref().map_or(("", ""), |origin| (work.message.first().channel.as_str(), &*origin.provider));
    let lane = telemetry::lane(channel, provider);
    lane.attempted(attempt.verdict.disposition);
    match outcome {
        Outcome::FallBack(_) => {}
        Outcome::Retry(_) => lane.retries(),
        Outcome::Sent => lane.ended(DeliveryState::Sent),
        Outcome::End(state) => lane.ended(*state),
    }
}
