//! The queries, against a real database.

mod jobs;
mod queue;
mod row_security;
mod schema;
mod task_leases;
