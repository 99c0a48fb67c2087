//! A provider's admitted component: its description, and the two calls that a delivery makes.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jsonschema::Validator;
use serde_json::Value;

use super::{
    MAX_STATE,
    answer::{self, Outcomes},
    call::{self, CallError, Called, GuestFault, GuestFaultKind, Usage},
    descriptor::Described,
    provider_schema::ProviderSchema,
    sandbox::Sandbox,
    speech,
    v1::{Answered, Linked, Parsed},
};
use angarium_domain::{
    callback::{Callback, CallbackContext, CallbackRequest},
    problem::ValueProblem,
    provider::{CallContext, Descriptor, Disposition, Item, Judgement, Step},
    redaction::Redactor,
    transmission::{Kv, Mailbox, Reply},
};

/// A component that was admitted. Each call runs in a fresh instance: nothing passes from one
/// delivery, or one tenant, to another.
pub struct Component {
    sandbox: Arc<Sandbox>,
    linked: Linked,
    name: Arc<str>,
    descriptor: Descriptor,
    config: ProviderSchema,
    secrets: BTreeMap<String, Validator>,
    content: BTreeMap<String, ProviderSchema>,
    digest: String,
    size: usize,
    imports: Vec<String>,
}

impl Component {
    pub(super) fn new(
        sandbox: Arc<Sandbox>,
        linked: Linked,
        described: Described,
        digest: String,
        size: usize,
        imports: Vec<String>,
    ) -> Self {
        let Described { descriptor, config, secrets, content } = described;
        let name = Arc::from(descriptor.name.as_str());
        Self { name, sandbox, linked, descriptor, config, secrets, content, digest, size, imports }
    }

    /// SHA-256 of the file, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the component's descriptor.
    #[must_use]
    pub const fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Size of the file, in bytes.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The interfaces that it imports: the log, or nothing.
    #[must_use]
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// Returns the schema's faults of a connection's config; empty if it is valid.
    #[must_use]
    pub fn validate_config(&self, config: &Value) -> Vec<ValueProblem> {
        self.config.problems(config)
    }

    /// Whether a secret's value has the form that the descriptor tells of it, if it tells one.
    #[must_use]
    pub fn accepts_secret(&self, name: &str, value: &str) -> bool {
        self.secrets.get(name).is_none_or(|schema| schema.is_valid(&Value::from(value)))
    }

    /// Whether the descriptor has a schema of messages by this channel.
    #[must_use]
    pub fn tells_content(&self, channel: &str) -> bool {
        self.content.contains_key(channel)
    }

    /// Returns the faults of a message by this channel, by the descriptor's schema.
    #[must_use]
    pub fn content_problems(&self, channel: &str, message: &Value) -> Vec<ValueProblem> {
        self.content.get(channel).map(|form| form.problems(message)).unwrap_or_default()
    }

    /// Turns deliveries into a first step. `config` is the connection's, valid by the schema;
    /// `items` are at most the descriptor's `max_batch`.
    #[must_use]
    pub fn prepare(&self, ctx: &CallContext, config: &str, items: &[Item]) -> Called<Step> {
        if items.is_empty() || items.len() > self.descriptor.max_batch as usize {
            return refused(self.host_fault(items.len()));
        }
        let input = config.len() + items.iter().map(size_of_item).sum::<usize>();
        if input > self.sandbox.limits().input {
            return refused(CallError::Judged(self.too_large(input).into()));
        }
        let (answered, usage) = call::run(&self.sandbox, &self.name, input, &ctx.redactor, |store| {
            self.linked.prepare(store, ctx, config, items)
        });
        Called { result: settle(answered, Outcomes::Exactly(items.len()), &ctx.redactor), usage }
    }

    /// Turns the answer to the last transmission into the next step. `state` is the last
    /// step's, untouched.
    #[must_use]
    pub fn interpret(&self, ctx: &CallContext, config: &str, state: &[u8], reply: &Reply) -> Called<Step> {
        let input = config.len() + state.len() + size_of_reply(reply);
        if state.len() > MAX_STATE || input > self.sandbox.limits().input {
            return refused(CallError::Judged(unreadable(input).into()));
        }
        let (answered, usage) = call::run(&self.sandbox, &self.name, input, &ctx.redactor, |store| {
            self.linked.interpret(store, ctx, config, state, reply)
        });
        let expected = Outcomes::AtMost(self.descriptor.max_batch as usize);
        Called { result: settle(answered, expected, &ctx.redactor), usage }
    }

    /// Whether it reads callbacks.
    #[must_use]
    pub const fn reads_callbacks(&self) -> bool {
        self.linked.callbacks().is_some()
    }

    /// Reads a callback; the inner error is the component's sentence on why the request does not come from its service.
    /// A component that reads no callbacks fails as the host's mistake.
    #[must_use]
    pub fn parse_callback(
        &self,
        ctx: &CallbackContext,
        config: &str,
        request: &CallbackRequest,
    ) -> Called<Result<Callback, String>> {
        let input = config.len()
            + request.url.len()
            + request.body.len()
            + request.headers.iter().map(size_of_kv).sum::<usize>();
        let reader = self.linked.callbacks().filter(|_| input <= self.sandbox.limits().input);
        let Some(reader) = reader else {
            let detail = format!("it reads no callbacks, or none of {input} bytes");
            return refused(CallError::Broken(GuestFault { kind: GuestFaultKind::Host, detail }));
        };
        let (parsed, usage) = call::run(&self.sandbox, &self.name, input, &ctx.redactor, |store| {
            reader.parse(store, ctx, config, request)
        });
        Called { result: read(parsed, &ctx.redactor), usage }
    }

    fn host_fault(&self, items: usize) -> CallError {
        let detail = format!("{items} deliveries for one call, expected 1 to {}", self.descriptor.max_batch);
        CallError::Broken(GuestFault { kind: GuestFaultKind::Host, detail })
    }

    fn too_large(&self, input: usize) -> Judgement {
        let message =
            format!("the delivery has {input} bytes for the provider, {} are allowed", self.sandbox.limits().input);
        judged(Disposition::RejectedPermanent, "too_large", message)
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component")
            .field("name", &self.name)
            .field("version", &self.descriptor.version)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// The request left, and its answer is larger than a guest may receive: its meaning is unknown.
fn unreadable(input: usize) -> Judgement {
    judged(
        Disposition::Unknown,
        "unreadable_answer",
        format!("the answer has {input} bytes, more than a provider is given"),
    )
}

fn judged(disposition: Disposition, unified_code: &str, message: String) -> Judgement {
    Judgement {
        disposition,
        code: String::new(),
        unified_code: unified_code.to_owned(),
        message,
        external_id: None,
        retry_after_ms: None,
        cost: None,
        units: None,
    }
}

/// No guest ran.
fn refused<T>(error: CallError) -> Called<T> {
    Called { result: Err(error), usage: Usage::default() }
}

/// Judges a call's result, and hides the connection's secrets in it.
fn settle(answered: Result<Answered, GuestFault>, expected: Outcomes, redactor: &Redactor) -> Result<Step, CallError> {
    let fault = |fault: GuestFault| CallError::Broken(speech::fault(fault, redactor));
    match answered.map_err(fault)?.map_err(|invalid| fault(invalid.into()))? {
        Ok(mut step) => {
            speech::step(&mut step, redactor);
            answer::step(&mut step, expected).map_err(|invalid| fault(invalid.into()))?;
            Ok(step)
        }
        Err(mut verdict) => {
            speech::judgement(&mut verdict, redactor);
            answer::verdict(&mut verdict).map_err(|invalid| fault(invalid.into()))?;
            Err(CallError::Judged(verdict.into()))
        }
    }
}

fn read(parsed: Result<Parsed, GuestFault>, redactor: &Redactor) -> Result<Result<Callback, String>, CallError> {
    let fault = |fault: GuestFault| CallError::Broken(speech::fault(fault, redactor));
    let mut read = parsed.map_err(fault)?.map_err(|invalid| fault(invalid.into()))?;
    match &mut read {
        Ok(callback) => speech::callback(callback, redactor),
        Err(refusal) => speech::text(refusal, redactor),
    }
    Ok(read)
}

// ── How much a guest is given ─────────────────────────────────────────────────────────────

/// The memory of a record beside its texts.
const RECORD: usize = 64;

fn size_of_item(item: &Item) -> usize {
    let texts = [&item.subject, &item.text, &item.html, &item.payload];
    let people = item.to.iter().chain(&item.cc).chain(&item.bcc).chain(&item.sender).chain(&item.reply_to);
    RECORD
        + item.id.len()
        + item.key.len()
        + texts.into_iter().flatten().map(String::len).sum::<usize>()
        + people.map(size_of_mailbox).sum::<usize>()
        + item.headers.iter().chain(&item.params).map(size_of_kv).sum::<usize>()
        + item.media_urls.iter().map(|url| RECORD + url.len()).sum::<usize>()
        + item.blobs.iter().map(|blob| RECORD + blob.name.len() + blob.media_type.len()).sum::<usize>()
}

fn size_of_mailbox(mailbox: &Mailbox) -> usize {
    RECORD + mailbox.value.len() + mailbox.name.as_ref().map_or(0, String::len)
}

fn size_of_kv(kv: &Kv) -> usize {
    RECORD + kv.name.len() + kv.value.len()
}

fn size_of_reply(reply: &Reply) -> usize {
    match reply {
        Reply::Http { headers, body, .. } => body.len() + headers.iter().map(size_of_kv).sum::<usize>(),
        Reply::Smtp { text, .. } => text.len(),
    }
}
