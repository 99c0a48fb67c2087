//! Scenarios against the real thing.

mod plugins;
mod store;
mod support;
mod tidy;
mod transport;
