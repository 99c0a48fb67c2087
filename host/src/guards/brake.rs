//! How long a connection, or an origin that messages name, is left alone after it said that it is asked too often. Pure:
//! times are arguments.

use std::time::{Duration, Instant};

/// The pause after the first answer of this kind that names no time; twice as long after each that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause that an answer puts on all deliveries, whatever it asks for; one that comes again may ask for the next.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A pause, and how many in a row it is.
#[derive(Debug, Default)]
pub struct Brake {
    until: Option<Instant>,
    in_a_row: u32,
}

impl Brake {
    /// Until when nothing is sent; `None` where something may be.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// Holds after an answer that names this time, or none; tells the pause where it is longer than what holds already.
    ///
    /// Requests that were under way together are answered alike: their answers lengthen the next pause once.
    pub fn throttled(&mut self, asked: Option<Duration>, now: Instant) -> Option<Duration> {
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

    /// An answer of another kind came: the next pause is a first one.
    pub const fn answered(&mut self) {
        self.in_a_row = 0;
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
    fn what_is_asked_for_is_capped_and_no_shorter_than_the_pause_would_be() {
        let (mut brake, mut now) = (Brake::default(), Instant::now());
        assert_eq!(brake.throttled(Some(Duration::MAX), now), Some(LONGEST_PAUSE));
        now += LONGEST_PAUSE;
        assert_eq!(brake.throttled(Some(Duration::ZERO), now), Some(seconds(2)));
    }
}
