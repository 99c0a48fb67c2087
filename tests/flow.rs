//! The main job, from the request to the receiver and the ledger.

mod crash;
mod dead_letters;
mod delivery;
mod drain;
mod guards;
mod legs;
mod message_actions;
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
