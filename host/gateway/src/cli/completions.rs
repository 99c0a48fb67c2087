//! `angarium completions`: the completion script of a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, output::Output};

/// `angarium completions bash > /etc/bash_completion.d/angarium`
#[derive(Debug, Args)]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run(&self, output: &Output) {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "angarium", &mut script);
        output.text(String::from_utf8_lossy(&script).trim_end());
    }
}
