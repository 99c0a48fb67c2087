//! Jobs that run by themselves, beside the deliveries.

pub mod maintenance;
pub mod message_jobs;
pub mod replay;
