//! A route's requirements on its candidates before any strategy ranks them: a maximum cost, a minimum success rate.

use super::{Contender, SkipReason};
use crate::{provider::Cost, route::RouteSpec};

/// Fewer answers than these are no judgement. A candidate that is not asked falls below them with
/// time, and is asked again.
pub(super) const JUDGED_BY: f64 = 10.0;

/// Excludes candidates whose estimated cost exceeds the route's or the candidate's limit. An unknown cost is not
/// excluded: it becomes known by asking.
pub(super) fn bar_the_dear(route: &RouteSpec, contenders: &[Contender<'_>], bars: &mut [Option<SkipReason>]) {
    for (contender, bar) in contenders.iter().zip(bars) {
        let Some(estimate) = &contender.facts.cost else { continue };
        let ceilings = [&route.max_cost, &contender.candidate.max_cost];
        if bar.is_none() && ceilings.into_iter().flatten().any(|ceiling| !within(&estimate.cost, ceiling)) {
            *bar = Some(SkipReason::CostCeiling);
        }
    }
}

fn within(cost: &Cost, ceiling: &Cost) -> bool {
    cost.currency == ceiling.currency && cost.micros <= ceiling.micros
}

/// Excludes candidates below the route's success rate, as long as another one can be asked.
pub(super) fn bar_the_unreliable(route: &RouteSpec, contenders: &[Contender<'_>], bars: &mut [Option<SkipReason>]) {
    let Some(minimum) = route.min_success_rate else { return };
    let below = |contender: &Contender<'_>| {
        let record = &contender.facts.record;
        record.answers >= JUDGED_BY && record.success_rate < minimum
    };
    let open = |(contender, bar): (&Contender<'_>, &Option<SkipReason>)| bar.is_none() && !below(contender);
    if contenders.iter().zip(bars.iter()).any(open) {
        for (contender, bar) in contenders.iter().zip(bars) {
            if bar.is_none() && below(contender) {
                *bar = Some(SkipReason::QualityThreshold);
            }
        }
    }
}
