//! The first stage: what a producer has becomes messages in which every field holds. It stores nothing.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;

use super::{
    Admission, AdmitError,
    intake::{Intake, IntakeMessage, Purpose, RefusedMessage, RequestOrigin},
};
use crate::{clock, engine::rule_runner::patience, node::tenant_config::TenantConfig};
use angarium_domain::{
    ids::{ConnectionId, TenantId},
    message::{Channel, Idempotency, NewMessage},
    rule_input::RuleInput,
};
use angarium_rules::script::{Given, Hook};
use angarium_transport::byte_budget::BytePermit;

/// A request whose messages have more bytes together needs a permit for them.
const LARGE_REQUEST: usize = 64 << 10;

/// A message as its producer has it: a client's request, or the answer of a script.
pub trait MessageSource: Send + Sync {
    /// Returns the connections that it names, each by id or uid.
    fn named_connections(&self) -> Vec<&str>;

    /// Whether rules choose its channel.
    fn wants_channel(&self) -> bool;

    /// Makes the message of it, if all of it holds.
    ///
    /// # Errors
    /// With all that is wrong.
    fn parse(self, context: &ParseContext<'_>) -> Result<NewMessage, Unparsed>;
}

/// A message that cannot be made, and why.
#[derive(Debug)]
pub struct Unparsed {
    pub error: AdmitError,
    /// Its idempotency key: a message that was accepted under it is returned, whatever is invalid by now.
    pub key: Option<Box<Idempotency>>,
}

/// The context that a message is parsed in.
pub struct ParseContext<'a> {
    pub now: Timestamp,
    /// In 0..1, for scripts.
    pub chance: f64,
    pub config: &'a TenantConfig,
}

impl ParseContext<'_> {
    /// Returns the connection of an id or uid, if the tenant has it.
    #[must_use]
    pub fn connection(&self, name: &str) -> Option<ConnectionId> {
        Some(self.config.connection(name)?.connection.id)
    }

    /// Returns the channel that rules choose for a message that names none.
    #[must_use]
    pub fn channel(&self, input: &RuleInput) -> Option<Channel> {
        let given = Given { now: self.now, chance: self.chance };
        self.config.rulebook.as_ref()?.channel(input, &given)
    }

    /// Whether a script of this name has a `condition`.
    #[must_use]
    pub fn has_condition(&self, script: &str) -> bool {
        self.config.rulebook.as_ref().is_some_and(|book| book.has_condition(script))
    }
}

/// A producer inside the gateway hands over messages that were parsed as they were made.
impl MessageSource for NewMessage {
    fn named_connections(&self) -> Vec<&str> {
        Vec::new()
    }

    fn wants_channel(&self) -> bool {
        false
    }

    fn parse(self, _: &ParseContext<'_>) -> Result<NewMessage, Unparsed> {
        Ok(self)
    }
}

impl Admission {
    /// Begins the way of a request's messages.
    ///
    /// # Errors
    /// When the tenant's configuration can't be read.
    pub(super) async fn parse<M: MessageSource>(
        &self,
        tenant: TenantId,
        sources: Vec<M>,
        origin: RequestOrigin,
        purpose: Purpose,
    ) -> Result<Intake, AdmitError> {
        let config = self.knowing(tenant, &sources).await?;
        let until = patience(sources.len());
        let mut messages = Vec::with_capacity(sources.len());
        for source in sources {
            messages.push(match self.parse_one(tenant, &config, purpose, until, source).await {
                Ok(mut new) => {
                    new.message.batch = origin.batch;
                    new.message.body.trace.clone_from(&origin.trace);
                    IntakeMessage::parsed(new)
                }
                Err(Unparsed { error, key }) => {
                    let key = key.map(|key| *key);
                    IntakeMessage::Refused(Box::new(RefusedMessage { error, key }))
                }
            });
            // A request may have a thousand messages: others are let through between.
            tokio::task::coop::consume_budget().await;
        }
        Ok(self.intake(tenant, purpose, config, messages))
    }

    /// Returns parsed messages as a request. They are in memory from here on: large ones are refused if the tenant
    /// holds too much already.
    pub(super) fn intake(
        &self,
        tenant: TenantId,
        purpose: Purpose,
        config: Arc<TenantConfig>,
        messages: Vec<IntakeMessage>,
    ) -> Intake {
        let (priority_guard, deadline, permits) = (None, None, Vec::new());
        let mut intake = Intake { tenant, purpose, config, messages, priority_guard, deadline, permits };
        match self.permit_for(tenant, intake.open().map(|it| it.new.size()).sum()) {
            Ok(permit) => intake.permits.extend(permit),
            Err(error) => intake.refuse_all(&error),
        }
        if purpose == Purpose::Send {
            intake.priority_guard = self.outlet.small_tenants.sending(tenant).map(Arc::new);
        }
        intake
    }

    /// Returns the permit for this number of bytes of large contents in memory; `None` where they are few. They are in
    /// memory already, so it is granted without a wait.
    ///
    /// # Errors
    /// [`AdmitError::Busy`] if the tenant's limit is reached.
    pub fn permit_for(&self, tenant: TenantId, size: usize) -> Result<Option<BytePermit>, AdmitError> {
        if size <= LARGE_REQUEST {
            return Ok(None);
        }
        self.outlet.arrivals.try_take(tenant, size).map(Some).ok_or(AdmitError::Busy)
    }

    /// Returns the tenant's configuration, read again if it lacks a connection that a message names: another node may
    /// just have created it.
    async fn knowing<M: MessageSource>(
        &self,
        tenant: TenantId,
        sources: &[M],
    ) -> Result<Arc<TenantConfig>, AdmitError> {
        let config = self.tenant_configs.tenant(tenant).await?;
        let knows = |source: &M| source.named_connections().iter().all(|name| config.connection(name).is_some());
        if sources.iter().all(knows) {
            return Ok(config);
        }
        // Rare and large: boxed, so that a request's future stays small.
        Ok(Box::pin(self.tenant_configs.reload(tenant)).await?)
    }

    /// Parses one message; where a script may choose its channel, within the tenant's time.
    async fn parse_one<M: MessageSource>(
        &self,
        tenant: TenantId,
        config: &TenantConfig,
        purpose: Purpose,
        until: Instant,
        source: M,
    ) -> Result<NewMessage, Unparsed> {
        let book = config.rulebook.as_ref().filter(|_| source.wants_channel());
        let runs = book.is_some_and(|book| book.may_run(Hook::Route));
        let parse = move || source.parse(&ParseContext { now: clock::now(), chance: fastrand::f64(), config });
        match (runs, purpose) {
            (false, _) => parse(),
            (true, Purpose::Send) => self.rules.ask_once(tenant, until, parse).await,
            (true, Purpose::Try) => self.rules.try_out(tenant, || self.rules.as_for_a_message(parse).0).await,
        }
    }
}
