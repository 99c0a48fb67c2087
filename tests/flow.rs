//! The main job, from the request to the receiver and the ledger.

mod control;
mod crash;
mod database;
mod delivery;
mod drain;
mod plugins;
mod retention;
mod schedule;
mod secrets;
mod statistics;
mod swap;
