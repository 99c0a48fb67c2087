//! What scenarios stand on: a real PostgreSQL, real gateway processes, real receivers.

pub mod database;
pub mod gateway;
pub mod proxy;
pub mod sink;
