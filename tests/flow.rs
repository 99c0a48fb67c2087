//! The main job, from the request to the receiver and the ledger.

mod control;
mod crash;
mod dead_letters;
mod delivery;
mod drain;
mod guards;
mod legs;
mod observability;
mod ordering;
mod receipts;
mod retention;
mod retries;
mod schedule;
mod secrets;
mod statistics;
mod strategies;
mod swap;
