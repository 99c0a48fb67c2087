//! Rules: a condition on a message, and the consequences if it holds.

mod many;
mod schema;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::many::Many;
use self::many::OneOrMore;
use super::{
    country::Country,
    message::{Channel, Priority},
    problem::{Problems, ValueProblem},
    rule_input::{Field, POSTAL_LENGTH, amount::Amount},
};

/// Conditions within one another.
pub const DEEPEST: usize = 8;
/// Of one rule, `all`, `any` and `not` counted too.
pub const MOST_CONDITIONS: usize = 64;
/// Of one list of a condition.
pub const MOST_VALUES: usize = 1000;
/// Of an expression, in bytes.
pub const LONGEST_EXPRESSION: usize = 4096;
/// The most connections that one rule scores.
pub const MOST_CONNECTIONS: usize = 20;
/// The most channels that one rule names.
pub const MOST_CHANNELS: usize = 8;

/// A condition on a message's data, and the consequences if it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// For people.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
    /// If rules disagree, the higher priority wins; 0, if left out.
    #[serde(default)]
    pub priority: i32,
    /// How much a match counts; 1, if left out.
    #[serde(default = "one")]
    #[schema(minimum = 0, maximum = 1)]
    pub weight: f64,
    /// `false`: the rule is kept and does nothing; `true`, if left out.
    #[serde(default = "yes")]
    pub active: bool,
    /// The rule counts from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub valid_from: Option<Timestamp>,
    /// The rule counts before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub valid_until: Option<Timestamp>,
    /// Left out: the rule holds for every message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Condition>,
    pub then: RuleEffect,
    /// Only together with `then.refuse`: the fate of a message whose expression fails, or is not asked for lack of time.
    /// `open`, if left out.
    #[serde(default, skip_serializing_if = "Fails::is_open")]
    pub fails: Fails,
}

/// The fate of a message whose refusing rule or script fails, or is not asked for lack of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fails {
    /// It is accepted.
    #[default]
    Open,
    /// It is refused.
    Refuse,
    /// It waits for a minute, and is asked about again.
    Hold,
}

impl Fails {
    /// Whether the message is let through.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Refuse => "refuse",
            Self::Hold => "hold",
        }
    }
}

const fn one() -> f64 {
    1.0
}

const fn yes() -> bool {
    true
}

/// A requirement on a message. A condition on data that the message lacks does not hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Condition {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Amount(AmountCondition),
    Customer(CustomerCondition),
    Industry(IndustryCondition),
    Geography(GeographyCondition),
    Custom(CustomCondition),
}

/// `attributes.amount`, both ends included, and `attributes.currency`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleAmount, min_properties = 1)]
pub struct AmountCondition {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Amount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Amount>,
    /// Left out: of any currency.
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<String>)]
    pub currency: Many<String>,
}

/// A requirement on the recipient: each given member must hold.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleCustomer, min_properties = 1)]
pub struct CustomerCondition {
    /// Customers by name: one of them.
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<String>)]
    pub id: Many<String>,
    /// The customer is in one of them.
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<String>)]
    pub segment: Many<String>,
    #[serde(default, rename = "type", skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<String>)]
    pub kind: Many<String>,
}

/// A requirement on the recipient's industry.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleIndustry)]
pub struct IndustryCondition {
    /// One of them.
    #[serde(default)]
    #[schema(value_type = OneOrMore<String>, required = true)]
    pub is: Many<String>,
    /// How risky it is. A match on a risky industry counts for more, and the decision tells the highest risk that was
    /// met.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1)]
    pub risk_weight: f64,
}

/// A requirement on the recipient's place: each given level must hold.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleGeography, min_properties = 1)]
pub struct GeographyCondition {
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<String>)]
    pub country: Many<String>,
    /// A state or province, with its country (`US-CA`) or without.
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<String>)]
    pub region: Many<String>,
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<String>)]
    pub city: Many<String>,
    /// The beginning of the postal code.
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<String>)]
    pub postal_prefix: Many<String>,
}

/// A requirement that no other condition can express.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleExpression)]
pub struct CustomCondition {
    /// In Rhai, with a truth for a value.
    #[schema(min_length = 1, max_length = 4096, example = "attributes.amount > 100")]
    pub expression: String,
}

/// The consequences of a match; at least one of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(min_properties = 1)]
pub struct RuleEffect {
    /// In order of preference: the first is that of a message that names none.
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<Channel>)]
    pub channels: Many<Channel>,
    #[serde(default, skip_serializing_if = "Many::is_empty")]
    #[schema(value_type = OneOrMore<GivenPreference>)]
    pub connections: Many<Preference>,
    /// For a message that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub sender: Option<String>,
    /// The parameter `template` of the content, for a message without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub template: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The message is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<RuleRefusal>,
}

/// A score for a connection, or its name alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "GivenPreference")]
pub struct Preference {
    /// Its id or uid.
    pub connection: String,
    /// Negative: against it.
    pub score: f64,
}

/// A connection's id or uid, with or without a score.
#[derive(Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a connection's id or uid, or an object with `connection` and `score`")]
#[schema(as = RuleConnection)]
enum GivenPreference {
    Name(String),
    Scored(ScoredConnection),
}

/// A score for a connection.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleConnectionScore)]
struct ScoredConnection {
    #[schema(min_length = 1, max_length = 128)]
    connection: String,
    /// Negative: against it; 1, if left out.
    #[serde(default = "one")]
    #[schema(minimum = -1, maximum = 1)]
    score: f64,
}

impl From<GivenPreference> for Preference {
    fn from(given: GivenPreference) -> Self {
        match given {
            GivenPreference::Name(connection) => Self { connection, score: one() },
            GivenPreference::Scored(ScoredConnection { connection, score }) => Self { connection, score },
        }
    }
}

/// The reason for not sending a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleRefusal {
    #[schema(min_length = 1, max_length = 256)]
    pub reason: String,
}

impl RuleSpec {
    /// Returns all faults of the rule. Expressions are checked when they are compiled.
    #[must_use]
    pub fn problems(&self) -> Vec<ValueProblem> {
        let mut problems = Problems::default();
        self.check(&mut problems);
        problems.into_found()
    }

    /// The same, among other checks.
    pub fn check(&self, problems: &mut Problems) {
        problems.plain("name", &self.name, 128);
        problems.check(in_unit(self.weight), "weight", "out_of_range", from_0_to_1(self.weight));
        let in_order = self.valid_from.zip(self.valid_until).is_none_or(|(from, until)| from < until);
        problems.check(in_order, "valid_until", "out_of_range", "must be after `valid_from`");
        if let Some(when) = &self.when {
            problems.within("when", |problems| {
                let count = when.count();
                if count > MOST_CONDITIONS {
                    problems.bad("too_many", format!("must have at most {MOST_CONDITIONS} conditions (got {count})"));
                }
                check_condition(problems, when, 1);
            });
        }
        problems.within("then", |problems| check_effect(problems, &self.then));
        let refuses = self.fails.is_open() || self.then.refuse.is_some();
        problems.check(refuses, "fails", "not_allowed", "is only allowed together with `then.refuse`");
    }

    /// Reports required names that do not exist. A rule that was stored before this check continues.
    pub fn check_names(&self, problems: &mut Problems) {
        if let Some(when) = &self.when {
            problems.within("when", |problems| check_names(problems, when));
        }
    }
}

impl Condition {
    fn count(&self) -> usize {
        1 + match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().map(Self::count).sum(),
            Self::Not(part) => part.count(),
            Self::Amount(_) | Self::Customer(_) | Self::Industry(_) | Self::Geography(_) | Self::Custom(_) => 0,
        }
    }
}

fn in_unit(number: f64) -> bool {
    (0.0..=1.0).contains(&number)
}

fn from_0_to_1(given: f64) -> String {
    format!("must be from 0 to 1 (got {given})")
}

fn check_condition(problems: &mut Problems, condition: &Condition, depth: usize) {
    if depth > DEEPEST {
        problems.bad("too_deep", format!("must have conditions at most {DEEPEST} deep"));
        return;
    }
    match condition {
        Condition::All(parts) => check_parts(problems, "all", parts, depth),
        Condition::Any(parts) => check_parts(problems, "any", parts, depth),
        Condition::Not(part) => problems.within("not", |problems| check_condition(problems, part, depth + 1)),
        Condition::Amount(amount) => problems.within("amount", |problems| check_amount(problems, amount)),
        Condition::Customer(customer) => problems.within("customer", |problems| check_customer(problems, customer)),
        Condition::Industry(industry) => problems.within("industry", |problems| {
            check_texts(problems, "is", Field::Industry, &industry.is);
            problems.check(!industry.is.is_empty(), "is", "missing", "must name an industry");
            problems.check(
                in_unit(industry.risk_weight),
                "risk_weight",
                "out_of_range",
                from_0_to_1(industry.risk_weight),
            );
        }),
        Condition::Geography(place) => problems.within("geography", |problems| check_geography(problems, place)),
        Condition::Custom(custom) => problems.within("custom", |problems| {
            let length = custom.expression.chars().count();
            let fits = (1..=LONGEST_EXPRESSION).contains(&length);
            let must = format!("must have 1 to {LONGEST_EXPRESSION} characters (got {length})");
            problems.check(fits, "expression", "out_of_range", must);
        }),
    }
}

fn check_parts(problems: &mut Problems, name: &str, parts: &[Condition], depth: usize) {
    problems.check(!parts.is_empty(), name, "empty", "must list at least one condition (got 0)");
    problems.each(name, parts, |problems, part| check_condition(problems, part, depth + 1));
}

fn check_amount(problems: &mut Problems, amount: &AmountCondition) {
    let AmountCondition { min, max, currency } = amount;
    if min.is_none() && max.is_none() && currency.is_empty() {
        problems.bad("empty", "must have `min`, `max` or `currency`");
    }
    let in_order = min.zip(*max).is_none_or(|(min, max)| min <= max);
    problems.check(in_order, "max", "out_of_range", "must be at least `min`");
    check_texts(problems, "currency", Field::Currency, currency);
}

fn check_customer(problems: &mut Problems, customer: &CustomerCondition) {
    let CustomerCondition { id, segment, kind } = customer;
    if id.is_empty() && segment.is_empty() && kind.is_empty() {
        problems.bad("empty", "must have `id`, `segment` or `type`");
    }
    check_texts(problems, "id", Field::Customer, id);
    check_texts(problems, "segment", Field::Segment, segment);
    check_texts(problems, "type", Field::Type, kind);
}

fn check_geography(problems: &mut Problems, place: &GeographyCondition) {
    let GeographyCondition { country, region, city, postal_prefix } = place;
    if country.is_empty() && region.is_empty() && city.is_empty() && postal_prefix.is_empty() {
        problems.bad("empty", "must have `country`, `region`, `city` or `postal_prefix`");
    }
    let told_apart = (region.is_empty() && postal_prefix.is_empty()) || !country.is_empty();
    problems.check(told_apart, "country", "missing", "must be given: a region or a postal code is one of a country");
    check_texts(problems, "country", Field::Country, country);
    check_texts(problems, "region", Field::Region, region);
    check_texts(problems, "city", Field::City, city);
    check_texts(problems, "postal_prefix", Field::Postal, postal_prefix);
    problems.each("postal_prefix", postal_prefix.iter(), |problems, prefix| {
        if Field::Postal.folded(prefix).is_some_and(|prefix| prefix.chars().count() > POSTAL_LENGTH) {
            problems.bad("too_long", format!("must have at most {POSTAL_LENGTH} letters and digits"));
        }
    });
}

fn check_texts(problems: &mut Problems, name: &str, field: Field, texts: &Many<String>) {
    let count = texts.0.len();
    problems.check(
        count <= MOST_VALUES,
        name,
        "too_many",
        format!("must list at most {MOST_VALUES} values (got {count})"),
    );
    problems.each(name, texts.iter(), |problems, text| {
        if field.folded(text).is_none() {
            problems.bad("wrong_format", field.expected());
        }
    });
}

fn check_names(problems: &mut Problems, condition: &Condition) {
    match condition {
        Condition::All(parts) => problems.each("all", parts, check_names),
        Condition::Any(parts) => problems.each("any", parts, check_names),
        Condition::Not(part) => problems.within("not", |problems| check_names(problems, part)),
        Condition::Geography(place) => problems.within("geography", |problems| {
            problems.each("country", place.country.iter(), |problems, country| {
                if Field::Country.folded(country).is_some_and(|country| !Country::exists(&country)) {
                    problems
                        .bad("unknown_country", format!("{} (`{country}` does not exist)", Field::Country.expected()));
                }
            });
        }),
        Condition::Amount(_) | Condition::Customer(_) | Condition::Industry(_) | Condition::Custom(_) => {}
    }
}

fn check_effect(problems: &mut Problems, effect: &RuleEffect) {
    if *effect == RuleEffect::default() {
        problems.bad("empty", "must have `channels`, `connections`, `sender`, `template`, `priority` or `refuse`");
    }
    let count = effect.channels.0.len();
    let must = format!("must name at most {MOST_CHANNELS} channels (got {count})");
    problems.check(count <= MOST_CHANNELS, "channels", "too_many", must);
    problems.check(once_each(effect.channels.iter()), "channels", "duplicate", "must name each channel once");
    check_connections(problems, &effect.connections);
    for (name, text) in [("sender", &effect.sender), ("template", &effect.template)] {
        if let Some(text) = text {
            problems.plain(name, text, 256);
        }
    }
    if let Some(refusal) = &effect.refuse {
        problems.within("refuse", |problems| problems.plain("reason", &refusal.reason, 256));
    }
}

fn check_connections(problems: &mut Problems, connections: &Many<Preference>) {
    let count = connections.0.len();
    let must = format!("must name at most {MOST_CONNECTIONS} connections (got {count})");
    problems.check(count <= MOST_CONNECTIONS, "connections", "too_many", must);
    let names = connections.iter().map(|it| &it.connection);
    problems.check(once_each(names), "connections", "duplicate", "must name each connection once");
    problems.each("connections", connections.iter(), |problems, preference| {
        problems.plain("connection", &preference.connection, 128);
        let in_range = (-1.0..=1.0).contains(&preference.score);
        let must = format!("must be from -1 to 1 (got {})", preference.score);
        problems.check(in_range, "score", "out_of_range", must);
    });
}

fn once_each<T: Ord>(mut items: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    items.all(|item| seen.insert(item))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rule(value: Value) -> Result<RuleSpec, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_rule_survives_its_text_form() {
        let given = json!({
            "name": "Dear ones in California", "priority": 10, "weight": 0.8, "valid_from": "2026-01-01T00:00:00Z",
            "when": {"all": [
                {"amount": {"min": 50, "max": "500.50", "currency": "EUR"}},
                {"any": [{"customer": {"segment": ["vip", "gold"], "type": "business"}}, {"customer": {"id": "c-1"}}]},
                {"not": {"industry": {"is": "gambling", "risk_weight": 0.9}}},
                {"geography": {"country": "US", "region": "CA", "city": "Los Angeles", "postal_prefix": ["90"]}},
                {"custom": {"expression": "attributes.items > 3"}}]},
            "then": {"channels": "sms", "connections": ["a", {"connection": "b", "score": -0.5}], "sender": "ACME",
                "template": "dear", "priority": "high"}});
        let parsed = rule(given).unwrap();
        assert_eq!(parsed.problems(), []);
        assert_eq!(parsed.then.connections.0[0].score, 1.0);
        assert_eq!(rule(serde_json::to_value(&parsed).unwrap()).unwrap(), parsed);
        assert!(serde_json::to_string(&parsed).unwrap().contains("500.5"));
    }

    #[test]
    fn unknown_members_are_refused() {
        let then = json!({"sender": "ACME"});
        assert!(rule(json!({"name": "x", "then": then, "when": {"amount": {"mim": 1}}})).is_err());
        assert!(rule(json!({"name": "x", "then": then, "when": {"weather": {}}})).is_err());
        assert!(rule(json!({"name": "x", "then": {"send": true}})).is_err());
        assert!(rule(json!({"name": "x", "then": {"connections": {"connection": "a", "weight": 1}}})).is_err());
        let error = rule(json!({"name": "x", "then": then, "when": {"customer": {"segment": 7}}})).unwrap_err();
        assert!(error.contains("a text or a list"), "{error}");
    }

    #[test]
    fn a_country_that_does_not_exist_is_named() {
        let when =
            json!({"any": [{"geography": {"country": ["SE", "uk", "XX"]}}, {"not": {"geography": {"country": "EU"}}}]});
        let rule = rule(json!({"name": "x", "when": when, "then": {"sender": "ACME"}})).unwrap();
        assert_eq!(rule.problems(), [], "a rule that was stored goes on");
        let mut problems = Problems::default();
        rule.check_names(&mut problems);
        let found: Vec<_> = problems.into_found().into_iter().map(|it| (it.pointer, it.detail)).collect();
        assert_eq!(
            found,
            [
                (
                    "/when/any/0/geography/country/2",
                    "must be a country's two letters (ISO 3166-1), such as `SE` (`XX` does not exist)"
                ),
                (
                    "/when/any/1/not/geography/country/0",
                    "must be a country's two letters (ISO 3166-1), such as `SE` (`EU` does not exist)"
                ),
            ]
            .map(|(pointer, detail)| (pointer.to_owned(), detail.to_owned()))
        );
    }

    #[test]
    fn every_bad_member_is_named() {
        let deep = (0..9).fold(json!({"customer": {"id": "a"}}), |inner, _| json!({"not": inner}));
        let bad = rule(json!({
            "name": " ", "weight": 1.5, "valid_from": "2026-01-02T00:00:00Z", "valid_until": "2026-01-01T00:00:00Z",
            "when": {"all": [
                {"amount": {"min": 2, "max": 1, "currency": "euro"}},
                {"amount": {}}, {"customer": {}}, {"geography": {"region": "CA", "postal_prefix": "12345678901"}},
                {"industry": {"risk_weight": 2}}, {"any": []}, {"custom": {"expression": ""}}, deep]},
            "then": {"channels": ["sms", "sms"], "connections": [{"connection": "", "score": 2}]}}))
        .unwrap();
        let found: Vec<_> = bad.problems().into_iter().map(|it| format!("{} {}", it.pointer, it.code)).collect();
        assert_eq!(
            found,
            [
                "/name empty",
                "/weight out_of_range",
                "/valid_until out_of_range",
                "/when/all/0/amount/max out_of_range",
                "/when/all/0/amount/currency/0 wrong_format",
                "/when/all/1/amount empty",
                "/when/all/2/customer empty",
                "/when/all/3/geography/country missing",
                "/when/all/3/geography/postal_prefix/0 too_long",
                "/when/all/4/industry/is missing",
                "/when/all/4/industry/risk_weight out_of_range",
                "/when/all/5/any empty",
                "/when/all/6/custom/expression out_of_range",
                "/when/all/7/not/not/not/not/not/not/not too_deep",
                "/then/channels duplicate",
                "/then/connections/0/connection empty",
                "/then/connections/0/score out_of_range",
            ]
        );
        let weight = &bad.problems()[1];
        assert_eq!(weight.detail, "must be from 0 to 1 (got 1.5)");
        let empty = rule(json!({"name": "x", "then": {}})).unwrap().problems();
        assert_eq!(empty[0].pointer, "/then");
    }
}
