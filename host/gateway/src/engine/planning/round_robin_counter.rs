//! The round-robin counter. Each node counts the deliveries of each route, from a random start. The nodes need not
//! agree, because each is fair by itself, and after a restart no route begins with its first candidate again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use angarium_domain::ids::RouteId;

/// The most routes that are counted; beyond them all start over.
const MOST_ROUTES: usize = 100_000;

/// The turns of this node's routes.
#[derive(Debug, Default)]
pub struct RoundRobinCounter(Mutex<HashMap<RouteId, u64>>);

impl RoundRobinCounter {
    /// The turn of a delivery; the next one has another.
    pub(super) fn take(&self, route: RouteId) -> u64 {
        let mut turns = self.turns();
        let turn = upcoming(&mut turns, route);
        let taken = *turn;
        *turn = taken.wrapping_add(1);
        taken
    }

    /// The turn that the next delivery has.
    pub(super) fn upcoming(&self, route: RouteId) -> u64 {
        *upcoming(&mut self.turns(), route)
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<RouteId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn upcoming(turns: &mut HashMap<RouteId, u64>, route: RouteId) -> &mut u64 {
    if turns.len() >= MOST_ROUTES {
        turns.clear();
    }
    turns.entry(route).or_insert_with(|| fastrand::u64(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_delivery_of_a_route_has_the_next_turn() {
        let turns = RoundRobinCounter::default();
        let (one, other) = (RouteId::new(), RouteId::new());
        let first = turns.upcoming(one);
        assert_eq!(turns.take(one), first);
        turns.take(other);
        assert_eq!(turns.take(one), first.wrapping_add(1));
    }
}
