//! A dry run: the plan, and the exact requests that would leave, with secrets redacted. It sends
//! nothing and stores nothing.

use std::sync::Arc;

use serde::Serialize;

use super::{Dispatcher, attempt::secrets_closed, item, payload::BODY_COPIES};
use crate::{
    clock,
    engine::planning::Planned,
    node::providers::Serving,
    node::tenant_config::{Endpoint, TenantConfig},
};
use angarium_domain::{
    ids::{ConnectionId, TenantId},
    message::{LARGE, NewMessage},
    provider::{CallContext, Step},
    sensitive::SensitiveTexts,
};
use angarium_runtime::CallError;
use angarium_store as store;
use angarium_transport::describe;

/// The result of a dry run.
#[derive(Debug, Clone, Serialize)]
pub struct Preview {
    /// `None` when no route serves the channel.
    pub plan: Option<Planned>,
    /// The first request of each candidate, in the plan's order.
    pub requests: Vec<PreviewRequest>,
}

/// The result for one channel of a message that names a list.
#[derive(Debug, Serialize)]
pub struct LegPreview {
    pub leg: u8,
    pub channel: String,
    #[serde(flatten)]
    pub preview: Preview,
}

/// The request that would leave through one connection, or the reason for none.
#[derive(Debug, Clone, Serialize)]
pub struct PreviewRequest {
    pub connection: ConnectionId,
    pub provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The bytes of a leg's requests that a dry run shows; it shows at least one request.
const MOST_SHOWN: usize = 4 << 20;

fn not_shown(config: &TenantConfig, connection: ConnectionId) -> Option<PreviewRequest> {
    let provider = config.endpoints.get(&connection)?.connection.provider.clone();
    let refused = Some("is not shown: the message is too large for more requests in one answer".to_owned());
    Some(PreviewRequest { connection, provider, request: None, refused })
}

impl Dispatcher {
    /// Plays a message through to the point where it would leave: on its first channel, and, if it names a list, on
    /// each of them.
    ///
    /// # Errors
    /// When the tenant's configuration can't be read.
    pub async fn preview(&self, tenant: TenantId, new: &NewMessage) -> store::Result<(Preview, Vec<LegPreview>)> {
        let config = self.tenant_configs.tenant(tenant).await?;
        let size = new.size();
        let _permit = if size > LARGE { Some(self.bytes.take(tenant, BODY_COPIES * size).await) } else { None };
        Ok(self.rules.try_out(tenant, || self.previews(&config, new)).await)
    }

    fn previews(&self, config: &TenantConfig, new: &NewMessage) -> (Preview, Vec<LegPreview>) {
        let due_at = new.message.due_at();
        let count = if new.message.legs.is_list() { new.message.legs.policy().count } else { 0 };
        let legs = (0..count).map(|leg| {
            let seen = NewMessage {
                message: new.message.as_leg(leg, due_at),
                idempotency: None,
                attachments: new.attachments.iter().filter(|file| file.leg == leg).cloned().collect(),
                rule_input: None,
            };
            let channel = seen.message.first().channel.as_str().to_owned();
            LegPreview { leg, channel, preview: self.preview_of(config, &seen, leg) }
        });
        let legs: Vec<_> = legs.collect();
        let first = match legs.first() {
            Some(first) => first.preview.clone(),
            None => self.preview_of(config, new, 0),
        };
        (first, legs)
    }

    fn preview_of(&self, config: &TenantConfig, new: &NewMessage, leg: u8) -> Preview {
        let planned = self.planner.plan_dry_run(config, &new.message);
        let candidates = planned.iter().flat_map(|it| &it.plan.candidates);
        let most = (MOST_SHOWN / new.size()).max(1);
        let shown = candidates.clone().take(most).filter_map(|it| self.request(config, it.connection, new, leg));
        let rest = candidates.skip(most).filter_map(|it| not_shown(config, it.connection));
        let requests = shown.chain(rest).collect();
        Preview { plan: planned, requests }
    }

    fn request(
        &self,
        config: &TenantConfig,
        connection: ConnectionId,
        new: &NewMessage,
        leg: u8,
    ) -> Option<PreviewRequest> {
        let endpoint = config.endpoints.get(&connection)?;
        if let Some(verdict) = secrets_closed(endpoint) {
            let (request, refused) = (None, Some(verdict.detail));
            let provider = endpoint.connection.provider.clone();
            return Some(PreviewRequest { connection, provider, request, refused });
        }
        let (request, refused) = match self.providers.serving_for(&endpoint.connection.provider, endpoint.tenant) {
            Some(serving) => shown(&serving, endpoint, new, leg),
            None => (None, Some(self.providers.absence(&endpoint.connection.provider, endpoint.tenant))),
        };
        Some(PreviewRequest { connection, provider: endpoint.connection.provider.clone(), request, refused })
    }
}

/// Returns the first request, or the reason for none, without sensitive parts of the config: a sender need not be a
/// reader of connections.
fn shown(
    serving: &Serving,
    endpoint: &Endpoint,
    new: &NewMessage,
    leg: u8,
) -> (Option<serde_json::Value>, Option<String>) {
    let sensitive = SensitiveTexts::of(serving.component.descriptor(), &endpoint.config);
    match first_request(serving, endpoint, new, leg) {
        Ok(mut request) => {
            sensitive.hide(&mut request);
            (Some(request), None)
        }
        Err(mut reason) => {
            sensitive.hide_text(&mut reason);
            (None, Some(reason))
        }
    }
}

fn first_request(
    serving: &Serving,
    endpoint: &Endpoint,
    new: &NewMessage,
    leg: u8,
) -> Result<serde_json::Value, String> {
    let blobs = item::blobs(new.attachments.clone());
    let infos = blobs.iter().map(item::blob_info).collect();
    let named = new.message.first();
    let item = item::item(new.message.id.leg(leg), named, &named.content, infos);
    let context = CallContext {
        now_ms: clock::now().as_millisecond() as f64,
        attempt: 1,
        seed: [0; 32],
        secrets: endpoint.secret_names.clone(),
        callback_url: endpoint.callback_url.clone().filter(|_| serving.component.reads_callbacks()),
        redactor: Arc::clone(endpoint.secrets.redactor()),
    };
    let called = serving.component.prepare(&context, endpoint.connection.config.get(), &[item]);
    match called.result {
        Ok(Step::Send { transmission, .. }) => describe(&transmission, &blobs).map_err(|fault| fault.detail),
        Ok(Step::Wait { .. }) => Err("the provider waits before it sends".to_owned()),
        Ok(Step::Done(judgements)) => {
            Err(judgements.into_iter().next().map_or_else(String::new, |judgement| judgement.message))
        }
        Err(CallError::Judged(judgement)) => Err(judgement.message),
        Err(CallError::Broken(fault)) => Err(fault.to_string()),
    }
}
