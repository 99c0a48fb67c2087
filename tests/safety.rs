//! Tenants against each other, and strangers against all: nobody can stop, read or starve anybody else.

mod budgets;
mod connections;
mod limits;
mod memory;
mod quarantine;
mod scripts;
mod secrets;
mod standing_attack;
