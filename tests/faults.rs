//! The fault matrix: the gateway's reaction to each fault. `docs/faults.md` lists every row with its test.

mod claims;
mod clock;
mod commits;
mod database;
mod disk;
mod model;
mod plugins;
mod provider;
mod schedules;
mod table;
mod tenants;
mod workers;
