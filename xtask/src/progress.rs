//! What a command tells while it works. Standard error, so that standard output stays for results.

use std::fmt::Display;

/// Says what begins now.
pub fn step(what: impl Display) {
    eprintln!("==> {what}");
}

/// Says something about the step that runs.
pub fn note(what: impl Display) {
    eprintln!("    {what}");
}
