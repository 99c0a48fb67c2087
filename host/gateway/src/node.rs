//! The parts of a node: its configuration, its view of tenants and providers, telemetry, and the assembly.

pub mod config;
pub mod gateway;
pub mod health;
pub mod providers;
pub mod rulefolder;
pub mod telemetry;
pub mod tenant_config;
