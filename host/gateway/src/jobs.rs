//! What runs by itself, beside the deliveries.

pub mod maintenance;
pub mod replay;
