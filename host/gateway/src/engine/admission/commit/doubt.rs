//! A COMMIT that was sent and not answered: the database is asked on another connection what the transaction came to.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::part::{Part, Written};
use angarium_store::{
    self as store, DatabaseRole, Store, StoreError, TransactionEnd, TransactionId, message::message_exists, tenant_set,
    transaction_end,
};

/// Between two questions about a COMMIT without an answer.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks up the fate of the transaction within a limited time. The server may be restarting, or may not have noticed yet
/// that its client is gone.
///
/// # Errors
/// [`StoreError::Unavailable`] if it was rolled back, or if that can't be told in time.
pub(super) async fn asked_after(
    store: &Store,
    transaction: &TransactionId,
    patience: Instant,
    parts: &[Part],
) -> store::Result<Vec<Written>> {
    let asked = async {
        loop {
            match what_was_stored(store, transaction, parts).await {
                Ok(Some(written)) => return Ok(written),
                Ok(None) => return Err(StoreError::Unavailable(store::lost_connection())),
                Err(error) => tracing::debug!(%error, "a COMMIT without an answer can't be asked after yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let asked = tokio::time::timeout_at(patience, asked).await;
    asked.unwrap_or_else(|_| Err(StoreError::Unavailable(store::lost_connection())))
}

/// Returns the stored rows of the parts, read on a new session; `None` if the transaction was rolled back.
async fn what_was_stored(
    store: &Store,
    transaction: &TransactionId,
    parts: &[Part],
) -> store::Result<Option<Vec<Written>>> {
    let mut session = store.session(DatabaseRole::App).await?;
    let mut txn = session.begin().await?;
    match transaction_end(&mut txn, transaction).await? {
        TransactionEnd::Committed => {}
        TransactionEnd::Aborted => return Ok(None),
        TransactionEnd::Open => return Err(StoreError::Unavailable(store::lost_connection())),
    }
    let mut written = Vec::with_capacity(parts.len());
    for part in parts {
        tenant_set(&mut txn, part.tenant).await?;
        let ids: Vec<_> = part.messages.iter().map(|it| it.id()).collect();
        let fresh: HashSet<_> = message_exists(&mut txn, part.tenant, &ids).await?.into_iter().collect();
        written.push(part.written(&mut txn, fresh).await?);
    }
    Ok(Some(written))
}
