//! `primary`: as the route lists them.

use super::{Contender, Ranked};

/// The first serves, the others stand in; the score only tells the place.
pub(super) fn order(contenders: &[Contender<'_>]) -> Vec<Ranked> {
    let reason = |place| if place == 0 { "first open candidate of the route" } else { "stands in" };
    contenders
        .iter()
        .enumerate()
        .map(|(place, contender)| contender.ranked(Some(1.0 / (place + 1) as f64), reason(place)))
        .collect()
}
