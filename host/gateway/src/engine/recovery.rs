//! Takes over the deliveries of lost workers: ends their leases, records unknowable outcomes as unknown, and requeues
//! or ends the deliveries.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{clock, engine::legs};
use angarium_domain::{
    attempt::{Attempt, Origin, Trigger},
    delivery::DeliveryState,
    ids::AttemptId,
    outcome::host_verdict,
    provider::Disposition,
    recipients::Recipients,
};
use angarium_store::{
    self as store, Store,
    attempt::{Settlement, attempt_settle},
    failpoint,
    follow_up::{EndedDelivery, follow_up_note_where_asked},
    queue::{Abandoned, lease_recover},
};

/// How many workers may die with a delivery before it is taken for the cause.
pub const DEATHS: u32 = 3;

/// The most leases of one look.
const BATCH: i64 = 50;

/// How often recovery looks, and how long it lets others go first.
#[derive(Debug, Clone, Copy)]
pub struct RecoveryPace {
    pub pause: Duration,
    /// How long every living node needs to renew its leases.
    pub renewal: Duration,
}

/// Looks for expired leases until it is stopped.
///
/// While the database was away no lease was renewed: once it is back, living nodes renew theirs first, and leases that
/// have expired then belong to lost workers.
pub async fn run(store: Store, bell: Arc<Notify>, pace: RecoveryPace, stop: CancellationToken) {
    let mut away = false;
    while !stop.is_cancelled() {
        let mut pause = pace.pause;
        if away && store.check_writable().await.is_ok() {
            (away, pause) = (false, pace.renewal);
        } else if !away {
            match recover(&store).await {
                Ok(0) => {}
                Ok(count) => {
                    tracing::warn!(deliveries = count, "deliveries of a lost worker were taken over");
                    metrics::counter!("angarium_recovered_deliveries_total").increment(count as u64);
                    bell.notify_one();
                }
                Err(error) => {
                    away = true;
                    tracing::warn!(%error, "recovery failed; it goes on when the database answers");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Looks once; returns the number of deliveries that were taken over.
pub async fn recover(store: &Store) -> store::Result<usize> {
    let mut txn = store.worker().await?;
    let abandoned = lease_recover(&mut txn, BATCH).await?;
    let now = clock::now();
    let settlements: Vec<Settlement> = abandoned.into_iter().map(|it| resolve(it, now)).collect();
    if !settlements.is_empty() {
        let moved = attempt_settle(&mut txn, &settlements.iter().collect::<Vec<_>>()).await?;
        legs::advance(&mut txn, moved).await?;
        follow_up_note_where_asked(&mut txn, &settlements.iter().filter_map(ended).collect::<Vec<_>>()).await?;
        failpoint!(RecoveryBeforeCommit);
    }
    txn.commit().await?;
    if !settlements.is_empty() {
        failpoint!(RecoveryAfterCommit);
    }
    Ok(settlements.len())
}

fn ended(settlement: &Settlement) -> Option<EndedDelivery> {
    let Settlement { tenant, delivery, message, .. } = *settlement;
    let state = settlement.state.filter(|state| state.is_end())?;
    Some(EndedDelivery { tenant, delivery, message, state })
}

/// Decides about an abandoned delivery. Pure.
///
/// A request may have begun, so an attempt says `unknown`. It is tried again unless its provider
/// could not recognise the repetition and the route holds such deliveries, or too many workers died
/// with it.
fn resolve(abandoned: Abandoned, now: Timestamp) -> Settlement {
    let deaths = abandoned.deaths + 1;
    let poison = deaths >= DEATHS;
    let hold = abandoned.intent.as_ref().is_some_and(|intent| intent.hold);
    let (code, detail) = match (&abandoned.intent, poison) {
        (_, true) => ("quarantined", "three workers were lost while they held it; it is held for a person"),
        (Some(_), false) => {
            ("worker_lost", "the worker was lost after it committed to this request; whether it left is not known")
        }
        (None, false) => {
            ("worker_lost", "the worker was lost while it held this delivery; whether a request began is not known")
        }
    };
    let started_at = abandoned.intent.as_ref().map_or(now, |intent| intent.started_at);
    let trigger = abandoned.intent.as_ref().and_then(|intent| intent.trigger.parse().ok());
    Settlement {
        tenant: abandoned.tenant,
        delivery: abandoned.delivery,
        message: abandoned.message,
        channel: abandoned.channel,
        priority: abandoned.priority,
        lease: abandoned.lease,
        attempt: Attempt {
            id: AttemptId::new(),
            number: abandoned.attempts + 1,
            trigger: trigger.unwrap_or(if abandoned.attempts == 0 { Trigger::Scheduled } else { Trigger::Recovery }),
            origin: abandoned.intent.map(|intent| Origin {
                connection: intent.connection.into(),
                provider: intent.provider.into(),
                provider_version: None,
                provider_digest: None,
                route: None,
                at_recipient: false,
            }),
            plan: Arc::from("{}"),
            started_at,
            finished_at: now,
            verdict: host_verdict(Disposition::Unknown, code, detail.to_owned()),
            fallback_reason: None,
            plugin_micros: 0,
            plugin_memory: 0,
            recipients: Recipients::default(),
            further: false,
        },
        // Their recorded outcomes stay.
        recipients: Recipients::default(),
        state: Some(if poison || hold { DeliveryState::Unknown } else { DeliveryState::Queued }),
        next: (!poison && !hold).then_some((now, Trigger::Recovery)),
        deaths,
        ordered: abandoned.ordered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use angarium_domain::{
        ids::{DeliveryId, MessageId, TenantId},
        message::Priority,
    };
    use angarium_store::queue::Intent;

    fn abandoned(deaths: u32, intent: Option<bool>) -> Abandoned {
        Abandoned {
            tenant: TenantId::new(),
            delivery: DeliveryId::new(),
            message: MessageId::new(),
            lease: uuid::Uuid::now_v7(),
            channel: "sms".into(),
            priority: Priority::Normal,
            attempts: 2,
            deaths,
            ordered: false,
            intent: intent.map(|hold| Intent {
                connection: uuid::Uuid::now_v7(),
                provider: "sms-twilio".into(),
                hold,
                trigger: "retry".into(),
                started_at: Timestamp::UNIX_EPOCH,
            }),
        }
    }

    #[test]
    fn what_may_have_begun_is_labelled_and_tried_again() {
        let settlement = resolve(abandoned(0, None), Timestamp::UNIX_EPOCH);
        assert_eq!(settlement.attempt.verdict.disposition, Disposition::Unknown);
        assert_eq!(settlement.attempt.number, 3);
        assert_eq!(settlement.state, Some(DeliveryState::Queued));
        assert_eq!(settlement.next, Some((Timestamp::UNIX_EPOCH, Trigger::Recovery)));
    }

    #[test]
    fn a_request_that_costs_money_is_held() {
        let settlement = resolve(abandoned(0, Some(true)), Timestamp::UNIX_EPOCH);
        assert_eq!(settlement.state, Some(DeliveryState::Unknown));
        assert_eq!(settlement.next, None);
        assert_eq!(settlement.attempt.trigger, Trigger::Retry);
        assert!(settlement.attempt.origin.is_some());
    }

    #[test]
    fn the_third_death_quarantines() {
        let settlement = resolve(abandoned(DEATHS - 1, None), Timestamp::UNIX_EPOCH);
        assert_eq!(settlement.state, Some(DeliveryState::Unknown));
        assert_eq!(settlement.attempt.verdict.code, "quarantined");
        assert_eq!(settlement.next, None);
    }
}
