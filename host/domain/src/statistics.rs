//! Figures of messages, deliveries and attempts: buckets of time, a histogram of latencies, and the results. Pure.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use utoipa::ToSchema;

use super::{attempt::Trigger, delivery::DeliveryState, provider::Disposition};

/// How long a bucket of time is. Buckets begin at whole minutes, hours and days of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Grain {
    Minute,
    Hour,
    Day,
}

/// A text that names no grain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of `minute`, `hour`, `day`")]
pub struct InvalidGrain;

impl Grain {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    #[must_use]
    pub const fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    /// How long its buckets are kept; `None`: for good.
    #[must_use]
    pub const fn kept(self) -> Option<SignedDuration> {
        match self {
            Self::Minute => Some(SignedDuration::from_hours(48)),
            Self::Hour => Some(SignedDuration::from_hours(90 * 24)),
            Self::Day => None,
        }
    }

    /// The beginning of the bucket that holds this time.
    #[must_use]
    pub fn floor(self, at: Timestamp) -> Timestamp {
        let into = at.as_second().rem_euclid(self.seconds());
        // The second of the time, or at most a day before it: out of range only at the very beginning of representable
        // times.
        Timestamp::from_second(at.as_second() - into).unwrap_or(Timestamp::MIN)
    }

    /// The end of the bucket that holds the moment before this time.
    #[must_use]
    pub fn ceil(self, at: Timestamp) -> Timestamp {
        let floor = self.floor(at);
        if floor == at {
            at
        } else {
            floor.checked_add(SignedDuration::from_secs(self.seconds())).unwrap_or(Timestamp::MAX)
        }
    }
}

impl FromStr for Grain {
    type Err = InvalidGrain;

    fn from_str(text: &str) -> Result<Self, InvalidGrain> {
        [Self::Minute, Self::Hour, Self::Day].into_iter().find(|it| it.as_str() == text).ok_or(InvalidGrain)
    }
}

/// A property by which statistics can be grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Dimension {
    Channel,
    Connection,
    Provider,
    /// With its version.
    Route,
    /// The unified one.
    Code,
    /// For operators.
    Tenant,
}

impl Dimension {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Channel, Self::Connection, Self::Provider, Self::Route, Self::Code, Self::Tenant];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Connection => "connection",
            Self::Provider => "provider",
            Self::Route => "route",
            Self::Code => "code",
            Self::Tenant => "tenant",
        }
    }

    /// Whether it is known of a message before anybody was asked to deliver it.
    #[must_use]
    pub const fn is_known_at_acceptance(self) -> bool {
        matches!(self, Self::Channel | Self::Tenant)
    }
}

/// A window up to now for a connection's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatisticsWindow {
    FiveMinutes,
    Hour,
    Day,
}

impl StatisticsWindow {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FiveMinutes, Self::Hour, Self::Day];

    /// The buckets that it is summed up from.
    #[must_use]
    pub const fn grain(self) -> Grain {
        match self {
            Self::FiveMinutes | Self::Hour => Grain::Minute,
            Self::Day => Grain::Hour,
        }
    }

    #[must_use]
    pub const fn seconds(self) -> i64 {
        match self {
            Self::FiveMinutes => 300,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }
}

/// The end of the first step, in microseconds; a lower value reads as half of it.
const FIRST_STEP: f64 = 125.0;
/// Each step is 2^(1/4) as long as the one before.
const STEPS_A_DOUBLING: f64 = 4.0;
/// The last step begins at some twelve minutes: longer than any attempt may take.
const STEPS: usize = 92;

/// A histogram of attempts by duration: a count for each of 92 steps, every one 19 % longer than the one before. A
/// quantile is given as the middle of its step, so it is off by at most 9.1 %.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latency(Vec<i32>);

impl Latency {
    /// Takes the counts as [`Latency::counts`] gave them.
    #[must_use]
    pub const fn from_counts(counts: Vec<i32>) -> Self {
        Self(counts)
    }

    /// A count for each step, up to the last that has one.
    #[must_use]
    pub fn counts(&self) -> &[i32] {
        &self.0
    }

    /// Counts one more.
    pub fn record(&mut self, took: Duration) {
        let step = step_of(took);
        if self.0.len() <= step {
            self.0.resize(step + 1, 0);
        }
        self.0[step] = self.0[step].saturating_add(1);
    }

    /// Counts what another has counted.
    pub fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, others) in self.0.iter_mut().zip(&other.0) {
            *mine = mine.saturating_add(*others);
        }
    }

    /// The latency that this part (in 0..=1) of the attempts did not exceed, in milliseconds.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let total: i64 = self.0.iter().map(|count| i64::from(*count)).sum();
        let wanted = ((total as f64 * part).ceil() as i64).max(1);
        let mut seen = 0;
        let step = self.0.iter().position(|count| {
            seen += i64::from(*count);
            seen >= wanted
        })?;
        Some(middle_of(step) / 1_000.0)
    }
}

fn step_of(took: Duration) -> usize {
    let micros = took.as_micros() as f64;
    if micros < FIRST_STEP {
        return 0;
    }
    // Not negative, and small: the logarithm of a time.
    (((micros / FIRST_STEP).log2() * STEPS_A_DOUBLING) as usize + 1).min(STEPS - 1)
}

/// In microseconds.
fn middle_of(step: usize) -> f64 {
    match step {
        0 => FIRST_STEP / 2.0,
        _ => FIRST_STEP * ((step as f64 - 0.5) / STEPS_A_DOUBLING).exp2(),
    }
}

/// A counted figure, and its number.
#[derive(Debug, Clone, PartialEq)]
pub enum Counted {
    Accepted,
    /// A further channel of a message that names several, which began.
    Further,
    /// A delivery's end.
    State(DeliveryState),
    Attempt {
        disposition: Disposition,
        trigger: Trigger,
        /// Why this candidate was asked after another one.
        fallback_reason: Option<String>,
        /// Cost in millionths, with its currency.
        cost: Option<(String, i64)>,
        /// How many of them failed and say nothing of the connection.
        excused: i64,
        latency: Latency,
    },
}

/// The figures of messages, their deliveries and their attempts in some time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    pub accepted: i64,
    /// Deliveries by further channels of messages that name several.
    pub further: i64,
    /// Deliveries by the state in which they ended.
    pub states: BTreeMap<&'static str, i64>,
    pub attempts: i64,
    /// Attempts that failed because of the message, its recipient or the gateway.
    pub excused: i64,
    /// Attempts by what their answers meant.
    pub dispositions: BTreeMap<&'static str, i64>,
    /// Attempts that the retry policy or a person asked for.
    pub retries: i64,
    /// Attempts of another candidate, by the reason.
    pub fallbacks: BTreeMap<String, i64>,
    /// In millionths, by currency.
    pub costs: BTreeMap<String, i64>,
    pub latency: Latency,
}

impl Figures {
    /// Adds these figures `count` times.
    pub fn add(&mut self, counted: &Counted, count: i64) {
        match counted {
            Counted::Accepted => self.accepted += count,
            Counted::Further => self.further += count,
            Counted::State(state) => *self.states.entry(state.as_str()).or_default() += count,
            Counted::Attempt { disposition, trigger, fallback_reason, cost, excused, latency } => {
                self.attempts += count;
                self.excused += excused;
                *self.dispositions.entry(disposition.as_str()).or_default() += count;
                if matches!(trigger, Trigger::Retry | Trigger::Manual) {
                    self.retries += count;
                }
                if let Some(reason) = fallback_reason {
                    *self.fallbacks.entry(reason.clone()).or_default() += count;
                }
                if let Some((currency, micros)) = cost {
                    *self.costs.entry(currency.clone()).or_default() += micros;
                }
                self.latency.merge(latency);
            }
        }
    }

    /// Deliveries that have ended.
    #[must_use]
    pub fn ended(&self) -> i64 {
        self.states.values().sum()
    }

    /// Deliveries that have not ended: each message has one, and each further channel that began.
    #[must_use]
    pub fn open(&self) -> i64 {
        self.accepted + self.further - self.ended()
    }

    /// Of the deliveries that ended and were not canceled, the part that a provider took.
    #[must_use]
    pub fn success_rate(&self) -> Option<f64> {
        part(self.state("sent") + self.state("delivered"), self.ended() - self.state("canceled"))
    }

    /// Returns the part of the accepted deliveries with a receipt of arrival; `None` without any receipt, because the
    /// part is then unknown.
    #[must_use]
    pub fn delivery_rate(&self) -> Option<f64> {
        let (delivered, bounced) = (self.state("delivered"), self.state("bounced"));
        let receipts = delivered + bounced;
        part(delivered, receipts + self.state("sent")).filter(|_| receipts > 0)
    }

    /// Returns the accepted part of the attempts that count for the connection.
    #[must_use]
    pub fn acceptance_rate(&self) -> Option<f64> {
        part(self.dispositions.get("accepted").copied().unwrap_or_default(), self.attempts - self.excused)
    }

    fn state(&self, name: &str) -> i64 {
        self.states.get(name).copied().unwrap_or_default()
    }
}

fn part(some: i64, all: i64) -> Option<f64> {
    (all > 0).then(|| some as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_that_begins_before_it() {
        let at: Timestamp = "2026-03-01T10:42:17.5Z".parse().unwrap();
        for (grain, begins, ends) in [
            (Grain::Minute, "2026-03-01T10:42:00Z", "2026-03-01T10:43:00Z"),
            (Grain::Hour, "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"),
            (Grain::Day, "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"),
        ] {
            assert_eq!(grain.floor(at), begins.parse().unwrap());
            assert_eq!(grain.ceil(at), ends.parse().unwrap());
            assert_eq!(grain.ceil(grain.floor(at)), grain.floor(at));
            assert_eq!(grain.as_str().parse(), Ok(grain));
        }
    }

    #[test]
    fn a_quantile_is_off_by_a_tenth_at_most() {
        for micros in (125..1_000).step_by(7).chain((1_000..600_000_000).step_by(1_234_567)) {
            let mut latency = Latency::default();
            latency.record(Duration::from_micros(micros));
            let told = latency.quantile(0.5).unwrap() * 1_000.0;
            assert!((told / micros as f64 - 1.0).abs() < 0.0915, "{micros} reads as {told}");
        }
    }

    #[test]
    fn quantiles_follow_their_order() {
        let mut latency = Latency::default();
        for ms in 1..=1_000 {
            latency.record(Duration::from_millis(ms));
        }
        for (part, ms) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.0, 1.0), (1.0, 1_000.0)] {
            let told = latency.quantile(part).unwrap();
            assert!((told / ms - 1.0).abs() < 0.1, "{part}: {told}");
        }
        assert_eq!(Latency::default().quantile(0.5), None);
    }

    #[test]
    fn two_halves_merge_to_the_whole() {
        let (mut whole, mut fast, mut slow) = (Latency::default(), Latency::default(), Latency::default());
        for ms in [0, 1, 5, 900, 70_000, 3_600_000] {
            let took = Duration::from_millis(ms);
            whole.record(took);
            if ms < 100 { fast.record(took) } else { slow.record(took) }
        }
        fast.merge(&slow);
        assert_eq!(fast, whole);
        assert!(whole.counts().len() <= STEPS);
    }

    #[test]
    fn rates_leave_out_what_nobody_tried() {
        let mut figures = Figures::default();
        assert_eq!((figures.success_rate(), figures.delivery_rate()), (None, None));
        figures.add(&Counted::State(DeliveryState::Sent), 5);
        assert_eq!(figures.delivery_rate(), None, "no receipt tells");
        figures.add(&Counted::State(DeliveryState::Sent), -5);
        for (state, count) in [
            (DeliveryState::Sent, 2),
            (DeliveryState::Delivered, 4),
            (DeliveryState::Bounced, 2),
            (DeliveryState::Canceled, 9),
            (DeliveryState::Failed, 3),
            (DeliveryState::Failed, -1),
        ] {
            figures.add(&Counted::State(state), count);
        }
        assert_eq!(figures.ended(), 19);
        assert_eq!(figures.success_rate(), Some(0.6));
        assert_eq!(figures.delivery_rate(), Some(0.5));
    }

    #[test]
    fn what_says_nothing_of_a_connection_does_not_lower_its_rate() {
        let mut figures = Figures::default();
        let attempts = |disposition, excused| Counted::Attempt {
            disposition,
            trigger: Trigger::Scheduled,
            fallback_reason: None,
            cost: None,
            excused,
            latency: Latency::default(),
        };
        figures.add(&attempts(Disposition::RejectedPermanent, 4), 4);
        assert_eq!(figures.acceptance_rate(), None);
        figures.add(&attempts(Disposition::Accepted, 0), 3);
        assert_eq!((figures.attempts, figures.acceptance_rate()), (7, Some(1.0)));
        figures.add(&attempts(Disposition::NotSent, 0), 1);
        assert_eq!(figures.acceptance_rate(), Some(0.75));
    }
}
