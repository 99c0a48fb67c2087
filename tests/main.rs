//! Scenarios against the real thing.

mod flow;
mod plugins;
mod store;
mod support;
mod tidy;
mod transport;
