//! Delivers: asks routing for a plan, the provider for a request, the transport to perform it, and hands the result to
//! the ledger. Each delivery is a task of its own and holds no plugin instance while it waits for an answer.

mod admitted;
mod attempt;
mod budgets;
mod condition;
mod connection_permit;
mod copies;
mod facts;
mod first_attempt;
mod item;
mod payload;
mod preview;
mod round_robin_counter;
mod rule_hooks;

use std::{borrow::Cow, pin::pin, sync::Arc, time::Duration};

use jiff::SignedDuration;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use self::{
    admitted::Admitted, budgets::Postponed, condition::Asked, connection_permit::PermitAnswer, rule_hooks::Scripts,
};
pub use self::{
    budgets::Budgets,
    preview::{LegPreview, Planned, Preview, PreviewRequest},
    round_robin_counter::RoundRobinCounter,
};
use crate::{
    clock,
    engine::experiments::Experiments,
    engine::fair_semaphore::{FairSemaphore, HeldPermit},
    engine::ledger::Ledger,
    engine::observations::Observations,
    engine::queue::Work,
    engine::rule_runner::RuleRunner,
    node::providers::Providers,
    node::telemetry::{self, Tracer},
    node::tenant_config::{ActiveRoute, Endpoint, TenantConfig, TenantConfigs},
};
use angarium_domain::{
    attempt::{Attempt, PastAttempt, Trigger},
    delivery::DeliveryState,
    ids::{AttemptId, ConnectionId, RouteId, TenantId},
    message::{DEEPEST_FOLLOW_UP, Message},
    outcome::{self, Bounds, Outcome, RetryInput, host_verdict},
    overrides,
    provider::{Deduplication, Disposition},
    recipients::Recipients,
    route::{OnUnknown, RouteSpec},
    routing::{self, Availability, Plan, PlanInput, SkipReason},
    rule_input::RuleInput,
    settings::TenantSettings,
};
use angarium_rules::{rulebook::JudgedMessage, ruling::HookRecord, script::Given};
use angarium_store::{Store, attempt::Settlement};
use angarium_transport::{Transport, byte_budget::ByteBudget};

/// The time after which a delivery asks again for a missing resource.
const PAUSE: Duration = Duration::from_millis(200);

/// Everything that a delivery needs.
pub struct Dispatcher {
    pub store: Store,
    pub tenant_configs: Arc<TenantConfigs>,
    /// Counts what candidates do, and asks those that are not followed.
    pub experiments: Arc<Experiments>,
    pub rules: Arc<RuleRunner>,
    pub providers: Arc<Providers>,
    pub transport: Arc<Transport>,
    pub ledger: Ledger,
    pub observations: Arc<Observations>,
    pub turns: RoundRobinCounter,
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

/// A delivery whose next attempt is decided.
struct Pending<'a> {
    message: &'a Message,
    known: JudgedMessage,
    /// The attempts that count, oldest first.
    past: &'a [PastAttempt],
}

impl<'a> Pending<'a> {
    fn of(work: &'a Work) -> Self {
        Self { past: &work.past, ..Self::fresh(&work.message) }
    }

    /// One without any attempt.
    fn fresh(message: &'a Message) -> Self {
        Self { message, known: JudgedMessage::default(), past: &[] }
    }

    /// As scripts see it.
    fn subject(&mut self) -> RuleInput {
        RuleInput::with(self.message, self.known.subject.take())
    }
}

/// The route that a message follows.
struct EffectiveRoute<'a> {
    spec: Cow<'a, RouteSpec>,
    settings: &'a TenantSettings,
    route: Option<(RouteId, i32)>,
    /// The rules' scores of connections.
    favour: Vec<(ConnectionId, f64)>,
    /// A script chose the candidates.
    by_script: bool,
    /// The scripts' answers about the candidates.
    hook_records: Vec<HookRecord>,
    /// The scripts' faults.
    faults: Vec<String>,
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
        // One that was put back amid a round goes on with it.
        let mut fallback = work.fallback.take().or_else(|| {
            let last = work.past.last().filter(|_| work.trigger == Trigger::Fallback)?;
            Some(outcome::fallback_reason(last.disposition))
        });
        let mut turn = work.first_attempt.as_ref().map(|it| it.turn);
        loop {
            let Some(config) = held.during(pin!(self.config(&work))).await else { return };
            let Some(effective) = EffectiveRoute::of(&config, &work.message) else {
                return self.end(work, DeliveryState::Unroutable, "no_route", "no route of this channel is active");
            };
            let asked = held.during(pin!(self.condition(&config, &work))).await;
            let remark = match asked {
                Asked::Goes(remark) => remark,
                Asked::Waits(at) => {
                    telemetry::condition_waits();
                    return self.ledger.defer(work, at);
                }
                Asked::Expired(why) => return self.end(work, DeliveryState::Expired, "condition_not_met", &why),
            };
            let admitted = held.during(pin!(self.admitted(&config, &work))).await;
            match admitted {
                Admitted::Goes => {}
                Admitted::Waits(at) => return self.ledger.defer(work, at),
                Admitted::Ends(state, code, why) => return self.end(work, state, code, &why),
            }
            let (mut effective, mut plan) =
                held.during(pin!(self.next(&config, effective, &mut work, &mut turn))).await;
            effective.faults.extend(remark);
            let Some(wanted) = self.wanted(&plan, &config, &work.message) else {
                return self.nobody(work, &config, &effective, &plan);
            };
            if work.message.expires_at.is_some_and(|at| at <= clock::now()) {
                return self.end(work, DeliveryState::Expired, "expired", "it expired before it could be sent");
            }
            let endpoint = Arc::clone(&config.endpoints[&wanted.connection]);
            let mut attempt = match self.withheld(&work, &effective, &endpoint) {
                Some(withheld) => withheld,
                None => {
                    if let Err(postponed) = self.within_budget(&work, &effective, &wanted) {
                        return self.postpone(work, &endpoint, &postponed, describe(&plan, &effective));
                    }
                    let entered = held.during(pin!(self.enter(&work, &endpoint, &wanted))).await;
                    let mut entrance = match entered {
                        PermitAnswer::In(entrance) => entrance,
                        PermitAnswer::Refused(_) if wanted.is_free => continue,
                        PermitAnswer::Refused(refusal) => {
                            return self.put_off(work, &config, &effective, &plan, &wanted, refusal);
                        }
                        PermitAnswer::Closed => return,
                    };
                    if !wanted.is_free {
                        plan.admit(wanted.connection);
                    }
                    let permit = entrance.permit();
                    let made = self.attempt(&work, &effective, &endpoint, permit, &mut held).await;
                    let Ok(mut attempt) = made else { return };
                    let by_copies = copies::are_refused(&attempt);
                    if !by_copies {
                        entrance.record(&attempt.verdict);
                    }
                    if let Some(origin) = &mut attempt.origin {
                        origin.at_recipient = by_copies || wanted.origin.is_some();
                    }
                    self.observe(&work.message, &attempt);
                    self.spent(&work, &effective, &wanted, &attempt);
                    attempt
                }
            };
            attempt.plan = describe(&plan, &effective);
            attempt.fallback_reason = fallback.take().or(plan.instead);
            effective.faults.iter().for_each(|fault| add_reason(&mut attempt.verdict.detail, fault));
            let outcome =
                held.during(pin!(self.decide(&config, &effective.spec, &mut work, &mut attempt, &endpoint))).await;
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

    /// Returns the candidates of a delivery in order, as planned at acceptance or planned now.
    async fn next<'a>(
        &self,
        config: &Arc<TenantConfig>,
        effective: EffectiveRoute<'a>,
        work: &mut Work,
        turn: &mut Option<u64>,
    ) -> (EffectiveRoute<'a>, Plan) {
        match work.first_attempt.take().filter(|it| it.holds(config)) {
            Some(first_attempt) => effective.following(*first_attempt),
            None => self.decided(config, effective, work.tenant, Pending::of(work), turn).await,
        }
    }

    /// Returns the candidates of a delivery in order, by rules, scripts and the strategy. It takes one turn.
    async fn decided<'a>(
        &self,
        config: &TenantConfig,
        effective: EffectiveRoute<'a>,
        tenant: TenantId,
        mut pending: Pending<'_>,
        turn: &mut Option<u64>,
    ) -> (EffectiveRoute<'a>, Plan) {
        let effective = self.ruled(config, effective, tenant, &mut pending).await;
        let turn = *turn.get_or_insert_with(|| effective.route.map_or(0, |(route, _)| self.turns.take(route)));
        let Pending { message, past, .. } = pending;
        let plan_input = PlanInput { past, first: message.body.first, turn, chance: fastrand::f64() };
        let mut plan =
            routing::plan(&effective.spec, &self.candidate_states(config, &effective.spec, message), &plan_input);
        effective.prefer(&mut plan);
        (effective, plan)
    }

    /// Returns whether any candidate can be asked, whichever is the first.
    fn availability(&self, config: &TenantConfig, spec: &RouteSpec, work: &Work) -> Availability {
        let message = &work.message;
        routing::availability(spec, &self.candidate_states(config, spec, message), &work.past, message.body.first)
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
        let another = if spec.fallback { self.availability(config, spec, work) } else { Availability::Nobody };
        if let Some(last) = work.past.last_mut() {
            last.round_closed = true;
        }
        let again = self.availability(config, spec, work);
        let scripts = Scripts::new(self, config, work, endpoint);
        let retry_input = RetryInput {
            policy: &spec.retry,
            limits: spec.retry_limits,
            rules: &scripts,
            on_unknown: self.on_unknown(spec, endpoint),
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
        let mut outcome = outcome::decide(&attempt.verdict, &retry_input);
        let given = Given { now: retry_input.now, chance: retry_input.chance };
        let mut fault = None;
        if let Some((rule, facts)) = scripts.question(&attempt.verdict, &retry_input) {
            fault = scripts.ask(&rule, &facts, given).await;
            outcome = outcome::decide(&attempt.verdict, &retry_input);
        }
        if let Some(limit) = outcome::time_is_up(&attempt.verdict, &retry_input) {
            add_reason(&mut attempt.verdict.detail, &limit.to_string());
        }
        fault.iter().for_each(|fault| add_reason(&mut attempt.verdict.detail, fault));
        if let (Outcome::FallBack(_), Some(last)) = (&outcome, work.past.last_mut()) {
            last.round_closed = false;
        }
        copies::concluded(work, attempt, outcome)
    }

    /// Returns the route's decision, or else the provider's default: a repetition that the other side recognises does
    /// no harm.
    fn on_unknown(&self, spec: &RouteSpec, endpoint: &Endpoint) -> OnUnknown {
        let by_provider = || match self.deduplication(endpoint) {
            Deduplication::Key => OnUnknown::Retry,
            Deduplication::None => OnUnknown::Hold,
        };
        spec.on_unknown.unwrap_or_else(by_provider)
    }

    /// Whether a crash during the attempt can be recovered by resending, because the provider deduplicates.
    fn may_be_asked_again(&self, spec: &RouteSpec, endpoint: &Endpoint) -> bool {
        self.deduplication(endpoint) == Deduplication::Key && self.on_unknown(spec, endpoint) == OnUnknown::Retry
    }

    fn deduplication(&self, endpoint: &Endpoint) -> Deduplication {
        self.providers
            .serving_for(&endpoint.connection.provider, endpoint.tenant)
            .map_or(Deduplication::None, |serving| serving.component.descriptor().deduplication)
    }

    /// Handles a delivery without any candidate to ask or wait for: it waits if the cause can pass, as the retry policy
    /// says.
    fn nobody(&self, work: Work, config: &TenantConfig, effective: &EffectiveRoute<'_>, plan: &Plan) {
        let spec = &effective.spec;
        let may_pass = plan.skipped.iter().any(|skipped| skipped.reason.may_pass());
        let made = u32::try_from(work.past.len()).unwrap_or(u32::MAX).saturating_add(1);
        let delay = may_pass.then(|| spec.retry.delay(made, fastrand::f64())).flatten();
        let outcome = match delay.and_then(|delay| clock::now().checked_add(delay).ok()) {
            Some(at) if bounds(&work, spec).limit(at).is_none() => Outcome::Retry(at),
            _ => Outcome::End(DeliveryState::Unroutable),
        };
        let why = self.why_nobody(work.tenant, config, plan);
        self.close(work, outcome, "no_candidate", &why, describe(plan, effective));
    }

    /// Why each connection of the route is passed over; a provider that serves no version says why.
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
        let (channel, provider) = (work.message.channel.as_str(), &endpoint.connection.provider);
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

impl<'a> EffectiveRoute<'a> {
    /// The message's own connection, or its channel's active route.
    fn of(config: &'a TenantConfig, message: &Message) -> Option<Self> {
        let settings = &config.settings;
        if let Some(connection) = message.connection {
            return Some(Self::new(Cow::Owned(RouteSpec::pinned(connection)), settings, None));
        }
        let route: &ActiveRoute = config.routes.get(&message.channel)?;
        Some(Self::new(Cow::Borrowed(&route.spec), settings, Some((route.id, route.version))))
    }

    const fn new(spec: Cow<'a, RouteSpec>, settings: &'a TenantSettings, route: Option<(RouteId, i32)>) -> Self {
        Self {
            spec,
            settings,
            route,
            favour: Vec::new(),
            by_script: false,
            hook_records: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Returns the effective overrides of providers' codes.
    fn overrides(&self) -> overrides::EffectiveOverrides<'_> {
        overrides::EffectiveOverrides { route: &self.spec.overrides, tenant: &self.settings.overrides }
    }
}

/// Returns the time limits of a delivery's next attempt.
fn bounds(work: &Work, spec: &RouteSpec) -> Bounds {
    Bounds {
        expires_at: work.message.expires_at,
        first_due: work.message.due_at(),
        first_attempt: work.past.first().map(|attempt| attempt.started_at),
        max_elapsed_ms: spec.retry_limits.max_elapsed_ms,
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
        channel: work.message.channel.as_str().to_owned(),
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

/// A plan with the scripts' answers before it.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    scripts: &'a [HookRecord],
}

fn describe(plan: &Plan, effective: &EffectiveRoute<'_>) -> Arc<str> {
    // A plan is plain data: it always has a JSON form.
    let json = match effective.hook_records.as_slice() {
        [] => serde_json::to_string(plan),
        scripts => serde_json::to_string(&Described { plan, scripts }),
    };
    json.unwrap_or_default().into()
}

fn count(work: &Work, attempt: &Attempt, outcome: &Outcome) {
    // A channel that no provider serves is an arbitrary word of a client.
    let (channel, provider) =
        attempt.origin.as_ref().map_or(("", ""), |origin| (work.message.channel.as_str(), &*origin.provider));
    let lane = telemetry::lane(channel, provider);
    lane.attempted(attempt.verdict.disposition);
    match outcome {
        Outcome::FallBack(_) => {}
        Outcome::Retry(_) => lane.retries(),
        Outcome::Sent => lane.ended(DeliveryState::Sent),
        Outcome::End(state) => lane.ended(*state),
    }
}
