//! Short names for the ways in which a transmission ends without an answer.

use super::egress::EgressRefusal;
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

impl From<EgressRefusal> for Fault {
    fn from(refusal: EgressRefusal) -> Self {
        let kind = match &refusal {
            EgressRefusal::Malformed { .. } => FaultKind::InvalidTransmission,
            EgressRefusal::Denied { .. } => FaultKind::EgressRefused,
            EgressRefusal::Unresolved { .. } => FaultKind::Dns,
        };
        not_sent(kind, refusal.to_string())
    }
}
