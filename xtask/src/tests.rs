//! `cargo xtask test`: every check and every test, on a machine that has nothing yet.

mod deny;
mod peers;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::progress::{note, step};
use crate::project::{self, run};
pub use peers::Peers;

/// Sets the machine up, then checks and tests everything; with filters, runs the tests that match and nothing else.
///
/// Every step runs even when an earlier one failed, so that one run tells all.
pub fn run_all(filters: &[&str]) -> Result<()> {
    let peers = set_up()?;
    if !filters.is_empty() {
        return test_workspace(&peers, filters);
    }
    let steps: [Step<'_>; 7] = [
        ("formatting", &|| format_check()),
        ("clippy: the gateway", &|| clippy(project::cargo)),
        ("clippy: the providers", &|| clippy(providers_cargo)),
        ("dependencies: licences, bans, sources, advisories", &|| deny::check()),
        ("tests: the providers, natively", &|| run(providers_cargo().arg("test").arg("--workspace"))),
        ("the provider components", &|| project::build_providers().map(drop)),
        ("tests: the gateway", &|| test_workspace(&peers, &[])),
    ];
    let failures: Vec<_> = steps.iter().filter_map(|step| perform(step).err()).collect();
    if failures.is_empty() {
        step("everything passed");
        return Ok(());
    }
    let failures: Vec<_> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    bail!("{} of {} steps failed:\n  {}", failures.len(), steps.len(), failures.join("\n  "))
}

type Step<'a> = (&'a str, &'a dyn Fn() -> Result<()>);

fn perform((name, action): &Step<'_>) -> Result<()> {
    step(name);
    let began = Instant::now();
    let result = action();
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    note(format_args!("{verdict}: {name} ({:.0} s)", began.elapsed().as_secs_f64()));
    result.map_err(|error| error.context((*name).to_owned()))
}

fn set_up() -> Result<Peers> {
    project::prepare_toolchain()?;
    crate::database::ensure_installed()?;
    Peers::prepare()
}

fn format_check() -> Result<()> {
    run(project::cargo().args(["fmt", "--all", "--check"]))?;
    run(providers_cargo().args(["fmt", "--all", "--check"]))
}

fn clippy(cargo: fn() -> std::process::Command) -> Result<()> {
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Components don't link natively, so their tests run for this machine, in their own workspace.
fn providers_cargo() -> std::process::Command {
    let mut command = project::cargo();
    command.current_dir(project::root().join("plugins"));
    command
}

fn test_workspace(peers: &Peers, filters: &[&str]) -> Result<()> {
    let mut command = project::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    peers.announce(&mut command);
    if !filters.is_empty() {
        command.arg("--").args(filters);
    }
    run_showing_results(&mut command)
}

/// Runs the tests, whose output is the result: it goes to standard output, because readers look there for the closing
/// lines.
fn run_showing_results(command: &mut std::process::Command) -> Result<()> {
    let line = project::line(command);
    let status = command.stdin(std::process::Stdio::null()).status()?;
    anyhow::ensure!(status.success(), "`{line}` failed ({status})");
    Ok(())
}
