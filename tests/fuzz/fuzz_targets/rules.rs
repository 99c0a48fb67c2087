//! Rules are refused or decide; a decision and its explanation are of one mind.
#![no_main]

use angarium_domain::{
    ids::RuleId,
    rule::RuleSpec,
    rule_input::{Particulars, RuleInput},
};
use angarium_rules::{RuleSet, language::Language};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // Rules first, then a message's data.
    let mut parts = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    let (Some(Ok(rules)), Some(Ok(said))) = (parts.next(), parts.next()) else { return };
    let Ok(specs) = serde_json::from_value::<Vec<RuleSpec>>(rules) else { return };
    let Ok(particulars) = serde_json::from_value::<Particulars>(said) else { return };
    let specs = specs.into_iter().take(8).map(|spec| (RuleId::new(), spec)).collect();
    let Ok(set) = RuleSet::compile(specs, Box::<Language>::default()) else { return };
    let Ok(input) = RuleInput::read(particulars, None) else { return };
    let now = Timestamp::UNIX_EPOCH;
    assert_eq!(set.decide(&input, now), set.explain(&input, now).decision);
});
