//! `highest_reliability`: the candidate with the best recent record for this destination.

use std::cmp::Ordering;

use super::{Contender, Ranked, Record};

/// The share of deliveries that ask another candidate than the best, to learn how it does now.
pub(super) const EXPLORATION: f64 = 0.02;

/// Success rates that differ by less are alike: the quicker one serves.
pub(super) const ALIKE: f64 = 0.01;

/// By success rate, the quickest first among those as good as the best; the score is the rate. Once
/// in a while, as chance has it, the one that least is known of is asked before all others.
///
/// Orders the candidates. A provider that failed is asked again now and then, and its past is forgotten with time: a
/// recovered one is found.
pub(super) fn order(contenders: &[Contender<'_>], chance: f64) -> Vec<Ranked> {
    let rate = |it: &Contender<'_>| it.facts.record.success_rate;
    let best = contenders.iter().map(rate).fold(0.0, f64::max);
    let mut sorted: Vec<_> = contenders.iter().collect();
    sorted.sort_by(|a, b| compare(&a.facts.record, &b.facts.record, best));
    let explored = (chance < EXPLORATION).then(|| least_known(&sorted)).flatten();
    if let Some(place) = explored {
        sorted[..=place].rotate_right(1);
    }
    let ranked = |(place, it): (usize, &Contender<'_>)| {
        let role = match place {
            0 if explored.is_some() => "asked to learn how it does now",
            0 => "the most reliable",
            _ => "stands in",
        };
        it.ranked(Some(rate(it)), format!("{role}: {}", describe(&it.facts.record)))
    };
    sorted.into_iter().enumerate().map(ranked).collect()
}

fn compare(a: &Record, b: &Record, best: f64) -> Ordering {
    let alike = |record: &Record| best - record.success_rate < ALIKE;
    let latency = |record: &Record| record.latency_ms.unwrap_or(f64::INFINITY);
    let by_latency = latency(a).total_cmp(&latency(b));
    match (alike(a), alike(b)) {
        (true, true) => by_latency,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => b.success_rate.total_cmp(&a.success_rate).then(by_latency),
    }
}

/// Of those that are not the first.
fn least_known(sorted: &[&Contender<'_>]) -> Option<usize> {
    let answers = |place: &usize| sorted[*place].facts.record.answers;
    (1..sorted.len()).min_by(|a, b| answers(a).total_cmp(&answers(b)))
}

fn describe(record: &Record) -> String {
    if record.answers < 0.05 {
        return "nothing is known of late".to_owned();
    }
    let latency = record.latency_ms.map_or_else(String::new, |ms| format!(" in {ms:.0} ms"));
    format!("{:.1} % of the last {:.1} answers{latency}", record.success_rate * 100.0, record.answers)
}
