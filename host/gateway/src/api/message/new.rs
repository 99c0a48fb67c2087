//! A message as a client sends it, and its checks.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    super::fields::{Fields, plain},
    channels::NewLeg,
    fingerprint,
};
use crate::{
    app::sending::{AdmitError, MessageSource, ParseContext, Unparsed},
    clock,
};
use angarium_domain::{
    country::Country,
    ids::MessageId,
    legs::{LegMode, Wants},
    media_type::MediaType,
    message::{self, Body, Idempotency, MAX_SUBJECT, MOST_CONTENT, Message, Priority, address, check_times},
    one_or_many,
    problem::ValueProblem,
    rule_input::{MessageOutline, Object, Particulars, RuleInput},
};
use angarium_rules::ruling::Ruling;

/// Attachments of one message together, decoded.
const MOST_ATTACHMENT_BYTES: usize = 10 << 20;
/// `metadata`.
const MOST_OBJECT_BYTES: usize = 16 << 10;

/// A message to be sent.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewMessage, example = json!({
    "to": "ann@example.org", "channel": "email",
    "content": {"from": "shop@example.com", "subject": "Your invoice", "text": "Thank you."},
    "reference": "invoice:INV-7"
}))]
pub struct MessageRequest {
    /// The recipient: an address, or an address with a name. A webhook's address is a URL; it may be left out if the
    /// connection's config has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<Recipient>,
    /// `email`, `sms`, `mms`, `webhook`, … or another that a provider brings. Needed, unless there are `channels` or a
    /// rule chooses one.
    #[serde(default)]
    #[schema(value_type = Option<String>, pattern = "^[a-z][a-z0-9_]{0,31}$", example = "email")]
    pub(super) channel: Option<String>,
    #[serde(default)]
    pub(super) content: NewContent,
    /// A connection's id or uid, to use it past the channel's route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128)]
    pub(super) connection: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<Priority>,
    /// The earliest time to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
    /// The latest time to send: after it the message expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// The same key with the same message is accepted once; kept for a day. The header
    /// `Idempotency-Key` says the same.
    // Left out of the fingerprint; with `skip_serializing` it would be left out of the document too.
    #[serde(default, skip_serializing_if = "always")]
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// The client's own object, such as `invoice:INV-7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    reference: Option<String>,
    /// Messages with the same key go one after another, in the order of their acceptance: the next is sent once the
    /// previous one was sent, or has ended in another way. Keys do not wait for each other. Not with `channels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256, example = "customer:42")]
    ordering_key: Option<String>,
    /// The subject matter of the message, for rules: `amount` and `currency` have a meaning. Together with `contact`
    /// and `context` at most 16 KiB, each at most 64 members, 4 levels deep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    attributes: Option<Box<RawValue>>,
    /// The recipient's data, for rules: `id`, `segment`, `type`, `industry`, `country`, `region`, `city`,
    /// `postal_code`, `timezone` and `language` have a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    contact: Option<Box<RawValue>>,
    /// The circumstances, for rules: a member that `contact` lacks is looked for here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    context: Option<Box<RawValue>>,
    /// A script with a `condition`, which is asked when the message is due: while it says no the message waits, until
    /// `expires_at` at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, example = "office_open")]
    condition: Option<String>,
    /// The client's own, handed back as it came; at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// Several channels in order of preference, in place of `channel`, `to`, `content` and `connection`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16)]
    pub(super) channels: Vec<NewLeg>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<LegMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wants: Option<Wants>,
    /// With `wants: delivered`: the seconds to wait for a receipt after one channel has sent; then the next one is
    /// tried. Five minutes by default; at most seven days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604800)]
    pub(super) receipt_window: Option<u32>,
}

/// The content to deliver. The channel decides which fields count. At most 8 MiB as JSON, without the attachments.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewContent)]
pub struct NewContent {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Recipient>,
    /// The addresses for answers: one, or a list of at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "one_or_many")]
    #[schema(value_type = Option<ReplyTo>)]
    reply_to: Vec<Recipient>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 100)]
    cc: Vec<Recipient>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 100)]
    bcc: Vec<Recipient>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 998)]
    subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    html: Option<String>,
    /// Any JSON; its bytes arrive as they are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    payload: Option<Box<RawValue>>,
    /// Headers of the mail or request; at most 100.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// At most 50, and 10 MiB together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 50)]
    attachments: Vec<NewAttachment>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 10)]
    media_urls: Vec<String>,
    /// Parameters of the provider's own; at most 100.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    params: BTreeMap<String, String>,
}

/// An address, or an address with the name shown beside it.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Recipient {
    Text(String),
    Named(NamedAddress),
}

/// The addresses for answers: one, or several.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "`one_or_many` reads it; this lists the forms in the document")]
pub enum ReplyTo {
    One(Recipient),
    /// At most 20.
    Many(Vec<Recipient>),
}

/// An address with the name shown beside it.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedAddress {
    #[schema(min_length = 1, max_length = 2048)]
    pub(super) address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256)]
    pub(super) name: Option<String>,
}

/// A file that travels with the message.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAttachment {
    #[schema(min_length = 1, max_length = 255, example = "invoice.pdf")]
    name: String,
    #[schema(example = "application/pdf")]
    media_type: String,
    /// Base64 (RFC 4648, section 4).
    #[schema(format = Byte)]
    content: String,
    /// For a part that the HTML shows as `cid:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    content_id: Option<String>,
}

const fn always(_: &Option<String>) -> bool {
    true
}

/// A client's message on its way into admission.
pub struct ClientMessage {
    pub request: MessageRequest,
    /// The faults of the members that could not be read.
    pub fields: Fields,
    /// The header `Idempotency-Key`, for a message that is sent alone.
    pub header_key: Option<String>,
}

impl MessageSource for ClientMessage {
    fn named_connections(&self) -> Vec<&str> {
        let MessageRequest { connection, channels, .. } = &self.request;
        connection.as_deref().into_iter().chain(channels.iter().filter_map(NewLeg::pinned_to)).collect()
    }

    fn wants_channel(&self) -> bool {
        self.request.wants_channel()
    }

    fn parse(self, context: &ParseContext<'_>) -> Result<message::NewMessage, Unparsed> {
        let Self { mut request, mut fields, header_key } = self;
        // A body with invalid members has no fingerprint.
        let is_whole = fields.is_empty();
        let idempotency = request.idempotency(header_key.as_deref(), &mut fields);
        let key = idempotency.clone().filter(|_| is_whole && fields.is_empty());
        let message = request.into_domain(fields, context, idempotency);
        message
            .map_err(|fields| Unparsed { error: AdmitError::Invalid(fields.into_problems()), key: key.map(Box::new) })
    }
}

impl MessageRequest {
    /// Whether it has a key of its own.
    pub fn has_key(&self) -> bool {
        self.idempotency_key.is_some()
    }

    /// The message, if all of it holds; else every bad field, with those that are known before.
    fn into_domain(
        mut self,
        mut fields: Fields,
        context: &ParseContext<'_>,
        idempotency: Option<Idempotency>,
    ) -> Result<message::NewMessage, Fields> {
        self.send_at = self.send_at.map(clock::as_stored);
        self.expires_at = self.expires_at.map(clock::as_stored);
        self.check_times(context.now, &mut fields);
        self.check_texts(&mut fields);
        if let Some(name) = &self.condition {
            fields.check(context.has_condition(name), "condition", "unknown_condition", || {
                "must name a script in service that defines `condition`".to_owned()
            });
        }
        let input = self.rule_input(&mut fields);
        let chosen = input.as_ref().filter(|_| self.wants_channel()).and_then(|input| context.channel(input));
        let named = self.take_legs(chosen.as_ref(), &mut fields);
        let (legs, attachments) = named.into_domain(context, &mut fields);
        let legs = legs.filter(|_| fields.is_empty());
        let Some(legs) = legs else { return Err(fields) };
        let message = Message {
            id: MessageId::with_legs(),
            created_at: context.now,
            priority: self.priority.unwrap_or_default(),
            send_at: self.send_at,
            expires_at: self.expires_at,
            reference: self.reference,
            batch: None,
            ordering_key: self.ordering_key,
            legs,
            abridged: false,
            body: Body {
                attributes: self.attributes,
                contact: self.contact,
                context: self.context,
                ruling: chosen.and_then(|_| Ruling::of_channel_chosen()),
                first: None,
                follows: None,
                condition: self.condition,
                metadata: self.metadata,
                trace: None,
            },
        };
        Ok(message::NewMessage { message, idempotency, attachments, rule_input: input })
    }

    /// Returns its idempotency key, and the message behind it.
    fn idempotency(&mut self, header: Option<&str>, fields: &mut Fields) -> Option<Idempotency> {
        let key = self.idempotency_key.as_deref().or(header)?.to_owned();
        if header.is_some_and(|header| header != key) {
            fields.check(false, "idempotency_key", "contradiction", || {
                "must be the same as the header `Idempotency-Key`: send one of them".to_owned()
            });
        }
        plain(fields, "idempotency_key", &key, 255);
        Some(fingerprint::idempotency(&key, self))
    }

    /// The client's own objects.
    pub(super) fn objects(&mut self) -> [&mut Option<Box<RawValue>>; 4] {
        [&mut self.attributes, &mut self.contact, &mut self.context, &mut self.metadata]
    }

    fn check_times(&self, now: Timestamp, fields: &mut Fields) {
        for (field, code, detail) in check_times(self.send_at, self.expires_at, now) {
            fields.check(false, field, code, || detail.to_owned());
        }
    }

    fn check_texts(&self, fields: &mut Fields) {
        if let Some(reference) = &self.reference {
            plain(fields, "reference", reference, 255);
        }
        if let Some(key) = &self.ordering_key {
            plain(fields, "ordering_key", key, 256);
            // The next message's turn would come while a further channel of this one still goes.
            fields.check(self.channels.is_empty(), "ordering_key", "several_channels", || {
                "is not allowed together with `channels`: name one `channel`, or leave the key out".to_owned()
            });
        }
        if let Some(object) = &self.metadata {
            fields.check(object.get().starts_with('{'), "metadata", "wrong_type", || "must be an object".to_owned());
            let fits = object.get().len() <= MOST_OBJECT_BYTES;
            fields.check(fits, "metadata", "too_long", || "must have at most 16 KiB".to_owned());
            let is_text = !has_half_surrogate(object.get());
            fields.check(is_text, "metadata", "wrong_format", || {
                "must have both halves of each surrogate pair, such as `\\ud83d\\ude00`".to_owned()
            });
        }
    }

    /// Returns the rules' input of the message; `None` if it has no data for rules and names a channel, or if its data
    /// is invalid.
    fn rule_input(&self, fields: &mut Fields) -> Option<RuleInput> {
        let says_something = self.attributes.is_some() || self.contact.is_some() || self.context.is_some();
        if !says_something && (self.channel.is_some() || self.has_channels()) {
            return None;
        }
        let mut object = |name: &str, raw: &Option<Box<RawValue>>| -> Option<Object> {
            let Some(raw) = raw else { return Some(Object::new()) };
            let object = serde_json::from_str(raw.get());
            fields.check(object.is_ok(), name, "wrong_type", || {
                "must be an object that is not nested too deeply".to_owned()
            });
            object.ok()
        };
        let attributes = object("attributes", &self.attributes);
        let (contact, context) = (object("contact", &self.contact), object("context", &self.context));
        let particulars = Particulars { attributes: attributes?, contact: contact?, context: context? };
        let to = self.to.as_ref().map_or("", Recipient::address);
        let kind = if to.starts_with('+') { "sms" } else { "email" };
        let input = RuleInput::read(particulars, Country::of_address(kind, to));
        let bad = |problems: Vec<_>| {
            problems.into_iter().for_each(|it: ValueProblem| fields.elsewhere(it.pointer, it.code, it.detail))
        };
        let input = input.map_err(bad).ok()?;
        Some(input.within(MessageOutline {
            to: to.to_owned(),
            reference: self.reference.clone(),
            ..MessageOutline::default()
        }))
    }
}

/// Checks the recipient on a channel, which may be misspelled.
pub(super) fn check_recipient(to: Option<&Recipient>, channel: &str, fields: &mut Fields) {
    let Some(to) = to else {
        return fields.check(!address::is_needed(channel), "to", "missing", || "must be given".to_owned());
    };
    fields.within("to", |fields| {
        to.check(channel == "email", fields);
        if channel == "webhook" {
            check_url(to.address(), fields);
        }
    });
}

impl Recipient {
    fn address(&self) -> &str {
        match self {
            Self::Text(address) | Self::Named(NamedAddress { address, .. }) => address,
        }
    }

    pub(super) fn into_domain(self) -> message::Address {
        match self {
            Self::Text(address) => message::Address { address, name: None },
            Self::Named(NamedAddress { address, name }) => message::Address { address, name },
        }
    }

    fn check(&self, mail: bool, fields: &mut Fields) {
        let address = self.address();
        if let Some((code, detail)) = address::fault(address, mail) {
            fields.bad(code, detail);
        }
        if let Self::Named(NamedAddress { name: Some(name), .. }) = self {
            let fits = name.chars().count() <= 256;
            fields.check(fits, "name", "too_long", || "must have at most 256 characters".to_owned());
            fields.check(!name.chars().any(char::is_control), "name", "control_character", || {
                "must have no control character, such as a line break".to_owned()
            });
        }
    }
}

impl NewContent {
    /// Returns all addresses that it names.
    pub(super) fn addresses(&mut self) -> impl Iterator<Item = &mut Recipient> {
        self.from.iter_mut().chain(&mut self.reply_to).chain(&mut self.cc).chain(&mut self.bcc)
    }

    /// Whether it says nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        serde_json::to_vec(self).is_ok_and(|json| json == b"{}")
    }

    /// Checks it as the content of one leg; returns its files.
    pub(super) fn checked(&self, leg: u8, mail: bool, fields: &mut Fields) -> Vec<message::Attachment> {
        self.check(mail, fields);
        self.check_size(fields);
        self.decoded(leg, mail, fields)
    }

    fn check(&self, mail: bool, fields: &mut Fields) {
        if let Some(from) = &self.from {
            fields.within("from", |fields| from.check(mail, fields));
        }
        match self.reply_to.as_slice() {
            [one] => fields.within("reply_to", |fields| one.check(mail, fields)),
            many => fields.each("reply_to", many, |fields, address| address.check(mail, fields)),
        }
        fields.check(self.reply_to.len() <= 20, "reply_to", "too_long", || {
            format!("must list at most 20 addresses (got {})", self.reply_to.len())
        });
        for (name, list) in [("cc", &self.cc), ("bcc", &self.bcc)] {
            fields.check(list.len() <= 100, name, "too_long", || "must list at most 100 addresses".to_owned());
            fields.each(name, list, |fields, address| address.check(mail, fields));
        }
        if let Some(subject) = &self.subject {
            let fits = subject.chars().count() <= MAX_SUBJECT;
            fields.check(fits, "subject", "too_long", || "must have at most 998 characters".to_owned());
            fields.check(!subject.chars().any(char::is_control), "subject", "control_character", || {
                "must have no control character, such as a line break".to_owned()
            });
        }
        self.check_headers(fields);
        fields.check(self.media_urls.len() <= 10, "media_urls", "too_long", || "must list at most 10 URLs".to_owned());
        fields.each("media_urls", &self.media_urls, |fields, url| check_url(url, fields));
    }

    /// Checks the size: a component must be able to receive the message and make a request of it.
    fn check_size(&self, fields: &mut Fields) {
        let files: usize = self.attachments.iter().map(|file| file.content.len()).sum();
        let size = json_length(self).saturating_sub(files);
        if size > MOST_CONTENT {
            let detail = format!("must have at most {MOST_CONTENT} bytes as JSON, without the files (got {size})");
            fields.bad("too_large", detail);
        }
    }

    fn check_headers(&self, fields: &mut Fields) {
        for (name, map) in [("headers", &self.headers), ("params", &self.params)] {
            fields.check(map.len() <= 100, name, "too_long", || "must have at most 100 members".to_owned());
        }
        fields.within("headers", |fields| {
            for (name, value) in &self.headers {
                fields.check(is_token(name), name, "wrong_name", || "must be the name of a header".to_owned());
                let plain = value.len() <= 4096 && !value.chars().any(|c| c.is_control() && c != '\t');
                fields.check(plain, name, "wrong_format", || {
                    "must have at most 4096 bytes and no control character, such as a line break".to_owned()
                });
            }
        });
        fields.within("params", |fields| {
            for (name, value) in &self.params {
                let fits = (1..=128).contains(&name.len()) && value.len() <= 16 << 10;
                fields.check(fits, name, "too_long", || {
                    "must have a name of 1 to 128 bytes and a value of at most 16 KiB".to_owned()
                });
                fields.check(!name.chars().any(char::is_control), name, "control_character", || {
                    "must have no control character in its name".to_owned()
                });
            }
        });
    }

    /// Returns the attachments' bytes; reports invalid base64.
    fn decoded(&self, leg: u8, mail: bool, fields: &mut Fields) -> Vec<message::Attachment> {
        fields
            .check(self.attachments.len() <= 50, "attachments", "too_long", || "must list at most 50 files".to_owned());
        let size: usize = self.attachments.iter().map(|file| decoded_length(&file.content)).sum();
        let fits = size <= MOST_ATTACHMENT_BYTES;
        fields.check(fits, "attachments", "too_large", || {
            format!("must have at most {MOST_ATTACHMENT_BYTES} bytes (10 MiB) together (got {size})")
        });
        if !fits {
            return Vec::new();
        }
        let mut decoded = Vec::with_capacity(self.attachments.len());
        fields.each("attachments", &self.attachments, |fields, file| decoded.extend(file.decoded(leg, mail, fields)));
        decoded
    }

    pub(super) fn into_domain(self) -> message::Content {
        let all = |list: Vec<Recipient>| list.into_iter().map(Recipient::into_domain).collect();
        message::Content {
            from: self.from.map(Recipient::into_domain),
            reply_to: all(self.reply_to),
            cc: all(self.cc),
            bcc: all(self.bcc),
            subject: self.subject,
            text: self.text,
            html: self.html,
            payload: self.payload,
            headers: self.headers,
            media_urls: self.media_urls,
            params: self.params,
            segments: None,
        }
    }
}

impl NewAttachment {
    fn decoded(&self, leg: u8, mail: bool, fields: &mut Fields) -> Option<message::Attachment> {
        plain(fields, "name", &self.name, 255);
        fields.check(!self.name.contains(['/', '\\']), "name", "wrong_format", || {
            "must be a name, not a path".to_owned()
        });
        let media_type = MediaType::parse(&self.media_type);
        fields.check(media_type.is_some(), "media_type", "wrong_format", || {
            "must be a media type such as `text/csv; charset=utf-8`, of at most 255 bytes".to_owned()
        });
        if let Some(id) = &self.content_id {
            plain(fields, "content_id", id, 255);
            let fits = id.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"".contains(&byte));
            fields.check(fits, "content_id", "wrong_format", || {
                "must be ASCII without spaces, quotes and angle brackets, such as `logo@example.org`".to_owned()
            });
        }
        let content = STANDARD.decode(&self.content);
        fields.check(content.is_ok(), "content", "not_base64", || "must be base64 with padding".to_owned());
        let composite = media_type.filter(|it| mail && it.is_composite());
        if let (Some(media_type), Ok(content)) = (composite, &content) {
            fields.check(media_type.may_stand_unencoded(content), "content", "not_plain", || NOT_PLAIN.to_owned());
        }
        Some(message::Attachment {
            name: self.name.clone(),
            media_type: self.media_type.clone(),
            leg,
            content_id: self.content_id.clone(),
            content: Bytes::from(content.ok()?),
        })
    }
}

/// The fault of a mail within a mail that would need an encoding.
const NOT_PLAIN: &str = "must be US-ASCII in lines of at most 998 bytes: `message/…` and `multipart/…` stand in a mail \
                         unencoded (RFC 2046, 5.2.1), and `multipart/…` needs its `boundary`; send anything else as \
                         `application/octet-stream`";

/// Returns the decoded length of a text in base64 (RFC 4648, section 4).
fn decoded_length(base64: &str) -> usize {
    let padding = base64.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

fn check_url(text: &str, fields: &mut Fields) {
    let url = url::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    match url {
        None => fields.bad("wrong_format", "must be a URL that begins with http:// or https://"),
        Some(url) if !url.username().is_empty() || url.password().is_some() => {
            fields.bad("credentials", "must have no credentials: they belong to the connection's secrets");
        }
        Some(_) => {}
    }
}

/// Whether a JSON text has half of a surrogate pair: it stands for no character, and readers of events would refuse the
/// whole answer.
fn has_half_surrogate(json: &str) -> bool {
    let mut rest = json;
    while let Some(escape) = rest.find('\\').and_then(|at| rest.get(at..)) {
        let behind = |bytes| escape.get(bytes..).unwrap_or_default();
        rest = match code_unit(escape) {
            Some(0xd800..=0xdbff) if matches!(code_unit(behind(6)), Some(0xdc00..=0xdfff)) => behind(12),
            Some(0xd800..=0xdfff) => return true,
            _ => behind(2),
        };
    }
    false
}

/// The UTF-16 unit of a `\uXXXX` at the beginning.
fn code_unit(escape: &str) -> Option<u16> {
    u16::from_str_radix(escape.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

/// How many bytes a value has as JSON.
fn json_length(value: &impl Serialize) -> usize {
    struct Length(usize);
    impl std::io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    // A value that was read as JSON can be written as JSON, and counting cannot fail.
    let _ = serde_json::to_writer(&mut length, value);
    length.0
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The header `Idempotency-Key`, as text.
pub fn header_key(headers: &HeaderMap, most: usize) -> Result<Option<String>, Fields> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| (1..=most).contains(&text.len()));
    text.map(|text| Some(text.to_owned())).ok_or_else(|| {
        let mut fields = Fields::default();
        fields.elsewhere(
            "header/Idempotency-Key",
            "wrong_format",
            format!("must have 1 to {most} visible ASCII characters"),
        );
        fields
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{app::fields::FieldProblem, node::tenant_config::TenantConfig};
    use angarium_rules::{
        rulebook::{Rulebook, Running},
        script::{Modules, Script},
    };

    fn now() -> Timestamp {
        "2026-06-01T12:00:00Z".parse().unwrap()
    }

    fn parsed(
        body: &str,
        header_key: Option<&str>,
        config: &TenantConfig,
    ) -> Result<message::NewMessage, Vec<FieldProblem>> {
        let (request, fields) = (serde_json::from_str(body).unwrap(), Fields::default());
        let client = ClientMessage { request, fields, header_key: header_key.map(str::to_owned) };
        client.parse(&ParseContext { now: now(), chance: 0.5, config }).map_err(|unparsed| match unparsed.error {
            AdmitError::Invalid(problems) => problems,
            other => panic!("{other}"),
        })
    }

    fn taken(body: &str) -> Result<message::NewMessage, Vec<FieldProblem>> {
        parsed(body, None, &TenantConfig::default())
    }

    fn bad(body: &str) -> Vec<String> {
        taken(body).unwrap_err().into_iter().map(|problem| problem.pointer).collect()
    }

    #[test]
    fn a_good_message_keeps_what_it_says() {
        let new = taken(
            r#"{"to": {"address": "ann@example.org", "name": "Ann"}, "channel": "email", "priority": "high",
                "send_at": "2026-06-02T00:00:00+02:00", "metadata": {"b":  1},
                "content": {"payload": {"z": 1.0}, "attachments": [{"name": "a.txt", "media_type": "text/plain; charset=utf-8", "content": "aGk="}]}}"#,
        )
        .unwrap();
        assert_eq!(new.message.first().recipient(), "ann@example.org");
        assert_eq!(new.message.body.metadata.as_ref().unwrap().get(), r#"{"b":  1}"#);
        assert_eq!(new.message.first().content.payload.as_ref().unwrap().get(), r#"{"z": 1.0}"#);
        assert_eq!(new.message.send_at.unwrap().to_string(), "2026-06-01T22:00:00Z");
        assert_eq!((new.message.first().attachments, &new.attachments[0].content[..]), (1, &b"hi"[..]));
    }

    #[test]
    fn metadata_has_whole_characters() {
        for whole in [r#"{"\ud83d\ude00":"\u0000"}"#, r#"{"a":"\\ud800"}"#, r#"{"a":"é\\\ud83d\ude00\n"}"#, "{}"] {
            assert!(!has_half_surrogate(whole), "{whole}");
        }
        for half in [r#"{"a":"\ud800"}"#, r#"{"\udc00":1}"#, r#"{"a":"\ud800\ud800\udc00"}"#, r#"{"a":"\\\ud83dx"}"#] {
            assert!(has_half_surrogate(half), "{half}");
        }
        assert_eq!(
            bad(r#"{"channel": "webhook", "content": {"payload": 1}, "metadata": {"a": "\ud800"}}"#),
            ["/metadata"]
        );
    }

    #[test]
    fn every_bad_field_is_named_at_once() {
        let body = r#"{"to": "ann", "channel": "email", "connection": "nope", "reference": "a\nb", "metadata": [1],
            "send_at": "2020-01-01T00:00:00Z", "expires_at": "2026-01-01T00:00:00Z", "idempotency_key": "",
            "content": {"subject": "x\r\nBcc: v@x", "from": {"address": "a@b", "name": "x\ny"}, "cc": ["ok@x", "a\r\n@x"],
              "headers": {"X-A": "b\r\nc", "bad name": "x"}, "media_urls": ["ftp://x", "https://u:p@x"],
              "attachments": [{"name": "../a", "media_type": "text", "content": "%", "content_id": "<a>"}]}}"#;
        assert_eq!(
            bad(body),
            [
                "/idempotency_key",
                "/send_at",
                "/expires_at",
                "/reference",
                "/metadata",
                "/connection",
                "/to",
                "/content/from/name",
                "/content/cc/1",
                "/content/subject",
                "/content/headers/X-A",
                "/content/headers/bad name",
                "/content/media_urls/0",
                "/content/media_urls/1",
                "/content/attachments/0/name",
                "/content/attachments/0/media_type",
                "/content/attachments/0/content_id",
                "/content/attachments/0/content",
            ]
        );
    }

    #[test]
    fn a_condition_is_that_of_a_script() {
        let source = "fn condition(context) { true }";
        let script = Script::compile("open", source, &Modules::none()).unwrap();
        let scripts = vec![Arc::new(Running::new("open".into(), 1, source.into(), script))];
        let mut config = TenantConfig::default();
        config.rulebook = Some(Arc::new(Rulebook { scripts, ..Rulebook::default() }));
        let new = parsed(r#"{"channel": "webhook", "condition": "open"}"#, None, &config).unwrap();
        assert_eq!(new.message.body.condition.as_deref(), Some("open"));
        let problems = parsed(r#"{"channel": "webhook", "condition": "opne"}"#, None, &config).unwrap_err();
        assert_eq!(problems[0].pointer, "/condition");
    }

    #[test]
    fn only_some_channels_need_a_recipient() {
        assert_eq!(bad(r#"{"channel": "email"}"#), ["/to"]);
        assert!(taken(r#"{"channel": "webhook"}"#).is_ok());
        assert_eq!(bad(r#"{"channel": "webhook", "to": "not a url"}"#), ["/to"]);
    }

    #[test]
    fn content_is_capped_by_its_size_as_json() {
        let empty = r#"{"payload":""}"#.len();
        let body = |text: &str| format!(r#"{{"channel": "webhook", "content": {{"payload":"{text}"}}}}"#);
        assert!(taken(&body(&"x".repeat(MOST_CONTENT - empty))).is_ok());
        assert_eq!(bad(&body(&"x".repeat(MOST_CONTENT - empty + 1))), ["/content"]);
        // A quote is two bytes, and a control character six.
        let escaped = |text: &str, count: usize| {
            let text = text.repeat(count);
            bad(&format!(r#"{{"channels": [{{"channel": "webhook", "content": {{"text": "{text}"}}}}]}}"#))
        };
        assert_eq!(escaped(r#"\""#, MOST_CONTENT / 2), ["/channels/0/content"]);
        assert_eq!(escaped(r"\u0001", MOST_CONTENT / 6 + 1), ["/channels/0/content"]);
    }

    #[test]
    fn attachments_are_capped_by_their_decoded_size() {
        let body = |size: usize| {
            let file =
                format!(r#"{{"name": "a", "media_type": "a/b", "content": "{}"}}"#, STANDARD.encode(vec![7; size]));
            format!(
                r#"{{"channel": "webhook", "content": {{"attachments": [{file}, {{"name": "b", "media_type": "a/b", "content": "AA=="}}]}}}}"#
            )
        };
        assert!(taken(&body(MOST_ATTACHMENT_BYTES - 1)).is_ok());
        assert_eq!(bad(&body(MOST_ATTACHMENT_BYTES)), ["/content/attachments"]);
    }

    #[test]
    fn the_fingerprint_does_not_depend_on_the_order_of_fields() {
        let print = |body: &str| taken(body).unwrap().idempotency.unwrap().fingerprint;
        let one = print(r#"{"channel": "webhook", "idempotency_key": "k", "reference": "r"}"#);
        assert_eq!(one, print(r#"{"reference": "r", "idempotency_key": "k", "channel": "webhook", "content": {}}"#));
        assert_ne!(one, print(r#"{"channel": "webhook", "idempotency_key": "k", "reference": "s"}"#));
    }

    #[test]
    fn one_header_has_the_key() {
        let key = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", axum::http::HeaderValue::from_static(value));
            }
            header_key(&headers, 255).map_err(|fields| fields.into_problems()[0].code.clone())
        };
        assert_eq!((key(&[]), key(&["a"])), (Ok(None), Ok(Some("a".to_owned()))));
        assert_eq!(key(&[""]), Err("wrong_format".to_owned()));
    }

    #[test]
    fn header_and_field_must_agree() {
        let body = r#"{"channel": "webhook", "idempotency_key": "a"}"#;
        let problems = parsed(body, Some("b"), &TenantConfig::default()).unwrap_err();
        assert_eq!(problems[0].code, "contradiction");
    }
}
