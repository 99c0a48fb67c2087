//! Cargo's subcommands of others, each in the version that the project was made with.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::machine;
use crate::progress::step;
use crate::project::{self, run};

/// A program, such as `cargo-deny`, and its version.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    pub name: &'static str,
    pub version: &'static str,
}

impl Tool {
    /// Returns its path: built once into target/tools; the same version in the PATH is used too.
    pub fn installed(self) -> Result<PathBuf> {
        let tools = project::target().join("tools");
        let ours = tools.join("bin").join(self.name);
        let anywhere = std::iter::once(ours.clone()).chain(machine::programs(self.name));
        if let Some(found) = anywhere.into_iter().find(|program| self.is(program)) {
            return Ok(found);
        }
        step(format_args!("building {} {} (once; takes minutes)", self.name, self.version));
        run(project::cargo()
            .args(["install", "--locked", "--quiet", "--debug", "--root"])
            .arg(&tools)
            .arg("--target-dir")
            .arg(tools.join("build"))
            .arg(format!("{}@{}", self.name, self.version)))?;
        let _ = std::fs::remove_dir_all(tools.join("build"));
        Ok(ours)
    }

    fn is(self, program: &PathBuf) -> bool {
        let output = Command::new(program).arg("--version").stderr(Stdio::null()).output();
        let wanted = format!("{} {}", self.name, self.version);
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == wanted)
    }
}
