//! Takes messages in: each request passes the stages `parse` → `resolve` → `judge` → `reserve` → `plan` → `commit`, one
//! file each. A capability adds a stage, or a step of one. One transaction holds the message, its idempotency record and
//! its place in the queue or under this node's lease; only then is a 202 said.

mod commit;
mod intake;
mod judge;
mod parse;
mod plan;
mod reserve;
mod resolve;

use std::sync::Arc;

use metrics::Histogram;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};

use self::{
    commit::{AdmitRequest, writer::AdmissionWriter},
    intake::{Intake, IntakeMessage, Purpose},
};
pub use self::{
    commit::{
        Answers,
        claim::{ClaimEnd, ProducerClaim},
    },
    intake::RequestOrigin,
    parse::{MessageSource, ParseContext, Unparsed},
};
use crate::{
    engine::capacity::Capacity,
    engine::experiments::Experiments,
    engine::planning::Planner,
    engine::queue::{Handoff, Leases},
    engine::rule_runner::RuleRunner,
    engine::small_tenant_priority::SmallTenantPriority,
    node::providers::Providers,
    node::tenant_config::{TenantConfig, TenantConfigs},
};
use angarium_domain::{
    ids::TenantId,
    message::{Channel, Message, NewMessage},
    problem::{FieldProblem, ValueProblem},
};
use angarium_rules::ruling::{Failed, MessageRefusal};
use angarium_store::{Store, StoreError};
use angarium_transport::byte_budget::{ByteBudget, BytePermit};

/// How many writers share the work: few, so that batches grow under load.
const WRITERS: usize = 2;

/// Requests that wait for a writer before further ones wait at the door.
const WAITING: usize = 4096;

/// A message that is durable.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub message: Arc<Message>,
    /// Whether its idempotency key was known: then this is the message behind the key.
    pub replayed: bool,
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// Its fields do not hold; there is at least one problem.
    #[error("{} fields are wrong", .0.len())]
    Invalid(Vec<FieldProblem>),
    #[error("must be a channel with an active route (got `{}`): activate one, or name a connection", .channel.as_str())]
    NoRoute {
        channel: Channel,
        /// The channel of several.
        leg: Option<usize>,
    },
    /// No candidate takes such a message; the answer names each field. Nothing was stored.
    #[error("no connection takes it: {}", told(.0))]
    Content(Vec<ValueProblem>),
    /// Nothing was stored.
    #[error("{}", in_words(.0))]
    Refused(MessageRefusal),
    /// No candidate could send a follow-up of a script.
    #[error("{0}")]
    Unsendable(String),
    #[error("must not be that of another message: use a new key, or send the same message")]
    KeyReused,
    /// Nothing was stored, or it can't be told yet; the same idempotency key is safe to send again.
    #[error("the database is not available: send again in a moment")]
    Unavailable,
    /// Nothing was stored.
    #[error("too many large messages of this tenant are being stored: send again in a moment")]
    Busy,
    #[error("the database's disk is full")]
    DiskFull,
    #[error("the message could not be stored: {0}")]
    Failed(String),
}

impl AdmitError {
    /// Whether it is about the node or its database, whatever the message.
    #[must_use]
    pub const fn is_of_the_node(&self) -> bool {
        matches!(self, Self::Unavailable | Self::Busy | Self::DiskFull)
    }

    /// Whether the same message may be accepted in a moment: an obstacle that passes by itself refuses it.
    #[must_use]
    pub const fn passes(&self) -> bool {
        let no_time = matches!(self, Self::Refused(MessageRefusal { failed: Some(Failed::NoTime), .. }));
        no_time || self.is_of_the_node()
    }
}

impl From<&StoreError> for AdmitError {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable,
            StoreError::Full(_) => Self::DiskFull,
            StoreError::Conflict { .. } | StoreError::ConfigTooLarge { .. } | StoreError::Failed(_) => {
                Self::Failed(error.to_string())
            }
        }
    }
}

impl From<StoreError> for AdmitError {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

fn in_words(MessageRefusal { by, name, reason, failed }: &MessageRefusal) -> String {
    let who = if by == name { format!("the script `{name}`") } else { format!("the rule `{name}` ({by})") };
    match failed {
        None => format!("{who} refuses it: {reason}"),
        Some(Failed::Fault) => format!("{who} lets nothing through where it fails: {reason}"),
        Some(Failed::NoTime) => {
            format!("{who} lets nothing through unasked, and {reason}: nothing was stored; send again in a moment")
        }
    }
}

fn told(problems: &[ValueProblem]) -> String {
    problems.iter().map(|it| format!("`{}` {}", it.pointer, it.detail)).collect::<Vec<_>>().join("; ")
}

/// Where accepted deliveries go on this node.
#[derive(Clone)]
pub struct Outlet {
    pub capacity: Arc<Capacity>,
    pub leases: Arc<Leases>,
    /// `None` on a node that does not dispatch: everything waits in the queue for others.
    pub handoff: Option<Handoff>,
    /// Likewise.
    pub planner: Option<Arc<Planner>>,
    /// Rung when something due was left in the queue.
    pub bell: Arc<Notify>,
    pub small_tenants: Arc<SmallTenantPriority>,
    /// The memory for large messages while they are stored.
    pub arrivals: Arc<ByteBudget>,
}

/// The way in.
#[derive(Clone)]
pub struct Admission {
    store: Store,
    tenant_configs: Arc<TenantConfigs>,
    /// The source of the descriptors' content schemas.
    providers: Arc<Providers>,
    experiments: Arc<Experiments>,
    rules: Arc<RuleRunner>,
    outlet: Outlet,
    requests: mpsc::Sender<AdmitRequest>,
    time: Histogram,
}

/// A message that may be sent as far as a dry run can tell.
pub struct RehearsedMessage {
    pub new: NewMessage,
    /// The memory of a large message.
    pub permits: Vec<BytePermit>,
}

impl Admission {
    /// Starts the writers into `tasks`; they end when the last handle is dropped.
    #[must_use]
    pub fn start(
        store: &Store,
        tenant_configs: Arc<TenantConfigs>,
        providers: Arc<Providers>,
        experiments: Arc<Experiments>,
        rules: Arc<RuleRunner>,
        outlet: Outlet,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (requests, receiver) = mpsc::channel(WAITING);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        for _ in 0..WRITERS {
            tasks.spawn(AdmissionWriter::new(store.clone(), outlet.clone()).run(Arc::clone(&receiver)));
        }
        let time = metrics::histogram!("angarium_accept_seconds");
        Self { store: store.clone(), tenant_configs, providers, experiments, rules, outlet, requests, time }
    }

    /// Takes messages of one tenant; one answer for each, in order.
    ///
    /// # Errors
    /// When the tenant's configuration can't be read; nothing was stored.
    pub async fn admit<M: MessageSource>(
        &self,
        tenant: TenantId,
        sources: Vec<M>,
        origin: RequestOrigin,
    ) -> Result<Answers, AdmitError> {
        let mut intake = self.parse(tenant, sources, origin, Purpose::Send).await?;
        self.prepare(&mut intake).await;
        Ok(self.commit(intake).await)
    }

    /// Takes a producer's messages together with its claim, in a transaction of their own; see [`ProducerClaim`].
    ///
    /// # Errors
    /// With an obstacle that passes, or a failure of the database. Nothing was written, unless that can't be told yet:
    /// then another try with the claim does.
    pub async fn admit_with<C: ProducerClaim, M: MessageSource>(
        &self,
        tenant: TenantId,
        claim: C,
        sources: Vec<M>,
    ) -> Result<ClaimEnd, AdmitError> {
        let mut intake = self.parse(tenant, sources, RequestOrigin::default(), Purpose::Send).await?;
        self.prepare(&mut intake).await;
        self.commit_with(claim, intake).await
    }

    /// Leads one message through the stages as a dry run, which stops before the commit.
    ///
    /// # Errors
    /// With the reason for which the message would be refused.
    pub async fn rehearse<M: MessageSource>(
        &self,
        tenant: TenantId,
        source: M,
    ) -> Result<RehearsedMessage, AdmitError> {
        let mut intake = self.parse(tenant, vec![source], RequestOrigin::default(), Purpose::Try).await?;
        self.prepare(&mut intake).await;
        let new = only(&mut intake)?;
        Ok(RehearsedMessage { new, permits: intake.permits })
    }

    /// Leads one message through the first stage alone, for a question about it.
    ///
    /// # Errors
    /// With all fields that are wrong.
    pub async fn read<M: MessageSource>(
        &self,
        tenant: TenantId,
        source: M,
    ) -> Result<(Message, Arc<TenantConfig>), AdmitError> {
        let mut intake = self.parse(tenant, vec![source], RequestOrigin::default(), Purpose::Try).await?;
        Ok((only(&mut intake)?.message, intake.config))
    }

    /// The stages between the producer's form of the messages and their commit.
    async fn prepare(&self, intake: &mut Intake) {
        self.resolve(intake).await;
        self.judge(intake).await;
        self.reserve(intake);
        self.plan(intake).await;
    }
}

fn only(intake: &mut Intake) -> Result<NewMessage, AdmitError> {
    match intake.messages.pop() {
        Some(IntakeMessage::Open(open)) => Ok(open.new),
        Some(IntakeMessage::Refused(refused)) => Err(refused.error),
        None => Err(AdmitError::Unavailable),
    }
}
