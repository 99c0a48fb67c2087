//! The memory for large contents that are being worked on: how many bytes of it this node uses at a
//! time, and which tenant's turn is next. It counts and waits; it never reads or sends anything.
//!
//! A tenant may hold a multiple of the free bytes. A tenant that holds nothing always gets its turn, so that the
//! largest content is processed in the end, however many smaller ones come.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use angarium_domain::ids::TenantId;

/// The factor of the free bytes that a tenant may hold: two thirds of the budget when it is alone.
const SHARE: usize = 2;

/// The number of other tenants that may overtake a tenant without enough bytes yet. After that they wait until it has
/// them.
const OVERTAKEN: u32 = 32;

/// A budget of bytes that tenants share. The default one has no limit, for tools and tests.
#[derive(Debug)]
pub struct ByteBudget {
    capacity: usize,
    state: Mutex<State>,
}

/// The right to hold a number of bytes; dropping it returns them.
#[derive(Debug)]
pub struct BytePermit {
    budget: Arc<ByteBudget>,
    tenant: TenantId,
    bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// The tenants that wait, each once, in the order of their turns.
    turns: VecDeque<TenantId>,
    /// The tenants that hold bytes or wait for some.
    tenants: HashMap<TenantId, Account>,
}

/// The bytes that one tenant holds and waits for.
#[derive(Debug, Default)]
struct Account {
    held: usize,
    waiting: VecDeque<Request>,
}

#[derive(Debug)]
struct Request {
    bytes: usize,
    /// How many others were let in while it waited for bytes that others held.
    overtaken: u32,
    answer: oneshot::Sender<BytePermit>,
}

/// A request that may go on.
struct Granted {
    tenant: TenantId,
    request: Request,
}

impl Default for ByteBudget {
    fn default() -> Self {
        Self { capacity: usize::MAX, state: Mutex::default() }
    }
}

impl ByteBudget {
    #[must_use]
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default() })
    }

    /// Waits until the tenant may hold this number of bytes more. A number above the whole budget counts as the whole
    /// budget.
    pub async fn take(self: &Arc<Self>, tenant: TenantId, bytes: usize) -> BytePermit {
        let bytes = bytes.min(self.capacity);
        let (answer, answered) = oneshot::channel();
        let granted = {
            let mut state = self.state();
            state.queue(tenant, Request { bytes, overtaken: 0, answer });
            state.grant(self.capacity)
        };
        self.hand_out(granted);
        // A request is dropped only by being granted, so there always is an answer.
        answered.await.unwrap_or_else(|_| BytePermit { budget: Arc::clone(self), tenant, bytes: 0 })
    }

    /// The same if the tenant may hold them at once.
    #[must_use]
    pub fn try_take(self: &Arc<Self>, tenant: TenantId, bytes: usize) -> Option<BytePermit> {
        self.take(tenant, bytes).now_or_never()
    }

    /// How many bytes there are in all.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many bytes are held.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.state().taken
    }

    /// How many wait for bytes.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().tenants.values().map(|account| account.waiting.len()).sum()
    }

    fn give_back(self: &Arc<Self>, tenant: TenantId, bytes: usize) {
        let granted = {
            let mut state = self.state();
            state.release(tenant, bytes);
            state.grant(self.capacity)
        };
        self.hand_out(granted);
    }

    /// Answers without the lock: a permit whose receiver is gone returns at once.
    fn hand_out(self: &Arc<Self>, granted: Vec<Granted>) {
        for Granted { tenant, request } in granted {
            let permit = BytePermit { budget: Arc::clone(self), tenant, bytes: request.bytes };
            drop(request.answer.send(permit));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BytePermit {
    /// Returns the number of its bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps at most this number of bytes, and returns the rest.
    pub fn shrink(&mut self, to: usize) {
        let rest = self.bytes.saturating_sub(to);
        if rest > 0 {
            self.bytes -= rest;
            self.budget.give_back(self.tenant, rest);
        }
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.tenant, mem::take(&mut self.bytes));
        }
    }
}

impl State {
    fn queue(&mut self, tenant: TenantId, request: Request) {
        let account = self.tenants.entry(tenant).or_default();
        if account.waiting.is_empty() {
            self.turns.push_back(tenant);
        }
        account.waiting.push_back(request);
    }

    fn release(&mut self, tenant: TenantId, bytes: usize) {
        self.taken -= bytes;
        if let Some(account) = self.tenants.get_mut(&tenant) {
            account.held -= bytes;
            if account.held == 0 && account.waiting.is_empty() {
                self.tenants.remove(&tenant);
            }
        }
    }

    /// Every request that may go on now.
    fn grant(&mut self, capacity: usize) -> Vec<Granted> {
        let mut granted = Vec::new();
        while let Some(one) = self.next(capacity) {
            granted.push(one);
        }
        granted
    }

    /// The first request, in the order of the tenants' turns, for which there are bytes.
    fn next(&mut self, capacity: usize) -> Option<Granted> {
        let free = capacity - self.taken;
        let mut short = Vec::new();
        let mut turn = 0;
        while let Some(tenant) = self.turns.get(turn).copied() {
            let account = self.tenants.entry(tenant).or_default();
            account.forget_the_gone();
            let Some(request) = account.waiting.front() else {
                self.turns.remove(turn);
                self.release(tenant, 0);
                continue;
            };
            if account.may_take(request.bytes, free) {
                self.turns.remove(turn);
                self.overtake(&short);
                return self.admit(tenant);
            }
            // Others hold the bytes that it waits for; any other tenant waits for its own.
            if account.held == 0 {
                if request.overtaken >= OVERTAKEN {
                    return None;
                }
                short.push(tenant);
            }
            turn += 1;
        }
        None
    }

    fn overtake(&mut self, short: &[TenantId]) {
        for tenant in short {
            if let Some(request) = self.tenants.get_mut(tenant).and_then(|account| account.waiting.front_mut()) {
                request.overtaken += 1;
            }
        }
    }

    fn admit(&mut self, tenant: TenantId) -> Option<Granted> {
        let account = self.tenants.get_mut(&tenant)?;
        let request = account.waiting.pop_front()?;
        account.held += request.bytes;
        self.taken += request.bytes;
        if !account.waiting.is_empty() {
            self.turns.push_back(tenant);
        }
        Some(Granted { tenant, request })
    }
}

impl Account {
    fn may_take(&self, bytes: usize, free: usize) -> bool {
        let Some(left) = free.checked_sub(bytes) else { return false };
        self.held == 0 || self.held.saturating_add(bytes) <= left.saturating_mul(SHARE)
    }

    fn forget_the_gone(&mut self) {
        while self.waiting.front().is_some_and(|request| request.answer.is_closed()) {
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(budget: &Arc<ByteBudget>, tenant: TenantId, bytes: usize) -> Option<BytePermit> {
        budget.try_take(tenant, bytes)
    }

    #[test]
    fn a_tenant_alone_gets_two_thirds_and_leaves_some() {
        let (budget, one, other) = (ByteBudget::new(90), TenantId::new(), TenantId::new());
        let held: Vec<_> = (0..60).map_while(|_| now(&budget, one, 1)).collect();
        assert_eq!((held.len(), budget.taken()), (60, 60));
        assert!(now(&budget, one, 1).is_none());
        assert!(now(&budget, other, 30).is_some());
        drop(held);
        assert_eq!((budget.taken(), budget.waiting()), (0, 0));
    }

    #[test]
    fn what_exceeds_the_budget_gets_all_of_it() {
        let (budget, tenant) = (ByteBudget::new(10), TenantId::new());
        let all = now(&budget, tenant, 1_000).unwrap();
        assert_eq!(all.bytes(), 10);
        assert!(now(&budget, TenantId::new(), 1).is_none());
    }

    #[tokio::test]
    async fn what_is_given_back_goes_to_those_that_wait_in_turns() {
        let (budget, one, other) = (ByteBudget::new(10), TenantId::new(), TenantId::new());
        let mut all = now(&budget, TenantId::new(), 10).unwrap();
        let mut waiting: Vec<_> = [one, one, other].map(|tenant| Box::pin(budget.take(tenant, 3))).into();
        assert!(waiting.iter_mut().all(|it| it.as_mut().now_or_never().is_none()));
        all.shrink(7);
        let first = waiting[0].as_mut().now_or_never().expect("it came first");
        all.shrink(4);
        assert!(waiting[1].as_mut().now_or_never().is_none(), "it is the other tenant's turn");
        let second = waiting[2].as_mut().now_or_never().expect("it is its turn");
        drop((all, first, second));
        assert!(waiting[1].as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn small_requests_do_not_starve_a_large_one() {
        let (budget, large) = (ByteBudget::new(10), TenantId::new());
        let mut held = now(&budget, TenantId::new(), 4);
        let mut waits = Box::pin(budget.take(large, 8));
        assert!(waits.as_mut().now_or_never().is_none());
        let let_in = (0..1_000).map_while(|_| now(&budget, TenantId::new(), 1)).count();
        assert_eq!(let_in, OVERTAKEN as usize);
        held.take();
        assert!(waits.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_holds_nobody_up() {
        let (budget, tenant) = (ByteBudget::new(10), TenantId::new());
        let held = now(&budget, TenantId::new(), 10);
        let mut given_up = Box::pin(budget.take(tenant, 10));
        let mut waits = Box::pin(budget.take(tenant, 1));
        assert!(given_up.as_mut().now_or_never().is_none() && waits.as_mut().now_or_never().is_none());
        drop(given_up);
        drop(held);
        assert!(waits.as_mut().now_or_never().is_some());
        assert!(now(&budget, TenantId::new(), 1).is_some());
    }
}
