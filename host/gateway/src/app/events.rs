//! Events, in the order of time.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{App, PageRows, Result};
use crate::clock;
use angarium_domain::ids::{EventId, TenantId};
use angarium_store::event::{EventWindow, event_page};

pub use angarium_store::event::EventView;

/// The age at which an event is shown: an outcome may take this long to be committed after its events got their ids, so
/// that none appears behind a cursor that has passed it.
const SETTLED: SignedDuration = SignedDuration::from_secs(2);
/// The most events of one step of a stream.
const STEP: u32 = 250;

/// Returns a page of events of these types, the oldest first, from behind `after`; no type means all of them.
pub async fn list(
    app: &App,
    tenant: TenantId,
    after: EventId,
    kinds: &[String],
    limit: u32,
) -> Result<PageRows<EventView>> {
    let mut txn = app.store.tenant(tenant).await?;
    let window = EventWindow { after, before: settled(), kinds, limit };
    Ok(event_page(&mut txn, tenant, &window).await?)
}

/// Returns the next events behind `after`, and from where the step after this one goes on.
pub async fn next(app: &App, tenant: TenantId, after: EventId, kinds: &[String]) -> Result<(Vec<EventView>, EventId)> {
    let before = settled();
    let mut txn = app.store.tenant(tenant).await?;
    let found = event_page(&mut txn, tenant, &EventWindow { after, before, kinds, limit: STEP }).await?;
    // A settled event that was not found is not asked for again.
    let reached = match found.rows.last() {
        Some(event) if found.more => event.id,
        _ => after.max(before),
    };
    Ok((found.rows, reached))
}

/// Returns where the events of a time begin: their ids are UUIDv7.
pub fn first_at(time: Timestamp) -> EventId {
    let millis = u128::try_from(time.as_millisecond()).unwrap_or(0);
    EventId::from(Uuid::from_u128(millis << 80))
}

fn settled() -> EventId {
    first_at(clock::now().checked_sub(SETTLED).unwrap_or(Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_stands_before_the_events_of_its_millisecond() {
        let event = EventId::new();
        let millis = i64::try_from(event.uuid().as_u128() >> 80).unwrap();
        let time = Timestamp::from_millisecond(millis).unwrap();
        assert!(first_at(time) < event);
        assert!(first_at(time + SignedDuration::from_millis(1)) > event);
    }
}
