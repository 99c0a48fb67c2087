//! Whether a condition holds of a message, how specific it is, and why or why not.

use jiff::Timestamp;
use smallvec::SmallVec;

use super::{
    expression::{ExpressionFault, ExpressionId, Expressions, Memo},
    symbols::{KnownSymbols, Symbol, Symbols},
    words::Words,
};
use angarium_domain::{
    problem::Problems,
    rule::{AmountCondition, Condition, CustomerCondition, GeographyCondition, Many},
    rule_input::{Field, RuleInput, amount::Amount},
};

/// The specificity of an empty or merely excluding condition.
const HARDLY: f64 = 0.1;
const ONE_BOUND: f64 = 0.4;
const TWO_BOUNDS: f64 = 0.6;
const CUSTOM: f64 = 0.5;
/// Values of a list that an explanation names.
const MOST_NAMED: usize = 5;

/// A condition as it is evaluated.
#[derive(Debug)]
pub enum Test {
    Always,
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Is(OneOf),
    Amount { min: Option<Amount>, max: Option<Amount> },
    Custom(ExpressionId),
}

/// One of these texts of a field.
#[derive(Debug)]
pub struct OneOf {
    pub field: Field,
    /// In order, and in place: they are few, and reading other memory costs more than the comparison.
    pub values: SmallVec<[Symbol; 4]>,
    /// The risk of an industry.
    risk: f64,
}

/// A condition that holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    /// In 0..=1.
    pub specificity: f64,
    /// The geographic level: 0 none, 1 country, 2 region, 3 city, above that one for each character of a postal prefix.
    pub level: u8,
    /// The highest risk weight of an industry that was met, in 0..=1.
    pub risk: f64,
}

impl Match {
    const fn plain(specificity: f64) -> Self {
        Self { specificity, level: 0, risk: 0.0 }
    }

    /// Combines two matches that had to hold together: the remaining uncertainty shrinks with each.
    fn and(self, other: Self) -> Self {
        Self { specificity: 1.0 - (1.0 - self.specificity) * (1.0 - other.specificity), ..self.or(other) }
    }

    /// Both hold, and one would do.
    fn or(self, other: Self) -> Self {
        Self {
            specificity: self.specificity.max(other.specificity),
            level: self.level.max(other.level),
            risk: self.risk.max(other.risk),
        }
    }
}

/// The data on which a condition is evaluated.
#[derive(Debug, Clone, Copy)]
pub struct MatchInput<'a> {
    pub input: &'a RuleInput,
    pub facts: &'a KnownSymbols,
    pub symbols: &'a Symbols,
    pub expressions: &'a dyn Expressions,
    pub now: Timestamp,
    pub memo: &'a Memo,
}

/// Brings conditions into the form in which they are evaluated.
pub struct Compiler<'a> {
    pub symbols: &'a mut Symbols,
    pub expressions: &'a mut dyn Expressions,
    pub problems: &'a mut Problems,
}

impl Compiler<'_> {
    pub fn test(&mut self, condition: &Condition) -> Test {
        match condition {
            Condition::All(parts) => {
                let mut tests = self.parts("all", parts);
                // Cheap tests, and those that exclude most, come before any expression.
                tests.sort_by_key(Test::has_expression);
                Test::All(tests)
            }
            Condition::Any(parts) => Test::Any(self.parts("any", parts)),
            Condition::Not(part) => Test::Not(Box::new(self.within("not", |compiler| compiler.test(part)))),
            Condition::Amount(amount) => self.amount(amount),
            Condition::Customer(CustomerCondition { id, segment, kind }) => {
                self.each_of(&[(Field::Customer, id), (Field::Segment, segment), (Field::Type, kind)])
            }
            Condition::Industry(industry) => {
                let mut one_of = self.one_of(Field::Industry, &industry.is);
                one_of.risk = industry.risk_weight;
                Test::Is(one_of)
            }
            Condition::Geography(GeographyCondition { country, region, city, postal_prefix }) => self.each_of(&[
                (Field::Country, country),
                (Field::Region, region),
                (Field::City, city),
                (Field::Postal, postal_prefix),
            ]),
            Condition::Custom(custom) => self.custom(&custom.expression),
        }
    }

    pub fn within<T>(&mut self, name: &str, work: impl FnOnce(&mut Compiler<'_>) -> T) -> T {
        let Self { symbols, expressions, problems } = self;
        problems.within(name, |problems| work(&mut Compiler { symbols, expressions: &mut **expressions, problems }))
    }

    fn parts(&mut self, name: &str, parts: &[Condition]) -> Vec<Test> {
        self.within(name, |compiler| {
            let numbered = parts.iter().enumerate();
            numbered.map(|(number, part)| compiler.within(&number.to_string(), |it| it.test(part))).collect()
        })
    }

    fn amount(&mut self, amount: &AmountCondition) -> Test {
        let bounds =
            (amount.min.is_some() || amount.max.is_some()).then_some(Test::Amount { min: amount.min, max: amount.max });
        match (self.each_of(&[(Field::Currency, &amount.currency)]), bounds) {
            (Test::All(mut tests), Some(bounds)) => {
                tests.push(bounds);
                Test::All(tests)
            }
            (currency, _) => currency,
        }
    }

    fn custom(&mut self, expression: &str) -> Test {
        let compiled = self.expressions.compile(expression);
        compiled.map_or_else(
            |fault| {
                let detail = format!("must compile: {}", fault.reason);
                let report = |it: &mut Problems| it.check(false, "expression", "does_not_compile", detail);
                self.problems.within("custom", report);
                Test::Always
            },
            Test::Custom,
        )
    }

    fn each_of(&mut self, fields: &[(Field, &Many<String>)]) -> Test {
        let given = fields.iter().filter(|(_, texts)| !texts.is_empty());
        Test::All(given.map(|(field, texts)| Test::Is(self.one_of(*field, texts))).collect())
    }

    fn one_of(&mut self, field: Field, texts: &Many<String>) -> OneOf {
        let folded = texts.iter().filter_map(|text| field.folded(text));
        let mut values: SmallVec<_> = folded.map(|text| self.symbols.intern(field, &text)).collect();
        values.sort_unstable();
        values.dedup();
        OneOf { field, values, risk: 0.0 }
    }
}

impl Test {
    /// Whether an expression may have to be run to tell whether it holds.
    pub fn has_expression(&self) -> bool {
        match self {
            Self::Custom(_) => true,
            Self::All(parts) | Self::Any(parts) => parts.iter().any(Self::has_expression),
            Self::Not(part) => part.has_expression(),
            Self::Always | Self::Is(_) | Self::Amount { .. } => false,
        }
    }

    /// The match, if it holds, with words for why or why not.
    ///
    /// # Errors
    /// When an expression returns no boolean: then the whole is undecided.
    pub fn evaluate<W: Words>(&self, case: &MatchInput<'_>) -> Result<(Option<Match>, W), ExpressionFault> {
        match self {
            Self::Always => Ok((Some(Match::plain(HARDLY)), W::say(|| "it holds for every message".to_owned()))),
            Self::All(parts) => all(parts, case),
            Self::Any(parts) => any(parts, case),
            Self::Not(part) => not(part, case),
            Self::Is(one_of) => Ok(one_of.evaluate(case)),
            Self::Amount { min, max } => Ok(amount(*min, *max, case)),
            Self::Custom(expression) => {
                let holds = case.expressions.holds(*expression, case.input, case.now, case.memo)?;
                let words = if holds { "the expression holds" } else { "the expression does not hold" };
                Ok((holds.then_some(Match::plain(CUSTOM)), W::say(|| words.to_owned())))
            }
        }
    }
}

/// A part that does not hold decides, whatever is unknown about the others. Whether a rule is examined at all therefore
/// never changes its result.
fn all<W: Words>(parts: &[Test], case: &MatchInput<'_>) -> Result<(Option<Match>, W), ExpressionFault> {
    let mut whole = Ok(Match::plain(0.0));
    let mut reasons = Vec::with_capacity(parts.len());
    for part in parts {
        match part.evaluate(case) {
            Ok((Some(found), words)) => {
                whole = whole.map(|whole| whole.and(found));
                reasons.push(words);
            }
            Ok((None, words)) => return Ok((None, words)),
            Err(fault) => whole = whole.and(Err(fault)),
        }
    }
    whole.map(|whole| (Some(whole), W::join(reasons, ", ")))
}

/// A part that holds decides, whatever is unknown about the others.
fn any<W: Words>(parts: &[Test], case: &MatchInput<'_>) -> Result<(Option<Match>, W), ExpressionFault> {
    let (mut whole, mut fault): (Option<Match>, _) = (None, None);
    let (mut held, mut missed) = (Vec::new(), Vec::new());
    for part in parts {
        match part.evaluate(case) {
            Ok((Some(found), words)) => {
                whole = Some(whole.map_or(found, |whole| whole.or(found)));
                held.push(words);
            }
            Ok((None, words)) => missed.push(words),
            Err(error) => fault = Some(error),
        }
    }
    match (whole, fault) {
        (Some(whole), _) => Ok((Some(whole), W::join(held, ", "))),
        (None, Some(fault)) => Err(fault),
        (None, None) => Ok((None, W::join(missed, "; ").wrap(|reasons| format!("none holds: {reasons}")))),
    }
}

fn not<W: Words>(part: &Test, case: &MatchInput<'_>) -> Result<(Option<Match>, W), ExpressionFault> {
    let (found, words) = part.evaluate::<W>(case)?;
    Ok(match found {
        Some(_) => (None, words.wrap(|reason| format!("what must not hold does: {reason}"))),
        None => (
            Some(Match::plain(HARDLY)),
            words.wrap(|reason| format!("excluded condition did not match, as required: {reason}")),
        ),
    })
}

impl OneOf {
    fn evaluate<W: Words>(&self, case: &MatchInput<'_>) -> (Option<Match>, W) {
        let held = case.facts.of(self.field).rev().find(|symbol| self.values.binary_search(symbol).is_ok());
        let Some(symbol) = held else { return (None, W::say(|| self.miss(case))) };
        let text = case.symbols.text(symbol);
        let length = if self.field == Field::Postal { text.chars().count() } else { 0 };
        let found = Match {
            specificity: specificity(self.field, length, self.risk),
            level: level(self.field, length),
            risk: self.risk,
        };
        (Some(found), W::say(|| self.hit(text)))
    }

    fn hit(&self, text: &str) -> String {
        let name = self.field.as_str();
        match self.field {
            Field::Postal => format!("{name} begins with {text}"),
            Field::Industry if self.risk > 0.0 => format!("{name} is {text} of risk {}", self.risk),
            _ => format!("{name} is {text}"),
        }
    }

    fn miss(&self, case: &MatchInput<'_>) -> String {
        let name = self.field.as_str();
        let said: Vec<_> = case.input.texts(self.field).collect();
        if said.is_empty() {
            return format!("the message says no {name}");
        }
        let (said, wanted) = (said.join(" and "), self.wanted(case.symbols));
        match self.field {
            Field::Postal => format!("{name} {said} does not begin with {wanted}"),
            _ => format!("{name} {said} is not {wanted}"),
        }
    }

    fn wanted(&self, symbols: &Symbols) -> String {
        let named: Vec<_> = self.values.iter().take(MOST_NAMED).map(|it| symbols.text(*it)).collect();
        let more = self.values.len().saturating_sub(MOST_NAMED);
        let more = if more == 0 { String::new() } else { format!(" or {more} more") };
        named.join(" or ") + more.as_str()
    }
}

/// How specific a text of a field is; `docs/rules.md` has the table.
fn specificity(field: Field, length: usize, risk: f64) -> f64 {
    match field {
        Field::Customer => 0.9,
        Field::Segment | Field::Region => 0.5,
        Field::Type | Field::Country => 0.4,
        Field::Industry => 0.4 + 0.4 * risk,
        Field::City => 0.6,
        Field::Postal => 0.5 + 0.04 * length.min(10) as f64,
        Field::Currency => 0.2,
    }
}

fn level(field: Field, length: usize) -> u8 {
    match field {
        Field::Country => 1,
        Field::Region => 2,
        Field::City => 3,
        Field::Postal => 3 + length.min(10) as u8,
        Field::Customer | Field::Segment | Field::Type | Field::Industry | Field::Currency => 0,
    }
}

/// A level in words.
pub fn level_name(level: u8) -> &'static str {
    match level {
        0 => "no place",
        1 => "country",
        2 => "region",
        3 => "city",
        _ => "postal prefix",
    }
}

fn amount<W: Words>(min: Option<Amount>, max: Option<Amount>, case: &MatchInput<'_>) -> (Option<Match>, W) {
    let Some(amount) = case.facts.amount else {
        return (None, W::say(|| "the message says no amount".to_owned()));
    };
    let given = || {
        let currency = case.input.texts(Field::Currency).next();
        currency.map_or_else(|| format!("amount {amount}"), |currency| format!("amount {amount} {currency}"))
    };
    match (min, max) {
        (Some(min), _) if amount < min => (None, W::say(|| format!("{} is under the minimum {min}", given()))),
        (_, Some(max)) if amount > max => (None, W::say(|| format!("{} is over the maximum {max}", given()))),
        (Some(min), Some(max)) => {
            (Some(Match::plain(TWO_BOUNDS)), W::say(|| format!("{} is from {min} to {max}", given())))
        }
        (Some(min), None) => {
            (Some(Match::plain(ONE_BOUND)), W::say(|| format!("{} is not under the minimum {min}", given())))
        }
        (None, Some(max)) => {
            (Some(Match::plain(ONE_BOUND)), W::say(|| format!("{} is not over the maximum {max}", given())))
        }
        (None, None) => (Some(Match::plain(HARDLY)), W::say(given)),
    }
}
