//! The explanation of the rules' decision about a message, by the rules that made it.

use std::sync::Arc;

use crate::{engine::rule_runner::RuleRunner, node::tenant_config::TenantConfig};
use angarium_domain::{
    ids::{RuleId, TenantId},
    message::Message,
};
use angarium_rules::{Account, RuleSet, decision::RuleDecision, language::Language, ruling::Ruling};
use angarium_store::{
    self as store, Store,
    rule::{rule_set_specs, rule_variant},
};

/// Returns for every rule why it held for a message at acceptance, or did not.
///
/// The result is empty if no rules decided, or if their experiment is no longer on record.
///
/// # Errors
/// When the database can't be asked.
pub async fn rule_accounts(
    store: &Store,
    runner: &RuleRunner,
    config: &TenantConfig,
    tenant: TenantId,
    message: &Message,
) -> store::Result<Vec<Account>> {
    let Some(decision) = Ruling::of(message).and_then(|ruling| ruling.decision) else { return Ok(Vec::new()) };
    let in_service = config.rulebook.as_ref().and_then(|book| book.deciding(message, &decision));
    let rules = match in_service {
        Some(rules) => Some(rules),
        None => stored_rules(store, tenant, &decision).await?,
    };
    let Some(rules) = rules else { return Ok(Vec::new()) };
    Ok(runner.explain(tenant, || rules.explain_accepted(message)).await)
}

/// Loads the rule set that made a decision; `None` if it is not on record, or does not compile any more.
async fn stored_rules(store: &Store, tenant: TenantId, decision: &RuleDecision) -> store::Result<Option<Arc<RuleSet>>> {
    let mut txn = store.snapshot(tenant).await?;
    let mut specs = rule_set_specs(&mut txn, tenant, decision.rule_set).await?;
    if let Some(experiment) = decision.variant {
        let Some((rule, spec)) = rule_variant(&mut txn, tenant, experiment).await? else { return Ok(None) };
        specs.retain(|(id, _)| *id != rule);
        specs.push((rule, spec));
    }
    drop(txn);
    // Ten thousand rules take a while.
    Ok(tokio::task::spawn_blocking(move || compiled(specs)).await.ok().flatten())
}

fn compiled(specs: Vec<(RuleId, String)>) -> Option<Arc<RuleSet>> {
    let specs = specs.into_iter().map(|(id, json)| Some((id, serde_json::from_str(&json).ok()?)));
    RuleSet::stored(specs.collect::<Option<Vec<_>>>()?, Box::new(Language::stored())).ok().map(Arc::new)
}
