//! Headers for browsers: no answer of the API is stored, framed or sniffed, and only origins that the operator names
//! may call it from their pages (CORS).

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};

use angarium_domain::callback::CALLBACK_PATH;

/// Content other than the gateway's own markup runs nothing and loads nothing.
const POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
/// The reference's own files, and requests to this gateway. Its images are data URLs, and it styles elements in place.
const POLICY_OF_REFERENCE: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// A year.
const ONLY_TLS: HeaderValue = HeaderValue::from_static("max-age=31536000");
const REFERENCE: &str = "/docs";

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
const TAKEN: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, last-event-id, traceparent, tracestate, x-request-id",
);
const SHOWN: HeaderValue = HeaderValue::from_static(
    "idempotency-replayed, location, retry-after, traceparent, www-authenticate, x-request-id",
);
/// How long a browser need not ask again, in seconds.
const ASKED_AGAIN: HeaderValue = HeaderValue::from_static("600");

/// The operator's choices.
#[derive(Debug, Clone, Default)]
pub struct Browsers {
    origins: Arc<[HeaderValue]>,
    is_only_tls: bool,
}

/// How an answer is marked; taken from its request.
#[derive(Debug, Clone)]
pub struct Marks {
    is_reference: bool,
    origin: Option<HeaderValue>,
    varies: bool,
    is_only_tls: bool,
}

impl Browsers {
    /// With these origins, as browsers write them; `is_only_tls` where others find the gateway by `https`.
    #[must_use]
    pub fn new(origins: &[String], is_only_tls: bool) -> Self {
        let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        Self { origins, is_only_tls }
    }

    /// How the answer to a request is to be marked.
    pub fn marks(&self, request: &Request) -> Marks {
        let path = request.uri().path();
        let for_pages = !self.origins.is_empty() && path.starts_with("/v1/") && !path.starts_with(CALLBACK_PATH);
        Marks {
            is_reference: path.strip_prefix(REFERENCE).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            origin: if for_pages { self.allowed(request.headers()) } else { None },
            varies: for_pages,
            is_only_tls: self.is_only_tls,
        }
    }

    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut given = headers.get_all(header::ORIGIN).iter();
        let (Some(origin), None) = (given.next(), given.next()) else { return None };
        self.origins.contains(origin).then(|| origin.clone())
    }
}

impl Marks {
    /// The answer to a browser that asks, without a key, whether a page may send its request.
    pub fn preflight(&self, request: &Request) -> Option<Response> {
        let asks = request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
            && self.origin.is_some();
        asks.then(|| {
            let headers = [
                (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (header::ACCESS_CONTROL_ALLOW_HEADERS, TAKEN),
                (header::ACCESS_CONTROL_MAX_AGE, ASKED_AGAIN),
            ];
            (StatusCode::NO_CONTENT, headers).into_response()
        })
    }

    /// Marks an answer.
    pub fn mark(self, headers: &mut HeaderMap) {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::CONTENT_SECURITY_POLICY, if self.is_reference { POLICY_OF_REFERENCE } else { POLICY });
        if !self.is_reference {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if self.is_only_tls {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, ONLY_TLS);
        }
        if self.varies {
            headers.append(header::VARY, HeaderValue::from_name(header::ORIGIN));
        }
        if let Some(origin) = self.origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, SHOWN);
        }
    }
}
