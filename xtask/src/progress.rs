//! The progress messages of a command. They go to standard error, so that standard output stays for results.

use std::fmt::Display;

/// Prints the step that begins.
pub fn step(what: impl Display) {
    eprintln!("==> {what}");
}

/// Prints a note about the present step.
pub fn note(what: impl Display) {
    eprintln!("    {what}");
}
