//! Look-ups of API keys by their hashes: many at once in one question, and remembered for a moment.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;

use super::{Result, error::UseCaseError};
use crate::{
    clock,
    engine::lookup::{Lookup, Unanswered},
};
use angarium_domain::{ids::TenantId, key::ApiKey};
use angarium_store::{Store, api_key::api_keys_find};

/// The time for a look-up, including the wait for others, after which the client is asked to repeat the request.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The SHA-256 of a key's text.
pub type KeyHash = [u8; 32];

/// Finds keys by their hashes. A revoked key is remembered for at most three seconds where its end was not announced.
pub struct Keys(Arc<Lookup<KeyHash, Arc<ApiKey>>>);

impl Keys {
    #[must_use]
    pub fn new(store: Store) -> Self {
        let ask = move |hashes: Vec<KeyHash>| {
            let store = store.clone();
            async move {
                let mut txn = store.worker().await?;
                let found = api_keys_find(&mut txn, &hashes).await?;
                Ok(found.into_iter().map(|(hash, key)| (hash, Arc::new(key))).collect())
            }
            .boxed()
        };
        Self(Arc::new(Lookup::new(ask)))
    }

    /// The key with this hash, if it exists and is valid now.
    pub async fn find(&self, hash: &KeyHash) -> Result<Option<Arc<ApiKey>>> {
        match tokio::time::timeout(PATIENCE, self.0.find(hash)).await {
            Ok(Ok(found)) => Ok(found.filter(|key| key.is_valid(clock::now()))),
            Ok(Err(Unanswered::Busy)) => {
                Err(UseCaseError::Unavailable("too many unknown keys are looked up at the moment"))
            }
            Ok(Err(Unanswered::Database)) | Err(_) => Err(UseCaseError::Unavailable("the database does not answer")),
        }
    }

    /// Has a tenant's keys looked up again: one of them may have been revoked.
    pub fn forget(&self, tenant: TenantId) {
        self.0.doubt(|key| key.tenant == tenant);
    }
}
