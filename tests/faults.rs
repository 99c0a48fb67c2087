//! The fault matrix: what the gateway does when something breaks. `docs/faults.md` lists every row with its test.

mod disk;
