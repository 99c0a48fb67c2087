//! Overrides of providers' codes by a tenant or a route: the form, and its checks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{fields::Fields, problem::Problem};
use angarium_domain::overrides::{self as domain, LONGEST_CODE, MOST_CODES};
use angarium_store::{Connection as Db, provider::provider_get};

/// By a provider's code, or by a provider's name and then its codes.
pub type Overrides = BTreeMap<String, Override>;

/// The meaning of a code; or, under a provider's name, the meanings of its codes.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Override {
    Code(Meaning),
    Provider(BTreeMap<String, Meaning>),
}

/// The meaning of an answer with a code. Accepting answers, and those that leave it unknown whether the message was
/// taken, are never overridden.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
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
    /// The other side may have taken it: the route's `on_unknown` applies.
    Unknown,
}

/// Checks overrides, which stand at the field `overrides` of where `place` leads.
pub async fn checked(
    given: Overrides,
    db: &mut Db,
    place: &[&str],
    fields: &mut Fields,
) -> Result<domain::Overrides, Problem> {
    let overrides = domain::Overrides(given.into_iter().map(|(name, it)| (name, it.into())).collect());
    let few = overrides.count() <= MOST_CODES && overrides.0.len() <= MOST_CODES;
    let missing = if few { missing_providers(db, &overrides).await? } else { Vec::new() };
    at(fields, place, &mut |fields| {
        fields.check(few, "overrides", "too_many", || format!("must name at most {MOST_CODES} codes"));
        fields.within("overrides", |fields| {
            for (name, entry) in &overrides.0 {
                check_entry(fields, name, entry, &missing);
            }
        });
    });
    Ok(overrides)
}

fn check_entry(fields: &mut Fields, name: &str, entry: &domain::Override, missing: &[String]) {
    match entry {
        domain::Override::Code(_) => check_code(fields, name),
        domain::Override::Provider(codes) => fields.within(name, |fields| {
            if missing.iter().any(|it| it == name) {
                fields.bad("unknown_provider", "does not exist: GET /v1/providers lists the providers");
            }
            codes.keys().for_each(|code| check_code(fields, code));
        }),
    }
}

fn check_code(fields: &mut Fields, code: &str) {
    let plain = !code.is_empty() && code.chars().count() <= LONGEST_CODE && !code.chars().any(char::is_control);
    fields.check(plain, code, "wrong_format", || {
        format!("must be a code of 1 to {LONGEST_CODE} characters, and no control characters")
    });
}

/// The names under which there is no provider.
async fn missing_providers(db: &mut Db, overrides: &domain::Overrides) -> Result<Vec<String>, Problem> {
    let mut missing = Vec::new();
    for (name, entry) in &overrides.0 {
        let named = matches!(entry, domain::Override::Provider(_));
        if named && (name.contains('\0') || provider_get(db, name).await?.is_none()) {
            missing.push(name.clone());
        }
    }
    Ok(missing)
}

/// Runs checks where a path leads.
fn at(fields: &mut Fields, path: &[&str], checks: &mut dyn FnMut(&mut Fields)) {
    match path {
        [] => checks(fields),
        [name, rest @ ..] => fields.within(name, |fields| at(fields, rest, checks)),
    }
}

/// Overrides as the API shows them.
pub fn shown(overrides: domain::Overrides) -> Overrides {
    overrides.0.into_iter().map(|(name, it)| (name, it.into())).collect()
}

impl From<Override> for domain::Override {
    fn from(it: Override) -> Self {
        match it {
            Override::Code(meaning) => Self::Code(meaning.into()),
            Override::Provider(codes) => {
                Self::Provider(codes.into_iter().map(|(code, it)| (code, it.into())).collect())
            }
        }
    }
}

impl From<domain::Override> for Override {
    fn from(it: domain::Override) -> Self {
        match it {
            domain::Override::Code(meaning) => Self::Code(meaning.into()),
            domain::Override::Provider(codes) => {
                Self::Provider(codes.into_iter().map(|(code, it)| (code, it.into())).collect())
            }
        }
    }
}

impl From<Meaning> for domain::Meaning {
    fn from(meaning: Meaning) -> Self {
        match meaning {
            Meaning::Permanent => Self::Permanent,
            Meaning::Transient => Self::Transient,
            Meaning::Throttled => Self::Throttled,
            Meaning::AuthFailed => Self::AuthFailed,
            Meaning::Unknown => Self::Unknown,
        }
    }
}

impl From<domain::Meaning> for Meaning {
    fn from(meaning: domain::Meaning) -> Self {
        match meaning {
            domain::Meaning::Permanent => Self::Permanent,
            domain::Meaning::Transient => Self::Transient,
            domain::Meaning::Throttled => Self::Throttled,
            domain::Meaning::AuthFailed => Self::AuthFailed,
            domain::Meaning::Unknown => Self::Unknown,
        }
    }
}
