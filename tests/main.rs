//! Scenarios against the real thing.

mod plugins;
mod transport;
