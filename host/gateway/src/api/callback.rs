//! `/v1/callbacks`: reports of providers' services about deliveries. They have no API key: the path's token names the
//! owner, and a signature proves them.

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};

use super::{
    HttpState,
    body_budget::BodyOwner,
    json,
    problem::{Problem, ProblemBody},
    request::UrlPath,
};
use crate::engine::callbacks::{CallbackRefused, Incoming};
use angarium_domain::{callback::CallbackReply, transmission::Kv};

/// The longest body, in bytes; `http.max_body_bytes` may be less.
const MOST_BYTES: usize = 1 << 20;

/// Take a callback of a provider's service.
#[utoipa::path(post, path = "/v1/callbacks/{token}", tag = "callbacks", operation_id = "postCallback", security(()),
    params(("token" = String, Path, description = "The end of a connection's `callback_url`.")),
    request_body(content = String, description = "In the form of the service.", content_type = "*/*"),
    responses(
        (status = "2XX", description = "The callback was verified; the answer is the one that the service expects.",
            body = String, content_type = "text/plain"),
        (status = 400, description = "The request does not come from the provider's service.", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 401, description = "The request is not signed as the service signs.", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 502, description = "The provider's component failed.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn post(
    State(http): State<HttpState>,
    UrlPath(token): UrlPath<String>,
    request: Request,
) -> Result<Response, Problem> {
    receive(&http, &token, request).await
}

/// Take a callback without a body, such as the question that some services ask first.
#[utoipa::path(get, path = "/v1/callbacks/{token}", tag = "callbacks", operation_id = "getCallback", security(()),
    params(("token" = String, Path, description = "The end of a connection's `callback_url`.")),
    responses(
        (status = "2XX", description = "The callback was verified; the answer is the one that the service expects.",
            body = String, content_type = "text/plain"),
        (status = 400, description = "The request does not come from the provider's service.", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 401, description = "The request is not signed as the service signs.", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 502, description = "The provider's component failed.", body = ProblemBody,
            content_type = "application/problem+json"),
    ))]
pub async fn get(
    State(http): State<HttpState>,
    UrlPath(token): UrlPath<String>,
    request: Request,
) -> Result<Response, Problem> {
    receive(&http, &token, request).await
}

/// The token goes before the body: nothing of a stranger's is read.
async fn receive(http: &HttpState, token: &str, request: Request) -> Result<Response, Problem> {
    let receiver = http.app.callbacks.receiver(token).await?;
    let mut permit = http.bodies.begin(BodyOwner::Callback(receiver.tenant()));
    let (method, host) = (request.method().to_string(), host(&request));
    let path_and_query = request.uri().path_and_query().map_or("/", |it| it.as_str()).to_owned();
    let headers = kvs(request.headers());
    let limit = http.max_body_bytes.min(MOST_BYTES);
    let body = json::bytes_within(request, limit, &mut permit).await?.ok_or_else(too_long)?;
    let incoming = Incoming { method, host, path_and_query, headers, body };
    Ok(answer(http.app.callbacks.receive(receiver, incoming).await?))
}

fn host(request: &Request) -> String {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    named.or_else(|| request.uri().authority().map(|it| it.as_str())).unwrap_or_default().to_owned()
}

/// A value that is no text can't have been signed as one: it is read as well as it can be.
fn kvs(headers: &HeaderMap) -> Vec<Kv> {
    let kv = |(name, value): (&axum::http::HeaderName, &HeaderValue)| Kv {
        name: name.as_str().to_owned(),
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    headers.iter().map(kv).collect()
}

fn answer(reply: CallbackReply) -> Response {
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(&reply.content_type)
        && !kind.is_empty()
    {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn too_long() -> Problem {
    Problem::request(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        "The body is too long",
        "a callback has at most 1 MiB, or `http.max_body_bytes` where that is less",
    )
}

impl From<CallbackRefused> for Problem {
    fn from(refused: CallbackRefused) -> Self {
        match refused {
            CallbackRefused::Unknown => Self::not_found("callback"),
            CallbackRefused::Unanswered => Self::unavailable("the database does not answer"),
            CallbackRefused::Busy => Self::unavailable("too many callbacks come at the same time"),
            CallbackRefused::SecretUnavailable => {
                Self::unavailable("a secret of the connection cannot be opened, so the callback cannot be checked yet")
            }
            CallbackRefused::NotServing => Self::unavailable("no version of the provider serves now"),
            CallbackRefused::Foreign(why) => Self::malformed(why).of_provider(),
            CallbackRefused::NotGenuine => Self::request(
                StatusCode::UNAUTHORIZED,
                "invalid_signature",
                "The callback is not genuine",
                "it is not signed as the provider's service signs, or too long ago; \
                 the service signs the URL that `http.public_url` begins",
            ),
            CallbackRefused::Broken => Self::request(
                StatusCode::BAD_GATEWAY,
                "provider_failed",
                "The provider failed",
                "the provider's component failed over this callback; the gateway's log says how",
            )
            .of_provider(),
            CallbackRefused::Store(error) => error.into(),
        }
    }
}
