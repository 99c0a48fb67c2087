//! Problems: RFC 9457, one form for every error. This is the only place that turns an error into a status, and that
//! logs the gateway's own.

use std::fmt;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::error::{StoreError, UseCaseError};
pub use crate::app::fields::{FieldProblem, MOST_PROBLEMS};

/// The longest pointer or detail of a bad field, in characters.
const MOST_TEXT: usize = 1024;

/// The side that caused the problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemSource {
    /// The request: change it.
    Request,
    /// The gateway: repeat it later.
    Gateway,
    /// A provider or its component.
    Provider,
}

/// An error (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// Names the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "urn:angarium:problem:invalid_request")]
    kind: String,
    title: &'a str,
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    detail: &'a str,
    /// Stable, for programs.
    #[schema(example = "invalid_request")]
    code: &'a str,
    /// As in the `X-Request-Id` header, and in the gateway's log.
    request_id: &'a str,
    source: ProblemSource,
    /// The bad fields at once; at most 20.
    errors: &'a [FieldProblem],
}

/// An error on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    source: ProblemSource,
    errors: Vec<FieldProblem>,
    retry_after: Option<u32>,
}

impl Problem {
    /// A problem of the request's making.
    pub fn request(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            status,
            code,
            title,
            detail: detail.into(),
            source: ProblemSource::Request,
            errors: Vec::new(),
            retry_after: None,
        }))
    }

    /// 400: it can't be read at all.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::request(StatusCode::BAD_REQUEST, "malformed_request", "The request can't be read", detail)
    }

    /// 400: query parameters or headers that are wrong.
    pub fn parameters(errors: Vec<FieldProblem>) -> Self {
        let mut problem = Self::malformed(count("parameter", errors.len()));
        problem.0.code = "invalid_parameter";
        problem.0.errors = within_bounds(errors);
        problem
    }

    /// 422: fields of the body that are wrong.
    pub fn fields(errors: Vec<FieldProblem>) -> Self {
        let detail = count("field", errors.len());
        let mut problem =
            Self::request(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request is not valid", detail);
        problem.0.errors = within_bounds(errors);
        problem
    }

    /// 422: one field.
    pub fn field(pointer: impl Into<String>, code: &str, detail: impl Into<String>) -> Self {
        Self::fields(vec![FieldProblem::new(pointer, code, detail)])
    }

    /// 422: a rule of the tenant's refuses it.
    pub fn refused_by_rule(detail: impl Into<String>) -> Self {
        Self::request(StatusCode::UNPROCESSABLE_ENTITY, "refused_by_rule", "A rule refuses the message", detail)
    }

    /// 422: a rule or script that lets nothing through unasked has failed.
    pub fn rule_failed(detail: impl Into<String>) -> Self {
        let title = "A rule or script that may refuse the message has failed";
        Self::request(StatusCode::UNPROCESSABLE_ENTITY, "script_failed", title, detail)
    }

    /// 503: there is no time left for the tenant's rules in this second.
    pub fn rules_busy(detail: &str) -> Self {
        let mut problem = Self::unavailable(detail);
        problem.0.code = "rules_busy";
        problem
    }

    /// 401: no key, or none that is valid.
    pub fn unauthorized(detail: &str) -> Self {
        Self::request(StatusCode::UNAUTHORIZED, "unauthorized", "The API key is missing or not valid", detail)
    }

    /// 403: the key lacks a scope.
    pub fn forbidden(scope: &str) -> Self {
        let detail = format!("this needs a key with the scope `{scope}`");
        Self::request(StatusCode::FORBIDDEN, "missing_scope", "The API key does not allow this", detail)
    }

    /// 404: it does not exist, or belongs to another tenant; the answer does not say which.
    pub fn not_found(what: &str) -> Self {
        Self::request(StatusCode::NOT_FOUND, "not_found", "Not found", format!("there is no such {what}"))
    }

    /// 409: the present state doesn't allow it.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::request(StatusCode::CONFLICT, code, "The present state does not allow this", detail)
    }

    /// 408: it did not come in time.
    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::request(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The request came too slowly", detail)
    }

    /// 503: later.
    pub fn unavailable(detail: &str) -> Self {
        Self(Box::new(Parts {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "unavailable",
            title: "The gateway can't do this now",
            detail: detail.to_owned(),
            source: ProblemSource::Gateway,
            errors: Vec::new(),
            retry_after: Some(1),
        }))
    }

    /// 503: once an operator has made room.
    pub fn disk_full() -> Self {
        let mut problem = Self::unavailable(
            "the database's disk is full: nothing was stored; send again, with the same idempotency key, once an \
             operator has made room",
        );
        problem.0.code = "disk_full";
        problem.0.retry_after = Some(5);
        problem
    }

    /// 500: ours. The log has the reason; the answer does not.
    pub fn internal(error: &dyn fmt::Display) -> Self {
        tracing::error!(error = %error, "a request failed");
        Self(Box::new(Parts {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "internal",
            title: "The gateway failed",
            detail: "the gateway's log has the reason under this request's id".to_owned(),
            source: ProblemSource::Gateway,
            errors: Vec::new(),
            retry_after: None,
        }))
    }

    /// The same problem, of a provider's making.
    #[must_use]
    pub fn of_provider(mut self) -> Self {
        self.0.source = ProblemSource::Provider;
        self
    }

    /// Its status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Returns it as a value inside another answer.
    #[must_use]
    pub fn to_value(&self, request_id: &str) -> serde_json::Value {
        serde_json::to_value(self.body(request_id)).unwrap_or_default()
    }

    fn body<'a>(&'a self, request_id: &'a str) -> ProblemBody<'a> {
        let Parts { status, code, title, detail, source, errors, .. } = &*self.0;
        ProblemBody {
            kind: format!("urn:angarium:problem:{code}"),
            title,
            status: status.as_u16(),
            detail,
            code,
            request_id,
            source: *source,
            errors,
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn render(&self, request_id: &str) -> Response {
        let bytes = serde_json::to_vec(&self.body(request_id)).unwrap_or_default();
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = self.0.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.0.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The outermost layer writes it, because that layer knows the request's id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<UseCaseError> for Problem {
    fn from(error: UseCaseError) -> Self {
        match error {
            UseCaseError::NotFound(what) => Self::not_found(what),
            UseCaseError::Conflict { code, detail } => Self::conflict(code, detail),
            UseCaseError::Invalid(errors) => Self::fields(errors),
            UseCaseError::ComponentRefused(detail) => Self::field("", "component_refused", detail).of_provider(),
            UseCaseError::Unavailable(detail) => Self::unavailable(detail),
            UseCaseError::DatabaseDown(reason) => {
                tracing::warn!(error = reason, "the database is not available");
                Self::unavailable("the database is not available; nothing was changed that was not answered for")
            }
            UseCaseError::DiskFull(reason) => {
                tracing::warn!(error = reason, "the database's disk is full");
                Self::disk_full()
            }
            UseCaseError::Internal(_) => Self::internal(&error),
        }
    }
}

/// A part of the engine could not ask the database.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        UseCaseError::from(error).into()
    }
}

/// Limits the number and the length of problems to a readable amount.
fn within_bounds(mut errors: Vec<FieldProblem>) -> Vec<FieldProblem> {
    errors.truncate(MOST_PROBLEMS);
    for error in &mut errors {
        for text in [&mut error.pointer, &mut error.detail] {
            if let Some((end, _)) = text.char_indices().nth(MOST_TEXT) {
                text.truncate(end);
                text.push('…');
            }
        }
    }
    errors
}

fn count(what: &str, number: usize) -> String {
    match number {
        1 => format!("one {what} is wrong; `errors` says which and why"),
        MOST_PROBLEMS.. => format!("{MOST_PROBLEMS} {what}s or more are wrong; `errors` says which and why"),
        _ => format!("{number} {what}s are wrong; `errors` says which and why"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_every_member() {
        let problem = Problem::field("/to", "missing", "must be given");
        let value = problem.to_value("req_1");
        assert_eq!(
            value,
            serde_json::json!({
                "type": "urn:angarium:problem:invalid_request", "title": "The request is not valid", "status": 422,
                "detail": "one field is wrong; `errors` says which and why", "code": "invalid_request",
                "request_id": "req_1", "source": "request",
                "errors": [{"pointer": "/to", "code": "missing", "detail": "must be given"}],
            })
        );
    }

    #[test]
    fn what_passes_says_when_to_come_back() {
        let response = Problem::unavailable("later").render("req_1");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
}
