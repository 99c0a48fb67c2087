//! Secrets at rest, and in memory.
//!
//! Each value is encrypted with a data key of its own (AES-256-GCM), bound to the place it belongs
//! to, so that a row's ciphertext opens nowhere else. Data keys are wrapped by a key-encryption
//! key from the [`Keyring`]: rotating that key rewraps 32 bytes a secret and leaves the values.
//!
//! Nothing here stores, logs or sends anything.

use std::{collections::HashMap, fmt, io, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    hkdf::{HKDF_SHA256, Prk, Salt},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use angarium_domain::{
    ids::{ConnectionId, TenantId},
    sealed::Sealed,
};

const KEY_LEN: usize = 32;
const DATA_KEY_CONTEXT: &[u8] = b"angarium data key v1";
const DERIVATION_SALT: &[u8] = b"angarium derived key v1";
const VALUE_CONTEXT: &[u8] = b"angarium secret v1";

/// A secret's value in the clear: wiped when dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// Returns the bytes, for applying them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns the text, if the secret is UTF-8.
    #[must_use]
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

/// From text, so that a secret is a secret as soon as it is parsed.
impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(String::deserialize(deserializer)?))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The owner of a secret: it opens nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct SecretPlace<'a> {
    pub tenant: TenantId,
    pub connection: ConnectionId,
    pub name: &'a str,
    pub version: i32,
}

impl SecretPlace<'_> {
    /// The parts of fixed length come first, so that no two places read the same.
    fn associated_data(&self) -> Vec<u8> {
        let mut data = VALUE_CONTEXT.to_vec();
        data.extend_from_slice(self.tenant.uuid().as_bytes());
        data.extend_from_slice(self.connection.uuid().as_bytes());
        data.extend_from_slice(&self.version.to_be_bytes());
        data.extend_from_slice(self.name.as_bytes());
        data
    }
}

/// Why a keyring can't be read.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("there is no key: give the base64 of 32 random bytes, such as `openssl rand -base64 32` prints")]
    Empty,
    #[error("key {position} is not base64: give 32 random bytes, such as `openssl rand -base64 32` prints")]
    NotBase64 { position: usize },
    #[error("key {position} has {length} bytes instead of 32: make one with `openssl rand -base64 32`")]
    WrongLength { position: usize, length: usize },
    #[error("cannot read the key file {path}: {error}")]
    Unreadable { path: String, error: io::Error },
    #[error("the key file {path} can be read or changed by others (mode {mode:03o}): run `chmod 600 {path}`")]
    Exposed { path: String, mode: u32 },
}

/// The reason for which a secret cannot be sealed or opened. It reveals nothing of the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealingError {
    #[error(
        "the secret is encrypted with key `{key_id}`, which is not in the keyring: add the old key after the current one"
    )]
    UnknownKey { key_id: String },
    #[error("the secret does not decrypt: the row was changed, moved, or written with another key")]
    Tampered,
    #[error("the system's random source failed")]
    NoRandomness,
    #[error("a key for another purpose can't be derived")]
    NotDerived,
}

/// The key-encryption keys: one current, which seals, and older ones, which still open.
pub struct Keyring {
    current: String,
    keys: HashMap<String, LessSafeKey>,
    /// The root of keys for other purposes: derived from the current key by HKDF (RFC 5869).
    root: Prk,
}

impl Keyring {
    /// Reads base64 keys separated by white space or commas; the first is the current one.
    ///
    /// # Errors
    /// When there is none, or one is not 32 bytes in base64.
    pub fn from_base64(text: &str) -> Result<Self, KeyringError> {
        let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
        let parsed = words.enumerate().map(|(index, word)| parse_key(word, index + 1));
        let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
        let current = parsed.first().ok_or(KeyringError::Empty)?;
        let (current, root) = (current.id.clone(), current.root.clone());
        Ok(Self { current, root, keys: parsed.into_iter().map(|parsed| (parsed.id, parsed.key)).collect() })
    }

    /// Reads a file of keys, one a line, the current one first; `#` begins a comment.
    ///
    /// A file that others can read or change is refused. Its group may read it, as Kubernetes'
    /// mounted secrets need.
    ///
    /// # Errors
    /// When the file is missing or exposed, or a key is malformed.
    pub fn from_file(path: &Path) -> Result<Self, KeyringError> {
        let unreadable = |error| KeyringError::Unreadable { path: path.display().to_string(), error };
        check_mode(path, &std::fs::metadata(path).map_err(unreadable)?)?;
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(unreadable)?);
        let keys: Zeroizing<String> = Zeroizing::new(
            text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n"),
        );
        Self::from_base64(&keys)
    }

    /// A new random key in base64, for a configuration or a key file.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn generate() -> Result<Zeroizing<String>, SealingError> {
        Ok(Zeroizing::new(STANDARD.encode(random::<KEY_LEN>()?.as_slice())))
    }

    /// The id of the key that seals.
    #[must_use]
    pub fn current(&self) -> &str {
        &self.current
    }

    /// The ids of all keys, which open.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// A key for another purpose than sealing, which the label names: it tells nothing of the current
    /// key, and is another one after a rotation.
    ///
    /// # Errors
    /// When the derivation refuses; for a key of this length it does not.
    pub fn derive(&self, label: &str) -> Result<[u8; KEY_LEN], SealingError> {
        let mut key = [0; KEY_LEN];
        let derived = self.root.expand(&[label.as_bytes()], HKDF_SHA256).and_then(|derived| derived.fill(&mut key));
        derived.map(|()| key).map_err(|_| SealingError::NotDerived)
    }

    /// Encrypts a value for its place, with the current key.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn seal(&self, place: &SecretPlace<'_>, value: &Secret) -> Result<Sealed, SealingError> {
        let data_key = random::<KEY_LEN>()?;
        Ok(Sealed {
            key_id: self.current.clone(),
            wrapped_key: encrypt(self.key(&self.current)?, DATA_KEY_CONTEXT, data_key.as_slice())?,
            ciphertext: encrypt(&aes_key(data_key.as_slice())?, &place.associated_data(), value.expose())?,
        })
    }

    /// Decrypts a value at its place.
    ///
    /// # Errors
    /// When its key is unknown, or the row was changed or belongs elsewhere.
    pub fn open(&self, place: &SecretPlace<'_>, sealed: &Sealed) -> Result<Secret, SealingError> {
        let data_key = decrypt(self.key(&sealed.key_id)?, DATA_KEY_CONTEXT, &sealed.wrapped_key)?;
        let value = decrypt(&aes_key(&data_key)?, &place.associated_data(), &sealed.ciphertext)?;
        Ok(Secret(value))
    }

    /// Wraps the data key with the current key: a rotation does this to each row, while others read it. `None` if the
    /// row already uses the current key.
    ///
    /// # Errors
    /// When its key is unknown, or the row was changed.
    pub fn rewrap(&self, sealed: &Sealed) -> Result<Option<Sealed>, SealingError> {
        if sealed.key_id == self.current {
            return Ok(None);
        }
        let data_key = decrypt(self.key(&sealed.key_id)?, DATA_KEY_CONTEXT, &sealed.wrapped_key)?;
        let wrapped_key = encrypt(self.key(&self.current)?, DATA_KEY_CONTEXT, &data_key)?;
        Ok(Some(Sealed { key_id: self.current.clone(), wrapped_key, ciphertext: sealed.ciphertext.clone() }))
    }

    fn key(&self, id: &str) -> Result<&LessSafeKey, SealingError> {
        self.keys.get(id).ok_or_else(|| SealingError::UnknownKey { key_id: id.to_owned() })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("current", &self.current).field("keys", &self.keys.len()).finish()
    }
}

/// A key as it is written down.
struct ParsedKey {
    /// The beginning of its SHA-256, so that ids need no configuration.
    id: String,
    key: LessSafeKey,
    root: Prk,
}

fn parse_key(word: &str, position: usize) -> Result<ParsedKey, KeyringError> {
    let bytes = Zeroizing::new(STANDARD.decode(word).map_err(|_| KeyringError::NotBase64 { position })?);
    let wrong_length = KeyringError::WrongLength { position, length: bytes.len() };
    let key = aes_key(&bytes).map_err(|_| wrong_length)?;
    let id = hex::encode(&digest(&SHA256, &bytes).as_ref()[..8]);
    Ok(ParsedKey { id, key, root: Salt::new(HKDF_SHA256, DERIVATION_SALT).extract(&bytes) })
}

#[cfg(unix)]
fn check_mode(path: &Path, metadata: &std::fs::Metadata) -> Result<(), KeyringError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(KeyringError::Exposed { path: path.display().to_string(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_mode(_: &Path, _: &std::fs::Metadata) -> Result<(), KeyringError> {
    Ok(())
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, SealingError> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_| SealingError::NoRandomness)?;
    Ok(bytes)
}

fn aes_key(bytes: &[u8]) -> Result<LessSafeKey, SealingError> {
    UnboundKey::new(&AES_256_GCM, bytes).map(LessSafeKey::new).map_err(|_| SealingError::Tampered)
}

/// Nonce, then ciphertext and tag. Data keys are used once and wrapping keys rarely, so random
/// nonces do not meet.
fn encrypt(key: &LessSafeKey, associated_data: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealingError> {
    let nonce = random::<NONCE_LEN>()?;
    let mut out = Vec::with_capacity(NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
    out.extend_from_slice(nonce.as_slice());
    out.extend_from_slice(plain);
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(associated_data),
            &mut out[NONCE_LEN..],
        )
        .map_err(|_| SealingError::Tampered)?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

fn decrypt(key: &LessSafeKey, associated_data: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealingError> {
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SealingError::Tampered)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealingError::Tampered)?;
    let mut body = Zeroizing::new(body.to_vec());
    let length =
        key.open_in_place(nonce, Aad::from(associated_data), &mut body).map_err(|_| SealingError::Tampered)?.len();
    body.truncate(length);
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring_of(keys: &[&str]) -> Keyring {
        Keyring::from_base64(&keys.join("\n")).unwrap()
    }

    fn place(name: &str) -> SecretPlace<'_> {
        let tenant = TenantId::from(uuid::Uuid::from_u128(1));
        SecretPlace { tenant, connection: ConnectionId::from(uuid::Uuid::from_u128(2)), name, version: 1 }
    }

    #[test]
    fn a_secret_opens_at_its_place() {
        let ring = ring_of(&[&Keyring::generate().unwrap()]);
        let sealed = ring.seal(&place("password"), &Secret::new("hunter2")).unwrap();
        assert_eq!(ring.open(&place("password"), &sealed).unwrap().expose(), b"hunter2");
        assert!(!sealed.ciphertext.windows(7).any(|part| part == b"hunter2"));
    }

    #[test]
    fn a_row_moved_elsewhere_does_not_open() {
        let ring = ring_of(&[&Keyring::generate().unwrap()]);
        let home = place("password");
        let sealed = ring.seal(&home, &Secret::new("hunter2")).unwrap();
        let elsewhere = [
            SecretPlace { tenant: TenantId::new(), ..home },
            SecretPlace { connection: ConnectionId::new(), ..home },
            SecretPlace { name: "token", ..home },
            SecretPlace { version: 2, ..home },
        ];
        for other in elsewhere {
            assert_eq!(ring.open(&other, &sealed), Err(SealingError::Tampered), "{other:?}");
        }
    }

    #[test]
    fn parts_of_two_rows_do_not_mix() {
        let ring = ring_of(&[&Keyring::generate().unwrap()]);
        let one = ring.seal(&place("password"), &Secret::new("one")).unwrap();
        let two = ring.seal(&place("password"), &Secret::new("two")).unwrap();
        let mixed = Sealed { wrapped_key: two.wrapped_key, ..one.clone() };
        assert_eq!(ring.open(&place("password"), &mixed), Err(SealingError::Tampered));
        for length in [0, 5, NONCE_LEN, one.ciphertext.len() - 1] {
            let cut = Sealed { ciphertext: one.ciphertext[..length].to_vec(), ..one.clone() };
            assert_eq!(ring.open(&place("password"), &cut), Err(SealingError::Tampered));
        }
    }

    #[test]
    fn another_key_does_not_open() {
        let sealed = ring_of(&[&Keyring::generate().unwrap()]).seal(&place("a"), &Secret::new("x")).unwrap();
        let stranger = ring_of(&[&Keyring::generate().unwrap()]);
        assert_eq!(
            stranger.open(&place("a"), &sealed),
            Err(SealingError::UnknownKey { key_id: sealed.key_id.clone() })
        );
        let renamed = Sealed { key_id: stranger.current().to_owned(), ..sealed };
        assert_eq!(stranger.open(&place("a"), &renamed), Err(SealingError::Tampered));
    }

    #[test]
    fn a_rotation_rewraps_while_both_keys_are_known() {
        let (old, new) = (Keyring::generate().unwrap(), Keyring::generate().unwrap());
        let sealed = ring_of(&[&old]).seal(&place("a"), &Secret::new("x")).unwrap();
        let both = ring_of(&[&new, &old]);
        assert_eq!(both.open(&place("a"), &sealed).unwrap().expose(), b"x");
        let rewrapped = both.rewrap(&sealed).unwrap().unwrap();
        assert_eq!(rewrapped.ciphertext, sealed.ciphertext);
        assert_eq!(ring_of(&[&new]).open(&place("a"), &rewrapped).unwrap().expose(), b"x");
        assert_eq!(both.rewrap(&rewrapped).unwrap(), None);
    }

    #[test]
    fn a_derived_key_is_of_one_installation_and_one_purpose() {
        let (one, other) = (Keyring::generate().unwrap(), Keyring::generate().unwrap());
        let derived = |keys: &[&str], label| ring_of(keys).derive(label).unwrap();
        let first = derived(&[&one], "artifacts");
        assert_eq!(first, derived(&[&one, &other], "artifacts"));
        assert_ne!(first, derived(&[&one], "tokens"));
        assert_ne!(first, derived(&[&other, &one], "artifacts"));
    }

    #[test]
    fn bad_keys_are_named_with_the_remedy() {
        let message = |text: &str| Keyring::from_base64(text).unwrap_err().to_string();
        assert!(message(" \n").contains("openssl rand -base64 32"));
        assert!(message("c2hvcnQ=").contains("key 1 has 5 bytes instead of 32"));
        let good = Keyring::generate().unwrap();
        assert!(message(&format!("{}\nnot*base64", good.as_str())).contains("key 2 is not base64"));
    }

    #[cfg(unix)]
    #[test]
    fn an_exposed_key_file_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("angarium-key-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, format!("# the demo's key\n{}\n", Keyring::generate().unwrap().as_str())).unwrap();
        let set_mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        for (mode, fine) in [(0o600, true), (0o440, true), (0o644, false), (0o660, false)] {
            set_mode(mode);
            assert_eq!(Keyring::from_file(&path).is_ok(), fine, "{mode:o}");
        }
        let message = Keyring::from_file(&path).unwrap_err().to_string();
        assert!(message.contains("chmod 600"), "{message}");
        std::fs::remove_file(&path).unwrap();
        assert!(Keyring::from_file(&path).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
    }
}
