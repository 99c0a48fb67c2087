//! A node's recent observations of its connections: success, latency and cost, by the destination's country. Strategies
//! use them.
//!
//! Observations are kept in memory and forgotten: half of them in [`HALF_LIFE`]. A node that starts takes every
//! connection for good until it fails; only the order of candidates depends on observations.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use angarium_domain::{attempt::Verdict, country::Country, ids::ConnectionId, provider::Cost, routing::Record};

/// After so long an answer counts half.
pub const HALF_LIFE: Duration = Duration::from_secs(600);

/// The most answers that are remembered of a connection and country: with many of them a change
/// shows sooner than time forgets.
pub const MOST_ANSWERS: f64 = 200.0;

/// The most connections and countries; beyond them those not seen for longest are forgotten.
const MOST_TALLIES: usize = 50_000;

/// One answer of a connection, or the lack of one.
#[derive(Debug, Clone, Copy)]
pub struct Sighting<'a> {
    pub connection: ConnectionId,
    pub country: Option<Country>,
    pub verdict: &'a Verdict,
    /// Whether it is an endpoint's that the message named.
    pub at_recipient: bool,
    pub took: Duration,
    /// The message's units, if the answer does not state them.
    pub units: u32,
}

/// The observations of this node, shared by its deliveries.
#[derive(Debug, Default)]
pub struct Observations(Mutex<Tallies>);

impl Observations {
    pub fn record(&self, sighting: &Sighting<'_>, now: Instant) {
        self.tallies().record(sighting, now);
    }

    #[must_use]
    pub fn read(&self, connection: ConnectionId, country: Option<Country>, now: Instant) -> Record {
        self.tallies().read(connection, country, now)
    }

    #[must_use]
    pub fn unit_cost(&self, connection: ConnectionId, country: Option<Country>, now: Instant) -> Option<Cost> {
        self.tallies().unit_cost(connection, country, now)
    }

    fn tallies(&self) -> MutexGuard<'_, Tallies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, and a country; without one, all that the connection does.
type Key = (ConnectionId, Option<Country>);

/// The observations themselves. Time is an argument.
#[derive(Debug, Default)]
pub struct Tallies(HashMap<Key, Tally>);

impl Tallies {
    /// Counts an answer, for its country and for the connection as a whole.
    pub fn record(&mut self, sighting: &Sighting<'_>, now: Instant) {
        let Some(success) = sighting.verdict.is_success(sighting.at_recipient) else { return };
        if self.0.len() >= MOST_TALLIES {
            self.forget_the_oldest(now);
        }
        let whole = [None, sighting.country];
        for country in &whole[..=usize::from(sighting.country.is_some())] {
            let tally = self.0.entry((sighting.connection, *country)).or_insert_with(|| Tally::new(now));
            tally.count(success, sighting, now);
        }
    }

    /// Returns the record of a connection with a country. Its record elsewhere counts as one more answer, so that there
    /// is some data if little is known.
    #[must_use]
    pub fn read(&self, connection: ConnectionId, country: Option<Country>, now: Instant) -> Record {
        let of = |country| self.0.get(&(connection, country)).map(|tally: &Tally| tally.at(now));
        let Some(whole) = of(None) else { return Record::default() };
        let whole = whole.record(1.0, None);
        match (country, country.and_then(|country| of(Some(country)))) {
            (None, _) => whole,
            (Some(_), None) => Record { answers: 0.0, ..whole },
            (Some(_), Some(here)) => here.record(whole.success_rate, whole.latency_ms),
        }
    }

    /// Returns the average cost of a unit: to the country, otherwise anywhere.
    #[must_use]
    pub fn unit_cost(&self, connection: ConnectionId, country: Option<Country>, now: Instant) -> Option<Cost> {
        let of = |country| self.0.get(&(connection, country)).and_then(|tally: &Tally| tally.at(now).unit_cost());
        country.and_then(|country| of(Some(country))).or_else(|| of(None))
    }

    /// Halves the age that is remembered until there is room for as many again.
    fn forget_the_oldest(&mut self, now: Instant) {
        let mut age = HALF_LIFE * 8;
        while self.0.len() > MOST_TALLIES / 2 {
            self.0.retain(|_, tally| now.saturating_duration_since(tally.at) < age);
            age /= 2;
        }
    }
}

/// The weight of the observed answers, as of a time.
#[derive(Debug, Clone)]
struct Tally {
    at: Instant,
    answers: f64,
    successes: f64,
    /// Of the successes.
    latency_ms: f64,
    /// The units with known cost.
    units: f64,
    micros: f64,
    currency: String,
}

impl Tally {
    const fn new(at: Instant) -> Self {
        Self { at, answers: 0.0, successes: 0.0, latency_ms: 0.0, units: 0.0, micros: 0.0, currency: String::new() }
    }

    fn count(&mut self, success: bool, sighting: &Sighting<'_>, now: Instant) {
        *self = self.at(now);
        self.keep(((MOST_ANSWERS - 1.0) / self.answers).min(1.0));
        self.answers += 1.0;
        if success {
            self.successes += 1.0;
            self.latency_ms += sighting.took.as_secs_f64() * 1e3;
        }
        if let Some(cost) = &sighting.verdict.cost {
            self.count_cost(cost, sighting.verdict.units.unwrap_or(sighting.units));
        }
    }

    fn count_cost(&mut self, cost: &Cost, units: u32) {
        if self.currency != cost.currency {
            (self.units, self.micros) = (0.0, 0.0);
            self.currency.clone_from(&cost.currency);
        }
        self.units += f64::from(units.max(1));
        self.micros += cost.micros as f64;
    }

    /// Returns the remaining weight at a later time.
    fn at(&self, now: Instant) -> Self {
        let age = now.saturating_duration_since(self.at);
        let mut left = self.clone();
        left.keep((-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2());
        left.at = self.at.max(now);
        left
    }

    fn keep(&mut self, part: f64) {
        for count in [&mut self.answers, &mut self.successes, &mut self.latency_ms, &mut self.units, &mut self.micros] {
            *count *= part;
        }
    }

    /// Returns the record with one more answer beside those seen, which is a success by this share.
    fn record(&self, otherwise: f64, latency_ms: Option<f64>) -> Record {
        let known = self.successes > 0.01;
        Record {
            answers: self.answers,
            success_rate: (self.successes + otherwise) / (self.answers + 1.0),
            latency_ms: known.then(|| self.latency_ms / self.successes).or(latency_ms),
        }
    }

    fn unit_cost(&self) -> Option<Cost> {
        let micros = (self.units > 0.01).then(|| (self.micros / self.units).round() as i64)?;
        Some(Cost { micros, currency: self.currency.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use angarium_domain::provider::Disposition;

    fn verdict(disposition: Disposition, code: &str, micros: Option<i64>) -> Verdict {
        Verdict {
            disposition,
            status: None,
            code: code.to_owned(),
            unified_code: code.to_owned(),
            detail: String::new(),
            external_id: None,
            retry_after_ms: None,
            cost: micros.map(|micros| Cost { micros, currency: "USD".to_owned() }),
            units: None,
            overridden: None,
        }
    }

    struct Seen {
        tallies: Tallies,
        connection: ConnectionId,
        now: Instant,
    }

    impl Seen {
        fn nothing() -> Self {
            Self { tallies: Tallies::default(), connection: ConnectionId::new(), now: Instant::now() }
        }

        fn see(&mut self, number: &str, verdict: &Verdict, ms: u64) {
            let country = Country::of_address("sms", number);
            let took = Duration::from_millis(ms);
            let sighting =
                Sighting { connection: self.connection, country, verdict, at_recipient: false, took, units: 2 };
            self.tallies.record(&sighting, self.now);
        }

        fn taken(&mut self, number: &str, ms: u64) {
            self.see(number, &verdict(Disposition::Accepted, "ok", None), ms);
        }

        fn failed(&mut self, number: &str) {
            self.see(number, &verdict(Disposition::NotSent, "connect", None), 5);
        }

        fn read(&self, number: &str) -> Record {
            self.tallies.read(self.connection, Country::of_address("sms", number), self.now)
        }
    }

    const SWEDEN: &str = "+46701234567";
    const NORWAY: &str = "+4741234567";

    #[test]
    fn who_is_not_known_is_taken_for_good() {
        assert_eq!(Seen::nothing().read(SWEDEN), Record::default());
    }

    #[test]
    fn failures_count_by_country_and_are_forgotten() {
        let mut seen = Seen::nothing();
        for _ in 0..9 {
            seen.failed(SWEDEN);
            seen.taken(NORWAY, 100);
        }
        let (here, there) = (seen.read(SWEDEN), seen.read(NORWAY));
        assert!(here.success_rate < 0.1, "{here:?}");
        assert!(there.success_rate > 0.9 && there.latency_ms == Some(100.0), "{there:?}");
        seen.now += HALF_LIFE;
        assert!((seen.read(SWEDEN).answers - 4.5).abs() < 1e-9);
        seen.now += HALF_LIFE * 20;
        assert!(seen.read(SWEDEN).success_rate > 0.99, "all is forgotten");
    }

    #[test]
    fn a_country_that_was_never_asked_is_judged_by_the_others() {
        let mut seen = Seen::nothing();
        for _ in 0..50 {
            seen.failed(NORWAY);
        }
        let record = seen.read(SWEDEN);
        assert!(record.success_rate < 0.05 && record.answers == 0.0, "{record:?}");
    }

    #[test]
    fn many_good_answers_do_not_hide_a_change() {
        let mut seen = Seen::nothing();
        for _ in 0..100_000 {
            seen.taken(SWEDEN, 10);
        }
        for _ in 0..20 {
            seen.failed(SWEDEN);
        }
        assert!(seen.read(SWEDEN).success_rate < 0.92);
    }

    #[test]
    fn only_the_providers_own_faults_count() {
        use Disposition::{AuthFailed, NotSent, RejectedPermanent, RejectedTransient, Throttled, Unknown};
        for (disposition, code, expected) in [
            (RejectedPermanent, "invalid_recipient", None),
            (RejectedPermanent, "gone", None),
            (RejectedTransient, "not_found", None),
            (RejectedTransient, "too_large", None),
            (RejectedPermanent, "egress_refused", None),
            (NotSent, "attachments_unavailable", None),
            (RejectedPermanent, "quota_exceeded", Some(false)),
            (RejectedTransient, "provider_error", Some(false)),
            (Throttled, "rate_limited", Some(false)),
            (AuthFailed, "unauthorized", Some(false)),
            (NotSent, "connect", Some(false)),
            (Unknown, "timeout", Some(false)),
            (Disposition::Accepted, "ok", Some(true)),
        ] {
            let verdict = verdict(disposition, code, None);
            assert_eq!(verdict.is_success(false), expected, "{disposition:?} {code}");
            // The message named the endpoint: its failures are not the connection's.
            assert_eq!(verdict.is_success(true), expected.filter(|success| *success), "{disposition:?} {code}");
        }
    }

    #[test]
    fn costs_are_learned_by_unit() {
        let mut seen = Seen::nothing();
        seen.see(SWEDEN, &verdict(Disposition::Accepted, "ok", Some(90_000)), 10);
        let cost = |seen: &Seen, number| {
            let country = Country::of_address("sms", number);
            seen.tallies.unit_cost(seen.connection, country, seen.now).map(|cost| cost.to_string())
        };
        assert_eq!(cost(&seen, SWEDEN).as_deref(), Some("0.045 USD"), "two units in one message");
        assert_eq!(cost(&seen, NORWAY).as_deref(), Some("0.045 USD"), "for want of anything better");
        seen.now += HALF_LIFE * 20;
        assert_eq!(cost(&seen, SWEDEN), None);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut seen = Seen::nothing();
        for slot in 0..MOST_TALLIES + 10 {
            seen.connection = ConnectionId::from(uuid::Uuid::from_u128(slot as u128));
            seen.taken("", 1);
        }
        assert!(seen.tallies.0.len() <= MOST_TALLIES);
    }

    /// The best of two providers is down for half an hour, at a delivery each second.
    #[test]
    fn a_provider_that_recovered_is_found_again() {
        use angarium_domain::{
            route::{Candidate, RouteSpec, Strategy},
            routing::{self, CandidateState, Facts, PlanInput},
        };
        let mut rng = angarium_domain::seed::rng();
        let (best, other) = (ConnectionId::new(), ConnectionId::new());
        let candidates = [other, best].map(Candidate::new).into();
        let route = RouteSpec { candidates, strategy: Strategy::HighestReliability, ..RouteSpec::pinned(best) };
        let (mut seen, begin) = (Tallies::default(), Instant::now());
        let mut asked_best = Vec::new();
        for second in 0..4 * 3600 {
            let now = begin + Duration::from_secs(second);
            let down = (3600..5400).contains(&second);
            let candidate_state = |connection| CandidateState {
                connection,
                skip: None,
                facts: Facts { cost: None, record: seen.read(connection, None, now) },
            };
            let plan_input = PlanInput { past: &[], first: None, turn: second, chance: rng.f64() };
            let plan = routing::plan(&route, &[other, best].map(candidate_state), &plan_input);
            let connection = plan.candidates[0].connection;
            let takes = rng.f64() < if connection == other { 0.9 } else { 0.99 } && !(connection == best && down);
            let verdict = verdict(if takes { Disposition::Accepted } else { Disposition::NotSent }, "", None);
            let took = Duration::from_millis(50);
            let sighting =
                Sighting { connection, country: None, verdict: &verdict, at_recipient: false, took, units: 1 };
            seen.record(&sighting, now);
            asked_best.push(connection == best);
        }
        let share = |seconds: std::ops::Range<usize>| {
            asked_best[seconds.clone()].iter().filter(|it| **it).count() as f64 / seconds.len() as f64
        };
        assert!(share(1800..3600) > 0.9, "it is known before it fails: {}", share(1800..3600));
        assert!(share(3700..5400) < 0.1, "it is left within a hundred deliveries: {}", share(3700..5400));
        assert!(share(9000..14_400) > 0.9, "it is found again within an hour: {}", share(9000..14_400));
    }
}
