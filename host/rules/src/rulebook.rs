//! All that a tenant's messages are decided by beside its routes: declarative rules first, then
//! scripts by name.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Account, RuleFailure, RuleSet,
    decision::{Closed, Ended, RuleDecision, Scored},
    experiment::{Experiment, Variant},
    ruling::{Canary, Failed, HookRecord, MessageBefore, MessageRefusal, OnHold, Original, Ruling},
    script::{
        AdmitAnswer, AdmitVerdict, Choice, FailureBreaker, FollowUp, Given, Hook, RetryAnswer, Script, ScriptFault,
        facts::{AttemptFacts, CandidateFacts, ContextFacts, DeliveryFacts, MessageFacts},
    },
};
use angarium_domain::{
    ids::RuleId,
    message::{Address, Channel, Message, Priority},
    rule::Fails,
    rule_input::{Object, RuleInput},
};

/// A script's version in service. It outlives a tenant's loaded configuration, so that a version that was switched off
/// stays off.
#[derive(Debug)]
pub struct Running {
    pub name: String,
    pub version: i32,
    /// Its source.
    pub source: Arc<str>,
    /// How often it was switched on again by hand.
    pub resets: i32,
    /// The fate of a message if its `admit` fails.
    pub fails: Fails,
    /// It is of the operators' folder, or tried in the place of one of these.
    pub operators: bool,
    script: Script,
    breaker: Mutex<FailureBreaker>,
}

impl Running {
    #[must_use]
    pub fn new(name: String, version: i32, source: Arc<str>, script: Script) -> Self {
        let fails = script.fails().unwrap_or_default();
        Self { name, version, source, resets: 0, fails, operators: false, script, breaker: Mutex::default() }
    }

    /// Returns the same as an operators' script: by default it lets nothing through unasked.
    #[must_use]
    pub fn of_operators(mut self) -> Self {
        (self.operators, self.fails) = (true, self.script.fails().unwrap_or(Fails::Refuse));
        self
    }

    /// Returns the same after this number of resets of its breaker.
    #[must_use]
    pub const fn after_resets(mut self, resets: i32) -> Self {
        self.resets = resets;
        self
    }

    /// Returns the hooks that it defines.
    #[must_use]
    pub fn hooks(&self) -> &[Hook] {
        self.script.hooks()
    }

    /// The same with a breaker of its own.
    #[must_use]
    pub fn rehearsal(&self) -> Self {
        let same = Self::new(self.name.clone(), self.version, Arc::clone(&self.source), self.script.clone());
        Self { fails: self.fails, operators: self.operators, ..same }
    }

    /// Whether a message is let through only where its `admit` was asked.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.fails.is_open() && self.has(Hook::Admit)
    }

    /// Whether it takes part in a hook; scores belong to the route.
    #[must_use]
    pub fn takes_part(&self, hook: Hook) -> bool {
        self.has(hook) || (hook == Hook::Route && self.has(Hook::Score))
    }

    /// Whether it defines a hook.
    #[must_use]
    pub fn has(&self, hook: Hook) -> bool {
        self.script.has(hook)
    }

    /// Returns the time since when its own breaker has it switched off.
    #[must_use]
    pub fn off_since(&self) -> Option<Timestamp> {
        self.breaker().off_since()
    }

    /// Asks one hook; its own fault counts against the version. A script that lets nothing through unasked is never
    /// switched off: repeated failures are reported each time.
    fn ask<T>(
        &self,
        now: Timestamp,
        hook: impl FnOnce(&Script) -> Result<T, ScriptFault>,
    ) -> Result<T, (ScriptFault, Often)> {
        hook(&self.script).map_err(|fault| {
            if fault.unasked().is_some() || !self.breaker().failed(now) {
                return (fault, Often::No);
            }
            if !self.is_closed() {
                return (fault, Often::SwitchedOff);
            }
            self.breaker().reset();
            (fault, Often::StaysClosed)
        })
    }

    fn breaker(&self) -> MutexGuard<'_, FailureBreaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fault of a script.
#[derive(Debug, Clone)]
pub struct Failure {
    pub script: String,
    pub version: i32,
    pub fault: ScriptFault,
    pub often: Often,
}

/// Whether a failure was one too many within a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Often {
    No,
    /// The version is asked no more.
    SwitchedOff,
    /// It goes on to be asked, and nothing is let through that it could not be asked about.
    StaysClosed,
}

/// The result of asking all rules and scripts about a message.
#[derive(Debug, Default)]
pub struct MessageJudgement {
    pub ruling: Ruling,
    pub refused: Option<MessageRefusal>,
    pub failures: Vec<Failure>,
    /// Rules whose expressions have failed too often.
    pub failed_rules: Vec<RuleFailure>,
    /// The rules' input, unless scripts were asked, which may have changed it.
    pub input: Option<RuleInput>,
}

/// The parsed data of a judged message, so that it need not be parsed again.
#[derive(Debug, Default)]
pub struct JudgedMessage {
    pub input: Option<RuleInput>,
    /// The rules' scores of connections.
    pub scores: Option<Vec<Scored>>,
    /// The time until which further scripts may wait for the tenant's time, if a request waits for them.
    pub until: Option<Instant>,
}

impl From<MessageJudgement> for JudgedMessage {
    fn from(judgement: MessageJudgement) -> Self {
        let scores = judgement.ruling.decision.map(|decision| decision.candidates).unwrap_or_default();
        Self { input: judgement.input, scores: Some(scores), until: None }
    }
}

/// The rules and scripts of a tenant's messages.
#[derive(Debug, Clone, Default)]
pub struct Rulebook {
    pub rules: Option<Arc<RuleSet>>,
    /// By name.
    pub scripts: Vec<Arc<Running>>,
    /// The experiments beside them.
    pub experiments: Vec<Experiment>,
    /// Whether failures do not count.
    pub rehearses: bool,
}

/// The answers of all rules and scripts to a message that is to be accepted.
#[derive(Debug, Default)]
pub struct Heard {
    pub refused: Option<MessageRefusal>,
    pub on_hold: Option<OnHold>,
    /// When it is due at the earliest.
    pub send_at: Option<Timestamp>,
    pub failures: Vec<Failure>,
    decision: Option<RuleDecision>,
    pub(super) canaries: Vec<Canary>,
    ended: Option<Ended>,
    /// The values that scripts want.
    priority: Option<Priority>,
    attributes: Option<Object>,
    hook_records: Vec<HookRecord>,
    asks_scripts: bool,
}

/// How long a message waits before it is asked again about it.
const HOLD: SignedDuration = SignedDuration::from_secs(60);

impl Heard {
    fn hold(&mut self, on_hold: OnHold, given: &Given) {
        let again = given.now.checked_add(HOLD).unwrap_or(Timestamp::MAX);
        self.send_at = self.send_at.max(Some(again));
        self.on_hold.get_or_insert(on_hold);
    }
}

impl Rulebook {
    /// Whether there is nothing to ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.as_ref().is_none_or(|rules| rules.is_empty())
            && self.scripts.is_empty()
            && self.experiments.is_empty()
    }

    /// Whether asking a hook, and the rules before it, may require a run.
    #[must_use]
    pub fn may_run(&self, hook: Hook) -> bool {
        let in_service =
            self.rules.iter().chain(self.experiments.iter().filter_map(|experiment| match &experiment.variant {
                Variant::Rules(rules) => Some(rules),
                Variant::Script(_) => None,
            }));
        in_service.into_iter().any(|rules| rules.has_expressions()) || self.followed().any(|it| it.has(hook))
    }

    /// The same for trying it out: what fails there does not count against a script.
    #[must_use]
    pub fn rehearsal(&self) -> Self {
        let in_service = self.scripts.iter().filter(|it| it.off_since().is_none());
        let experiments = self.experiments.iter().filter(|it| !it.is_off()).map(Experiment::rehearsal);
        let scripts = in_service.map(|it| Arc::new(it.rehearsal()));
        Self {
            rules: self.rules.clone(),
            scripts: scripts.collect(),
            experiments: experiments.collect(),
            rehearses: true,
        }
    }

    /// Explains for every rule why it holds for a message that is to be accepted, or does not.
    #[must_use]
    pub fn explain(&self, message: &Message, now: Timestamp) -> Vec<Account> {
        let input = RuleInput::of(message).unaccepted();
        self.rules.as_ref().map(|rules| rules.explain(&input, now).rules).unwrap_or_default()
    }

    /// Returns the rules that made a message's decision, if they are still in service.
    #[must_use]
    pub fn deciding(&self, message: &Message, decision: &RuleDecision) -> Option<Arc<RuleSet>> {
        self.for_message(message).rules.clone().filter(|rules| rules.has_made(decision))
    }

    /// The scripts in service that define a hook.
    pub fn with(&self, hook: Hook) -> impl Iterator<Item = &Running> {
        let serves = move |it: &&Running| it.script.has(hook) && it.off_since().is_none();
        self.scripts.iter().map(|it| &**it).filter(serves)
    }

    /// Returns the channel of a message that names none: the rules' first, else the answer of a script's `route`.
    #[must_use]
    pub fn channel(&self, input: &RuleInput, given: &Given) -> Option<Channel> {
        let (book, _) = self.for_recipient(input);
        let by_rules = || book.rules.as_ref()?.decide(input, given.now).channels?.value.into_iter().next();
        let by_scripts = || {
            let facts = MessageFacts::of(input.clone());
            let answers = book.with(Hook::Route).filter_map(|it| {
                it.ask(given.now, |script| script.route(&facts, &[], given)).ok()?.channels?.into_iter().next()
            });
            answers.into_iter().next()
        };
        by_rules().or_else(by_scripts)
    }

    /// Asks all rules and scripts about a message that is to be accepted, applies their answers, and records them in
    /// it.
    pub fn admit(&self, message: &mut Message, given: &Given) -> MessageJudgement {
        let input = RuleInput::of(message).unaccepted();
        let heard = self.hear(&input, message, given);
        self.follow(heard, input, message, given)
    }

    /// Asks all rules and scripts about a message that is to be accepted. It changes only the scripts' failure counts.
    #[must_use]
    pub fn hear(&self, input: &RuleInput, message: &Message, given: &Given) -> Heard {
        let (book, canaries) = self.for_recipient(input);
        let mut heard = Heard { canaries, ..Heard::default() };
        book.ask_rules(input, given, &mut heard);
        heard.asks_scripts = book.with(Hook::Admit).next().is_some();
        if heard.asks_scripts && heard.refused.is_none() {
            book.ask_scripts(input, message, given, &mut heard);
        }
        heard
    }

    /// Applies all answers to a message, and records them in it.
    pub fn follow(&self, heard: Heard, input: RuleInput, message: &mut Message, given: &Given) -> MessageJudgement {
        let before = MessageBefore::of(message);
        let Heard {
            decision,
            refused,
            on_hold,
            canaries,
            ended,
            priority,
            attributes,
            send_at,
            hook_records,
            failures,
            ..
        } = heard;
        let failed_rules = match (&decision, self.rehearses) {
            (Some(decision), false) => {
                let book = self.for_recipient(&input).0;
                book.rules.as_ref().map(|rules| rules.failed(decision, given.now)).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        if let Some(decision) = &decision {
            follow_rules(message, decision);
        }
        message.priority = priority.unwrap_or(message.priority);
        if let Some(attributes) = attributes {
            message.body.attributes = raw(&attributes);
        }
        message.send_at = message.send_at.max(send_at);
        let original = Original::before(&before, message);
        let ruling = Ruling { decision, scripts: hook_records, ended, on_hold, canaries, original };
        // Plain data always has a JSON form.
        message.body.ruling = serde_json::value::to_raw_value(&ruling).ok();
        let input = (!heard.asks_scripts).then_some(input);
        MessageJudgement { ruling, refused, failures, failed_rules, input }
    }

    fn ask_rules(&self, input: &RuleInput, given: &Given, heard: &mut Heard) {
        let Some(rules) = self.rules.as_ref().filter(|rules| !rules.is_empty()) else { return };
        let decision = rules.decide(input, given.now);
        let refused = |rule: RuleId, reason: String, failed| MessageRefusal {
            by: rule.to_string(),
            name: rules.name_of(rule).unwrap_or_default().to_owned(),
            reason,
            failed,
        };
        heard.refused = decision.refuse.as_ref().map(|refuse| refused(refuse.rule, refuse.value.clone(), None));
        heard.ended.clone_from(&decision.ended);
        if let Some(Closed { rule, fails, reason }) = decision.closed.clone().filter(|_| heard.refused.is_none()) {
            let failed = Failed::of(decision.ended.as_ref().map(|ended| ended.reason));
            if fails == Fails::Hold {
                heard.hold(OnHold { by: rule.to_string(), reason }, given);
            } else {
                heard.refused = Some(refused(rule, reason, Some(failed)));
            }
        }
        heard.decision = Some(decision);
    }

    fn ask_scripts(&self, input: &RuleInput, message: &Message, given: &Given, heard: &mut Heard) {
        let mut facts = MessageFacts::of(input.clone());
        let by_rules = heard.decision.as_ref().and_then(|decision| decision.priority.as_ref());
        facts.priority = by_rules.map_or(message.priority, |it| it.value).as_str().to_owned();
        facts.send_at = message.send_at;
        for script in self.with(Hook::Admit) {
            let answer = script.ask(given.now, |it| it.admit(&facts, given));
            let unasked = answer.as_ref().err().and_then(|(fault, _)| fault.unasked());
            if let (None, Some(reason)) = (&heard.ended, unasked) {
                heard.ended = Some(Ended { at: script.name.clone(), reason });
            }
            let answer = noted(script, Hook::Admit, answer, &mut heard.hook_records, &mut heard.failures);
            let AdmitAnswer { verdict, priority, attributes } = match answer {
                Ok(admission) => admission,
                Err(reason) => match script.fails {
                    Fails::Open => continue,
                    Fails::Hold => {
                        heard.hold(OnHold { by: script.name.clone(), reason }, given);
                        continue;
                    }
                    Fails::Refuse => {
                        heard.refused = Some(MessageRefusal {
                            by: script.name.clone(),
                            name: script.name.clone(),
                            reason,
                            failed: Some(Failed::of(unasked)),
                        });
                        break;
                    }
                },
            };
            if let Some(priority) = priority {
                heard.priority = Some(priority);
                facts.priority = priority.as_str().to_owned();
            }
            if !attributes.is_empty() {
                facts.attributes.extend(attributes);
                heard.attributes = Some(facts.attributes.clone());
            }
            match verdict {
                AdmitVerdict::Allow => {}
                AdmitVerdict::Refuse { reason } => {
                    let (by, name) = (script.name.clone(), script.name.clone());
                    heard.refused = Some(MessageRefusal { by, name, reason, failed: None });
                    break;
                }
                AdmitVerdict::Hold { at, .. } if at > given.now => {
                    heard.send_at = heard.send_at.max(Some(at));
                    facts.send_at = facts.send_at.max(Some(at));
                }
                AdmitVerdict::Hold { .. } => {}
            }
        }
    }

    /// Asks again about a message that waits since something that may refuse it could not be asked: what would be said
    /// had it come in now.
    #[must_use]
    pub fn hear_again(&self, message: &Message, given: &Given) -> Heard {
        let original = Ruling::of(message).map(|ruling| ruling.original).unwrap_or_default();
        let mut before = message.clone();
        original.undo(&mut before);
        let input = RuleInput::of(&before).unaccepted();
        let book = self.for_message(message);
        book.into_owned().alone().hear(&input, &before, given)
    }

    /// Returns the answer of the script of this name after an attempt; `None` if it does not exist, or is switched off.
    pub fn retry(&self, script: &str, attempt: &AttemptFacts, given: &Given) -> Option<Result<RetryAnswer, Failure>> {
        let script = self.with(Hook::Retry).find(|it| it.name == script)?;
        Some(script.ask(given.now, |it| it.retry(attempt, given)).map_err(|failed| failure(script, failed)))
    }

    /// Whether a script in service takes part in a hook, in place of a live one too.
    #[must_use]
    pub fn asks(&self, hook: Hook) -> bool {
        self.followed().any(|it| it.takes_part(hook)) || self.shadows(hook).next().is_some()
    }

    /// Whether a question of a hook is sure to run a script of this book.
    #[must_use]
    pub fn runs(&self, hook: Hook) -> bool {
        self.scripts.iter().any(|it| it.takes_part(hook) && it.off_since().is_none())
    }

    /// Returns each script's answer to a delivery that ended.
    #[must_use]
    pub fn on_outcome(&self, delivery: &DeliveryFacts, given: &Given) -> (Vec<ScriptFollowUp>, Vec<Failure>) {
        let (mut followed, mut failures) = (Vec::new(), Vec::new());
        for script in self.with(Hook::OnOutcome) {
            match script.ask(given.now, |it| it.on_outcome(delivery, given)) {
                Ok(said) => {
                    followed.push(ScriptFollowUp { script: script.name.clone(), version: script.version, said })
                }
                Err(failed) => failures.push(failure(script, failed)),
            }
        }
        (followed, failures)
    }

    /// Whether a script of this name says when messages go.
    #[must_use]
    pub fn has_condition(&self, script: &str) -> bool {
        self.followed().any(|it| it.name == script && it.has(Hook::Condition))
    }

    /// All scripts that may decide about a message, canaries too.
    fn followed(&self) -> impl Iterator<Item = &Arc<Running>> {
        self.scripts.iter().chain(self.canaries().filter_map(Experiment::script))
    }

    /// Returns whether a message goes now, by the script of this name; `None` if it does not exist, or is switched off.
    pub fn condition(&self, script: &str, context: &ContextFacts, given: &Given) -> Option<Result<bool, Failure>> {
        let script = self.with(Hook::Condition).find(|it| it.name == script)?;
        Some(script.ask(given.now, |it| it.condition(context, given)).map_err(|failed| failure(script, failed)))
    }

    /// Returns the candidates by the scripts' answers: their order and selection. `None` if no script answered.
    pub fn route(&self, input: &RuleInput, candidates: &[CandidateFacts], given: &Given) -> Routed {
        let (mut routed, mut ordered, mut candidates) = (Routed::default(), false, Cow::Borrowed(candidates));
        let facts = MessageFacts::of(input.clone());
        for script in self.with(Hook::Score) {
            let mut scored = candidates.to_vec();
            let answer = script.ask(given.now, |it| {
                scored.iter_mut().try_for_each(|candidate| {
                    candidate.score = Some(it.score(candidate, given)?);
                    Ok(())
                })
            });
            let scores: BTreeMap<_, _> = scored.iter().map(|it| (it.connection.clone(), it.score)).collect();
            let answer = answer.map(|()| scores);
            if heard(script, Hook::Score, answer, &mut routed.hook_records, &mut routed.failures).is_some() {
                scored.sort_by(|a, b| b.score.unwrap_or_default().total_cmp(&a.score.unwrap_or_default()));
                candidates = Cow::Owned(scored);
                ordered = true;
            }
        }
        for script in self.with(Hook::Route) {
            let answer = script.ask(given.now, |it| it.route(&facts, &candidates, given));
            let Some(routing) = heard(script, Hook::Route, answer, &mut routed.hook_records, &mut routed.failures)
            else {
                continue;
            };
            let Some(choices) = routing.candidates else { continue };
            candidates = Cow::Owned(chosen(candidates.into_owned(), choices));
            ordered = true;
        }
        routed.order = ordered.then(|| candidates.iter().map(|it| it.connection.clone()).collect());
        routed
    }
}

/// The candidates as a script chose them.
fn chosen(mut candidates: Vec<CandidateFacts>, choices: Vec<Choice>) -> Vec<CandidateFacts> {
    let choose = |Choice { connection, .. }: Choice| match candidates.iter().position(|it| it.connection == connection)
    {
        Some(at) => candidates.swap_remove(at),
        None => CandidateFacts { connection, ..CandidateFacts::default() },
    };
    choices.into_iter().map(choose).collect()
}

/// A script's answer to a delivery that ended.
#[derive(Debug)]
pub struct ScriptFollowUp {
    pub script: String,
    pub version: i32,
    pub said: FollowUp,
}

impl ScriptFollowUp {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.said == FollowUp::default()
    }
}

/// The scripts' answers about a delivery's candidates.
#[derive(Debug, Default)]
pub struct Routed {
    /// The candidates to ask, in this order and no others; by uid or id.
    pub order: Option<Vec<String>>,
    /// The answer of each, in the order in which they were asked.
    pub hook_records: Vec<HookRecord>,
    pub failures: Vec<Failure>,
}

/// Records a script's answer; returns it, if there is one.
fn heard<T: Serialize>(
    script: &Running,
    hook: Hook,
    answer: Result<T, (ScriptFault, Often)>,
    hook_records: &mut Vec<HookRecord>,
    failures: &mut Vec<Failure>,
) -> Option<T> {
    noted(script, hook, answer, hook_records, failures).ok()
}

/// The same; why it said nothing, if it didn't.
fn noted<T: Serialize>(
    script: &Running,
    hook: Hook,
    answer: Result<T, (ScriptFault, Often)>,
    hook_records: &mut Vec<HookRecord>,
    failures: &mut Vec<Failure>,
) -> Result<T, String> {
    let (answer, often) = match answer {
        Ok(answer) => (Ok(answer), Often::No),
        Err((fault, often)) => (Err(fault), often),
    };
    hook_records.push(HookRecord::new(&script.name, script.version, hook, &answer));
    answer.map_err(|fault| {
        let reason = fault.to_string();
        failures.push(failure(script, (fault, often)));
        reason
    })
}

fn failure(script: &Running, (fault, often): (ScriptFault, Often)) -> Failure {
    Failure { script: script.name.clone(), version: script.version, fault, often }
}

/// Applies the rules' consequences to a message that is accepted.
fn follow_rules(message: &mut Message, decision: &RuleDecision) {
    if let Some(priority) = &decision.priority {
        message.priority = priority.value;
    }
    if let Some(sender) = &decision.sender {
        send_from(message, &sender.value);
    }
    if let Some(template) = &decision.template {
        use_template(message, &template.value);
    }
}

/// Uses a rule's sender if the message names none; for a mail only if it is a mail address.
fn send_from(message: &mut Message, sender: &str) {
    let leg = message.first_mut();
    let fits = leg.channel.as_str() != "email" || sender.contains('@');
    if fits && leg.content.from.is_none() {
        leg.content.from = Some(Address { address: sender.to_owned(), name: None });
    }
}

/// Uses a rule's template if the message names none: as a parameter, for a provider with templates.
fn use_template(message: &mut Message, template: &str) {
    for leg in message.legs.iter_mut() {
        leg.content.params.entry("template".to_owned()).or_insert_with(|| template.to_owned());
    }
}

fn raw(object: &Object) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(object).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        allowance::{Grant, Spent, within},
        language::Language,
        script::Modules,
    };
    use angarium_domain::{legs::Leg, message::Body};

    /// Holds of no message, and takes about as long as an expression may.
    const SLOW: &str = "message.attributes.list.some(|a| attributes.list.some(|b| a + b < 0))";

    fn message(attributes: &str) -> Message {
        let to = Some(Address { address: "+46701234567".into(), name: None });
        let attributes = Some(RawValue::from_string(attributes.to_owned()).unwrap());
        Message::with(Leg { to, ..Leg::on("sms".parse().unwrap()) }, Body { attributes, ..Body::default() })
    }

    fn book(rules: &[Value], scripts: &[(&str, &str)]) -> Rulebook {
        let specs = rules.iter().map(|rule| (RuleId::new(), serde_json::from_value(rule.clone()).unwrap()));
        let rules = RuleSet::compile(specs.collect(), Box::<Language>::default()).unwrap();
        let scripts = scripts.iter().map(|(name, source)| {
            let script = Script::compile(name, source, &Modules::none()).unwrap();
            let script = script.allowing(std::time::Duration::from_secs(5));
            Arc::new(Running::new((*name).to_owned(), 1, (*source).into(), script))
        });
        Rulebook { rules: Some(Arc::new(rules)), scripts: scripts.collect(), experiments: Vec::new(), rehearses: false }
    }

    fn given() -> Given {
        Given { now: "2026-03-02T12:00:00Z".parse().unwrap(), chance: 0.5 }
    }

    #[test]
    fn a_rule_refuses_and_says_why() {
        let rule = json!({"name": "No gambling", "when": {"industry": {"is": "gambling"}}, "then": {"refuse": {"reason": "not ours"}}});
        let book = book(&[rule], &[("late", "fn admit(message) { throw \"is not asked\" }")]);
        let mut refused = message("{}");
        refused.body.contact = Some(RawValue::from_string(r#"{"industry": "Gambling"}"#.into()).unwrap());
        let judgement = book.admit(&mut refused, &given());
        let by = judgement.refused.unwrap();
        assert_eq!((by.name.as_str(), by.reason.as_str()), ("No gambling", "not ours"));
        assert!(judgement.failures.is_empty());
        assert!(book.admit(&mut message("{}"), &given()).refused.is_none());
    }

    #[test]
    fn rules_and_then_scripts_change_a_message_and_it_is_written_down() {
        let rule =
            json!({"name": "Large", "when": {"amount": {"min": 500}}, "then": {"priority": "high", "sender": "ACME"}});
        let hold = "fn admit(message) { #{action: \"hold\", at: add_seconds(now(), 60), attributes: #{seen: message.priority}} }";
        let mut held = message(r#"{"amount": 750}"#);
        book(&[rule], &[("hold", hold)]).admit(&mut held, &given());
        assert_eq!(held.priority, Priority::High);
        assert_eq!(held.send_at, Some("2026-03-02T12:01:00Z".parse().unwrap()));
        assert_eq!(held.first().content.from.as_ref().unwrap().address, "ACME");
        let attributes: Value = serde_json::from_str(held.body.attributes.unwrap().get()).unwrap();
        assert_eq!(attributes, json!({"amount": 750, "seen": "high"}));
        let ruling: Ruling = serde_json::from_str(held.body.ruling.unwrap().get()).unwrap();
        assert_eq!(ruling.decision.unwrap().held, 1);
        assert_eq!(json!(ruling.scripts[0].answer)["action"], "hold");
    }

    #[test]
    fn a_message_is_explained_as_it_was_before_scripts_changed_it() {
        let rule = json!({"name": "Large", "when": {"amount": {"min": 500}}, "then": {"priority": "high"}});
        let book = book(&[rule], &[("more", "fn admit(message) { #{attributes: #{amount: 750}} }")]);
        let mut changed = message(r#"{"amount": 5}"#);
        book.admit(&mut changed, &given());
        let accounts = book.rules.as_ref().unwrap().explain_accepted(&changed);
        assert_eq!(accounts[0].why, "amount 5 is under the minimum 500");
        assert!(!accounts[0].hit);
    }

    #[test]
    fn a_script_that_fails_changes_nothing_and_is_switched_off() {
        let book = book(&[], &[("bad", "fn admit(message) { throw \"no\" }")]);
        let failures: Vec<_> =
            (0..25).map(|_| book.admit(&mut message("{}"), &given()).failures.pop().map(|it| it.often)).collect();
        assert_eq!(failures.iter().filter(|it| it.is_some()).count(), 20, "then it is asked no more");
        assert_eq!(failures[19], Some(Often::SwitchedOff));
        let mut kept = message("[1, 2]");
        assert!(book.admit(&mut kept, &given()).refused.is_none(), "attributes that are no object harm nobody");
    }

    #[test]
    fn what_lets_nothing_through_unasked_is_never_switched_off() {
        for (fails, refuses) in [("refuse", true), ("hold", false)] {
            let source = format!("const FAILS = \"{fails}\"; fn admit(message) {{ throw \"no\" }}");
            let expression = json!({"custom": {"expression": "attributes.dear"}});
            let rule = json!({"name": "No", "fails": fails, "when": expression, "then": {"refuse": {"reason": "x"}}});
            for book in [book(&[], &[("gate", source.as_str())]), book(&[rule], &[])] {
                let mut told = 0;
                for _ in 0..50 {
                    let mut message = message(r#"{"dear": "perhaps"}"#);
                    let judgement = book.admit(&mut message, &given());
                    let often = |it: &Failure| it.often == Often::StaysClosed;
                    told += judgement.failures.iter().filter(|it| often(it)).count();
                    told += judgement.failed_rules.iter().filter(|it| !it.switched_off).count();
                    assert_eq!(judgement.refused.is_some(), refuses, "{fails}");
                    assert!(judgement.refused.is_none_or(|it| it.failed == Some(Failed::Fault)));
                    let waits = message.send_at.is_some_and(|at| at > given().now);
                    assert_eq!((waits, Ruling::is_on_hold(&message)), (!refuses, !refuses));
                }
                assert_eq!(told, 2, "each twentieth time");
            }
        }
    }

    #[test]
    fn an_operators_script_lets_nothing_through_unasked_unless_it_says_so() {
        let running = |source: &str| {
            let script = Script::compile("gate", source, &Modules::none()).unwrap();
            Running::new("gate".into(), 1, source.into(), script)
        };
        let plain = "fn admit(message) { allow() }";
        assert_eq!((running(plain).fails, running(plain).of_operators().fails), (Fails::Open, Fails::Refuse));
        let open = "const FAILS = \"open\"; fn admit(message) { allow() }";
        assert_eq!(running(open).of_operators().fails, Fails::Open);
        assert_eq!(running(plain).of_operators().rehearsal().fails, Fails::Refuse);
        let error = Script::compile("gate", "\nconst FAILS = 7; fn admit(message) { }", &Modules::none()).unwrap_err();
        assert_eq!(error.line, Some(2), "{error}");
    }

    #[test]
    fn a_rule_whose_expression_keeps_failing_is_switched_off() {
        let expression = json!({"custom": {"expression": "attributes.dear"}});
        let book = book(&[json!({"name": "x", "when": expression, "then": {"priority": "high"}})], &[]);
        let judge = |attributes: &str| book.admit(&mut message(attributes), &given());
        let off: Vec<_> = (0..25).map(|_| judge(r#"{"dear": "perhaps"}"#).failed_rules.len()).collect();
        assert_eq!((off[19], off.iter().sum::<usize>()), (1, 1), "it is told once");
        let decision = judge(r#"{"dear": true}"#).ruling.decision.unwrap();
        assert_eq!((decision.held, decision.faults.len()), (0, 1));
        assert!(decision.faults[0].reason.contains("switched off"), "{}", decision.faults[0].reason);
    }

    #[test]
    fn a_message_has_so_much_time_and_then_the_defaults_serve() {
        // Each takes longer than a run may, so that each costs the same.
        let slow = |then: Value| json!({"name": "slow", "when": {"custom": {"expression": SLOW}}, "then": then});
        let cheap = json!({"name": "cheap", "then": {"sender": "ACME"}});
        let mut rules = vec![slow(json!({"priority": "high"})); 40];
        rules.push(cheap.clone());
        let list = format!("{{\"list\": {:?}}}", (0..200).collect::<Vec<_>>());
        let judge = |book: &Rulebook| {
            let mut message = message(&list);
            let time = Duration::from_millis(20);
            let (judgement, used) = within(Grant::of_message(time), || book.admit(&mut message, &given()));
            assert!(used <= time, "{used:?}");
            (judgement, message)
        };
        let (judgement, message) = judge(&book(&rules, &[("gate", "fn admit(message) { #{priority: \"low\"} }")]));
        let ended = judgement.ruling.ended.clone().expect("it ended early");
        let decision = judgement.ruling.decision.unwrap();
        assert_eq!(ended.reason, Spent::MessageTime);
        assert!(ended.at.starts_with("rule_"), "{ended:?}");
        assert!(decision.faults.len() < 40, "{}", decision.faults.len());
        assert_eq!(decision.sender.unwrap().value, "ACME", "what needs no run was asked before");
        assert_eq!(message.priority, Priority::Normal, "the script was not asked");
        assert!(judgement.refused.is_none());
        let kept = Ruling::of(&message).unwrap();
        assert_eq!(kept.ended, Some(ended));
        // A script that must be asked refuses when it fails.
        let closed = "const FAILS = \"refuse\"; fn admit(message) { allow() }";
        let (judgement, _) = judge(&book(&rules, &[("gate", closed)]));
        assert_eq!(judgement.refused.unwrap().by, "gate");
        let mut refuses = slow(json!({"refuse": {"reason": "x"}}));
        refuses["fails"] = json!("refuse");
        let (judgement, _) = judge(&book(&vec![refuses; 20], &[]));
        assert!(judgement.refused.unwrap().failed.is_some());
    }

    #[test]
    fn an_explanation_says_of_a_rule_what_became_of_it_then() {
        let rules =
            vec![json!({"name": "slow", "when": {"custom": {"expression": SLOW}}, "then": {"sender": "A"}}); 40];
        let book = book(&rules, &[]);
        let mut message = message(&format!("{{\"list\": {:?}}}", (0..200).collect::<Vec<_>>()));
        within(Grant::of_message(Duration::from_millis(12)), || book.admit(&mut message, &given()));
        let ended = Ruling::of(&message).unwrap().ended.expect("it ended early");
        let accounts = book.rules.as_ref().unwrap().explain_accepted(&message);
        let unasked: Vec<_> = accounts.iter().filter(|it| it.why.contains("it was not asked")).collect();
        assert!(!unasked.is_empty() && unasked.len() < 40, "{accounts:?}");
        assert_eq!(unasked[0].rule.to_string(), ended.at);
    }

    #[test]
    fn scripts_order_the_candidates() {
        let route = "fn route(message, candidates) { candidates.filter(|it| it.connection != \"b\") }";
        let book = book(&[], &[("a", "fn score(candidate) { -candidate.cost }"), ("b", route)]);
        let candidate =
            |name: &str, cost| CandidateFacts { connection: name.into(), cost: Some(cost), ..Default::default() };
        let candidates = vec![candidate("a", 3.0), candidate("b", 1.0), candidate("c", 2.0)];
        let routed = book.route(&RuleInput::default(), &candidates, &given());
        assert_eq!(routed.order.unwrap(), ["c", "a"]);
        let said: Vec<_> = routed.hook_records.iter().map(|it| (&*it.hook, json!(it.answer).to_string())).collect();
        assert_eq!(said[0], ("score", r#"{"a":-3.0,"b":-1.0,"c":-2.0}"#.to_owned()));
        assert!(said[1].0 == "route" && said[1].1.contains(r#""connection":"c""#), "{said:?}");
    }

    #[test]
    fn a_condition_and_an_end_are_asked_by_name() {
        let source = "fn condition(context) { context.message.channel == \"sms\" } fn on_outcome(delivery) { if delivery.state == \"failed\" { #{text: \"again\"} } }";
        let book = book(&[], &[("open", source), ("other", "fn admit(message) { () }")]);
        assert!(book.has_condition("open") && !book.has_condition("other") && book.asks(Hook::OnOutcome));
        let asked = book.condition("open", &ContextFacts::default(), &given());
        assert!(matches!(asked, Some(Ok(false))));
        assert!(book.condition("other", &ContextFacts::default(), &given()).is_none());
        let ended = |state: &str| DeliveryFacts { state: state.into(), ..DeliveryFacts::default() };
        let (followed, failures) = book.on_outcome(&ended("failed"), &given());
        assert_eq!((followed[0].said.messages.len(), failures.len()), (1, 0));
        assert!(book.on_outcome(&ended("sent"), &given()).0[0].is_silent());
    }

    #[test]
    fn a_rules_template_stands_in_for_none() {
        let rule = json!({"name": "T", "then": {"template": "plain"}});
        let book = book(&[rule], &[]);
        let mut one = message("{}");
        book.admit(&mut one, &given());
        assert_eq!(one.first().content.params["template"], "plain");
        one.first_mut().content.params.insert("template".into(), "own".into());
        book.admit(&mut one, &given());
        assert_eq!(one.first().content.params["template"], "own");
    }
}
