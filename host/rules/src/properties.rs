//! Properties of every rule set and message. The cases are drawn; another `ANGARIUM_SEED` draws others.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::*;
use angarium_domain::{
    rule::Condition,
    rule_input::{Field, Particulars, amount::Amount},
};

const PLACES: [&str; 3] = ["SE", "US", "DE"];
const REGIONS: [&str; 4] = ["CA", "US-CA", "AB", "SE-AB"];
const CITIES: [&str; 3] = ["Stockholm", "Uppsala", "Los Angeles"];
const CODES: [&str; 6] = ["1", "11", "114", "114 55", "9", "90-2"];
const WORDS: [&str; 5] = ["a", "B", "c", "D", "e"];

/// Runs a property with a generator; a failure prints the seed.
fn holds(property: impl Fn(&mut Rng)) {
    property(&mut angarium_domain::seed::rng());
}

/// `yes`, `no`, or anything else, which fails.
#[derive(Debug, Default)]
pub struct YesNo(Vec<String>);

impl Expressions for YesNo {
    fn compile(&mut self, source: &str) -> Result<expression::ExpressionId, ExpressionFault> {
        if source == "bad" {
            return Err(ExpressionFault::new("line 1, column 1: bad".to_owned()));
        }
        self.0.push(source.to_owned());
        Ok(expression::ExpressionId(self.0.len() as u32 - 1))
    }

    fn holds(
        &self,
        id: expression::ExpressionId,
        _: &RuleInput,
        _: Timestamp,
        _: &expression::Memo,
    ) -> Result<bool, ExpressionFault> {
        yes_no(&self.0[id.0 as usize]).ok_or_else(|| ExpressionFault::new("it threw".to_owned()))
    }
}

fn yes_no(expression: &str) -> Option<bool> {
    match expression {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn some_of(rng: &mut Rng, words: &[&str]) -> Value {
    let count = rng.usize(1..=2);
    (0..count).map(|_| json!(rng.choice(words))).collect()
}

/// Each member with one chance in two, and one at least.
fn members(rng: &mut Rng, choices: &[(&str, &[&str])]) -> Map<String, Value> {
    let sure = rng.usize(..choices.len());
    let mut chosen = Map::new();
    for (place, (name, words)) in choices.iter().enumerate() {
        if place == sure || rng.bool() {
            chosen.insert((*name).to_owned(), some_of(rng, words));
        }
    }
    chosen
}

fn condition(rng: &mut Rng, depth: usize) -> Value {
    let kinds = if depth < 4 { 9 } else { 5 };
    match rng.usize(..kinds) {
        0 => {
            let ends = [rng.i64(-5..20), rng.i64(-5..20)];
            let mut amount = json!({"min": ends[0].min(ends[1])});
            if rng.bool() {
                amount["max"] = json!(ends[0].max(ends[1]));
            }
            if rng.bool() {
                amount["currency"] = some_of(rng, &["EUR", "usd"]);
            }
            json!({"amount": amount})
        }
        1 => json!({"customer": members(rng, &[("id", &WORDS), ("segment", &WORDS), ("type", &WORDS)])}),
        2 => json!({"industry": {"is": some_of(rng, &WORDS), "risk_weight": rng.f64()}}),
        3 => {
            let levels: [(&str, &[&str]); 3] = [("region", &REGIONS), ("city", &CITIES), ("postal_prefix", &CODES)];
            let mut place = members(rng, &levels);
            place.insert("country".to_owned(), some_of(rng, &PLACES));
            json!({"geography": place})
        }
        4 => json!({"custom": {"expression": rng.choice(["yes", "no", "fault"])}}),
        5 => json!({"not": condition(rng, depth + 1)}),
        6 => json!({"any": conditions(rng, depth)}),
        _ => json!({"all": conditions(rng, depth)}),
    }
}

fn conditions(rng: &mut Rng, depth: usize) -> Vec<Value> {
    (0..rng.usize(1..=3)).map(|_| condition(rng, depth + 1)).collect()
}

fn effect(rng: &mut Rng) -> Value {
    let mut effect = json!({"sender": rng.choice(WORDS)});
    if rng.bool() {
        effect["channels"] = json!(["sms", "email"]);
    }
    if rng.bool() {
        let first = rng.usize(..3);
        let score = rng.f64() * 2.0 - 1.0;
        effect["connections"] = json!([WORDS[first], {"connection": WORDS[first + 1], "score": score}]);
    }
    effect
}

fn moment(rng: &mut Rng) -> Timestamp {
    Timestamp::from_second(rng.i64(0..100)).unwrap()
}

fn rule(rng: &mut Rng) -> RuleSpec {
    let until = rng.bool().then(|| moment(rng));
    let from = rng.bool().then(|| moment(rng)).filter(|from| until.is_none_or(|until| *from < until));
    let spec = json!({
        "name": "x", "priority": rng.i32(0..3), "weight": rng.f64(), "active": rng.u8(..) > 20,
        "valid_from": from, "valid_until": until, "then": effect(rng)});
    let mut spec: RuleSpec = serde_json::from_value(spec).unwrap();
    spec.when = (rng.u8(..) > 10).then(|| serde_json::from_value(condition(rng, 1)).unwrap());
    spec
}

fn rules(rng: &mut Rng) -> Vec<(RuleId, RuleSpec)> {
    let drawn = (0..rng.usize(..200)).map(|_| (RuleId::new(), rule(rng)));
    drawn.filter(|(_, spec)| spec.problems().is_empty()).collect()
}

fn input(rng: &mut Rng) -> RuleInput {
    let mut contact = members(rng, &[("segment", &WORDS)]);
    let choices: [(&str, &[&str]); 7] = [
        ("id", &["a", "B", "d"]),
        ("type", &WORDS),
        ("industry", &WORDS),
        ("country", &PLACES),
        ("region", &REGIONS),
        ("city", &CITIES),
        ("postal_code", &["11455", "90210-1", "9"]),
    ];
    for (name, words) in choices {
        if rng.u8(..) > 80 {
            contact.insert(name.to_owned(), json!(rng.choice(words)));
        }
    }
    let mut attributes = Map::new();
    if rng.u8(..) > 40 {
        attributes.insert("amount".to_owned(), json!(rng.i64(-6..21)));
        attributes.insert("currency".to_owned(), json!(rng.choice(["EUR", "USD", "SEK"])));
    }
    RuleInput::read(Particulars { attributes, contact, context: Map::new() }, None).unwrap()
}

/// The meaning of a condition, word for word, without symbols, index or short cuts. `None` if an expression leaves it
/// open.
fn meaning(condition: &Condition, input: &RuleInput) -> Option<bool> {
    let is = |field: Field, texts: &[String]| {
        let said: Vec<_> = input.texts(field).collect();
        let mut texts = texts.iter().map(|text| field.folded(text).unwrap());
        match field {
            Field::Postal => texts.any(|prefix| said.iter().any(|code| code.starts_with(&prefix))),
            _ => texts.any(|text| said.contains(&text.as_str())),
        }
    };
    let each = |fields: &[(Field, &[String])]| fields.iter().all(|(field, it)| it.is_empty() || is(*field, it));
    match condition {
        Condition::All(parts) => {
            let parts: Vec<_> = parts.iter().map(|part| meaning(part, input)).collect();
            if parts.contains(&Some(false)) { Some(false) } else { (!parts.contains(&None)).then_some(true) }
        }
        Condition::Any(parts) => {
            let parts: Vec<_> = parts.iter().map(|part| meaning(part, input)).collect();
            if parts.contains(&Some(true)) { Some(true) } else { (!parts.contains(&None)).then_some(false) }
        }
        Condition::Not(part) => meaning(part, input).map(|holds| !holds),
        Condition::Amount(it) => {
            let bounds = (it.min.unwrap_or(Amount::ENDS.0), it.max.unwrap_or(Amount::ENDS.1));
            let within = input.amount().is_some_and(|amount| bounds.0 <= amount && amount <= bounds.1);
            let asked = it.min.is_some() || it.max.is_some();
            Some((within || !asked) && each(&[(Field::Currency, &it.currency.0)]))
        }
        Condition::Customer(it) => {
            Some(each(&[(Field::Customer, &it.id.0), (Field::Segment, &it.segment.0), (Field::Type, &it.kind.0)]))
        }
        Condition::Industry(it) => Some(is(Field::Industry, &it.is.0)),
        Condition::Geography(it) => Some(each(&[
            (Field::Country, &it.country.0),
            (Field::Region, &it.region.0),
            (Field::City, &it.city.0),
            (Field::Postal, &it.postal_prefix.0),
        ])),
        Condition::Custom(it) => yes_no(&it.expression),
    }
}

fn means(spec: &RuleSpec, input: &RuleInput, now: Timestamp) -> Option<bool> {
    let in_time = spec.valid_from.is_none_or(|from| from <= now) && spec.valid_until.is_none_or(|until| now < until);
    if !spec.active || !in_time {
        return Some(false);
    }
    spec.when.as_ref().map_or(Some(true), |when| meaning(when, input))
}

#[test]
fn the_index_changes_no_decision() {
    holds(|rng| {
        for _ in 0..60 {
            let set = RuleSet::compile(rules(rng), Box::<YesNo>::default()).unwrap();
            for _ in 0..20 {
                let (input, now) = (input(rng), moment(rng));
                assert_eq!(set.decide(&input, now), set.explain(&input, now).decision, "{input:?}");
            }
        }
    });
}

#[test]
fn a_rule_holds_where_its_condition_says_so() {
    holds(|rng| {
        for _ in 0..60 {
            let specs = rules(rng);
            let set = RuleSet::compile(specs.clone(), Box::<YesNo>::default()).unwrap();
            for _ in 0..5 {
                let (input, now) = (input(rng), moment(rng));
                let explained = set.explain(&input, now);
                for (id, spec) in &specs {
                    let account = explained.rules.iter().find(|it| it.rule == *id).unwrap();
                    let expected = means(spec, &input, now);
                    assert_eq!(account.hit, expected == Some(true), "{spec:?} {input:?} {account:?}");
                    assert_eq!(account.why.contains("failed"), expected.is_none(), "{spec:?} {account:?}");
                }
            }
        }
    });
}

#[test]
fn numbers_stay_in_their_bounds_and_the_order_of_loading_does_not_matter() {
    holds(|rng| {
        for _ in 0..60 {
            let mut specs = rules(rng);
            let set = RuleSet::compile(specs.clone(), Box::<YesNo>::default()).unwrap();
            rng.shuffle(&mut specs);
            let again = RuleSet::compile(specs, Box::<YesNo>::default()).unwrap();
            let (input, now) = (input(rng), moment(rng));
            let decision = set.decide(&input, now);
            assert!(decision.hits.as_slice().iter().all(|it| (0.0..=1.0).contains(&it.confidence)));
            assert!(decision.candidates.iter().all(|it| it.score.abs() < 2.0));
            assert!(decision.candidates.is_sorted_by(|a, b| a.score >= b.score));
            assert_eq!(again.decide(&input, now), decision);
            let text = serde_json::to_string(&decision).unwrap();
            assert_eq!(serde_json::from_str::<RuleDecision>(&text).unwrap(), decision);
        }
    });
}

#[test]
fn of_ten_thousand_rules_few_are_looked_at() {
    let mut specs = Vec::new();
    for number in 0..10_000 {
        let when = match number % 4 {
            0 => json!({"customer": {"id": format!("c{number}")}}),
            1 => json!({"geography": {"country": "SE", "postal_prefix": (number * 7).to_string()}}),
            2 => {
                json!({"all": [{"geography": {"country": "SE"}}, {"customer": {"segment": format!("s{}", number % 50)}},
                {"amount": {"min": number, "max": number + 100, "currency": "SEK"}}]})
            }
            _ => json!({"amount": {"min": number, "max": number + 10}}),
        };
        let spec = json!({"name": "x", "when": when, "then": {"sender": "x"}});
        specs.push((RuleId::new(), serde_json::from_value(spec).unwrap()));
    }
    let set = RuleSet::compile(specs, Box::<YesNo>::default()).unwrap();
    let particulars = json!({"attributes": {"amount": 5000, "currency": "SEK"},
        "contact": {"id": "c400", "segment": "s6", "country": "SE", "postal_code": "11455"}});
    let input = RuleInput::read(serde_json::from_value(particulars).unwrap(), None).unwrap();
    let looked_at = set.looked_at(&input);
    assert!(looked_at < 50, "{looked_at}");
}
