//! The tests stand in `main.rs`; a package needs a target.
