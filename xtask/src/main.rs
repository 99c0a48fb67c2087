//! `cargo xtask`: the developer's commands.

use std::process::ExitCode;

use anyhow::{Result, bail};
use xtask::database::{Cluster, Options};
use xtask::{bench, demo, fuzz, project, tests};

const HELP: &str = "\
cargo xtask COMMAND

  demo [--once]      Set everything up, deliver messages on three channels, show every attempt;
                     stays in the foreground until Ctrl-C, with --once ends after the table.
  test [FILTER…]     Every check and test, installing what they need; with filters, those tests alone.
  fuzz [NAME] [--seconds N]
                     What draws its cases, with fresh seeds over and over for N seconds (60, if left out), and the
                     fuzz targets for as long each. NAME: `properties`, `scenarios`, or a target of tests/fuzz.
                     To be run before each release.
  plugins            Build the provider components into target/plugins.
  database           Start the development database and print its address; Ctrl-C stops it.
  bench [NAME] [--json] [--seconds N]
                     Measure the gateway against pgbench on this machine. Release builds.
                     `rules` alone needs no database, and takes --debug for a development build.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["demo"] => demo::run(false),
        ["demo", "--once"] => demo::run(true),
        ["test", filters @ ..] => tests::run_all(filters),
        ["bench", options @ ..] => bench::run(options),
        ["fuzz", options @ ..] => fuzz::run_all(options),
        ["plugins"] => project::build_providers().map(drop),
        ["database"] => database(),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => bail!("`cargo xtask {}` is no command.\n\n{HELP}", words.join(" ")),
    }
}

fn database() -> Result<()> {
    let cluster = Cluster::start(Options::demo(project::root()))?;
    println!("{}", cluster.url("postgres"));
    tokio::runtime::Runtime::new()?.block_on(demo::stop_signal())
}
