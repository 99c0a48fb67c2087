//! Whether a version may take a provider's place, and which grants it gets. Anybody can write a
//! component of any name, so neither is a matter of course. Pure.

use std::cmp::Ordering;

use semver::Version;

use crate::app::{Result, error::UseCaseError};
use angarium_store::provider::{StoredComponent, StoredProvider};

/// How a version is put in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activation {
    /// Whether it may be lower than the version that serves.
    pub allow_downgrade: bool,
    /// The decision about grants of other versions.
    pub grants: Option<Grants>,
}

/// How a component is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Installation {
    /// How it is put in service; `None` leaves it beside what serves.
    pub activation: Option<Activation>,
    /// Whether the same version may be there with other bytes.
    pub replace: bool,
}

/// Which grants a version gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grants {
    /// The present grants: the operator trusts it as the previous versions.
    Keep,
    /// None, until hosts are granted.
    None,
    /// All hosts that it declares: everybody that fills the folder may decide that.
    Declared,
}

/// The grants of a version once it serves.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub hosts: Vec<String>,
    /// Whether they were given to it.
    pub given: bool,
}

/// The grants of a version that is to serve; `versions` are all of the provider's, it among them.
pub(super) fn decide(
    activation: Activation,
    provider: &StoredProvider,
    versions: &[StoredComponent],
    new: &StoredComponent,
) -> Result<Granted> {
    let keep = |given| Granted { hosts: provider.granted_hosts.clone(), given };
    if provider.active_digest.as_ref() == Some(&new.digest) && activation.grants.is_none() {
        return Ok(keep(new.granted));
    }
    if !activation.allow_downgrade
        && let Some(higher) = higher(provider, versions, new)
    {
        let detail = format!(
            "version {} is lower than {higher}; a downgrade must be allowed explicitly (`allow_downgrade`)",
            new.descriptor.version
        );
        return Err(UseCaseError::conflict("downgrade", detail));
    }
    match activation.grants {
        Some(Grants::Keep) => Ok(keep(true)),
        Some(Grants::None) => Ok(Granted { hosts: Vec::new(), given: false }),
        Some(Grants::Declared) => Ok(Granted { hosts: new.descriptor.hosts.clone(), given: true }),
        None if new.granted || provider.granted_hosts.is_empty() => Ok(keep(new.granted)),
        None => {
            let detail = format!(
                "the provider was granted {} for another component; say whether this one gets that too (`grants=keep`) \
                 or nothing yet (`grants=none`)",
                quoted(&provider.granted_hosts)
            );
            Err(UseCaseError::conflict("grants_unconfirmed", detail))
        }
    }
}

/// A component of the same version with other bytes.
pub(super) fn same_version<'a>(versions: &'a [StoredComponent], new: &StoredComponent) -> Option<&'a StoredComponent> {
    versions.iter().find(|it| it.digest != new.digest && it.descriptor.version == new.descriptor.version)
}

/// The version that this one may not replace without further ado: the one that serves, or, where none
/// does, the highest of the others.
fn higher<'a>(provider: &StoredProvider, versions: &'a [StoredComponent], new: &StoredComponent) -> Option<&'a str> {
    let active = versions.iter().find(|version| Some(&version.digest) == provider.active_digest.as_ref());
    let others = || versions.iter().filter(|version| version.digest != new.digest);
    let standing = active.or_else(|| others().max_by(|a, b| by_version(a, b)))?;
    (by_version(standing, new) == Ordering::Greater).then_some(standing.descriptor.version.as_str())
}

/// Hosts as an error names them.
pub(super) fn quoted(hosts: &[String]) -> String {
    hosts.iter().map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", ")
}

/// By semantic version; a build's metadata says nothing of the order.
fn by_version(a: &StoredComponent, b: &StoredComponent) -> Ordering {
    let version = |component: &StoredComponent| Version::parse(&component.descriptor.version).ok();
    match (version(a), version(b)) {
        (Some(a), Some(b)) => a.cmp_precedence(&b),
        // Both were checked when they were admitted.
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use angarium_domain::provider::{Deduplication, Descriptor};

    fn component(digest: &str, version: &str, granted: bool) -> StoredComponent {
        StoredComponent {
            digest: digest.to_owned(),
            descriptor: Descriptor {
                name: "acme".to_owned(),
                version: version.to_owned(),
                summary: "Sends.".to_owned(),
                channels: vec!["sms".to_owned()],
                config_schema: serde_json::json!({}),
                secrets: Vec::new(),
                hosts: vec![format!("{digest}.example")],
                deduplication: Deduplication::None,
                cost_model: serde_json::json!({}),
                max_batch: 1,
                ext: serde_json::json!({}),
            },
            created_at: Timestamp::UNIX_EPOCH,
            quarantined_at: None,
            quarantine_reason: None,
            granted,
        }
    }

    fn provider(active: Option<&str>, granted: &[&str]) -> StoredProvider {
        StoredProvider {
            name: "acme".to_owned(),
            active_digest: active.map(str::to_owned),
            previous_digest: None,
            granted_hosts: granted.iter().map(|host| (*host).to_owned()).collect(),
            version: 1,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn verdict(activation: Activation, provider: &StoredProvider, new: (&str, &str)) -> Result<Granted, String> {
        let new = component(new.0, new.1, false);
        let versions = [component("old", "1.4.0", true), component("older", "1.3.9", true), new.clone()];
        decide(activation, provider, &versions, &new).map_err(|error| error.to_string())
    }

    const KEEP: Activation = Activation { allow_downgrade: false, grants: Some(Grants::Keep) };

    #[test]
    fn a_lower_version_needs_a_word() {
        let serving = provider(Some("old"), &["old.example"]);
        for version in ["1.3.0", "1.4.0-rc.1", "0.9.0"] {
            assert!(verdict(KEEP, &serving, ("new", version)).unwrap_err().contains("1.4.0"), "{version}");
            assert!(verdict(Activation { allow_downgrade: true, ..KEEP }, &serving, ("new", version)).is_ok());
        }
        for version in ["1.4.0", "1.4.0+build.7", "1.10.0"] {
            assert!(verdict(KEEP, &serving, ("new", version)).is_ok(), "{version}");
        }
        let quarantined = provider(None, &["old.example"]);
        assert!(verdict(KEEP, &quarantined, ("new", "1.3.9")).is_err(), "the highest counts where none serves");
        let rolled_back = provider(Some("older"), &["old.example"]);
        assert!(verdict(KEEP, &rolled_back, ("new", "1.3.10")).is_ok(), "what serves counts");
    }

    #[test]
    fn grants_of_another_version_are_kept_only_if_that_is_said() {
        let serving = provider(Some("old"), &["old.example"]);
        let with = |grants| verdict(Activation { grants, ..Activation::default() }, &serving, ("new", "2.0.0"));
        assert!(with(None).unwrap_err().contains("`old.example`"));
        assert_eq!(with(Some(Grants::Keep)), Ok(Granted { hosts: vec!["old.example".to_owned()], given: true }));
        assert_eq!(with(Some(Grants::None)), Ok(Granted { hosts: vec![], given: false }));
        assert_eq!(with(Some(Grants::Declared)), Ok(Granted { hosts: vec!["new.example".to_owned()], given: true }));
        let nothing = provider(Some("old"), &[]);
        let granted = verdict(Activation::default(), &nothing, ("new", "2.0.0"));
        assert_eq!(granted, Ok(Granted { hosts: vec![], given: false }), "there is nothing to take over");
    }

    #[test]
    fn the_same_version_with_other_bytes_is_found() {
        let (old, new) = (component("old", "1.4.0", true), component("new", "1.4.0", false));
        assert_eq!(same_version(&[new.clone(), old.clone()], &new).map(|it| it.digest.as_str()), Some("old"));
        assert!(same_version(std::slice::from_ref(&new), &new).is_none(), "the same bytes are the same component");
        let build = component("new", "1.4.0+build.7", false);
        assert!(same_version(&[build.clone(), old], &build).is_none());
    }

    #[test]
    fn the_version_that_serves_is_put_in_service_again_without_a_word() {
        let new = component("old", "1.4.0", true);
        let granted =
            decide(Activation::default(), &provider(Some("old"), &["x"]), std::slice::from_ref(&new), &new).unwrap();
        assert_eq!(granted, Granted { hosts: vec!["x".to_owned()], given: true });
    }
}
