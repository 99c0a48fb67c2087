//! The reaction to a script or expression that failed, or was not asked for lack of time: it is logged, counted and, if
//! it happens too often, recorded as an event.

use crate::node::telemetry;
use angarium_domain::ids::{MessageId, TenantId};
use angarium_rules::{
    RuleFailure,
    decision::Ended,
    rulebook::{Failure, Often},
};
use angarium_store::Store;

/// Reports a script's fault at a message, and what happened `instead`. A script that was not asked has no fault: it is
/// counted.
pub fn report(store: &Store, tenant: TenantId, message: MessageId, failure: &Failure, instead: &str) {
    let Failure { script, version, fault, often } = failure;
    if let Some(spent) = fault.unasked() {
        telemetry::rules_unasked();
        tracing::debug!(tenant.id = %tenant, script, version, reason = spent.as_str(), instead, "a script was not asked");
        return;
    }
    let switched_off = *often == Often::SwitchedOff;
    telemetry::script_failed(&fault.function, switched_off);
    tracing::warn!(tenant.id = %tenant, script, version, %fault, switched_off, instead, "a script failed");
    let kind = match often {
        Often::No => return,
        Often::SwitchedOff => "script.switched_off",
        Often::StaysClosed => "script.keeps_failing",
    };
    let data = serde_json::json!({ "script": script, "version": version, "detail": fault.to_string() });
    record(store, tenant, message, kind, data);
}

/// Reports a rule whose expression has failed too often.
pub fn report_rule(store: &Store, tenant: TenantId, message: MessageId, failure: &RuleFailure) {
    let RuleFailure { rule, name, reason, switched_off } = failure;
    telemetry::rule_failed(*switched_off);
    tracing::warn!(tenant.id = %tenant, rule.id = %rule, reason, switched_off, "a rule's expression fails too often");
    let kind = if *switched_off { "rule.switched_off" } else { "rule.keeps_failing" };
    record(store, tenant, message, kind, serde_json::json!({ "rule": rule, "name": name, "detail": reason }));
}

/// Reports that there was no time to ask all rules and scripts about a message; also as an event, if that is new.
pub fn report_end(store: &Store, tenant: TenantId, message: MessageId, ended: &Ended, is_news: bool) {
    telemetry::rules_unasked();
    if is_news {
        let Ended { at, reason } = ended;
        tracing::warn!(tenant.id = %tenant, at, reason = reason.as_str(), "rules and scripts were not asked to the end");
        let data = serde_json::json!({ "at": at, "reason": reason, "detail": reason.as_str() });
        record(store, tenant, message, "rules.unasked", data);
    }
}

fn record(store: &Store, tenant: TenantId, message: MessageId, kind: &'static str, data: serde_json::Value) {
    let store = store.clone();
    tokio::spawn(async move {
        if let Err(error) = store.script_event(tenant, message, kind, &data).await {
            tracing::warn!(%error, kind, "an event about rules or scripts is not recorded");
        }
    });
}
