//! The commonest answers of the API as types. What a scenario seldom asks is read by its name: `answer["name"]`.

use std::{fmt, ops};

use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

/// An answer, read into its type and as it came.
#[derive(Clone)]
pub struct Seen<T> {
    read: T,
    json: Value,
}

impl<T: DeserializeOwned> Seen<T> {
    /// Reads an answer, which must have the members of its type.
    #[track_caller]
    pub fn of(json: Value) -> Self {
        let read = T::deserialize(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
        Self { read, json }
    }
}

impl<T> Seen<T> {
    pub fn json(&self) -> &Value {
        &self.json
    }
}

impl<T> ops::Deref for Seen<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.read
    }
}

impl<T> ops::Index<&str> for Seen<T> {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        &self.json[name]
    }
}

impl<T> fmt::Display for Seen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.json.fmt(f)
    }
}

impl<T> fmt::Debug for Seen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.json.fmt(f)
    }
}

impl<T> Serialize for Seen<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

impl<T> From<Seen<T>> for Value {
    fn from(seen: Seen<T>) -> Self {
        seen.json
    }
}

/// A message and its state.
#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    pub id: String,
    pub state: String,
    pub channel: String,
    pub priority: String,
    pub reference: Option<String>,
    pub ordering_key: Option<String>,
    pub delivery: Delivery,
}

/// The delivery that decides a message's state.
#[derive(Debug, Clone, Deserialize)]
pub struct Delivery {
    pub connection: Option<String>,
    pub external_id: Option<String>,
    pub code: Option<String>,
    pub unified_code: Option<String>,
    pub detail: Option<String>,
}

impl Delivery {
    /// Returns the detail, or nothing where there is none.
    pub fn detail(&self) -> &str {
        self.detail.as_deref().unwrap_or_default()
    }
}

/// One try through one connection.
#[derive(Debug, Clone, Deserialize)]
pub struct Attempt {
    pub number: u32,
    pub trigger: String,
    pub channel: String,
    pub connection_uid: Option<String>,
    pub fallback_reason: Option<String>,
    pub disposition: String,
    pub status: Option<u16>,
    pub code: Option<String>,
    pub unified_code: Option<String>,
    pub detail: Option<String>,
}

impl Attempt {
    /// Returns the detail, or nothing where there is none.
    pub fn detail(&self) -> &str {
        self.detail.as_deref().unwrap_or_default()
    }
}

/// A tenant's account at a provider.
#[derive(Debug, Clone, Deserialize)]
pub struct Connection {
    pub id: String,
    pub callback_url: Option<String>,
    pub warnings: Vec<FieldWarning>,
}

/// What keeps a connection from sending, or may.
#[derive(Debug, Clone, Deserialize)]
pub struct FieldWarning {
    pub code: String,
    pub detail: String,
}

/// A page of a list.
#[derive(Debug, Clone, Deserialize)]
pub struct Page {
    pub data: Vec<Value>,
    pub next_cursor: Option<String>,
}

/// An error (RFC 9457).
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    pub code: String,
    pub detail: String,
    pub errors: Vec<FieldError>,
}

/// What is wrong with one field.
#[derive(Debug, Clone, Deserialize)]
pub struct FieldError {
    pub pointer: String,
    pub code: String,
    pub detail: String,
}

impl Problem {
    /// Returns the pointers of all bad fields, as they came.
    pub fn pointers(&self) -> Vec<&str> {
        self.errors.iter().map(|error| error.pointer.as_str()).collect()
    }
}

/// A job and its progress.
#[derive(Debug, Clone, Deserialize)]
pub struct Job {
    pub action: String,
    pub state: String,
    pub matched: u64,
    pub done: u64,
    pub skipped: u64,
}
