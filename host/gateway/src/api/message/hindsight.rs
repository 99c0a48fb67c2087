//! The reasons of a past decision, although the rules have changed: their former versions are kept.

use std::{sync::Arc, time::Duration};

use super::super::App;
use angarium_domain::{
    ids::{RuleId, TenantId},
    message::Message,
};
use angarium_rules::{self as rules, Account, RuleSet, language::Language};
use angarium_store::{
    self as store,
    rule::{rule_changes, rule_specs_at},
};

/// How long before a message a change may have been made that its node did not know, and how long after it one that it
/// did: no node's clock is quite another's.
const BEFORE: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(1);
/// Changes before the message, and after it, that are looked at: those that are nearest to it.
const MOST: usize = 8;

/// The account of every rule by those that a message was asked of, which have this fingerprint; nothing where there
/// were others, as a canary's, or where it is no longer known when one was deleted.
///
/// # Errors
/// When the database can't be asked.
pub async fn accounts(
    app: &App,
    tenant: TenantId,
    message: &Message,
    fingerprint: &Arc<str>,
) -> store::Result<Vec<Account>> {
    let accepted = message.created_at;
    let from = accepted.checked_sub(BEFORE).unwrap_or(accepted);
    let to = accepted.checked_add(AFTER).unwrap_or(accepted);
    let mut txn = app.store.snapshot(tenant).await?;
    let changes = rule_changes(&mut txn, tenant, from, to).await?;
    let (before, after): (Vec<_>, Vec<_>) = changes.into_iter().partition(|at| *at <= accepted);
    let undone = before.into_iter().rev().filter_map(|at| at.checked_sub(Duration::from_micros(1)).ok());
    for at in std::iter::once(accepted).chain(undone.take(MOST)).chain(after.into_iter().take(MOST)) {
        let stored = rule_specs_at(&mut txn, tenant, at).await?;
        let fingerprint = Arc::clone(fingerprint);
        // Ten thousand rules take a while.
        let compiled = tokio::task::spawn_blocking(move || compiled(stored, &fingerprint)).await;
        if let Ok(Some(rules)) = compiled {
            drop(txn);
            return Ok(app.rules.explain(tenant, || rules.explain_accepted(message)).await);
        }
    }
    Ok(Vec::new())
}

/// The rules, if they have this fingerprint.
fn compiled(stored: Vec<(RuleId, String)>, fingerprint: &str) -> Option<RuleSet> {
    let specs = stored.into_iter().map(|(id, json)| Some((id, serde_json::from_str(&json).ok()?)));
    let specs = specs.collect::<Option<Vec<_>>>().filter(|specs| *rules::fingerprint(specs) == *fingerprint)?;
    RuleSet::stored(specs, Box::new(Language::stored())).ok()
}
