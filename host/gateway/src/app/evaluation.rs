//! Evaluations: the answers of rules and scripts to a message that is neither stored nor sent.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    sending::{AdmitError, MessageSource},
};
use crate::{clock, engine::planning::Planned, node::tenant_config::TenantConfig};
use angarium_domain::{
    ids::TenantId,
    message::{Message, Priority},
    rule_input::RuleInput,
};
use angarium_rules::{
    Account,
    rulebook::{MessageJudgement, Rulebook},
    ruling::Ruling,
    script::{Given, facts::ContextFacts},
};

/// The fate of a message, with the reasons.
#[derive(Debug, Serialize, ToSchema)]
pub struct Evaluation {
    accepted: bool,
    /// The refusal, with its author and reason.
    refused: Option<RefusedBy>,
    /// The channel that it would take.
    channel: String,
    priority: Priority,
    /// When it would be due, if not at once.
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
    /// Whether the message's `condition` holds now; null if it names none, or the script fails.
    condition_holds: Option<bool>,
    /// The candidates of its first channel in order, and the scripts' answers about them; null if the message is
    /// refused, or no route serves the channel.
    #[schema(value_type = Option<Object>)]
    plan: Option<Planned>,
    /// The rules' and scripts' answers, as they would be stored with the message.
    #[schema(value_type = Object)]
    ruling: Ruling,
    /// Every rule, hit or missed, and why: those that hold first.
    #[schema(value_type = Vec<Object>)]
    rules: Vec<Account>,
}

/// The author of a refusal.
#[derive(Debug, Serialize, ToSchema)]
pub struct RefusedBy {
    /// A rule's id, or a script's name.
    by: String,
    name: String,
    reason: String,
}

/// Returns the answers of rules and scripts to a message, with all reasons.
///
/// # Errors
/// With all fields that are wrong.
pub async fn evaluate<M: MessageSource>(app: &App, tenant: TenantId, message: M) -> Result<Evaluation, AdmitError> {
    let (message, config) = app.admission.read(tenant, message).await?;
    Ok(app.rules.try_out(tenant, || evaluated(app, &config, message)).await)
}

fn evaluated(app: &App, config: &TenantConfig, mut message: Message) -> Evaluation {
    let given = Given { now: clock::now(), chance: fastrand::f64() };
    // Failures here belong to no delivery: they do not count against a script.
    let book = config.rulebook.as_deref().map(Rulebook::rehearsal).unwrap_or_default();
    let explain = || book.for_recipient(&RuleInput::of(&message)).0.explain(&message, given.now);
    let rules = app.rules.as_for_an_explanation(explain);
    let (judgement, _) = app.rules.as_for_a_message(|| book.admit(&mut message, &given));
    let MessageJudgement { ruling, refused, .. } = judgement;
    let plan = if refused.is_some() { None } else { app.dispatcher.planner.plan_dry_run(config, &message) };
    let condition_holds = message.body.condition.as_deref().and_then(|script| {
        let context = ContextFacts::of(&message);
        let ask = || book.for_message(&message).condition(script, &context, &given);
        app.rules.as_for_a_message(ask).0?.ok()
    });
    Evaluation {
        condition_holds,
        plan,
        accepted: refused.is_none(),
        refused: refused.map(|it| RefusedBy { by: it.by, name: it.name, reason: it.reason }),
        channel: message.first().channel.as_str().to_owned(),
        priority: message.priority,
        send_at: message.send_at,
        ruling,
        rules,
    }
}
