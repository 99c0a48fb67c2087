//! How many bytes of request bodies this node holds at a time, and whose they are: a tenant may hold as
//! much as stays free, so that some is left for any other; callbacks, which come without a key, have a
//! small part of their own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::domain::ids::{ConnectionId, TenantId};

/// The part of all bytes that callbacks may hold together, and the part of that for one connection.
const CALLBACKS_PART: usize = 8;
const CONNECTION_PART: usize = 4;
/// The most callbacks of one connection, and of all, that are read or handled at a time: the component's
/// call takes a thread.
const MOST_OF_CONNECTION: usize = 32;
const MOST_CALLBACKS: usize = 256;

/// Whose body it is. The layer that knows puts it among the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyOwner {
    Tenant(TenantId),
    Callback(ConnectionId),
}

/// The node's budget.
#[derive(Debug)]
pub struct BodyBudget {
    bytes: usize,
    held: Mutex<HashMap<BodyOwner, Held>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    bytes: usize,
    bodies: usize,
}

/// There is no room now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// What one body holds; dropping it gives it back.
#[derive(Debug)]
pub struct BodyPermit {
    budget: Arc<BodyBudget>,
    owner: BodyOwner,
    bytes: usize,
}

impl BodyBudget {
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { bytes, held: Mutex::default() }
    }

    /// Begins a body.
    pub fn begin(self: &Arc<Self>, owner: BodyOwner) -> Result<BodyPermit, Full> {
        let mut held = self.held();
        if let BodyOwner::Callback(_) = owner {
            let of_connection = held.get(&owner).map_or(0, |it| it.bodies);
            if of_connection >= MOST_OF_CONNECTION || callbacks(&held).bodies >= MOST_CALLBACKS {
                return Err(Full);
            }
        }
        held.entry(owner).or_default().bodies += 1;
        drop(held);
        Ok(BodyPermit { budget: Arc::clone(self), owner, bytes: 0 })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<BodyOwner, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_take(&self, held: &HashMap<BodyOwner, Held>, owner: BodyOwner, more: usize) -> bool {
        let own = held.get(&owner).map_or(0, |it| it.bytes) + more;
        let all = held.values().map(|it| it.bytes).sum::<usize>() + more;
        let fits = match owner {
            BodyOwner::Tenant(_) => own <= self.bytes.saturating_sub(all),
            BodyOwner::Callback(_) => {
                let part = self.bytes / CALLBACKS_PART;
                own <= part / CONNECTION_PART && callbacks(held).bytes + more <= part
            }
        };
        fits && all <= self.bytes
    }
}

fn callbacks(held: &HashMap<BodyOwner, Held>) -> Held {
    let of_callbacks = held.iter().filter(|(owner, _)| matches!(owner, BodyOwner::Callback(_)));
    of_callbacks
        .fold(Held::default(), |sum, (_, it)| Held { bytes: sum.bytes + it.bytes, bodies: sum.bodies + it.bodies })
}

impl BodyPermit {
    /// Holds so many bytes more.
    pub fn grow(&mut self, more: usize) -> Result<(), Full> {
        let mut held = self.budget.held();
        if !self.budget.may_take(&held, self.owner, more) {
            return Err(Full);
        }
        held.entry(self.owner).or_default().bytes += more;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        let mut held = self.budget.held();
        if let Some(own) = held.get_mut(&self.owner) {
            own.bytes -= self.bytes;
            own.bodies -= 1;
            if own.bodies == 0 {
                held.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_leaves_room_for_others() {
        let budget = Arc::new(BodyBudget::new(1_200));
        let mut first = budget.begin(BodyOwner::Tenant(TenantId::new())).unwrap();
        assert_eq!(first.grow(601), Err(Full));
        assert_eq!(first.grow(600), Ok(()));
        let mut second = budget.begin(BodyOwner::Tenant(TenantId::new())).unwrap();
        assert_eq!(second.grow(300), Ok(()));
        assert_eq!(second.grow(1), Err(Full));
        drop(first);
        assert_eq!(second.grow(300), Ok(()));
        drop(second);
        assert!(budget.held().is_empty());
    }

    #[test]
    fn callbacks_have_a_part_of_their_own() {
        let budget = Arc::new(BodyBudget::new(3_200));
        let one = BodyOwner::Callback(ConnectionId::new());
        let mut body = budget.begin(one).unwrap();
        assert_eq!(body.grow(101), Err(Full));
        assert_eq!(body.grow(100), Ok(()));
        let others: Vec<_> = (0..3)
            .map(|_| {
                let mut body = budget.begin(BodyOwner::Callback(ConnectionId::new())).unwrap();
                body.grow(100).unwrap();
                body
            })
            .collect();
        assert_eq!(budget.begin(BodyOwner::Callback(ConnectionId::new())).unwrap().grow(1), Err(Full));
        assert_eq!(budget.begin(BodyOwner::Tenant(TenantId::new())).unwrap().grow(1_000), Ok(()));
        drop((body, others));
        let many: Vec<_> = (0..MOST_OF_CONNECTION).map(|_| budget.begin(one).unwrap()).collect();
        assert_eq!(budget.begin(one).err(), Some(Full));
        assert!(budget.begin(BodyOwner::Callback(ConnectionId::new())).is_ok());
        drop(many);
    }
}
