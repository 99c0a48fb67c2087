//! The messages of one request on their way through the stages. It decides nothing.

use std::{sync::Arc, time::Instant};

use crate::{
    engine::rule_runner::patience, engine::small_tenant_priority::PriorityGuard, node::tenant_config::TenantConfig,
};
use angarium_domain::{
    ids::{BatchId, TenantId},
    message::{Idempotency, NewMessage},
    routing::AcceptTimePlan,
    trace::TraceContext,
};
use angarium_rules::rulebook::JudgedMessage;
use angarium_transport::byte_budget::BytePermit;

use super::AdmitError;

/// The purpose for which messages pass the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Send,
    /// A dry run: nothing of it counts, and the commit is left out.
    Try,
}

/// The request that its messages came with.
#[derive(Debug, Clone, Default)]
pub struct RequestOrigin {
    pub batch: Option<BatchId>,
    /// The trace in which they are accepted.
    pub trace: Option<TraceContext>,
}

/// The messages of one request, of one tenant. Each stage changes the open ones, or refuses them.
pub(super) struct Intake {
    pub tenant: TenantId,
    pub purpose: Purpose,
    /// The configuration by which all stages decide.
    pub config: Arc<TenantConfig>,
    /// In the request's order.
    pub messages: Vec<IntakeMessage>,
    pub priority_guard: Option<Arc<PriorityGuard>>,
    /// The end of the time for rules, where something waits that is locked; without it each stage has its own.
    pub deadline: Option<Instant>,
    /// The memory of large messages.
    pub permits: Vec<BytePermit>,
}

/// A message of a request.
pub(super) enum IntakeMessage {
    Open(Box<OpenMessage>),
    Refused(Box<RefusedMessage>),
}

/// A message that no stage has refused so far.
pub(super) struct OpenMessage {
    pub new: NewMessage,
    /// The data that the judge stage has parsed of it, for the plan.
    pub judged: JudgedMessage,
    /// Whether this node begins it once it is durable, if it has capacity then.
    pub starts_here: bool,
    pub first_attempt: Option<Box<AcceptTimePlan>>,
}

/// A message that a stage has refused. A known key still has its first answer.
#[derive(Debug)]
pub(super) struct RefusedMessage {
    pub error: AdmitError,
    pub key: Option<Idempotency>,
}

impl Intake {
    /// Returns the messages that no stage has refused.
    pub fn open(&self) -> impl Iterator<Item = &OpenMessage> {
        self.messages.iter().filter_map(|it| match it {
            IntakeMessage::Open(open) => Some(&**open),
            IntakeMessage::Refused(_) => None,
        })
    }

    /// Refuses all open messages for one reason.
    pub fn refuse_all(&mut self, error: &AdmitError) {
        for message in &mut self.messages {
            message.refuse(error.clone());
        }
    }

    /// Returns the time until which the open messages wait for the tenant's time for rules.
    pub fn patience(&self) -> Instant {
        self.deadline.unwrap_or_else(|| patience(self.open().count()))
    }

    /// Takes the messages out: those to be written, and the refused ones with a gap for each of those.
    pub fn take_messages(&mut self) -> (Vec<OpenMessage>, Vec<Option<RefusedMessage>>) {
        let messages = std::mem::take(&mut self.messages);
        let mut open = Vec::with_capacity(messages.len());
        let refused = messages.into_iter().map(|message| match message {
            IntakeMessage::Open(it) => {
                open.push(*it);
                None
            }
            IntakeMessage::Refused(it) => Some(*it),
        });
        let refused = refused.collect();
        (open, refused)
    }
}

impl IntakeMessage {
    /// Returns a parsed message at the beginning of its way.
    pub fn parsed(new: NewMessage) -> Self {
        Self::Open(Box::new(OpenMessage {
            new,
            judged: JudgedMessage::default(),
            starts_here: false,
            first_attempt: None,
        }))
    }

    /// Refuses the message, unless it was refused already.
    pub fn refuse(&mut self, error: AdmitError) {
        if let Self::Open(open) = self {
            let key = open.new.idempotency.take();
            *self = Self::Refused(Box::new(RefusedMessage { error, key }));
        }
    }
}
