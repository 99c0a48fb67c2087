//! The wait for the processor: deliveries for a component's call, and messages for rules and scripts. Either takes a
//! whole core, so without turns every waiting one would delay the next arrival; here tenants are served by turns. A
//! delivery that has not begun waits as plain data, and becomes a task when it gets a permit.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::small_tenant_priority::{Pauses, SmallTenantPriority};
use angarium_domain::ids::TenantId;

/// Lets so many in at a time.
#[derive(Debug)]
pub struct FairSemaphore {
    queues: Mutex<Queues>,
    /// The tenants that may begin; without it all may.
    small_tenants: Option<Arc<SmallTenantPriority>>,
}

/// The right to compute; dropping it lets the next one in.
#[derive(Debug)]
pub struct Permit(Arc<FairSemaphore>);

/// A permit for as long as its holder computes: it is given back when the holder has to wait.
#[derive(Debug)]
pub struct HeldPermit(Option<Permit>);

/// The use of a permit.
type Call = Box<dyn FnOnce(Permit) + Send>;

#[derive(Debug)]
struct Queues {
    free: usize,
    /// Each tenant that waits, once, in the order of their turns.
    turns: VecDeque<TenantId>,
    waiting: HashMap<TenantId, Queue>,
}

/// The record of one tenant.
#[derive(Default)]
struct Queue {
    /// These go first: work that has begun should end.
    under_way: VecDeque<Call>,
    new: VecDeque<Call>,
}

impl FairSemaphore {
    /// Returns a semaphore with this number of permits at a time.
    #[must_use]
    pub fn new(width: usize) -> Arc<Self> {
        Self::of(width, None)
    }

    /// The same, and begins nothing of other tenants while a small tenant has priority; [`FairSemaphore::run`] goes on
    /// after it.
    #[must_use]
    pub fn with_priority(width: usize, small_tenants: Arc<SmallTenantPriority>) -> Arc<Self> {
        Self::of(width, Some(small_tenants))
    }

    fn of(width: usize, small_tenants: Option<Arc<SmallTenantPriority>>) -> Arc<Self> {
        let queues = Queues { free: width, turns: VecDeque::new(), waiting: HashMap::new() };
        Arc::new(Self { queues: Mutex::new(queues), small_tenants })
    }

    /// Begins the held-back work after each pause.
    pub async fn run(self: Arc<Self>, mut pauses: Pauses, stop: CancellationToken) {
        while stop.run_until_cancelled(pauses.ended()).await.is_some() {
            while let Some(call) = self.next_for_a_free_permit() {
                call(Permit(Arc::clone(&self)));
            }
        }
    }

    fn next_for_a_free_permit(&self) -> Option<Call> {
        let mut queues = self.queues();
        if queues.free == 0 {
            return None;
        }
        let call = queues.next(|tenant| self.may_begin(tenant))?;
        queues.free -= 1;
        Some(call)
    }

    fn may_begin(&self, tenant: TenantId) -> bool {
        self.small_tenants.as_ref().is_none_or(|it| it.may_begin(tenant))
    }

    /// Waits for this tenant's turn, before those that have not begun.
    pub async fn enter(self: &Arc<Self>, tenant: TenantId) -> Permit {
        let called = {
            let mut queues = self.queues();
            if queues.take() {
                return Permit(Arc::clone(self));
            }
            let (call, called) = oneshot::channel();
            // A waiter that is gone drops the permit, and so lets the next one in.
            queues.queue(tenant).under_way.push_back(Box::new(move |permit| drop(call.send(permit))));
            called
        };
        // Every waiter is called: no permit is lost.
        called.await.unwrap_or_else(|_| Permit(Arc::clone(self)))
    }

    /// Begins something when it is this tenant's turn.
    pub fn begin(self: &Arc<Self>, tenant: TenantId, begin: impl FnOnce(HeldPermit) + Send + 'static) {
        let mut queues = self.queues();
        if !self.may_begin(tenant) || !queues.take() {
            queues.queue(tenant).new.push_back(Box::new(|permit| begin(HeldPermit(Some(permit)))));
            return;
        }
        drop(queues);
        begin(HeldPermit(Some(Permit(Arc::clone(self)))));
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldPermit {
    /// Polls a future; gives the permit back once the future has to wait.
    pub fn during<F: Future>(&mut self, mut future: Pin<&mut F>) -> impl Future<Output = F::Output> {
        poll_fn(move |cx| {
            let polled = future.as_mut().poll(cx);
            if polled.is_pending() {
                self.0 = None;
            }
            polled
        })
    }

    /// Returns the permit that is held, or waits for another one.
    pub async fn permit(&mut self, semaphore: &Arc<FairSemaphore>, tenant: TenantId) -> Permit {
        match self.0.take() {
            Some(permit) => permit,
            None => semaphore.enter(tenant).await,
        }
    }
}

impl Queues {
    /// Takes a free permit.
    const fn take(&mut self) -> bool {
        let free = self.free > 0;
        self.free -= free as usize;
        free
    }

    /// A tenant's queue, to stand in it.
    fn queue(&mut self, tenant: TenantId) -> &mut Queue {
        let queue = self.waiting.entry(tenant).or_default();
        if queue.is_empty() {
            self.turns.push_back(tenant);
        }
        queue
    }

    /// Returns the next call in turn; the tenant's next one comes after all other tenants. A tenant that must give way
    /// begins nothing.
    fn next(&mut self, may_begin: impl Fn(TenantId) -> bool) -> Option<Call> {
        for _ in 0..self.turns.len() {
            let tenant = self.turns.pop_front()?;
            let queue = self.waiting.get_mut(&tenant)?;
            let begun = queue.under_way.pop_front();
            let call = begun.or_else(|| queue.new.pop_front_if(|_| may_begin(tenant)));
            if queue.is_empty() {
                self.waiting.remove(&tenant);
            } else {
                self.turns.push_back(tenant);
            }
            if call.is_some() {
                return call;
            }
        }
        None
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.new.is_empty()
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("under_way", &self.under_way.len()).field("new", &self.new.len()).finish()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut queues = self.0.queues();
        let Some(call) = queues.next(|tenant| self.0.may_begin(tenant)) else {
            queues.free += 1;
            return;
        };
        drop(queues);
        call(Self(Arc::clone(&self.0)));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::engine::capacity::Capacity;

    /// Tenants that wait in this order, and the order in which they are let in.
    async fn let_in(tenants: &[TenantId]) -> Vec<TenantId> {
        let semaphore = FairSemaphore::new(1);
        let mut first = Some(semaphore.enter(TenantId::new()).await);
        let mut waiting: Vec<_> = tenants.iter().map(|tenant| (*tenant, Box::pin(semaphore.enter(*tenant)))).collect();
        for (_, entering) in &mut waiting {
            assert!(entering.as_mut().now_or_never().is_none());
        }
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(first.take());
            let called =
                waiting.iter_mut().enumerate().find_map(|(at, (_, it))| Some((at, it.as_mut().now_or_never()?)));
            let (at, permit) = called.expect("somebody is let in");
            first = Some(permit);
            order.push(waiting.remove(at).0);
        }
        order
    }

    #[tokio::test]
    async fn a_long_queue_of_one_tenant_lets_another_pass() {
        let (many, few) = (TenantId::new(), TenantId::new());
        let order = let_in(&[many, many, many, many, few, few]).await;
        assert_eq!(order, [many, few, many, few, many, many]);
    }

    #[tokio::test]
    async fn what_is_under_way_goes_before_what_is_new_and_what_waits_holds_no_pass() {
        let semaphore = FairSemaphore::new(1);
        let tenant = TenantId::new();
        let first = semaphore.enter(tenant).await;
        let (begun, mut beginning) = oneshot::channel();
        semaphore.begin(tenant, move |held| drop(begun.send(held)));
        let mut under_way = Box::pin(semaphore.enter(tenant));
        assert!(under_way.as_mut().now_or_never().is_none());
        drop(first);
        let permit = under_way.as_mut().now_or_never().expect("it goes first");
        assert!(beginning.try_recv().is_err());
        drop(permit);
        let mut held = beginning.try_recv().expect("it is begun");
        assert!(held.during(std::pin::pin!(std::future::ready(()))).now_or_never().is_some());
        assert!(semaphore.enter(tenant).now_or_never().is_none(), "it computes on");
        assert!(held.during(std::pin::pin!(std::future::pending::<()>())).now_or_never().is_none());
        assert!(semaphore.enter(tenant).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_holds_much_begins_nothing_while_another_goes_before() {
        let capacity = Capacity::new(1000, usize::MAX);
        let (many, few) = (TenantId::new(), TenantId::new());
        let _places = capacity.take(many, &[1; 500]);
        let small_tenants = SmallTenantPriority::new(capacity);
        let semaphore = FairSemaphore::with_priority(1, Arc::clone(&small_tenants));
        let running = tokio::spawn(Arc::clone(&semaphore).run(small_tenants.pauses(), CancellationToken::new()));
        let before = small_tenants.sending(few).expect("it holds nothing");
        let (begun, mut beginning) = oneshot::channel();
        semaphore.begin(many, move |held| drop(begun.send(held)));
        assert!(beginning.try_recv().is_err());
        let other = semaphore.enter(many).await;
        drop(other);
        assert!(beginning.try_recv().is_err(), "what has begun goes on, and nothing else");
        let (first, mut firsts) = oneshot::channel();
        semaphore.begin(few, move |held| drop(first.send(held)));
        drop(firsts.try_recv().expect("it goes before"));
        drop(before);
        beginning.await.expect("it is begun once that is over");
        running.abort();
    }

    #[tokio::test]
    async fn who_went_away_is_passed_over() {
        let semaphore = FairSemaphore::new(1);
        let tenant = TenantId::new();
        let held = semaphore.enter(tenant).await;
        let mut gone = Box::pin(semaphore.enter(tenant));
        let mut waits = Box::pin(semaphore.enter(tenant));
        assert!(gone.as_mut().now_or_never().is_none() && waits.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        let let_in = waits.as_mut().now_or_never().expect("it is let in");
        drop(let_in);
        assert!(semaphore.enter(tenant).now_or_never().is_some(), "nobody is left, and the permit is free");
    }
}
