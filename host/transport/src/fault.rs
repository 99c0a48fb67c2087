//! Short names for the ways in which a transmission ends without an answer.

use super::egress::Refusal;
use angarium_domain::transmission::{Fault, FaultKind};

/// Nothing left: another try, here or elsewhere, sends nothing twice.
pub(super) fn not_sent(kind: FaultKind, detail: impl Into<String>) -> Fault {
    Fault { kind, detail: detail.into(), may_have_been_sent: false }
}

/// The other side may have received enough to act on.
pub(super) fn maybe_sent(kind: FaultKind, detail: impl Into<String>) -> Fault {
    Fault { kind, detail: detail.into(), may_have_been_sent: true }
}

/// The transmission itself can't be performed.
pub(super) fn invalid(detail: impl Into<String>) -> Fault {
    not_sent(FaultKind::InvalidTransmission, detail)
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let kind = match &refusal {
            Refusal::Malformed { .. } => FaultKind::InvalidTransmission,
            Refusal::Denied { .. } => FaultKind::EgressRefused,
            Refusal::Unresolved { .. } => FaultKind::Dns,
        };
        not_sent(kind, refusal.to_string())
    }
}
