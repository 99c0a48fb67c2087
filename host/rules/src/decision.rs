//! The decision of the rules that hold, and each rule's part in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Rule,
    allowance::Spent,
    matching::{Match, level_name},
};
use angarium_domain::{
    ids::{ExperimentId, RuleId},
    message::{Channel, Priority},
    rule::{Fails, RuleEffect},
};

/// Faults that a decision lists.
const MOST_FAULTS: usize = 20;
/// Rules that a decision lists as holding; all are counted.
const MOST_HITS: usize = 100;

/// The rules' answer to a message. It is small enough to be stored with it; [`explain`](super::RuleSet::explain) gives
/// the reasons of each rule by evaluating again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RuleDecision {
    /// The number of the tenant's rule set that decided; 0 if the rules are not in service.
    #[serde(default)]
    pub rule_set: i64,
    /// The experiment whose variant took part in place of its rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<ExperimentId>,
    /// How many rules there are.
    pub total: u32,
    /// How many of them hold.
    pub held: u32,
    /// The message is not to be sent, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<Chosen<String>>,
    /// In order of preference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Chosen<Vec<Channel>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<Chosen<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Chosen<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Chosen<Priority>>,
    /// The connections that rules have a word on, the best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Scored>,
    /// The highest risk weight of an industry that was met.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub risk: f64,
    /// The rules that hold, by precedence: the first hundred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hits: Vec<Hit>,
    /// The undecided rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<RuleFault>,
    /// The end of the time: the rules from this one on were not asked.
    #[serde(skip)]
    pub ended: Option<Ended>,
    /// A rule that must not be passed over failed, or was not asked.
    #[serde(skip)]
    pub closed: Option<Closed>,
}

/// The point at which the time for rules and scripts ended: those after it were not asked, and count as absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// A rule's id, or a script's name.
    pub at: String,
    pub reason: Spent,
}

/// A rule that may refuse the message and cannot be decided, so that nothing is let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub rule: RuleId,
    pub fails: Fails,
    pub reason: String,
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// A value, and the rule that it is from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chosen<T> {
    pub value: T,
    pub rule: RuleId,
    /// In 0..=1.
    pub confidence: f64,
}

/// A connection that rules have a word on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The rules' name of it: its id or uid.
    pub connection: String,
    /// Above -2 and below 2; higher is better.
    pub score: f64,
}

/// An undecided rule: it counts as one that does not hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleFault {
    pub rule: RuleId,
    pub reason: String,
}

/// A rule that holds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    pub rule: RuleId,
    /// In 0..=1, of four digits.
    pub confidence: f64,
}

/// A rule that holds, while its effects are combined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    pub rule: &'a Rule,
    pub found: Match,
}

impl Held<'_> {
    /// How specific the match is, and how much the rule counts.
    pub fn confidence(&self) -> f64 {
        self.found.specificity * self.rule.weight
    }

    fn hit(&self) -> Hit {
        Hit { rule: self.rule.id, confidence: rounded(self.confidence()) }
    }
}

/// One rule's contribution to one connection's score.
#[derive(Debug)]
struct Contribution<'a> {
    by: Held<'a>,
    connection: &'a str,
    score: f64,
    /// The number of halvings, one for each rule before it.
    halvings: usize,
}

impl Contribution<'_> {
    fn amount(&self) -> f64 {
        // After a rule set's ten thousand rules, the twentieth no longer matters.
        self.by.confidence() * self.score * 0.5_f64.powi(self.halvings.min(64) as i32)
    }
}

/// The decision of a set.
pub(super) fn combine(total: usize, mut held: Vec<Held<'_>>, faults: Vec<RuleFault>) -> RuleDecision {
    put_in_order(&mut held);
    RuleDecision {
        total: count(total),
        held: count(held.len()),
        refuse: chosen(&held, |effect| effect.refuse.as_ref().map(|it| &it.reason)),
        channels: chosen(&held, |effect| (!effect.channels.is_empty()).then_some(&effect.channels.0)),
        sender: chosen(&held, |effect| effect.sender.as_ref()),
        template: chosen(&held, |effect| effect.template.as_ref()),
        priority: chosen(&held, |effect| effect.priority.as_ref()),
        candidates: candidates(&contributions(&held)),
        risk: rounded(held.iter().map(|it| it.found.risk).fold(0.0, f64::max)),
        hits: held.iter().take(MOST_HITS).map(Held::hit).collect(),
        faults: faults.into_iter().take(MOST_FAULTS).collect(),
        ..RuleDecision::default()
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Higher priority, then higher confidence, then the older rule.
pub(super) fn put_in_order(held: &mut [Held<'_>]) {
    held.sort_unstable_by(|a, b| {
        let confidence = || b.confidence().total_cmp(&a.confidence());
        b.rule.priority.cmp(&a.rule.priority).then_with(confidence).then_with(|| a.rule.id.cmp(&b.rule.id))
    });
}

/// Returns, of the rules that set something, in order, those that count: a geographic rule is ignored when another of
/// equal or higher priority matches a more specific place.
fn with_a_say<'a>(held: &[Held<'a>], sets: impl Fn(&RuleEffect) -> bool) -> Vec<Held<'a>> {
    let setters: Vec<_> = held.iter().copied().filter(|it| sets(&it.rule.effect)).collect();
    let mut deepest = 0;
    let mut heard = Vec::with_capacity(setters.len());
    for equals in setters.chunk_by(|a, b| a.rule.priority == b.rule.priority) {
        deepest = equals.iter().map(|it| it.found.level).fold(deepest, u8::max);
        heard.extend(equals.iter().filter(|it| it.found.level == 0 || it.found.level == deepest));
    }
    heard
}

fn chosen<T: Clone>(held: &[Held<'_>], value: impl Fn(&RuleEffect) -> Option<&T>) -> Option<Chosen<T>> {
    let first = *with_a_say(held, |effect| value(effect).is_some()).first()?;
    let value = value(&first.rule.effect)?.clone();
    Some(Chosen { value, rule: first.rule.id, confidence: rounded(first.confidence()) })
}

fn contributions<'a>(held: &[Held<'a>]) -> Vec<Contribution<'a>> {
    let mut spoken: BTreeMap<&str, usize> = BTreeMap::new();
    let mut contributions = Vec::new();
    for by in with_a_say(held, |effect| !effect.connections.is_empty()) {
        for preference in by.rule.effect.connections.iter() {
            let before = spoken.entry(&preference.connection).or_default();
            let connection = &preference.connection;
            contributions.push(Contribution { by, connection, score: preference.score, halvings: *before });
            *before += 1;
        }
    }
    contributions
}

fn candidates(contributions: &[Contribution<'_>]) -> Vec<Scored> {
    let mut scores: BTreeMap<&str, f64> = BTreeMap::new();
    for contribution in contributions {
        *scores.entry(contribution.connection).or_default() += contribution.amount();
    }
    let scored = |(connection, score): (&str, f64)| Scored { connection: connection.to_owned(), score: rounded(score) };
    let mut candidates: Vec<_> = scores.into_iter().map(scored).collect();
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates
}

/// Rounds to four digits, enough for a reader and a comparison.
pub(super) fn rounded(number: f64) -> f64 {
    // Adding zero makes a negative zero a plain one.
    (number * 1e4).round() / 1e4 + 0.0
}

/// Returns the part of each rule that holds in a decision, in the order of `held`, in words.
pub(super) fn says(held: &[Held<'_>], decision: &RuleDecision) -> Vec<Vec<String>> {
    let contributions = contributions(held);
    held.iter().map(|it| say(it, held, decision, &contributions)).collect()
}

fn say(it: &Held<'_>, held: &[Held<'_>], decision: &RuleDecision, contributions: &[Contribution<'_>]) -> Vec<String> {
    let effect = &it.rule.effect;
    let channels = effect.channels.iter().map(Channel::as_str).collect::<Vec<_>>().join(", ");
    let single = [
        ("refuse", effect.refuse.as_ref().map(|it| it.reason.as_str()), by(&decision.refuse)),
        ("channels", (!channels.is_empty()).then_some(channels.as_str()), by(&decision.channels)),
        ("sender", effect.sender.as_deref(), by(&decision.sender)),
        ("template", effect.template.as_deref(), by(&decision.template)),
        ("priority", effect.priority.map(Priority::as_str), by(&decision.priority)),
    ];
    let mut says: Vec<_> = single
        .into_iter()
        .filter_map(|(field, value, winner)| {
            let winner = held.iter().find(|other| Some(other.rule.id) == winner)?;
            value.map(|value| format!("{field}: {value}{}", gives_way(it, winner)))
        })
        .collect();
    let own = contributions.iter().filter(|contribution| contribution.by.rule.id == it.rule.id);
    let before = says.len();
    says.extend(own.map(scores));
    if says.len() == before && !effect.connections.is_empty() {
        says.push("connections: give way to a rule that goes by a more specific place".to_owned());
    }
    says
}

fn by<T>(chosen: &Option<Chosen<T>>) -> Option<RuleId> {
    chosen.as_ref().map(|it| it.rule)
}

fn scores(contribution: &Contribution<'_>) -> String {
    let Contribution { by, connection, score, halvings } = contribution;
    let confidence = rounded(by.confidence());
    let halved = if *halvings == 0 { String::new() } else { format!(" ÷ {}", 2_f64.powi((*halvings).min(64) as i32)) };
    format!("{connection}: confidence {confidence} × {score}{halved} = {:+}", rounded(contribution.amount()))
}

/// Why another rule's value is taken, if it is.
fn gives_way(it: &Held<'_>, winner: &Held<'_>) -> String {
    if it.rule.id == winner.rule.id {
        return String::new();
    }
    let (level, better) = (it.found.level, winner.found.level);
    let (confidence, higher) = (rounded(it.confidence()), rounded(winner.confidence()));
    let reason = if winner.rule.priority > it.rule.priority {
        format!("priority {} over {}", winner.rule.priority, it.rule.priority)
    } else if level > 0 && better > level {
        format!("a more specific place, {} over {}", level_name(better), level_name(level))
    } else if higher > confidence {
        format!("confidence {higher} over {confidence}")
    } else if higher < confidence {
        "another rule goes by a more specific place than this one".to_owned()
    } else {
        "the older of two alike".to_owned()
    };
    format!(" gives way to `{}` ({reason})", winner.rule.name)
}
