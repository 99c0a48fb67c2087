//! What leaves the gateway.
