//! Receipts: a service's later reports about a delivery, and their effect on its state.

use std::str::FromStr;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{delivery::DeliveryState, ids::DeliveryId};

/// The reported event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReceiptKind {
    /// The service has handed it on.
    Sent,
    /// It arrived.
    Delivered,
    /// The service gave up.
    Failed,
    /// The recipient's side returned it.
    Bounced,
    Read,
    Clicked,
    Replied,
    /// The recipient calls it unwanted.
    Complained,
    Unsubscribed,
    /// A message of a person's, about no delivery.
    Inbound,
    /// A service's own: it is kept, and nothing follows.
    Other(String),
}

/// A text that can't be a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 32 lower-case letters, digits and underscores, a letter first, such as `delivered`")]
pub struct InvalidKind;

impl ReceiptKind {
    const NAMED: [Self; 10] = [
        Self::Sent,
        Self::Delivered,
        Self::Failed,
        Self::Bounced,
        Self::Read,
        Self::Clicked,
        Self::Replied,
        Self::Complained,
        Self::Unsubscribed,
        Self::Inbound,
    ];

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Bounced => "bounced",
            Self::Read => "read",
            Self::Clicked => "clicked",
            Self::Replied => "replied",
            Self::Complained => "complained",
            Self::Unsubscribed => "unsubscribed",
            Self::Inbound => "inbound",
            Self::Other(word) => word,
        }
    }

    /// Whether it is an action of the recipient: such receipts are kept as a set beside the state.
    #[must_use]
    pub const fn is_engagement(&self) -> bool {
        matches!(self, Self::Read | Self::Clicked | Self::Replied | Self::Complained | Self::Unsubscribed)
    }

    /// Returns the reported state. A recipient that reads, clicks, replies or complains has the message, even if the
    /// service did not report its arrival.
    const fn state(&self) -> Option<DeliveryState> {
        match self {
            Self::Sent => Some(DeliveryState::Sent),
            Self::Failed => Some(DeliveryState::Failed),
            Self::Bounced => Some(DeliveryState::Bounced),
            Self::Delivered | Self::Read | Self::Clicked | Self::Replied | Self::Complained => {
                Some(DeliveryState::Delivered)
            }
            Self::Unsubscribed | Self::Inbound | Self::Other(_) => None,
        }
    }

    /// Whether it reports only a state: then it matters only if the state changes.
    #[must_use]
    pub const fn is_state(&self) -> bool {
        matches!(self, Self::Sent | Self::Delivered | Self::Failed | Self::Bounced)
    }
}

impl FromStr for ReceiptKind {
    type Err = InvalidKind;

    fn from_str(text: &str) -> Result<Self, InvalidKind> {
        let is_word = (1..=32).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let known = || Self::NAMED.into_iter().find(|kind| kind.as_str() == text);
        is_word.then(|| known().unwrap_or_else(|| Self::Other(text.to_owned()))).ok_or(InvalidKind)
    }
}

/// One report of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    pub kind: ReceiptKind,
    /// The delivery's id, if the callback returned it.
    pub delivery: Option<DeliveryId>,
    /// The service's id of the message.
    pub external_id: Option<String>,
    pub recipient: Option<String>,
    /// By the service's clock.
    pub at: Option<Timestamp>,
    /// The service's own code.
    pub code: String,
    pub unified_code: String,
    /// One sentence for a person; may be empty.
    pub message: String,
    /// A JSON object.
    pub detail: String,
}

impl Receipt {
    /// Returns the digest of the whole report, by which a repetition is recognised.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let delivery = self.delivery.map(|id| id.to_string());
        let at = self.at.map(|at| at.as_microsecond().to_string());
        let parts = [
            delivery.as_deref(),
            self.external_id.as_deref(),
            self.recipient.as_deref(),
            at.as_deref(),
            Some(self.code.as_str()),
            Some(self.message.as_str()),
            Some(self.detail.as_str()),
        ];
        for part in parts.map(Option::unwrap_or_default) {
            // With the length before each, no two lists of parts read the same.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Whether anything says which delivery it is about.
    #[must_use]
    pub const fn names_a_delivery(&self) -> bool {
        self.delivery.is_some() || self.external_id.is_some()
    }
}

/// Returns the new state of a delivery after a receipt; `None` if it does not change.
///
/// States are ranked and only climb, so receipts may come in any order and as often as they like:
/// the end is the same. Nothing is above `delivered`.
#[must_use]
pub fn apply(state: DeliveryState, kind: &ReceiptKind) -> Option<DeliveryState> {
    kind.state().filter(|to| rank(*to) > rank(state))
}

/// Does the same for a receipt that may concern an earlier attempt than the last counted one. Its failure is history;
/// its arrival is not.
#[must_use]
pub fn apply_to(state: DeliveryState, kind: &ReceiptKind, is_current: bool) -> Option<DeliveryState> {
    apply(state, kind).filter(|to| is_current || *to == DeliveryState::Delivered)
}

/// Returns the rank of a state. Only a report of arrival corrects an end that the gateway set by itself.
const fn rank(state: DeliveryState) -> u8 {
    match state {
        DeliveryState::Accepted | DeliveryState::Scheduled | DeliveryState::Queued | DeliveryState::Unknown => 0,
        DeliveryState::Sent => 1,
        DeliveryState::Failed => 2,
        DeliveryState::Bounced => 3,
        DeliveryState::Expired | DeliveryState::Canceled | DeliveryState::Suppressed | DeliveryState::Unroutable => 4,
        DeliveryState::Delivered => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(from: DeliveryState, kinds: &[ReceiptKind]) -> DeliveryState {
        kinds.iter().fold(from, |state, kind| apply(state, kind).unwrap_or(state))
    }

    #[test]
    fn a_receipt_moves_a_delivery_forward_only() {
        use DeliveryState::*;
        for (from, kind, to) in [
            (Sent, ReceiptKind::Delivered, Some(Delivered)),
            (Sent, ReceiptKind::Bounced, Some(Bounced)),
            (Sent, ReceiptKind::Failed, Some(Failed)),
            (Sent, ReceiptKind::Sent, None),
            (Unknown, ReceiptKind::Sent, Some(Sent)),
            (Unknown, ReceiptKind::Delivered, Some(Delivered)),
            (Unknown, ReceiptKind::Failed, Some(Failed)),
            (Queued, ReceiptKind::Sent, Some(Sent)),
            (Queued, ReceiptKind::Delivered, Some(Delivered)),
            (Delivered, ReceiptKind::Bounced, None),
            (Delivered, ReceiptKind::Sent, None),
            (Bounced, ReceiptKind::Delivered, Some(Delivered)),
            (Canceled, ReceiptKind::Bounced, None),
            (Canceled, ReceiptKind::Delivered, Some(Delivered)),
            (Sent, ReceiptKind::Read, Some(Delivered)),
            (Sent, ReceiptKind::Unsubscribed, None),
            (Sent, ReceiptKind::Other("delayed".to_owned()), None),
        ] {
            assert_eq!(apply(from, &kind), to, "{from:?} and {kind:?}");
        }
    }

    #[test]
    fn what_an_earlier_attempt_failed_by_is_history() {
        assert_eq!(apply_to(DeliveryState::Sent, &ReceiptKind::Failed, false), None);
        assert_eq!(apply_to(DeliveryState::Sent, &ReceiptKind::Delivered, false), Some(DeliveryState::Delivered));
    }

    /// Any order of any receipts, repeated or not, ends at the same state, and never goes back.
    #[test]
    fn the_order_of_receipts_does_not_matter() {
        let mut random = crate::seed::rng();
        for _ in 0..20_000 {
            let from = random.choice(DeliveryState::ALL).unwrap();
            let mut kinds: Vec<ReceiptKind> =
                (0..random.usize(0..7)).map(|_| random.choice(ReceiptKind::NAMED).unwrap()).collect();
            let expected = end(from, &kinds);
            random.shuffle(&mut kinds);
            assert_eq!(end(from, &kinds), expected, "{from:?} and {kinds:?}");
            let repeated: Vec<ReceiptKind> = kinds.iter().chain(&kinds).cloned().collect();
            assert_eq!(end(from, &repeated), expected, "{from:?} and {kinds:?} twice");
            let mut state = from;
            for kind in &kinds {
                let next = apply(state, kind).unwrap_or(state);
                assert!(rank(next) >= rank(state), "{state:?} and {kind:?}");
                state = next;
            }
        }
    }

    #[test]
    fn a_kind_is_a_word() {
        assert_eq!("delivered".parse(), Ok(ReceiptKind::Delivered));
        assert_eq!("delayed".parse(), Ok(ReceiptKind::Other("delayed".to_owned())));
        for bad in ["", "Delivered", "1st", "a b", &"x".repeat(33)] {
            assert_eq!(bad.parse::<ReceiptKind>(), Err(InvalidKind), "{bad:?}");
        }
    }

    #[test]
    fn a_repetition_has_the_same_hash_and_another_receipt_has_not() {
        let receipt = |external_id: &str, code: &str| Receipt {
            kind: ReceiptKind::Delivered,
            delivery: None,
            external_id: Some(external_id.to_owned()),
            recipient: None,
            at: None,
            code: code.to_owned(),
            unified_code: "ok".to_owned(),
            message: String::new(),
            detail: "{}".to_owned(),
        };
        assert_eq!(receipt("a", "b").hash(), receipt("a", "b").hash());
        assert_ne!(receipt("a", "b").hash(), receipt("ab", "").hash());
    }
}
