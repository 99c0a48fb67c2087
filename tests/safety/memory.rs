//! What a node holds in memory is bounded in bytes, with a share for each tenant.
