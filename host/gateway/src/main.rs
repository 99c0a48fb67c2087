//! The `angarium` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    angarium::cli::run()
}
