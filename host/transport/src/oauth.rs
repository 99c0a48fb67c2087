//! OAuth 2 access tokens (RFC 6749, RFC 7523), fetched once and kept until shortly before they
//! expire. The token endpoint passes the same guard and grant as any request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use url::form_urlencoded::{Serializer, byte_serialize};
use zeroize::Zeroizing;

use super::{
    Call,
    egress::Egress,
    fault::{invalid, not_sent},
    http::{AnswerRoom, Outgoing, basic, checked_url, send},
    pool::PooledClient,
};
use crate::sealing::Secret;
use angarium_domain::{
    ids::{ConnectionId, TenantId},
    transmission::{Auth, Fault, FaultKind, OAuth2Grant, Reply},
};

/// The time before its expiry at which a token is fetched again.
const MARGIN: Duration = Duration::from_secs(60);
/// The lifetime of a token whose answer states none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);
/// The most tokens that are kept; with one more, all are forgotten.
const CAPACITY: usize = 10_000;

/// The identity of a token: this tenant's connection, and this credential in its present value.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenRequest {
    tenant: TenantId,
    connection: ConnectionId,
    grant: Grant,
    token_url: String,
    scope: String,
    client_id: String,
    credential: String,
    /// SHA-256, so that a rotated credential gets a token of its own.
    fingerprint: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Grant {
    ClientCredentials,
    RefreshToken,
    ServiceAccountJwt,
}

impl TokenRequest {
    /// The token that an `OAuth2` credential asks for.
    pub(super) fn new(auth: &Auth, call: &Call<'_>) -> Result<Self, Fault> {
        let Auth::OAuth2 { grant, token_url, scopes, client_id, credential } = auth else {
            return Err(invalid("a token needs OAuth 2"));
        };
        Ok(Self {
            tenant: call.tenant,
            connection: call.connection,
            grant: match grant {
                OAuth2Grant::ClientCredentials => Grant::ClientCredentials,
                OAuth2Grant::RefreshToken => Grant::RefreshToken,
                OAuth2Grant::ServiceAccountJwt => Grant::ServiceAccountJwt,
            },
            token_url: token_url.clone(),
            scope: scopes.join(" "),
            client_id: client_id.clone(),
            credential: credential.clone(),
            fingerprint: digest(&SHA256, call.secrets.newest(credential)?.expose()).as_ref().to_vec(),
        })
    }

    fn form(&self, credential: &Secret, call: &Call<'_>) -> Result<TokenForm, Fault> {
        let text = || {
            credential.expose_text().ok_or_else(|| invalid(format!("the secret `{}` is not UTF-8", self.credential)))
        };
        let mut form = Serializer::new(String::new());
        let mut authorization = None;
        match self.grant {
            Grant::ClientCredentials => {
                form.append_pair("grant_type", "client_credentials");
                // RFC 6749, 2.3.1: both are form-encoded before they are joined.
                let secret = Secret::new(byte_serialize(text()?.as_bytes()).collect::<String>());
                let id: String = byte_serialize(self.client_id.as_bytes()).collect();
                authorization = Some(basic(id.as_bytes(), &secret));
            }
            Grant::RefreshToken => {
                form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", text()?);
                if !self.client_id.is_empty() {
                    form.append_pair("client_id", &self.client_id);
                }
            }
            Grant::ServiceAccountJwt => {
                form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
                    .append_pair("assertion", &self.assertion(text()?, call)?);
            }
        }
        // A service account's scopes stand in its assertion.
        if !self.scope.is_empty() && self.grant != Grant::ServiceAccountJwt {
            form.append_pair("scope", &self.scope);
        }
        Ok(TokenForm { body: Zeroizing::new(form.finish()), authorization })
    }

    /// RFC 7523: a JWT, signed with RS256, that represents the service account.
    fn assertion(&self, account: &str, call: &Call<'_>) -> Result<Zeroizing<String>, Fault> {
        let unusable =
            |reason: &str| invalid(format!("the secret `{}` is no service account: {reason}", self.credential));
        let account: ServiceAccount = serde_json::from_str(account)
            .map_err(|_| unusable("it is not JSON with `client_email` and `private_key`"))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(account.private_key.expose())
            .map_err(|_| unusable("its `private_key` is not PEM (PKCS#8)"))?;
        let key =
            RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).map_err(|_| unusable("its `private_key` is not RSA"))?;
        let now = call.now.as_second();
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": account.private_key_id});
        let claims = json!({
            "iss": account.client_email, "scope": self.scope, "aud": self.token_url, "iat": now, "exp": now + 3600,
        });
        let mut jwt = Zeroizing::new(format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        ));
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), jwt.as_bytes(), &mut signature)
            .map_err(|_| unusable("its key can't sign"))?;
        jwt.push('.');
        jwt.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(jwt)
    }
}

/// The form for the token endpoint.
struct TokenForm {
    body: Zeroizing<String>,
    /// The header, if the grant authenticates by one.
    authorization: Option<Zeroizing<Vec<u8>>>,
}

/// The part of Google's JSON that describes a service account.
#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key: Secret,
    #[serde(default)]
    private_key_id: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Secret,
    #[serde(default)]
    expires_in: Option<f64>,
}

#[derive(Clone)]
struct Token {
    value: Secret,
    expires: Instant,
}

/// A caller that arrives while a token is fetched waits for it.
type Place = Arc<tokio::sync::Mutex<Option<Token>>>;

/// The tokens in use.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<TokenRequest, Place>>);

impl Tokens {
    /// The token for a request, fetched if there is none or it ends soon.
    pub(super) async fn get(
        &self,
        request: &TokenRequest,
        client: &PooledClient,
        egress: &Egress,
        room: AnswerRoom<'_>,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<Secret, Fault> {
        let place = self.place(request);
        let mut token = tokio::time::timeout_at(deadline, place.lock())
            .await
            .map_err(|_| not_sent(FaultKind::Timeout, "the deadline passed while waiting for an access token"))?;
        if let Some(token) = &*token
            && token.expires > Instant::now()
        {
            return Ok(token.value.clone());
        }
        let fetched = fetch(request, client, egress, room, call, deadline).await?;
        let value = fetched.value.clone();
        *token = Some(fetched);
        Ok(value)
    }

    /// Drops a token that was refused.
    pub(super) fn forget(&self, request: &TokenRequest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(request);
    }

    fn place(&self, request: &TokenRequest) -> Place {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = tokens.get(request) {
            return place.clone();
        }
        if tokens.len() >= CAPACITY {
            tokens.clear();
        }
        tokens.entry(request.clone()).or_default().clone()
    }
}

/// Asks the token endpoint. After any failure, the delivery itself was not sent.
async fn fetch(
    request: &TokenRequest,
    client: &PooledClient,
    egress: &Egress,
    room: AnswerRoom<'_>,
    call: &Call<'_>,
    deadline: Instant,
) -> Result<Token, Fault> {
    let url = checked_url(egress, &request.token_url, call)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let form = request.form(call.secrets.newest(&request.credential)?, call)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    if let Some(value) = form.authorization {
        let mut value =
            HeaderValue::from_bytes(&value).map_err(|_| invalid("the client's id or secret is malformed"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let body = form.body.as_bytes().to_vec().into();
    let (reply, _permit) = send(client, Outgoing::new(Method::POST, &url, headers, body)?, room, deadline)
        .await
        .map_err(|fault| not_sent(fault.kind, format!("no access token: {}", fault.detail)))?;
    token_in(&reply, &host)
}

fn token_in(reply: &Reply, host: &str) -> Result<Token, Fault> {
    let Reply::Http { status, body, .. } = reply else {
        return Err(invalid("a token endpoint speaks HTTP"));
    };
    match status {
        200..=299 => {}
        400 | 401 | 403 => {
            return Err(not_sent(FaultKind::Unauthorized, format!("`{host}` refused an access token with {status}")));
        }
        _ => {
            return Err(not_sent(FaultKind::UnreadableAnswer, format!("`{host}` gave no access token but {status}")));
        }
    }
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| {
        not_sent(
            FaultKind::UnreadableAnswer,
            format!("`{host}` gave no access token: its answer has no `access_token`"),
        )
    })?;
    let lifetime =
        answer.expires_in.map_or(DEFAULT_LIFETIME, |seconds| Duration::from_secs_f64(seconds.clamp(0.0, 1e6)));
    let expires = Instant::now() + lifetime.saturating_sub(MARGIN.min(lifetime / 2));
    Ok(Token { value: answer.access_token, expires })
}
