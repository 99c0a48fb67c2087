//! The fifth stage: the first attempt of what this node begins at once is planned before the message is written, with
//! the function that dispatch uses. It does not send.

use std::sync::Arc;

use super::{
    Admission,
    intake::{Intake, IntakeMessage},
};
use angarium_rules::rulebook::JudgedMessage;

impl Admission {
    /// Plans the first attempts; the first connection is stored with its message.
    pub(super) async fn plan(&self, intake: &mut Intake) {
        let Some(planner) = &self.outlet.planner else { return };
        let until = Some(intake.patience());
        let (tenant, config) = (intake.tenant, Arc::clone(&intake.config));
        for message in &mut intake.messages {
            let IntakeMessage::Open(open) = message else { continue };
            if !open.starts_here {
                continue;
            }
            let judged = JudgedMessage { until, ..std::mem::take(&mut open.judged) };
            // Boxed, so that a request's future stays small.
            let planned = Box::pin(planner.plan_first_attempt(tenant, &config, &open.new.message, judged)).await;
            open.first_attempt = planned.map(Box::new);
            open.new.message.body.first = open.first_attempt.as_ref().and_then(|it| it.first);
            // Scripts may take their time, and a request may have a thousand messages: others are let through between.
            tokio::task::coop::consume_budget().await;
        }
    }
}
