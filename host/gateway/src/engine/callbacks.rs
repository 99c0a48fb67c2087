//! Callbacks: the connection's provider reads a request to its callback URL, the gateway proves it to be the service's,
//! and records its receipts with their effects.
//!
//! Nothing of a request is trusted before its proof; this module sends nothing and makes no attempt. A component's
//! failure over a request does not count against it: anybody with the URL could otherwise take a provider out of
//! service.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod proof;
mod record;
mod sweep;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;

pub use sweep::run as sweep;

use self::{
    proof::CallbackEvidence,
    record::{RecordedReceipt, record},
};
use crate::{
    clock,
    engine::fair_semaphore::FairSemaphore,
    engine::lookup::Lookup,
    node::providers::{Providers, Serving},
    node::tenant_config::{Endpoint, TenantConfigs},
};
use angarium_domain::{
    callback::{Callback, CallbackContext, CallbackReply, CallbackRequest, PublicUrl},
    ids::{ConnectionId, TenantId},
    receipt::{Receipt, ReceiptKind},
    transmission::Kv,
};
use angarium_runtime::{CallError, Called};
use angarium_store::{
    self as store, Store, StoreError,
    connection::connections_of_tokens,
    receipt::{ReceivedReceipt, pending_insert},
};

/// The longest token that is looked up.
const MOST_TOKEN: usize = 128;
/// How many callbacks a node handles at a time.
pub const AT_A_TIME: usize = 64;
/// How long a callback waits for its turn: services give up after some ten seconds.
const TURN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a look-up may take, the wait for others' included.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// A request as it came.
#[derive(Debug)]
pub struct Incoming {
    pub method: String,
    /// The `Host` header.
    pub host: String,
    pub path_and_query: String,
    /// Names in lower case.
    pub headers: Vec<Kv>,
    pub body: Bytes,
}

/// The connection that receives the callbacks of a token.
pub struct Receiver {
    tenant: TenantId,
    endpoint: Arc<Endpoint>,
    serving: Serving,
}

impl Receiver {
    /// Returns the tenant of the token.
    #[must_use]
    pub const fn tenant(&self) -> TenantId {
        self.tenant
    }
}

/// Why a callback was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CallbackRefused {
    /// No connection has this token, or its provider reads no callbacks.
    #[error("there is no such callback")]
    Unknown,
    /// The owner of the token cannot be determined.
    #[error("the token could not be looked up")]
    Unanswered,
    /// Its turn did not come in time.
    #[error("too many callbacks come at the same time")]
    Busy,
    /// None of its checks passed, and a secret that might prove it cannot be opened: the service shall send it again.
    #[error("a secret of the connection cannot be opened")]
    SecretUnavailable,
    /// No version of the provider serves now.
    #[error("no version of the provider serves now")]
    NotServing,
    /// The provider says that it is none of its service's.
    #[error("{0}")]
    Foreign(String),
    /// None of its checks passed.
    #[error("the request is not signed as the provider's service signs")]
    NotGenuine,
    /// The provider's component failed over it.
    #[error("the provider's component failed over it")]
    Broken,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The way in for callbacks.
pub struct Callbacks {
    store: Store,
    tenant_configs: Arc<TenantConfigs>,
    providers: Arc<Providers>,
    pub public_url: PublicUrl,
    tokens: Arc<Lookup<String, (TenantId, ConnectionId)>>,
    /// A component's call takes a thread: few callbacks are handled at a time, tenants by turns.
    semaphore: Arc<FairSemaphore>,
}

impl Callbacks {
    #[must_use]
    pub fn new(
        store: Store,
        tenant_configs: Arc<TenantConfigs>,
        providers: Arc<Providers>,
        public_url: PublicUrl,
        semaphore: Arc<FairSemaphore>,
    ) -> Self {
        let asked = store.clone();
        let ask = move |tokens: Vec<String>| {
            let store = asked.clone();
            async move {
                let mut txn = store.worker().await?;
                Ok(connections_of_tokens(&mut txn, &tokens).await?.into_iter().collect())
            }
            .boxed()
        };
        Self { store, tenant_configs, providers, public_url, tokens: Arc::new(Lookup::new(ask)), semaphore }
    }

    /// Finds the connection of a token's callback URL.
    ///
    /// # Errors
    /// When no connection has the token.
    pub async fn receiver(&self, token: &str) -> Result<Receiver, CallbackRefused> {
        let (tenant, connection) = self.connection(token).await?;
        let endpoint = self.endpoint(tenant, connection).await?;
        let serving = self.providers.serving(&endpoint.connection.provider).ok_or(CallbackRefused::NotServing)?;
        if !serving.component.reads_callbacks() {
            return Err(CallbackRefused::Unknown);
        }
        Ok(Receiver { tenant, endpoint, serving })
    }

    /// Takes a request to a token's callback URL, and returns the service's expected answer.
    ///
    /// # Errors
    /// When the request is not verified, or its events cannot be recorded.
    pub async fn receive(&self, receiver: Receiver, incoming: Incoming) -> Result<CallbackReply, CallbackRefused> {
        let Receiver { tenant, endpoint, serving } = receiver;
        // A burst waits: many services never repeat a callback that was refused.
        let _turn = timeout(TURN_PATIENCE, self.semaphore.enter(tenant)).await.map_err(|_| CallbackRefused::Busy)?;
        let connection = endpoint.connection.id;
        let name = &endpoint.connection.provider;
        let received = self.believe(&endpoint, serving, incoming).await;
        let result = match &received {
            Ok(_) => "taken",
            Err(CallbackRefused::NotGenuine) => "not_genuine",
            Err(CallbackRefused::Foreign(_)) => "foreign",
            Err(_) => "failed",
        };
        metrics::counter!("angarium_callbacks_total", "provider" => name.clone(), "result" => result).increment(1);
        let callback = received?;
        for receipt in callback.receipts {
            self.take(tenant, connection, receipt).await?;
        }
        Ok(callback.reply)
    }

    async fn connection(&self, token: &str) -> Result<(TenantId, ConnectionId), CallbackRefused> {
        let is_one =
            token.len() <= MOST_TOKEN && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !is_one {
            return Err(CallbackRefused::Unknown);
        }
        let found = timeout(PATIENCE, self.tokens.find(&token.to_owned())).await;
        found.ok().and_then(Result::ok).ok_or(CallbackRefused::Unanswered)?.ok_or(CallbackRefused::Unknown)
    }

    /// This node may not have heard of a new connection yet.
    async fn endpoint(&self, tenant: TenantId, connection: ConnectionId) -> Result<Arc<Endpoint>, CallbackRefused> {
        let known = self.tenant_configs.tenant(tenant).await?.endpoints.get(&connection).map(Arc::clone);
        if let Some(known) = known {
            return Ok(known);
        }
        let anew = self.tenant_configs.reload(tenant).await?;
        anew.endpoints.get(&connection).map(Arc::clone).ok_or(CallbackRefused::Unknown)
    }

    /// The callback, once one of its checks has passed.
    async fn believe(
        &self,
        endpoint: &Arc<Endpoint>,
        serving: Serving,
        incoming: Incoming,
    ) -> Result<Callback, CallbackRefused> {
        let may_be_unsigned = serving.component.descriptor().has_unsigned_callbacks();
        let request = CallbackRequest {
            method: incoming.method,
            url: self.public_url.of_request(&incoming.host, &incoming.path_and_query),
            headers: incoming.headers,
            body: incoming.body.clone(),
        };
        let callback = read(Arc::clone(endpoint), serving, request).await?;
        let evidence =
            CallbackEvidence { body: &incoming.body, secrets: &endpoint.secrets, may_be_unsigned, now: clock::now() };
        match proof::is_genuine(&callback, &evidence) {
            true => Ok(callback),
            false if !endpoint.secrets.closed().is_empty() => Err(CallbackRefused::SecretUnavailable),
            false => Err(CallbackRefused::NotGenuine),
        }
    }

    /// Records a receipt, or keeps it until its delivery's outcome is written.
    async fn take(&self, tenant: TenantId, connection: ConnectionId, receipt: Receipt) -> store::Result<()> {
        let received = ReceivedReceipt { tenant, connection, receipt, received_at: clock::now() };
        let mut recorded = RecordedReceipt::Unmatched;
        if received.receipt.names_a_delivery() {
            let mut txn = self.store.tenant(tenant).await?;
            recorded = record(&mut txn, &received, self.tenant_configs.asks_outcomes(tenant)).await?;
            if recorded != RecordedReceipt::NotYet {
                txn.commit().await?;
            } else {
                txn.rollback().await?;
                // A person's message has an id of its own, which no delivery will ever have.
                if received.receipt.kind == ReceiptKind::Inbound {
                    recorded = RecordedReceipt::Unmatched;
                } else {
                    let mut txn = self.store.tenant(tenant).await?;
                    pending_insert(&mut txn, &received).await?;
                    txn.commit().await?;
                }
            }
        }
        record::count(&received.receipt.kind, recorded);
        Ok(())
    }
}

/// Off the threads that serve requests: a component may take its whole time over it.
async fn read(
    endpoint: Arc<Endpoint>,
    serving: Serving,
    request: CallbackRequest,
) -> Result<Callback, CallbackRefused> {
    let name = endpoint.connection.provider.clone();
    let context = CallbackContext {
        now_ms: clock::now().as_millisecond() as f64,
        secrets: endpoint.secret_names.clone(),
        redactor: Arc::clone(endpoint.secrets.redactor()),
    };
    let parse = move || serving.component.parse_callback(&context, endpoint.connection.config.get(), &request);
    let parsed = tokio::task::spawn_blocking(parse).await.map_err(|_| CallbackRefused::Broken)?;
    judge(&name, parsed)
}

fn judge(provider: &str, called: Called<Result<Callback, String>>) -> Result<Callback, CallbackRefused> {
    match called.result {
        Ok(Ok(callback)) => Ok(callback),
        Ok(Err(refusal)) => Err(CallbackRefused::Foreign(refusal)),
        Err(CallError::Broken(fault)) => {
            tracing::warn!(provider.name = provider, %fault, "a provider's component failed over a callback");
            Err(CallbackRefused::Broken)
        }
        Err(CallError::Judged(_)) => Err(CallbackRefused::Broken),
    }
}
