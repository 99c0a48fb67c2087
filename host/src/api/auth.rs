//! Who asks, and whether they may. The tenant comes from the key and from nowhere else.

use std::{
    collections::HashMap,
    marker::PhantomData,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};

use super::{App, problem::Problem, request::RequestId};
use crate::{
    clock, credential,
    domain::{
        audit::Actor,
        ids::TenantId,
        key::{ApiKey, Scope},
    },
    store::{self, Store},
};

/// How long a key is believed without asking the database again; so long a revoked one still opens.
const BELIEVED: Duration = Duration::from_secs(3);
/// How long a look-up may take, the wait for others' included, before the request is told to come
/// again.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// More keys than this are forgotten at once: no list of guesses fills the memory.
const MOST_KEYS: usize = 100_000;

type Known = HashMap<[u8; 32], (Arc<ApiKey>, Instant)>;

/// Finds keys by their hashes, and remembers them for a short while.
#[derive(Debug, Default)]
pub struct Keys {
    known: RwLock<Known>,
    /// One look-up at a time: a key that a thousand requests carry is asked for once.
    asking: tokio::sync::Mutex<()>,
}

impl Keys {
    /// The key of this text, if it exists, whether or not it is still valid.
    async fn find(&self, store: &Store, text: &str) -> Result<Option<Arc<ApiKey>>, Problem> {
        let hash = credential::hash(text);
        if let Some(key) = self.remembered(&hash) {
            return Ok(Some(key));
        }
        let _asking = self.asking.lock().await;
        if let Some(key) = self.remembered(&hash) {
            return Ok(Some(key));
        }
        let found = store::api_key::api_key_find(&mut *store.worker().await?, &hash).await?.map(Arc::new);
        if let Some(key) = &found {
            self.remember(hash, key);
        }
        Ok(found)
    }

    /// Forgets a tenant's keys: one of them may have been revoked.
    pub fn forget(&self, tenant: TenantId) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).retain(|_, (key, _)| key.tenant != tenant);
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<Arc<ApiKey>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(hash).filter(|(_, since)| since.elapsed() < BELIEVED).map(|(key, _)| Arc::clone(key))
    }

    fn remember(&self, hash: [u8; 32], key: &Arc<ApiKey>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KEYS {
            known.clear();
        }
        known.insert(hash, (Arc::clone(key), Instant::now()));
    }
}

/// What a handler asks of a key.
pub trait Permission {
    /// It has to have all of them.
    const SCOPES: &'static [Scope];
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl Permission for $name {
            const SCOPES: &'static [Scope] = &[Scope::$name];
        }
    )*};
}

permissions! {
    /// Send, cancel, retry; deal with dead letters.
    MessagesWrite;
    /// Look at messages.
    MessagesRead;
    /// Change connections and their secrets.
    ConnectionsWrite;
    /// Look at connections.
    ConnectionsRead;
    /// Change routes.
    RoutesWrite;
    /// Look at routes.
    RoutesRead;
    /// Change rules and scripts.
    RulesWrite;
    /// Look at rules and scripts, and try them.
    RulesRead;
    /// Look at providers.
    ProvidersRead;
    /// Look at who did what.
    AuditRead;
    /// Install providers and grant hosts.
    Operator;
}

/// Try rules and scripts on messages that were sent, and see what came of it. Whoever writes the script asks the messages
/// any question, so that even a number that comes of it tells what they say.
#[derive(Debug)]
pub struct RulesReadOnMessages;

impl Permission for RulesReadOnMessages {
    const SCOPES: &'static [Scope] = &[Scope::RulesRead, Scope::MessagesRead];
}

/// The tenant of a request whose key allows `P`.
#[derive(Debug)]
pub struct Tenant<P> {
    pub id: TenantId,
    key: Arc<ApiKey>,
    request: Option<RequestId>,
    permission: PhantomData<P>,
}

impl<P> Tenant<P> {
    /// Whether the key may do what is the operator's.
    pub fn is_operator(&self) -> bool {
        self.key.allows(Scope::Operator)
    }

    /// Who asks, for the record.
    pub fn actor(&self) -> Actor {
        let request = self.request.as_ref().map(|id| id.as_str().to_owned());
        Actor { key: self.key.id, name: self.key.name.clone(), request }
    }

    /// Whether recipients, content and what providers say of them may be shown: what a key without `messages:read` did
    /// to a message it is told without these.
    pub fn reads_messages(&self) -> bool {
        self.key.allows(Scope::MessagesRead)
    }
}

impl<P: Permission> FromRequestParts<App> for Tenant<P> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let text = bearer(parts).ok_or_else(|| {
            Problem::unauthorized("send the header `Authorization: Bearer ak_…` with a key of `angarium key create`")
        })?;
        let found = tokio::time::timeout(PATIENCE, app.keys.find(&app.store, text)).await;
        let found = found.unwrap_or_else(|_| Err(Problem::unavailable("the database does not answer")))?;
        let key = found.filter(|key| key.is_valid(clock::now()));
        let key = key.ok_or_else(|| Problem::unauthorized("the key is unknown, revoked or expired"))?;
        if let Some(lacking) = P::SCOPES.iter().find(|scope| !key.allows(**scope)) {
            return Err(Problem::forbidden(lacking.as_str()));
        }
        let request = parts.extensions.get().cloned();
        Ok(Self { id: key.tenant, key, request, permission: PhantomData })
    }
}

fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, text) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && text.starts_with(credential::PREFIX)).then_some(text)
}
