//! Byte limits for bodies of this node, separate for requests and answers, with their owners. A tenant may hold as much
//! as stays free, so that some is left for any other. Callbacks and requests without a key share a small part.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    body::{Bytes, to_bytes},
    response::Response,
};
use http_body::Body as _;

use angarium_domain::ids::TenantId;

/// The part of all bytes that bodies without a key may hold together.
const KEYLESS_PART: usize = 8;

/// Answers of at most this many bytes are not counted: the limit of connections bounds them.
const SMALL_ANSWER: usize = 16 << 10;

/// The owner of a body. The layer that knows the owner puts it among the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyOwner {
    Tenant(TenantId),
    /// A callback of one of the tenant's connections.
    Callback(TenantId),
    /// A request that needs no key.
    Public,
}

/// An answer's bytes with their part of the budget: hyper drops a body before its bytes are written.
struct CountedBytes {
    bytes: Bytes,
    _permit: BodyPermit,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
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

/// The bytes that one body holds; dropping the permit returns them.
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
    pub fn begin(self: &Arc<Self>, owner: BodyOwner) -> BodyPermit {
        self.held().entry(owner).or_default().bodies += 1;
        BodyPermit { budget: Arc::clone(self), owner, bytes: 0 }
    }

    /// Counts the bytes of an answer until the client has taken them.
    ///
    /// # Errors
    /// There is no room for them now.
    pub async fn count(self: &Arc<Self>, owner: BodyOwner, answer: Response) -> Result<Response, Full> {
        let size = answer.body().size_hint().exact().and_then(|size| usize::try_from(size).ok());
        let Some(size) = size.filter(|size| *size > SMALL_ANSWER) else { return Ok(answer) };
        let mut permit = self.begin(owner);
        permit.grow(size)?;
        let (head, body) = answer.into_parts();
        // A body that is whole in memory is one piece already, and nothing is copied.
        let bytes = to_bytes(body, size).await.map_err(|_| Full)?;
        let counted = Bytes::from_owner(CountedBytes { bytes, _permit: permit });
        Ok(Response::from_parts(head, counted.into()))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<BodyOwner, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_take(&self, held: &HashMap<BodyOwner, Held>, owner: BodyOwner, more: usize) -> bool {
        let own = held.get(&owner).map_or(0, |it| it.bytes) + more;
        let all = held.values().map(|it| it.bytes).sum::<usize>() + more;
        let fits = match owner {
            BodyOwner::Tenant(_) => own <= self.bytes.saturating_sub(all),
            BodyOwner::Callback(_) => own <= (self.bytes / KEYLESS_PART).saturating_sub(keyless_bytes(held) + more),
            BodyOwner::Public => keyless_bytes(held) + more <= self.bytes / KEYLESS_PART,
        };
        fits && all <= self.bytes
    }
}

fn keyless_bytes(held: &HashMap<BodyOwner, Held>) -> usize {
    held.iter().filter(|(owner, _)| !matches!(owner, BodyOwner::Tenant(_))).map(|(_, it)| it.bytes).sum()
}

impl BodyPermit {
    /// Holds this number of bytes more.
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
        let mut first = budget.begin(BodyOwner::Tenant(TenantId::new()));
        assert_eq!(first.grow(601), Err(Full));
        assert_eq!(first.grow(600), Ok(()));
        let mut second = budget.begin(BodyOwner::Tenant(TenantId::new()));
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
        let mut first = budget.begin(BodyOwner::Callback(TenantId::new()));
        assert_eq!(first.grow(201), Err(Full));
        assert_eq!(first.grow(200), Ok(()));
        let mut second = budget.begin(BodyOwner::Callback(TenantId::new()));
        assert_eq!(second.grow(101), Err(Full));
        assert_eq!(second.grow(100), Ok(()));
        assert_eq!(budget.begin(BodyOwner::Tenant(TenantId::new())).grow(1_000), Ok(()));
    }
}
