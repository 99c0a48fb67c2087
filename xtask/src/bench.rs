//! `cargo xtask bench`: the gateway against pgbench, on one machine, in one run.
//!
//! Load, sink, gateway and database share the machine's cores, as the figures' targets assume. Everything is durable
//! (`fsync`, `synchronous_commit`), every wait has an end, and all traffic stays on loopback.

mod backlog;
mod fairness;
mod figures;
mod load;
mod reference;
mod rule_hooks;
mod rules;
mod scale;
mod sink;
mod stage;
mod throughput;
mod usage;
mod waiting;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::step;
use crate::project::{self, Profile};
use figures::Figures;
use stage::Stage;

/// The measurements to make, and their length.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub json: bool,
    /// One of [`NAMES`]; all of them if it is `None`.
    pub only: Option<String>,
    /// The time of each measurement.
    pub time: Duration,
    /// Measures a development build, which only shows that it works: `rules` alone.
    pub debug: bool,
}

/// The names that `--only` takes.
pub const NAMES: [&str; 10] = [
    "end_to_end",
    "latency",
    "accept",
    "accept_batch",
    "backlog",
    "slow_provider",
    "fairness",
    "scale",
    "rules",
    "ruled",
];

impl Options {
    /// Reads `[NAME] [--json] [--only NAME] [--seconds N] [--debug]`.
    pub fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { json: false, only: None, time: Duration::from_secs(8), debug: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--json" => options.json = true,
                "--debug" => options.debug = true,
                name if NAMES.contains(&name) => options.only = Some(name.to_owned()),
                "--only" => {
                    let name = words.next().context("--only needs a name")?;
                    ensure!(NAMES.contains(name), "`--only {name}`: it is one of {}", NAMES.join(", "));
                    options.only = Some((*name).to_owned());
                }
                "--seconds" => {
                    let seconds = words.next().and_then(|word| word.parse().ok()).filter(|n| (1..=120).contains(n));
                    options.time = Duration::from_secs(seconds.context("--seconds needs a number from 1 to 120")?);
                }
                other => bail!("`cargo xtask bench` doesn't know `{other}`"),
            }
        }
        ensure!(!options.debug || options.rules_alone(), "`--debug` is for `rules` alone");
        Ok(options)
    }

    /// They need no database, no provider and no gateway, and no load generator.
    fn rules_alone(&self) -> bool {
        self.only.as_deref() == Some("rules")
    }

    const fn profile(&self) -> Profile {
        if self.debug { Profile::Dev } else { Profile::Release }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == name)
    }
}

/// Measures, shows a table, and with `json` prints one JSON object last.
pub fn run(words: &[&str]) -> Result<()> {
    let options = Options::parse(words)?;
    if cfg!(debug_assertions) && !options.rules_alone() {
        return Err(run_released(words));
    }
    project::prepare_toolchain()?;
    let figures = if options.rules_alone() { rules_alone(&options)? } else { all(&options)? };
    println!("{}", figures.table());
    if options.json {
        println!("{}", figures.json());
    }
    Ok(())
}

fn rules_alone(options: &Options) -> Result<Figures> {
    let mut figures = Figures::default();
    rules::measure(options, &mut figures)?;
    Ok(figures)
}

fn all(options: &Options) -> Result<Figures> {
    let providers = project::build_providers()?;
    let binary = project::build_gateway(Profile::Release)?;
    let stage = Stage::set(binary, providers)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(&stage, options))
}

/// The load generator uses a share of the measured machine: it too is a release build, and may open many sockets.
fn run_released(words: &[&str]) -> anyhow::Error {
    step("building the load generator");
    if let Err(error) = project::run(project::cargo().args(["build", "--release", "--package", "xtask"])) {
        return error;
    }
    let error = Command::new("sh")
        .args(["-c", r#"ulimit -n "$(ulimit -Hn)"; exec "$0" bench "$@""#])
        .arg(project::target().join("release/xtask"))
        .args(words)
        .exec();
    anyhow::Error::from(error).context("could not start the load generator")
}

async fn measure(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::default();
    let before = reference::pgbench(stage, options.time)?;
    if options.wants("end_to_end") || options.wants("latency") {
        throughput::end_to_end(stage, options, &mut figures).await?;
    }
    if options.wants("accept") {
        throughput::accept(stage, options, &mut figures).await?;
    }
    if options.wants("accept_batch") {
        throughput::accept_batch(stage, options, &mut figures).await?;
    }
    if options.wants("backlog") {
        backlog::measure(stage, options, &mut figures).await?;
    }
    if options.wants("slow_provider") {
        waiting::measure(stage, options, &mut figures).await?;
    }
    if options.wants("rules") {
        rules::measure(options, &mut figures)?;
    }
    if options.wants("ruled") {
        rule_hooks::measure(stage, options, &mut figures).await?;
    }
    if options.wants("fairness") {
        fairness::measure(stage, &mut figures).await?;
    }
    if options.wants("scale") {
        scale::measure(stage, &mut figures).await?;
    }
    let after = reference::pgbench(stage, options.time)?;
    figures.relate_to(before, after);
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--json", "--only", "accept", "--seconds", "3"]).unwrap();
        assert!(options.json && options.wants("accept") && !options.wants("backlog"));
        assert_eq!(options.time, Duration::from_secs(3));
        assert_eq!(Options::parse(&["rules"]).unwrap().only.as_deref(), Some("rules"));
        for wrong in [&["--only", "x"][..], &["--only"], &["--seconds", "0"], &["--fast"], &["--debug"]] {
            assert!(Options::parse(wrong).is_err());
        }
    }
}
