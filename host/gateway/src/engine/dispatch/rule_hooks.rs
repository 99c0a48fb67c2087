//! The hooks of rules and scripts: the candidates and their order before the strategy, and the reaction to an attempt.
//! A failure leaves the route's own decision.

use std::{
    borrow::Cow,
    cmp::Ordering,
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use super::{Dispatcher, EffectiveRoute, Pending, facts::country};
use crate::{
    clock,
    engine::queue::Work,
    engine::rule_runner::PATIENCE,
    engine::script_failures,
    node::tenant_config::{Endpoint, TenantConfig},
};
use angarium_domain::{
    attempt::Verdict,
    ids::{ConnectionId, TenantId},
    message::Message,
    outcome::{Decider, RetryDecision, RetryInput},
    provider::Disposition,
    route::{Candidate, Strategy},
    routing::{Estimate, Plan},
    rule_input::RuleInput,
};
use angarium_rules::{
    decision::Scored,
    experiment::Question,
    rulebook::{Failure, Routed, Rulebook},
    ruling::Ruling,
    script::{
        Given, Hook, RetryAnswer,
        facts::{AttemptFacts, CandidateFacts, MessageFacts},
    },
};

impl Dispatcher {
    /// A message's course as rules and scripts would have it; one that names its connection has it.
    pub(super) async fn ruled<'a>(
        &self,
        config: &TenantConfig,
        mut effective: EffectiveRoute<'a>,
        tenant: TenantId,
        pending: &mut Pending<'_>,
    ) -> EffectiveRoute<'a> {
        if effective.route.is_none() {
            return effective;
        }
        let message = pending.message;
        effective = effective.favoured(config, message, pending.known.scores.take());
        let Some(book) = &config.rulebook else { return effective };
        let given = Given { now: clock::now(), chance: fastrand::f64() };
        if book.shadows(Hook::Route).next().is_some() {
            let candidates = self.candidates(config, &effective, message, |_| true);
            let question = Question::Route { message: Arc::new(message.clone()), candidates };
            self.experiments.ask(tenant, book, question, given);
        }
        let serving = book.for_message(message);
        let Some((subject, candidates)) = self.scripts_question(config, &serving, &effective, pending) else {
            return effective;
        };
        let until = pending.known.until.unwrap_or_else(|| Instant::now() + PATIENCE);
        let routed = self.rules.ask(tenant, until, || serving.route(&subject, candidates.clone(), &given)).await;
        let failures = follow_scripts(config, &mut effective, routed, pending);
        effective.faults.extend(failures.iter().map(|failure| self.failed(book, tenant, message, failure)));
        effective
    }

    /// Returns the scripts' question about the candidates; `None` if no script is asked.
    pub(super) fn scripts_question(
        &self,
        config: &TenantConfig,
        book: &Rulebook,
        effective: &EffectiveRoute<'_>,
        pending: &mut Pending<'_>,
    ) -> Option<(RuleInput, Vec<CandidateFacts>)> {
        book.with(Hook::Route).chain(book.with(Hook::Score)).next()?;
        let candidates = self.candidates(config, effective, pending.message, |facts| book.routes_by(facts));
        Some((pending.subject(), candidates))
    }

    /// Reports a script's fault, and returns it for the attempt.
    pub(super) fn failed(&self, book: &Rulebook, tenant: TenantId, message: &Message, failure: &Failure) -> String {
        self.experiments.failed(tenant, book, message, &failure.script);
        script_failures::report(&self.store, tenant, message.id, failure, "the route decides");
        let what = if failure.fault.unasked().is_some() { "was not asked" } else { "failed" };
        format!("the script {what}: {}", failure.fault)
    }

    /// Returns a route's candidates, as scripts see them; facts that no script reads are not looked up.
    fn candidates(
        &self,
        config: &TenantConfig,
        effective: &EffectiveRoute<'_>,
        message: &Message,
        reads: impl Fn(&[&str]) -> bool,
    ) -> Vec<CandidateFacts> {
        let (by_cost, by_record) = (reads(&["cost", "currency"]), reads(&["success_rate", "answers", "latency_ms"]));
        let by_bars = reads(&["barred"]);
        let known = |candidate: &Candidate| {
            let endpoint = config.endpoints.get(&candidate.connection)?;
            let mut facts = candidate_facts(effective, candidate, endpoint, message);
            if by_cost && let Some(Estimate { cost, .. }) = self.estimate(candidate, endpoint, message) {
                facts.cost = Some(cost.micros as f64 / 1e6);
                facts.currency = Some(cost.currency);
            }
            if by_record {
                let record = self.observations.read(candidate.connection, country(message), Instant::now());
                facts.success_rate = (record.answers > 0.0).then_some(record.success_rate);
                facts.answers = record.answers;
                facts.latency_ms = record.latency_ms;
            }
            if by_bars {
                let skip = self.skip(config, candidate.connection, message);
                facts.barred = skip.map(|it| it.as_str().to_owned());
            }
            Some(facts)
        };
        effective.spec.candidates.iter().filter_map(known).collect()
    }
}

/// Returns the facts of a candidate by its route and its rules.
fn candidate_facts(
    effective: &EffectiveRoute<'_>,
    candidate: &Candidate,
    endpoint: &Endpoint,
    message: &Message,
) -> CandidateFacts {
    CandidateFacts {
        connection: endpoint.name(),
        provider: endpoint.connection.provider.clone(),
        channel: message.channel.as_str().to_owned(),
        weight: Some(f64::from(candidate.weight)),
        score: effective.score(candidate.connection),
        ..CandidateFacts::default()
    }
}

/// Orders the candidates by the scripts' answers; returns the scripts' faults.
pub(super) fn follow_scripts(
    config: &TenantConfig,
    effective: &mut EffectiveRoute<'_>,
    routed: Routed,
    pending: &Pending<'_>,
) -> Vec<Failure> {
    let Routed { order, hook_records, failures } = routed;
    effective.hook_records = hook_records;
    let Some(order) = order else { return failures };
    let mut listed: Vec<Candidate> = Vec::with_capacity(order.len());
    let known = |connection| effective.spec.candidates.iter().find(|it| it.connection == connection).cloned();
    for name in order {
        let Some(endpoint) = config.connection(&name) else {
            effective.faults.push(format!("a script names `{name}`, which is no connection"));
            continue;
        };
        let connection = endpoint.connection.id;
        if listed.iter().all(|it| it.connection != connection) {
            let candidate = known(connection).unwrap_or_else(|| Candidate::new(connection));
            // A candidate that a script names is asked in its position, whatever weight the route gave it.
            listed.push(Candidate { weight: candidate.weight.max(1), ..candidate });
        }
    }
    // A candidate that may already have the delivery is never taken off the list.
    let unknown = pending.past.iter().filter(|it| it.disposition == Disposition::Unknown);
    for connection in unknown.filter_map(|it| it.connection) {
        if listed.iter().all(|it| it.connection != connection) {
            listed.extend(known(connection));
        }
    }
    effective.by_scripts(listed);
    failures
}

impl EffectiveRoute<'_> {
    /// Makes these the candidates, in their order.
    pub(super) fn by_scripts(&mut self, candidates: Vec<Candidate>) {
        let spec = self.spec.to_mut();
        spec.candidates = candidates;
        spec.strategy = Strategy::Primary;
        self.by_script = true;
    }

    /// Returns the same with the rules' scores at acceptance: they are in the message, if they are not known.
    pub(super) fn favoured(mut self, config: &TenantConfig, message: &Message, scores: Option<Vec<Scored>>) -> Self {
        if self.route.is_some() && message.body.ruling.is_some() {
            self.favour = favour(config, scores.unwrap_or_else(|| Ruling::scores(message)));
        }
        // If the strategy leaves the order to the route, the rules' order applies from here on: the first one is
        // certain.
        if self.spec.strategy == Strategy::Primary
            && !self.spec.candidates.is_sorted_by(|a, b| self.by_favour(a.connection, b.connection).is_le())
        {
            let mut candidates = self.spec.candidates.clone();
            candidates.sort_by(|a, b| self.by_favour(a.connection, b.connection));
            self.spec.to_mut().candidates = candidates;
        }
        self
    }

    /// Returns the rules' score of a connection, if they have one.
    fn score(&self, connection: ConnectionId) -> Option<f64> {
        self.favour.iter().find(|(it, _)| *it == connection).map(|(_, score)| *score)
    }

    /// Orders candidates by the rules' scores, the highest first.
    fn by_favour(&self, a: ConnectionId, b: ConnectionId) -> Ordering {
        let score = |connection| self.score(connection).unwrap_or_default();
        score(b).total_cmp(&score(a))
    }

    /// Orders the candidates by the rules' scores; among equals the strategy's order stands. A script saw the scores
    /// before.
    pub(super) fn prefer(&self, plan: &mut Plan) {
        if self.favour.is_empty() || self.by_script {
            return;
        }
        plan.candidates.sort_by(|a, b| self.by_favour(a.connection, b.connection));
        for candidate in &mut plan.candidates {
            if let Some(score) = self.score(candidate.connection) {
                candidate.reason = Cow::Owned(format!("rules give it {score:+}; {}", candidate.reason));
            }
        }
    }

    /// Returns the candidate that every node asks first for a fresh delivery, if it is on record or certain. A script
    /// may answer differently the next time.
    pub(super) fn certain_first(&self, message: &Message) -> Option<ConnectionId> {
        message.body.first.or_else(|| (!self.by_script).then(|| self.spec.certain_first()).flatten())
    }
}

/// The connections that are there of those that rules gave something to.
fn favour(config: &TenantConfig, scores: Vec<Scored>) -> Vec<(ConnectionId, f64)> {
    let known = scores.into_iter().filter_map(|it| Some((config.connection(&it.connection)?.connection.id, it.score)));
    known.collect()
}

/// Asks a script for the next step after an attempt, if the route leaves it to one: the decision is first made without
/// an answer, and made again once the script has answered.
pub(super) struct Scripts<'a> {
    pub dispatcher: &'a Dispatcher,
    pub config: &'a TenantConfig,
    pub work: &'a Work,
    pub endpoint: &'a Endpoint,
    /// The script that is to be asked.
    wanted: OnceLock<String>,
    said: OnceLock<RetryDecision>,
}

impl fmt::Debug for Scripts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripts").finish_non_exhaustive()
    }
}

impl Decider for Scripts<'_> {
    fn decide(&self, rule: &str, _: &Verdict, _: &RetryInput<'_>) -> Option<RetryDecision> {
        self.wanted.get_or_init(|| rule.to_owned());
        self.said.get().copied()
    }
}

impl<'a> Scripts<'a> {
    pub fn new(dispatcher: &'a Dispatcher, config: &'a TenantConfig, work: &'a Work, endpoint: &'a Endpoint) -> Self {
        Self { dispatcher, config, work, endpoint, wanted: OnceLock::new(), said: OnceLock::new() }
    }

    /// The script that is to be asked, if one is, and of what.
    pub fn question(&self, verdict: &Verdict, retry_input: &RetryInput<'_>) -> Option<(String, AttemptFacts)> {
        let rule = self.wanted.get()?;
        self.config.rulebook.as_ref()?;
        Some((rule.clone(), self.facts(verdict, retry_input)))
    }

    /// Asks it; what went wrong, for the attempt.
    pub async fn ask(&self, rule: &str, facts: &AttemptFacts, given: Given) -> Option<String> {
        let book = self.config.rulebook.as_ref()?;
        let Work { tenant, message, .. } = self.work;
        if book.shadows(Hook::Retry).any(|it| it.subject == rule) {
            let (message, script) = (Arc::clone(message), rule.to_owned());
            let question = Question::Retry { message, script, attempt: Box::new(facts.clone()) };
            self.dispatcher.experiments.ask(*tenant, book, question, given);
        }
        let serving = book.for_message(message);
        let until = Instant::now() + PATIENCE;
        let said = match self.dispatcher.rules.ask(*tenant, until, || serving.retry(rule, facts, &given)).await? {
            Ok(RetryAnswer::Default) => return None,
            Ok(RetryAnswer::Retry { after }) => RetryDecision::After(after),
            Ok(RetryAnswer::GiveUp { .. }) => RetryDecision::GiveUp,
            Ok(RetryAnswer::FallBack { .. }) => RetryDecision::FallBack,
            Err(failure) => return Some(self.dispatcher.failed(book, *tenant, message, &failure)),
        };
        self.said.get_or_init(|| said);
        None
    }

    fn facts(&self, verdict: &Verdict, retry_input: &RetryInput<'_>) -> AttemptFacts {
        let message = &self.work.message;
        let made = u32::try_from(retry_input.past.len()).unwrap_or(u32::MAX);
        let policy_wait = retry_input.policy.delay(made, retry_input.chance);
        AttemptFacts {
            number: self.work.attempts + 1,
            connection: self.endpoint.name(),
            provider: self.endpoint.connection.provider.clone(),
            channel: message.channel.as_str().to_owned(),
            disposition: verdict.disposition.as_str().to_owned(),
            status: verdict.status,
            code: verdict.code.clone(),
            detail: verdict.detail.clone(),
            retry_after: verdict.retry_after_ms.map(|ms| Duration::from_millis(ms).as_secs_f64()),
            at: Some(retry_input.now),
            policy_wait: policy_wait.map(|wait| wait.as_secs_f64()),
            seconds_since_accepted: retry_input.now.duration_since(message.created_at).as_secs_f64(),
            candidates_left: u32::from(retry_input.another_candidate),
            message: MessageFacts::of(RuleInput::of(message)),
        }
    }
}
