//! `primary`: as the route lists them.

use super::{Ranked, Standing};

/// The first serves, the others stand in; the score only tells the place.
pub fn order(open: &[&Standing]) -> Vec<Ranked> {
    open.iter()
        .enumerate()
        .map(|(place, standing)| Ranked {
            connection: standing.connection,
            score: 1.0 / (place + 1) as f64,
            reason: if place == 0 { "first open candidate of the route" } else { "stands in" },
        })
        .collect()
}
