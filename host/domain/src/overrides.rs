//! Overrides: a tenant's meaning of providers' codes in place of the provider's own. Pure.
//!
//! Only a definite refusal can be overridden: an acceptance stays one, and an unknown outcome stays unknown, so that no
//! override sends a delivery twice unnoticed.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    attempt::{Overridden, Verdict},
    provider::Disposition,
};

/// The most codes of one set of overrides.
pub const MOST_CODES: usize = 500;

/// The longest code, in characters.
pub const LONGEST_CODE: usize = 64;

/// The meaning of an answer with a code. Answers that accept a message, or leave its acceptance unknown, are never
/// overridden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Meaning {
    /// Never again through this connection.
    Permanent,
    /// Again after a wait.
    Transient,
    /// As transient, and no attempt of the retry policy is consumed.
    Throttled,
    /// The connection's credentials are refused.
    AuthFailed,
    /// The message may have been accepted: the route's `on_unknown` decides what follows.
    Unknown,
}

impl Meaning {
    /// Returns the disposition of an answer with the code.
    #[must_use]
    pub const fn disposition(self) -> Disposition {
        match self {
            Self::Permanent => Disposition::RejectedPermanent,
            Self::Transient => Disposition::RejectedTransient,
            Self::Throttled => Disposition::Throttled,
            Self::AuthFailed => Disposition::AuthFailed,
            Self::Unknown => Disposition::Unknown,
        }
    }
}

/// One entry: a code of any provider, or a provider with its codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Override {
    Code(Meaning),
    Provider(BTreeMap<String, Meaning>),
}

/// Codes and their meanings: `{"21610": "permanent", "acme": {"17": "throttled"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(example = json!({"21610": "permanent", "sms-twilio": {"30007": "transient"}}))]
pub struct Overrides(pub BTreeMap<String, Override>);

impl Overrides {
    /// Returns the meaning of a provider's code. An entry under the provider's name takes precedence over a general
    /// one.
    #[must_use]
    pub fn meaning(&self, provider: &str, code: &str) -> Option<Meaning> {
        if let Some(Override::Provider(codes)) = self.0.get(provider)
            && let Some(meaning) = codes.get(code)
        {
            return Some(*meaning);
        }
        match self.0.get(code) {
            Some(Override::Code(meaning)) => Some(*meaning),
            Some(Override::Provider(_)) | None => None,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many codes it names.
    #[must_use]
    pub fn count(&self) -> usize {
        let codes = self.0.values().map(|entry| match entry {
            Override::Code(_) => 1,
            Override::Provider(codes) => codes.len(),
        });
        codes.sum()
    }
}

/// The origin of an override.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverrideSource {
    Route,
    Tenant,
}

impl OverrideSource {
    /// The word in the API and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Tenant => "tenant",
        }
    }
}

/// A text that names no source of an override.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be `route` or `tenant` (got `{0}`)")]
pub struct InvalidSource(String);

impl FromStr for OverrideSource {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        [Self::Route, Self::Tenant]
            .into_iter()
            .find(|source| source.as_str() == text)
            .ok_or_else(|| InvalidSource(text.to_owned()))
    }
}

/// The overrides that hold for a delivery: its route's go before the tenant's.
#[derive(Debug, Clone, Copy)]
pub struct EffectiveOverrides<'a> {
    pub route: &'a Overrides,
    pub tenant: &'a Overrides,
}

impl EffectiveOverrides<'_> {
    /// Returns a provider's verdict with its overridden meaning, and keeps the provider's own beside it.
    #[must_use]
    pub fn apply(&self, provider: &str, mut verdict: Verdict) -> Verdict {
        let said = verdict.disposition;
        if matches!(said, Disposition::Accepted | Disposition::Unknown) {
            return verdict;
        }
        let of = |overrides: &Overrides, by| Some((overrides.meaning(provider, &verdict.code)?, by));
        let found = of(self.route, OverrideSource::Route).or_else(|| of(self.tenant, OverrideSource::Tenant));
        if let Some((meaning, by)) = found
            && meaning.disposition() != said
        {
            verdict.disposition = meaning.disposition();
            verdict.overridden = Some(Overridden { said, by });
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(json: serde_json::Value) -> Overrides {
        serde_json::from_value(json).unwrap()
    }

    fn verdict(disposition: Disposition, code: &str) -> Verdict {
        Verdict {
            disposition,
            status: Some(400),
            code: code.to_owned(),
            unified_code: "rejected".to_owned(),
            detail: String::new(),
            external_id: None,
            retry_after_ms: None,
            cost: None,
            units: None,
            overridden: None,
        }
    }

    /// Returns the disposition after these overrides, and the source of the override.
    fn judged(route: &Overrides, tenant: &Overrides, said: Disposition) -> (Disposition, Option<OverrideSource>) {
        let verdict = EffectiveOverrides { route, tenant }.apply("acme", verdict(said, "17"));
        if let Some(overridden) = verdict.overridden {
            assert_eq!(overridden.said, said, "what the provider said is kept");
        }
        (verdict.disposition, verdict.overridden.map(|it| it.by))
    }

    #[test]
    fn the_route_goes_before_the_tenant_and_the_tenant_before_the_provider() {
        use Disposition::{RejectedPermanent, RejectedTransient, Throttled};
        let (none, route) = (Overrides::default(), overrides(serde_json::json!({"17": "throttled"})));
        let tenant = overrides(serde_json::json!({"acme": {"17": "permanent"}}));
        assert_eq!(judged(&none, &none, RejectedTransient), (RejectedTransient, None));
        assert_eq!(judged(&none, &tenant, RejectedTransient), (RejectedPermanent, Some(OverrideSource::Tenant)));
        assert_eq!(judged(&route, &tenant, RejectedTransient), (Throttled, Some(OverrideSource::Route)));
        assert_eq!(judged(&none, &tenant, RejectedPermanent), (RejectedPermanent, None), "nothing is overridden");
    }

    #[test]
    fn who_names_the_provider_goes_first() {
        let both = overrides(serde_json::json!({"17": "transient", "acme": {"17": "permanent"}, "other": {}}));
        assert_eq!(both.meaning("acme", "17"), Some(Meaning::Permanent));
        assert_eq!(both.meaning("other", "17"), Some(Meaning::Transient));
        assert_eq!(both.meaning("acme", "18"), None);
        assert_eq!(both.meaning("x", "acme"), None, "a provider is no code");
        assert_eq!(both.count(), 2);
    }

    #[test]
    fn neither_an_acceptance_nor_an_unknown_is_called_anything_else() {
        for meaning in ["permanent", "transient", "throttled", "auth_failed", "unknown"] {
            let all = overrides(serde_json::json!({"17": meaning}));
            for said in [Disposition::Accepted, Disposition::Unknown] {
                assert_eq!(judged(&all, &all, said), (said, None), "{meaning}");
            }
            for said in Disposition::ALL.into_iter().filter(|it| *it != Disposition::Accepted) {
                assert_ne!(judged(&all, &all, said).0, Disposition::Accepted);
            }
        }
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        let json = serde_json::json!({"21610": "permanent", "acme": {"17": "auth_failed"}});
        assert_eq!(serde_json::to_value(overrides(json.clone())).unwrap(), json);
        assert!(serde_json::from_value::<Overrides>(serde_json::json!({"17": "accepted"})).is_err());
    }
}
