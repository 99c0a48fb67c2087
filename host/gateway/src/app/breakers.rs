//! Circuit breakers by hand, and what follows for them from other changes.

use serde_json::{Value, json};

use super::{App, Principal, Result, connections};
use crate::engine::guards::{Sight, breaker_take, look};
use angarium_domain::{
    audit::Action,
    breaker::{Breaker, BreakerStep},
    guards::BreakerPolicy,
    ids::{ConnectionId, TenantId},
};
use angarium_store::{Connection as Db, audit::AuditEntry, breaker::breaker_lock};

/// A circuit breaker, with the observations of this node.
pub struct BreakerView {
    /// None where it has never opened.
    pub breaker: Option<Breaker>,
    pub sight: Option<Sight>,
}

/// Opens or closes the breaker of a connection, on every node. An open one stays open until it is closed by hand.
pub async fn set(app: &App, by: &Principal, name: &str, open: bool, reason: Option<String>) -> Result<BreakerView> {
    let mut change = app.change(by).await?;
    let connection = connections::named(&mut change, by.tenant, name).await?;
    let action = if open { Action::BreakerOpened } else { Action::BreakerClosed };
    let entry = AuditEntry::new(action, connection.id).because(reason.as_deref());
    let step = BreakerStep::ByHand { open, reason: reason.unwrap_or_else(|| "by hand".to_owned()) };
    let before = breaker_lock(&mut change, by.tenant, connection.id).await?.breaker;
    let (stored, _) = breaker_take(&mut change, by.tenant, connection.id, step, &connection.guards.breaker).await?;
    change.commit(entry.before(recorded(&before)).after(recorded(&stored.breaker))).await?;
    // Deliveries after the answer go by the new state: one that was refused meanwhile would wait long for nothing.
    if let Err(error) = look(&app.store, &app.guards).await {
        tracing::warn!(connection.id = %connection.id, %error, "this node learns of a changed circuit breaker later");
    }
    announce(app, connection.id).await;
    Ok(BreakerView { breaker: Some(stored.breaker), sight: app.guards.sight(by.tenant, connection.id) })
}

/// Has a breaker that opened over a refused secret tried at once, since the secret was replaced.
pub async fn mended(db: &mut Db, tenant: TenantId, connection: ConnectionId, policy: &BreakerPolicy) -> Result<()> {
    breaker_take(db, tenant, connection, BreakerStep::Mended, policy).await?;
    Ok(())
}

/// Tells all nodes to look; they do so each second anyway.
pub async fn announce(app: &App, connection: ConnectionId) {
    if let Err(error) = app.store.announce_breaker(connection).await {
        tracing::warn!(connection.id = %connection, %error, "a change of a circuit breaker is not announced");
    }
}

fn recorded(breaker: &Breaker) -> Value {
    json!({"state": breaker.phase.as_str(), "cause": breaker.cause.map(|cause| cause.as_str())})
}
