//! The texts that a tenant's conditions name, as numbers: a message's texts are looked up once, and
//! everything after that compares numbers.

use std::collections::HashMap;

use ahash::RandomState;

use angarium_domain::rule_input::{Field, POSTAL_LENGTH, RuleInput, amount::Amount};

/// A text of a field that some condition names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(u32);

/// All of them.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Every message's texts are looked up, a postal code's beginnings one by one: so the hash is a quick one.
    by_text: [HashMap<Box<str>, Symbol, RandomState>; Field::ALL.len()],
    texts: Vec<Box<str>>,
}

impl Symbols {
    /// Returns the symbol of a folded text, a new one if it has none yet.
    pub fn intern(&mut self, field: Field, text: &str) -> Symbol {
        let Self { by_text, texts } = self;
        let known = &mut by_text[field as usize];
        if let Some(symbol) = known.get(text) {
            return *symbol;
        }
        // A rule set of four thousand million texts does not fit into memory.
        let symbol = Symbol(u32::try_from(texts.len()).unwrap_or(u32::MAX));
        known.insert(text.into(), symbol);
        texts.push(text.into());
        symbol
    }

    /// Returns its text.
    pub fn text(&self, symbol: Symbol) -> &str {
        self.texts.get(symbol.0 as usize).map_or("", |text| &**text)
    }

    /// Returns the facts of a message that the conditions can test.
    pub fn facts(&self, input: &RuleInput) -> KnownSymbols {
        let mut symbols = Vec::with_capacity(16);
        for (field, text) in input.known() {
            let known = &self.by_text[field as usize];
            let found = prefixes(field, text).filter_map(|text| known.get(text));
            symbols.extend(found.map(|symbol| (field, *symbol)));
        }
        KnownSymbols { symbols, amount: input.amount() }
    }
}

/// Returns the forms in which a text is looked up: a postal code by all of its beginnings, shortest first.
fn prefixes(field: Field, text: &str) -> impl Iterator<Item = &str> {
    let is_postal = field == Field::Postal;
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8()).take(if is_postal { POSTAL_LENGTH } else { 0 });
    ends.map(move |end| &text[..end]).chain((!is_postal).then_some(text))
}

/// The facts of a message that the conditions of a rule set can test.
#[derive(Debug)]
pub struct KnownSymbols {
    /// In the order of the fields; of a postal code the shortest prefix first.
    symbols: Vec<(Field, Symbol)>,
    pub amount: Option<Amount>,
}

impl KnownSymbols {
    pub fn all(&self) -> impl Iterator<Item = Symbol> {
        self.symbols.iter().map(|(_, symbol)| *symbol)
    }

    /// The most specific last.
    pub fn of(&self, field: Field) -> impl DoubleEndedIterator<Item = Symbol> {
        self.symbols.iter().filter(move |(it, _)| *it == field).map(|(_, symbol)| *symbol)
    }
}
