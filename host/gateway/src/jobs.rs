//! Jobs that run by themselves, beside the deliveries.

pub mod job_runner;
pub mod maintenance;
