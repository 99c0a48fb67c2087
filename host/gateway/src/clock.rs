//! The one place that reads the wall clock. Decisions take `now` as an argument.

use jiff::Timestamp;

/// The time now, at the microsecond that the database keeps.
#[must_use]
pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "this is the edge that reads the clock")]
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}
