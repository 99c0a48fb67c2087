//! The rule language: conditions that tenants change while the gateway runs. Pure: the message's data and the time go
//! in, a decision with its reasons comes out.
//!
//! A tenant's rules are compiled when they are loaded and shared by all of its messages; nothing
//! here does I/O or reads a clock.

pub mod allocator;
pub mod allowance;
pub mod backtest;
pub mod cases;
pub mod decision;
pub mod experiment;
pub mod expression;
mod index;
mod intervals;
pub mod language;
mod matching;
#[cfg(test)]
mod properties;
pub mod question;
pub mod reference;
pub mod rulebook;
pub mod ruling;
pub mod script;
mod symbols;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;

use self::{
    decision::{Closed, Ended, Held, RuleDecision, RuleFault, combine, put_in_order, rounded, says},
    expression::{ExpressionFault, Expressions, Memo},
    index::Index,
    matching::{Compiler, Match, MatchInput, Test},
    ruling::Ruling,
    script::FailureBreaker,
    symbols::{KnownSymbols, Symbols},
    words::Words,
};
use angarium_domain::{
    ids::{ExperimentId, RuleId},
    message::Message,
    problem::{Problems, ValueProblem},
    rule::{Fails, RuleEffect, RuleSpec},
    rule_input::RuleInput,
};

/// The number of rules between two looks at the clock.
const LOOK_EACH: usize = 16;

/// The rules of one tenant, ready to decide.
#[derive(Debug)]
pub struct RuleSet {
    /// In the order in which they are asked: those without an expression before those with one, and among them those
    /// that must not be passed over before the others; then the oldest first.
    rules: Vec<Rule>,
    symbols: Symbols,
    index: Index,
    expressions: Box<dyn Expressions>,
    /// Which of the tenant's rule sets it is; 0 if it is none in service.
    number: i64,
    /// The experiment whose variant stands in it.
    variant: Option<ExperimentId>,
}

/// A rule as it is evaluated.
#[derive(Debug)]
struct Rule {
    id: RuleId,
    name: String,
    priority: i32,
    weight: f64,
    active: bool,
    valid_from: Option<Timestamp>,
    valid_until: Option<Timestamp>,
    test: Test,
    effect: RuleEffect,
    has_expression: bool,
    fails: Fails,
    /// The breaker of its expression, while this set serves.
    breaker: Mutex<FailureBreaker>,
}

/// A decision and what every rule had to do with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    pub decision: RuleDecision,
    /// The rules that hold first, of them those that count first; then all others, the oldest first.
    pub rules: Vec<Account>,
}

/// A rule whose expression has failed too often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFailure {
    pub rule: RuleId,
    pub name: String,
    /// Its last fault.
    pub reason: String,
    /// It is asked no more.
    pub switched_off: bool,
}

/// A rule's part in a decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Account {
    pub rule: RuleId,
    pub name: String,
    pub priority: i32,
    pub hit: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Why it holds or does not.
    pub why: String,
    /// Its consequences, and those that gave way to another rule.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub says: Vec<String>,
}

impl RuleSet {
    /// Compiles a tenant's rules: their tests are indexed, so that a message meets only rules that may hold.
    ///
    /// # Errors
    /// Everything that is wrong with any of them; pointers begin with the rule's id.
    pub fn compile(
        specs: Vec<(RuleId, RuleSpec)>,
        expressions: Box<dyn Expressions>,
    ) -> Result<Self, Vec<ValueProblem>> {
        check(&specs, RuleSpec::check_names)?;
        Self::stored(specs, expressions)
    }

    /// The same of rules that are in service: they go on although they ask for what does not exist.
    ///
    /// # Errors
    /// As above.
    pub fn stored(
        mut specs: Vec<(RuleId, RuleSpec)>,
        mut expressions: Box<dyn Expressions>,
    ) -> Result<Self, Vec<ValueProblem>> {
        specs.sort_by_key(|(id, _)| *id);
        check(&specs, |_, _| {})?;
        let (mut symbols, mut problems) = (Symbols::default(), Problems::default());
        let mut rules: Vec<_> = specs
            .into_iter()
            .map(|(id, spec)| {
                problems.within(&id.to_string(), |problems| {
                    let compiler = Compiler { symbols: &mut symbols, expressions: &mut *expressions, problems };
                    Rule::new(id, spec, compiler)
                })
            })
            .collect();
        problems.unless_any(())?;
        rules.sort_by_key(|rule| (rule.has_expression, rule.fails.is_open(), rule.id));
        let active = (0..).zip(&rules).filter(|(_, rule)| rule.active);
        let index = Index::new(active.map(|(place, rule)| (place, &rule.test)));
        Ok(Self { rules, symbols, index, expressions, number: 0, variant: None })
    }

    /// Gives the set the number that decisions name it by, and the experiment whose variant stands in it.
    #[must_use]
    pub const fn numbered(mut self, number: i64, variant: Option<ExperimentId>) -> Self {
        (self.number, self.variant) = (number, variant);
        self
    }

    /// Whether it made a decision.
    #[must_use]
    pub fn has_made(&self, decision: &RuleDecision) -> bool {
        (self.number, self.variant) == (decision.rule_set, decision.variant)
    }

    #[must_use]
    pub const fn len(&self) -> usize {
        self.rules.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether something has to be run to decide about some messages.
    #[must_use]
    pub fn has_expressions(&self) -> bool {
        // They are asked last.
        self.rules.last().is_some_and(|rule| rule.has_expression)
    }

    /// The name of one of its rules.
    #[must_use]
    pub fn name_of(&self, rule: RuleId) -> Option<&str> {
        Some(&self.rule(rule)?.name)
    }

    fn rule(&self, rule: RuleId) -> Option<&Rule> {
        self.rules.iter().find(|it| it.id == rule)
    }

    /// Counts what expressions did wrong in a decision; returns the rules that are asked no more from now on. One that
    /// must not be passed over is never switched off, and told each time that it has failed so often.
    #[must_use]
    pub fn failed(&self, decision: &RuleDecision, now: Timestamp) -> Vec<RuleFailure> {
        let failures = decision.faults.iter().filter_map(|fault| {
            let rule = self.rule(fault.rule)?;
            let closed = !rule.fails.is_open();
            let often = rule.breaker().failed(now);
            if often && closed {
                rule.breaker().reset();
            }
            let reason = fault.reason.clone();
            often.then(|| RuleFailure { rule: rule.id, name: rule.name.clone(), reason, switched_off: !closed })
        });
        failures.collect()
    }

    /// Returns the rules' answer to a message.
    #[must_use]
    pub fn decide(&self, input: &RuleInput, now: Timestamp) -> RuleDecision {
        let (facts, memo) = (self.symbols.facts(input), Memo::default());
        let candidates = self.index.candidates(&facts);
        let candidates = candidates.iter().filter_map(|place| self.rules.get(*place as usize));
        self.decide_among(candidates, &self.case(input, &facts, now, &memo))
    }

    /// How many rules a decision on a message evaluates: those that the index can't rule out.
    #[must_use]
    pub fn looked_at(&self, input: &RuleInput) -> usize {
        self.index.candidates(&self.symbols.facts(input)).len()
    }

    /// The decision, and of every rule why it holds or does not. It looks at each of them, which a
    /// decision alone does not.
    #[must_use]
    pub fn explain(&self, input: &RuleInput, now: Timestamp) -> Explanation {
        let (facts, memo) = (self.symbols.facts(input), Memo::default());
        let case = self.case(input, &facts, now, &memo);
        let decision = self.decide_among(self.rules.iter(), &case);
        let rules = self.accounts(&decision, |rule| rule.judge(&case));
        Explanation { decision, rules }
    }

    /// Explains for every rule why it held for a message at acceptance, or did not: with the message as it was before
    /// rules and scripts changed it. A rule that failed then, or was not asked, keeps that result.
    #[must_use]
    pub fn explain_accepted(&self, message: &Message) -> Vec<Account> {
        let Ruling { decision, original, ended, .. } = Ruling::of(message).unwrap_or_default();
        let mut before = message.clone();
        original.undo(&mut before);
        let input = RuleInput::of(&before).unaccepted();
        let Some(decision) = decision else { return self.explain(&input, message.created_at).rules };
        let (facts, memo) = (self.symbols.facts(&input), Memo::default());
        let case = self.case(&input, &facts, message.created_at, &memo);
        let asked = self.asked_then(&facts, ended.as_ref());
        self.accounts(&decision, |rule| match decision.faults.iter().find(|fault| fault.rule == rule.id) {
            Some(fault) => Err(ExpressionFault::new(fault.reason.clone())),
            None => asked(rule).and_then(|()| rule.holds(&case)),
        })
    }

    /// Whether a rule was asked in a decision that ended there.
    fn asked_then(&self, facts: &KnownSymbols, ended: Option<&Ended>) -> impl Fn(&Rule) -> Result<(), ExpressionFault> {
        let place = |rule: RuleId| self.rules.iter().position(|it| it.id == rule);
        let ended = ended.and_then(|it| Some((place(it.at.parse().ok()?)?, it.reason)));
        let unasked: BTreeSet<RuleId> = ended
            .iter()
            .flat_map(|(from, _)| {
                self.index.candidates(facts).into_iter().map(|at| at as usize).filter(move |at| at >= from)
            })
            .filter_map(|at| Some(self.rules.get(at)?.id))
            .collect();
        move |rule| match ended {
            Some((_, reason)) if unasked.contains(&rule.id) => Err(reason.into()),
            _ => Ok(()),
        }
    }

    /// Returns for every rule why it holds or does not: those that hold first, as they counted in a decision.
    fn accounts(
        &self,
        decision: &RuleDecision,
        judge: impl Fn(&Rule) -> Result<(Option<Match>, String), ExpressionFault>,
    ) -> Vec<Account> {
        let (mut held, mut missed) = (Vec::new(), Vec::new());
        for (number, rule) in self.rules.iter().enumerate() {
            let spent = if number.is_multiple_of(LOOK_EACH) { allowance::look() } else { None };
            let judged = spent.map_or_else(|| judge(rule), |spent| Err(spent.into()));
            let (found, why) = judged.unwrap_or_else(|fault| (None, fault_in_words(&fault)));
            match found {
                Some(found) => held.push((Held { rule, found }, why)),
                None => missed.push(rule.account(None, why, Vec::new())),
            }
        }
        missed.sort_by_key(|it| it.rule);
        let mut rules = accounts_of_held(held, decision);
        rules.append(&mut missed);
        rules
    }

    fn case<'a>(
        &'a self,
        input: &'a RuleInput,
        facts: &'a KnownSymbols,
        now: Timestamp,
        memo: &'a Memo,
    ) -> MatchInput<'a> {
        MatchInput { input, facts, symbols: &self.symbols, expressions: &*self.expressions, now, memo }
    }

    /// Asks these rules in turn, until there is no time left. Of those that are then not asked the first that must not
    /// be passed over closes the decision, as one does that fails.
    fn decide_among<'a>(&'a self, mut rules: impl Iterator<Item = &'a Rule>, case: &MatchInput<'_>) -> RuleDecision {
        let (mut held, mut faults, mut ended, mut closed) = (Vec::new(), Vec::new(), None, None);
        for (number, rule) in rules.by_ref().enumerate() {
            let spent = if number.is_multiple_of(LOOK_EACH) { allowance::look() } else { None };
            let judged = spent.map_or_else(|| rule.judge::<()>(case), |spent| Err(spent.into()));
            let fault = match judged {
                Ok((Some(found), ())) => {
                    held.push(Held { rule, found });
                    continue;
                }
                Ok((None, ())) => continue,
                Err(fault) => fault,
            };
            closed = closed.or_else(|| rule.closed(&fault.reason));
            match fault.unasked {
                None => faults.push(RuleFault { rule: rule.id, reason: fault.reason }),
                Some(reason) => {
                    ended = Some(Ended { at: rule.id.to_string(), reason });
                    break;
                }
            }
        }
        if let Some(Ended { reason, .. }) = ended {
            closed = closed.or_else(|| rules.find_map(|rule| rule.closed(reason.as_str())));
        }
        let decision = combine(self.rules.len(), held, faults);
        RuleDecision { rule_set: self.number, variant: self.variant, ended, closed, ..decision }
    }
}

impl Rule {
    fn new(id: RuleId, spec: RuleSpec, mut compiler: Compiler<'_>) -> Self {
        let RuleSpec { name, priority, weight, active, valid_from, valid_until, when, then, fails } = spec;
        let test = when.as_ref().map_or(Test::Always, |when| compiler.within("when", |it| it.test(when)));
        let (effect, has_expression, breaker) = (then, test.has_expression(), Mutex::default());
        Self {
            id,
            name,
            priority,
            weight,
            active,
            valid_from,
            valid_until,
            test,
            effect,
            has_expression,
            fails,
            breaker,
        }
    }

    fn breaker(&self) -> MutexGuard<'_, FailureBreaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the effect on a message if the rule cannot be asked, unless there is none.
    fn closed(&self, reason: &str) -> Option<Closed> {
        let closed = || Closed { rule: self.id, fails: self.fails, reason: reason.to_owned() };
        (!self.fails.is_open()).then(closed)
    }

    /// The match, if it holds now, with words for why or why not; one that is switched off is not asked.
    fn judge<W: Words>(&self, case: &MatchInput<'_>) -> Result<(Option<Match>, W), ExpressionFault> {
        if self.has_expression
            && let Some(since) = self.breaker().off_since()
        {
            let reason = format!("it is switched off since {since}, for its expression has failed too often");
            return Err(ExpressionFault::new(reason));
        }
        self.holds(case)
    }

    /// The same, whether or not it is switched off.
    fn holds<W: Words>(&self, case: &MatchInput<'_>) -> Result<(Option<Match>, W), ExpressionFault> {
        if !self.active {
            return Ok((None, W::say(|| "it is not active".to_owned())));
        }
        if let Some(from) = self.valid_from.filter(|from| case.now < *from) {
            return Ok((None, W::say(|| format!("it is valid from {from} on"))));
        }
        if let Some(until) = self.valid_until.filter(|until| *until <= case.now) {
            return Ok((None, W::say(|| format!("it was valid until {until}"))));
        }
        self.test.evaluate(case)
    }

    fn account(&self, confidence: Option<f64>, why: String, says: Vec<String>) -> Account {
        let Self { id, name, priority, .. } = self;
        Account { rule: *id, name: name.clone(), priority: *priority, hit: confidence.is_some(), confidence, why, says }
    }
}

fn accounts_of_held(held: Vec<(Held<'_>, String)>, decision: &RuleDecision) -> Vec<Account> {
    let mut in_order: Vec<_> = held.iter().map(|(held, _)| *held).collect();
    put_in_order(&mut in_order);
    let mut reasons: BTreeMap<_, _> = held.into_iter().map(|(it, why)| (it.rule.id, why)).collect();
    let accounts = in_order.iter().zip(says(&in_order, decision)).map(|(it, says)| {
        let numbers = format!(
            "confidence {} = specificity {} × weight {}",
            rounded(it.confidence()),
            rounded(it.found.specificity),
            it.rule.weight
        );
        let why = reasons.remove(&it.rule.id).unwrap_or_default();
        it.rule.account(Some(rounded(it.confidence())), format!("{why}; {numbers}"), says)
    });
    accounts.collect()
}

fn fault_in_words(fault: &ExpressionFault) -> String {
    if let Some(spent) = fault.unasked {
        return format!("it was not asked: {}", spent.as_str());
    }
    format!("its expression failed, so it counts as one that does not hold: {fault}")
}

fn check(specs: &[(RuleId, RuleSpec)], further: impl Fn(&RuleSpec, &mut Problems)) -> Result<(), Vec<ValueProblem>> {
    let (mut problems, mut seen) = (Problems::default(), BTreeSet::new());
    for (id, spec) in specs {
        problems.within(&id.to_string(), |problems| {
            if !seen.insert(*id) {
                problems.bad("duplicate", "must be listed once (got it twice)");
            }
            spec.check(problems);
            further(spec, problems);
        });
    }
    problems.unless_any(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{properties::YesNo, *};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn set(rules: &[Value]) -> RuleSet {
        let numbered = rules.iter().zip(1_u128..);
        let specs = numbered.map(|(rule, number)| (id(number), serde_json::from_value(rule.clone()).unwrap()));
        RuleSet::compile(specs.collect(), Box::<YesNo>::default()).unwrap()
    }

    fn id(number: u128) -> RuleId {
        uuid::Uuid::from_u128(number).into()
    }

    fn input(particulars: Value) -> RuleInput {
        RuleInput::read(serde_json::from_value(particulars).unwrap(), None).unwrap()
    }

    fn stockholm() -> RuleInput {
        input(json!({
            "attributes": {"amount": 12, "currency": "EUR"},
            "contact": {"id": "c-1", "segment": ["vip"], "industry": "Gambling", "country": "SE", "region": "AB",
                "city": "Stockholm", "postal_code": "114 55"}}))
    }

    /// Why a rule with this condition holds or does not.
    fn why(when: &Value) -> String {
        let set = set(&[json!({"name": "x", "when": when, "then": {"sender": "ACME"}})]);
        let account = set.explain(&stockholm(), NOW).rules.remove(0);
        format!("{}{}", if account.hit { "+ " } else { "- " }, account.why)
    }

    #[test]
    fn it_says_why() {
        for (when, words) in [
            (json!({"amount": {"min": 50}}), "- amount 12 EUR is under the minimum 50"),
            (json!({"amount": {"max": 11.5}}), "- amount 12 EUR is over the maximum 11.5"),
            (json!({"amount": {"min": 1, "currency": ["SEK", "NOK"]}}), "- currency EUR is not SEK or NOK"),
            (
                json!({"amount": {"min": 10, "max": 20, "currency": "EUR"}}),
                "+ currency is EUR, amount 12 EUR is from 10 to 20; confidence 0.68 = specificity 0.68 × weight 1",
            ),
            (json!({"customer": {"type": "business"}}), "- the message says no customer type"),
            (
                json!({"customer": {"id": ["c-2", "c-3", "c-4", "c-5", "c-6", "c-7", "c-8"]}}),
                "- customer c-1 is not c-2 or c-3 or c-4 or c-5 or c-6 or 2 more",
            ),
            (
                json!({"industry": {"is": "gambling", "risk_weight": 0.5}}),
                "+ industry is gambling of risk 0.5; confidence 0.6 = specificity 0.6 × weight 1",
            ),
            (
                json!({"geography": {"country": "SE", "postal_prefix": ["1", "114"]}}),
                "+ country is SE, postal code begins with 114; confidence 0.772 = specificity 0.772 × weight 1",
            ),
            (
                json!({"geography": {"country": "SE", "postal_prefix": "12"}}),
                "- postal code 11455 does not begin with 12",
            ),
            (
                json!({"any": [{"customer": {"id": "x"}}, {"amount": {"min": 50}}]}),
                "- none holds: customer c-1 is not x; amount 12 EUR is under the minimum 50",
            ),
            (json!({"not": {"customer": {"segment": "VIP"}}}), "- what must not hold does: segment is vip"),
            (json!({"custom": {"expression": "no"}}), "- the expression does not hold"),
            (
                json!({"not": {"custom": {"expression": "boom"}}}),
                "- its expression failed, so it counts as one that does not hold: it threw",
            ),
        ] {
            assert_eq!(why(&when), words);
        }
    }

    #[test]
    fn time_and_the_switch_count() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let rule = json!({"name": "x", "valid_from": at(10), "valid_until": at(20), "then": {"sender": "ACME"}});
        let set = set(&[rule, json!({"name": "off", "active": false, "then": {"sender": "OFF"}})]);
        let sender = |now| set.decide(&RuleInput::default(), at(now)).sender.map(|it| it.value);
        assert_eq!([9, 10, 19, 20].map(sender).map(|it| it.is_some()), [false, true, true, false]);
        let whys: Vec<_> = set.explain(&RuleInput::default(), at(20)).rules.into_iter().map(|it| it.why).collect();
        assert_eq!(whys, ["it was valid until 1970-01-01T00:00:20Z", "it is not active"]);
    }

    #[test]
    fn the_most_specific_place_wins_among_equals() {
        let place = |geography: Value, sender: &str, priority: i32| {
            json!({"name": sender, "priority": priority, "when": {"geography": geography}, "then": {"sender": sender,
                "connections": sender}})
        };
        let places = [
            place(json!({"country": "SE"}), "country", 0),
            place(json!({"country": "SE", "postal_prefix": "114"}), "prefix", 0),
            place(json!({"country": "SE", "region": "SE-AB", "city": "stockholm"}), "city", 0),
            place(json!({"country": "SE", "postal_prefix": "1"}), "short prefix", 0),
        ];
        let decision = set(&places).decide(&stockholm(), NOW);
        assert_eq!(decision.sender.unwrap().value, "prefix");
        assert_eq!(decision.candidates.len(), 1, "the others have no say");
        let above = [&places[..], &[place(json!({"country": "SE"}), "above", 1)]].concat();
        assert_eq!(set(&above).decide(&stockholm(), NOW).sender.unwrap().value, "above");
        let not_a_place = json!({"name": "x", "when": {"customer": {"id": "c-1"}}, "then": {"sender": "customer"}});
        let beside = [&places[..], &[not_a_place]].concat();
        let decision = set(&beside).decide(&stockholm(), NOW).sender.unwrap();
        assert_eq!(decision.value, "customer", "confidence 0.9 over 0.772");
    }

    #[test]
    fn each_field_is_from_the_rule_that_counts_most_for_it() {
        let set = set(&[
            json!({"name": "all", "then": {"channels": ["sms", "email"], "sender": "ACME", "template": "plain"}}),
            json!({"name": "dear", "priority": 5, "when": {"customer": {"segment": "vip"}},
                "then": {"sender": "VIP", "priority": "high"}}),
            json!({"name": "risky", "when": {"industry": {"is": "gambling", "risk_weight": 0.9}},
                "then": {"refuse": {"reason": "we do not serve it"}, "sender": "RISK"}}),
        ]);
        let explained = set.explain(&stockholm(), NOW);
        let decision = &explained.decision;
        assert_eq!(decision.sender.as_ref().unwrap().value, "VIP");
        assert_eq!(decision.channels.as_ref().unwrap().value.len(), 2);
        assert_eq!(decision.template.as_ref().unwrap().rule, id(1));
        assert_eq!(decision.refuse.as_ref().unwrap().value, "we do not serve it");
        assert_eq!((decision.risk, decision.total, decision.held), (0.9, 3, 3));
        let names: Vec<_> = explained.rules.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["dear", "risky", "all"]);
        assert_eq!(explained.rules[0].says, ["sender: VIP", "priority: high"]);
        assert_eq!(explained.rules[1].says[1], "sender: RISK gives way to `dear` (priority 5 over 0)");
        assert_eq!(explained.rules[2].says[0], "channels: sms, email");
    }

    #[test]
    fn later_words_for_a_connection_count_half() {
        let word = |weight: f64, score: f64| {
            json!({"name": "x", "weight": weight, "when": {"customer": {"segment": "vip"}},
                "then": {"connections": [{"connection": "a", "score": score}, "b"]}})
        };
        let set = set(&[word(0.5, -0.4), word(1.0, 1.0)]);
        let explained = set.explain(&stockholm(), NOW);
        let scores: Vec<_> =
            explained.decision.candidates.iter().map(|it| (it.connection.as_str(), it.score)).collect();
        assert_eq!(scores, [("b", 0.625), ("a", 0.45)]);
        assert_eq!(explained.rules[1].says[0], "a: confidence 0.25 × -0.4 ÷ 2 = -0.05");
    }

    #[test]
    fn a_failed_expression_is_told_and_counts_as_a_miss() {
        let custom = |expression: &str| {
            json!({"name": "x", "when": {"custom": {"expression": expression}},
            "then": {"sender": expression}})
        };
        let decision = set(&[custom("boom"), custom("yes")]).decide(&stockholm(), NOW);
        assert_eq!((decision.held, decision.sender.unwrap().value.as_str()), (1, "yes"));
        assert_eq!(decision.faults, [RuleFault { rule: id(1), reason: "it threw".to_owned() }]);
    }

    #[test]
    fn bad_rules_are_refused_with_every_place() {
        let spec = |when: Value| serde_json::from_value(json!({"name": "x", "when": when, "then": {"sender": "x"}}));
        let specs = vec![
            (id(1), spec(json!({"all": [{"customer": {"id": "a"}}, {"custom": {"expression": "bad"}}]})).unwrap()),
            (id(2), spec(json!({"custom": {"expression": "bad"}})).unwrap()),
        ];
        let problems = RuleSet::compile(specs, Box::<YesNo>::default()).unwrap_err();
        let found: Vec<_> =
            problems.iter().map(|it| (it.pointer.replace(&id(0).to_string()[..36], ""), it.code)).collect();
        assert_eq!(
            found,
            [
                ("/1/when/all/1/custom/expression".to_owned(), "does_not_compile"),
                ("/2/when/custom/expression".to_owned(), "does_not_compile")
            ]
        );
        let unknown = || vec![(id(3), spec(json!({"geography": {"country": ["SE", "XX"]}})).unwrap())];
        let problems = RuleSet::compile(unknown(), Box::<YesNo>::default()).unwrap_err();
        let detail = "must be a country's two letters (ISO 3166-1), such as `SE` (`XX` does not exist)";
        assert_eq!((problems[0].code, problems[0].detail.as_str()), ("unknown_country", detail));
        assert!(RuleSet::stored(unknown(), Box::<YesNo>::default()).is_ok(), "one in service goes on");
        let specs = vec![(id(3), spec(json!({"amount": {}})).unwrap()), (id(3), spec(json!({"any": []})).unwrap())];
        let problems = RuleSet::compile(specs, Box::<YesNo>::default()).unwrap_err();
        assert_eq!(problems.iter().map(|it| it.code).collect::<Vec<_>>(), ["empty", "duplicate", "empty"]);
    }
}
