//! Messages as their readers see them.

use super::{App, PageRows, Result, decision::rule_accounts, error::UseCaseError};
use angarium_domain::ids::{MessageId, TenantId};
use angarium_rules::Account;
use angarium_store::{
    Connection as Db, attempt::attempt_list_all, event::event_list, message::message_get, message_search::message_list,
};

pub use angarium_store::{
    attempt::AttemptView,
    event::EventView,
    message::{DeliveryView, MessageView},
    message_search::MessageFilter,
};

/// Returns a page of the messages that match, the newest first, from behind `after`.
pub async fn list(
    app: &App,
    tenant: TenantId,
    filter: &MessageFilter,
    after: Option<MessageId>,
    limit: u32,
) -> Result<PageRows<MessageView>> {
    let mut txn = app.store.snapshot(tenant).await?;
    Ok(message_list(&mut txn, tenant, filter, after, limit).await?)
}

/// Returns a message and its state.
pub async fn get(app: &App, tenant: TenantId, id: MessageId) -> Result<MessageView> {
    found(&mut *app.store.snapshot(tenant).await?, tenant, id).await
}

/// Returns every attempt of a message, the oldest first.
pub async fn attempts(app: &App, tenant: TenantId, id: MessageId) -> Result<Vec<AttemptView>> {
    let mut txn = app.store.snapshot(tenant).await?;
    found(&mut txn, tenant, id).await?;
    Ok(attempt_list_all(&mut txn, tenant, id).await?)
}

/// Returns a message and the events after its acceptance, the oldest first.
pub async fn events(app: &App, tenant: TenantId, id: MessageId) -> Result<(MessageView, Vec<EventView>)> {
    let mut txn = app.store.snapshot(tenant).await?;
    let view = found(&mut txn, tenant, id).await?;
    Ok((view, event_list(&mut txn, tenant, id).await?))
}

/// The decisions about a message.
pub struct MessageDecisions {
    pub view: MessageView,
    /// Every rule's reason at acceptance.
    pub rules: Vec<Account>,
    /// Each has its plan.
    pub attempts: Vec<AttemptView>,
    pub events: Vec<EventView>,
}

/// Returns the decisions about a message: by rules, and for each attempt by routing.
pub async fn decisions(app: &App, tenant: TenantId, id: MessageId) -> Result<MessageDecisions> {
    let mut txn = app.store.snapshot(tenant).await?;
    let view = found(&mut txn, tenant, id).await?;
    let attempts = attempt_list_all(&mut txn, tenant, id).await?;
    let events = event_list(&mut txn, tenant, id).await?;
    drop(txn);
    let config = app.tenant_configs.tenant(tenant).await?;
    let rules = rule_accounts(&app.store, &app.rules, &config, tenant, &view.message).await?;
    Ok(MessageDecisions { view, rules, attempts, events })
}

async fn found(db: &mut Db, tenant: TenantId, id: MessageId) -> Result<MessageView> {
    message_get(db, tenant, id).await?.ok_or(UseCaseError::NotFound("message"))
}
