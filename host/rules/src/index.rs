//! The rules that may hold for a message: a tree over their requirements.
//!
//! A rule is found by the rarest among its neighbours of its necessary requirements (a text of a field, or an amount
//! within bounds). Rules that share one are separated by their other requirements, level by level. Rules without any
//! (only `not`, an expression, nothing at all) are examined for every message.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

use super::{
    intervals::{Interval, Intervals},
    matching::Test,
    symbols::{KnownSymbols, Symbol},
};
use angarium_domain::rule_input::amount::Amount;

/// The number of rules below which examining them is cheaper than separating them.
const FEW: usize = 6;
/// A list of alternatives that is longer is no help in finding a rule.
const MOST_KEYS: usize = 1024;
/// The same below the first level, where each alternative repeats the level.
const MOST_KEYS_BELOW: usize = 8;
/// Entries of the tree for each rule, on average: what lists of alternatives cost is bounded.
const ENTRIES_A_RULE: usize = 64;

/// A property of a message that a rule needs.
#[derive(Debug, Clone, Copy)]
enum Key {
    Text(Symbol),
    Amount(Amount, Amount),
}

/// One of these must be present. All places of the rule in the tree share it.
type Requirement = Rc<[Key]>;

/// A rule and all that it can't hold without.
#[derive(Debug, Clone)]
struct Entry {
    place: u32,
    requirements: Vec<Requirement>,
}

/// Symbols are numbers in sequence, given by the gateway itself: to spread them is enough.
type BySymbol<T> = HashMap<Symbol, T, BuildHasherDefault<Spread>>;

#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        // The golden ratio in 64 bits: neighbours end up far apart, in high bits and low.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// The rules of a tenant by their requirements.
#[derive(Debug, Default)]
pub struct Index {
    always: Vec<u32>,
    by_text: BySymbol<Self>,
    by_amount: Intervals,
}

impl Index {
    /// Builds the index of rules by their positions.
    pub fn new<'a>(rules: impl Iterator<Item = (u32, &'a Test)> + Clone) -> Self {
        let mut census = Census::default();
        rules.clone().for_each(|(_, test)| census.count_test(test));
        let entry = |(place, test)| Entry { place, requirements: requirements(test, &census) };
        let entries: Vec<_> = rules.map(entry).collect();
        let mut room = entries.len() * ENTRIES_A_RULE + MOST_KEYS;
        Self::build(entries, MOST_KEYS, &mut room)
    }

    fn build(entries: Vec<Entry>, most_keys: usize, room: &mut usize) -> Self {
        if entries.len() <= FEW {
            return Self { always: entries.iter().map(|it| it.place).collect(), ..Self::default() };
        }
        let census = Census::of(&entries, most_keys);
        let mut index = Self::default();
        let mut by_text: BySymbol<Vec<Entry>> = HashMap::default();
        let mut intervals = Vec::new();
        for mut entry in entries {
            let Some(rarest) = census.rarest(&entry, most_keys.min(*room)) else {
                index.always.push(entry.place);
                continue;
            };
            let keys = entry.requirements.swap_remove(rarest);
            *room -= keys.len();
            for key in keys.iter() {
                match *key {
                    Key::Text(symbol) => by_text.entry(symbol).or_default().push(entry.clone()),
                    Key::Amount(low, high) => intervals.push(Interval { low, high, place: entry.place }),
                }
            }
        }
        index.by_amount = Intervals::new(intervals);
        let below = by_text.into_iter();
        index.by_text = below.map(|(symbol, it)| (symbol, Self::build(it, MOST_KEYS_BELOW, room))).collect();
        index
    }

    /// The places of all rules that may hold, in order, each once.
    pub fn candidates(&self, facts: &KnownSymbols) -> Vec<u32> {
        let mut found = Vec::with_capacity(32);
        self.collect(facts, &mut found);
        found.sort_unstable();
        found.dedup();
        found
    }

    fn collect(&self, facts: &KnownSymbols, found: &mut Vec<u32>) {
        found.extend_from_slice(&self.always);
        if let Some(amount) = facts.amount {
            self.by_amount.collect(amount, found);
        }
        if !self.by_text.is_empty() {
            for below in facts.all().filter_map(|symbol| self.by_text.get(&symbol)) {
                below.collect(facts, found);
            }
        }
    }
}

/// How many rules ask for what.
#[derive(Debug, Default)]
struct Census {
    texts: BySymbol<usize>,
    amounts: usize,
}

impl Census {
    /// Counts the usable requirements.
    fn of(entries: &[Entry], most_keys: usize) -> Self {
        let mut census = Self::default();
        let usable = entries.iter().flat_map(|it| &it.requirements).filter(|keys| keys.len() <= most_keys);
        for key in usable.flat_map(|keys| keys.iter()) {
            match key {
                Key::Text(symbol) => census.count_text(*symbol),
                Key::Amount(..) => census.amounts += 1,
            }
        }
        census
    }

    fn count_text(&mut self, symbol: Symbol) {
        *self.texts.entry(symbol).or_default() += 1;
    }

    /// Counts all that a test asks for, wherever in it.
    fn count_test(&mut self, test: &Test) {
        match test {
            Test::Always | Test::Not(_) | Test::Custom(_) => {}
            Test::All(parts) | Test::Any(parts) => parts.iter().for_each(|part| self.count_test(part)),
            Test::Is(one_of) => one_of.values.iter().for_each(|symbol| self.count_text(*symbol)),
            Test::Amount { .. } => self.amounts += 1,
        }
    }

    /// Returns the requirement that the fewest other rules share, among those with few enough alternatives.
    fn rarest(&self, entry: &Entry, most_keys: usize) -> Option<usize> {
        let usable = entry.requirements.iter().enumerate().filter(|(_, keys)| keys.len() <= most_keys);
        usable.min_by_key(|(_, keys)| self.company(keys)).map(|(at, _)| at)
    }

    /// Returns the number of rules to examine in the worst case for a message with one of these keys.
    fn company(&self, keys: &[Key]) -> usize {
        let of_key = |key: &Key| match key {
            Key::Text(symbol) => self.texts.get(symbol).copied().unwrap_or_default(),
            // Most bounds are wide, and an amount lies within many.
            Key::Amount(..) => self.amounts / 2 + 1,
        };
        keys.iter().map(of_key).sum()
    }
}

/// Returns the requirements without which a test cannot hold.
fn requirements(test: &Test, census: &Census) -> Vec<Requirement> {
    match test {
        Test::Always | Test::Not(_) | Test::Custom(_) => Vec::new(),
        Test::All(parts) => parts.iter().flat_map(|part| requirements(part, census)).collect(),
        Test::Any(parts) => alternatives(parts, census).into_iter().collect(),
        Test::Is(one_of) => vec![one_of.values.iter().map(|it| Key::Text(*it)).collect()],
        Test::Amount { min, max } => {
            let (lowest, highest) = Amount::ENDS;
            vec![Rc::new([Key::Amount(min.unwrap_or(lowest), max.unwrap_or(highest))])]
        }
    }
}

/// The rarest requirement of each part, where each has one.
fn alternatives(parts: &[Test], census: &Census) -> Option<Requirement> {
    let rarest = |part| requirements(part, census).into_iter().min_by_key(|keys| census.company(keys));
    let keys: Option<Vec<_>> = parts.iter().map(rarest).collect();
    keys.map(|keys| keys.concat().into())
}
