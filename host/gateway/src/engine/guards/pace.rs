//! The turns that a node has of one connection with a rate limit. Turns come in blocks from the schedule that all nodes
//! share; an unused turn is lost. Pure: times are arguments.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use angarium_domain::guards::RateLimit;

/// How long after its time a turn may still be used.
const LAPSE: Duration = Duration::from_millis(100);

/// The time for which turns are taken in advance.
const AHEAD: Duration = Duration::from_millis(100);

/// How long a delivery that others could serve waits for its turn: no longer than asking takes.
pub const SOON: Duration = Duration::from_millis(20);

/// The least time between two questions for turns.
const QUESTIONS: Duration = Duration::from_millis(40);

/// The answer to a delivery that wants to go.
#[derive(Debug)]
pub enum Turn {
    /// At this time, or at once if it is past.
    At(Instant),
    /// The answer is not known yet: the schedule is asked.
    Asked(oneshot::Receiver<PaceReply>),
    /// There is none before this time.
    Limited(Instant),
}

/// When a delivery's turn is, or before when it has none.
pub type PaceReply = Result<Instant, Instant>;

#[derive(Debug)]
struct Waiter {
    /// A turn after this is none.
    until: Instant,
    reply: oneshot::Sender<PaceReply>,
}

/// Turns that follow each other.
#[derive(Debug)]
struct Block {
    next: Instant,
    left: u32,
    granted_at: Instant,
}

/// Turns as the schedule gave them, on this node's clock.
#[derive(Debug, Clone, Copy)]
pub struct RateTurns {
    pub count: u32,
    pub first: Instant,
    /// The time of the next free turn.
    pub next: Instant,
}

/// A node's part of a limited rate.
#[derive(Debug)]
pub struct RatePace {
    limit: RateLimit,
    blocks: VecDeque<Block>,
    waiters: VecDeque<Waiter>,
    /// All that the schedule had was given; it has none before this.
    limited_until: Option<Instant>,
    /// The schedule is being asked, or will be.
    asking: bool,
    /// Turns used since it was asked last.
    used: u32,
    asked_at: Instant,
}

impl RatePace {
    pub const fn new(limit: RateLimit, now: Instant) -> Self {
        Self {
            limit,
            blocks: VecDeque::new(),
            waiters: VecDeque::new(),
            limited_until: None,
            asking: false,
            used: 0,
            asked_at: now,
        }
    }

    pub const fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Returns the time until which a delivery with other candidates has no turn; `None` if it may have one.
    pub fn limited(&mut self, now: Instant) -> Option<Instant> {
        let by = now + SOON;
        self.drop_lapsed(now);
        if self.waiters.is_empty()
            && let Some(block) = self.blocks.front()
        {
            return (block.next > by).then_some(block.next);
        }
        let queued = now + self.queue();
        let known = self.limited_until.unwrap_or(now);
        Some(known.max(queued)).filter(|at| *at > by)
    }

    /// A turn at `until` at the latest.
    pub fn take(&mut self, now: Instant, until: Instant) -> Turn {
        self.drop_lapsed(now);
        if self.waiters.is_empty()
            && let Some(at) = self.blocks.front().map(|block| block.next)
        {
            if at > until {
                return Turn::Limited(at);
            }
            self.pop();
            return Turn::At(at);
        }
        let first = self.limited_until.unwrap_or(now).max(now + self.queue());
        if first > until {
            return Turn::Limited(first);
        }
        let (reply, answer) = oneshot::channel();
        self.waiters.push_back(Waiter { until, reply });
        Turn::Asked(answer)
    }

    /// Returns the time until the waiting deliveries have gone.
    fn queue(&self) -> Duration {
        self.limit.step().saturating_mul(u32::try_from(self.waiters.len()).unwrap_or(u32::MAX))
    }

    /// Whether the schedule has to be asked, which the caller does then.
    pub fn asks(&mut self, now: Instant) -> bool {
        let asks = !self.asking && self.wanted(now) > 0;
        self.asking |= asks;
        asks
    }

    /// Returns the number of turns that are wanted now: for the waiting deliveries, and for as many as came lately.
    pub fn wanted(&self, now: Instant) -> u32 {
        let left: u32 = self.blocks.iter().map(|block| block.left).sum();
        let waiting = u32::try_from(self.waiters.len()).unwrap_or(u32::MAX);
        let elapsed = now.saturating_duration_since(self.asked_at).max(QUESTIONS);
        let lately = f64::from(self.used) * AHEAD.as_secs_f64() / elapsed.as_secs_f64();
        let most = (self.limit.per_second * AHEAD.as_secs_f64()).ceil();
        let ahead = lately.ceil().min(most) as u32;
        // Asked for before they run out, and not one by one.
        if waiting == 0 && left > ahead / 2 { 0 } else { (waiting + ahead).saturating_sub(left) }
    }

    /// Takes the schedule's grant; returns the time to ask again, if there is one.
    pub fn granted(&mut self, turns: RateTurns, asked: u32, now: Instant) -> Option<Instant> {
        (self.used, self.asked_at) = (0, now);
        if turns.count > 0 {
            self.blocks.push_back(Block { next: turns.first, left: turns.count, granted_at: now });
        }
        self.limited_until = (turns.count < asked).then_some(turns.next);
        self.serve(now);
        self.waiters.retain(|waiter| !waiter.reply.is_closed());
        self.asking = !self.waiters.is_empty();
        // Shortly before the next turn: it is given ahead of its time.
        self.asking.then(|| (now + QUESTIONS).max(turns.next.checked_sub(AHEAD * 9 / 10).unwrap_or(now)))
    }

    /// The schedule cannot be asked: no delivery has a turn.
    pub fn refused(&mut self, now: Instant, again: Instant) {
        (self.asking, self.limited_until) = (false, Some(again));
        for waiter in self.waiters.drain(..) {
            let _ = waiter.reply.send(Err(again.max(now)));
        }
    }

    /// Gives the waiting deliveries their turns, in order.
    fn serve(&mut self, now: Instant) {
        self.drop_lapsed(now);
        while let Some(waiter) = self.waiters.pop_front() {
            let next = self.blocks.front().map(|block| block.next);
            match next.or(self.limited_until) {
                // The waiter is gone: the turn is another's.
                _ if waiter.reply.is_closed() => {}
                Some(at) if at > waiter.until => drop(waiter.reply.send(Err(at))),
                _ => match next {
                    Some(at) => {
                        if waiter.reply.send(Ok(at)).is_ok() {
                            self.pop();
                        }
                    }
                    None => {
                        self.waiters.push_front(waiter);
                        return;
                    }
                },
            }
        }
    }

    fn pop(&mut self) {
        let step = self.limit.step();
        if let Some(block) = self.blocks.front_mut() {
            block.left -= 1;
            block.next += step;
            self.used += 1;
        }
        while self.blocks.front().is_some_and(|block| block.left == 0) {
            self.blocks.pop_front();
        }
    }

    fn drop_lapsed(&mut self, now: Instant) {
        let step = self.limit.step();
        while let Some(block) = self.blocks.front_mut() {
            while block.left > 0 && block.next.max(block.granted_at) + LAPSE < now {
                block.left -= 1;
                block.next += step;
            }
            if block.left > 0 {
                return;
            }
            self.blocks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn pace(now: Instant) -> RatePace {
        RatePace::new(RateLimit { per_second: 100.0, burst: 1 }, now)
    }

    fn turns(count: u32, first: Instant) -> RateTurns {
        RateTurns { count, first, next: first + ms(10) * count }
    }

    #[test]
    fn turns_follow_each_other_at_the_rate() {
        let now = Instant::now();
        let mut pace = pace(now);
        let Turn::Asked(mut first) = pace.take(now, now + ms(1_000)) else { panic!("nothing is known yet") };
        assert!(pace.asks(now) && !pace.asks(now), "once for all who wait");
        let wanted = pace.wanted(now);
        assert_eq!(wanted, 1);
        assert_eq!(pace.granted(turns(5, now), wanted, now), None);
        assert_eq!(first.try_recv().unwrap(), Ok(now));
        for slot in 1..5 {
            assert!(matches!(pace.take(now, now + ms(1_000)), Turn::At(at) if at == now + ms(10) * slot));
        }
        assert!(matches!(pace.take(now, now), Turn::Asked(_)));
    }

    #[test]
    fn who_is_served_elsewhere_does_not_wait_for_a_turn() {
        let now = Instant::now();
        let mut pace = pace(now);
        assert_eq!(pace.limited(now), None, "it may have one");
        let Turn::Asked(mut hasty) = pace.take(now, now + SOON) else { panic!("nothing is known yet") };
        pace.asks(now);
        pace.granted(RateTurns { count: 0, first: now, next: now + ms(500) }, 1, now);
        assert_eq!(hasty.try_recv().unwrap(), Err(now + ms(500)));
        assert_eq!(pace.limited(now), Some(now + ms(500)));
        assert!(matches!(pace.take(now, now + SOON), Turn::Limited(at) if at == now + ms(500)));
        assert_eq!(pace.limited(now + ms(490)), None);
    }

    #[test]
    fn a_turn_that_is_not_used_is_lost() {
        let now = Instant::now();
        let mut pace = pace(now);
        pace.granted(turns(3, now), 3, now);
        assert!(matches!(pace.take(now, now), Turn::At(_)));
        let later = now + ms(115);
        assert!(matches!(pace.take(later, later), Turn::At(at) if at == now + ms(20)));
        assert!(matches!(pace.take(later, later), Turn::Asked(_)));
    }

    #[test]
    fn nobody_waits_longer_than_it_has_patience() {
        let now = Instant::now();
        let mut pace = pace(now);
        let waiting: Vec<_> = (0..200).map(|_| pace.take(now, now + ms(1_000))).collect();
        let asked = waiting.iter().filter(|turn| matches!(turn, Turn::Asked(_))).count();
        assert_eq!(asked, 101, "as many as have a turn within a second");
        let Turn::Limited(at) = waiting[150] else { panic!("{:?}", waiting[150]) };
        assert!(at > now + ms(1_000));
    }

    #[test]
    fn who_has_gone_away_leaves_the_turn_to_the_next() {
        let now = Instant::now();
        let mut pace = pace(now);
        drop(pace.take(now, now + ms(1_000)));
        let Turn::Asked(mut second) = pace.take(now, now + ms(1_000)) else { panic!("nothing is known yet") };
        pace.granted(turns(1, now), 2, now);
        assert_eq!(second.try_recv().unwrap(), Ok(now));
    }

    #[test]
    fn what_is_used_steadily_is_asked_for_ahead() {
        let now = Instant::now();
        let mut pace = pace(now);
        pace.granted(turns(10, now), 10, now);
        for slot in 0..8 {
            assert!(matches!(pace.take(now + ms(10) * slot, now + ms(1_000)), Turn::At(_)));
        }
        let wanted = pace.wanted(now + ms(80));
        assert!((6..=10).contains(&wanted), "{wanted}");
    }
}
