//! The second stage: what messages name is looked up. Today these are the routes of their channels. It refuses nothing
//! for what it does not find: the judge stage does, after the rules.

use super::{Admission, AdmitError, intake::Intake};
use crate::node::tenant_config::TenantConfig;
use angarium_domain::{legs::Leg, message::Message};

impl Admission {
    /// Reads the tenant's configuration again if it lacks a route: another node may just have created it.
    pub(super) async fn resolve(&self, intake: &mut Intake) {
        if intake.open().all(|it| no_route(&intake.config, &it.new.message).is_none()) {
            return;
        }
        // Rare and large: boxed, so that a request's future stays small.
        match Box::pin(self.tenant_configs.reload(intake.tenant)).await {
            Ok(config) => intake.config = config,
            Err(error) => intake.refuse_all(&error.into()),
        }
    }
}

/// Returns the first of a message's channels for which there is neither a connection nor a route.
pub(super) fn no_route(config: &TenantConfig, message: &Message) -> Option<AdmitError> {
    let lacks = |leg: &Leg| leg.connection.is_none() && !config.routes.contains_key(&leg.channel);
    let (number, leg) = message.legs.iter().enumerate().find(|(_, leg)| lacks(leg))?;
    Some(AdmitError::NoRoute { channel: leg.channel.clone(), leg: message.legs.is_list().then_some(number) })
}
