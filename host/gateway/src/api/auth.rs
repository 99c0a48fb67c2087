//! Authentication and authorisation. The tenant comes only from the key.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};

use super::{
    App, HttpState,
    body_budget::BodyOwner,
    problem::Problem,
    request::{Caller, RequestId, refuse_parameters},
};
use crate::{
    app::{Principal, key_lookup::KeyHash},
    credential,
};
use angarium_domain::{
    audit::Actor,
    ids::TenantId,
    key::{ApiKey, Scope},
};

/// The permission that a handler requires of a key.
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
    /// Read what was sent.
    ContentRead;
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
    /// Read the audit.
    AuditRead;
    /// Install providers and grant hosts.
    Operator;
}

/// Try rules and scripts on sent messages, and see the results. A script can ask the messages any question, so even a
/// resulting number reveals their content.
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
    hash: KeyHash,
    request: Option<RequestId>,
    permission: PhantomData<P>,
}

impl<P> Tenant<P> {
    /// Whether the key may act as the operator.
    pub fn is_operator(&self) -> bool {
        self.key.allows(Scope::Operator)
    }

    /// Returns the key and the request, for the audit.
    pub fn actor(&self) -> Actor {
        let request = self.request.as_ref().map(|id| id.as_str().to_owned());
        Actor::api_key(&self.key, request)
    }

    /// Returns the tenant and the author, for a use case.
    pub fn principal(&self) -> Principal {
        Principal { tenant: self.id, actor: self.actor() }
    }

    /// Whether recipients, content and providers' texts about them may be shown. A key without `messages:read` gets the
    /// answer to its actions on a message without these.
    pub fn reads_messages(&self) -> bool {
        self.key.allows(Scope::MessagesRead)
    }
}

impl<P: Permission> Tenant<P> {
    /// Whether the key still has its permission: for requests that outlast its cached lookup.
    pub async fn is_still_allowed(&self, app: &App) -> bool {
        let found = app.keys.find(&self.hash).await;
        let allows = |key: &ApiKey| P::SCOPES.iter().all(|scope| key.allows(*scope));
        found.is_ok_and(|key| key.is_some_and(|key| key.tenant == self.id && allows(&key)))
    }
}

impl<P: Permission> FromRequestParts<HttpState> for Tenant<P> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, http: &HttpState) -> Result<Self, Problem> {
        let text = bearer(parts).ok_or_else(|| {
            Problem::unauthorized("send the header `Authorization: Bearer ak_…` with a key of `angarium key create`")
        })?;
        let hash = credential::hash(text);
        let key = http.app.keys.find(&hash).await?;
        let key = key.ok_or_else(|| Problem::unauthorized("the key is unknown, revoked or expired"))?;
        if let Some(lacking) = P::SCOPES.iter().find(|scope| !key.allows(**scope)) {
            return Err(Problem::forbidden(lacking.as_str()));
        }
        refuse_parameters(parts)?;
        parts.extensions.insert(BodyOwner::Tenant(key.tenant));
        if let Some(caller) = parts.extensions.get::<Caller>() {
            caller.is(key.tenant);
        }
        let request = parts.extensions.get().cloned();
        Ok(Self { id: key.tenant, key, hash, request, permission: PhantomData })
    }
}

fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, text) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && text.starts_with(credential::PREFIX)).then_some(text)
}
