//! A provider's request and its answer: the contract's records in the gateway's own types, independent of any version
//! of the WIT.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A name and its value, in the order given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kv {
    pub name: String,
    pub value: String,
}

/// How the bytes of a secret or a blob are written where they are spliced in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    Raw,
    Url,
    JsonString,
    Base64,
    Base64Url,
    Hex,
}

/// A piece of a body or of a signed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    Text(String),
    Bytes(Vec<u8>),
    Secret {
        name: String,
        encoding: Encoding,
    },
    Blob {
        id: u32,
        encoding: Encoding,
    },
    /// The request's body as it leaves; only in a signed text.
    Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OAuth2Grant {
    ClientCredentials,
    RefreshToken,
    ServiceAccountJwt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureAlgorithm {
    HmacSha1,
    HmacSha256,
    HmacSha512,
    Ed25519,
}

/// How a signing key's bytes stand in its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFormat {
    Raw,
    Hex,
    Base64,
    /// `whsec_` or `whsk_`, then base64.
    StandardWebhooks,
}

/// One signature; every currently valid value of `key` signs, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub algorithm: SignatureAlgorithm,
    pub key: String,
    pub key_format: KeyFormat,
    pub message: Vec<Segment>,
    pub encoding: Encoding,
    pub prefix: String,
}

/// Credentials by name; the transport applies their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    Basic { user: Vec<Segment>, password: String },
    Bearer { secret: String },
    Header { name: String, secret: String },
    Query { name: String, secret: String },
    AwsSigV4 { access_key: String, secret_key: String, session_token: Option<String>, region: String, service: String },
    OAuth2 { grant: OAuth2Grant, token_url: String, scopes: Vec<String>, client_id: String, credential: String },
    Signatures { header: String, separator: String, signatures: Vec<Signature> },
    ClientCertificate { secret: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    pub method: Method,
    pub url: String,
    pub headers: Vec<Kv>,
    pub body: Vec<Segment>,
    pub auth: Vec<Auth>,
    /// Milliseconds; the host's own deadline is the upper bound.
    pub timeout_ms: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SmtpTls {
    /// No TLS. Credentials are refused on such a connection.
    None,
    /// STARTTLS where the server offers it.
    Opportunistic,
    /// STARTTLS or nothing.
    Starttls,
    Implicit,
}

/// A mailbox or another address, with the name shown beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mailbox {
    pub value: String,
    pub name: Option<String>,
}

/// A mail to be written in MIME form.
#[derive(Debug, Clone, PartialEq)]
pub struct Mail {
    pub sender: Mailbox,
    pub reply_to: Vec<Mailbox>,
    pub to: Vec<Mailbox>,
    pub cc: Vec<Mailbox>,
    pub subject: String,
    /// Without angle brackets.
    pub message_id: String,
    /// Milliseconds since the epoch.
    pub date_ms: f64,
    pub text: Option<String>,
    pub html: Option<String>,
    pub headers: Vec<Kv>,
    /// Ids of the blobs that become parts.
    pub blobs: Vec<u32>,
}

/// DKIM (RFC 6376, RFC 8463): `key` names a secret, PEM of an RSA or Ed25519 key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dkim {
    pub domain: String,
    pub selector: String,
    pub key: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SmtpSubmission {
    pub host: String,
    pub port: u16,
    pub tls: SmtpTls,
    pub user: Option<String>,
    /// Name of the secret.
    pub password: Option<String>,
    /// EHLO name; empty for the host's own.
    pub client_name: String,
    pub mail_from: String,
    pub rcpt_to: Vec<String>,
    pub message: Mail,
    pub dkim: Option<Dkim>,
    pub timeouts: SmtpTimeouts,
}

/// How long a server may take for each step, in milliseconds; as RFC 5321, 4.5.3.2 has it where left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SmtpTimeouts {
    pub greeting_ms: Option<u32>,
    pub command_ms: Option<u32>,
    pub data_ms: Option<u32>,
    pub block_ms: Option<u32>,
    pub end_ms: Option<u32>,
}

/// A request that leaves the gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum Transmission {
    Http(Box<HttpRequest>),
    Smtp(Box<SmtpSubmission>),
}

impl Transmission {
    /// The ids of the blobs that it refers to, each once.
    #[must_use]
    pub fn blobs(&self) -> Vec<u32> {
        let mut ids = match self {
            Self::Http(request) => {
                let signed = request.auth.iter().flat_map(Auth::segments);
                request.body.iter().chain(signed).filter_map(Segment::blob).collect()
            }
            Self::Smtp(mail) => mail.message.blobs.clone(),
        };
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl Auth {
    fn segments(&self) -> Vec<&Segment> {
        match self {
            Self::Basic { user, .. } => user.iter().collect(),
            Self::Signatures { signatures, .. } => signatures.iter().flat_map(|it| &it.message).collect(),
            Self::Bearer { .. }
            | Self::Header { .. }
            | Self::Query { .. }
            | Self::AwsSigV4 { .. }
            | Self::OAuth2 { .. }
            | Self::ClientCertificate { .. } => Vec::new(),
        }
    }
}

impl Segment {
    const fn blob(&self) -> Option<u32> {
        match self {
            Self::Blob { id, .. } => Some(*id),
            Self::Text(_) | Self::Bytes(_) | Self::Secret { .. } | Self::Body => None,
        }
    }
}

/// A payload that the host holds; its bytes never enter a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub id: u32,
    pub name: String,
    pub media_type: String,
    /// Set for a part that the HTML refers to as `cid:…`.
    pub content_id: Option<String>,
    pub bytes: Bytes,
}

/// A definite answer of the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Http {
        status: u16,
        /// Names in lower case.
        headers: Vec<Kv>,
        body: Bytes,
        /// The reason for which `body` is not complete, if so: the status counts, and the rest was cut.
        cut: Option<Box<str>>,
    },
    Smtp {
        code: u16,
        /// Enhanced status code (RFC 3463).
        enhanced: Option<String>,
        text: String,
        /// The answer for each recipient; empty if the server took the mail for none.
        recipients: Vec<RecipientReply>,
    },
}

/// A server's answer for one recipient of a mail that it took for at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientReply {
    /// As it stood in the envelope.
    pub address: String,
    /// Whether it is in the `To` header.
    pub main: bool,
    pub answer: RecipientAnswer,
    pub code: u16,
    /// Enhanced status code (RFC 3463).
    pub enhanced: Option<String>,
    pub text: String,
}

/// The meaning of a server's answer for one recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecipientAnswer {
    Accepted,
    Deferred,
    /// One too many for this transaction: the next one may take it at once (RFC 5321, 4.5.3.1.10).
    TooMany,
    Refused,
}

impl Reply {
    /// The HTTP status or the SMTP code.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Http { status, .. } => *status,
            Self::Smtp { code, .. } => *code,
        }
    }

    /// Takes the answers for each recipient, which a provider's component does not see.
    #[must_use]
    pub fn take_recipients(&mut self) -> Vec<RecipientReply> {
        match self {
            Self::Http { .. } => Vec::new(),
            Self::Smtp { recipients, .. } => std::mem::take(recipients),
        }
    }

    /// Returns the reason for which a part of the answer is missing, if one is.
    #[must_use]
    pub fn cut(&self) -> Option<&str> {
        match self {
            Self::Http { cut, .. } => cut.as_deref(),
            Self::Smtp { .. } => None,
        }
    }
}

/// The cause that prevented a definite answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The egress guard, or the grant, refused the address.
    EgressRefused,
    /// The transmission itself can't be performed (a malformed URL, an unknown secret).
    InvalidTransmission,
    Dns,
    Connect,
    Tls,
    Timeout,
    /// The connection ended before a definite answer.
    Reset,
    /// The answer's head is longer than the cap, or not of the protocol.
    UnreadableAnswer,
    /// The token endpoint or the SMTP server refused the credentials before anything was sent.
    Unauthorized,
    /// A secret that the transmission needs is stored and cannot be opened.
    SecretUnavailable,
    /// The provider declares the host, and the operator did not grant it.
    HostNotGranted,
}

/// A transmission without a definite answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Fault {
    pub kind: FaultKind,
    /// One sentence for a person; it never holds a secret.
    pub detail: String,
    /// Whether the other side may have received enough to act on.
    pub may_have_been_sent: bool,
}
