//! Builds the provider components of `plugins/` into `target/plugins/`.
//!
//! It knows nothing of the gateway: a component that this makes is admitted like any other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use wit_component::{ComponentEncoder, DecodedWasm};

const TARGET: &str = "wasm32-unknown-unknown";

/// The only import that a component may have.
const ALLOWED_IMPORT: &str = "angarium:provider/log@1.0.0";

/// Builds every provider and answers with the components' files, in the order of their names.
///
/// `root` is the repository's root. Components that are up to date are not built again.
///
/// # Errors
/// The target can't be installed, the providers don't compile, or a component imports more than
/// the contract's logger.
pub fn build(root: &Path) -> Result<Vec<PathBuf>> {
    let workspace = root.join("plugins");
    ensure_target(&workspace)?;
    compile(&workspace)?;
    let folder = root.join("target/plugins");
    fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
    provider_names(&workspace)?
        .iter()
        .map(|name| {
            let module =
                workspace.join("target").join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
            let component = folder.join(format!("{name}.wasm"));
            wrap_if_stale(&module, &component).with_context(|| format!("provider {name}"))?;
            Ok(component)
        })
        .collect()
}

/// Returns the names of a component's imports, such as `angarium:provider/log@1.0.0`.
///
/// # Errors
/// The bytes are not a component.
pub fn imports(component: &[u8]) -> Result<Vec<String>> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component)? else {
        bail!("it is a WIT package, not a component");
    };
    let imports = &resolve.worlds[world].imports;
    Ok(imports.keys().map(|key| resolve.name_world_key(key)).collect())
}

/// Every folder with a crate in it is a provider, except the SDK.
fn provider_names(workspace: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(workspace).with_context(|| format!("can't read {}", workspace.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "sdk" && entry.path().join("Cargo.toml").is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn ensure_target(workspace: &Path) -> Result<()> {
    if target_is_installed(workspace)? {
        return Ok(());
    }
    let added = Command::new("rustup").args(["target", "add", TARGET]).current_dir(workspace).status();
    match added {
        Ok(status) => ensure!(status.success(), "`rustup target add {TARGET}` failed: see above"),
        Err(_) => bail!(
            "the Rust target {TARGET} is not installed and rustup was not found: install rustup from https://rustup.rs, or your distribution's package of that target"
        ),
    }
    Ok(())
}

fn target_is_installed(workspace: &Path) -> Result<bool> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(workspace)
        .output()
        .context("can't run rustc")?;
    let libdir = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && Path::new(libdir.trim()).is_dir())
}

/// Runs the cargo that runs this program, with a target folder of its own.
fn compile(workspace: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--locked", "--workspace", "--lib", "--target", TARGET])
        .current_dir(workspace)
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env("CARGO_TARGET_DIR", workspace.join("target"))
        .status()
        .context("can't run cargo")?;
    ensure!(status.success(), "the providers in plugins/ don't compile: see above");
    Ok(())
}

fn wrap_if_stale(module: &Path, component: &Path) -> Result<()> {
    if is_fresh(module, component)? {
        return Ok(());
    }
    let bytes = wrap(&fs::read(module)?)?;
    // Renamed into place, so that a gateway that watches the folder never reads half a file.
    let unfinished = component.with_extension(format!("{}.new", std::process::id()));
    fs::write(&unfinished, bytes)?;
    fs::rename(&unfinished, component)?;
    Ok(())
}

fn is_fresh(module: &Path, component: &Path) -> Result<bool> {
    let built = modified(module)?;
    Ok(component.is_file() && modified(component)? >= built)
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("can't read {}", path.display()))
}

/// A core module as a component that imports nothing but the logger.
fn wrap(module: &[u8]) -> Result<Vec<u8>> {
    let component = ComponentEncoder::default().validate(true).module(module)?.encode()?;
    for import in imports(&component)? {
        ensure!(import == ALLOWED_IMPORT, "it imports {import}; a provider may import {ALLOWED_IMPORT} alone");
    }
    Ok(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_imports_the_logger_alone_and_exports_the_contract() -> Result<()> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        for path in build(root)? {
            let component = fs::read(&path)?;
            assert_eq!(imports(&component)?, [ALLOWED_IMPORT], "{}", path.display());
            let DecodedWasm::Component(resolve, world) = wit_component::decode(&component)? else { unreachable!() };
            let exports: Vec<_> = resolve.worlds[world].exports.keys().map(|key| resolve.name_world_key(key)).collect();
            let (contract, optional): (Vec<_>, Vec<_>) =
                exports.into_iter().partition(|it| it == "angarium:provider/plugin@1.0.0");
            assert_eq!(contract.len(), 1, "{} exports {optional:?}", path.display());
            let known = optional.iter().all(|it| it == "angarium:provider/callbacks@1.0.0");
            assert!(known, "{} exports {optional:?}", path.display());
        }
        Ok(())
    }
}
