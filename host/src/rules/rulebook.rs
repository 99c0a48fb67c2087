//! All that a tenant's messages are decided by beside its routes: declarative rules first, then
//! scripts by name.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Account, RuleSet,
    decision::Scored,
    ruling::{Before, Refused, Ruling, Was, Word},
    script::{
        Admission, Breaker, Choice, FollowUp, Given, Hook, Retrial, Script, ScriptFault, Verdict,
        facts::{AttemptFacts, CandidateFacts, ContextFacts, DeliveryFacts, MessageFacts},
    },
    trial::Trial,
};
use crate::domain::{
    message::{Address, Channel, Message},
    subject::{Object, Subject},
};

/// A script's version in service. It outlives what is known of a tenant's configuration, so that one
/// that was switched off stays so.
#[derive(Debug)]
pub struct Running {
    pub name: String,
    pub version: i32,
    /// What it was compiled from.
    pub source: Arc<str>,
    /// How often it was switched on again by hand.
    pub resets: i32,
    script: Script,
    breaker: Mutex<Breaker>,
}

impl Running {
    #[must_use]
    pub fn new(name: String, version: i32, source: Arc<str>, script: Script) -> Self {
        Self { name, version, source, resets: 0, script, breaker: Mutex::default() }
    }

    /// The same after so many resets of its breaker.
    #[must_use]
    pub const fn after_resets(mut self, resets: i32) -> Self {
        self.resets = resets;
        self
    }

    /// What it defines.
    #[must_use]
    pub fn hooks(&self) -> &[Hook] {
        self.script.hooks()
    }

    /// The same with a breaker of its own.
    #[must_use]
    pub fn rehearsal(&self) -> Self {
        Self::new(self.name.clone(), self.version, Arc::clone(&self.source), self.script.clone())
    }

    /// Whether it defines a hook.
    #[must_use]
    pub fn has(&self, hook: Hook) -> bool {
        self.script.has(hook)
    }

    /// Since when its own breaker has had it switched off.
    #[must_use]
    pub fn off_since(&self) -> Option<Timestamp> {
        self.breaker().off_since()
    }

    /// Asks one hook; a fault counts against the version.
    fn ask<T>(
        &self,
        now: Timestamp,
        hook: impl FnOnce(&Script) -> Result<T, ScriptFault>,
    ) -> Result<T, (ScriptFault, bool)> {
        hook(&self.script).map_err(|fault| {
            let switched_off = self.breaker().failed(now);
            (fault, switched_off)
        })
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that a script did wrong.
#[derive(Debug, Clone)]
pub struct Failure {
    pub script: String,
    pub version: i32,
    pub fault: ScriptFault,
    /// It was one too many: the version is asked no more.
    pub switched_off: bool,
}

/// What came of asking everybody about a message.
#[derive(Debug, Default)]
pub struct Judgement {
    pub ruling: Ruling,
    pub refused: Option<Refused>,
    pub failures: Vec<Failure>,
    /// What the message says of itself, unless scripts were asked, which may have changed that.
    pub subject: Option<Subject>,
}

/// What is known of a message that was judged, so that it need not be read again.
#[derive(Debug, Default)]
pub struct Known {
    pub subject: Option<Subject>,
    /// What rules gave to connections.
    pub scores: Option<Vec<Scored>>,
}

impl From<Judgement> for Known {
    fn from(judgement: Judgement) -> Self {
        let scores = judgement.ruling.decision.map(|decision| decision.candidates).unwrap_or_default();
        Self { subject: judgement.subject, scores: Some(scores) }
    }
}

/// What a tenant's messages are decided by.
#[derive(Debug, Clone, Default)]
pub struct Rulebook {
    pub rules: Option<Arc<RuleSet>>,
    /// By name.
    pub scripts: Vec<Arc<Running>>,
    /// What is tried beside them.
    pub trials: Vec<Trial>,
}

impl Rulebook {
    /// Whether there is nothing to ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.as_ref().is_none_or(|rules| rules.is_empty()) && self.scripts.is_empty() && self.trials.is_empty()
    }

    /// The same for trying it out: what fails there does not count against a script.
    #[must_use]
    pub fn rehearsal(&self) -> Self {
        let in_service = self.scripts.iter().filter(|it| it.off_since().is_none());
        let trials = self.trials.iter().filter(|it| !it.is_off()).map(Trial::rehearsal);
        let scripts = in_service.map(|it| Arc::new(it.rehearsal()));
        Self { rules: self.rules.clone(), scripts: scripts.collect(), trials: trials.collect() }
    }

    /// Of every rule why it holds of a message that is to be accepted, or does not.
    #[must_use]
    pub fn explain(&self, message: &Message, now: Timestamp) -> Vec<Account> {
        let subject = Subject::of(message).unaccepted();
        self.rules.as_ref().map(|rules| rules.explain(&subject, now).rules).unwrap_or_default()
    }

    /// The same of one that was accepted, at the time it was; nothing where the rules are not the same any more.
    #[must_use]
    pub fn explain_again(&self, message: &Message) -> Vec<Account> {
        let asked = Ruling::of(message).and_then(|it| it.decision).map(|it| it.rules);
        let book = self.for_message(message);
        let same = book.rules.as_ref().filter(|rules| asked.as_deref() == Some(rules.fingerprint()));
        same.map(|rules| rules.explain_accepted(message)).unwrap_or_default()
    }

    /// The scripts in service that define a hook.
    pub fn with(&self, hook: Hook) -> impl Iterator<Item = &Running> {
        let serves = move |it: &&Running| it.script.has(hook) && it.off_since().is_none();
        self.scripts.iter().map(|it| &**it).filter(serves)
    }

    /// The channel of a message that names none: the rules' first, else what a script's `route` says.
    #[must_use]
    pub fn channel(&self, subject: &Subject, given: &Given) -> Option<Channel> {
        let (book, _) = self.for_recipient(subject);
        let by_rules = || book.rules.as_ref()?.decide(subject, given.now).channels?.value.into_iter().next();
        let by_scripts = || {
            let facts = MessageFacts::of(subject.clone());
            let answers = book.with(Hook::Route).filter_map(|it| {
                it.ask(given.now, |script| script.route(&facts, &[], given)).ok()?.channels?.into_iter().next()
            });
            answers.into_iter().next()
        };
        by_rules().or_else(by_scripts)
    }

    /// Asks everybody about a message that is to be accepted, and changes it as they say. What was said is
    /// written down in it.
    pub fn admit(&self, message: &mut Message, given: &Given) -> Judgement {
        self.admit_as(Subject::of(message), message, given)
    }

    /// The same where it is known what the message says of itself.
    pub fn admit_as(&self, subject: Subject, message: &mut Message, given: &Given) -> Judgement {
        let subject = subject.unaccepted();
        let (before, mut judgement) = (Before::of(message), Judgement::default());
        let (book, canaries) = self.for_recipient(&subject);
        judgement.ruling.canaries = canaries;
        book.ask_rules(&subject, message, given, &mut judgement);
        if book.with(Hook::Admit).next().is_none() {
            judgement.subject = Some(subject);
        } else if judgement.refused.is_none() {
            book.ask_scripts(subject, message, given, &mut judgement);
        }
        judgement.ruling.was = Was::before(&before, message);
        // Plain data always has a JSON form.
        message.body.ruling = serde_json::value::to_raw_value(&judgement.ruling).ok();
        judgement
    }

    fn ask_rules(&self, subject: &Subject, message: &mut Message, given: &Given, judgement: &mut Judgement) {
        let Some(rules) = self.rules.as_ref().filter(|rules| !rules.is_empty()) else { return };
        let decision = rules.decide(subject, given.now);
        judgement.refused = decision.refuse.as_ref().map(|refuse| Refused {
            by: refuse.rule.to_string(),
            name: rules.name_of(refuse.rule).unwrap_or_default().to_owned(),
            reason: refuse.value.clone(),
        });
        if let Some(priority) = &decision.priority {
            message.priority = priority.value;
        }
        if let Some(sender) = &decision.sender {
            send_from(message, &sender.value);
        }
        if let Some(template) = &decision.template {
            use_template(message, &template.value);
        }
        judgement.ruling.decision = Some(decision);
    }

    fn ask_scripts(&self, subject: Subject, message: &mut Message, given: &Given, judgement: &mut Judgement) {
        let mut facts = MessageFacts::of(subject);
        facts.priority = message.priority.as_str().to_owned();
        for script in self.with(Hook::Admit) {
            let answer = script.ask(given.now, |it| it.admit(&facts, given));
            let Some(Admission { verdict, priority, attributes }) =
                heard(script, Hook::Admit, answer, &mut judgement.ruling.scripts, &mut judgement.failures)
            else {
                continue;
            };
            if let Some(priority) = priority {
                message.priority = priority;
                facts.priority = priority.as_str().to_owned();
            }
            if !attributes.is_empty() {
                facts.attributes.extend(attributes);
                message.body.attributes = raw(&facts.attributes);
            }
            match verdict {
                Verdict::Allow => {}
                Verdict::Refuse { reason } => {
                    judgement.refused = Some(Refused { by: script.name.clone(), name: script.name.clone(), reason });
                    break;
                }
                Verdict::Hold { at, .. } if at > given.now => {
                    message.send_at = message.send_at.max(Some(at));
                    facts.send_at = message.send_at;
                }
                Verdict::Hold { .. } => {}
            }
        }
    }

    /// What the script of this name says after an attempt; `None` where there is none, or it is switched off.
    pub fn retry(&self, script: &str, attempt: &AttemptFacts, given: &Given) -> Option<Result<Retrial, Failure>> {
        let script = self.with(Hook::Retry).find(|it| it.name == script)?;
        Some(script.ask(given.now, |it| it.retry(attempt, given)).map_err(|failed| failure(script, failed)))
    }

    /// Whether a script wants to know how deliveries end, be it to compare what it would have follow.
    #[must_use]
    pub fn asks_outcomes(&self) -> bool {
        self.followed().any(|it| it.has(Hook::OnOutcome)) || self.shadows(Hook::OnOutcome).next().is_some()
    }

    /// What each script says of a delivery that ended.
    #[must_use]
    pub fn on_outcome(&self, delivery: &DeliveryFacts, given: &Given) -> (Vec<Followed>, Vec<Failure>) {
        let (mut followed, mut failures) = (Vec::new(), Vec::new());
        for script in self.with(Hook::OnOutcome) {
            match script.ask(given.now, |it| it.on_outcome(delivery, given)) {
                Ok(said) => followed.push(Followed { script: script.name.clone(), version: script.version, said }),
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
        self.scripts.iter().chain(self.canaries().filter_map(Trial::script))
    }

    /// Whether a message goes now, as the script of this name says; `None` where there is none, or it is switched off.
    pub fn condition(&self, script: &str, context: &ContextFacts, given: &Given) -> Option<Result<bool, Failure>> {
        let script = self.with(Hook::Condition).find(|it| it.name == script)?;
        Some(script.ask(given.now, |it| it.condition(context, given)).map_err(|failed| failure(script, failed)))
    }

    /// Whether a script that is asked of candidates reads one of these facts.
    #[must_use]
    pub fn routes_by(&self, facts: &[&str]) -> bool {
        let mut scripts = self.with(Hook::Route).chain(self.with(Hook::Score));
        scripts.any(|it| facts.iter().any(|fact| it.script.reads(fact)))
    }

    /// The candidates as scripts want them: their order and who is among them. `None` where nobody said anything.
    pub fn route(&self, subject: Subject, mut candidates: Vec<CandidateFacts>, given: &Given) -> Routed {
        let (mut routed, mut ordered) = (Routed::default(), false);
        let facts = MessageFacts::of(subject);
        for script in self.with(Hook::Score) {
            let mut scored = candidates.clone();
            let answer = script.ask(given.now, |it| {
                scored.iter_mut().try_for_each(|candidate| {
                    candidate.score = Some(it.score(candidate, given)?);
                    Ok(())
                })
            });
            let scores: BTreeMap<_, _> = scored.iter().map(|it| (it.connection.clone(), it.score)).collect();
            let answer = answer.map(|()| scores);
            if heard(script, Hook::Score, answer, &mut routed.words, &mut routed.failures).is_some() {
                scored.sort_by(|a, b| b.score.unwrap_or_default().total_cmp(&a.score.unwrap_or_default()));
                candidates = scored;
                ordered = true;
            }
        }
        for script in self.with(Hook::Route) {
            let answer = script.ask(given.now, |it| it.route(&facts, &candidates, given));
            let Some(routing) = heard(script, Hook::Route, answer, &mut routed.words, &mut routed.failures) else {
                continue;
            };
            let Some(choices) = routing.candidates else { continue };
            candidates = chosen(candidates, choices);
            ordered = true;
        }
        routed.order = ordered.then(|| candidates.into_iter().map(|it| it.connection).collect());
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

/// What a script said of a delivery that ended.
#[derive(Debug)]
pub struct Followed {
    pub script: String,
    pub version: i32,
    pub said: FollowUp,
}

impl Followed {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.said == FollowUp::default()
    }
}

/// What scripts said of a delivery's candidates.
#[derive(Debug, Default)]
pub struct Routed {
    /// Whom to ask, in this order and nobody else; by uid or id.
    pub order: Option<Vec<String>>,
    /// What each of them said, in the order in which they were asked.
    pub words: Vec<Word>,
    pub failures: Vec<Failure>,
}

/// Writes down what a script said; its answer, if it has one.
fn heard<T: Serialize>(
    script: &Running,
    hook: Hook,
    answer: Result<T, (ScriptFault, bool)>,
    words: &mut Vec<Word>,
    failures: &mut Vec<Failure>,
) -> Option<T> {
    let (answer, switched_off) = match answer {
        Ok(answer) => (Ok(answer), false),
        Err((fault, switched_off)) => (Err(fault), switched_off),
    };
    words.push(Word::new(&script.name, script.version, hook, &answer));
    answer.map_err(|fault| failures.push(failure(script, (fault, switched_off)))).ok()
}

fn failure(script: &Running, (fault, switched_off): (ScriptFault, bool)) -> Failure {
    Failure { script: script.name.clone(), version: script.version, fault, switched_off }
}

/// A rule's sender stands where the message names none; one that is no mail address is none of a mail.
fn send_from(message: &mut Message, sender: &str) {
    let fits = message.channel.as_str() != "email" || sender.contains('@');
    if fits && message.body.content.from.is_none() {
        message.body.content.from = Some(Address { address: sender.to_owned(), name: None });
    }
}

/// A rule's template stands where the message names none: as a parameter, which a provider with templates knows.
fn use_template(message: &mut Message, template: &str) {
    let further = message.body.further.iter_mut().map(|further| &mut further.content);
    for content in std::iter::once(&mut message.body.content).chain(further) {
        content.params.entry("template".to_owned()).or_insert_with(|| template.to_owned());
    }
}

fn raw(object: &Object) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(object).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        domain::{
            ids::RuleId,
            message::{Body, Priority},
        },
        rules::{language::Language, script::Modules},
    };

    fn message(attributes: &str) -> Message {
        Message::with_body(Body {
            to: Some(Address { address: "+46701234567".into(), name: None }),
            attributes: Some(RawValue::from_string(attributes.to_owned()).unwrap()),
            ..Body::default()
        })
    }

    fn book(rules: &[Value], scripts: &[(&str, &str)]) -> Rulebook {
        let specs = rules.iter().map(|rule| (RuleId::new(), serde_json::from_value(rule.clone()).unwrap()));
        let rules = RuleSet::compile(specs.collect(), Box::<Language>::default()).unwrap();
        let scripts = scripts.iter().map(|(name, source)| {
            let script = Script::compile(name, source, &Modules::none()).unwrap();
            let script = script.allowing(std::time::Duration::from_secs(5));
            Arc::new(Running::new((*name).to_owned(), 1, (*source).into(), script))
        });
        Rulebook { rules: Some(Arc::new(rules)), scripts: scripts.collect(), trials: Vec::new() }
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
        assert_eq!(held.body.content.from.unwrap().address, "ACME");
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
        let accounts = book.explain_again(&changed);
        assert_eq!(accounts[0].why, "amount 5 is under the minimum 500");
        assert!(!accounts[0].hit);
    }

    #[test]
    fn a_script_that_fails_changes_nothing_and_is_switched_off() {
        let book = book(&[], &[("bad", "fn admit(message) { throw \"no\" }")]);
        let failures: Vec<_> = (0..25)
            .map(|_| book.admit(&mut message("{}"), &given()).failures.pop().map(|it| it.switched_off))
            .collect();
        assert_eq!(failures.iter().filter(|it| it.is_some()).count(), 20, "then it is asked no more");
        assert_eq!(failures[19], Some(true));
        let mut kept = message("[1, 2]");
        assert!(book.admit(&mut kept, &given()).refused.is_none(), "attributes that are no object harm nobody");
    }

    #[test]
    fn scripts_order_the_candidates() {
        let route = "fn route(message, candidates) { candidates.filter(|it| it.connection != \"b\") }";
        let book = book(&[], &[("a", "fn score(candidate) { -candidate.cost }"), ("b", route)]);
        let candidate =
            |name: &str, cost| CandidateFacts { connection: name.into(), cost: Some(cost), ..Default::default() };
        let candidates = vec![candidate("a", 3.0), candidate("b", 1.0), candidate("c", 2.0)];
        let routed = book.route(Subject::default(), candidates, &given());
        assert_eq!(routed.order.unwrap(), ["c", "a"]);
        let said: Vec<_> = routed.words.iter().map(|it| (&*it.hook, json!(it.answer).to_string())).collect();
        assert_eq!(said[0], ("score", r#"{"a":-3.0,"b":-1.0,"c":-2.0}"#.to_owned()));
        assert!(said[1].0 == "route" && said[1].1.contains(r#""connection":"c""#), "{said:?}");
    }

    #[test]
    fn a_condition_and_an_end_are_asked_by_name() {
        let source = "fn condition(context) { context.message.channel == \"sms\" } fn on_outcome(delivery) { if delivery.state == \"failed\" { #{text: \"again\"} } }";
        let book = book(&[], &[("open", source), ("other", "fn admit(message) { () }")]);
        assert!(book.has_condition("open") && !book.has_condition("other") && book.asks_outcomes());
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
        assert_eq!(one.body.content.params["template"], "plain");
        one.body.content.params.insert("template".into(), "own".into());
        book.admit(&mut one, &given());
        assert_eq!(one.body.content.params["template"], "own");
    }
}
