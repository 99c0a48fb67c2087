//! Transitions: changes of a delivery's state that no attempt made. They are facts of the ledger that statistics count,
//! beside messages and attempts.
//!
//! This module does not change a delivery: its callers do, in the same transaction.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Result, legs::LegTransition, ordering::ordering_pass};
use angarium_domain::{
    delivery::DeliveryState,
    ids::{DeliveryId, TenantId},
};

/// A delivery that left one state for another without an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Transition {
    pub delivery: DeliveryId,
    pub left: DeliveryState,
    pub state: DeliveryState,
}

impl Transition {
    /// Whether the delivery's turn goes on with it.
    fn ends(&self) -> bool {
        self.state.is_end() && !self.left.is_end()
    }
}

/// Writes transitions, in the transaction that makes them; without them the statistics no longer agree with the ledger.
/// They count for what the deliveries' last attempts went through. Deliveries that end by them pass on their turn,
/// where they have an ordering key; the caller has the legs of what moved go on.
pub async fn transition_insert(
    db: &mut PgConnection,
    tenant: TenantId,
    transitions: &[Transition],
) -> Result<LegTransition> {
    let moved: Vec<Uuid> = sqlx::query_scalar(
        "with written as (
           insert into transition (tenant_id, delivery_id, left_state, state, channel, connection_id, provider, route_id,
             route_version, unified_code)
           select $1, d.id, t.left_state, t.state, coalesce(a.channel, angarium_leg_channel(m.legs, m.channel, d.id)),
             a.connection_id, a.provider, a.route_id, a.route_version, a.unified_code
           from unnest($2::uuid[], $3::text[], $4::text[]) as t (delivery_id, left_state, state)
           join delivery d on d.tenant_id = $1 and d.id = t.delivery_id
           join message m on m.tenant_id = $1 and m.id = d.message_id
           left join attempt a on a.tenant_id = $1 and a.delivery_id = d.id and a.number = d.attempts
         )
         select d.message_id from delivery d
         where d.tenant_id = $1 and d.id = any ($2::uuid[]) and d.begun_at is not null",
    )
    .bind(tenant.uuid())
    .bind(transitions.iter().map(|it| it.delivery.uuid()).collect::<Vec<_>>())
    .bind(transitions.iter().map(|it| it.left.as_str()).collect::<Vec<_>>())
    .bind(transitions.iter().map(|it| it.state.as_str()).collect::<Vec<_>>())
    .fetch_all(&mut *db)
    .await?;
    let ended: Vec<_> = transitions.iter().filter(|it| it.ends()).map(|it| (tenant, it.delivery)).collect();
    if !ended.is_empty() {
        ordering_pass(db, &ended).await?;
    }
    Ok(moved.into_iter().map(|message| (tenant, message.into())).collect())
}
