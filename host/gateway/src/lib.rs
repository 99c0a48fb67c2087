//! Angarium: a self-hosted delivery gateway. `ARCHITECTURE.md` at the top has the map.

pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod credential;
pub mod engine;
pub mod jobs;
pub mod node;
