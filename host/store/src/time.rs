//! Times at the database's edge: microseconds since the epoch, so that arrays of them bind plainly.

use jiff::Timestamp;

/// For a `bigint` parameter that SQL turns into a time: `timestamptz 'epoch' + $1 * interval '1 microsecond'`.
#[must_use]
pub fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}
