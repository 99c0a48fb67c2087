//! The intervals that contain an amount, found without examining most of them.

use angarium_domain::rule_input::amount::Amount;

/// Intervals, both ends included, each with a rule's place.
#[derive(Debug, Default)]
pub struct Intervals {
    /// The intervals by their lower end: a binary tree whose root is the middle, and so on downwards.
    sorted: Vec<Interval>,
    /// For the root at each place, the highest end in its tree.
    highest: Vec<Amount>,
}

#[derive(Debug, Clone, Copy)]
pub struct Interval {
    pub low: Amount,
    pub high: Amount,
    pub place: u32,
}

impl Intervals {
    pub fn new(mut intervals: Vec<Interval>) -> Self {
        intervals.sort_unstable_by_key(|it| (it.low, it.high, it.place));
        let mut highest = vec![Amount::ENDS.0; intervals.len()];
        note_highest(&intervals, &mut highest);
        Self { sorted: intervals, highest }
    }

    /// Adds the places of those that an amount lies in.
    pub fn collect(&self, amount: Amount, found: &mut Vec<u32>) {
        collect(&self.sorted, &self.highest, amount, found);
    }
}

fn note_highest(sorted: &[Interval], highest: &mut [Amount]) -> Amount {
    if sorted.is_empty() {
        return Amount::ENDS.0;
    }
    let middle = sorted.len() / 2;
    let (left, rest) = highest.split_at_mut(middle);
    let Some((root, right)) = rest.split_first_mut() else { return Amount::ENDS.0 };
    let within = note_highest(&sorted[..middle], left).max(note_highest(&sorted[middle + 1..], right));
    *root = within.max(sorted[middle].high);
    *root
}

fn collect(sorted: &[Interval], highest: &[Amount], amount: Amount, found: &mut Vec<u32>) {
    let middle = sorted.len() / 2;
    if sorted.is_empty() || highest[middle] < amount {
        return;
    }
    collect(&sorted[..middle], &highest[..middle], amount, found);
    let root = sorted[middle];
    if root.low <= amount {
        if amount <= root.high {
            found.push(root.place);
        }
        collect(&sorted[middle + 1..], &highest[middle + 1..], amount, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_a_look_at_each_finds() {
        let mut rng = angarium_domain::seed::rng();
        for count in 0..60 {
            let intervals: Vec<_> = (0..count)
                .map(|place| {
                    let ends = [rng.i64(0..50), rng.i64(0..50)].map(Amount::from_micros);
                    Interval { low: ends[0].min(ends[1]), high: ends[0].max(ends[1]), place }
                })
                .collect();
            let index = Intervals::new(intervals.clone());
            for amount in (-1..51).map(Amount::from_micros) {
                let mut found = Vec::new();
                index.collect(amount, &mut found);
                found.sort_unstable();
                let expected = intervals.iter().filter(|it| it.low <= amount && amount <= it.high);
                assert_eq!(found, expected.map(|it| it.place).collect::<Vec<_>>(), "{amount} in {intervals:?}");
            }
        }
    }
}
