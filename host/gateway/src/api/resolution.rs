//! `/v1/messages/{id}/resolve`: a person's decision about a delivery without a definite answer.

use axum::extract::State;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App,
    auth::{MessagesWrite, Tenant},
    dead_letter::MOST_REASON,
    draft::Draft,
    fields::{Fields, plain},
    json::Json,
    message::MessageAnswer,
    problem::{Problem, ProblemBody},
    request::UrlPath,
};
use crate::app::message_actions::{MessageActions, dead_letter::WantedResolution};
use angarium_domain::{ids::MessageId, job::UnknownResolution};

/// A person's decision about an unknown delivery.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Resolution, example = json!({"as": "sent", "reason": "the provider's log shows it", "external_id": "SM1234"}))]
pub struct ResolutionRequest {
    r#as: UnknownResolution,
    /// The reason; the audit has it, with the key.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
    /// The provider's own id for it, with `sent`.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    external_id: Option<String>,
    /// The delivery, if several of the message are unknown.
    #[serde(default)]
    #[schema(example = "dlv_0192f0c1a2b37c4d8e5f60718293a4b5")]
    delivery: Option<String>,
}

/// Resolve a message that is `unknown`: a request began, and no definite answer came.
///
/// Look first, at the provider or the recipient. A receipt that comes later may still move it forward.
#[utoipa::path(post, path = "/v1/messages/{id}/resolve", tag = "messages", operation_id = "resolveMessage",
    params(("id" = String, Path, description = "`msg_…`")),
    request_body = ResolutionRequest,
    responses(
        (status = 200, description = "It is resolved.", body = MessageAnswer),
        (status = 409, description = "It is not unknown, or can't be sent again.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn resolve(
    tenant: Tenant<MessagesWrite>,
    State(app): State<App>,
    UrlPath(id): UrlPath<String>,
    Draft(new, fields): Draft<ResolutionRequest>,
) -> Result<Json<MessageAnswer>, Problem> {
    let wanted = wanted(new, fields)?;
    let id: MessageId = id.parse().map_err(|_| Problem::not_found("message"))?;
    let view = MessageActions::new(&app, &tenant.principal()).resolve(id, &wanted).await?;
    Ok(Json(MessageAnswer::from(view).shown_to(&tenant)))
}

fn wanted(new: ResolutionRequest, mut fields: Fields) -> Result<WantedResolution, Problem> {
    plain(&mut fields, "reason", &new.reason, MOST_REASON);
    if let Some(external_id) = &new.external_id {
        plain(&mut fields, "external_id", external_id, 255);
        fields.check(new.r#as == UnknownResolution::Sent, "external_id", "not_sent", || {
            "is only allowed together with `sent`".to_owned()
        });
    }
    let delivery = new.delivery.map(|text| text.parse());
    let is_id = delivery.as_ref().is_none_or(Result::is_ok);
    fields.check(is_id, "delivery", "wrong_format", || "must be the id of a delivery".to_owned());
    let wanted = WantedResolution {
        resolution: new.r#as,
        reason: new.reason,
        external_id: new.external_id,
        delivery: delivery.and_then(Result::ok),
    };
    fields.finish()?;
    Ok(wanted)
}
