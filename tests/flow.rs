//! The main job, from the request to the receiver and the ledger.

mod control;
mod crash;
mod delivery;
mod drain;
mod observability;
mod ordering;
mod receipts;
mod retention;
mod schedule;
mod secrets;
mod statistics;
mod strategies;
mod swap;
