//! What scenarios stand on: a real PostgreSQL, a real gateway process, real receivers.

pub mod database;
