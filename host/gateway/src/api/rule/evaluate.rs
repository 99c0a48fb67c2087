//! `/v1/rules/evaluate`: the rules' answers to a message, with all reasons.

use axum::extract::State;

use super::super::{
    App,
    auth::{RulesRead, Tenant},
    draft::Draft,
    json::Json,
    message::{ClientMessage, MessageRequest},
    problem::Problem,
};
use crate::app::evaluation::{self, Evaluation};

/// Show the answers of rules and scripts to a message. Nothing is stored or sent.
#[utoipa::path(post, path = "/v1/rules/evaluate", tag = "rules", operation_id = "evaluateRules",
    request_body = MessageRequest,
    responses((status = 200, description = "The decision, with its reasons.", body = Evaluation)))]
pub async fn evaluate(
    tenant: Tenant<RulesRead>,
    State(app): State<App>,
    Draft(request, fields): Draft<MessageRequest>,
) -> Result<Json<Evaluation>, Problem> {
    let message = ClientMessage { request, fields, header_key: None };
    Ok(Json(evaluation::evaluate(&app, tenant.id, message).await?))
}
