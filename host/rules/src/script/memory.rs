//! Remembered answers of a script: with the same facts, it would answer the same.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::Serialize;

/// Bytes of the facts, and of an answer's JSON, that are kept at most.
const MOST_BYTES: usize = 2 * 1024;
/// The bytes of all answers: beyond that the memory starts over.
const MOST_TOGETHER: usize = 128 * 1024;
/// The number of look-ups after which their benefit is checked.
const WINDOW: u32 = 1024;
/// The look-ups are kept if one in this number succeeds.
const ONE_OF: u32 = 4;
/// Runs until it is tried again.
const PAUSE: u32 = 16 * 1024;

/// The answers of one hook.
pub(super) struct Memory<T> {
    known: Mutex<Known<T>>,
    /// Runs for which nothing is looked up.
    idle: AtomicU32,
}

struct Known<T> {
    answers: HashMap<Box<[u8]>, T, ahash::RandomState>,
    bytes: usize,
    asked: u32,
    found: u32,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        let known = Known { answers: HashMap::default(), bytes: 0, asked: 0, found: 0 };
        Self { known: Mutex::new(known), idle: AtomicU32::new(0) }
    }
}

impl<T: Clone + Serialize> Memory<T> {
    /// Whether it is worth a look in this run: not for a script that hardly ever gets the same facts twice, until it was
    /// asked so often that it is tried again.
    pub fn is_worth_it(&self) -> bool {
        let less = |idle: u32| idle.checked_sub(1);
        self.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_err()
    }

    /// Returns the answer to these facts.
    pub fn recall(&self, facts: &[u8]) -> Option<T> {
        let mut known = self.known();
        if known.asked == WINDOW {
            if known.found < WINDOW / ONE_OF {
                self.idle.store(PAUSE, Ordering::Relaxed);
                known.forget();
            }
            (known.asked, known.found) = (0, 0);
        }
        let answer = known.answers.get(facts).cloned();
        known.asked += 1;
        known.found += u32::from(answer.is_some());
        answer
    }

    /// Remembers an answer that depends on nothing but the facts.
    pub fn keep(&self, facts: Vec<u8>, answer: &T) {
        // Plain data always has a JSON form.
        let bytes = facts.len() + serde_json::to_vec(answer).map_or(usize::MAX / 2, |it| it.len());
        if bytes > MOST_BYTES {
            return;
        }
        let mut known = self.known();
        if known.bytes + bytes > MOST_TOGETHER {
            known.forget();
        }
        if known.answers.insert(facts.into(), answer.clone()).is_none() {
            known.bytes += bytes;
        }
    }

    /// How many answers there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.known().answers.len()
    }

    fn known(&self) -> MutexGuard<'_, Known<T>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Known<T> {
    fn forget(&mut self) {
        self.answers.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(number: u32) -> Vec<u8> {
        number.to_le_bytes().to_vec()
    }

    #[test]
    fn what_was_kept_is_recalled() {
        let memory = Memory::default();
        assert_eq!(memory.recall(&facts(1)), None);
        memory.keep(facts(1), &"one".to_owned());
        assert_eq!(memory.recall(&facts(1)).as_deref(), Some("one"));
        assert_eq!(memory.recall(&facts(2)), None);
        memory.keep(facts(3), &"long".repeat(MOST_BYTES));
        assert_eq!(memory.recall(&facts(3)), None);
    }

    #[test]
    fn what_never_comes_again_is_not_looked_for() {
        let memory = Memory::default();
        let mut looked = 0;
        for number in 0..WINDOW + 1 + PAUSE {
            if memory.is_worth_it() {
                looked += 1;
                assert_eq!(memory.recall(&facts(number)), None);
                memory.keep(facts(number), &number);
            }
        }
        assert_eq!(looked, WINDOW + 1);
        assert!(memory.is_worth_it(), "after a while it is tried again");
    }

    #[test]
    fn it_takes_no_more_than_it_may() {
        let memory = Memory::default();
        for number in 0..10_000 {
            memory.keep(facts(number), &"x".repeat(100));
        }
        let known = memory.known();
        assert!(known.bytes <= MOST_TOGETHER && known.answers.len() > 100, "{}", known.bytes);
    }
}
