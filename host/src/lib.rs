//! Angarium: a self-hosted delivery gateway. `ARCHITECTURE.md` at the top has the map.

pub mod clock;
pub mod domain;
pub mod ledger;
pub mod outcome;
pub mod queue;
pub mod routing;
pub mod runtime;
pub mod sealing;
pub mod store;
pub mod transport;
