//! A script is refused or answers within its budget: of time, and of memory, which the fuzzer itself limits.
#![no_main]

use angarium_rules::script::{
    Given, Modules, Script,
    facts::{CandidateFacts, MessageFacts},
};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Ok(script) = Script::compile("fuzzed.rhai", source, &Modules::none()) else { return };
    let given = Given { now: Timestamp::UNIX_EPOCH, chance: 0.5 };
    let message = MessageFacts { channel: "sms".into(), to: "+46701234567".into(), ..MessageFacts::default() };
    let _ = script.admit(&message, &given);
    let candidate = CandidateFacts { connection: "primary".into(), cost: Some(1.0), ..CandidateFacts::default() };
    let _ = script.route(&message, &[candidate], &given);
});
