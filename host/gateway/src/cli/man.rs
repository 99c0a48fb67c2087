//! `angarium man`: the manual, as pages of section 1.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, CliError};

/// `angarium man /usr/local/share/man/man1`
#[derive(Debug, Args)]
pub struct ManPages {
    /// The folder for the pages; it must exist.
    folder: PathBuf,
}

impl ManPages {
    pub fn run(&self) -> Result<(), CliError> {
        clap_mangen::generate_to(Cli::command(), &self.folder).map_err(|error| {
            CliError::said(format!("the folder {} must exist and be writable: {error}", self.folder.display()))
        })
    }
}
