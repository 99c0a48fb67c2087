//! Messages behind idempotency keys that were accepted before.

use std::{collections::HashMap, sync::Arc};

use super::super::{AdmitError, Admitted};
use angarium_domain::{
    ids::{MessageId, TenantId},
    message::{Idempotency, Message},
};
use angarium_store::{
    self as store,
    message::{KnownKey, idempotency_find, message_load},
};

/// The known ones among some keys, with their messages.
#[derive(Default)]
pub(super) struct KnownMessages {
    keys: Vec<KnownKey>,
    messages: HashMap<MessageId, Arc<Message>>,
}

impl KnownMessages {
    pub(super) async fn load(db: &mut store::Connection, tenant: TenantId, keys: &[&str]) -> store::Result<Self> {
        let keys = idempotency_find(db, tenant, keys).await?;
        let ids: Vec<_> = keys.iter().map(|it| (tenant, it.message)).collect();
        let messages = message_load(db, &ids).await?;
        let messages = messages.into_iter().map(|(_, message)| (message.id, Arc::new(message))).collect();
        Ok(Self { keys, messages })
    }

    /// Returns the first answer to a key; `None` if it is not known.
    pub(super) fn answer(&self, key: &Idempotency) -> Option<Result<Admitted, AdmitError>> {
        let known = self.keys.iter().find(|it| it.key == key.key)?;
        if !key.is_of(&known.fingerprint) {
            return Some(Err(AdmitError::KeyReused));
        }
        let message = self.messages.get(&known.message)?;
        Some(Ok(Admitted { message: Arc::clone(message), replayed: true }))
    }
}
