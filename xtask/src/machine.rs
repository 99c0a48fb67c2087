//! The properties of this machine: the user, the programs on it, and its package manager.

use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::progress;

/// The id of the user that runs this program.
pub fn user_id() -> Result<u32> {
    id(&["-u"]).context("could not ask `id -u` who runs this program")
}

/// The user and group ids of an account, if the machine has it.
pub fn account(name: &str) -> Option<(u32, u32)> {
    Some((id(&["-u", name])?, id(&["-g", name])?))
}

fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The first program of that name in the `PATH`.
pub fn program(name: &str) -> Option<PathBuf> {
    programs(name).next()
}

/// Every program of that name in the `PATH`, in order.
pub fn programs(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join(name)).collect();
    candidates.into_iter().filter(|file| is_executable(file))
}

/// Whether the file exists and is executable.
pub fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Installs packages of the distribution, with progress on the terminal.
///
/// Installs as root, or by sudo if it may be used; otherwise the error names the command to run.
pub fn install(packages: &Packages) -> Result<()> {
    if program("apt-get").is_some() {
        return run_as_root(&packages.apt_script());
    }
    if program("brew").is_some() {
        progress::step(format_args!("brew install {}", packages.brew.join(" ")));
        let status = Command::new("brew").arg("install").args(packages.brew).status()?;
        ensure!(status.success(), "`brew install {}` failed: {status}", packages.brew.join(" "));
        return Ok(());
    }
    bail!(
        "{} is missing and this machine has neither apt-get nor brew. Install it and run this command again:\n    {}",
        packages.what,
        packages.by_hand()
    )
}

/// Unpacks packages of the distribution into a folder, in which they start nothing and replace nothing.
pub fn unpack(packages: &Packages, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    if !download(packages, folder)? {
        run_as_root("apt-get update -q")?;
        ensure!(download(packages, folder)?, "`apt-get download {}` failed", packages.apt.join(" "));
    }
    let fetched = std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    for file in fetched.filter(|file| file.extension().is_some_and(|it| it == "deb")) {
        let status = Command::new("dpkg-deb").arg("--extract").arg(&file).arg(folder).status()?;
        ensure!(status.success(), "`dpkg-deb --extract {}` failed: {status}", file.display());
        std::fs::remove_file(&file)?;
    }
    Ok(())
}

fn download(packages: &Packages, folder: &Path) -> Result<bool> {
    let mut command = Command::new("apt-get");
    command.args(["download", "-q"]).args(packages.apt).current_dir(folder);
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status().context("could not run apt-get")?;
    Ok(status.success())
}

/// The distribution's packages for a step, under each package manager's names.
#[derive(Clone, Copy, Debug)]
pub struct Packages {
    /// Its description for people.
    pub what: &'static str,
    /// Debian's and Ubuntu's packages.
    pub apt: &'static [&'static str],
    /// Homebrew's.
    pub brew: &'static [&'static str],
    /// Fedora's and others' of its family.
    pub dnf: &'static [&'static str],
}

impl Packages {
    /// Debian's packages of servers would also configure and start one: this prevents it.
    fn apt_script(&self) -> String {
        let install = format!("apt-get install -y --no-install-recommends {}", self.apt.join(" "));
        let update = "export DEBIAN_FRONTEND=noninteractive; apt-get update -q";
        if self.apt.contains(&"postfix") {
            let answer = "postfix postfix/main_mailer_type select No configuration";
            return format!("{update} && echo '{answer}' | debconf-set-selections && {install}");
        }
        if !self.apt.contains(&"postgresql") {
            return format!("{update} && {install}");
        }
        let setting = "/etc/postgresql-common/createcluster.d/angarium.conf";
        format!(
            "{update}; mkdir -p \"$(dirname {setting})\" && echo 'create_main_cluster = false' > {setting} && {install}; \
             result=$?; rm -f {setting}; exit $result"
        )
    }

    fn by_hand(&self) -> String {
        if program("dnf").is_some() {
            return format!("sudo dnf install {}", self.dnf.join(" "));
        }
        if program("pacman").is_some() {
            return format!("sudo pacman -S {}", self.brew.join(" "));
        }
        if program("zypper").is_some() {
            return format!("sudo zypper install {}", self.dnf.join(" "));
        }
        format!("sudo apt-get install {}    # or what your system calls it", self.apt.join(" "))
    }
}

fn run_as_root(script: &str) -> Result<()> {
    let mut command = root_shell(script)?;
    progress::step(script);
    let status = command.stdin(Stdio::inherit()).stdout(std::io::stderr()).status()?;
    ensure!(status.success(), "the installation failed ({status}). Run it by hand and try again:\n    {script}");
    Ok(())
}

fn root_shell(script: &str) -> Result<Command> {
    if user_id()? == 0 {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        return Ok(shell);
    }
    let mut sudo = Command::new("sudo");
    if !sudo_works_silently() {
        ensure!(
            program("sudo").is_some() && std::io::stdin().is_terminal(),
            "this needs root, and there is no sudo that works without a password. Run it by hand and try again:\n    \
             sudo sh -c '{script}'"
        );
    } else {
        sudo.arg("-n");
    }
    sudo.args(["sh", "-c", script]);
    Ok(sudo)
}

fn sudo_works_silently() -> bool {
    Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program-anywhere").is_none());
    }

    #[test]
    fn the_user_and_accounts_are_known() {
        user_id().unwrap();
        assert_eq!(account("root").map(|found| found.0), Some(0));
        assert_eq!(account("no-such-account"), None);
    }
}
