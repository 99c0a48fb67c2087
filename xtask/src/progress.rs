//! The progress messages of a command. They go to standard error, so that standard output stays for results.

use std::fmt::Display;

/// Says what begins now.
pub fn step(what: impl Display) {
    eprintln!("==> {what}");
}

/// Says something about the step that runs.
pub fn note(what: impl Display) {
    eprintln!("    {what}");
}
