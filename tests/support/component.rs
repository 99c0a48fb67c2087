//! Components that are other ones than those that were built.

/// The same component with another digest: an empty custom section more.
pub fn another_build(component: &[u8]) -> Vec<u8> {
    [component, &[0, 6, 5, b'b', b'u', b'i', b'l', b'd']].concat()
}

/// The component under another version of the same length, and so under another digest.
pub fn as_version(component: &[u8], version: &str) -> Vec<u8> {
    let (own, mut other) = (b"0.1.0", component.to_vec());
    let places: Vec<_> = (0..component.len() - own.len()).filter(|at| component[*at..].starts_with(own)).collect();
    assert!(!places.is_empty() && version.len() == own.len());
    for at in places {
        other[at..at + own.len()].copy_from_slice(version.as_bytes());
    }
    other
}
