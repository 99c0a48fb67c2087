//! The queries, against a real database.

mod queue;
mod row_security;
mod schema;
mod task_leases;
