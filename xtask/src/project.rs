//! The paths of this repository, and the toolchain that builds it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::progress;

/// The repository's root.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Returns the folder that the demo keeps between runs.
pub fn state() -> PathBuf {
    root().join(".angarium")
}

/// A profile of cargo.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Profile {
    Dev,
    Release,
}

/// Builds the gateway and tells where its binary is.
pub fn build_gateway(profile: Profile) -> Result<PathBuf> {
    progress::step("building the gateway (the first time takes minutes)");
    build(&["--bin", "angarium"], profile).map(|folder| folder.join("angarium"))
}

/// Builds one of the gateway's examples and tells where its binary is.
pub fn build_example(name: &str, profile: Profile) -> Result<PathBuf> {
    build(&["--example", name], profile).map(|folder| folder.join("examples").join(name))
}

/// Returns the folder of the built artifacts. It uses the whole workspace's features, as the tests do: nothing is
/// compiled twice.
fn build(what: &[&str], profile: Profile) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--workspace"]).args(what);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            command.arg("--release");
            "release"
        }
    };
    run(&mut command)?;
    Ok(target().join(folder))
}

/// Builds the provider components and tells in which folder they are.
pub fn build_providers() -> Result<PathBuf> {
    progress::step("building the providers");
    for component in crate::plugins::build(root())? {
        let size = component.metadata()?.len() / 1024;
        progress::note(format_args!("{} ({size} KiB)", component.display()));
    }
    Ok(root().join("target/plugins"))
}

/// Cargo, in the repository's root.
///
/// Returns cargo without the package variables of the cargo that runs this program: build scripts watch those
/// variables, and would run again, with everything that depends on them.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|it| name.to_string_lossy().starts_with(it)) {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

/// Fetches what `rust-toolchain.toml` names, where rustup doesn't do it by itself.
pub fn prepare_toolchain() -> Result<()> {
    let Some(rustup) = crate::machine::program("rustup") else {
        return Ok(());
    };
    let installed = Command::new(&rustup).args(["target", "list", "--installed"]).current_dir(root()).output()?;
    if String::from_utf8_lossy(&installed.stdout).contains("wasm32-unknown-unknown") {
        return Ok(());
    }
    progress::step("fetching the wasm32-unknown-unknown target");
    let mut command = Command::new(rustup);
    run(command.args(["target", "add", "wasm32-unknown-unknown"]).current_dir(root()))
}

/// Runs a command in the foreground; its output goes to standard error.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("could not run `{line}`"))?;
    ensure!(status.success(), "`{line}` failed ({status})");
    Ok(())
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
