//! What one run of a script may use: operations, and time. It belongs to the thread while a script
//! runs on it, so that everything below sees the same one: the interpreter at each operation, and
//! the functions that call a script's closures or loop themselves. What is used up stays used up:
//! no callback that swallows the error, and no `catch`, gets any further.
//!
//! A busy machine makes no script fail: between two looks at the clock a run is charged with no more than it can have
//! used itself. The processor's own account of a thread would not do, since a virtual machine that has to wait counts
//! that as the thread's.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rhai::{Dynamic, EvalAltResult, Position};

use super::{super::allowance, Given, Limit};

/// The clock is looked at each so many operations.
const LOOK_EACH: u64 = 8;

/// What a run is charged with at most between two looks: more than so many operations take, or one function that is not
/// interrupted, at what the limits on sizes leave it.
const MOST_BETWEEN: Duration = Duration::from_micros(500);

/// What a script may log in a run, and how long a line of it is.
const MAX_LINES: u32 = 8;
const MAX_LINE: usize = 256;

thread_local! {
    static BUDGET: RefCell<Option<Budget>> = const { RefCell::new(None) };
}

struct Budget {
    /// What is left of the time.
    left: Duration,
    looked: Instant,
    operations: u64,
    max_operations: u64,
    lines: u32,
    /// Whether something depended on what is given, or was logged.
    asked: bool,
    spent: Option<Limit>,
    given: Given,
}

impl Budget {
    fn step(&mut self) -> Option<Limit> {
        self.operations += 1;
        if self.spent.is_none() {
            if self.operations > self.max_operations {
                self.spent = Some(Limit::Operations);
            } else if self.operations.is_multiple_of(LOOK_EACH) {
                return self.look();
            }
        }
        self.spent
    }

    fn look(&mut self) -> Option<Limit> {
        if self.spent.is_none() {
            let now = Instant::now();
            // The thread may have had to wait for others.
            let used = now.duration_since(self.looked).min(MOST_BETWEEN);
            self.looked = now;
            self.left = self.left.saturating_sub(used);
            if self.left.is_zero() {
                self.spent = Some(Limit::Time);
            }
        }
        self.spent
    }
}

/// Runs `work` with a budget of its own; says beside what it came to whether the budget was used up.
pub(super) fn within<T>(operations: u64, time: Duration, given: Given, work: impl FnOnce() -> T) -> (T, Option<Limit>) {
    struct Restore(Option<Budget>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let before = self.0.take();
            BUDGET.with_borrow_mut(|budget| *budget = before);
        }
    }
    let fresh = Budget {
        left: time,
        looked: Instant::now(),
        operations: 0,
        max_operations: operations,
        lines: 0,
        asked: false,
        spent: None,
        given,
    };
    let _restore = Restore(BUDGET.with_borrow_mut(|budget| budget.replace(fresh)));
    let result = work();
    let spent = BUDGET.with_borrow_mut(|budget| budget.as_mut().and_then(Budget::look));
    let left = BUDGET.with_borrow(|budget| budget.as_ref().map_or(Duration::ZERO, |it| it.left));
    allowance::charge(time.saturating_sub(left));
    (result, spent)
}

/// Called by the interpreter at each operation: what it answers ends the run.
pub(super) fn step() -> Option<Dynamic> {
    let spent = BUDGET.with_borrow_mut(|budget| budget.as_mut().and_then(Budget::step));
    spent.map(|limit| limit.as_str().into())
}

/// Called by functions that loop by themselves, before each turn.
pub(super) fn check() -> Result<(), Box<EvalAltResult>> {
    match BUDGET.with_borrow_mut(|budget| budget.as_mut().and_then(Budget::look)) {
        None => Ok(()),
        Some(limit) => Err(EvalAltResult::ErrorTerminated(limit.as_str().into(), Position::NONE).into()),
    }
}

/// The time that the caller gave; the epoch outside of a run.
pub(super) fn now() -> Timestamp {
    given().now
}

/// The chance that the caller gave, in 0..1.
pub(super) fn chance() -> f64 {
    given().chance
}

fn given() -> Given {
    let asked = |budget: &mut Budget| {
        budget.asked = true;
        budget.given
    };
    BUDGET.with_borrow_mut(|budget| budget.as_mut().map_or_else(Given::default, asked))
}

/// Whether this run asked for the time or for chance, or logged something: another one would not be the same.
pub(super) fn asked() -> bool {
    BUDGET.with_borrow(|budget| budget.as_ref().is_some_and(|it| it.asked))
}

/// What a script prints goes to the log: a few lines of bounded length a run.
pub(super) fn log(text: &str) {
    let may = BUDGET.with_borrow_mut(|budget| {
        budget.as_mut().is_some_and(|it| {
            it.asked = true;
            it.lines += 1;
            it.lines <= MAX_LINES
        })
    });
    if may {
        let line: String = text.chars().take(MAX_LINE).collect();
        tracing::debug!(target: "angarium::rules", line, "a script says");
    }
}
