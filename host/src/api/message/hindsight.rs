//! Why rules said what they said to a message, though they are others by now: what they were is kept.

use std::time::Duration;

use crate::{
    directory::rulebooks::{rule_set, specs},
    domain::{ids::TenantId, message::Message},
    rules::Account,
    store::{
        self, Store,
        rule::{rule_changes, rule_specs_at},
    },
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
    store: &Store,
    tenant: TenantId,
    message: &Message,
    fingerprint: &str,
) -> store::Result<Vec<Account>> {
    let accepted = message.created_at;
    let from = accepted.checked_sub(BEFORE).unwrap_or(accepted);
    let to = accepted.checked_add(AFTER).unwrap_or(accepted);
    let mut txn = store.snapshot(tenant).await?;
    let changes = rule_changes(&mut txn, tenant, from, to).await?;
    let (before, after): (Vec<_>, Vec<_>) = changes.into_iter().partition(|at| *at <= accepted);
    let undone = before.into_iter().rev().filter_map(|at| at.checked_sub(Duration::from_micros(1)).ok());
    for at in std::iter::once(accepted).chain(undone.take(MOST)).chain(after.into_iter().take(MOST)) {
        let stored = rule_specs_at(&mut txn, tenant, at).await?;
        let compiled = tokio::task::spawn_blocking(move || specs(&stored).and_then(rule_set)).await;
        if let Ok(Ok(rules)) = compiled
            && rules.fingerprint() == fingerprint
        {
            return Ok(rules.explain_accepted(message));
        }
    }
    Ok(Vec::new())
}
