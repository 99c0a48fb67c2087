//! Scenarios against the real thing.

mod api;
mod faults;
mod field;
mod flow;
mod peers;
mod plugins;
mod rules;
mod safety;
mod store;
mod support;
mod tidy;
mod transport;
