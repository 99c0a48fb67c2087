//! The remaining time of each tenant's rules and scripts: a limited time accrues in each second. Pure: the time is an
//! argument.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use angarium_domain::ids::TenantId;

/// More tenants than this are not remembered: those that have used nothing lately go.
const MOST: usize = 10_000;

/// The recent time of each tenant.
#[derive(Debug)]
pub struct TenantTimes {
    /// In a second.
    share: Duration,
    used: HashMap<TenantId, Used>,
}

#[derive(Debug, Clone, Copy)]
struct Used {
    /// The used time that is not made up for yet: with a share or more of it nothing is left.
    time: Duration,
    as_of: Instant,
}

impl TenantTimes {
    #[must_use]
    pub fn of(share: Duration) -> Self {
        Self { share, used: HashMap::new() }
    }

    /// Whether a tenant has any time left.
    #[must_use]
    pub fn has(&self, tenant: TenantId, now: Instant) -> bool {
        self.used.get(&tenant).is_none_or(|used| self.left_over(*used, now) < self.share)
    }

    /// Records a tenant's used time.
    pub fn charge(&mut self, tenant: TenantId, time: Duration, now: Instant) {
        if self.used.len() >= MOST && !self.used.contains_key(&tenant) {
            let share = self.share;
            self.used.retain(|_, used| !made_up(*used, share, now).is_zero());
        }
        let before = self.used.get(&tenant).map_or(Duration::ZERO, |used| self.left_over(*used, now));
        self.used.insert(tenant, Used { time: before + time, as_of: now });
    }

    fn left_over(&self, used: Used, now: Instant) -> Duration {
        made_up(used, self.share, now)
    }
}

/// Returns the used time that remains: each second makes up for a share.
fn made_up(used: Used, share: Duration, now: Instant) -> Duration {
    used.time.saturating_sub(share.mul_f64(now.saturating_duration_since(used.as_of).as_secs_f64().min(3_600.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_gathers_in_a_second_and_no_more() {
        let (one, other, began) = (TenantId::new(), TenantId::new(), Instant::now());
        let ms = Duration::from_millis;
        let mut times = TenantTimes::of(ms(200));
        assert!(times.has(one, began));
        times.charge(one, ms(150), began);
        assert!(times.has(one, began), "a little is left");
        times.charge(one, ms(150), began);
        assert!(!times.has(one, began), "more than there was");
        assert!(times.has(other, began), "nobody uses another's");
        assert!(!times.has(one, began + ms(490)) && times.has(one, began + ms(510)), "it is made up for");
        times.charge(one, ms(200), began + ms(3_600_000));
        assert!(!times.has(one, began + ms(3_600_000)), "an hour's rest gathers no more than a second");
    }
}
