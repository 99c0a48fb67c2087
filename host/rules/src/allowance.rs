//! The time that all rules and scripts of a message may use together. It belongs to the thread while they are asked, as
//! the budget of a single run does: each run takes its time from it, and the rules between the runs are charged too.
//!
//! Outside of [`within`] and [`at_hand`] there is no limit but each run's own.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// The time for rules without expressions if nothing else is asked: short enough for an async worker.
const AT_HAND: Duration = Duration::from_millis(1);

/// The most that is charged between two looks at the clock: a busy machine uses up no tenant's time.
const MOST_BETWEEN: Duration = Duration::from_micros(500);

/// The longest run by the clock, whatever was charged, unless its limit on time is longer: a run may wait without
/// working.
pub(super) const LONGEST: Duration = Duration::from_secs(1);

thread_local! {
    static ALLOWANCE: Cell<Option<Allowance>> = const { Cell::new(None) };
}

/// Why rules and scripts are asked no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spent {
    /// The message's time is used up.
    MessageTime,
    /// The tenant's time in this second is used up.
    TenantTime,
    /// Nothing is run here: the question is to be asked again elsewhere, if possible.
    #[serde(skip)]
    NotHere,
}

impl Spent {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessageTime => "the message's rules and scripts have used up their time",
            Self::TenantTime => "the tenant's rules and scripts have used up their time of this second",
            Self::NotHere => "it is asked elsewhere",
        }
    }
}

/// How much may be used.
#[derive(Debug, Clone, Copy)]
pub struct Grant {
    time: Duration,
    /// Scripts and expressions may be run.
    runs: bool,
    cause: Spent,
}

impl Grant {
    /// Returns the allowance for a message's rules and scripts.
    #[must_use]
    pub const fn of_message(time: Duration) -> Self {
        Self { time, runs: true, cause: Spent::MessageTime }
    }

    /// The grant of a tenant without time: rules without expressions are asked, and nothing is run.
    pub const TENANT_SPENT: Self = Self { time: AT_HAND, runs: false, cause: Spent::TenantTime };

    const AT_HAND: Self = Self { time: AT_HAND, runs: false, cause: Spent::NotHere };
}

#[derive(Debug, Clone, Copy)]
struct Allowance {
    grant: Grant,
    left: Duration,
    began: Instant,
    looked: Instant,
    /// Whether something was not asked.
    denied: bool,
}

impl Allowance {
    fn look(&mut self) {
        let now = Instant::now();
        self.left = self.left.saturating_sub(now.duration_since(self.looked).min(MOST_BETWEEN));
        self.looked = now;
        if now.duration_since(self.began) >= LONGEST.max(self.grant.time) {
            self.left = Duration::ZERO;
        }
    }

    const fn spent(&mut self) -> Option<Spent> {
        if self.left.is_zero() {
            self.denied = true;
            return Some(self.grant.cause);
        }
        None
    }
}

/// Does something within an allowance; also returns the used time.
pub fn within<T>(grant: Grant, work: impl FnOnce() -> T) -> (T, Duration) {
    let (answer, allowance) = measured(grant, work);
    (answer, grant.time.saturating_sub(allowance.left))
}

/// Does something that may be done again, as long as it costs hardly anything: rules without expressions. `None` if
/// something must be run: then nothing has come of it.
pub fn at_hand<T>(work: impl FnOnce() -> T) -> Option<T> {
    let (answer, allowance) = measured(Grant::AT_HAND, work);
    (!allowance.denied).then_some(answer)
}

fn measured<T>(grant: Grant, work: impl FnOnce() -> T) -> (T, Allowance) {
    /// Time used within is also charged to the surrounding allowance.
    struct Restore(Option<Allowance>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let inner = ALLOWANCE.replace(self.0);
            charge(inner.map_or(Duration::ZERO, |it| it.grant.time.saturating_sub(it.left)));
        }
    }
    let now = Instant::now();
    let fresh = Allowance { grant, left: grant.time, began: now, looked: now, denied: false };
    let _restore = Restore(ALLOWANCE.replace(Some(fresh)));
    let answer = work();
    let mut allowance = ALLOWANCE.get().unwrap_or(fresh);
    allowance.look();
    (answer, allowance)
}

/// Looks at the clock between rules; why no further ones are asked, if they aren't.
pub(super) fn look() -> Option<Spent> {
    changed(|allowance| {
        allowance.look();
        allowance.spent()
    })
}

/// Asks whether something may be run.
///
/// # Errors
/// Charges the start of a run; returns the reason if it may not begin.
pub(super) fn enter() -> Result<(), Spent> {
    let denied = changed(|allowance| {
        allowance.look();
        if !allowance.grant.runs {
            allowance.denied = true;
            return Some(allowance.grant.cause);
        }
        allowance.spent()
    });
    denied.map_or(Ok(()), Err)
}

/// The time that a run has, which may take this long by itself.
pub(super) fn at_most(time: Duration) -> Duration {
    ALLOWANCE.get().map_or(time, |allowance| allowance.left.min(time))
}

/// Charges a finished run with its time.
pub(super) fn charge(used: Duration) {
    changed(|allowance| {
        allowance.left = allowance.left.saturating_sub(used);
        allowance.looked = Instant::now();
        None
    });
}

/// Whether it was the time together that ended a run, and not its own.
pub(super) fn ended() -> Option<Spent> {
    changed(Allowance::spent)
}

fn changed(change: impl FnOnce(&mut Allowance) -> Option<Spent>) -> Option<Spent> {
    let mut allowance = ALLOWANCE.get()?;
    let spent = change(&mut allowance);
    ALLOWANCE.set(Some(allowance));
    spent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_is_gone_and_then_nothing_is_run() {
        let message = Grant::of_message(Duration::from_millis(20));
        let (denied, used) = within(message, || {
            assert_eq!(enter(), Ok(()));
            assert!(at_most(Duration::from_millis(5)) == Duration::from_millis(5));
            charge(Duration::from_millis(18));
            assert!(at_most(Duration::from_millis(5)) <= Duration::from_millis(2));
            charge(Duration::from_millis(2));
            enter()
        });
        assert_eq!((denied, used), (Err(Spent::MessageTime), Duration::from_millis(20)));
        assert_eq!(enter(), Ok(()), "outside there is no limit");
    }

    #[test]
    fn what_only_waits_ends_by_the_clock() {
        let (denied, used) = within(Grant::of_message(Duration::from_millis(20)), || {
            std::thread::sleep(LONGEST);
            enter()
        });
        assert_eq!((denied, used), (Err(Spent::MessageTime), Duration::from_millis(20)));
    }

    #[test]
    fn at_hand_nothing_is_run() {
        assert_eq!(at_hand(|| 7), Some(7));
        assert_eq!(at_hand(|| enter().is_ok()), None);
        let (denied, _) = within(Grant::TENANT_SPENT, enter);
        assert_eq!(denied, Err(Spent::TenantTime));
    }
}
