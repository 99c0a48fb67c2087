//! Messages, attempts and events as clients see them.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::super::auth::Tenant;
use crate::app::messages::{AttemptView, DeliveryView, EventView, MessageView};
use angarium_domain::{
    delivery::DeliveryState,
    ids::{EventId, MessageId},
    legs::{Leg, LegMode, LegPolicy, Wants},
    message::{Follows, Message, Priority},
    provider::{Cost, Disposition},
    recipients::{MailRecipient, Recipients},
};
use angarium_rules::{Account, ruling::Ruling};

/// A message and its state.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Message)]
pub struct MessageAnswer {
    #[schema(example = "msg_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    state: DeliveryState,
    channel: String,
    /// Null if the connection names it.
    to: Option<String>,
    priority: Priority,
    reference: Option<String>,
    /// The batch that it came in with.
    #[schema(example = "batch_0192f0c1a2b37c4d8e5f60718293a4b5")]
    batch: Option<String>,
    ordering_key: Option<String>,
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// The script that is asked whether it goes.
    condition: Option<String>,
    /// The origin, if a script sent the message.
    follows: Option<Follows>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// The time of the purge: after it recipient, content and attachments are gone.
    #[schema(value_type = Option<String>, format = DateTime)]
    content_purged_at: Option<Timestamp>,
    /// The delivery on its channel; with several channels, the one that determined `state`.
    delivery: DeliveryAnswer,
    #[serde(flatten)]
    several: Option<SeveralAnswer>,
}

/// Further fields of a message that names a list of channels.
#[derive(Debug, Serialize, ToSchema)]
pub struct SeveralAnswer {
    #[schema(value_type = Option<LegMode>)]
    mode: LegMode,
    #[schema(value_type = Option<Wants>)]
    wants: Wants,
    /// One for each channel, in order; a channel whose turn has not come is `accepted`.
    #[schema(required = false)]
    deliveries: Vec<LegAnswer>,
}

/// The delivery of a message on one of several channels.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Leg)]
pub struct LegAnswer {
    /// Its place among the channels, from 0.
    leg: u8,
    channel: String,
    /// With `wants: delivered`, and once it was sent: until when a receipt is waited for.
    #[schema(value_type = Option<String>, format = DateTime)]
    receipt_until: Option<Timestamp>,
    #[serde(flatten)]
    delivery: DeliveryAnswer,
}

/// One leg of a message, or its only one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryAnswer {
    #[schema(example = "dlv_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    state: DeliveryState,
    /// Attempts so far.
    attempts: u32,
    /// Of the last attempt.
    connection: Option<String>,
    provider: Option<String>,
    /// The provider's own id for it.
    external_id: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    next_attempt_at: Option<Timestamp>,
    /// The provider's code, of the last attempt.
    code: Option<String>,
    /// The gateway's word for it.
    unified_code: Option<String>,
    detail: Option<String>,
    /// The outcome for each recipient of a mail with copies, once some of them have it. Otherwise empty.
    #[schema(value_type = Vec<MailRecipient>)]
    recipients: Recipients,
    cost: Option<CostAnswer>,
    /// The recipient's actions, as the provider's service reported them: `read`, `clicked`, `replied`, `complained`,
    /// `unsubscribed`.
    engagement: Vec<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
}

/// Money in millionths of a unit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Cost)]
pub struct CostAnswer {
    micros: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    currency: String,
}

/// One try through one connection.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Attempt)]
pub struct AttemptAnswer {
    #[schema(example = "att_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    #[schema(example = "dlv_0192f0c1a2b37c4d8e5f60718293a4b5")]
    delivery: String,
    /// Which of the message's channels, from 0.
    leg: u8,
    /// 1 for the first of its delivery.
    number: u32,
    /// `scheduled`, `retry`, `fallback`, `manual` or `recovery`.
    trigger: String,
    channel: String,
    connection: Option<String>,
    connection_uid: Option<String>,
    provider: Option<String>,
    provider_version: Option<String>,
    /// SHA-256 of the component.
    provider_digest: Option<String>,
    route: Option<String>,
    route_version: Option<i32>,
    /// Why this candidate was asked after another one.
    fallback_reason: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    finished_at: Timestamp,
    /// From the first look at the delivery to the provider's word, in milliseconds.
    duration_ms: f64,
    disposition: Disposition,
    /// The provider's own disposition, if an override replaced it.
    overridden: Option<OverriddenAnswer>,
    /// HTTP status or SMTP code.
    status: Option<i32>,
    /// The provider's own code.
    code: Option<String>,
    /// The gateway's word for it.
    unified_code: Option<String>,
    detail: Option<String>,
    external_id: Option<String>,
    cost: Option<CostAnswer>,
    /// Such as the segments of a text message.
    units: Option<i32>,
    /// Time in the plugin, in microseconds.
    plugin_micros: Option<i32>,
    /// The plugin's memory at its highest, in bytes.
    plugin_memory: Option<i64>,
    /// The result for each recipient, if the attempt went to several, or to copies alone. Otherwise empty.
    #[schema(value_type = Vec<MailRecipient>)]
    recipients: Recipients,
}

/// A provider's own classification, and the source of its override.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OverriddenClassification)]
pub struct OverriddenAnswer {
    disposition: Disposition,
    /// `route` or `tenant`.
    by: &'static str,
}

/// Something that happened to a message, or to a connection.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventAnswer {
    #[schema(example = "evt_0192f0c1a2b37c4d8e5f60718293a4b5")]
    id: String,
    #[serde(rename = "type")]
    #[schema(example = "message.sent")]
    kind: String,
    /// Null if it is a connection's.
    #[schema(example = "msg_0192f0c1a2b37c4d8e5f60718293a4b5")]
    message: Option<String>,
    delivery: Option<String>,
    /// The delivery's channel.
    channel: Option<String>,
    /// The message's, as the client gave it.
    reference: Option<String>,
    /// Likewise.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// The connection of an event about one, such as `connection.breaker_opened`.
    connection: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    #[schema(value_type = Option<Object>)]
    data: Option<Box<RawValue>>,
}

/// Why each attempt went where it went.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Decision)]
pub struct DecisionAnswer {
    message: String,
    /// The answers of rules and scripts at acceptance: values with their rules, scores of connections, scripts'
    /// answers. Null if there were none.
    #[schema(value_type = Option<Object>)]
    ruling: Option<Ruling>,
    /// Every rule, hit or missed, with its reason: those that hold first. Empty if the rules have changed since.
    #[schema(value_type = Vec<Object>)]
    rules: Vec<Account>,
    /// One entry an attempt; empty before the first.
    decisions: Vec<AttemptDecision>,
    /// The scripts' answers to its ends, and the messages that followed: one entry for each end with an answer.
    #[schema(value_type = Vec<Object>)]
    follow_ups: Vec<Box<RawValue>>,
}

/// Why one attempt went where it went.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttemptDecision {
    /// Which of the message's channels, from 0.
    leg: u8,
    channel: String,
    attempt: u32,
    trigger: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    route: Option<String>,
    route_version: Option<i32>,
    /// The candidate that was asked.
    connection: Option<String>,
    provider: Option<String>,
    fallback_reason: Option<String>,
    /// The candidates in order, with the reasons; the skipped ones with theirs; and the answers of the `scripts` about
    /// the candidates: scores, an order.
    #[schema(value_type = Option<Object>)]
    plan: Option<Box<RawValue>>,
}

impl From<Cost> for CostAnswer {
    fn from(cost: Cost) -> Self {
        Self { micros: cost.micros, currency: cost.currency }
    }
}

impl MessageAnswer {
    /// A message as it was accepted.
    pub fn accepted(message: &Message) -> Self {
        let later = message.due_at() > message.created_at;
        let state = if later { DeliveryState::Scheduled } else { DeliveryState::Queued };
        let fresh = |leg, state| DeliveryAnswer::fresh(message, leg, state);
        let several = message.legs.is_list().then(|| {
            let at_first = message.legs.policy().at_first();
            SeveralAnswer::new(message, at_first.map(|leg| (leg, None, fresh(leg, state))))
        });
        Self::new(message, state, fresh(0, state), several)
    }

    fn new(message: &Message, state: DeliveryState, delivery: DeliveryAnswer, several: Option<SeveralAnswer>) -> Self {
        Self {
            id: message.id.to_string(),
            state,
            channel: message.first().channel.as_str().to_owned(),
            to: message.first().to.as_ref().map(|to| to.address.clone()),
            priority: message.priority,
            reference: message.reference.clone(),
            batch: message.batch.map(|batch| batch.to_string()),
            ordering_key: message.ordering_key.clone(),
            metadata: message.body.metadata.clone(),
            condition: message.body.condition.clone(),
            follows: message.body.follows.clone(),
            created_at: message.created_at,
            send_at: message.send_at,
            expires_at: message.expires_at,
            content_purged_at: None,
            delivery,
            several,
        }
    }
}

impl SeveralAnswer {
    /// Returns the legs that have begun, and for the others that their turn has not come.
    fn new(message: &Message, begun: impl Iterator<Item = (u8, Option<Timestamp>, DeliveryAnswer)>) -> Self {
        let mut begun = begun.peekable();
        let delivery = |(leg, named): (u8, &Leg)| {
            let known = begun.next_if(|(number, ..)| *number == leg);
            let (_, receipt_until, delivery) = known.unwrap_or_else(|| {
                let fresh = DeliveryAnswer::fresh(message, leg, DeliveryState::Accepted);
                (leg, None, DeliveryAnswer { next_attempt_at: None, ..fresh })
            });
            LegAnswer { leg, channel: named.channel.as_str().to_owned(), receipt_until, delivery }
        };
        let deliveries = (0..).zip(message.legs.iter()).map(delivery).collect();
        let LegPolicy { mode, wants, .. } = message.legs.policy();
        Self { mode, wants, deliveries }
    }
}

impl DeliveryAnswer {
    fn fresh(message: &Message, leg: u8, state: DeliveryState) -> Self {
        Self {
            id: message.id.leg(leg).to_string(),
            state,
            attempts: 0,
            connection: None,
            provider: None,
            external_id: None,
            next_attempt_at: Some(message.due_at()),
            code: None,
            unified_code: None,
            detail: None,
            recipients: Recipients::default(),
            cost: None,
            engagement: Vec::new(),
            finished_at: None,
        }
    }
}

impl From<MessageView> for MessageAnswer {
    fn from(view: MessageView) -> Self {
        let MessageView { message, content_purged_at, state, delivery, legs } = view;
        let begun = legs
            .into_iter()
            .map(|leg| (leg.id.leg_of(message.id), leg.receipt_until, DeliveryAnswer::new(&message, leg)));
        let several = message.legs.is_list().then(|| SeveralAnswer::new(&message, begun));
        let delivery = DeliveryAnswer::new(&message, delivery);
        Self { content_purged_at, ..Self::new(&message, state, delivery, several) }
    }
}

impl MessageAnswer {
    /// The same for a key without `messages:read`: without the recipient, the metadata, and what providers said.
    #[must_use]
    pub fn without_content(mut self) -> Self {
        (self.to, self.metadata) = (None, None);
        let legs = self.several.iter_mut().flat_map(|several| &mut several.deliveries);
        for delivery in legs.map(|leg| &mut leg.delivery).chain([&mut self.delivery]) {
            (delivery.detail, delivery.recipients) = (None, Recipients::default());
        }
        self
    }

    /// Returns the part of it that may be shown to a key that changed the message.
    #[must_use]
    pub fn shown_to<P>(self, tenant: &Tenant<P>) -> Self {
        if tenant.reads_messages() { self } else { self.without_content() }
    }
}

impl DeliveryAnswer {
    fn new(message: &Message, delivery: DeliveryView) -> Self {
        let waiting = !delivery.state.is_end() && delivery.attempts == 0;
        Self {
            id: delivery.id.to_string(),
            state: delivery.state,
            attempts: delivery.attempts,
            connection: delivery.connection.map(|id| id.to_string()),
            provider: delivery.provider,
            external_id: delivery.external_id,
            next_attempt_at: delivery.next_attempt_at.or_else(|| waiting.then(|| message.due_at())),
            code: delivery.code,
            unified_code: delivery.unified_code,
            detail: delivery.detail,
            recipients: delivery.recipients,
            cost: delivery.cost.map(CostAnswer::from),
            engagement: delivery.engagement,
            finished_at: delivery.finished_at,
        }
    }
}

impl AttemptAnswer {
    /// An attempt of this message.
    pub fn new(message: MessageId, view: AttemptView) -> Self {
        Self {
            id: view.id.to_string(),
            delivery: view.delivery.to_string(),
            leg: view.delivery.leg_of(message),
            number: view.number,
            trigger: view.trigger,
            channel: view.channel,
            connection: view.connection.map(|id| id.to_string()),
            connection_uid: view.connection_uid,
            provider: view.provider,
            provider_version: view.provider_version,
            provider_digest: view.provider_digest,
            route: view.route.map(|id| id.to_string()),
            route_version: view.route_version,
            fallback_reason: view.fallback_reason,
            started_at: view.started_at,
            finished_at: view.finished_at,
            duration_ms: view.finished_at.duration_since(view.started_at).as_micros() as f64 / 1_000.0,
            disposition: view.disposition,
            overridden: view.overridden.map(|it| OverriddenAnswer { disposition: it.said, by: it.by.as_str() }),
            status: view.status,
            code: view.code,
            unified_code: view.unified_code,
            detail: view.detail,
            external_id: view.external_id,
            cost: view.cost.map(CostAnswer::from),
            units: view.units,
            plugin_micros: view.plugin_micros,
            plugin_memory: view.plugin_memory,
            recipients: view.recipients,
        }
    }
}

impl EventAnswer {
    /// A message's first event: its acceptance is the message itself and has no row in the outbox.
    pub fn accepted(message: &Message) -> Self {
        Self {
            id: EventId::from(message.id.uuid()).to_string(),
            kind: "message.accepted".to_owned(),
            message: Some(message.id.to_string()),
            delivery: Some(message.id.first_delivery().to_string()),
            channel: Some(message.first().channel.as_str().to_owned()),
            reference: message.reference.clone(),
            metadata: message.body.metadata.clone(),
            connection: None,
            at: message.created_at,
            data: None,
        }
    }
}

impl From<EventView> for EventAnswer {
    fn from(view: EventView) -> Self {
        let (channel, reference, metadata) =
            view.about.map_or((None, None, None), |it| (Some(it.channel), it.reference, it.metadata));
        Self {
            channel,
            reference,
            metadata: metadata.and_then(json),
            id: view.id.to_string(),
            kind: view.kind,
            message: view.message.map(|id| id.to_string()),
            delivery: view.delivery.map(|id| id.to_string()),
            connection: view.connection.map(|id| id.to_string()),
            at: view.at,
            data: view.data.and_then(json),
        }
    }
}

impl DecisionAnswer {
    /// Builds the answer from the data that decided the attempts.
    pub fn new(message: &Message, rules: Vec<Account>, attempts: Vec<AttemptView>, events: Vec<EventView>) -> Self {
        let follow_ups = events.into_iter().filter(|event| event.kind == "message.followed_up");
        let decision = |attempt| AttemptDecision::new(message, attempt);
        Self {
            message: message.id.to_string(),
            ruling: Ruling::of(message),
            rules,
            decisions: attempts.into_iter().map(decision).collect(),
            follow_ups: follow_ups.filter_map(|event| event.data.and_then(json)).collect(),
        }
    }
}

impl AttemptDecision {
    fn new(message: &Message, view: AttemptView) -> Self {
        Self {
            leg: view.delivery.leg_of(message.id),
            channel: view.channel,
            attempt: view.number,
            trigger: view.trigger,
            at: view.started_at,
            route: view.route.map(|id| id.to_string()),
            route_version: view.route_version,
            connection: view.connection.map(|id| id.to_string()),
            provider: view.provider,
            fallback_reason: view.fallback_reason,
            plan: view.plan.and_then(json),
        }
    }
}

/// JSON that the gateway itself wrote.
fn json(text: String) -> Option<Box<RawValue>> {
    RawValue::from_string(text).ok()
}
