//! Compiled components, kept between two starts.
//!
//! An artifact is native code that the host runs with its own rights, so it is loaded only from the host's own folder
//! (0700, files 0600), and only if its HMAC-SHA256 fits this component, this runtime and these settings. The key
//! belongs to the installation and is not in the folder; its holder could run code anyway. An artifact that fails the
//! check is compiled again and replaced; no failure here can stop an admission.

use std::{
    collections::HashSet,
    fs,
    hash::Hash,
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use wasmtime::{Engine, component::Component};

use super::{CacheSettings, RuntimeError};

const MAC_BYTES: usize = 32;
const ENDING: &str = "artifact";

/// SHA-256's block; HMAC fills a shorter key up with zeros (RFC 2104, 2).
const BLOCK_BYTES: usize = 64;

/// A folder of artifacts, each behind its HMAC.
pub(super) struct ArtifactCache {
    folder: PathBuf,
    key: [u8; 32],
    /// Runtime version, target, settings and WebAssembly features, in one digest.
    fingerprint: String,
}

impl ArtifactCache {
    /// Makes the folder, or makes it private.
    pub(super) fn open(settings: CacheSettings, engine: &Engine) -> Result<Self, RuntimeError> {
        let CacheSettings { folder, key } = settings;
        make_private(&folder).map_err(|source| RuntimeError::CacheFolder { folder: folder.clone(), source })?;
        Ok(Self { fingerprint: fingerprint(engine), key, folder })
    }

    /// The artifact of a component, if one is kept and authentic.
    pub(super) fn load(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        let file = fs::read(&path).inspect_err(|error| report(&path, error)).ok()?;
        let Some(artifact) = self.authentic(digest, &file) else {
            tracing::warn!(artifact.path = %path.display(), "a cached artifact is not what this gateway wrote; compiling again");
            return None;
        };
        // SAFETY: the HMAC proves that these bytes came from `Component::serialize` in a process
        // with this key, for this component, runtime version and settings; they were read into
        // memory before they were checked, so no file can change under them.
        #[expect(unsafe_code, reason = "loading native code can't be proven safe by its types")]
        let loaded = unsafe { Component::deserialize(engine, artifact) };
        loaded.inspect_err(|error| tracing::warn!(%error, "a cached artifact can't be loaded; compiling again")).ok()
    }

    /// Keeps an artifact; without it the next start compiles again.
    pub(super) fn keep(&self, digest: &str, component: &Component) {
        let path = self.path(digest);
        let kept = component.serialize().map_err(io::Error::other).and_then(|artifact| {
            let mac = self.mac(digest, &artifact).finalize().into_bytes();
            write_private(&path, &[mac.as_slice(), &artifact])
        });
        if let Err(error) = kept {
            tracing::warn!(artifact.path = %path.display(), %error, "a compiled component can't be kept");
        }
    }

    /// Removes the artifacts that no start will load: of components that are not installed, of
    /// another runtime, and the beginnings that a crash left. A node beside this one that is just
    /// writing such a file compiles once more at its next start, and that is all.
    pub(super) fn prune(&self, installed: &HashSet<String>) {
        let kept: HashSet<PathBuf> = installed.iter().map(|digest| self.path(digest)).collect();
        let files = match fs::read_dir(&self.folder) {
            Ok(files) => files.filter_map(|file| Some(file.ok()?.path())),
            Err(error) => return report(&self.folder, &error),
        };
        for path in files.filter(|path| is_ours(path) && !kept.contains(path)) {
            match fs::remove_file(&path) {
                Ok(()) => {
                    tracing::info!(artifact.path = %path.display(), "a compiled component that nothing uses is removed")
                }
                Err(error) => report(&path, &error),
            }
        }
    }

    fn authentic<'a>(&self, digest: &str, file: &'a [u8]) -> Option<&'a [u8]> {
        let (mac, artifact) = file.split_at_checked(MAC_BYTES)?;
        self.mac(digest, artifact).verify_slice(mac).ok().map(|()| artifact)
    }

    fn mac(&self, digest: &str, artifact: &[u8]) -> Hmac<Sha256> {
        // Both texts have a fixed length: no two inputs read the same.
        let mut block = [0; BLOCK_BYTES];
        block[..self.key.len()].copy_from_slice(&self.key);
        Hmac::new(&block.into())
            .chain_update(self.fingerprint.as_bytes())
            .chain_update(digest.as_bytes())
            .chain_update(artifact)
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}-{}.{ENDING}", &self.fingerprint[..16]))
    }
}

/// Whether this module gave a file its name: the folder may have others.
fn is_ours(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    ending == ENDING || ending.starts_with("partial-")
}

fn report(path: &Path, error: &io::Error) {
    if error.kind() != io::ErrorKind::NotFound {
        tracing::warn!(artifact.path = %path.display(), %error, "a cached artifact can't be read or removed");
    }
}

/// Everything that makes one engine's code unfit for another.
fn fingerprint(engine: &Engine) -> String {
    let mut hasher = Sha256Hasher(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex::encode(hasher.0.finalize())
}

/// A digest that std's `Hash` can feed.
struct Sha256Hasher(Sha256);

impl std::hash::Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        // The first half of the digest; the second is not used here.
        self.0.clone().finalize().iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    }
}

fn make_private(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// Writes a file that appears whole or not at all, for this user only.
fn write_private(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let partial = path.with_extension(format!("partial-{}", Uuid::new_v4().simple()));
    let written = write_parts(&partial, parts).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The error that matters is the first.
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write_parts(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    parts.iter().try_for_each(|part| io::Write::write_all(&mut file, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef";

    struct Kept {
        folder: tempfile::TempDir,
        engine: Engine,
        cache: ArtifactCache,
    }

    fn open(folder: &Path, key: u8, engine: &Engine) -> ArtifactCache {
        ArtifactCache::open(CacheSettings { folder: folder.to_owned(), key: [key; 32] }, engine).unwrap()
    }

    fn kept() -> Kept {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let cache = open(folder.path(), 1, &engine);
        cache.keep(DIGEST, &Component::new(&engine, wat::parse_str("(component)").unwrap()).unwrap());
        Kept { folder, engine, cache }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_artifact_survives_a_restart() {
        let Kept { folder, engine, .. } = kept();
        let again = open(folder.path(), 1, &engine);
        assert!(again.load(&engine, DIGEST).is_some());
    }

    #[test]
    fn nobody_else_may_read_or_write() {
        let Kept { folder, cache, .. } = kept();
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&cache.path(DIGEST)), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn a_changed_byte_is_not_loaded() {
        let Kept { engine, cache, folder: _folder } = kept();
        let path = cache.path(DIGEST);
        let honest = fs::read(&path).unwrap();
        for at in [0, MAC_BYTES, honest.len() - 1] {
            let mut changed = honest.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(cache.load(&engine, DIGEST).is_none(), "byte {at}");
        }
        fs::write(&path, &honest[..MAC_BYTES - 1]).unwrap();
        assert!(cache.load(&engine, DIGEST).is_none());
    }

    #[test]
    fn another_components_artifact_is_not_loaded() {
        let Kept { engine, cache, folder: _folder } = kept();
        fs::copy(cache.path(DIGEST), cache.path("another digest")).unwrap();
        assert!(cache.load(&engine, "another digest").is_none());
    }

    #[test]
    fn an_artifact_of_another_key_or_other_settings_is_not_loaded() {
        let Kept { folder, engine, cache } = kept();
        let foreign = open(folder.path(), 7, &engine);
        assert!(foreign.load(&engine, DIGEST).is_none());

        let mut config = wasmtime::Config::new();
        let interrupted = Engine::new(config.epoch_interruption(true)).unwrap();
        let other = open(folder.path(), 1, &interrupted);
        fs::copy(cache.path(DIGEST), other.path(DIGEST)).unwrap();
        assert!(other.load(&interrupted, DIGEST).is_none());
    }

    #[test]
    fn what_no_installed_version_uses_is_pruned() {
        let Kept { folder, cache, engine } = kept();
        let mut config = wasmtime::Config::new();
        let newer = open(folder.path(), 1, &Engine::new(config.epoch_interruption(true)).unwrap());
        let stray = [cache.path("gone"), newer.path(DIGEST), cache.path(DIGEST).with_extension("partial-0")];
        let others = folder.path().join("lost+found");
        for path in stray.iter().chain([&others]) {
            fs::write(path, "x").unwrap();
        }
        cache.prune(&HashSet::from([DIGEST.to_owned(), "never compiled".to_owned()]));
        assert!(stray.iter().all(|path| !path.exists()) && others.exists());
        assert!(cache.load(&engine, DIGEST).is_some());
    }
}
