//! What is done where a script went wrong, whoever asked it: it is logged, counted and, once the script is switched
//! off, recorded as an event.

use crate::{
    domain::ids::{MessageId, TenantId},
    rules::rulebook::Failure,
    store::Store,
    telemetry,
};

/// Reports what a script did wrong at a message, and what happened `instead`.
pub fn report(store: &Store, tenant: TenantId, message: MessageId, failure: &Failure, instead: &str) {
    let Failure { script, version, fault, switched_off } = failure;
    telemetry::script_failed(&fault.function, *switched_off);
    tracing::warn!(tenant.id = %tenant, script, version, %fault, switched_off, instead, "a script failed");
    if *switched_off {
        let (store, script, version, reason) = (store.clone(), script.clone(), *version, fault.to_string());
        tokio::spawn(async move {
            if let Err(error) = store.script_switched_off(tenant, message, &script, version, &reason).await {
                tracing::warn!(%error, script, "that a script was switched off is not recorded");
            }
        });
    }
}
