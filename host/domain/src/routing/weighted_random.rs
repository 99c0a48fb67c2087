//! `weighted_random`: by lot, each as often as its weight says.

use super::{Contender, Ranked};

/// Draws all of them, one after another, with one number in 0..1: its position within the share of the drawn one is
/// again a number in 0..1, for the next draw. The score is the share of the remaining total.
pub(super) fn order(contenders: &[Contender<'_>], mut chance: f64) -> Vec<Ranked> {
    let mut left: Vec<_> = contenders.iter().collect();
    let mut ranked = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let total: f64 = left.iter().map(|it| f64::from(it.candidate.weight)).sum();
        let (place, share, rest) = draw(&left, total, chance);
        let drawn = left.remove(place);
        let role = if ranked.is_empty() { "drawn" } else { "stands in, drawn next" };
        ranked.push(drawn.ranked(Some(share), format!("{role}: weight {} of {total}", drawn.candidate.weight)));
        chance = rest;
    }
    ranked
}

/// Returns the candidate into whose share the number falls, the size of that share, and the position within it.
fn draw(left: &[&Contender<'_>], total: f64, chance: f64) -> (usize, f64, f64) {
    let mut begin = 0.0;
    for (place, contender) in left.iter().enumerate() {
        let share = f64::from(contender.candidate.weight) / total;
        if chance < begin + share {
            return (place, share, ((chance - begin) / share).clamp(0.0, 1.0 - f64::EPSILON));
        }
        begin += share;
    }
    // Without any weight there is no lot, and rounding can leave the last share short of 1.
    let place = if total > 0.0 { left.len() - 1 } else { 0 };
    (place, 0.0, chance)
}
