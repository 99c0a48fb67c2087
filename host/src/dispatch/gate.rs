//! Where deliveries wait for the processor. A component's call takes it whole, so as many deliveries
//! as there are waiting would stand before whoever comes next; here tenants are let in by turns.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::domain::ids::TenantId;

/// Lets so many in at a time.
#[derive(Debug)]
pub struct Gate {
    queues: Mutex<Queues>,
}

/// Leave to compute; dropping it lets the next one in.
#[derive(Debug)]
pub struct Pass(Arc<Gate>);

#[derive(Debug)]
struct Queues {
    free: usize,
    /// Each tenant that waits, once, in the order of their turns.
    turns: VecDeque<TenantId>,
    waiting: HashMap<TenantId, VecDeque<oneshot::Sender<Pass>>>,
}

impl Gate {
    #[must_use]
    pub fn new(width: usize) -> Arc<Self> {
        let queues = Queues { free: width, turns: VecDeque::new(), waiting: HashMap::new() };
        Arc::new(Self { queues: Mutex::new(queues) })
    }

    /// Waits for this tenant's turn.
    pub async fn enter(self: &Arc<Self>, tenant: TenantId) -> Pass {
        let Some(called) = self.queues().join(tenant) else { return Pass(Arc::clone(self)) };
        // Whoever waits is called: a pass is never lost.
        called.await.unwrap_or_else(|_| Pass(Arc::clone(self)))
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    /// Takes a free pass, or a place behind the tenant's others.
    fn join(&mut self, tenant: TenantId) -> Option<oneshot::Receiver<Pass>> {
        if self.free > 0 {
            self.free -= 1;
            return None;
        }
        let (call, called) = oneshot::channel();
        let queue = self.waiting.entry(tenant).or_default();
        if queue.is_empty() {
            self.turns.push_back(tenant);
        }
        queue.push_back(call);
        Some(called)
    }

    /// Whose turn it is; the tenant's next one comes after all other tenants.
    fn next(&mut self) -> Option<oneshot::Sender<Pass>> {
        let tenant = self.turns.pop_front()?;
        let queue = self.waiting.get_mut(&tenant)?;
        let call = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        call
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut queues = self.0.queues();
        let Some(call) = queues.next() else {
            queues.free += 1;
            return;
        };
        drop(queues);
        // One that does not wait any more drops the pass, and so lets the next one in.
        let _ = call.send(Self(Arc::clone(&self.0)));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Tenants that wait in this order, and the order in which they are let in.
    async fn let_in(tenants: &[TenantId]) -> Vec<TenantId> {
        let gate = Gate::new(1);
        let mut first = Some(gate.enter(TenantId::new()).await);
        let mut waiting: Vec<_> = tenants.iter().map(|tenant| (*tenant, Box::pin(gate.enter(*tenant)))).collect();
        for (_, entering) in &mut waiting {
            assert!(entering.as_mut().now_or_never().is_none());
        }
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(first.take());
            let called =
                waiting.iter_mut().enumerate().find_map(|(at, (_, it))| Some((at, it.as_mut().now_or_never()?)));
            let (at, pass) = called.expect("somebody is let in");
            first = Some(pass);
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
    async fn who_went_away_is_passed_over() {
        let gate = Gate::new(1);
        let tenant = TenantId::new();
        let held = gate.enter(tenant).await;
        let mut gone = Box::pin(gate.enter(tenant));
        let mut waits = Box::pin(gate.enter(tenant));
        assert!(gone.as_mut().now_or_never().is_none() && waits.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        let let_in = waits.as_mut().now_or_never().expect("it is let in");
        drop(let_in);
        assert!(gate.enter(tenant).now_or_never().is_some(), "nobody is left, and the pass is free");
    }
}
