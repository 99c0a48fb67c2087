//! Angarium: a self-hosted delivery gateway. `ARCHITECTURE.md` at the top has the map.

pub mod cli;
pub mod clock;
pub mod config;
pub mod credential;
pub mod domain;
pub mod gateway;
pub mod ledger;
pub mod outcome;
pub mod queue;
pub mod routing;
pub mod runtime;
pub mod sealing;
pub mod store;
pub mod telemetry;
pub mod transport;
