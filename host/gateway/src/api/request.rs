//! The layers around every request: its id, a caught panic, the written problem, the metrics. And the parts of a
//! request beside its body.

use std::{
    collections::HashMap,
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, LazyLock, OnceLock},
    time::Instant,
};

use axum::{
    extract::{FromRequestParts, MatchedPath, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    HttpState,
    body_budget::BodyOwner,
    browsers::Marks,
    fields::{Fields, escaped},
    form::Form,
    operation::OPERATORS_PATHS,
    problem::{FieldProblem, Problem},
    serve::AtLimit,
};
use crate::node::telemetry::{self, Span};
use angarium_domain::{ids::TenantId, trace::TraceContext};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Headers whose second value some readers would use and others ignore.
const ONCE: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("last-event-id"),
];

/// The request's id: the client's own, if it is one, or a new one.
#[derive(Debug, Clone)]
pub struct RequestId(Arc<str>);

/// The request's place in a trace, if it has one.
#[derive(Debug, Clone)]
pub struct Trace(Option<TraceContext>);

/// The tenant of the request's key, once it is known.
#[derive(Debug, Clone, Default)]
pub struct Caller(Arc<OnceLock<TenantId>>);

impl Caller {
    pub fn is(&self, tenant: TenantId) {
        let _ = self.0.set(tenant);
    }

    fn owner(&self) -> BodyOwner {
        self.0.get().map_or(BodyOwner::Public, |tenant| BodyOwner::Tenant(*tenant))
    }
}

/// All answers of this kind share one buffer, so that they are not counted.
#[derive(Debug, Clone, Copy)]
pub struct SharedAnswer;

impl RequestId {
    fn of(request: &Request) -> Self {
        let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok());
        match given.filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())) {
            Some(id) => Self(Arc::from(id)),
            None => Self(Arc::from(format!("req_{:032x}", fastrand::u128(..)))),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Problem::internal(&"a request without an id"))
    }
}

impl Trace {
    pub const fn context(&self) -> Option<&TraceContext> {
        self.0.as_ref()
    }
}

impl<S: Sync> FromRequestParts<S> for Trace {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or(Self(None)))
    }
}

/// Returns the caller's position in a trace; an unreadable one counts as absent.
fn caller(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    let states: Vec<&str> = headers.get_all(TRACESTATE).iter().filter_map(|it| it.to_str().ok()).collect();
    TraceContext::parse(parent.to_str().ok()?, Some(states.join(",")).as_deref().filter(|it| !it.is_empty()))
}

/// Returns the span of a request to the API. Requests of an operator's tools, every few seconds, are not traced.
fn span(http: &HttpState, request: &Request, route: &str, id: &RequestId) -> Span {
    if !route.starts_with("/v1/") {
        return Span::default();
    }
    let mut span = http.app.tracer.request(|| format!("{} {route}", request.method()), caller(request.headers()));
    span.set(|| {
        [
            ("http.request.method", request.method().to_string().into()),
            ("http.route", route.to_owned().into()),
            ("request.id", id.as_str().to_owned().into()),
        ]
    });
    span
}

/// The outermost layer.
pub async fn surround(State(http): State<HttpState>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let mut span = span(&http, &request, path.as_ref().map_or("", MatchedPath::as_str), &id);
    if let Some(context) = span.context() {
        request.extensions_mut().insert(Trace(Some(context.clone())));
    }
    let caller = Caller::default();
    request.extensions_mut().insert(caller.clone());
    let marks = http.browsers.marks(&request);
    let mut response = match early(&marks, &request, path.as_ref()) {
        Some(answer) => answer,
        None => AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(request.id = id.as_str(), "a handler panicked");
            Problem::internal(&"a handler panicked").into_response()
        }),
    };
    if !is_operators(path.as_ref()) && response.extensions().get::<SharedAnswer>().is_none() {
        let counted = http.answers.count(caller.owner(), response).await;
        response = counted.unwrap_or_else(|full| Problem::from(full).into_response());
    }
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = problem.render(id.as_str());
        if response.status().is_server_error() {
            tracing::warn!(
                request.id = id.as_str(),
                http.status = response.status().as_u16(),
                "a request was not served"
            );
        }
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    marks.mark(response.headers_mut());
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if let Some(value) = span.context().and_then(|it| HeaderValue::from_str(&it.to_string()).ok()) {
        response.headers_mut().insert(TRACEPARENT, value);
    }
    span.set(|| [("http.response.status_code", i64::from(response.status().as_u16()).into())]);
    if response.status().is_server_error() {
        span.fail(|| "the gateway failed".to_owned());
    }
    let route = path.as_ref().map_or("", MatchedPath::as_str);
    telemetry::requested(route, method.as_str(), response.status().as_u16(), began.elapsed());
    response
}

fn is_operators(path: Option<&MatchedPath>) -> bool {
    path.is_some_and(|path| OPERATORS_PATHS.contains(&path.as_str()))
}

/// Returns an answer without asking a handler: to a browser's preflight request, or if the node has no connection left.
fn early(marks: &Marks, request: &Request, path: Option<&MatchedPath>) -> Option<Response> {
    if request.extensions().get::<AtLimit>().is_some() && !is_operators(path) {
        return Some(Problem::unavailable("the node serves as many connections as it may").into_response());
    }
    if let Some(name) = ONCE.iter().find(|name| request.headers().get_all(*name).iter().nth(1).is_some()) {
        let detail = format!("must have the header `{name}` once");
        return Some(
            Problem::request(StatusCode::BAD_REQUEST, "header_repeated", "A header is repeated", detail)
                .into_response(),
        );
    }
    marks.preflight(request)
}

/// Nothing is here.
pub async fn not_found() -> Problem {
    Problem::not_found("path")
}

/// The path exists, for other methods.
pub async fn method_not_allowed() -> Problem {
    Problem::request(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "The path has no such method",
        "the `Allow` header lists the methods of this path",
    )
}

/// Parts of the path. An impossible part leads to 404.
#[derive(Debug)]
pub struct UrlPath<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for UrlPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(_) => Err(Problem::not_found("resource")),
        }
    }
}

/// The document's parameters in queries and headers, for each operation such as `post /v1/messages`.
type Parameters = HashMap<String, Vec<Parameter>>;

struct Parameter {
    name: String,
    in_header: bool,
    form: Form,
}

/// The document's schemas of all parameters.
static PARAMETERS: LazyLock<Parameters> = LazyLock::new(|| {
    parameters(&serde_json::to_value(super::openapi()).unwrap_or_default()).unwrap_or_else(|error| {
        tracing::error!(error, "a parameter's schema is not valid");
        Parameters::default()
    })
});

fn parameters(document: &Value) -> Result<Parameters, String> {
    let mut all = Parameters::default();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let mut found = Vec::new();
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let place = parameter["in"].as_str().unwrap_or_default();
                let name = parameter["name"].as_str().unwrap_or_default().to_owned();
                if place == "path" {
                    continue;
                }
                let form = Form::of_schema(&parameter["schema"], document)
                    .map_err(|error| format!("{method} {path}: {name}: {error}"))?;
                found.push(Parameter { name, in_header: place == "header", form });
            }
            all.insert(format!("{method} {path}"), found);
        }
    }
    Ok(all)
}

/// Refuses the parameters of a request for a change whose operation has none in its query: such a `dry_run` would be a
/// real one.
pub fn refuse_parameters(parts: &Parts) -> Result<(), Problem> {
    let is_read = parts.method == Method::GET || parts.method == Method::HEAD;
    let takes_some = documented(parts).iter().any(|known| !known.in_header);
    if is_read || takes_some { Ok(()) } else { Query::unchecked(parts).finish() }
}

/// The query's parameters, each taken once by its name. Their schemas, and those of the operation's headers, are
/// checked before.
#[derive(Debug)]
pub struct Query {
    pairs: Vec<(String, String)>,
    fields: Fields,
    /// The parameters that the document refuses.
    bad: Vec<String>,
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut query = Self::unchecked(parts);
        documented(parts).iter().for_each(|known| query.check(known, &parts.headers));
        Ok(query)
    }
}

/// The parameters that the document has of a request's operation.
fn documented(parts: &Parts) -> &'static [Parameter] {
    let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let operation = format!("{} {path}", parts.method.as_str().to_ascii_lowercase());
    PARAMETERS.get(&operation).map_or(&[], Vec::as_slice)
}

impl Query {
    fn unchecked(parts: &Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Self { pairs, fields: Fields::default(), bad: Vec::new() }
    }

    /// Holds a parameter to the document.
    fn check(&mut self, known: &Parameter, headers: &HeaderMap) {
        let (place, text) = match known.in_header {
            // A value that is no text is left to its handler.
            true => ("header", headers.get(&known.name).and_then(|value| value.to_str().ok())),
            false => ("query", self.pairs.iter().find(|(name, _)| *name == known.name).map(|(_, text)| text.as_str())),
        };
        let problems = text.map(|text| known.form.problems_of_text(text)).unwrap_or_default();
        for problem in problems {
            self.fields.elsewhere(format!("{place}/{}", known.name), &problem.code, problem.detail);
            self.bad.push(known.name.clone());
        }
    }

    /// A parameter's value, if it is given and `read` takes it.
    pub fn take<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let at = self.pairs.iter().position(|(given, _)| given == name)?;
        let (_, text) = self.pairs.remove(at);
        if self.bad.iter().any(|bad| bad == name) {
            return None;
        }
        match read(&text) {
            Ok(value) => Some(value),
            Err(detail) => {
                self.fields.elsewhere(format!("query/{name}"), "invalid", detail);
                None
            }
        }
    }

    /// A parameter that is `true` or `false`; left out, it is false.
    pub fn flag(&mut self, name: &str) -> bool {
        let read = |text: &str| text.parse().map_err(|_| "must be `true` or `false`".to_owned());
        self.take(name, read).unwrap_or(false)
    }

    /// A parameter that was taken is bad all the same.
    pub fn refuse(&mut self, name: &str, detail: impl Into<String>) {
        self.fields.elsewhere(format!("query/{name}"), "invalid", detail);
    }

    /// Refuses what `finish` does, together with the faults of what was made of the parameters.
    pub fn finish_with<T: Default>(mut self, made: Result<T, Vec<FieldProblem>>) -> Result<T, Problem> {
        let made = made.unwrap_or_else(|problems| {
            for FieldProblem { pointer, code, detail } in problems {
                self.fields.elsewhere(format!("query{pointer}"), &code, detail);
            }
            T::default()
        });
        self.finish().map(|()| made)
    }

    /// Refuses invalid, unknown and repeated parameters.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in &self.pairs {
            let name: String = name.chars().filter(|c| !c.is_control()).collect();
            self.fields.elsewhere(
                format!("query/{}", escaped(&name)),
                "unknown_parameter",
                "does not exist, or is given twice",
            );
        }
        let problems: Vec<FieldProblem> = self.fields.into_problems();
        if problems.is_empty() { Ok(()) } else { Err(Problem::parameters(problems)) }
    }
}

/// A short text of a query or path, as the database takes it.
pub fn short_text(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 1024 || text.chars().any(char::is_control) {
        return Err("must have 1 to 1024 bytes and no control characters".to_owned());
    }
    Ok(text.to_owned())
}
