//! Scenarios against the real thing.

mod transport;
