//! The budget of one run of a script: operations, time and memory. It belongs to the thread while a script runs on it,
//! so that all parts see the same one: the interpreter at each operation, and the functions that call a script's
//! closures or loop themselves. A used-up budget stays used up: no callback that ignores the error, and no `catch`,
//! continues.
//!
//! **Memory** is measured, not estimated from kinds of values: it is the thread's growth since the run began
//! (`allocator::balance`). It is checked before each operation, so a run exceeds the limit by the allocation of one
//! operation, which the limits on sizes bound.
//!
//! **Time.** A busy machine makes no script fail. A run is charged with the time between two looks at the clock, but
//! with at most [`MOST_BETWEEN`] of it, since the thread may have had to wait for others. Operations that really take
//! longer are charged by the processor's account of the thread: with a quarter of it at least ([`STOLEN`]), because a
//! virtual machine that has to wait counts that as the thread's. To ask for that account is slow, so it begins with the
//! first gap that is too long. A run that does not work at all, such as one that waits for a variable that its own
//! closure holds, ends after [`allowance::LONGEST`] by the clock.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use cpu_time::ThreadTime;
use jiff::Timestamp;
use rhai::{Dynamic, EvalAltResult, Position, Scope};

use super::{
    super::allowance,
    Given, ScriptLimit, limits,
    shared::{Shared, newly_shared},
};
use crate::allocator;

/// The number of operations between two looks at the clock.
const LOOK_EACH: u64 = 8;

/// The most that a run is charged between two looks, as long as the processor's account says nothing else: more than
/// this number of operations takes.
const MOST_BETWEEN: Duration = Duration::from_micros(500);

/// The factor by which the processor's account of a thread may exceed its real time.
const STOLEN: u32 = 4;

/// The log lines of a run, and their length.
const MAX_LINES: u32 = 8;
const MAX_LINE: usize = 256;

thread_local! {
    static BUDGET: RefCell<Option<Budget>> = const { RefCell::new(None) };
}

struct Budget {
    time: Duration,
    /// The charged part of it.
    used: Duration,
    began: Instant,
    looked: Instant,
    /// The processor's account of the thread after the first gap that was too long.
    processor: Option<ThreadTime>,
    /// The thread's balance of memory as the run began.
    balance: isize,
    shared: Shared,
    operations: u64,
    max_operations: u64,
    lines: u32,
    /// Whether the run used a given value, or logged something.
    asked: bool,
    spent: Option<ScriptLimit>,
    given: Given,
}

impl Budget {
    fn step(&mut self) -> Option<ScriptLimit> {
        self.operations += 1;
        if self.spent.is_none() {
            if self.operations > self.max_operations {
                self.spent = Some(ScriptLimit::Operations);
            } else if self.operations.is_multiple_of(LOOK_EACH) {
                return self.look();
            } else {
                self.measure();
            }
        }
        self.spent
    }

    fn look(&mut self) -> Option<ScriptLimit> {
        self.measure();
        if self.spent.is_none() {
            let now = Instant::now();
            let passed = now.duration_since(self.looked);
            self.looked = now;
            self.used += passed.min(MOST_BETWEEN);
            if passed > MOST_BETWEEN {
                let worked = self.processor.and_then(|it| it.try_elapsed().ok()).unwrap_or_default();
                self.processor = self.processor.or_else(|| ThreadTime::try_now().ok());
                self.used = self.used.max(worked / STOLEN);
            }
            if now.duration_since(self.began) >= allowance::LONGEST {
                self.used = self.used.max(now.duration_since(self.began).min(self.time));
            }
            if self.used >= self.time {
                self.spent = Some(ScriptLimit::Time);
            }
        }
        self.spent
    }

    fn measure(&mut self) {
        if self.spent.is_none() && allocator::balance() - self.balance > limits::MEMORY as isize {
            self.spent = Some(ScriptLimit::Memory);
        }
    }
}

/// Runs `work` with a budget of its own; also returns whether the budget was used up. Variables shared by closures of
/// the run are emptied at its end: no value of the language leaves `work`.
pub(super) fn within<T>(
    operations: u64,
    time: Duration,
    given: Given,
    work: impl FnOnce() -> T,
) -> (T, Option<ScriptLimit>) {
    struct Restore(Option<Budget>);
    impl Drop for Restore {
        fn drop(&mut self) {
            // The run's leftovers are dropped here, after the cell is free again.
            drop(BUDGET.replace(self.0.take()));
        }
    }
    let now = Instant::now();
    let fresh = Budget {
        time,
        used: Duration::ZERO,
        began: now,
        looked: now,
        processor: None,
        balance: allocator::balance(),
        shared: Shared::default(),
        operations: 0,
        max_operations: operations,
        lines: 0,
        asked: false,
        spent: None,
        given,
    };
    let _restore = Restore(BUDGET.replace(Some(fresh)));
    let result = work();
    let spent = BUDGET.with_borrow_mut(|budget| budget.as_mut().and_then(Budget::look));
    allowance::charge(BUDGET.with_borrow(|budget| budget.as_ref().map_or(time, |it| it.used)));
    (result, spent)
}

/// Called by the interpreter at each operation: a returned value ends the run.
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

/// Whether the run may go on, for those that make a value of many members: the clock is not looked at.
pub(super) fn may_go_on() -> bool {
    BUDGET.with_borrow_mut(|budget| {
        budget.as_mut().is_none_or(|it| {
            it.measure();
            it.spent.is_none()
        })
    })
}

/// Ends the run by a limit that a function met which can't fail.
pub(super) fn exceed(limit: ScriptLimit) {
    BUDGET.with_borrow_mut(|budget| {
        if let Some(budget) = budget {
            budget.spent.get_or_insert(limit);
        }
    });
}

/// Keeps hold of a variable until the end of the run, if closures share it.
pub(super) fn see(scope: &mut Scope, name: &str) {
    let Some(reference) = newly_shared(scope, name) else { return };
    BUDGET.with_borrow_mut(|budget| {
        if let Some(budget) = budget {
            budget.shared.0.push(reference);
        }
    });
}

/// Whether closures have shared variables in this run.
pub(super) fn shares() -> bool {
    BUDGET.with_borrow(|budget| budget.as_ref().is_some_and(|it| !it.shared.0.is_empty()))
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

/// Writes a script's prints to the log: a few lines of bounded length a run.
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
