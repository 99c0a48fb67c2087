//! Records a receipt with its effects, in the caller's transaction.

use crate::engine::legs;
use angarium_domain::{
    delivery::DeliveryState,
    receipt::{self, ReceiptKind},
};
use angarium_store::{
    self as store, Connection,
    follow_up::{EndedDelivery, follow_up_note_where_asked},
    queue::{QueueEntry, queue_remove},
    receipt::{
        ReceiptTarget, ReceivedReceipt, receipt_engage, receipt_event, receipt_insert, receipt_move, receipt_target,
    },
    transition::{Transition, transition_insert},
};

/// The fate of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordedReceipt {
    /// It moved its delivery to another state.
    Moved,
    /// It is kept, and the state stays.
    Kept,
    /// It was there already.
    Repeated,
    /// Its delivery is not known, or in a worker's hand: the caller rolls back, and it waits.
    NotYet,
    /// Nothing says which delivery it is about, or none ever will be.
    Unmatched,
}

/// Records a receipt. With [`RecordedReceipt::NotYet`] the transaction must not be committed.
///
/// Records a receipt. A delivery that waits for its next attempt is ended together with its entry in the queue. Without
/// such an entry a worker has it, and its outcome is written first. So a receipt never ends a running attempt.
///
/// `asks` says whether scripts may want to know of an end.
pub(super) async fn record(
    db: &mut Connection,
    received: &ReceivedReceipt,
    asks: bool,
) -> store::Result<RecordedReceipt> {
    let Some(target) = receipt_target(db, received).await? else { return Ok(RecordedReceipt::NotYet) };
    let kind = &received.receipt.kind;
    let to = receipt::apply_to(target.state, kind, target.is_current);
    if !receipt_insert(db, target.delivery, received, to).await? {
        return Ok(RecordedReceipt::Repeated);
    }
    if let Some(to) = to {
        if target.is_leg {
            legs::hold(db, received.tenant, target.message).await?;
        }
        if !may_move(db, &target, received).await? || !receipt_move(db, &target, received, to).await? {
            return Ok(RecordedReceipt::NotYet);
        }
        receipt_event(db, &target, received, to.as_str()).await?;
        let change = Transition { delivery: target.delivery, left: target.state, state: to };
        let moved = transition_insert(db, received.tenant, &[change]).await?;
        legs::advance(db, moved).await?;
        if asks {
            let ReceiptTarget { delivery, message, .. } = target;
            follow_up_note_where_asked(db, &[EndedDelivery { tenant: received.tenant, delivery, message, state: to }])
                .await?;
        }
    }
    if kind.is_engagement() {
        receipt_engage(db, &target, received).await?;
    }
    if !kind.is_state() {
        receipt_event(db, &target, received, kind.as_str()).await?;
    }
    Ok(if to.is_some() { RecordedReceipt::Moved } else { RecordedReceipt::Kept })
}

/// Takes a waiting delivery out of the queue; false if a worker has it.
async fn may_move(db: &mut Connection, target: &ReceiptTarget, received: &ReceivedReceipt) -> store::Result<bool> {
    if target.state != DeliveryState::Queued {
        return Ok(true);
    }
    let Some(due_at) = target.next_attempt_at else { return Ok(false) };
    let entry = QueueEntry { tenant: received.tenant, delivery: target.delivery, due_at, priority: target.priority };
    queue_remove(db, &entry).await
}

/// Counts a receipt; a provider's own kinds are counted together.
pub(super) fn count(kind: &ReceiptKind, recorded: RecordedReceipt) {
    let kind = match kind {
        ReceiptKind::Other(_) => "other".to_owned(),
        named => named.as_str().to_owned(),
    };
    let result = match recorded {
        RecordedReceipt::Moved => "moved",
        RecordedReceipt::Kept => "kept",
        RecordedReceipt::Repeated => "repeated",
        RecordedReceipt::NotYet => "waits",
        RecordedReceipt::Unmatched => "unmatched",
    };
    metrics::counter!("angarium_receipts_total", "kind" => kind, "result" => result).increment(1);
}
