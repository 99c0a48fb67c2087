//! `cargo deny`: licences, bans, sources; advisories where their database can be had.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::machine;
use crate::progress::{note, step};
use crate::project::{self, run};

const VERSION: &str = "0.20.2";

/// Checks both workspaces' dependencies against `deny.toml`.
pub fn check() -> Result<()> {
    let deny = installed()?;
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

/// The pinned version, built once into target/tools; one in the PATH of that version is as good.
fn installed() -> Result<PathBuf> {
    let tools = project::target().join("tools");
    let ours = tools.join("bin/cargo-deny");
    let anywhere = std::iter::once(ours.clone()).chain(machine::programs("cargo-deny"));
    if let Some(found) = anywhere.into_iter().find(is_wanted) {
        return Ok(found);
    }
    step(format_args!("building cargo-deny {VERSION} (once; takes minutes)"));
    run(project::cargo()
        .args(["install", "--locked", "--quiet", "--debug", "--root"])
        .arg(&tools)
        .arg("--target-dir")
        .arg(tools.join("build"))
        .arg(format!("cargo-deny@{VERSION}")))?;
    let _ = std::fs::remove_dir_all(tools.join("build"));
    Ok(ours)
}

fn is_wanted(program: &PathBuf) -> bool {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == format!("cargo-deny {VERSION}"))
}
