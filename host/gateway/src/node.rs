//! What a node consists of: its configuration, its view of tenants and providers, telemetry, and the assembly.

pub mod config;
pub mod directory;
pub mod gateway;
pub mod node_health;
pub mod providers;
pub mod rulefolder;
pub mod telemetry;
