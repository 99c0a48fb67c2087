//! `least_cost`: the cheapest for this delivery first.

use super::{Contender, Estimate, Ranked};
use crate::route::RouteSpec;

/// By estimated cost, equal ones as listed; the score is the cost, negative. Costs that are not
/// known, or not in the currency of the others (the ceiling's, or the first that is known), come
/// last.
pub(super) fn order(route: &RouteSpec, contenders: &[Contender<'_>]) -> Vec<Ranked> {
    let known = contenders.iter().find_map(|it| it.facts.cost.as_ref()).map(|estimate| &estimate.cost.currency);
    let currency = route.max_cost.as_ref().map(|ceiling| &ceiling.currency).or(known);
    let comparable =
        |contender: &Contender<'_>| contender.facts.cost.clone().filter(|it| Some(&it.cost.currency) == currency);
    let mut costed: Vec<_> = contenders.iter().map(|contender| (contender, comparable(contender))).collect();
    costed.sort_by_key(|(_, estimate)| estimate.as_ref().map_or(i64::MAX, |it| it.cost.micros));
    costed.into_iter().map(|(contender, estimate)| ranked(contender, estimate)).collect()
}

fn ranked(contender: &Contender<'_>, comparable: Option<Estimate>) -> Ranked {
    match (comparable, &contender.facts.cost) {
        (Some(Estimate { cost, basis }), _) => {
            contender.ranked(Some(-(cost.micros as f64) / 1e6), format!("costs about {cost}, {}", basis.as_str()))
        }
        (None, Some(Estimate { cost, .. })) => {
            contender.ranked(None, format!("costs about {cost}, which can't be compared with the others"))
        }
        (None, None) => contender.ranked(None, "its cost is unknown"),
    }
}
