//! The gateway's vocabulary: plain types and the pure decisions on them. Nothing here does I/O,
//! reads a clock, draws a number or knows another module.

pub mod ids;
pub mod provider;
pub mod transmission;
