//! Tenants against each other, and strangers against all: none can stop, read or starve another.

mod budgets;
mod connections;
mod limits;
mod memory;
mod quarantine;
mod scripts;
mod secrets;
mod standing_attack;
