//! How long a delivery is tried.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use super::LIFETIME;
use crate::delivery::DeliveryState;

/// Limits on the time at which an attempt begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub expires_at: Option<Timestamp>,
    pub first_due: Timestamp,
    /// When the first of the attempts that count began; `None` before it.
    pub first_attempt: Option<Timestamp>,
    /// The route's word.
    pub max_elapsed_ms: Option<u64>,
}

/// A bound that a time is beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Expiry,
    MaxElapsed { ms: u64 },
    Lifetime,
}

impl Bounds {
    /// Why no attempt begins at this time, if so.
    #[must_use]
    pub fn limit(&self, at: Timestamp) -> Option<Limit> {
        if self.expires_at.is_some_and(|expires_at| at >= expires_at) {
            return Some(Limit::Expiry);
        }
        if let (Some(first), Some(ms)) = (self.first_attempt, self.max_elapsed_ms)
            && at.duration_since(first) > SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
        {
            return Some(Limit::MaxElapsed { ms });
        }
        (at.duration_since(self.first_due) > LIFETIME).then_some(Limit::Lifetime)
    }
}

impl Limit {
    /// Returns the end of a delivery that would otherwise end in `exhausted`. An unknown delivery stays unknown,
    /// because an expiry must not hide that it may have been sent.
    #[must_use]
    pub fn ends_in(self, exhausted: DeliveryState) -> DeliveryState {
        if self == Self::Expiry && exhausted != DeliveryState::Unknown { DeliveryState::Expired } else { exhausted }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expiry => f.write_str("not tried again: it expires before the next attempt would begin"),
            Self::MaxElapsed { ms } => {
                write!(
                    f,
                    "not tried again: the route's `max_elapsed_ms` ({ms}) ends before the next attempt would begin"
                )
            }
            Self::Lifetime => f.write_str("not tried again: a delivery is tried for 72 hours"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_counted_from_the_first_attempt() {
        let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        // It waited for two hours in the queue before anybody was asked.
        let bounds = Bounds {
            expires_at: Some(at(9)),
            first_due: at(0),
            first_attempt: Some(at(2)),
            max_elapsed_ms: Some(3_600_000),
        };
        assert_eq!(bounds.limit(at(3)), None);
        assert_eq!(bounds.limit(at(4)), Some(Limit::MaxElapsed { ms: 3_600_000 }));
        assert_eq!(bounds.limit(at(9)), Some(Limit::Expiry));
        let fresh = Bounds { first_attempt: None, expires_at: None, ..bounds };
        assert_eq!((fresh.limit(at(72)), fresh.limit(at(73))), (None, Some(Limit::Lifetime)));
    }

    #[test]
    fn an_expiry_does_not_hide_what_is_unknown() {
        assert_eq!(Limit::Expiry.ends_in(DeliveryState::Failed), DeliveryState::Expired);
        assert_eq!(Limit::Expiry.ends_in(DeliveryState::Unknown), DeliveryState::Unknown);
        assert_eq!(Limit::Lifetime.ends_in(DeliveryState::Failed), DeliveryState::Failed);
    }
}
