//! The one place that reads the wall clock. Decisions take `now` as an argument.

use jiff::Timestamp;

/// The time now, as the database keeps it.
#[must_use]
pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "this is the edge that reads the clock")]
    let now = Timestamp::now();
    as_stored(now)
}

/// A time at the microsecond that the database keeps.
#[must_use]
pub fn as_stored(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}
