//! The developer's commands, and the parts of them that the tests use too.
//!
//! Nothing here depends on the gateway's crate: its binary is built and started as an operator would.

pub mod api;
pub mod bench;
pub mod database;
pub mod demo;
pub mod fuzz;
pub mod gateway;
pub mod http;
pub mod lifeline;
pub mod machine;
pub mod plugins;
pub mod progress;
pub mod project;
pub mod receivers;
pub mod tests;
pub mod tool;
