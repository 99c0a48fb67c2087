//! The providers that serve on this node: the runtime's components, with the hosts that the
//! operator granted to each.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;

use crate::runtime::{Component, Registry};

/// A provider's active version with its grants: what one attempt works with, to its end.
#[derive(Debug, Clone)]
pub struct Serving {
    pub component: Arc<Component>,
    /// Host patterns that the operator granted.
    pub granted: Arc<[String]>,
}

/// The providers of this node.
#[derive(Default)]
pub struct Providers {
    registry: Registry,
    grants: ArcSwap<HashMap<String, Arc<[String]>>>,
}

impl Providers {
    /// The version of a provider that serves now.
    #[must_use]
    pub fn serving(&self, name: &str) -> Option<Serving> {
        let component = self.registry.get(name)?;
        let granted = self.grants.load().get(name).cloned().unwrap_or_default();
        Some(Serving { component, granted })
    }

    /// Takes note of how a call of this version ended; a version that fails five times in a row is
    /// quarantined, and the one before it serves again.
    pub fn report(&self, serving: &Serving, healthy: bool) {
        let name = &serving.component.descriptor().name;
        if let Some(quarantined) = self.registry.report(name, serving.component.digest(), healthy) {
            tracing::error!(
                provider.name = name,
                provider.digest = quarantined.digest,
                restored = quarantined.restored,
                "a provider version is quarantined: it failed five times in a row"
            );
        }
    }
}
