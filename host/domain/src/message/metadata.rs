//! The members of a message's metadata, as a search finds them.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::ids::TenantId;

/// The most members of one message's metadata that a search finds; further ones are stored and shown, but not found.
pub const MOST_SEARCHED: usize = 50;

/// Returns a hash of each member of a message's metadata that is a text, a number or a boolean, in order of the names.
#[must_use]
pub fn metadata_hashes(tenant: TenantId, metadata: &RawValue) -> Vec<i64> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(metadata.get()).unwrap_or_default();
    let hash = |(name, value): (String, &RawValue)| Some(metadata_hash(tenant, &name, &searched(value)?));
    members.into_iter().filter_map(hash).take(MOST_SEARCHED).collect()
}

/// Returns the hash of one member. The tenant is part of it, since all tenants' hashes are in one index.
#[must_use]
pub fn metadata_hash(tenant: TenantId, name: &str, value: &str) -> i64 {
    let length = (name.len() as u64).to_be_bytes();
    let digest = Sha256::new().chain_update(tenant.uuid()).chain_update(length).chain_update(name).chain_update(value);
    let digest = digest.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

/// A value as a search names it: a text without its quotes, a number or a boolean as it was written.
fn searched(value: &RawValue) -> Option<String> {
    match value.get().as_bytes().first()? {
        b'"' => serde_json::from_str(value.get()).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(value.get().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(tenant: TenantId, json: &str) -> Vec<i64> {
        metadata_hashes(tenant, serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_member_is_found_by_its_name_and_value() {
        let tenant = TenantId::new();
        let found = hashes(tenant, r#"{"order": "A-7", "items": 3, "gift": true, "note": null, "tags": ["a"]}"#);
        let of = |name, value| metadata_hash(tenant, name, value);
        assert_eq!(found, [of("gift", "true"), of("items", "3"), of("order", "A-7")]);
    }

    #[test]
    fn another_tenant_or_another_cut_has_another_hash() {
        let (one, other) = (TenantId::new(), TenantId::new());
        assert_ne!(metadata_hash(one, "a", "b"), metadata_hash(other, "a", "b"));
        assert_ne!(metadata_hash(one, "ab", "c"), metadata_hash(one, "a", "bc"));
    }

    #[test]
    fn what_is_no_object_has_none() {
        assert!(hashes(TenantId::new(), "[1]").is_empty());
        let many: BTreeMap<String, u32> = (0..60).map(|it| (format!("m{it:02}"), it)).collect();
        assert_eq!(hashes(TenantId::new(), &serde_json::to_string(&many).unwrap()).len(), MOST_SEARCHED);
    }
}
