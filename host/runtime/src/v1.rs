//! `angarium:provider@1`: the bindings, and their way to the gateway's own words. No other
//! module knows the generated types, so that a new major of the contract is one more file. Text
//! and numbers pass as they came: `answer` judges them.

use wasmtime::{
    Store,
    component::{HasSelf, Linker},
};

use super::{
    answer::{self, Invalid},
    guest::{Guest, Level},
    sandbox::Sandbox,
};
use angarium_domain::{
    provider as domain,
    transmission::{self as wire, Kv, Mailbox},
};

mod callbacks;

mod bindings {
    wasmtime::component::bindgen!({ path: "../../wit/v1", world: "provider" });
}

pub(super) use callbacks::Parsed;

use bindings::{ProviderPre, angarium::provider::log, exports::angarium::provider::plugin as wit};

/// The one import that a component may have.
pub(super) const LOG: &str = "angarium:provider/log@1.0.0";
/// The export that it must have.
pub(super) const PLUGIN: &str = "angarium:provider/plugin@1.0.0";

/// A component that is linked and type-checked, ready for an instance per call.
pub(super) struct Linked {
    provider: ProviderPre<Guest>,
    callbacks: Option<callbacks::Reader>,
}

/// The result of a call, before it is judged: the guest's step, or its verdict on all deliveries.
pub(super) type Answered = Result<Result<domain::Step, domain::Judgement>, Invalid>;

impl Linked {
    /// Links a component to the log, and checks each type of its export.
    pub(super) fn new(sandbox: &Sandbox, component: &wasmtime::component::Component) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(sandbox.engine());
        log::add_to_linker::<Guest, HasSelf<Guest>>(&mut linker, |guest| guest)?;
        let ready = linker.instantiate_pre(component)?;
        let callbacks = callbacks::Reader::probe(component, &ready)?;
        Ok(Self { provider: ProviderPre::new(ready)?, callbacks })
    }

    /// The part that reads callbacks, in a component that has it.
    pub(super) const fn callbacks(&self) -> Option<&callbacks::Reader> {
        self.callbacks.as_ref()
    }

    pub(super) fn describe(&self, store: &mut Store<Guest>) -> wasmtime::Result<RawDescriptor> {
        let provider = self.provider.instantiate(&mut *store)?;
        let descriptor = provider.angarium_provider_plugin().call_describe(store)?;
        Ok(descriptor.into())
    }

    pub(super) fn prepare(
        &self,
        store: &mut Store<Guest>,
        ctx: &domain::CallContext,
        config: &str,
        items: &[domain::Item],
    ) -> wasmtime::Result<Answered> {
        let provider = self.provider.instantiate(&mut *store)?;
        let items: Vec<wit::Delivery> = items.iter().map(Into::into).collect();
        let answer =
            provider.angarium_provider_plugin().call_prepare(store, &ctx.into(), &config.to_owned(), &items)?;
        Ok(answered(answer))
    }

    pub(super) fn interpret(
        &self,
        store: &mut Store<Guest>,
        ctx: &domain::CallContext,
        config: &str,
        state: &[u8],
        reply: &wire::Reply,
    ) -> wasmtime::Result<Answered> {
        let provider = self.provider.instantiate(&mut *store)?;
        let (config, state) = (config.to_owned(), state.to_vec());
        let plugin = provider.angarium_provider_plugin();
        let answer = plugin.call_interpret(store, &ctx.into(), &config, &state, &reply.into())?;
        Ok(answered(answer))
    }
}

/// A descriptor as the guest gave it: JSON is still text, and nothing is checked.
pub(super) struct RawDescriptor {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) summary: String,
    pub(super) channels: Vec<String>,
    pub(super) config_schema: String,
    pub(super) secrets: Vec<domain::SecretSpec>,
    pub(super) hosts: Vec<String>,
    pub(super) deduplication: domain::Deduplication,
    pub(super) cost_model: String,
    pub(super) max_batch: u32,
    pub(super) ext: String,
}

impl From<wit::Descriptor> for RawDescriptor {
    fn from(given: wit::Descriptor) -> Self {
        Self {
            name: given.name,
            version: given.version,
            summary: given.summary,
            channels: given.channels,
            config_schema: given.config_schema,
            secrets: given.secrets.into_iter().map(Into::into).collect(),
            hosts: given.hosts,
            deduplication: match given.deduplication {
                wit::Deduplication::None => domain::Deduplication::None,
                wit::Deduplication::Key => domain::Deduplication::Key,
            },
            cost_model: given.cost_model,
            max_batch: given.max_batch,
            ext: given.ext,
        }
    }
}

impl From<wit::SecretSpec> for domain::SecretSpec {
    fn from(given: wit::SecretSpec) -> Self {
        Self { name: given.name, purpose: given.purpose, required: given.required }
    }
}

impl log::Host for Guest {
    fn write(&mut self, level: log::Level, message: String) {
        self.log(level.into(), message);
    }
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Trace => Self::Trace,
            log::Level::Debug => Self::Debug,
            log::Level::Info => Self::Info,
            log::Level::Warn => Self::Warn,
            log::Level::Error => Self::Error,
        }
    }
}

// ── To the guest ──────────────────────────────────────────────────────────────────────────

/// The content of an `ext` without members of the contract.
const NO_EXT: &str = "{}";

impl From<&domain::CallContext> for wit::Context {
    fn from(ctx: &domain::CallContext) -> Self {
        Self {
            now_ms: ctx.now_ms,
            attempt: ctx.attempt,
            seed: ctx.seed.to_vec(),
            secrets: ctx.secrets.clone(),
            ext: ctx
                .callback_url
                .as_ref()
                .map_or_else(|| NO_EXT.to_owned(), |url| serde_json::json!({ "callback_url": url }).to_string()),
        }
    }
}

impl From<&domain::Item> for wit::Delivery {
    fn from(item: &domain::Item) -> Self {
        Self {
            id: item.id.clone(),
            key: item.key.clone(),
            channel: item.channel.clone(),
            sender: item.sender.as_ref().map(Into::into),
            reply_to: item.reply_to.iter().map(Into::into).collect(),
            to: item.to.iter().map(Into::into).collect(),
            cc: item.cc.iter().map(Into::into).collect(),
            bcc: item.bcc.iter().map(Into::into).collect(),
            subject: item.subject.clone(),
            text: item.text.clone(),
            html: item.html.clone(),
            payload: item.payload.clone(),
            headers: item.headers.iter().map(Into::into).collect(),
            params: item.params.iter().map(Into::into).collect(),
            media_urls: item.media_urls.clone(),
            blobs: item.blobs.iter().map(Into::into).collect(),
            ext: NO_EXT.to_owned(),
        }
    }
}

impl From<&Mailbox> for wit::Address {
    fn from(mailbox: &Mailbox) -> Self {
        Self { value: mailbox.value.clone(), name: mailbox.name.clone() }
    }
}

impl From<&Kv> for wit::Kv {
    fn from(kv: &Kv) -> Self {
        Self { name: kv.name.clone(), value: kv.value.clone() }
    }
}

impl From<&domain::BlobInfo> for wit::Blob {
    fn from(blob: &domain::BlobInfo) -> Self {
        Self {
            id: blob.id,
            name: blob.name.clone(),
            media_type: blob.media_type.clone(),
            size: blob.size,
            content_id: blob.content_id.clone(),
        }
    }
}

impl From<&wire::Reply> for wit::Reply {
    fn from(reply: &wire::Reply) -> Self {
        match reply {
            wire::Reply::Http { status, headers, body, .. } => Self::Http(wit::HttpResponse {
                status: *status,
                headers: headers.iter().map(Into::into).collect(),
                body: body.to_vec(),
            }),
            wire::Reply::Smtp { code, enhanced, text, .. } => {
                Self::Smtp(wit::SmtpReply { code: *code, enhanced: enhanced.clone(), text: text.clone() })
            }
        }
    }
}

// ── From the guest ────────────────────────────────────────────────────────────────────────

fn answered(answer: Result<wit::Step, wit::Outcome>) -> Answered {
    Ok(match answer {
        Ok(given) => Ok(step(given)?),
        Err(verdict) => Err(judgement("outcome", verdict)?),
    })
}

fn step(given: wit::Step) -> Result<domain::Step, Invalid> {
    Ok(match given {
        wit::Step::Send(send) => domain::Step::Send { transmission: send.transmission.into(), state: send.state },
        wit::Step::Wait(pause) => domain::Step::Wait { ms: pause.ms, state: pause.state },
        wit::Step::Done(outcomes) => domain::Step::Done(judgements(outcomes)?),
    })
}

fn judgements(outcomes: Vec<wit::Outcome>) -> Result<Vec<domain::Judgement>, Invalid> {
    let numbered = outcomes.into_iter().enumerate();
    numbered.map(|(index, given)| judgement(&format!("done[{index}]"), given)).collect()
}

fn judgement(at: &str, given: wit::Outcome) -> Result<domain::Judgement, Invalid> {
    answer::ext(at, &given.ext)?;
    Ok(domain::Judgement {
        disposition: given.disposition.into(),
        code: given.code,
        unified_code: given.unified_code,
        message: given.message,
        external_id: given.external_id,
        retry_after_ms: given.retry_after_ms,
        cost: given.cost.map(|cost| answer::cost(at, cost.micros, cost.currency)).transpose()?,
        units: given.units,
    })
}

impl From<wit::Disposition> for domain::Disposition {
    fn from(given: wit::Disposition) -> Self {
        match given {
            wit::Disposition::Accepted => Self::Accepted,
            wit::Disposition::RejectedPermanent => Self::RejectedPermanent,
            wit::Disposition::RejectedTransient => Self::RejectedTransient,
            wit::Disposition::Throttled => Self::Throttled,
            wit::Disposition::AuthFailed => Self::AuthFailed,
            wit::Disposition::Unknown => Self::Unknown,
        }
    }
}

impl From<wit::Transmission> for wire::Transmission {
    fn from(given: wit::Transmission) -> Self {
        match given {
            wit::Transmission::Http(request) => Self::Http(Box::new(request.into())),
            wit::Transmission::Smtp(submission) => Self::Smtp(Box::new(submission.into())),
        }
    }
}

impl From<wit::HttpRequest> for wire::HttpRequest {
    fn from(given: wit::HttpRequest) -> Self {
        Self {
            method: match given.method {
                wit::HttpMethod::Get => wire::Method::Get,
                wit::HttpMethod::Post => wire::Method::Post,
                wit::HttpMethod::Put => wire::Method::Put,
                wit::HttpMethod::Patch => wire::Method::Patch,
                wit::HttpMethod::Delete => wire::Method::Delete,
            },
            url: given.url,
            headers: all(given.headers),
            body: all(given.body),
            auth: all(given.auth),
            timeout_ms: given.timeout_ms,
        }
    }
}

fn all<Given, Wanted: From<Given>>(given: Vec<Given>) -> Vec<Wanted> {
    given.into_iter().map(Into::into).collect()
}

impl From<wit::Kv> for Kv {
    fn from(given: wit::Kv) -> Self {
        Self { name: given.name, value: given.value }
    }
}

impl From<wit::Address> for Mailbox {
    fn from(given: wit::Address) -> Self {
        Self { value: given.value, name: given.name }
    }
}

impl From<wit::Encoding> for wire::Encoding {
    fn from(given: wit::Encoding) -> Self {
        match given {
            wit::Encoding::Raw => Self::Raw,
            wit::Encoding::Url => Self::Url,
            wit::Encoding::JsonString => Self::JsonString,
            wit::Encoding::Base64 => Self::Base64,
            wit::Encoding::Base64url => Self::Base64Url,
            wit::Encoding::Hex => Self::Hex,
        }
    }
}

impl From<wit::Segment> for wire::Segment {
    fn from(given: wit::Segment) -> Self {
        match given {
            wit::Segment::Text(text) => Self::Text(text),
            wit::Segment::Bytes(bytes) => Self::Bytes(bytes),
            wit::Segment::Secret(named) => Self::Secret { name: named.name, encoding: named.encoding.into() },
            wit::Segment::Blob(named) => Self::Blob { id: named.id, encoding: named.encoding.into() },
            wit::Segment::Body => Self::Body,
        }
    }
}

impl From<wit::Auth> for wire::Auth {
    fn from(given: wit::Auth) -> Self {
        match given {
            wit::Auth::Basic(basic) => Self::Basic { user: all(basic.user), password: basic.password },
            wit::Auth::Bearer(secret) => Self::Bearer { secret },
            wit::Auth::Header(named) => Self::Header { name: named.name, secret: named.secret },
            wit::Auth::Query(named) => Self::Query { name: named.name, secret: named.secret },
            wit::Auth::AwsSigv4(keys) => sigv4(keys),
            wit::Auth::Oauth2(client) => oauth2(client),
            wit::Auth::Signatures(signed) => Self::Signatures {
                header: signed.header,
                separator: signed.separator,
                signatures: all(signed.signatures),
            },
            wit::Auth::ClientCertificate(secret) => Self::ClientCertificate { secret },
        }
    }
}

fn sigv4(keys: wit::Sigv4) -> wire::Auth {
    wire::Auth::AwsSigV4 {
        access_key: keys.access_key,
        secret_key: keys.secret_key,
        session_token: keys.session_token,
        region: keys.region,
        service: keys.service,
    }
}

fn oauth2(client: wit::Oauth2) -> wire::Auth {
    wire::Auth::OAuth2 {
        grant: match client.grant {
            wit::Oauth2Grant::ClientCredentials => wire::OAuth2Grant::ClientCredentials,
            wit::Oauth2Grant::RefreshToken => wire::OAuth2Grant::RefreshToken,
            wit::Oauth2Grant::ServiceAccountJwt => wire::OAuth2Grant::ServiceAccountJwt,
        },
        token_url: client.token_url,
        scopes: client.scopes,
        client_id: client.client_id,
        credential: client.credential,
    }
}

impl From<wit::Signature> for wire::Signature {
    fn from(given: wit::Signature) -> Self {
        Self {
            algorithm: match given.algorithm {
                wit::SignatureAlgorithm::HmacSha1 => wire::SignatureAlgorithm::HmacSha1,
                wit::SignatureAlgorithm::HmacSha256 => wire::SignatureAlgorithm::HmacSha256,
                wit::SignatureAlgorithm::HmacSha512 => wire::SignatureAlgorithm::HmacSha512,
                wit::SignatureAlgorithm::Ed25519 => wire::SignatureAlgorithm::Ed25519,
            },
            key: given.key,
            key_format: match given.key_format {
                wit::KeyFormat::Raw => wire::KeyFormat::Raw,
                wit::KeyFormat::Hex => wire::KeyFormat::Hex,
                wit::KeyFormat::Base64 => wire::KeyFormat::Base64,
                wit::KeyFormat::StandardWebhooks => wire::KeyFormat::StandardWebhooks,
            },
            message: all(given.message),
            encoding: given.encoding.into(),
            prefix: given.prefix,
        }
    }
}

impl From<wit::SmtpSubmission> for wire::SmtpSubmission {
    fn from(given: wit::SmtpSubmission) -> Self {
        Self {
            host: given.host,
            port: given.port,
            tls: match given.tls {
                wit::SmtpTls::None => wire::SmtpTls::None,
                wit::SmtpTls::Opportunistic => wire::SmtpTls::Opportunistic,
                wit::SmtpTls::Starttls => wire::SmtpTls::Starttls,
                wit::SmtpTls::Implicit => wire::SmtpTls::Implicit,
            },
            user: given.user,
            password: given.password,
            client_name: given.client_name,
            mail_from: given.mail_from,
            rcpt_to: given.rcpt_to,
            message: given.message.into(),
            dkim: given.dkim.map(Into::into),
            timeouts: given.timeouts.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<wit::SmtpTimeouts> for wire::SmtpTimeouts {
    fn from(given: wit::SmtpTimeouts) -> Self {
        Self {
            greeting_ms: given.greeting_ms,
            command_ms: given.command_ms,
            data_ms: given.data_ms,
            block_ms: given.block_ms,
            end_ms: given.end_ms,
        }
    }
}

impl From<wit::Mail> for wire::Mail {
    fn from(given: wit::Mail) -> Self {
        Self {
            sender: given.sender.into(),
            reply_to: all(given.reply_to),
            to: all(given.to),
            cc: all(given.cc),
            subject: given.subject,
            message_id: given.message_id,
            date_ms: given.date_ms,
            text: given.text,
            html: given.html,
            headers: all(given.headers),
            blobs: given.blobs,
        }
    }
}

impl From<wit::Dkim> for wire::Dkim {
    fn from(given: wit::Dkim) -> Self {
        Self { domain: given.domain, selector: given.selector, key: given.key }
    }
}
