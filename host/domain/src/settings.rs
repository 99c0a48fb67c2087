//! What holds for all of a tenant's deliveries, whichever route they take.

use serde::{Deserialize, Serialize};

use super::overrides::Overrides;

/// A tenant's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantSettings {
    /// What providers' codes are to mean; a route's own go before them.
    pub overrides: Overrides,
}
