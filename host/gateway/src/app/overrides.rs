//! The checks of overrides of providers' codes, which a tenant's settings and routes have.

use super::{Result, fields::Fields};
use angarium_domain::overrides::{LONGEST_CODE, MOST_CODES, Override, Overrides};
use angarium_store::{Connection as Db, provider::provider_get};

/// Checks overrides, which stand at the field `overrides` of where `place` leads.
pub async fn check(overrides: &Overrides, db: &mut Db, place: &[&str], fields: &mut Fields) -> Result<()> {
    let few = overrides.count() <= MOST_CODES && overrides.0.len() <= MOST_CODES;
    let missing = if few { missing_providers(db, overrides).await? } else { Vec::new() };
    at(fields, place, &mut |fields| {
        fields.check(few, "overrides", "too_many", || format!("must name at most {MOST_CODES} codes"));
        fields.within("overrides", |fields| {
            for (name, entry) in &overrides.0 {
                check_entry(fields, name, entry, &missing);
            }
        });
    });
    Ok(())
}

fn check_entry(fields: &mut Fields, name: &str, entry: &Override, missing: &[String]) {
    match entry {
        Override::Code(_) => check_code(fields, name),
        Override::Provider(codes) => fields.within(name, |fields| {
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
async fn missing_providers(db: &mut Db, overrides: &Overrides) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for (name, entry) in &overrides.0 {
        let named = matches!(entry, Override::Provider(_));
        if named && (name.contains('\0') || provider_get(db, name).await?.is_none()) {
            missing.push(name.clone());
        }
    }
    Ok(missing)
}

/// Runs checks at a path.
fn at(fields: &mut Fields, path: &[&str], checks: &mut dyn FnMut(&mut Fields)) {
    match path {
        [] => checks(fields),
        [name, rest @ ..] => fields.within(name, |fields| at(fields, rest, checks)),
    }
}
