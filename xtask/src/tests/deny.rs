//! `cargo deny`: licences, bans, sources; advisories where their database can be had.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::progress::note;
use crate::project::{self, run};
use crate::tool::Tool;

const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };

/// Checks both workspaces' dependencies against `deny.toml`.
pub fn check() -> Result<()> {
    let deny = DENY.installed()?;
    for manifest in ["Cargo.toml", "plugins/Cargo.toml"] {
        run(checker(&deny, manifest).args(["licenses", "bans", "sources"]))?;
    }
    check_advisories(&deny)
}

/// An advisory fails the check. A database that can't be fetched doesn't: the run says so and goes on.
fn check_advisories(deny: &PathBuf) -> Result<()> {
    let fetched = Command::new(deny)
        .args(["fetch", "db"])
        .current_dir(project::root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("could not run cargo-deny")?;
    if !fetched.success() {
        note("NOT CHECKED: advisories. Their database, github.com/rustsec/advisory-db, can't be reached from here");
        return Ok(());
    }
    for manifest in ["Cargo.toml", "plugins/Cargo.toml"] {
        run(checker(deny, manifest).args(["advisories"]))?;
    }
    Ok(())
}

fn checker(deny: &PathBuf, manifest: &str) -> Command {
    let mut command = Command::new(deny);
    command.args(["--manifest-path", manifest, "--config", "deny.toml", "check", "--hide-inclusion-graph"]);
    command.current_dir(project::root());
    command
}
