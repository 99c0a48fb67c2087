//! The times that a message may name.

use jiff::{SignedDuration, Timestamp};

/// A send is planned, or expires, this far ahead at most: a hundred years.
const FURTHEST: SignedDuration = SignedDuration::from_hours(100 * 366 * 24);
/// A send that was planned this long ago is a mistake.
const LONG_AGO: SignedDuration = SignedDuration::from_hours(366 * 24);

/// Returns what is wrong with a message's times: the field, a stable code, and the requirement.
#[must_use]
pub fn check_times(
    send_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Vec<(&'static str, &'static str, &'static str)> {
    let horizon = now.checked_add(FURTHEST).unwrap_or(Timestamp::MAX);
    let past = now.checked_sub(LONG_AGO).unwrap_or(Timestamp::MIN);
    let mut problems = Vec::new();
    if send_at.is_some_and(|at| !(past..=horizon).contains(&at)) {
        let detail = "must be less than a year ago and less than a hundred years ahead";
        problems.push(("send_at", "out_of_range", detail));
    }
    let start = send_at.map_or(now, |at| at.max(now));
    if expires_at.is_some_and(|end| end <= start) {
        problems.push(("expires_at", "too_early", "must be later than now and `send_at`"));
    }
    if expires_at.is_some_and(|end| end > horizon) {
        problems.push(("expires_at", "out_of_range", "must be less than a hundred years ahead"));
    }
    problems
}
