//! Requests, and the steps that send them.

use serde::Serialize;

use crate::bindings::plugin::{Pause, Send};
use crate::{Auth, Basic, HttpMethod, HttpRequest, Kv, Segment, SmtpSubmission, Step, Transmission, form_encode};

impl HttpRequest {
    /// A request without headers, body or credentials.
    pub fn new(method: HttpMethod, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: Vec::new(), body: Vec::new(), auth: Vec::new(), timeout_ms: None }
    }

    /// A POST.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new(HttpMethod::Post, url)
    }

    /// Adds a header; the gateway refuses characters that a header can't hold.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push(Kv::new(name, value));
        self
    }

    /// Adds credentials; the gateway fills in the values.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth.push(auth);
        self
    }

    /// `Authorization: Bearer` with the secret of that name.
    #[must_use]
    pub fn bearer(self, secret: impl Into<String>) -> Self {
        self.auth(Auth::Bearer(secret.into()))
    }

    /// `Authorization: Basic` with a plain user name and the secret of that name.
    #[must_use]
    pub fn basic(self, user: impl Into<String>, secret: impl Into<String>) -> Self {
        self.auth(Auth::Basic(Basic { user: vec![Segment::Text(user.into())], password: secret.into() }))
    }

    /// The body's segments as they stand.
    #[must_use]
    pub fn body(mut self, body: Vec<Segment>) -> Self {
        self.body = body;
        self
    }

    /// A body of text with its media type.
    #[must_use]
    pub fn text(self, media_type: impl Into<String>, text: impl Into<String>) -> Self {
        self.header("content-type", media_type).body(vec![Segment::Text(text.into())])
    }

    /// A JSON body.
    ///
    /// A value that JSON cannot hold (a map whose keys are not strings) becomes `null`; plain structs and `json!` never
    /// do.
    #[must_use]
    pub fn json(self, value: &impl Serialize) -> Self {
        self.text("application/json", serde_json::to_string(value).unwrap_or_else(|_| "null".into()))
    }

    /// An `application/x-www-form-urlencoded` body.
    #[must_use]
    pub fn form<N: AsRef<str>, V: AsRef<str>>(self, fields: &[(N, V)]) -> Self {
        self.text("application/x-www-form-urlencoded", form_encode(fields))
    }

    /// How long to wait for the answer; the gateway's own deadline is the upper bound.
    #[must_use]
    pub fn timeout_ms(mut self, ms: Option<u32>) -> Self {
        self.timeout_ms = ms;
        self
    }
}

impl Kv {
    /// A name and its value.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

impl Step {
    /// Sends, and hands `state` (at most 64 KiB) to `interpret`.
    pub fn send(transmission: impl Into<Transmission>, state: impl Into<Vec<u8>>) -> Self {
        Self::Send(Send { transmission: transmission.into(), state: state.into() })
    }

    /// Calls `interpret` again after this number of milliseconds, with the same answer.
    pub fn wait(ms: f64, state: impl Into<Vec<u8>>) -> Self {
        Self::Wait(Pause { ms, state: state.into() })
    }
}

impl From<HttpRequest> for Transmission {
    fn from(request: HttpRequest) -> Self {
        Self::Http(request)
    }
}

impl From<SmtpSubmission> for Transmission {
    fn from(submission: SmtpSubmission) -> Self {
        Self::Smtp(submission)
    }
}

impl From<HttpRequest> for Step {
    /// Sends without a state.
    fn from(request: HttpRequest) -> Self {
        Self::send(request, [])
    }
}
