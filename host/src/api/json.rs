//! Bodies in and out. A good body is parsed once, straight into its type; only one that is bad
//! is held against its schema, to name all that is wrong with it.

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
use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema, schema::AdditionalProperties},
};

use super::{
    App,
    body_budget::{BodyOwner, BodyPermit, Full},
    fields::escaped,
    problem::{FieldProblem, MOST_PROBLEMS, Problem},
    serve::{Refusal, TooSlow},
};

/// A request's body as a value, or an answer's.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + ToSchema + 'static> FromRequest<App> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        parse(&body(request, app).await?.bytes).map(Self)
    }
}

/// The whole body, if it says that it is JSON.
pub async fn body(request: Request, app: &App) -> Result<HeldBody, Problem> {
    if is_json(request.headers().get(header::CONTENT_TYPE)) {
        return bytes(request, app).await;
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
pub async fn bytes(request: Request, app: &App) -> Result<HeldBody, Problem> {
    // Whoever sends a body has shown a key first: its extractor says whose the body is.
    let owner = request.extensions().get::<BodyOwner>().copied();
    let owner = owner.ok_or_else(|| Problem::internal(&"a body is read before its key"))?;
    let mut permit = app.bodies.begin(owner)?;
    match bytes_within(request, app.max_body_bytes, &mut permit).await? {
        Some(bytes) => Ok(HeldBody { bytes, _permit: permit }),
        None => Err(too_long()),
    }
}

/// A body and its part of the node's budget.
#[derive(Debug)]
pub struct HeldBody {
    pub bytes: Bytes,
    _permit: BodyPermit,
}

/// The same with a limit and a permit of the caller's; `None` where it is longer.
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
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return refusal.problem();
        }
        let refusal = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(refusal) = refusal.and_then(|inner| inner.downcast_ref::<Refusal>()) {
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
    serde_json::from_slice(bytes).or_else(|error| Err(Problem::fields(explain::<T>(&value(bytes)?, &error))))
}

/// Any JSON.
pub fn value(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|syntax| Problem::malformed(format!("the body is not JSON: {syntax}")))
}

/// What the schema of `T` says against a value that did not parse.
pub fn explain<T: ToSchema + 'static>(value: &Value, error: &serde_json::Error) -> Vec<FieldProblem> {
    let known = validator::<T>();
    let errors = known.iter().flat_map(|known| known.validator.iter_errors(value).map(|error| (error, &known.schema)));
    let mut problems: Vec<_> = errors.flat_map(|(error, schema)| named(&error, schema)).take(MOST_PROBLEMS).collect();
    problems.dedup();
    if problems.is_empty() {
        problems.push(FieldProblem::new("", "invalid", without_value(&error.to_string())));
    }
    problems
}

/// serde repeats a string or number that it refuses; it stands in backquotes or quotes.
fn without_value(message: &str) -> String {
    match message.split_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => message.to_owned(),
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

/// What a body's type may hold.
struct Known {
    schema: Value,
    validator: Validator,
}

type Validators = RwLock<HashMap<TypeId, Option<Arc<Known>>>>;

/// Made when a body of the type is refused for the first time.
fn validator<T: ToSchema + 'static>() -> Option<Arc<Known>> {
    static VALIDATORS: LazyLock<Validators> = LazyLock::new(Validators::default);
    let key = TypeId::of::<T>();
    if let Some(made) = VALIDATORS.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return made.clone();
    }
    let made = compile::<T>();
    VALIDATORS.write().unwrap_or_else(PoisonError::into_inner).insert(key, made.clone());
    made
}

fn compile<T: ToSchema>() -> Option<Arc<Known>> {
    let mut schemas = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut schemas);
    schemas.iter_mut().for_each(|(_, schema)| close_tagged(schema));
    let schemas: serde_json::Map<_, _> =
        schemas.into_iter().filter_map(|(name, schema)| Some((name, serde_json::to_value(schema).ok()?))).collect();
    let schema = serde_json::json!({
        "$ref": format!("#/components/schemas/{}", T::name()), "components": {"schemas": schemas},
    });
    match jsonschema::draft202012::options().should_validate_formats(true).build(&schema) {
        Ok(validator) => Some(Arc::new(Known { schema, validator })),
        Err(error) => {
            tracing::error!(schema = %T::name(), error = %error, "a request's schema is not valid");
            None
        }
    }
}

/// Says of a tagged enum's alternatives what `deny_unknown_fields` means: the derive leaves it out.
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

/// An error by the field that it is about, in words that don't repeat the value.
fn named(error: &ValidationError<'_>, schema: &Value) -> Vec<FieldProblem> {
    let pointer = error.instance_path().to_string();
    let field = |name: &str, code: &str, detail: String| match name {
        "" => FieldProblem::new(&pointer, code, detail),
        name => FieldProblem::new(format!("{pointer}/{}", escaped(name)), code, detail),
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            unexpected.iter().map(|name| field(name, "unknown_field", "there is no such field".to_owned())).collect()
        }
        ValidationErrorKind::Required { property } => {
            vec![field(property.as_str().unwrap_or_default(), "missing", "is missing".to_owned())]
        }
        ValidationErrorKind::OneOfNotValid { context } | ValidationErrorKind::AnyOf { context } => {
            match likeliest(context, error.instance_path().as_str()) {
                Some(branch) => branch.iter().flat_map(|error| named(error, schema)).collect(),
                None if !tags(context).is_empty() => vec![field("type", "not_a_choice", choices(tags(context)))],
                None => {
                    vec![field("", "invalid", "is of none of the forms that the reference at /docs lists".to_owned())]
                }
            }
        }
        ValidationErrorKind::Enum { options } => {
            vec![field("", "not_a_choice", choices(options.as_array().into_iter().flatten()))]
        }
        ValidationErrorKind::Pattern { pattern } => vec![field("", "wrong_format", form(pattern, error, schema))],
        kind => vec![field("", code(kind), error.masked_with("the value").to_string())],
    }
}

/// What a text has to be, by an example where its schema has one.
fn form(pattern: &str, error: &ValidationError<'_>, schema: &Value) -> String {
    let within = error.schema_path().as_str().rsplit_once('/').and_then(|(parent, _)| schema.pointer(parent));
    match within.and_then(|it| it["example"].as_str()) {
        Some(example) => format!("has not the form of `{example}`, for example: it has to match `{pattern}`"),
        None => format!("has to match `{pattern}`"),
    }
}

/// The words that the alternatives' tags may be, where a tag is none of them.
fn tags<'a>(branches: &'a [Vec<ValidationError<'static>>]) -> Vec<&'a Value> {
    let tagged = branches.iter().flatten().filter(|error| error.instance_path().as_str().ends_with("/type"));
    let words = tagged.map(|error| match error.kind() {
        ValidationErrorKind::Enum { options } => options.as_array().into_iter().flatten().collect(),
        ValidationErrorKind::Constant { expected_value } => vec![expected_value.as_ref()],
        _ => Vec::new(),
    });
    words.flatten().collect()
}

fn choices<'a>(words: impl IntoIterator<Item = &'a Value>) -> String {
    let words = words.into_iter().filter_map(Value::as_str).map(|word| format!("`{word}`"));
    format!("is none of {}", words.collect::<Vec<_>>().join(", "))
}

/// The alternative that was meant: the one whose kind fits the value, and its tag, if it has one.
fn likeliest<'a>(
    branches: &'a [Vec<ValidationError<'static>>],
    pointer: &str,
) -> Option<&'a [ValidationError<'static>]> {
    let tag = format!("{pointer}/type");
    let meant = |branch: &&Vec<ValidationError<'static>>| {
        !branch.iter().any(|error| match error.kind() {
            ValidationErrorKind::Type { .. } => error.instance_path().as_str() == pointer,
            ValidationErrorKind::Enum { .. } | ValidationErrorKind::Constant { .. } => {
                error.instance_path().as_str() == tag
            }
            _ => false,
        })
    };
    let mut meant = branches.iter().filter(meant);
    let first = meant.next()?;
    if meant.next().is_none() { Some(first) } else { None }
}

fn code(kind: &ValidationErrorKind) -> &'static str {
    match kind {
        ValidationErrorKind::Type { .. } => "wrong_type",
        ValidationErrorKind::Enum { .. } | ValidationErrorKind::Constant { .. } => "not_a_choice",
        ValidationErrorKind::MinLength { .. } | ValidationErrorKind::MinItems { .. } => "too_short",
        ValidationErrorKind::MaxLength { .. } | ValidationErrorKind::MaxItems { .. } => "too_long",
        ValidationErrorKind::Minimum { .. } | ValidationErrorKind::ExclusiveMinimum { .. } => "too_small",
        ValidationErrorKind::Maximum { .. } | ValidationErrorKind::ExclusiveMaximum { .. } => "too_large",
        ValidationErrorKind::Format { .. } => "wrong_format",
        _ => "invalid",
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
    fn what_the_schema_lets_pass_is_named_all_the_same() {
        expect(r#"{"name": "a", "name": "b", "count": 1, "policy": {"type": "none"}}"#, &[("", "invalid")]);
    }

    #[test]
    fn all_the_words_of_a_choice_are_listed() {
        let problem = parse::<Order>(br#"{"name": "a", "count": 1, "policy": {"type": "no"}}"#).unwrap_err();
        assert_eq!(problem.to_value("")["errors"][0]["detail"], "is none of `none`, `linear`");
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
