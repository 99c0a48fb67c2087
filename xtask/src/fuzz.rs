//! `cargo xtask fuzz`: what draws its cases, with fresh seeds over and over, and then the fuzz targets.
//!
//! A normal run of the tests always draws the same cases, so that only a change makes it fail.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::progress::{note, step};
use crate::project::{self, run};
use crate::tests::Peers;
use crate::tool::Tool;

/// The default duration of each, in seconds.
const SECONDS: u64 = 60;
const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2" };
/// The folder of the targets: a workspace of its own, which a normal build does not look at.
const TARGETS: &str = "tests/fuzz";

/// The modules under `host` whose tests draw their cases; a test of the map holds the list to the sources.
pub const PROPERTIES: &[&str] = &[
    "domain/src/breaker",
    "domain/src/legs",
    "domain/src/receipt",
    "domain/src/retry/budget",
    "domain/src/routing/properties",
    "gateway/src/api/form",
    "gateway/src/engine/observations",
    "rules/src/intervals",
    "rules/src/properties",
    "rules/src/script/hostile_programs",
    "transport/src/smtp/reply",
];

/// The modules under `tests` whose scenarios draw theirs.
pub const SCENARIOS: &[&str] = &[
    "faults/schedules",
    "flow/crash",
    "flow/ordering",
    "flow/receipts",
    "flow/statistics",
    "peers/openapi",
    "store/row_security",
];

/// The command line's request.
#[derive(Debug, PartialEq)]
struct Wanted<'a> {
    name: Option<&'a str>,
    time: Duration,
}

/// Runs everything that has this name, or all of it: `properties`, `scenarios`, and the targets by their names.
pub fn run_all(options: &[&str]) -> Result<()> {
    let wanted = Wanted::read(options)?;
    let targets = targets()?;
    let names = ["properties", "scenarios"].into_iter().chain(targets.iter().map(String::as_str));
    let names: Vec<&str> = names.filter(|name| wanted.name.is_none_or(|wanted| wanted == *name)).collect();
    ensure!(!names.is_empty(), "there is no `{}`: name `properties`, `scenarios`, or one of {targets:?}", options[0]);
    project::prepare_toolchain()?;
    let mut failures = Vec::new();
    for name in names {
        step(format_args!("fuzzing: {name}, for {} s", wanted.time.as_secs()));
        let ended = match name {
            "properties" => repeat(wanted.time, &properties),
            "scenarios" => scenarios(wanted.time),
            target => fuzz(target, wanted.time),
        };
        failures.extend(ended.err().map(|error| format!("{name}: {error:#}")));
    }
    ensure!(failures.is_empty(), "{} failed:\n  {}", failures.len(), failures.join("\n  "));
    step("nothing was found");
    Ok(())
}

impl<'a> Wanted<'a> {
    fn read(options: &[&'a str]) -> Result<Self> {
        let mut wanted = Self { name: None, time: Duration::from_secs(SECONDS) };
        let mut rest = options.iter();
        while let Some(option) = rest.next() {
            match *option {
                "--seconds" => {
                    let seconds =
                        rest.next().and_then(|text| text.parse().ok()).context("`--seconds` takes a number")?;
                    wanted.time = Duration::from_secs(seconds);
                }
                name if wanted.name.is_none() && !name.starts_with('-') => wanted.name = Some(name),
                other => bail!("`cargo xtask fuzz` does not know `{other}`"),
            }
        }
        Ok(wanted)
    }
}

/// Runs tests with one seed after another, until the time is over or one fails.
fn repeat(time: Duration, tests: &dyn Fn() -> Command) -> Result<()> {
    let began = Instant::now();
    let mut runs = 0;
    while runs == 0 || began.elapsed() < time {
        let seed = RandomState::new().build_hasher().finish() >> 1;
        note(format_args!("ANGARIUM_SEED={seed}"));
        run(tests().env("ANGARIUM_SEED", seed.to_string()))
            .with_context(|| format!("ANGARIUM_SEED={seed} repeats it"))?;
        runs += 1;
    }
    note(format_args!("{runs} runs"));
    Ok(())
}

fn properties() -> Command {
    let mut command = project::cargo();
    let modules: Vec<_> = PROPERTIES.iter().filter_map(|file| Some(file.split_once("/src/")?.1)).collect();
    command.args(["test", "--quiet", "--workspace", "--lib", "--"]).args(filters(&modules));
    command
}

fn scenarios(time: Duration) -> Result<()> {
    crate::database::ensure_installed()?;
    let peers = Peers::prepare()?;
    repeat(time, &|| {
        let mut command = project::cargo();
        command.args(["test", "--quiet", "--package", "angarium-tests", "--"]).args(filters(SCENARIOS));
        peers.announce(&mut command);
        command
    })
}

fn filters(modules: &[&str]) -> Vec<String> {
    modules.iter().map(|module| module.replace('/', "::") + "::").collect()
}

/// The targets' names.
fn targets() -> Result<Vec<String>> {
    let folder = project::root().join(TARGETS).join("fuzz_targets");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))?;
    let stem = |path: &Path| Some(path.file_stem()?.to_string_lossy().into_owned());
    let mut names: Vec<_> = entries.filter_map(|entry| stem(&entry.ok()?.path())).collect();
    names.sort();
    Ok(names)
}

/// Runs a target. Findings beyond the seeds are kept under `target/fuzz`; inputs that make it fail are shown.
fn fuzz(target: &str, time: Duration) -> Result<()> {
    let cargo_fuzz = CARGO_FUZZ.installed()?;
    let kept = project::target().join("fuzz");
    let found = kept.join(target);
    std::fs::create_dir_all(&found)?;
    let mut command = Command::new(cargo_fuzz);
    command.args(["run", "--fuzz-dir", TARGETS, "--sanitizer", "none", "--target-dir"]).arg(kept.join("build"));
    command.arg(target).arg(&found).args(seeds(target)?);
    command.arg("--").arg(format!("-max_total_time={}", time.as_secs()));
    command.args(["-rss_limit_mb=2048", "-timeout=20"]);
    // The coverage that libFuzzer counts is asked of the compiler by flags that only a nightly one takes, or this.
    command.current_dir(project::root()).env("RUSTC_BOOTSTRAP", "1");
    run(&mut command)
}

/// Returns the folders of a target's initial inputs: its own, and the project's files of its kind.
fn seeds(target: &str) -> Result<Vec<PathBuf>> {
    let root = project::root();
    let own = root.join(TARGETS).join("seeds").join(target);
    Ok(match target {
        "component" => vec![own, project::build_providers()?],
        "scripts" => vec![own, root.join("rules")],
        _ => vec![own],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_time_are_read_in_any_order() -> Result<()> {
        let minute = Duration::from_secs(60);
        assert_eq!(Wanted::read(&[])?, Wanted { name: None, time: minute });
        let both = Wanted { name: Some("rules"), time: Duration::from_secs(5) };
        assert_eq!(Wanted::read(&["rules", "--seconds", "5"])?, both);
        assert_eq!(Wanted::read(&["--seconds", "5", "rules"])?, both);
        for bad in [&["--second"][..], &["--seconds"], &["--seconds", "x"], &["a", "b"]] {
            assert!(Wanted::read(bad).is_err(), "{bad:?}");
        }
        Ok(())
    }
}
