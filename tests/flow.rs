//! The main job, from the request to the receiver and the ledger.

mod control;
mod crash;
mod delivery;
mod drain;
mod schedule;
mod secrets;
mod swap;
