//! A dry run: the plan, and the exact requests that would leave, with secrets redacted. It sends
//! nothing and stores nothing.

use serde::Serialize;

use super::{Course, Dispatcher, item};
use crate::{
    clock,
    directory::{Endpoint, TenantConfig},
    domain::{
        ids::{ConnectionId, TenantId},
        message::NewMessage,
        provider::{CallContext, Step},
    },
    routing::{self, Plan, Situation},
    runtime::CallError,
    store,
    transport::describe,
};

/// What would happen.
#[derive(Debug, Serialize)]
pub struct Preview {
    /// `None` when no route serves the channel.
    pub plan: Option<Plan>,
    /// The first request of each candidate, in the plan's order.
    pub requests: Vec<PreviewRequest>,
}

/// What would leave through one connection, or why nothing would.
#[derive(Debug, Serialize)]
pub struct PreviewRequest {
    pub connection: ConnectionId,
    pub provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Dispatcher {
    /// Plays a message through to the point where it would leave.
    ///
    /// # Errors
    /// When the tenant's configuration can't be read.
    pub async fn preview(&self, tenant: TenantId, new: NewMessage) -> store::Result<Preview> {
        let config = self.directory.tenant(tenant).await?;
        let Some(course) = Course::of(&config, &new.message) else {
            return Ok(Preview { plan: None, requests: Vec::new() });
        };
        let standings = self.standings(&config, &course.spec, &new.message);
        let turn = course.route.map_or(0, |(route, _)| self.turns.upcoming(route));
        let plan = routing::plan(&course.spec, &standings, &Situation { past: &[], turn, chance: fastrand::f64() });
        let requests = plan.candidates.iter().filter_map(|it| self.request(&config, it.connection, &new)).collect();
        Ok(Preview { plan: Some(plan), requests })
    }

    fn request(&self, config: &TenantConfig, connection: ConnectionId, new: &NewMessage) -> Option<PreviewRequest> {
        let endpoint = config.endpoints.get(&connection)?;
        let told = self.first_request(endpoint, new);
        let (request, refused) = match told {
            Ok(request) => (Some(request), None),
            Err(reason) => (None, Some(reason)),
        };
        Some(PreviewRequest { connection, provider: endpoint.connection.provider.clone(), request, refused })
    }

    fn first_request(&self, endpoint: &Endpoint, new: &NewMessage) -> Result<serde_json::Value, String> {
        let serving = self.providers.serving(&endpoint.connection.provider).ok_or("the provider is not installed")?;
        let blobs = item::blobs(new.attachments.clone());
        let item = item::item(new.message.id.first_delivery(), &new.message, &blobs);
        let context = CallContext {
            now_ms: clock::now().as_millisecond() as f64,
            attempt: 1,
            seed: [0; 32],
            secrets: endpoint.secret_names.clone(),
            callback_url: endpoint.callback_url.clone().filter(|_| serving.component.reads_callbacks()),
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
}
