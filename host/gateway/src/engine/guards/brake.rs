//! How long a connection, or an origin that messages name, is left alone after it said that it is asked too often. Pure:
//! times are arguments.

use std::time::{Duration, Instant};

use angarium_domain::{attempt::Verdict, breaker::Weight, provider::Disposition};

/// The pause after the first answer of this kind that names no time; twice as long after each that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause that an answer puts on all deliveries, whatever it asks for; a repeated answer may ask for the
/// next.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long the others wait for the one that goes first after a pause, at the most.
const LONGEST_TRY: Duration = Duration::from_secs(60);

/// How long they wait before they look again.
const LOOK: Duration = Duration::from_millis(250);

/// A pause, and its number in a row. After it one delivery goes first: the others wait for its answer.
#[derive(Debug, Default)]
pub struct Brake {
    until: Option<Instant>,
    in_a_row: u32,
    /// One delivery is under way, and is waited for no longer than this.
    tried_until: Option<Instant>,
}

impl Brake {
    /// Returns the time until which nothing is sent; `None` if a delivery may go.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        let later = |at: &Instant| *at > now;
        let is_tried = self.in_a_row > 0 && self.tried_until.as_ref().is_some_and(later);
        self.until.filter(later).or_else(|| is_tried.then(|| now + LOOK))
    }

    /// Lets a delivery pass.
    ///
    /// # Errors
    /// When it looks again, if it does not go now.
    pub fn enter(&mut self, now: Instant) -> Result<(), Instant> {
        if let Some(until) = self.until(now) {
            return Err(until);
        }
        if self.in_a_row > 0 {
            self.tried_until = Some(now + LONGEST_TRY);
        }
        Ok(())
    }

    /// The delivery that was let through had no telling result: another may go first.
    pub const fn returned(&mut self) {
        self.tried_until = None;
    }

    /// Pauses after an answer with this time, or none; returns the pause if it is longer than the present one.
    ///
    /// Requests that were under way together are answered alike: their answers lengthen the next pause once.
    pub fn throttled(&mut self, asked: Option<Duration>, now: Instant) -> Option<Duration> {
        self.tried_until = None;
        if self.until(now).is_none() {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        let doublings = self.in_a_row.saturating_sub(1).min(16);
        let grown = FIRST_PAUSE.saturating_mul(1 << doublings);
        let pause = asked.map_or(grown, |asked| asked.max(grown)).min(LONGEST_PAUSE);
        let longer = self.until(now).is_none_or(|until| until < now + pause);
        longer.then(|| {
            self.until = Some(now + pause);
            pause
        })
    }

    /// Takes note of an answer; returns the pause that it puts on all deliveries, if it does.
    pub fn record(&mut self, verdict: &Verdict, weight: Weight, now: Instant) -> Option<Duration> {
        if verdict.disposition == Disposition::Throttled {
            return self.throttled(verdict.retry_after_ms.map(Duration::from_millis), now);
        }
        if weight == Weight::Nothing {
            self.returned()
        } else {
            self.answered()
        }
        None
    }

    /// An answer of another kind came: the next pause is a first one.
    pub const fn answered(&mut self) {
        (self.in_a_row, self.tried_until) = (0, None);
    }

    /// Holds as another node says.
    pub fn learn(&mut self, until: Option<Instant>) {
        self.until = self.until.max(until);
    }

    /// Whether it neither holds nor remembers anything.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.until(now).is_none() && self.in_a_row == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn pauses_grow_until_an_answer_of_another_kind() {
        let (mut brake, mut now) = (Brake::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = brake.throttled(None, now).unwrap();
            assert_eq!(brake.until(now), Some(now + pause));
            now += pause;
            assert_eq!(brake.until(now), None);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        brake.answered();
        assert_eq!(brake.throttled(None, now), Some(seconds(1)));
    }

    #[test]
    fn answers_to_requests_that_were_under_way_together_count_once() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        assert_eq!(brake.throttled(None, now), Some(seconds(1)));
        for _ in 0..50 {
            assert_eq!(brake.throttled(None, now), None);
        }
        assert_eq!(brake.throttled(Some(seconds(30)), now), Some(seconds(30)), "it asks for longer");
        assert_eq!(brake.throttled(None, now + seconds(30)), Some(seconds(2)));
    }

    #[test]
    fn one_goes_first_after_a_pause() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        assert_eq!([brake.enter(now), brake.enter(now)], [Ok(()); 2], "nothing was throttled yet");
        brake.throttled(None, now);
        assert_eq!(brake.enter(now), Err(now + seconds(1)));
        let now = now + seconds(1);
        assert_eq!([brake.enter(now), brake.enter(now)], [Ok(()), Err(now + LOOK)]);
        assert_eq!(brake.until(now), Some(now + LOOK), "and the others are told so");
        brake.returned();
        assert_eq!(brake.enter(now), Ok(()), "it was not asked");
        assert_eq!(brake.enter(now + LONGEST_TRY), Ok(()), "it was never heard of");
        brake.answered();
        assert_eq!([brake.enter(now), brake.enter(now)], [Ok(()); 2]);
    }

    #[test]
    fn what_is_asked_for_is_capped_and_no_shorter_than_the_pause_would_be() {
        let (mut brake, mut now) = (Brake::default(), Instant::now());
        assert_eq!(brake.throttled(Some(Duration::MAX), now), Some(LONGEST_PAUSE));
        now += LONGEST_PAUSE;
        assert_eq!(brake.throttled(Some(Duration::ZERO), now), Some(seconds(2)));
    }
}
