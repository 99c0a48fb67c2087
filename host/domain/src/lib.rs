//! The gateway's vocabulary: plain types and the pure decisions on them. Nothing here does I/O,
//! reads a clock, draws a number or knows another module.

pub mod attempt;
pub mod audit;
pub mod breaker;
pub mod callback;
pub mod connection;
pub mod country;
pub mod dead_letter;
pub mod delivery;
pub mod destination;
pub mod dns;
pub mod document;
pub mod experiment;
pub mod folding;
pub mod guards;
pub mod ids;
pub mod job;
pub mod key;
pub mod language;
pub mod legs;
pub mod media_type;
pub mod message;
pub mod one_or_many;
pub mod outcome;
pub mod overrides;
pub mod price;
pub mod problem;
pub mod provider;
pub mod receipt;
pub mod recipients;
pub mod redaction;
pub mod retry;
pub mod route;
pub mod routing;
pub mod rule;
pub mod rule_input;
pub mod sealed;
#[doc(hidden)]
pub mod seed;
pub mod segments;
pub mod sensitive;
pub mod settings;
pub mod statistics;
pub mod timezone;
pub mod trace;
pub mod transmission;
