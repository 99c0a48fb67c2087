//! Runs rules and scripts. Rules without expressions are answered on the spot.
//! All others run off the async workers, a few at a time, tenants in turn; a message and a tenant have a time limit for
//! them. After that, rules and scripts that were not asked count as absent, except those that let nothing through
//! unasked. It decides nothing itself.

mod tenant_time;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::runtime::{Handle, RuntimeFlavor};

use self::tenant_time::TenantTimes;
use crate::engine::fair_semaphore::{FairSemaphore, Permit};
use angarium_domain::ids::TenantId;
use angarium_rules::allowance::{Grant, at_hand, within};

/// How long a question waits for the tenant's time before it goes unasked.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How much longer a request waits for each of its messages.
const PATIENCE_EACH: Duration = Duration::from_millis(10);

/// Returns the time until which the messages of a request wait for the tenant's time.
#[must_use]
pub fn patience(messages: usize) -> Instant {
    Instant::now() + PATIENCE + PATIENCE_EACH * u32::try_from(messages).unwrap_or(u32::MAX)
}

/// The part of the time for which a tenant's rules hold a turn by the clock that counts at least: they may wait without
/// working, and others wait for the turn. On a busy machine the time is not theirs alone.
const HELD: u32 = 4;

/// How often a question that waits for the tenant's time looks for some.
const LOOK: Duration = Duration::from_millis(10);

/// The time for explaining a decision: the remaining rules are then reported as not examined.
const EXPLAINING: Duration = Duration::from_millis(200);

/// The time for all cases of a script: the remaining cases then fail.
const CASES: Duration = Duration::from_secs(2);

/// The time for a tenant's trials in a second, by the clock.
const TRIED: Duration = Duration::from_millis(500);

/// How long nothing is tried out after something was, at most.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How often it is said that a tenant's rules were not asked to the end.
const NEWS: Duration = Duration::from_secs(60);

/// How much there is of what.
#[derive(Debug, Clone, Copy)]
pub struct RuleTimes {
    /// All rules and scripts of a message together.
    pub message: Duration,
    /// The time of all those of a tenant in a second, on this node.
    pub tenant: Duration,
}

/// Asks rules and scripts.
#[derive(Debug)]
pub struct RuleRunner {
    times: RuleTimes,
    /// For messages.
    live: Arc<FairSemaphore>,
    tenants: Mutex<TenantTimes>,
    /// The permits for trials, for which no message waits.
    tries: Arc<FairSemaphore>,
    tried: Mutex<TenantTimes>,
    shadows: Mutex<TenantTimes>,
    /// When it was said last that a tenant's rules were not asked to the end.
    told: Mutex<HashMap<TenantId, Instant>>,
}

/// Leave to run something.
struct Turn {
    _pass: Option<Permit>,
    grant: Grant,
}

impl RuleRunner {
    #[must_use]
    pub fn new(times: RuleTimes) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Arc::new(Self {
            times,
            live: FairSemaphore::new((cores / 2).max(1)),
            tenants: Mutex::new(TenantTimes::of(times.tenant)),
            tries: FairSemaphore::new(1),
            tried: Mutex::new(TenantTimes::of(TRIED)),
            shadows: Mutex::new(TenantTimes::of(times.tenant)),
            told: Mutex::default(),
        })
    }

    /// Asks a question about a tenant's message, which waits for the tenant's time until then. It is asked a second
    /// time if the first one shows that something must run.
    pub async fn ask<T>(&self, tenant: TenantId, until: Instant, mut work: impl FnMut() -> T) -> T {
        if let Some(answer) = at_hand(&mut work) {
            return answer;
        }
        let turn = self.turn(tenant, until).await;
        off_the_workers(|| charged(&self.tenants, tenant, turn.grant, &mut work))
    }

    /// Asks a question that can be asked only once, and most likely runs something.
    pub async fn ask_once<T>(&self, tenant: TenantId, until: Instant, work: impl FnOnce() -> T) -> T {
        let turn = self.turn(tenant, until).await;
        off_the_workers(|| charged(&self.tenants, tenant, turn.grant, work))
    }

    /// Tries something out for a tenant for which no message waits: one at a time on a node, tenants in turn. A tenant
    /// that has used up its share waits outside, so that others' turns come.
    pub async fn try_out<T>(&self, tenant: TenantId, work: impl FnOnce() -> T) -> T {
        let pass = loop {
            while !times(&self.tried).has(tenant, Instant::now()) {
                tokio::time::sleep(LOOK).await;
            }
            let pass = self.tries.enter(tenant).await;
            // Others of the tenant's may have used it up meanwhile.
            if times(&self.tried).has(tenant, Instant::now()) {
                break pass;
            }
        };
        let began = Instant::now();
        let answer = off_the_workers(work);
        let took = began.elapsed();
        times(&self.tried).charge(tenant, took, Instant::now());
        // Messages have the processor for as long; the caller does not wait for that.
        tokio::spawn(async move {
            tokio::time::sleep(took.min(LONGEST_REST)).await;
            drop(pass);
        });
        answer
    }

    /// Explains a decision, which examines each rule of the tenant.
    pub async fn explain<T>(&self, tenant: TenantId, mut work: impl FnMut() -> T) -> T {
        if let Some(answer) = at_hand(&mut work) {
            return answer;
        }
        self.try_out(tenant, || self.as_for_an_explanation(work)).await
    }

    /// Does something within the time that an explanation has, on this thread.
    pub fn as_for_an_explanation<T>(&self, work: impl FnOnce() -> T) -> T {
        within(Grant::of_message(EXPLAINING), work).0
    }

    /// Does something within the time that the cases of a script have together, on this thread.
    pub fn as_for_cases<T>(&self, work: impl FnOnce() -> T) -> T {
        within(Grant::of_message(CASES), work).0
    }

    /// Does the same for a shadow, whose result is not needed: it must end within a multiple of a message's time;
    /// `None` if the tenant's time for that is used up.
    pub async fn shadow<T>(&self, tenant: TenantId, work: impl FnOnce(Duration) -> T) -> Option<T> {
        if !times(&self.shadows).has(tenant, Instant::now()) {
            return None;
        }
        let _pass = self.tries.enter(tenant).await;
        let grant = Grant::of_message(2 * self.times.message);
        Some(off_the_workers(|| charged(&self.shadows, tenant, grant, || work(self.times.message))))
    }

    /// Does something within the time of a message, on this thread: for trials.
    pub fn as_for_a_message<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        within(Grant::of_message(self.times.message), work)
    }

    /// Whether it was not said for a while that a tenant's rules were not asked to the end.
    pub fn is_news(&self, tenant: TenantId) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| at.elapsed() < NEWS);
        let is_news = !told.contains_key(&tenant);
        told.entry(tenant).or_insert_with(Instant::now);
        is_news
    }

    /// A turn once the tenant has time, or else one for what costs nothing.
    async fn turn(&self, tenant: TenantId, until: Instant) -> Turn {
        loop {
            if times(&self.tenants).has(tenant, Instant::now()) {
                let pass = self.live.enter(tenant).await;
                // Others of the tenant's may have used it up meanwhile.
                if times(&self.tenants).has(tenant, Instant::now()) {
                    return Turn { _pass: Some(pass), grant: Grant::of_message(self.times.message) };
                }
            }
            if Instant::now() >= until {
                return Turn { _pass: None, grant: Grant::TENANT_SPENT };
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn times(of: &Mutex<TenantTimes>) -> MutexGuard<'_, TenantTimes> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something within an allowance, and charges the tenant with the used time.
fn charged<T>(to: &Mutex<TenantTimes>, tenant: TenantId, grant: Grant, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let (answer, used) = within(grant, work);
    let ended = Instant::now();
    times(to).charge(tenant, used.max((ended - began) / HELD), ended);
    answer
}

/// Lets another thread replace an async worker that computes.
fn off_the_workers<T>(work: impl FnOnce() -> T) -> T {
    let several = Handle::try_current().is_ok_and(|it| it.runtime_flavor() == RuntimeFlavor::MultiThread);
    if several { tokio::task::block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tenant_that_tried_out_much_waits_and_another_does_not() {
        let times = RuleTimes { message: Duration::from_millis(20), tenant: Duration::from_millis(200) };
        let runner = RuleRunner::new(times);
        let (one, other) = (TenantId::new(), TenantId::new());
        runner.try_out(one, || std::thread::sleep(TRIED * 2)).await;
        tokio::select! {
            biased;
            () = runner.try_out(one, || ()) => panic!("the tenant has used up its share"),
            () = runner.try_out(other, || ()) => {}
        }
    }
}
