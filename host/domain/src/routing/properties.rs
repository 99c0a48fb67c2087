//! Properties of every strategy, for any route, candidates and chance. The cases are drawn; another `ANGARIUM_SEED`
//! draws others.

use std::collections::BTreeMap;

use fastrand::Rng;
use jiff::Timestamp;

use super::*;
use crate::provider::Cost;

const ALL: [Strategy; 5] = [
    Strategy::Primary,
    Strategy::RoundRobin,
    Strategy::WeightedRandom,
    Strategy::LeastCost,
    Strategy::HighestReliability,
];

/// Runs a property with a generator; a failure prints the seed.
fn holds(property: impl Fn(&mut Rng)) {
    property(&mut crate::seed::rng());
}

fn dollars(micros: i64) -> Cost {
    Cost { micros, currency: "USD".to_owned() }
}

fn maybe<T>(rng: &mut Rng, value: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    rng.bool().then(|| value(rng))
}

fn route(strategy: Strategy, weights: &[u32]) -> RouteSpec {
    let candidate = |&weight| Candidate { weight, ..Candidate::new(ConnectionId::new()) };
    let candidates = weights.iter().map(candidate).collect();
    RouteSpec { candidates, strategy, fallback: true, ..RouteSpec::pinned(ConnectionId::new()) }
}

fn candidate_state(connection: ConnectionId) -> CandidateState {
    CandidateState { connection, skip: None, facts: Facts::default() }
}

fn candidate_states(route: &RouteSpec) -> Vec<CandidateState> {
    route.candidates.iter().map(|it| candidate_state(it.connection)).collect()
}

/// Draws a random route with random candidates.
fn anything(rng: &mut Rng) -> (RouteSpec, Vec<CandidateState>) {
    let weights: Vec<_> = (0..rng.usize(1..=20)).map(|_| rng.u32(0..=100)).collect();
    let mut route = route(ALL[rng.usize(..ALL.len())], &weights);
    route.max_cost = maybe(rng, |rng| dollars(rng.i64(0..10_000)));
    route.min_success_rate = maybe(rng, Rng::f64);
    for candidate in &mut route.candidates {
        candidate.max_cost = maybe(rng, |rng| dollars(rng.i64(0..10_000)));
    }
    let mut candidate_states = candidate_states(&route);
    for candidate_state in &mut candidate_states {
        candidate_state.skip = maybe(rng, |_| SkipReason::ConnectionDisabled);
        candidate_state.facts = Facts {
            cost: maybe(rng, |rng| {
                let currency = if rng.u8(..) < 20 { "SEK" } else { "USD" }.to_owned();
                Estimate { cost: Cost { micros: rng.i64(0..10_000), currency }, basis: Basis::PriceList }
            }),
            record: Record {
                answers: rng.f64() * 200.0,
                success_rate: rng.f64(),
                latency_ms: maybe(rng, |rng| rng.f64() * 1e3),
            },
        };
    }
    (route, candidate_states)
}

fn plan_input(rng: &mut Rng) -> PlanInput<'static> {
    PlanInput { past: &[], first: None, turn: rng.u64(..), chance: rng.f64() }
}

/// How often each candidate is the first.
fn firsts(
    route: &RouteSpec,
    candidate_states: &[CandidateState],
    situations: impl Iterator<Item = PlanInput<'static>>,
) -> Vec<u32> {
    let mut firsts: BTreeMap<ConnectionId, u32> = BTreeMap::new();
    for plan_input in situations {
        *firsts.entry(plan(route, candidate_states, &plan_input).candidates[0].connection).or_default() += 1;
    }
    route.candidates.iter().map(|it| firsts.get(&it.connection).copied().unwrap_or(0)).collect()
}

#[test]
fn everybody_is_in_a_plan_once_or_passed_over_with_a_reason() {
    holds(|rng| {
        for _ in 0..2_000 {
            let (route, candidate_states) = anything(rng);
            let plan = plan(&route, &candidate_states, &plan_input(rng));
            let asked = plan.candidates.iter().map(|it| it.connection);
            let mut named: Vec<_> = asked.chain(plan.skipped.iter().map(|it| it.connection)).collect();
            let mut listed: Vec<_> = route.candidates.iter().map(|it| it.connection).collect();
            named.sort();
            listed.sort();
            assert_eq!(named, listed);
            assert!(plan.candidates.iter().all(|it| !it.reason.is_empty() && it.score.is_none_or(f64::is_finite)));
        }
    });
}

#[test]
fn nobody_is_asked_beyond_a_ceiling() {
    holds(|rng| {
        for _ in 0..2_000 {
            let (route, candidate_states) = anything(rng);
            for ranked in plan(&route, &candidate_states, &plan_input(rng)).candidates {
                let place = candidate_states.iter().position(|it| it.connection == ranked.connection).unwrap();
                let Some(Estimate { cost, .. }) = &candidate_states[place].facts.cost else { continue };
                for ceiling in [&route.max_cost, &route.candidates[place].max_cost].into_iter().flatten() {
                    assert!(cost.currency == ceiling.currency && cost.micros <= ceiling.micros, "{cost} {ceiling}");
                }
            }
        }
    });
}

#[test]
fn a_minimum_of_success_never_bars_everybody() {
    holds(|rng| {
        for _ in 0..2_000 {
            let (route, candidate_states) = anything(rng);
            let plan = plan(&route, &candidate_states, &plan_input(rng));
            let skip = plan.skipped.iter().any(|it| it.reason == SkipReason::QualityThreshold);
            assert!(!skip || !plan.candidates.is_empty());
        }
    });
}

#[test]
fn who_only_stands_in_comes_last() {
    holds(|rng| {
        for _ in 0..2_000 {
            let (route, candidate_states) = anything(rng);
            let weight = |id| route.candidates.iter().find(|it| it.connection == id).unwrap().weight;
            let plan = plan(&route, &candidate_states, &plan_input(rng));
            assert!(plan.candidates.iter().map(|it| weight(it.connection) == 0).is_sorted());
        }
    });
}

#[test]
fn round_robin_is_exact_over_each_cycle_and_never_far_from_it() {
    holds(|rng| {
        for _ in 0..50 {
            let weights: Vec<_> = (0..rng.usize(1..=6)).map(|_| rng.u32(1..=12)).collect();
            let route = route(Strategy::RoundRobin, &weights);
            let (candidate_states, total) = (candidate_states(&route), weights.iter().sum::<u32>());
            let start = rng.u64(..u64::MAX / 2);
            let turns = |count: u32| {
                (0..u64::from(count)).map(move |it| PlanInput { past: &[], first: None, turn: start + it, chance: 0.0 })
            };
            assert_eq!(firsts(&route, &candidate_states, turns(total)), weights, "a whole cycle");
            let some = rng.u32(1..3 * total);
            for (count, weight) in firsts(&route, &candidate_states, turns(some)).into_iter().zip(&weights) {
                let fair = f64::from(some) * f64::from(*weight) / f64::from(total);
                // From any start: no further than a candidate may be ahead plus behind.
                assert!((f64::from(count) - fair).abs() <= weights.len() as f64, "{count} of {fair}: {weights:?}");
            }
        }
    });
}

#[test]
fn nodes_that_do_not_agree_are_fair_together() {
    holds(|rng| {
        let route = route(Strategy::RoundRobin, &[3, 1]);
        let nodes: Vec<_> = (0..4).map(|_| (rng.u64(..u64::MAX / 2), rng.u64(50..150))).collect();
        let total: u64 = nodes.iter().map(|(_, count)| count).sum();
        let turns = nodes.iter().flat_map(|&(start, count)| start..start + count);
        let firsts = firsts(
            &route,
            &candidate_states(&route),
            turns.map(|turn| PlanInput { past: &[], first: None, turn, chance: 0.0 }),
        );
        let fair = total as f64 * 0.75;
        assert!((f64::from(firsts[0]) - fair).abs() <= nodes.len() as f64, "{firsts:?} of {total}");
    });
}

#[test]
fn lots_fall_as_the_weights_say_in_every_place() {
    holds(|rng| {
        let route = route(Strategy::WeightedRandom, &[5, 3, 2]);
        let candidate_states = candidate_states(&route);
        let (mut first, mut second) = ([0_u32; 3], [0_u32; 3]);
        let draws = 20_000;
        for _ in 0..draws {
            let plan = plan(&route, &candidate_states, &plan_input(rng));
            let place = |nth: usize| {
                candidate_states.iter().position(|it| it.connection == plan.candidates[nth].connection).unwrap()
            };
            first[place(0)] += 1;
            second[place(1)] += 1;
        }
        // P(second = i) = Σⱼ wⱼ/10 · wᵢ/(10 − wⱼ)
        for (found, expected) in [(first, [0.5, 0.3, 0.2]), (second, [0.3393, 0.3750, 0.2857])] {
            for (count, share) in found.into_iter().zip(expected) {
                let found = f64::from(count) / f64::from(draws);
                // Six standard deviations.
                assert!((found - share).abs() < 0.022, "{found} instead of {share}");
            }
        }
    });
}

#[test]
fn the_cheapest_comes_first_and_the_unknown_last() {
    holds(|rng| {
        for _ in 0..1_000 {
            let (mut route, candidate_states) = anything(rng);
            (route.strategy, route.max_cost) = (Strategy::LeastCost, Some(dollars(10_000)));
            route.candidates.iter_mut().for_each(|it| it.weight = 1);
            let plan = plan(&route, &candidate_states, &plan_input(rng));
            let cost = |id| candidate_states.iter().find(|it| it.connection == id).unwrap().facts.cost.clone();
            let costs: Vec<_> = plan.candidates.iter().map(|it| cost(it.connection)).collect();
            assert!(costs.is_sorted_by_key(|cost| cost.as_ref().map_or(i64::MAX, |it| it.cost.micros)), "{costs:?}");
        }
    });
}

#[test]
fn nobody_starves_under_the_most_reliable() {
    holds(|rng| {
        let route = route(Strategy::HighestReliability, &[1, 1, 1, 1]);
        let mut candidate_states = candidate_states(&route);
        for (candidate_state, success_rate) in candidate_states.iter_mut().zip([0.99, 0.9, 0.5, 0.1]) {
            candidate_state.facts.record = Record { answers: 50.0, success_rate, latency_ms: None };
        }
        let mut asked = [0; 4];
        for _ in 0..5_000 {
            let plan = plan(&route, &candidate_states, &plan_input(rng));
            let place = candidate_states.iter().position(|it| it.connection == plan.candidates[0].connection).unwrap();
            asked[place] += 1;
            // An asked candidate becomes better known; the others are forgotten little by little.
            candidate_states[place].facts.record.answers += 1.0;
            candidate_states.iter_mut().for_each(|it| it.facts.record.answers *= 0.999);
        }
        assert!(asked.iter().all(|&count| count >= 10), "{asked:?}");
        assert!(asked[0] > 4_800, "{asked:?}");
    });
}

#[test]
fn a_near_tie_goes_to_the_quicker() {
    let route = route(Strategy::HighestReliability, &[1, 1, 1]);
    let mut candidate_states = candidate_states(&route);
    for (candidate_state, (success_rate, ms)) in
        candidate_states.iter_mut().zip([(0.990, 300.0), (0.985, 80.0), (0.97, 10.0)])
    {
        candidate_state.facts.record = Record { answers: 100.0, success_rate, latency_ms: Some(ms) };
    }
    let plan = plan(&route, &candidate_states, &PlanInput { past: &[], first: None, turn: 0, chance: 0.5 });
    let order: Vec<_> = plan.candidates.iter().map(|it| it.connection).collect();
    assert_eq!(order, [1, 0, 2].map(|place: usize| candidate_states[place].connection));
    assert_eq!(plan.candidates[0].reason, "the most reliable: 98.5 % of the last 100.0 answers in 80 ms");
}

#[test]
fn a_threshold_that_changes_who_serves_is_told() {
    let mut route = route(Strategy::Primary, &[1, 1]);
    let mut candidate_states = candidate_states(&route);
    candidate_states[0].facts.cost = Some(Estimate { cost: dollars(9), basis: Basis::Answers });
    candidate_states[1].facts.record = Record { answers: 50.0, success_rate: 0.5, latency_ms: None };
    let plan_input = PlanInput { past: &[], first: None, turn: 0, chance: 0.5 };
    route.max_cost = Some(dollars(8));
    let dear = plan(&route, &candidate_states, &plan_input);
    assert_eq!(dear.candidates[0].connection, candidate_states[1].connection);
    assert_eq!(dear.instead, Some(FallbackReason::CostThreshold));
    (route.max_cost, route.min_success_rate) = (None, Some(0.9));
    let second = plan(&route, &candidate_states, &plan_input);
    assert_eq!(
        (second.skipped[0].reason, second.instead),
        (SkipReason::QualityThreshold, None),
        "it would not have served"
    );
    candidate_states.reverse();
    route.candidates.reverse();
    assert_eq!(plan(&route, &candidate_states, &plan_input).instead, Some(FallbackReason::QualityThreshold));
}

#[test]
fn who_may_have_it_already_is_asked_again_whatever_it_costs_by_now() {
    let mut route = route(Strategy::LeastCost, &[1, 1]);
    let mut candidate_states = candidate_states(&route);
    candidate_states[0].facts.cost = Some(Estimate { cost: dollars(9), basis: Basis::Answers });
    route.max_cost = Some(dollars(8));
    let connection = Some(candidate_states[0].connection);
    let (disposition, trigger) = (Disposition::Unknown, Trigger::Scheduled);
    let past = [PastAttempt {
        connection,
        disposition,
        waits_for_operator: false,
        trigger,
        started_at: Timestamp::UNIX_EPOCH,
        round_closed: true,
    }];
    assert_eq!(availability(&route, &candidate_states, &past, None), Availability::Now);
    let plan = plan(&route, &candidate_states, &PlanInput { past: &past, first: None, turn: 0, chance: 0.5 });
    let asked: Vec<_> = plan.candidates.iter().map(|it| it.connection).collect();
    assert_eq!(asked, [candidate_states[0].connection]);
}
