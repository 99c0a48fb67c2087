//! The rules' answers to a message, with all reasons; nothing is stored or sent.

use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::{
    App,
    auth::{RulesRead, Tenant},
    draft::Draft,
    json::Json,
    message::{self, Asks, NewMessage, PriorityName},
    problem::Problem,
};
use crate::{clock, engine::dispatch::Planned, node::tenant_config::TenantConfig};
use angarium_domain::{
    message::{Message, Priority},
    rule_input::RuleInput,
};
use angarium_rules::{
    Account,
    rulebook::{Judgement, Rulebook},
    ruling::Ruling,
    script::{Given, facts::ContextFacts},
};

/// The fate of a message, with the reasons.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Evaluation)]
pub struct EvaluationAnswer {
    accepted: bool,
    /// The refusal, with its author and reason.
    refused: Option<RefusedAnswer>,
    /// The channel that it would take.
    channel: String,
    #[schema(value_type = PriorityName)]
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
#[schema(as = RefusedBy)]
pub struct RefusedAnswer {
    /// A rule's id, or a script's name.
    by: String,
    name: String,
    reason: String,
}

/// Show the answers of rules and scripts to a message. Nothing is stored or sent.
#[utoipa::path(post, path = "/v1/rules/evaluate", tag = "rules", operation_id = "evaluateRules",
    request_body = NewMessage,
    responses((status = 200, description = "The decision, and why.", body = EvaluationAnswer)))]
pub async fn evaluate(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    Draft(new, fields): Draft<NewMessage>,
) -> Result<Json<EvaluationAnswer>, Problem> {
    let config = message::knowing(&app, tenant.id, new.pinned_to()).await?;
    let new = message::domain(&app, tenant.id, (new, fields), None, &config, Asks::ToTry).await?;
    let evaluated = app.rules.try_out(tenant.id, || evaluated(&app, &config, new.message)).await;
    Ok(Json(evaluated))
}

fn evaluated(app: &App, config: &TenantConfig, mut message: Message) -> EvaluationAnswer {
    let given = Given { now: clock::now(), chance: fastrand::f64() };
    // Failures here belong to no delivery: they do not count against a script.
    let book = config.rulebook.as_deref().map(Rulebook::rehearsal).unwrap_or_default();
    let explain = || book.for_recipient(&RuleInput::of(&message)).0.explain(&message, given.now);
    let rules = app.rules.as_for_an_explanation(explain);
    let (judgement, _) = app.rules.as_for_a_message(|| book.admit(&mut message, &given));
    let Judgement { ruling, refused, .. } = judgement;
    let plan = if refused.is_some() { None } else { app.dispatcher.planned(config, &message) };
    let condition_holds = message.body.condition.as_deref().and_then(|script| {
        let context = ContextFacts::of(&message);
        let ask = || book.for_message(&message).condition(script, &context, &given);
        app.rules.as_for_a_message(ask).0?.ok()
    });
    EvaluationAnswer {
        condition_holds,
        plan,
        accepted: refused.is_none(),
        refused: refused.map(|it| RefusedAnswer { by: it.by, name: it.name, reason: it.reason }),
        channel: message.channel.as_str().to_owned(),
        priority: message.priority,
        send_at: message.send_at,
        ruling,
        rules,
    }
}
