//! The fault matrix: what the gateway does when something breaks. `docs/faults.md` lists every row with its test.

mod clock;
mod commits;
mod database;
mod disk;
mod plugins;
mod provider;
mod table;
mod tenants;
mod workers;
