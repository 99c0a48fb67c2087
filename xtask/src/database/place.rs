//! The place of a private cluster, and its user.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::machine;

/// The account that the server runs as. PostgreSQL refuses to run as root, and so do we.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Account {
    pub user: u32,
    pub group: u32,
    /// Whether this program is root and hands over to the account.
    pub dropped: bool,
}

impl Account {
    /// Returns the present user, or for root the owner of the existing data, else `postgres`, else `nobody`.
    pub fn for_data(data: &Path) -> Result<Self> {
        let user = machine::user_id()?;
        if user != 0 {
            return Ok(Self { user, group: 0, dropped: false });
        }
        let owner = data.metadata().ok().map(|found| (found.uid(), found.gid())).filter(|owner| owner.0 != 0);
        let (user, group) =
            owner.or_else(|| machine::account("postgres")).or_else(|| machine::account("nobody")).context(
                "PostgreSQL can't run as root, and there is neither a user `postgres` nor `nobody` to run it as",
            )?;
        Ok(Self { user, group, dropped: true })
    }

    /// Makes a command run as the account. Standard library: `uid` as root also drops the supplementary groups.
    pub fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if self.dropped {
            command.gid(self.group).uid(self.user);
        }
        command.current_dir("/").env("LC_ALL", "C").env_remove("PGDATA");
        command
    }

    /// Makes a folder that only the account can enter; an existing one must be the account's own.
    pub fn private_folder(self, folder: &Path) -> Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) if self.dropped => chown(folder, Some(self.user), Some(self.group))?,
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => owned_by(folder, self.user)?,
            Err(error) => return Err(error).with_context(|| format!("could not make {}", folder.display())),
        }
        Ok(())
    }

    fn can_enter(self, folder: &Path) -> bool {
        let status = self.command(Path::new("sh")).args(["-c", r#"test -x "$0""#]).arg(folder).status();
        !self.dropped || status.is_ok_and(|status| status.success())
    }
}

/// A name that others may have taken is used only if it belongs to this user: otherwise another user could lay a trap
/// in /tmp.
fn owned_by(folder: &Path, user: u32) -> Result<()> {
    let found = fs::symlink_metadata(folder)?;
    ensure!(
        found.is_dir() && found.uid() == user,
        "{} belongs to somebody else (user {}). Remove it and try again",
        folder.display(),
        found.uid()
    );
    Ok(())
}

/// The folder of a cluster's data, reserved for this process.
#[derive(Debug)]
pub struct Place {
    pub data: PathBuf,
    pub account: Account,
    /// The lock goes with the process, however that ends.
    _lock: File,
}

impl Place {
    /// Reserves `wanted`, or with `numbered` the first of `wanted-1`, `wanted-2` … that no other process holds.
    pub fn reserve(wanted: &Path, numbered: bool) -> Result<Self> {
        let (wanted, account) = reachable(wanted)?;
        if !numbered {
            return Self::lock(&wanted, account)?.with_context(|| {
                format!(
                    "another run uses the database in {}. Stop that one first, or set DATABASE_URL",
                    wanted.display()
                )
            });
        }
        for number in 1..=64 {
            if let Some(place) = Self::lock(&suffixed(&wanted, &format!("-{number}")), account)? {
                return Ok(place);
            }
        }
        bail!("64 runs use databases beside {}. Stop some of them first", wanted.display())
    }

    fn lock(data: &Path, account: Account) -> Result<Option<Self>> {
        let path = suffixed(data, ".lock");
        let lock =
            File::options().create(true).truncate(false).write(true).open(&path).with_context(|| {
                format!("could not write {}. Another user's? Remove it and try again", path.display())
            })?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { data: data.to_owned(), account, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("could not lock {}", path.display())),
        }
    }

    /// A file beside the data: `data` + `suffix`.
    pub fn beside(&self, suffix: &str) -> PathBuf {
        suffixed(&self.data, suffix)
    }

    /// The folder of the socket: the data folder, unless its path is too long for a socket or needs quoting.
    pub fn socket_folder(&self) -> Result<PathBuf> {
        let path = self.data.to_string_lossy();
        let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
        if plain && path.len() + SOCKET_NAME.len() <= LONGEST_SOCKET {
            return Ok(self.data.clone());
        }
        let folder = PathBuf::from(format!("/tmp/angarium-{}-{}", self.account.user, short_hash(&path)));
        self.account.private_folder(&folder)?;
        Ok(folder)
    }
}

/// `sun_path` holds 108 bytes with the closing zero on Linux, and 104 on macOS.
const LONGEST_SOCKET: usize = 102;
const SOCKET_NAME: &str = "/.s.PGSQL.5432.lock";

/// The wanted folder if the account can get there; for one that can't (a project in /root) a place in /var/tmp.
fn reachable(wanted: &Path) -> Result<(PathBuf, Account)> {
    let account = Account::for_data(wanted)?;
    let parent = wanted.parent().context("a cluster's folder needs a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("could not make {}", parent.display()))?;
    if account.can_enter(parent) {
        return Ok((wanted.to_owned(), account));
    }
    let elsewhere = PathBuf::from(format!("/var/tmp/angarium-{}", short_hash(&parent.to_string_lossy())));
    if let Err(error) = fs::create_dir(&elsewhere) {
        ensure!(error.kind() == std::io::ErrorKind::AlreadyExists, "could not make {}: {error}", elsewhere.display());
        owned_by(&elsewhere, machine::user_id()?)?;
    }
    let data = elsewhere.join(wanted.file_name().context("a cluster's folder needs a name")?);
    Ok((data.clone(), Account::for_data(&data)?))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// FNV-1a: stable across toolchains, which the standard library's hasher isn't.
fn short_hash(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(short_hash(""), "cbf29ce484222325");
        assert_eq!(short_hash("a"), "af63dc4c8601ec8c");
    }

    #[test]
    fn a_held_place_is_not_given_twice() {
        let folder = std::env::temp_dir().join(format!("angarium-place-{}", std::process::id()));
        let first = Place::reserve(&folder.join("data"), false).unwrap();
        assert!(Place::reserve(&folder.join("data"), false).is_err());
        drop(first);
        let one = Place::reserve(&folder.join("data"), true).unwrap();
        let two = Place::reserve(&folder.join("data"), true).unwrap();
        assert!(one.data.ends_with("data-1") && two.data.ends_with("data-2"));
        fs::remove_dir_all(folder).unwrap();
    }
}
