//! JSON bodies in and out. A body is checked against its schema in the document, and then parsed straight into its
//! type.

use std::{
    any::TypeId,
    collections::HashMap,
    error::Error,
    io,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::BytesMut;
use futures_util::StreamExt;
use http_body::Body as _;
use serde::{Serialize, de::DeserializeOwned};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema, schema::AdditionalProperties},
};

use super::{
    HttpState,
    body_budget::{BodyOwner, BodyPermit, Full},
    form::Form,
    problem::{FieldProblem, Problem},
    serve::{StrictRefusal, TooSlow},
};
use angarium_domain::ids::TenantId;

/// A body longer than this, in bytes, is read off the async workers, and only the faults of its form are reported.
pub const LONG: usize = 64 << 10;

/// The number of long bodies that are read at a time: each reader holds its data in memory.
pub const LONG_READERS: usize = 4;

/// A request's body as a value, or an answer's.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + ToSchema + Send + 'static> FromRequest<HttpState> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, http: &HttpState) -> Result<Self, Problem> {
        let body = body(request, http).await?;
        read_apart(http, body.tenant, body.bytes.len(), move || parse(&body.bytes)).await.map(Self)
    }
}

/// Reads a body of this length: a long one off the async workers, tenants by turns.
pub async fn read_apart<T: Send + 'static>(
    http: &HttpState,
    tenant: TenantId,
    length: usize,
    read: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    if length <= LONG {
        return read();
    }
    let _turn = http.long_readers.enter(tenant).await;
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(Problem::internal(&error)))
}

/// The whole body, if it says that it is JSON.
pub async fn body(request: Request, http: &HttpState) -> Result<HeldBody, Problem> {
    if is_json(request.headers().get(header::CONTENT_TYPE)) {
        return bytes(request, http).await;
    }
    Err(Problem::request(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "The body is of another kind",
        "send the header `Content-Type: application/json`",
    ))
}

/// The whole body, if it is not too long. Of one that is, as much again is read and dropped: a
/// connection that is closed on unread bytes takes its answer with it.
pub async fn bytes(request: Request, http: &HttpState) -> Result<HeldBody, Problem> {
    // A request with a body has shown a key before: its extractor names the body's owner.
    let Some(&BodyOwner::Tenant(tenant)) = request.extensions().get() else {
        return Err(Problem::internal(&"a body is read before its key"));
    };
    let mut permit = http.bodies.begin(BodyOwner::Tenant(tenant));
    match bytes_within(request, http.max_body_bytes, &mut permit).await? {
        Some(bytes) => Ok(HeldBody { bytes, tenant, _permit: permit }),
        None => Err(too_long()),
    }
}

/// A body and its part of the node's budget.
#[derive(Debug)]
pub struct HeldBody {
    pub bytes: Bytes,
    pub tenant: TenantId,
    _permit: BodyPermit,
}

/// Does the same with the caller's limit and permit; `None` if the body is longer.
pub async fn bytes_within(request: Request, limit: usize, permit: &mut BodyPermit) -> Result<Option<Bytes>, Problem> {
    let body = request.into_body();
    let announced = body.size_hint().exact().and_then(|it| usize::try_from(it).ok());
    let mut body = body.into_data_stream();
    let mut read = BytesMut::new();
    let mut length = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| unread(&error))?;
        length += chunk.len();
        if length <= limit {
            permit.grow(chunk.len())?;
            match announced {
                Some(all) if all == chunk.len() => read = BytesMut::from(chunk),
                // Untouched, the rest of it costs nothing.
                Some(all) if read.is_empty() => {
                    read.reserve(all.min(limit));
                    read.extend_from_slice(&chunk);
                }
                _ => read.extend_from_slice(&chunk),
            }
        } else if length > limit.saturating_mul(2) {
            break;
        }
    }
    Ok((length <= limit).then(|| read.freeze()))
}

/// Why a body could not be read to its end.
fn unread(error: &axum::Error) -> Problem {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(slow) = error.downcast_ref::<TooSlow>() {
            return Problem::timeout(slow.to_string());
        }
        if let Some(refusal) = error.downcast_ref::<StrictRefusal>() {
            return refusal.problem();
        }
        let refusal = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(refusal) = refusal.and_then(|inner| inner.downcast_ref::<StrictRefusal>()) {
            return refusal.problem();
        }
        cause = error.source();
    }
    Problem::malformed(format!("the body ended early: {error}"))
}

impl From<Full> for Problem {
    fn from(_: Full) -> Self {
        Self::unavailable("the node holds as many bytes of request bodies as it may")
    }
}

fn too_long() -> Problem {
    Problem::request(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        "The body is too long",
        "the operator's `http.max_body_bytes` says how long it may be",
    )
}

/// Parses a body, or names everything that is wrong with it.
pub fn parse<T: DeserializeOwned + ToSchema + 'static>(bytes: &[u8]) -> Result<T, Problem> {
    let problems = problems::<T>(bytes)?;
    if !problems.is_empty() {
        return Err(Problem::fields(problems));
    }
    serde_json::from_slice(bytes).map_err(|error| Problem::fields(vec![unnamed(&error)]))
}

/// Everything that is wrong with the form of a body; it need not be all that is wrong.
pub fn problems<T: ToSchema + 'static>(bytes: &[u8]) -> Result<Vec<FieldProblem>, Problem> {
    let form = form::<T>().ok_or_else(|| Problem::internal(&"the schema of a body is not valid"))?;
    form.problems(bytes).map_err(|error| malformed(&error))
}

/// 400: it is no JSON.
pub fn malformed(error: &serde_json::Error) -> Problem {
    Problem::malformed(format!("the body is not JSON: {error}"))
}

/// Returns the fault of a body that satisfies its schema and that its type refuses.
pub fn unnamed(error: &serde_json::Error) -> FieldProblem {
    FieldProblem::new("", "invalid", without_value(&error.to_string()))
}

/// Removes the refused string or number that serde repeats; it is in backquotes or quotes.
fn without_value(message: &str) -> String {
    match message.split_once(", expected ") {
        Some((_, expected)) => format!("must be {expected}"),
        None => format!("must be valid: {message}"),
    }
}

fn is_json(header: Option<&HeaderValue>) -> bool {
    let kind = header.and_then(|value| value.to_str().ok()).and_then(|value| value.split(';').next());
    kind.is_some_and(|kind| {
        let kind = kind.trim();
        kind.eq_ignore_ascii_case("application/json")
            || kind.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("application/"))
                && kind.get(kind.len().saturating_sub(5)..).is_some_and(|end| end.eq_ignore_ascii_case("+json"))
    })
}

type Forms = RwLock<HashMap<TypeId, Option<Arc<Form>>>>;

/// The form of a body's type, made when the first such body comes.
fn form<T: ToSchema + 'static>() -> Option<Arc<Form>> {
    static FORMS: LazyLock<Forms> = LazyLock::new(Forms::default);
    let key = TypeId::of::<T>();
    if let Some(made) = FORMS.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return made.clone();
    }
    let made = Form::of::<T>()
        .inspect_err(|error| tracing::error!(schema = %T::name(), error, "a request's schema is not valid"))
        .ok()
        .map(Arc::new);
    FORMS.write().unwrap_or_else(PoisonError::into_inner).insert(key, made.clone());
    made
}

/// Adds the meaning of `deny_unknown_fields` to a tagged enum's alternatives: the derive leaves it out.
pub fn close_tagged(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::OneOf(alternatives)) = schema else { return };
    for alternative in &mut alternatives.items {
        if let RefOr::T(Schema::Object(object)) = alternative
            && object.properties.contains_key("type")
        {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => {
                let mut response = Response::new(Body::from(bytes));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => Problem::internal(&error).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape counts")]
    struct Order {
        name: String,
        #[schema(minimum = 1)]
        count: u32,
        policy: Policy,
        to: Option<Target>,
    }

    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape counts")]
    enum Policy {
        None,
        Linear { delay_ms: u64 },
    }

    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(untagged)]
    #[expect(dead_code, reason = "only its shape counts")]
    enum Target {
        Text(String),
        Full(Full),
    }

    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape counts")]
    struct Full {
        address: String,
    }

    fn problems(body: &str) -> Vec<(String, String)> {
        let value = parse::<Order>(body.as_bytes()).unwrap_err().to_value("");
        let errors = value["errors"].as_array().unwrap().iter();
        let mut found: Vec<_> = errors
            .map(|error| (error["pointer"].as_str().unwrap().to_owned(), error["code"].as_str().unwrap().to_owned()))
            .collect();
        found.sort();
        found
    }

    fn expect(body: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(problems(body), expected, "{body}");
    }

    #[test]
    fn every_bad_field_is_named() {
        expect(
            r#"{"count": "x", "tenant_id": "B", "policy": {"type": "none"}}"#,
            &[("/count", "wrong_type"), ("/name", "missing"), ("/tenant_id", "unknown_field")],
        );
    }

    #[test]
    fn the_alternative_that_was_meant_is_explained() {
        expect(
            r#"{"name": "a", "count": 1, "policy": {"type": "linear", "delay": 5}}"#,
            &[("/policy/delay", "unknown_field"), ("/policy/delay_ms", "missing")],
        );
        expect(r#"{"name": "a", "count": 1, "policy": {"type": "no"}}"#, &[("/policy/type", "not_a_choice")]);
        expect(
            r#"{"name": "a", "count": 1, "policy": {"type": "none"}, "to": {"adress": "x"}}"#,
            &[("/to/address", "missing"), ("/to/adress", "unknown_field")],
        );
    }

    #[test]
    fn a_number_that_its_type_can_not_hold_is_named() {
        expect(r#"{"name": "a", "count": 4294967296, "policy": {"type": "none"}}"#, &[("/count", "out_of_range")]);
        expect(
            r#"{"name": "a", "count": 2, "policy": {"type": "linear", "delay_ms": -1}}"#,
            &[("/policy/delay_ms", "out_of_range")],
        );
    }

    #[test]
    fn a_member_is_given_once() {
        expect(r#"{"name": "a", "name": "b", "count": 1, "policy": {"type": "none"}}"#, &[("/name", "duplicate")]);
        expect(
            r#"{"name": "a", "count": 1, "policy": {"type": "none", "type": "linear"}}"#,
            &[("/policy/type", "duplicate")],
        );
    }

    #[test]
    fn a_list_is_no_object() {
        expect(r#"["a", 1, {"type": "none"}, "x"]"#, &[("", "wrong_type")]);
        expect(
            r#"{"name": "a", "count": 1, "policy": ["none"], "to": ["x"]}"#,
            &[("/policy", "wrong_type"), ("/to", "wrong_type")],
        );
    }

    #[test]
    fn all_the_words_of_a_choice_are_listed() {
        let problem = parse::<Order>(br#"{"name": "a", "count": 1, "policy": {"type": "no"}}"#).unwrap_err();
        assert_eq!(problem.to_value("")["errors"][0]["detail"], "must be one of `none`, `linear`");
    }

    #[test]
    fn what_is_no_json_is_malformed() {
        for body in ["", "{", "{\"name\": \"\\ud800\"}", "\u{feff}{}"] {
            assert_eq!(parse::<Order>(body.as_bytes()).unwrap_err().status(), 400, "{body:?}");
        }
    }

    #[test]
    fn a_refused_value_is_not_repeated() {
        let problem = parse::<Order>(br#"{"name": 12345678, "count": "hunter2", "policy": 1}"#).unwrap_err();
        let text = problem.to_value("").to_string();
        assert!(!text.contains("hunter2") && !text.contains("12345678"), "{text}");
    }
}
