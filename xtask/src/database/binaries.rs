//! Finding PostgreSQL's programs, or installing them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::machine::{self, Packages};
use crate::progress;

const OLDEST: u32 = 14;

const POSTGRES: Packages = Packages {
    what: "PostgreSQL",
    apt: &["postgresql", "postgresql-client"],
    brew: &["postgresql"],
    dnf: &["postgresql-server", "postgresql-contrib"],
};

/// Programs of one PostgreSQL installation, all of the same major version.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub postgres: PathBuf,
    pub initdb: PathBuf,
    pub psql: PathBuf,
    pub major: u32,
}

impl Binaries {
    pub fn find_or_install() -> Result<Self> {
        if let Some(found) = Self::find() {
            return Ok(found);
        }
        progress::step(format_args!("PostgreSQL {OLDEST} or newer is missing: installing it"));
        machine::install(&POSTGRES)?;
        Self::find().with_context(|| {
            format!(
                "PostgreSQL was installed, but no folder of this machine has `initdb`, `postgres` and `psql` of one \
                 version, {OLDEST} or newer. Put that folder into the PATH and try again"
            )
        })
    }

    /// The newest complete installation; the first in the `PATH` among equals.
    pub fn find() -> Option<Self> {
        let mut best: Option<Self> = None;
        for found in folders().iter().filter_map(|folder| Self::in_folder(folder)) {
            if best.as_ref().is_none_or(|best| found.major > best.major) {
                best = Some(found);
            }
        }
        best
    }

    /// A lone or mismatched program is not an installation.
    fn in_folder(folder: &Path) -> Option<Self> {
        let postgres = folder.join("postgres").canonicalize().ok()?;
        let home = postgres.parent()?;
        let initdb = home.join("initdb");
        let major = major(&postgres)?;
        let psql = Some(home.join("psql")).filter(|file| machine::is_executable(file)).or_else(psql)?;
        let complete = major >= OLDEST && self::major(&initdb) == Some(major);
        complete.then_some(Self { postgres, initdb, psql, major })
    }
}

/// PostgreSQL's client, from anywhere.
pub fn psql() -> Option<PathBuf> {
    let somewhere = folders().into_iter().map(|folder| folder.join("psql"));
    machine::program("psql").or_else(|| somewhere.into_iter().find(|file| machine::is_executable(file)))
}

/// `pgbench`, from anywhere: some distributions put it beside the server only.
pub fn pgbench() -> Option<PathBuf> {
    let somewhere = folders().into_iter().map(|folder| folder.join("pgbench"));
    somewhere.chain(machine::program("pgbench")).find(|file| machine::is_executable(file))
}

fn folders() -> Vec<PathBuf> {
    let in_path = machine::programs("postgres").filter_map(|file| Some(file.parent()?.to_owned()));
    let patterns = [
        ("/usr/lib/postgresql", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
        ("/home/linuxbrew/.linuxbrew/opt", "bin"),
        ("/usr", "bin"),
    ];
    in_path.chain(patterns.iter().flat_map(|(root, leaf)| below(Path::new(root), leaf))).collect()
}

fn below(root: &Path, leaf: &str) -> Vec<PathBuf> {
    let Ok(entries) = root.read_dir() else { return vec![] };
    let mut folders: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("postgres") || name.starts_with("pgsql") || name.parse::<u32>().is_ok()
        })
        .map(|path| path.join(leaf))
        .collect();
    folders.sort();
    folders
}

fn major(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    parse_major(&String::from_utf8(output.stdout).ok()?)
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("initdb (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(parse_major("something else"), None);
    }

    #[test]
    fn a_folder_without_a_server_is_no_installation() {
        assert!(Binaries::in_folder(Path::new("/nowhere")).is_none());
    }
}
