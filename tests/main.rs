//! Scenarios against the real thing.
