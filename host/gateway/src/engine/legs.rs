//! A message's other channels after one of its deliveries has moved, in the same transaction; and the wait for
//! receipts. It decides by `domain/legs.rs`, and sends nothing.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use angarium_domain::{
    delivery::DeliveryState,
    ids::{MessageId, TenantId},
    legs::{self, Begun, LegReceipt, Wants},
};
use angarium_store::{
    self as store, Connection, Store, StoreError, failpoint,
    legs::{
        Closing, HeldLegs, LegTransition, leg_begin, leg_close, leg_forgo, legs_hold, legs_state, watch_due, watch_end,
        watch_set,
    },
};

/// How often windows are looked at.
const PAUSE: Duration = Duration::from_secs(1);

/// The most messages of one look.
const BATCH: i64 = 500;

/// Begins the legs that follow, closes those that are no longer needed, and writes the messages' states.
pub async fn advance(db: &mut Connection, moved: LegTransition) -> store::Result<()> {
    if moved.is_empty() {
        return Ok(());
    }
    for mut held_legs in legs_hold(db, &moved).await? {
        let step = legs::step(held_legs.policy, &held_legs.begun, held_legs.may_begin);
        for number in &step.close {
            leg_close(db, &mut held_legs, *number, Closing::Superseded).await?;
        }
        await_receipts(db, &held_legs, &step.await_receipt).await?;
        if let Some((number, reason)) = step.begin {
            leg_begin(db, &held_legs, number, reason).await?;
            held_legs.begun.push(fresh(number));
        }
        legs_state(db, &held_legs, legs::state(held_legs.policy, &held_legs.begun)).await?;
    }
    Ok(())
}

/// Holds a message with a list of channels until the transaction's end: before more than one of its
/// deliveries is changed, so that no two wait for each other.
pub async fn hold(db: &mut Connection, tenant: TenantId, message: MessageId) -> store::Result<()> {
    legs_hold(db, &LegTransition::one(tenant, message)).await.map(drop)
}

/// Ends the waiting legs of a message, and drops those that have not begun. False if nothing could be stopped.
pub async fn cancel(db: &mut Connection, tenant: TenantId, message: MessageId) -> store::Result<bool> {
    let Some(mut held_legs) = legs_hold(db, &LegTransition::one(tenant, message)).await?.pop() else {
        return Ok(false);
    };
    let numbers: Vec<u8> = held_legs.begun.iter().filter(|it| !it.state.is_end()).map(|it| it.number).collect();
    let mut closed = false;
    for number in numbers {
        closed |= leg_close(db, &mut held_legs, number, Closing::Canceled).await?;
    }
    let waits = held_legs.begun.iter().any(|it| it.receipt == LegReceipt::Awaited);
    if !closed && !waits {
        return Ok(false);
    }
    leg_forgo(db, &mut held_legs).await?;
    await_receipts(db, &held_legs, &[]).await?;
    legs_state(db, &held_legs, legs::state(held_legs.policy, &held_legs.begun)).await?;
    Ok(true)
}

/// Only a message that wants to be delivered has any.
async fn await_receipts(db: &mut Connection, held_legs: &HeldLegs, numbers: &[u8]) -> store::Result<()> {
    if held_legs.policy.wants == Wants::Delivered { watch_set(db, held_legs, numbers).await } else { Ok(()) }
}

const fn fresh(number: u8) -> Begun {
    Begun { number, state: DeliveryState::Queued, handed_over: false, receipt: LegReceipt::NotAwaited }
}

/// Looks each second for receipts that have not come in time, until it is stopped.
pub async fn sweep(store: Store, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let full = match look(&store).await {
            Ok(count) => count >= BATCH as usize,
            Err(error) => {
                tracing::warn!(%error, "missing receipts can't be looked for; the next look is in a second");
                false
            }
        };
        if !full {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

/// Looks once, with a transaction for each message, so that no two nodes wait for each other in a circle: if two look
/// at the same one, the second finds it done. Returns the number of messages.
async fn look(store: &Store) -> store::Result<usize> {
    let mut txn = store.worker().await?;
    let due = watch_due(&mut txn, BATCH).await?;
    txn.commit().await?;
    for (tenant, message) in &due {
        match move_on(store, *tenant, *message).await {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            // A message that the database refuses must not keep the others waiting.
            Err(error) => tracing::warn!(%error, message.id = %message, "a missing receipt can't be acted on"),
            Ok(()) => {}
        }
    }
    Ok(due.len())
}

async fn move_on(store: &Store, tenant: TenantId, message: MessageId) -> store::Result<()> {
    let mut txn = store.worker().await?;
    advance(&mut txn, LegTransition::one(tenant, message)).await?;
    watch_end(&mut txn, tenant, message).await?;
    failpoint!(LegBeforeCommit);
    txn.commit().await?;
    failpoint!(LegAfterCommit);
    Ok(())
}
