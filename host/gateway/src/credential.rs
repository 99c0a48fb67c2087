//! The text of an API key: made once, shown once, and known by its hash afterwards.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The prefix of every key, so that scanners of leaked secrets find it.
pub const PREFIX: &str = "ak_";

/// A new key.
pub struct Credential {
    /// Shown once.
    pub text: Zeroizing<String>,
    /// The stored digest.
    pub hash: [u8; 32],
    /// The part that is shown afterwards.
    pub hint: String,
}

impl Credential {
    /// Draws 256 bits from the system.
    #[must_use]
    pub fn generate() -> Self {
        let bytes = Zeroizing::new(rand::random::<[u8; 32]>());
        let text = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_slice())));
        Self { hash: hash(&text), hint: text.chars().take(8).collect(), text }
    }
}

/// Returns the end of a connection's callback URL: 256 random bits.
#[must_use]
pub fn callback_token() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// SHA-256 of the whole text. A key has 256 bits of its own, so a slow hash adds nothing.
#[must_use]
pub fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_scanners_and_by_its_hash() {
        let key = Credential::generate();
        assert!(key.text.starts_with("ak_") && key.text.len() == 46);
        assert_eq!(key.hint, key.text[..8]);
        assert_eq!(key.hash, hash(&key.text));
        assert_ne!(key.hash, Credential::generate().hash);
    }
}
