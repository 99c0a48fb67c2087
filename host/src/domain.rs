//! The gateway's vocabulary: plain types and the pure decisions on them. Nothing here does I/O,
//! reads a clock, draws a number or knows another module.

pub mod attempt;
pub mod connection;
pub mod delivery;
pub mod ids;
pub mod key;
pub mod message;
pub mod provider;
pub mod retry;
pub mod route;
pub mod trace;
pub mod transmission;
