//! The delivery engine: from an accepted message to its end in the ledger. It never imports `api` or `app`.

pub mod admission;
pub mod callbacks;
pub mod capacity;
pub mod dispatch;
pub mod experiments;
pub mod fair_semaphore;
pub mod follow_up;
pub mod guards;
pub mod ledger;
pub mod legs;
pub mod lookup;
pub mod observations;
pub mod planning;
pub mod queue;
pub mod recovery;
pub mod rule_hooks;
pub mod rule_runner;
pub mod script_failures;
pub mod small_tenant_priority;
