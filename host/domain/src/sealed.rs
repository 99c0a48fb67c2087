//! An encrypted secret as data. Opening one takes a key, which is the transport's business.

/// An encrypted secret, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Names the key-encryption key.
    pub key_id: String,
    /// Nonce, then the wrapped data key.
    pub wrapped_key: Vec<u8>,
    /// Nonce, then the encrypted value.
    pub ciphertext: Vec<u8>,
}
