//! Times at the database's edge: microseconds since the epoch, so that arrays of them bind plainly.

use jiff::Timestamp;

/// For a `bigint` parameter that SQL turns into a time: `timestamptz 'epoch' + $1 * interval '1 microsecond'`.
#[must_use]
pub fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// The time of a `bigint` column; PostgreSQL's range is wider than jiff's, so what lies outside is
/// brought to the nearest end.
#[must_use]
pub fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX })
}
