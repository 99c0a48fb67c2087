//! Measures the cost of declarative rules and a `route` script for a message: `cargo run --release --example
//! rules_rate`, optionally with the seconds for each measurement. For 10, 1,000 and 10,000 rules of a shop that
//! delivers to five countries it prints a line of JSON each: decisions a second on one core, rules examined for a
//! message, rules that hold on average, and the time to load them. Finally it prints how often a second one core asks
//! the ready scripts for geographic routing, which reads little, and for an A/B split, which reads the recipient; both
//! with three candidates.

use std::{
    env,
    error::Error,
    hint::black_box,
    time::{Duration, Instant},
};

use angarium_domain::{
    country::Country,
    ids::RuleId,
    rule::RuleSpec,
    rule_input::{Particulars, RuleInput},
};
use angarium_rules::{
    RuleSet,
    expression::NoExpressions,
    script::{
        Given, Modules, Script,
        facts::{CandidateFacts, MessageFacts},
    },
};
use fastrand::Rng;
use jiff::Timestamp;
use serde_json::{Value, json};

const COUNTRIES: [&str; 5] = ["SE", "NO", "DK", "FI", "DE"];
const CURRENCIES: [&str; 5] = ["SEK", "NOK", "DKK", "EUR", "EUR"];
const SEGMENTS: [&str; 6] = ["vip", "gold", "silver", "new", "dormant", "staff"];
const INDUSTRIES: [&str; 8] = ["retail", "travel", "health", "banking", "gambling", "media", "food", "energy"];
const CONNECTIONS: [&str; 4] = ["sms-eu", "sms-us", "mail-a", "mail-b"];
const SCRIPTS: [(&str, &str); 2] = [
    ("geographic_routing", include_str!("../../../rules/geographic-routing.rhai")),
    ("ab_split", include_str!("../../../rules/ab-split.rhai")),
];
const CANDIDATES: [&str; 3] = ["sms-b", "sms-eu", "sms-nordic"];
const CITIES: u32 = 400;
/// Decisions between two looks at the clock.
const ROUND: usize = 100;
const SUBJECTS: usize = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    let seconds: f64 = env::args().nth(1).map_or(Ok(2.0), |it| it.parse())?;
    let time = Duration::try_from_secs_f64(seconds)?;
    let mut rng = Rng::with_seed(1);
    let subjects: Vec<_> = (0..SUBJECTS).map(|_| subject(&mut rng)).collect::<Result<_, _>>()?;
    for count in [10, 1_000, 10_000] {
        let rules = (0..count).map(|number| rule(number, &mut rng)).collect::<Result<Vec<_>, _>>()?;
        println!("{}", measure(rules, &subjects, time)?);
    }
    for (name, source) in SCRIPTS {
        println!("{}", measure_script(name, source, &subjects, time)?);
    }
    Ok(())
}

fn measure_script(name: &str, source: &str, subjects: &[RuleInput], time: Duration) -> Result<Value, Box<dyn Error>> {
    let script = Script::compile(name, source, &Modules::none())?;
    let candidate = |connection: &str| CandidateFacts {
        connection: connection.to_owned(),
        provider: "sms-twilio".to_owned(),
        channel: "sms".to_owned(),
        cost: Some(0.0083),
        currency: Some("USD".to_owned()),
        success_rate: Some(0.99),
        ..CandidateFacts::default()
    };
    let candidates = CANDIDATES.map(candidate);
    let given = Given::default();
    let (mut decisions, began) = (0_u64, Instant::now());
    let mut in_turn = subjects.iter().cycle();
    while began.elapsed() < time {
        for subject in in_turn.by_ref().take(ROUND) {
            let mut facts = MessageFacts::of(black_box(subject).clone());
            // No customer has two messages.
            decisions += 1;
            facts.contact.insert("id".to_owned(), format!("customer-{decisions}").into());
            black_box(script.route(&facts, &candidates, &given)?);
        }
    }
    Ok(json!({"script": name, "decisions_per_s": decisions as f64 / began.elapsed().as_secs_f64()}))
}

fn measure(rules: Vec<(RuleId, RuleSpec)>, subjects: &[RuleInput], time: Duration) -> Result<Value, Box<dyn Error>> {
    let count = rules.len();
    let began = Instant::now();
    let set = RuleSet::compile(rules, Box::new(NoExpressions)).map_err(|problems| format!("{problems:?}"))?;
    let load_ms = began.elapsed().as_secs_f64() * 1e3;
    let now = Timestamp::UNIX_EPOCH;
    let held: u32 = subjects.iter().map(|subject| set.decide(subject, now).held).sum();
    let looked_at: usize = subjects.iter().map(|subject| set.looked_at(subject)).sum();
    let (mut decisions, began) = (0, Instant::now());
    let mut in_turn = subjects.iter().cycle();
    while began.elapsed() < time {
        for subject in in_turn.by_ref().take(ROUND) {
            black_box(set.decide(black_box(subject), now));
        }
        decisions += ROUND;
    }
    let rate = decisions as f64 / began.elapsed().as_secs_f64();
    Ok(json!({
        "rules": count,
        "decisions_per_s": rate,
        "looked_at_a_message": looked_at as f64 / subjects.len() as f64,
        "held_a_message": f64::from(held) / subjects.len() as f64,
        "load_ms": load_ms,
    }))
}

/// A message of the shop's.
fn subject(rng: &mut Rng) -> Result<RuleInput, String> {
    let at = rng.usize(..COUNTRIES.len());
    let particulars = json!({
        "attributes": {"amount": rng.u32(1..5_000), "currency": CURRENCIES[at], "order": rng.u32(..)},
        "contact": {
            "id": format!("customer-{}", rng.u32(..10_000)),
            "segment": [rng.choice(SEGMENTS)],
            "type": if rng.u8(..) < 50 { "business" } else { "consumer" },
            "industry": rng.choice(INDUSTRIES),
            "country": COUNTRIES[at],
            "region": format!("{}", rng.u32(..20)),
            "city": format!("City {}", rng.u32(..CITIES)),
            "postal_code": format!("{:05}", rng.u32(10_000..100_000)),
        },
    });
    let particulars: Particulars = serde_json::from_value(particulars).map_err(|error| error.to_string())?;
    RuleInput::read(particulars, None::<Country>).map_err(|problems| format!("{problems:?}"))
}

/// The ten that a tenant begins with are broad: each message meets some of them, however many rules
/// there are. All others are particular.
fn rule(number: usize, rng: &mut Rng) -> Result<(RuleId, RuleSpec), serde_json::Error> {
    let when = if number < 10 { broad(number) } else { particular(number, rng) };
    let spec = json!({
        "name": format!("Rule {number}"), "priority": rng.i32(0..10), "weight": 0.5 + rng.f64() / 2.0, "when": when,
        "then": {"connections": [{"connection": rng.choice(CONNECTIONS), "score": rng.f64()}], "channels": ["sms"]}});
    Ok((RuleId::new(), serde_json::from_value(spec)?))
}

fn broad(number: usize) -> Value {
    match number {
        0 => json!({"amount": {"min": 0}}),
        1 => json!({"customer": {"segment": ["vip", "gold"]}}),
        2 => json!({"customer": {"type": "business"}}),
        3 => json!({"amount": {"min": 1000, "max": 3000}}),
        4 => json!({"all": [{"industry": {"is": "gambling", "risk_weight": 0.9}}, {"amount": {"min": 500}}]}),
        number => json!({"geography": {"country": COUNTRIES[number - 5]}}),
    }
}

/// Four in ten rules name customers, three places, two test properties of a customer and an order, and one combines
/// conditions.
fn particular(number: usize, rng: &mut Rng) -> Value {
    let at = rng.usize(..COUNTRIES.len());
    let country = COUNTRIES[at];
    match number % 10 {
        0..=3 => json!({"customer": {"id": format!("customer-{}", rng.u32(..10_000))}}),
        4 | 5 => json!({"geography": {"country": country, "postal_prefix": rng.u32(100..100_000).to_string()}}),
        6 => json!({"geography": {"country": country, "city": format!("city {}", rng.u32(..CITIES))}}),
        7 => {
            let least = rng.u32(1..5_000);
            json!({"all": [
                {"customer": {"segment": [rng.choice(SEGMENTS)], "type": "business"}},
                {"geography": {"country": country, "region": format!("{}", rng.u32(..20))}},
                {"amount": {"min": least, "max": least + 200, "currency": CURRENCIES[at]}}]})
        }
        8 => {
            let least = rng.u32(1..5_000);
            json!({"all": [
                {"industry": {"is": rng.choice(INDUSTRIES), "risk_weight": 0.5}},
                {"amount": {"min": least, "max": least + 50, "currency": CURRENCIES[at]}}]})
        }
        _ => json!({"all": [
            {"any": [
                {"geography": {"country": country, "city": format!("city {}", rng.u32(..CITIES))}},
                {"customer": {"id": format!("customer-{}", rng.u32(..10_000))}}]},
            {"not": {"customer": {"segment": "staff"}}}]}),
    }
}
