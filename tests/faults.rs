//! The fault matrix: what the gateway does when something breaks.

mod commits;
mod database;
mod disk;
