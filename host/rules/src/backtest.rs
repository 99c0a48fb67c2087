//! The results that sent messages would have had with a variant: a tally of many messages, one after another, in
//! bounded memory.

use std::{cmp::Reverse, collections::BTreeMap};

use serde_json::json;

use super::{
    experiment::{Difference, Said, chance_of, difference, said_of},
    rulebook::{MessageJudgement, Rulebook},
    ruling::Ruling,
    script::Given,
};
use angarium_domain::{
    country::Country,
    ids::MessageId,
    message::Message,
    provider::Cost,
    rule_input::{MessageOutline, RuleInput},
};

/// Examples that a report has.
const MOST_EXAMPLES: usize = 10;
/// Ways from one place to another that a report lists.
const MOST_MOVES: usize = 100;

/// The first destination of a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BacktestPlace {
    pub channel: String,
    /// Its uid, or else its id; `None` if no connection can be asked.
    pub connection: Option<String>,
    pub provider: Option<String>,
}

/// The fate of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct BacktestOutcome {
    pub said: Said,
    /// `None` if it is refused.
    pub place: Option<BacktestPlace>,
    pub held: bool,
    /// Whether a script or an expression failed.
    pub failed: bool,
}

impl BacktestOutcome {
    /// Returns the outcome of a judgement, and the message's destination.
    #[must_use]
    pub fn of(message: &Message, judgement: &MessageJudgement, place: BacktestPlace) -> Self {
        let mut said = said_of(message, judgement);
        // Without a choice of channel or connection there is nothing to report.
        said.remove("channels");
        said.insert("channel", json!(place.channel));
        said.extend(place.connection.as_ref().map(|it| ("connection", json!(it))));
        let faults = judgement.ruling.decision.as_ref().is_some_and(|it| !it.faults.is_empty());
        Self {
            said,
            place: judgement.refused.is_none().then_some(place),
            held: judgement.refused.is_none() && judgement.ruling.original.send_at.is_some(),
            failed: faults || !judgement.failures.is_empty(),
        }
    }

    fn connection(&self) -> Option<&String> {
        self.place.as_ref()?.connection.as_ref()
    }
}

/// One connection that was really asked.
#[derive(Debug, Clone, PartialEq)]
pub struct AskedConnection {
    pub connection: String,
    /// Whether the delivery ended well through it; `None` while that is open.
    pub went_well: Option<bool>,
    pub cost: Option<Cost>,
}

/// A message that was played through again.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub message: MessageId,
    pub country: Option<Country>,
    /// The result with the live version.
    pub before: BacktestOutcome,
    /// With the variant.
    pub after: BacktestOutcome,
    pub asked: Vec<AskedConnection>,
}

/// A message that would have become another.
#[derive(Debug, Clone)]
pub struct Example {
    pub message: MessageId,
    pub difference: Difference,
}

/// The record of a connection.
#[derive(Debug, Clone, Default)]
struct Record {
    ended: u64,
    well: u64,
    /// By currency: how much, of how many.
    costs: BTreeMap<String, (i128, u64)>,
}

impl Record {
    fn add(&mut self, asked: &AskedConnection) {
        if let Some(well) = asked.went_well {
            self.ended += 1;
            self.well += u64::from(well);
        }
        if let Some(Cost { micros, currency }) = &asked.cost {
            let (sum, count) = self.costs.entry(currency.clone()).or_default();
            (*sum, *count) = (*sum + i128::from(*micros), *count + 1);
        }
    }

    /// In millionths, in the currency that it was billed in most often.
    fn mean_cost(&self) -> Option<(&str, f64)> {
        let (currency, (sum, count)) = self.costs.iter().max_by_key(|(_, (_, count))| *count)?;
        Some((currency, *sum as f64 / *count as f64))
    }

    fn rate(&self) -> Option<f64> {
        (self.ended > 0).then(|| self.well as f64 / self.ended as f64)
    }
}

type Shift = (Option<String>, Option<String>, Option<Country>);

/// Messages that were played through, summed up.
#[derive(Debug, Default)]
pub struct Tally {
    looked_at: u64,
    purged: u64,
    changed: u64,
    failed: u64,
    refused: Flips,
    held: Flips,
    moves: BTreeMap<(Option<BacktestPlace>, Option<BacktestPlace>), u64>,
    shifts: BTreeMap<Shift, u64>,
    /// By connection and country; without a country: of all of them.
    records: BTreeMap<(String, Option<Country>), Record>,
    examples: Vec<Example>,
}

/// How often something would be so that is not, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flips {
    pub newly: u64,
    pub no_longer: u64,
}

impl Flips {
    fn add(&mut self, before: bool, after: bool) {
        self.newly += u64::from(!before && after);
        self.no_longer += u64::from(before && !after);
    }
}

impl Tally {
    /// Counts a message whose content is purged: its decision is unknown.
    pub const fn purged(&mut self) {
        self.looked_at += 1;
        self.purged += 1;
    }

    /// Adds one more message.
    pub fn add(&mut self, replayed: Replayed) {
        let Replayed { message, country, before, after, asked } = replayed;
        self.looked_at += 1;
        for it in &asked {
            for place in [None, country].into_iter().skip(usize::from(country.is_none())) {
                self.records.entry((it.connection.clone(), place)).or_default().add(it);
            }
        }
        self.failed += u64::from(after.failed);
        let Some(difference) = difference(&before.said, &after.said) else { return };
        self.changed += 1;
        self.refused.add(before.place.is_none(), after.place.is_none());
        self.held.add(before.held, after.held);
        if before.place != after.place {
            let shift = (before.connection().cloned(), after.connection().cloned(), country);
            *self.shifts.entry(shift).or_default() += 1;
            *self.moves.entry((before.place, after.place)).or_default() += 1;
        }
        if self.examples.len() < MOST_EXAMPLES {
            self.examples.push(Example { message, difference });
        }
    }

    /// Returns the report.
    #[must_use]
    pub fn report(self) -> Report {
        let (costs, cost_unknown) = self.costs();
        let delivery = self.delivery();
        let mut moves: Vec<_> = self.moves.into_iter().map(|((from, to), count)| Move { from, to, count }).collect();
        moves.sort_by_key(|it| Reverse(it.count));
        moves.truncate(MOST_MOVES);
        Report {
            looked_at: self.looked_at,
            purged: self.purged,
            changed: self.changed,
            failed: self.failed,
            refused: self.refused,
            held: self.held,
            moves,
            costs,
            cost_unknown,
            delivery,
            examples: self.examples,
        }
    }

    /// Returns the costs of the messages that go elsewhere, before and after; and the number of those with unknown
    /// cost.
    fn costs(&self) -> (Vec<CostChange>, u64) {
        let (mut changes, mut unknown) = (BTreeMap::<String, CostChange>::new(), 0);
        for ((from, to, country), count) in &self.shifts {
            let (from, to) = (self.cost(from.as_ref(), *country), self.cost(to.as_ref(), *country));
            let (Some(from), Some(to)) = (from, to) else {
                unknown += count;
                continue;
            };
            for (side, cost) in [(0, from), (1, to)] {
                let Some((currency, micros)) = cost else { continue };
                let change = changes.entry(currency.to_owned()).or_insert_with(|| CostChange::new(currency));
                let total = micros * *count as f64 / 1e6;
                *(if side == 0 { &mut change.before } else { &mut change.after }) += total;
            }
        }
        (changes.into_values().collect(), unknown)
    }

    /// `None` if it is unknown; zero if no connection is asked.
    fn cost(&self, connection: Option<&String>, country: Option<Country>) -> Option<Option<(&str, f64)>> {
        let Some(connection) = connection else { return Some(None) };
        let there = self.record(connection, country).and_then(Record::mean_cost);
        there.or_else(|| self.record(connection, None)?.mean_cost()).map(Some)
    }

    fn record(&self, connection: &str, country: Option<Country>) -> Option<&Record> {
        self.records.get(&(connection.to_owned(), country))
    }

    /// How the connections have fared that are asked before and after, over the messages that go elsewhere.
    fn delivery(&self) -> DeliveryChange {
        let mut change = DeliveryChange::default();
        let (mut before, mut after) = (0.0, 0.0);
        for ((from, to, _), count) in &self.shifts {
            // A refused message has no delivery.
            let (Some(from), Some(to)) = (from, to) else { continue };
            let rate = |connection: &String| self.record(connection, None).and_then(Record::rate);
            match rate(from).zip(rate(to)) {
                None => change.unknown += count,
                Some((from, to)) => {
                    change.messages += count;
                    before += from * *count as f64;
                    after += to * *count as f64;
                }
            }
        }
        if change.messages > 0 {
            change.rates = Some((before / change.messages as f64, after / change.messages as f64));
        }
        change
    }
}

/// How many go from one place to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// `None`: it is refused.
    pub from: Option<BacktestPlace>,
    pub to: Option<BacktestPlace>,
    pub count: u64,
}

/// The cost of messages that go elsewhere, in one currency.
#[derive(Debug, Clone, PartialEq)]
pub struct CostChange {
    pub currency: String,
    pub before: f64,
    pub after: f64,
}

impl CostChange {
    fn new(currency: &str) -> Self {
        Self { currency: currency.to_owned(), before: 0.0, after: 0.0 }
    }
}

/// How often messages that go elsewhere arrive.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DeliveryChange {
    /// Before and after, in 0..=1; `None` if nothing is known.
    pub rates: Option<(f64, f64)>,
    /// The number of messages.
    pub messages: u64,
    /// The number of further messages without a record.
    pub unknown: u64,
}

/// The result of a backtest.
#[derive(Debug, Clone)]
pub struct Report {
    pub looked_at: u64,
    pub purged: u64,
    pub changed: u64,
    /// Messages at which a script or an expression would fail.
    pub failed: u64,
    pub refused: Flips,
    pub held: Flips,
    /// The moves with the most messages first.
    pub moves: Vec<Move>,
    pub costs: Vec<CostChange>,
    pub cost_unknown: u64,
    pub delivery: DeliveryChange,
    pub examples: Vec<Example>,
}

/// Time and chance for playing a message through again: always the same ones.
#[must_use]
pub fn given(recorded: &Message) -> Given {
    Given { now: recorded.created_at, chance: chance_of(recorded.id) }
}

/// Asks a book about a message as it was before anybody had a say.
#[must_use]
pub fn replay(book: &Rulebook, recorded: &Message, given: &Given) -> (Message, MessageJudgement) {
    let book = book.rehearsal().alone();
    let original = Ruling::of(recorded).map(|ruling| ruling.original).unwrap_or_default();
    let mut message = recorded.clone();
    original.undo(&mut message);
    if original.without_channel {
        let MessageOutline { to, reference, .. } = MessageOutline::of(&message);
        let input = RuleInput::of(&message).within(MessageOutline { to, reference, ..MessageOutline::default() });
        if let Some(channel) = book.channel(&input, given) {
            message.first_mut().channel = channel;
        }
    }
    let judgement = book.admit(&mut message, given);
    (message, judgement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(channel: &str, connection: &str) -> BacktestOutcome {
        let place = BacktestPlace {
            channel: channel.into(),
            connection: Some(connection.into()),
            provider: Some(format!("provider-{connection}")),
        };
        let said = Said::from([("channel", json!(channel)), ("connection", json!(connection))]);
        BacktestOutcome { said, place: Some(place), held: false, failed: false }
    }

    fn refused() -> BacktestOutcome {
        BacktestOutcome {
            said: Said::from([("refused", json!({"reason": "no"}))]),
            place: None,
            held: false,
            failed: false,
        }
    }

    fn asked(connection: &str, went_well: bool, micros: i64) -> AskedConnection {
        let cost = Some(Cost { micros, currency: "EUR".into() });
        AskedConnection { connection: connection.into(), went_well: Some(went_well), cost }
    }

    fn replayed(before: BacktestOutcome, after: BacktestOutcome, asked: Vec<AskedConnection>) -> Replayed {
        Replayed { message: MessageId::new(), country: Country::of_address("sms", "+46701"), before, after, asked }
    }

    #[test]
    fn a_tally_tells_what_goes_where_and_at_what_price() {
        let mut tally = Tally::default();
        tally.purged();
        for _ in 0..3 {
            tally.add(replayed(outcome("sms", "a"), outcome("sms", "b"), vec![asked("a", true, 40_000)]));
        }
        tally.add(replayed(
            outcome("sms", "a"),
            outcome("sms", "b"),
            vec![asked("a", false, 40_000), asked("b", true, 10_000)],
        ));
        tally.add(replayed(outcome("sms", "b"), outcome("sms", "b"), vec![asked("b", true, 30_000)]));
        tally.add(replayed(outcome("sms", "a"), refused(), vec![asked("a", true, 40_000)]));
        let report = tally.report();
        assert_eq!((report.looked_at, report.purged, report.changed), (7, 1, 5));
        assert_eq!(report.refused, Flips { newly: 1, no_longer: 0 });
        let moves: Vec<_> = report.moves.iter().map(|it| (it.count, it.to.is_some())).collect();
        assert_eq!(moves, [(4, true), (1, false)]);
        assert_eq!(report.moves[0].to.as_ref().unwrap().provider.as_deref(), Some("provider-b"));
        // Five at 0.04; then four at 0.02, and one not at all.
        let cost = &report.costs[0];
        assert_eq!((cost.currency.as_str(), report.cost_unknown), ("EUR", 0));
        assert!((cost.before - 0.20).abs() < 1e-9 && (cost.after - 0.08).abs() < 1e-9, "{cost:?}");
        assert_eq!(report.delivery, DeliveryChange { rates: Some((0.8, 1.0)), messages: 4, unknown: 0 });
        assert_eq!(report.examples.len(), 5);
    }

    #[test]
    fn what_nothing_is_recorded_of_is_unknown() {
        let mut tally = Tally::default();
        tally.add(replayed(outcome("sms", "a"), outcome("email", "c"), vec![asked("a", true, 40_000)]));
        tally.add(replayed(refused(), refused(), Vec::new()));
        let report = tally.report();
        assert_eq!((report.changed, report.cost_unknown, report.costs.len()), (1, 1, 0));
        assert_eq!(report.delivery, DeliveryChange { rates: None, messages: 0, unknown: 1 });
    }

    #[test]
    fn only_so_many_examples_are_kept() {
        let mut tally = Tally::default();
        for _ in 0..50 {
            tally.add(replayed(outcome("sms", "a"), outcome("sms", "b"), Vec::new()));
        }
        let report = tally.report();
        assert_eq!((report.changed, report.examples.len(), report.moves[0].count), (50, 10, 50));
    }
}
