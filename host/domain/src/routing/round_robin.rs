//! `round_robin`: in turn, each as often as its weight says.

use std::cmp::Reverse;

use super::{Contender, Ranked};

/// Smooth weighted round-robin. The one with the most credit serves, the others stand in by theirs;
/// the score is the credit. As many turns in a row as the weights come to serve each exactly as
/// often as its weight says, from whichever turn they begin.
pub(super) fn order(contenders: &[Contender<'_>], turn: u64) -> Vec<Ranked> {
    let weights: Vec<_> = contenders.iter().map(|it| it.candidate.weight).collect();
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    let credits = credits(&weights, turn);
    let mut places: Vec<_> = (0..contenders.len()).collect();
    places.sort_by_key(|&place| Reverse(credits[place]));
    let ranked = |(nth, place): (usize, usize)| {
        let (weight, credit) = (weights[place], credits[place]);
        let role = if nth == 0 { "it is its turn" } else { "stands in" };
        let reason = format!("{role}: weight {weight} of {total}, credit {credit}");
        contenders[place].ranked(Some(credit as f64), reason)
    };
    places.into_iter().enumerate().map(ranked).collect()
}

/// Returns each candidate's credit at a turn. Every turn each gains its weight, and the one with the most pays for all.
fn credits(weights: &[u32], turn: u64) -> Vec<i64> {
    let shared = weights.iter().copied().filter(|&weight| weight > 0).fold(0, gcd).max(1);
    let gains: Vec<_> = weights.iter().map(|weight| i64::from(weight / shared)).collect();
    let cycle: i64 = gains.iter().sum();
    let mut credits = gains.clone();
    for _ in 0..turn.checked_rem(cycle.unsigned_abs()).unwrap_or(0) {
        if let Some(payer) = (0..credits.len()).rev().max_by_key(|&place| credits[place]) {
            credits[payer] -= cycle;
        }
        credits.iter_mut().zip(&gains).for_each(|(credit, gain)| *credit += gain);
    }
    credits
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
