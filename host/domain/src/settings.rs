//! Settings for all of a tenant's deliveries, on any route.

use serde::{Deserialize, Serialize};

use super::overrides::Overrides;

/// A tenant's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantSettings {
    /// The meaning of providers' codes; a route's own takes precedence.
    pub overrides: Overrides,
}
