//! HTTP requests over pooled connections: one shared client, no redirects, no proxy from the environment, one deadline,
//! capped answers. Once an answer's head is there, its status decides: a body that is too long, breaks off or does not
//! come in time is cut, and the answer says so.
//!
//! Credentials are applied here and appear in no error.

use std::{
    convert::Infallible,
    error::Error,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use super::{
    Call,
    certificates::Certificates,
    connect::Connector,
    egress::{Egress, EgressRefusal},
    fault::{invalid, maybe_sent, not_sent},
    oauth::{TokenRequest, Tokens},
    pool::{PoolFailure, PooledClient},
    scrub::scrubbed,
    sigv4, splice,
    tls::TlsRoots,
};
use crate::{
    byte_budget::{ByteBudget, BytePermit},
    sealing::Secret,
};
use angarium_domain::{
    ids::TenantId,
    trace::TraceContext,
    transmission::{self, Auth, Blob, Fault, FaultKind, HttpRequest, Kv, Reply},
};

/// The longest body of an answer that is read, in bytes.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;
/// An answer's body that is longer waits for memory before more of it is read, in bytes.
const SHORT_ANSWER: usize = 16 * 1024;
/// How often an answer is in memory at a time: as it came, as it is joined, and as it is scrubbed.
const ANSWER_COPIES: usize = 3;
/// The longest headers of an answer, names and values together, in bytes.
pub(super) const MAX_ANSWER_HEADERS: usize = 64 * 1024;
/// The most headers of an answer.
pub(super) const MAX_ANSWER_HEADER_COUNT: usize = 1_000;
const USER_AGENT_VALUE: HeaderValue = HeaderValue::from_static(concat!("angarium/", env!("CARGO_PKG_VERSION")));

/// Headers that only the host writes: a provider that set them could reach another virtual host than the granted one,
/// or smuggle a second request.
const RESERVED_HEADERS: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "proxy-authorization",
    "proxy-connection",
];

/// Sends HTTP requests.
pub(super) struct HttpTransport {
    client: PooledClient,
    certificates: Certificates,
    tokens: Tokens,
    egress: Arc<Egress>,
    bytes: Arc<ByteBudget>,
}

/// A request that has its credentials.
struct Draft {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
    /// Set when the request needs a client certificate.
    client: Option<PooledClient>,
    /// Set when the request carries a token that an answer of 401 spoils.
    token: Option<Box<TokenRequest>>,
}

/// The same as it leaves, with what its answer is read with.
struct Ready {
    outgoing: Outgoing,
    client: Option<PooledClient>,
    token: Option<Box<TokenRequest>>,
}

/// A request as it leaves. It is boxed: ten thousand may wait for their answers at a time, and each future on the way
/// would have room for one of its own.
pub(super) struct Outgoing {
    request: Box<Request<WatchedBody>>,
    host: Box<str>,
    /// Whether some of it may have left.
    begun: Arc<AtomicBool>,
}

impl HttpTransport {
    pub(super) fn new(egress: Arc<Egress>, roots: &TlsRoots, bytes: Arc<ByteBudget>) -> Self {
        Self {
            client: build_client(&egress, roots.client_config()),
            certificates: Certificates::new(egress.clone(), roots.clone()),
            tokens: Tokens::default(),
            egress,
            bytes,
        }
    }

    /// Performs a request within the call's deadline.
    pub(super) async fn perform(
        &self,
        request: Box<HttpRequest>,
        blobs: Vec<Blob>,
        permit: Option<BytePermit>,
        call: &Call<'_>,
    ) -> Result<Reply, Fault> {
        let deadline = call.deadline_within(request.timeout_ms);
        let mut draft = self.draft(&request, &blobs, call, deadline).await?;
        drop((request, blobs));
        draft.body = permitted(draft.body, permit);
        let Ready { outgoing, client, token } = draft.ready()?;
        let sent = outgoing.credentials();
        let room = AnswerRoom { bytes: &self.bytes, tenant: call.tenant };
        let (reply, permit) = send(client.as_ref().unwrap_or(&self.client), outgoing, room, deadline).await?;
        if let (401, Some(token)) = (reply.status(), &token) {
            self.tokens.forget(token);
        }
        Ok(match scrubbed(reply, call.secrets, &sent).await {
            Reply::Http { status, headers, body, cut } => {
                Reply::Http { status, headers, body: permitted(body, permit), cut }
            }
            smtp @ Reply::Smtp { .. } => smtp,
        })
    }

    /// Checks the address, splices the body and applies the credentials.
    async fn draft(
        &self,
        request: &HttpRequest,
        blobs: &[Blob],
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<Draft, Fault> {
        let url = checked_url(&self.egress, &request.url, call)?;
        let body = splice::body(&request.body, call.material(blobs))?;
        let mut draft = Draft {
            method: method(request.method),
            headers: headers(&request.headers)?,
            url,
            body,
            client: None,
            token: None,
        };
        for auth in &request.auth {
            self.apply(auth, &mut draft, blobs, call, deadline).await?;
        }
        carry_on(&mut draft.headers, call.trace);
        if draft.body.is_empty() && !matches!(draft.method, Method::GET | Method::DELETE) {
            draft.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Ok(draft)
    }

    async fn apply(
        &self,
        auth: &Auth,
        draft: &mut Draft,
        blobs: &[Blob],
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<(), Fault> {
        let material = call.material(blobs);
        match auth {
            Auth::Basic { user, password } => {
                let user = splice::body(user, material)?;
                let value = basic(&user, material.secrets.newest(password)?);
                draft.headers.insert(AUTHORIZATION, sensitive(&value, password)?);
            }
            Auth::Bearer { secret } => {
                let value = joined(b"Bearer ", material.secrets.newest(secret)?.expose());
                draft.headers.insert(AUTHORIZATION, sensitive(&value, secret)?);
            }
            Auth::Header { name, secret } => {
                let value = sensitive(material.secrets.newest(secret)?.expose(), secret)?;
                draft.headers.insert(header_name(name)?, value);
            }
            Auth::Query { name, secret } => {
                let value = text_of(material.secrets.newest(secret)?, secret)?;
                draft.url.query_pairs_mut().append_pair(name, value);
            }
            Auth::Signatures { header, separator, signatures } => {
                let value = splice::signatures(signatures, separator, &draft.body, material)?;
                let mut value = header_value(header, value.as_bytes())?;
                // A reader of an attempt with this value could send the same request again.
                value.set_sensitive(true);
                draft.headers.insert(header_name(header)?, value);
            }
            Auth::AwsSigV4 { access_key, secret_key, session_token, region, service } => {
                let keys = AwsKeys {
                    access: text_of(material.secrets.newest(access_key)?, access_key)?,
                    secret: text_of(material.secrets.newest(secret_key)?, secret_key)?,
                    session: session_token
                        .as_ref()
                        .map(|name| text_of(material.secrets.newest(name)?, name))
                        .transpose()?,
                };
                apply_sigv4(&keys, region, service, draft, call)?;
            }
            Auth::OAuth2 { .. } => {
                let request = TokenRequest::new(auth, call)?;
                let room = AnswerRoom { bytes: &self.bytes, tenant: call.tenant };
                // Rare and large: boxed, so that every request's future stays small.
                let token =
                    Box::pin(self.tokens.get(&request, &self.client, &self.egress, room, call, deadline)).await?;
                draft.headers.insert(AUTHORIZATION, sensitive(&joined(b"Bearer ", token.expose()), "access token")?);
                draft.token = Some(Box::new(request));
            }
            Auth::ClientCertificate { secret } => {
                draft.client = Some(self.certificates.client(secret, material.secrets.newest(secret)?)?);
            }
        }
        Ok(())
    }
}

/// Adds a request's place in its trace, unless the message brought a header of its own.
fn carry_on(headers: &mut HeaderMap, trace: Option<&TraceContext>) {
    let Some(trace) = trace.filter(|_| !headers.contains_key("traceparent")) else { return };
    if let Ok(value) = HeaderValue::try_from(trace.to_string()) {
        headers.insert("traceparent", value);
    }
    if let Some(value) = trace.state.as_deref().and_then(|state| HeaderValue::from_str(state).ok()) {
        headers.insert("tracestate", value);
    }
}

/// A client with this TLS configuration, and with the rules that hold for every request.
pub(super) fn build_client(egress: &Arc<Egress>, tls: rustls::ClientConfig) -> PooledClient {
    PooledClient::new(Connector::new(egress, tls))
}

/// Parses a URL and checks it against the guard and the grant.
pub(super) fn checked_url(egress: &Egress, url: &str, call: &Call<'_>) -> Result<Url, Fault> {
    let url = egress.check_url(url)?;
    let host = url.host_str().unwrap_or_default();
    call.grant.check(host)?;
    Ok(url)
}

/// Sends a request and reads its answer, all before the deadline.
pub(super) async fn send(
    client: &PooledClient,
    outgoing: Outgoing,
    room: AnswerRoom<'_>,
    deadline: Instant,
) -> Result<HttpAnswer, Fault> {
    if Instant::now() >= deadline {
        return Err(not_sent(FaultKind::Timeout, "the deadline passed before the request began"));
    }
    let Outgoing { request, host, begun } = outgoing;
    let answered = tokio::time::timeout_at(deadline, pin!(client.request(request, &begun))).await;
    let (response, connection) = match answered {
        Ok(answered) => answered.map_err(|failure| fault(failure, &host, &begun))?,
        Err(_) if begun.load(Ordering::Relaxed) => {
            return Err(maybe_sent(FaultKind::Timeout, format!("`{host}` did not answer before the deadline")));
        }
        Err(_) => {
            return Err(not_sent(FaultKind::Timeout, format!("the deadline passed while connecting to `{host}`")));
        }
    };
    let (reply, permit) = read(response, &host, room, deadline).await?;
    if reply.cut().is_none() {
        connection.keep();
    }
    Ok((reply, permit))
}

/// An answer with the permit for its bytes, if it is long.
pub(super) type HttpAnswer = (Reply, Option<BytePermit>);

/// The tenant whose answer is read, and the memory for a long one.
#[derive(Clone, Copy)]
pub(super) struct AnswerRoom<'a> {
    pub(super) bytes: &'a Arc<ByteBudget>,
    pub(super) tenant: TenantId,
}

/// Bytes with the permit for them: both go when the last that refers to them goes.
struct Permitted {
    bytes: Bytes,
    _permit: BytePermit,
}

impl AsRef<[u8]> for Permitted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn permitted(bytes: Bytes, permit: Option<BytePermit>) -> Bytes {
    let Some(mut permit) = permit else { return bytes };
    permit.shrink(bytes.len());
    Bytes::from_owner(Permitted { bytes, _permit: permit })
}

impl Draft {
    fn ready(self) -> Result<Ready, Fault> {
        let outgoing = Outgoing::new(self.method, &self.url, self.headers, self.body)?;
        Ok(Ready { outgoing, client: self.client, token: self.token })
    }
}

impl Outgoing {
    /// Returns the values that no answer may repeat.
    fn credentials(&self) -> Vec<HeaderValue> {
        self.request.headers().values().filter(|value| value.is_sensitive()).cloned().collect()
    }

    /// # Errors
    /// A fault if the address cannot be asked.
    pub(super) fn new(method: Method, url: &Url, headers: HeaderMap, body: Bytes) -> Result<Self, Fault> {
        let host = url.host_str().unwrap_or_default();
        let target = Uri::try_from(url.as_str())
            .map_err(|error| invalid(format!("the request to `{host}` can't be built: {error}")))?;
        let begun = Arc::<AtomicBool>::default();
        let mut request = Box::new(Request::new(WatchedBody { bytes: Some(body), begun: begun.clone() }));
        *request.method_mut() = method;
        *request.uri_mut() = target;
        *request.headers_mut() = headers;
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        request.headers_mut().entry(USER_AGENT).or_insert(USER_AGENT_VALUE);
        Ok(Self { request, host: host.into(), begun })
    }
}

/// A body that notes when the client first reads it: it is then about to write the request to an open connection.
#[derive(Clone)]
pub(super) struct WatchedBody {
    bytes: Option<Bytes>,
    begun: Arc<AtomicBool>,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.begun.store(true, Ordering::Relaxed);
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.begun.store(true, Ordering::Relaxed);
        self.bytes.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// Reads the answer, which is capped. A long one waits for memory: the other side can't send more meanwhile.
async fn read(
    response: Response<Incoming>,
    host: &str,
    room: AnswerRoom<'_>,
    deadline: Instant,
) -> Result<HttpAnswer, Fault> {
    let size: usize = response.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size > MAX_ANSWER_HEADERS {
        let detail = format!("the head of `{host}`'s answer is longer than {MAX_ANSWER_HEADERS} bytes");
        return Err(maybe_sent(FaultKind::UnreadableAnswer, detail));
    }
    let status = response.status().as_u16();
    let headers = answer_headers(response.headers());
    let mut body = AnswerBody::of(response.into_body());
    let cut = match tokio::time::timeout_at(deadline, pin!(body.fill(room))).await {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(_) => Some("it was not complete before the deadline".to_owned()),
    };
    let AnswerBody { got, permit, .. } = body;
    let cut = cut.map(|why| format!("the body of `{host}`'s answer was cut after {} bytes: {why}", got.len()).into());
    Ok((Reply::Http { status, headers, body: got.freeze(), cut }, permit))
}

/// An answer's body as far as it was read.
struct AnswerBody {
    incoming: Incoming,
    got: Collected,
    permit: Option<BytePermit>,
}

impl AnswerBody {
    const fn of(incoming: Incoming) -> Self {
        Self { incoming, got: Collected::Empty, permit: None }
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// Reads the body; on failure returns the reason. The part that was read stays.
    async fn fill(&mut self, room: AnswerRoom<'_>) -> Result<(), String> {
        let length = self.incoming.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        let expected = length.unwrap_or(MAX_ANSWER).min(MAX_ANSWER);
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut self.incoming).poll_frame(cx)).await {
            // Any other frame has trailers, which are not used.
            let Ok(mut chunk) = frame.map_err(|error| root_cause(&error))?.into_data() else { continue };
            let left = MAX_ANSWER - self.got.len();
            let too_long = chunk.len() > left;
            chunk.truncate(left);
            if self.permit.is_none() && self.got.len() + chunk.len() > SHORT_ANSWER {
                // Rare: boxed, so that a request that waits is small.
                self.permit = Some(Box::pin(room.bytes.take(room.tenant, ANSWER_COPIES * expected)).await);
            }
            self.got = std::mem::replace(&mut self.got, Collected::Empty).with(chunk);
            if too_long {
                return Err(format!("at most {MAX_ANSWER} bytes are read"));
            }
        }
        Ok(())
    }
}

/// Most answers come in one piece, which is kept without a copy.
enum Collected {
    Empty,
    One(Bytes),
    Many(BytesMut),
}

impl Collected {
    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn with(self, chunk: Bytes) -> Self {
        match self {
            Self::Empty => Self::One(chunk),
            Self::One(first) => {
                let mut bytes = BytesMut::with_capacity(first.len() + chunk.len());
                bytes.extend_from_slice(&first);
                bytes.extend_from_slice(&chunk);
                Self::Many(bytes)
            }
            Self::Many(mut bytes) => {
                bytes.extend_from_slice(&chunk);
                Self::Many(bytes)
            }
        }
    }

    fn freeze(self) -> Bytes {
        match self {
            Self::Empty => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

fn answer_headers(headers: &HeaderMap) -> Vec<Kv> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| Kv { name: name.as_str().to_owned(), value: text(value) }).collect()
}

/// Returns the fault before an answer's head was read.
fn fault(failure: PoolFailure, host: &str, begun: &AtomicBool) -> Fault {
    match failure {
        PoolFailure::Connect(error) => connect_fault(&*error, host),
        PoolFailure::Refused(error) => not_sent(
            FaultKind::Reset,
            format!("`{host}` refused the request before it processed any of it: {}", root_cause(&error)),
        ),
        PoolFailure::Exchange(error) => Fault {
            kind: answer_fault_kind(&error),
            detail: format!("the connection to `{host}` ended before an answer: {}", root_cause(&error)),
            may_have_been_sent: begun.load(Ordering::Relaxed),
        },
    }
}

fn connect_fault(error: &(dyn Error + 'static), host: &str) -> Fault {
    if let Some(refusal) = find::<EgressRefusal>(error) {
        return refusal.clone().into();
    }
    let tls = find::<rustls::Error>(error).is_some() || tls_inside_io(error);
    let (kind, step) = if tls { (FaultKind::Tls, "a secure") } else { (FaultKind::Connect, "a") };
    let cause = root_cause(error);
    not_sent(kind, format!("there is no way to open {step} connection to `{host}`: {cause}"))
}

fn answer_fault_kind(error: &hyper::Error) -> FaultKind {
    if error.is_parse() { FaultKind::UnreadableAnswer } else { FaultKind::Reset }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref::<E>())
}

/// An I/O error hides its inner error from `source`.
fn tls_inside_io(error: &(dyn Error + 'static)) -> bool {
    chain(error).filter_map(|error| error.downcast_ref::<io::Error>()?.get_ref()).any(|inner| {
        inner.is::<rustls::Error>() || inner.downcast_ref::<io::Error>().is_some_and(|io| tls_inside_io(io))
    })
}

/// The innermost error's text. It holds neither URL nor header, as the outer ones may.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

fn method(method: transmission::Method) -> Method {
    match method {
        transmission::Method::Get => Method::GET,
        transmission::Method::Post => Method::POST,
        transmission::Method::Put => Method::PUT,
        transmission::Method::Patch => Method::PATCH,
        transmission::Method::Delete => Method::DELETE,
    }
}

fn headers(given: &[Kv]) -> Result<HeaderMap, Fault> {
    let mut headers = HeaderMap::with_capacity(given.len() + 4);
    for Kv { name, value } in given {
        headers.append(header_name(name)?, header_value(name, value.as_bytes())?);
    }
    Ok(headers)
}

/// A header that a provider may set.
fn header_name(name: &str) -> Result<HeaderName, Fault> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| invalid(format!("`{}` is not a header name", name.escape_debug())))?;
    if RESERVED_HEADERS.contains(&parsed.as_str()) {
        return Err(invalid(format!("the header `{parsed}` is the gateway's to write")));
    }
    Ok(parsed)
}

/// A value without line breaks or other control characters.
fn header_value(name: &str, value: &[u8]) -> Result<HeaderValue, Fault> {
    HeaderValue::from_bytes(value)
        .map_err(|_| invalid(format!("the value of the header `{}` holds a control character", name.escape_debug())))
}

fn sensitive(value: &[u8], secret: &str) -> Result<HeaderValue, Fault> {
    let mut value = HeaderValue::from_bytes(value)
        .map_err(|_| invalid(format!("the secret `{secret}` can't stand in a header: it holds a control character")))?;
    value.set_sensitive(true);
    Ok(value)
}

fn joined(prefix: &[u8], value: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([prefix, value].concat())
}

/// RFC 7617.
pub(super) fn basic(user: &[u8], password: &Secret) -> Zeroizing<Vec<u8>> {
    let pair = Zeroizing::new([user, b":", password.expose()].concat());
    joined(b"Basic ", Zeroizing::new(STANDARD.encode(&*pair)).as_bytes())
}

fn text_of<'a>(secret: &'a Secret, name: &str) -> Result<&'a str, Fault> {
    secret.expose_text().ok_or_else(|| invalid(format!("the secret `{name}` is not UTF-8")))
}

struct AwsKeys<'a> {
    access: &'a str,
    secret: &'a str,
    session: Option<&'a str>,
}

fn apply_sigv4(
    keys: &AwsKeys<'_>,
    region: &str,
    service: &str,
    draft: &mut Draft,
    call: &Call<'_>,
) -> Result<(), Fault> {
    let signer = sigv4::Signer { access_key: keys.access, secret_key: keys.secret, region, service, now: call.now };
    let mut headers = Vec::new();
    if let Some(kind) = draft.headers.get("content-type").and_then(|value| value.to_str().ok()) {
        headers.push(("content-type", kind));
    }
    if let Some(session) = keys.session {
        headers.push(("x-amz-security-token", session));
    }
    let signed =
        signer.sign(&sigv4::SigV4Signature { method: &draft.method, url: &draft.url, headers, body: &draft.body });
    draft.headers.insert("x-amz-date", header_value("x-amz-date", signed.date.as_bytes())?);
    draft.headers.insert(AUTHORIZATION, sensitive(signed.authorization.as_bytes(), "access key")?);
    if let Some(session) = keys.session {
        draft.headers.insert("x-amz-security-token", sensitive(session.as_bytes(), "session token")?);
    }
    Ok(())
}
