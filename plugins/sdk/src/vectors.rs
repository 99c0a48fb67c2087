//! Golden vectors: a provider's tests as files.
//!
//! Each file in a folder is one case in JSON: the gateway's input and the expected result, with the contract's names in
//! snake case.
//!
//! ```json
//! { "why": "a plain text is posted",
//!   "config": {"url": "https://example.org/hook"},
//!   "prepare": {"id": "d1", "key": "k1", "text": "hello"},
//!   "step": {"send": {"transmission": {"http": {"method": "post", "url": "…"}}}} }
//! ```
//!
//! `prepare` is a delivery; or `interpret` is an answer, such as `{"http": {"status": 202}}` or `{"smtp": {"code":
//! 250}}`, with `state` if it matters. The result is `step`, or `error` for an outcome instead of a step. Or `callback`
//! is a request to the callback URL, such as `{"method": "POST", "url": "…", "body": "…"}`, and the result is its
//! reading, as `read`, or `error` for a sentence that refuses it. One file may instead hold a list of cases. Nulls,
//! empty lists and empty strings may be left out on both sides, and so may an `ext` or a `detail` of `{}`.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::export::parse_config;
use crate::{Context, Delivery, Outcome, Provider, Reply, Step, callback};

/// One case.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    why: String,
    #[serde(default)]
    context: Context,
    #[serde(default = "empty_object")]
    config: Value,
    prepare: Option<Delivery>,
    interpret: Option<Reply>,
    #[serde(default)]
    state: String,
    callback: Option<callback::Request>,
    step: Option<Value>,
    read: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum VectorFile {
    Many(Vec<Value>),
    One(Value),
}

/// Runs every `*.json` in `folder`, in the order of the names.
///
/// # Panics
/// With every difference, when a case doesn't come out as it says, or when there is no case.
pub fn check<P: Provider>(folder: impl AsRef<Path>) {
    let (cases, failures) = run::<P>(folder.as_ref());
    assert!(cases > 0, "no golden vector in {}", folder.as_ref().display());
    assert!(failures.is_empty(), "{failures}");
}

fn run<P: Provider>(folder: &Path) -> (usize, String) {
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let (mut count, mut failures) = (0, String::new());
    for path in &paths {
        for case in read_cases(path) {
            count += 1;
            if let Err(difference) = case.and_then(|vector| run_case::<P>(vector)) {
                // Writing to a string can't fail.
                let _ = writeln!(failures, "\n{}: {difference}", path.display());
            }
        }
    }
    (count, failures)
}

fn read_cases(path: &Path) -> Vec<Result<Vector, String>> {
    let file = std::fs::read_to_string(path)
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
    let cases = match file {
        Ok(VectorFile::Many(cases)) => cases,
        Ok(VectorFile::One(case)) => vec![case],
        Err(error) => return vec![Err(error)],
    };
    cases.into_iter().map(parse_case).collect()
}

fn parse_case(case: Value) -> Result<Vector, String> {
    let why = case["why"].as_str().unwrap_or("a case without `why`").to_owned();
    serde_json::from_value(case).map_err(|error| format!("{why}: {error}"))
}

fn run_case<P: Provider>(vector: Vector) -> Result<(), String> {
    let actual = match &vector.callback {
        Some(request) => read::<P>(&vector, request)?,
        None => match perform::<P>(&vector)? {
            Ok(step) => serde_json::json!({ "step": step }),
            Err(outcome) => serde_json::json!({ "error": outcome }),
        },
    };
    let mut expected = serde_json::Map::new();
    expected.extend(vector.step.map(|step| ("step".to_owned(), step)));
    expected.extend(vector.read.map(|read| ("read".to_owned(), read)));
    expected.extend(vector.error.map(|error| ("error".to_owned(), error)));
    let (actual, expected) = (without_blanks(actual), without_blanks(Value::Object(expected)));
    if actual == expected {
        return Ok(());
    }
    Err(format!("{}\n  expected {expected}\n  got      {actual}", vector.why))
}

/// The outer error is a case that can't be run.
fn perform<P: Provider>(vector: &Vector) -> Result<Result<Step, Outcome>, String> {
    let config = match parse_config::<P>(&vector.config.to_string()) {
        Ok(config) => config,
        Err(outcome) => return Ok(Err(outcome)),
    };
    match (&vector.prepare, &vector.interpret) {
        (Some(delivery), None) => Ok(P::prepare_batch(&vector.context, &config, std::slice::from_ref(delivery))),
        (None, Some(answer)) => Ok(P::interpret(&vector.context, &config, vector.state.as_bytes(), answer)),
        _ => Err(format!("{}: a case has `prepare` or `interpret`", vector.why)),
    }
}

fn read<P: Provider>(vector: &Vector, request: &callback::Request) -> Result<Value, String> {
    if vector.prepare.is_some() || vector.interpret.is_some() {
        return Err(format!("{}: a case has one of `prepare`, `interpret` and `callback`", vector.why));
    }
    let Context { now_ms, secrets, ext, .. } = vector.context.clone();
    let context = callback::Context { now_ms, secrets, ext };
    let config = parse_config::<P>(&vector.config.to_string()).map_err(|outcome| outcome.message)?;
    Ok(match P::parse_callback(&context, &config, request) {
        Ok(callback) => serde_json::json!({ "read": callback }),
        Err(refusal) => serde_json::json!({ "error": refusal }),
    })
}

/// Numbers are compared as floats, since `1000` and `1000.0` are the same to the contract.
fn without_blanks(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().map(|(name, field)| (name, without_blanks(field))).filter(is_told).collect()
        }
        Value::Array(items) => items.into_iter().map(without_blanks).collect(),
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        other => other,
    }
}

fn is_told((name, value): &(String, Value)) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !(text.is_empty() || matches!(name.as_str(), "ext" | "detail") && text == "{}"),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

/// Bytes written as text, for people to read.
pub(crate) mod bytes_as_text {
    use serde::{Deserializer, Serializer};

    use super::{Deserialize, Serialize};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        String::from_utf8_lossy(bytes).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Ok(String::deserialize(deserializer)?.into_bytes())
    }
}
