//! Angarium: a self-hosted delivery gateway. `ARCHITECTURE.md` at the top has the map.

pub mod admission;
pub mod api;
pub mod callbacks;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod credential;
pub mod directory;
pub mod dispatch;
pub mod domain;
pub mod failpoint;
pub mod gateway;
pub mod ledger;
pub mod maintenance;
pub mod observations;
pub mod outcome;
pub mod providers;
pub mod queue;
pub mod recovery;
pub mod routing;
pub mod runtime;
pub mod sealing;
pub mod store;
pub mod telemetry;
pub mod transport;
