//! The programs of others that the tests talk to: Python's and Node's, pinned, and Prometheus, in folders of
//! the project.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::machine::{self, Packages};
use crate::progress::{note, step};
use crate::project::{self, run};

const PYTHON: Packages =
    Packages { what: "Python 3 with venv", apt: &["python3", "python3-venv"], brew: &["python"], dnf: &["python3"] };

const NODE: Packages =
    Packages { what: "Node.js with npm", apt: &["nodejs", "npm"], brew: &["node"], dnf: &["nodejs", "npm"] };

const POSTFIX: Packages = Packages { what: "Postfix", apt: &["postfix"], brew: &["postfix"], dnf: &["postfix"] };

const PROMETHEUS: Packages =
    Packages { what: "Prometheus", apt: &["prometheus"], brew: &["prometheus"], dnf: &["golang-github-prometheus"] };
const FAKETIME: Packages = Packages { what: "libfaketime", apt: &["faketime"], brew: &[], dnf: &[] };

/// The folders of the installed peers.
#[derive(Debug)]
pub struct Peers {
    /// The interpreter of a virtual environment that has `requirements.txt`.
    pub python: PathBuf,
    /// A folder with the `node_modules` of `package.json`.
    pub node: PathBuf,
    /// The folder of `prometheus` and `promtool`.
    pub prometheus: PathBuf,
}

impl Peers {
    /// Installs missing packages, or those in other versions.
    pub fn prepare() -> Result<Self> {
        let home = project::target().join("peers");
        fs::create_dir_all(&home).with_context(|| format!("could not make {}", home.display()))?;
        let sources = project::root().join("tests/peers");
        prepare_postfix()?;
        prepare_faketime();
        Ok(Self {
            python: prepare_python(&home, &sources)?,
            node: prepare_node(&home, &sources)?,
            prometheus: prepare_prometheus(&home)?,
        })
    }

    /// Passes their paths to tests. A test that needs a peer fails without it.
    pub fn announce(&self, command: &mut Command) {
        command.env("ANGARIUM_PEERS_PYTHON", &self.python).env("ANGARIUM_PEERS_NODE", &self.node);
        command.env("ANGARIUM_PEERS_PROMETHEUS", &self.prometheus).env("ANGARIUM_REQUIRE_PEERS", "1");
    }
}

/// Postfix runs as root alone, and its package replaces any other mail server: it is installed if neither stands in the
/// way. Otherwise its tests report that they did not run.
fn prepare_postfix() -> Result<()> {
    let has_mail_server = Path::new("/usr/sbin/sendmail").exists();
    if has_mail_server || machine::user_id()? != 0 || machine::program("apt-get").is_none() {
        return Ok(());
    }
    step("installing Postfix");
    machine::install(&POSTFIX).or_else(|error| {
        note(format_args!("NOT INSTALLED: Postfix. Its tests don't run ({error:#})"));
        Ok(())
    })
}

/// Debian's package would start a server and keep one running: its files are enough.
fn prepare_prometheus(home: &Path) -> Result<PathBuf> {
    let unpacked = home.join("prometheus/usr/bin");
    if let Some(folder) = prometheus_folder(&unpacked) {
        return Ok(folder);
    }
    step("installing Prometheus");
    match machine::program("apt-get") {
        Some(_) => machine::unpack(&PROMETHEUS, &home.join("prometheus"))?,
        None => machine::install(&PROMETHEUS)?,
    }
    prometheus_folder(&unpacked).context("`promtool` and `prometheus` are not there after the installation")
}

fn prometheus_folder(unpacked: &Path) -> Option<PathBuf> {
    let has_both = |folder: &Path| ["prometheus", "promtool"].iter().all(|it| machine::is_executable(&folder.join(it)));
    let installed = machine::program("promtool").and_then(|it| it.parent().map(Path::to_owned));
    [unpacked.to_owned()].into_iter().chain(installed).find(|folder| has_both(folder))
}

/// Sets a gateway's clock. Where there is no such package, the test says that it did not run.
fn prepare_faketime() {
    if machine::program("faketime").is_some() || machine::program("apt-get").is_none() {
        return;
    }
    step("installing libfaketime");
    if let Err(error) = machine::install(&FAKETIME) {
        note(format_args!("NOT INSTALLED: libfaketime. Its test doesn't run ({error:#})"));
    }
}

fn prepare_python(home: &Path, sources: &Path) -> Result<PathBuf> {
    let folder = home.join("venv");
    let python = folder.join("bin/python");
    let requirements = sources.join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).with_context(|| format!("no {}", requirements.display()))?;
    let stamp = Stamp { file: folder.join("angarium.stamp"), wanted };
    if stamp.is_fresh() && python.exists() {
        return Ok(python);
    }
    step("installing the Python peers");
    if !has_venv() {
        machine::install(&PYTHON)?;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(&requirements))?;
    stamp.write()?;
    Ok(python)
}

/// Debian splits `ensurepip`, which venv needs, from Python itself.
fn has_venv() -> bool {
    let status = Command::new("python3")
        .args(["-c", "import venv, ensurepip"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn prepare_node(home: &Path, sources: &Path) -> Result<PathBuf> {
    let folder = home.join("node");
    let (manifest, lock) = (sources.join("package.json"), sources.join("package-lock.json"));
    let read = |file: &Path| fs::read_to_string(file).with_context(|| format!("no {}", file.display()));
    let stamp = Stamp { file: folder.join("angarium.stamp"), wanted: read(&manifest)? + &read(&lock)? };
    if stamp.is_fresh() && folder.join("node_modules").is_dir() {
        return Ok(folder);
    }
    step("installing the Node peers");
    if machine::program("npm").is_none() {
        machine::install(&NODE)?;
    }
    fs::create_dir_all(&folder)?;
    for file in [&manifest, &lock] {
        fs::copy(file, folder.join(file.file_name().unwrap_or_default()))?;
    }
    run(Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(&folder))?;
    stamp.write()?;
    Ok(folder)
}

/// Remembers the inputs of an installation.
struct Stamp {
    file: PathBuf,
    wanted: String,
}

impl Stamp {
    fn is_fresh(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|found| found == self.wanted)
    }

    fn write(&self) -> Result<()> {
        fs::write(&self.file, &self.wanted).with_context(|| format!("could not write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_fresh_until_what_is_wanted_changes() {
        let file = std::env::temp_dir().join(format!("angarium-stamp-{}", std::process::id()));
        let stamp = |wanted: &str| Stamp { file: file.clone(), wanted: wanted.into() };
        assert!(!stamp("a").is_fresh());
        stamp("a").write().unwrap();
        assert!(stamp("a").is_fresh());
        assert!(!stamp("b").is_fresh());
        fs::remove_file(file).unwrap();
    }
}
