//! Takes messages in: one transaction holds the message, its idempotency record and its place in
//! the queue or under this node's lease; only then is a 202 said.

mod content;
mod rules;
mod writer;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use metrics::Histogram;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
};

use self::writer::AdmissionWriter;
use crate::{
    clock,
    engine::capacity::Capacity,
    engine::experiments::Experiments,
    engine::planning::Planner,
    engine::queue::{Handoff, Leases},
    engine::rule_runner::{RuleRunner, patience},
    engine::small_tenant_priority::{PriorityGuard, SmallTenantPriority},
    node::providers::Providers,
    node::tenant_config::{TenantConfig, TenantConfigs},
};
use angarium_domain::{
    ids::TenantId,
    message::{Channel, Idempotency, Message, NewMessage},
    problem::ValueProblem,
    routing::AcceptTimePlan,
};
use angarium_rules::{
    rulebook::JudgedMessage,
    ruling::{Failed, MessageRefusal},
};
use angarium_store::{
    self as store, Store,
    message::{idempotency_find, message_load},
};
use angarium_transport::byte_budget::{ByteBudget, BytePermit};

/// How many writers share the work: few, so that batches grow under load.
const WRITERS: usize = 2;

/// Requests that wait for a writer before further ones wait at the door.
const WAITING: usize = 4096;

/// A request whose messages have more bytes together needs a permit for them.
const LARGE: usize = 64 << 10;

/// The time that a batch waits for the database before its clients are asked to repeat their requests.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// How long a COMMIT without an answer is asked after, beyond that.
const DOUBT: Duration = Duration::from_millis(500);

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

/// One answer for each message of a request, in order.
type Answer = Vec<Result<Admitted, AdmitError>>;

/// The same while some are still open.
type Answers = Vec<Option<Result<Admitted, AdmitError>>>;

/// The messages of one request, of one tenant.
struct Request {
    tenant: TenantId,
    messages: Vec<Accepted>,
    answer: oneshot::Sender<Answer>,
    priority_guard: Option<Arc<PriorityGuard>>,
}

impl Request {
    fn size(&self) -> usize {
        self.messages.iter().map(|it| it.new.size()).sum()
    }
}

/// A message without a refusal.
struct Accepted {
    new: NewMessage,
    first_attempt: Option<Box<AcceptTimePlan>>,
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
    small_tenants: Arc<SmallTenantPriority>,
    planner: Option<Arc<Planner>>,
    arrivals: Arc<ByteBudget>,
    requests: mpsc::Sender<Request>,
    time: Histogram,
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
        outlet: &Outlet,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (requests, receiver) = mpsc::channel(WAITING);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        for _ in 0..WRITERS {
            tasks.spawn(AdmissionWriter::new(store.clone(), outlet.clone()).run(Arc::clone(&receiver)));
        }
        Self {
            store: store.clone(),
            tenant_configs,
            providers,
            experiments,
            rules,
            small_tenants: Arc::clone(&outlet.small_tenants),
            planner: outlet.planner.clone(),
            arrivals: Arc::clone(&outlet.arrivals),
            requests,
            time: metrics::histogram!("angarium_accept_seconds"),
        }
    }

    /// Takes messages of one tenant; one answer for each, in order.
    pub async fn admit(&self, tenant: TenantId, mut messages: Vec<NewMessage>) -> Vec<Result<Admitted, AdmitError>> {
        let count = messages.len();
        let Ok(_permit) = self.permit(tenant, &messages) else { return vec![Err(AdmitError::Busy); count] };
        let priority_guard = self.small_tenants.sending(tenant).map(Arc::new);
        let (known, config) = match self.heard(tenant, &mut messages).await {
            Ok(heard) => heard,
            Err(error) => return vec![Err(error); count],
        };
        let (accepted, mut answers) = split(messages, known);
        if accepted.is_empty() {
            return answers.into_iter().flatten().collect();
        }
        let accepted = self.first_attempt(tenant, &config, accepted).await;
        let taken = accepted.len();
        let began = Instant::now();
        let (answer, answered) = oneshot::channel();
        let stored = match self.requests.send(Request { tenant, messages: accepted, answer, priority_guard }).await {
            Ok(()) => answered.await.unwrap_or_else(|_| vec![Err(AdmitError::Unavailable); taken]),
            Err(_) => vec![Err(AdmitError::Unavailable); taken],
        };
        self.time.record(began.elapsed());
        let mut stored = stored.into_iter();
        for slot in answers.iter_mut().filter(|slot| slot.is_none()) {
            *slot = stored.next();
        }
        answers.into_iter().flatten().collect()
    }

    /// Returns the message that was accepted under a key, if it was this message.
    ///
    /// # Errors
    /// [`AdmitError::Unavailable`] if the database cannot answer.
    pub async fn replayed(&self, tenant: TenantId, key: &Idempotency) -> Result<Option<Admitted>, AdmitError> {
        self.stored(tenant, key).await.map_err(|_| AdmitError::Unavailable)
    }

    async fn stored(&self, tenant: TenantId, key: &Idempotency) -> store::Result<Option<Admitted>> {
        let mut txn = self.store.tenant(tenant).await?;
        let known = idempotency_find(&mut txn, tenant, &[&key.key]).await?;
        let Some(known) = known.into_iter().find(|it| key.is_of(&it.fingerprint)) else { return Ok(None) };
        let message = message_load(&mut txn, &[(tenant, known.message)]).await?.pop();
        Ok(message.map(|(_, message)| Admitted { message: Arc::new(message), replayed: true }))
    }

    /// Returns the permit for large messages while they are stored or tried. They are in memory already, so it is
    /// granted without a wait.
    ///
    /// # Errors
    /// [`AdmitError::Busy`] if the tenant's limit is reached.
    pub fn permit(&self, tenant: TenantId, messages: &[NewMessage]) -> Result<Option<BytePermit>, AdmitError> {
        self.permit_for(tenant, messages.iter().map(NewMessage::size).sum())
    }

    /// Returns the permit for this number of bytes of large contents in memory; `None` where they are few.
    ///
    /// # Errors
    /// [`AdmitError::Busy`] if the tenant's limit is reached.
    pub fn permit_for(&self, tenant: TenantId, size: usize) -> Result<Option<BytePermit>, AdmitError> {
        if size <= LARGE {
            return Ok(None);
        }
        self.arrivals.try_take(tenant, size).map(Some).ok_or(AdmitError::Busy)
    }

    /// Returns for each message its parsed data, or the reason for its refusal: no candidate could send it, or rules
    /// refuse it. A known key returns its first answer, whatever holds now.
    async fn heard(
        &self,
        tenant: TenantId,
        messages: &mut [NewMessage],
    ) -> Result<(Vec<Result<JudgedMessage, AdmitError>>, Arc<TenantConfig>), AdmitError> {
        let (unroutable, config) = self.unroutable(tenant, messages).await?;
        let mut judged = match &config.rulebook {
            Some(book) => Box::pin(self.judged(tenant, book, messages)).await?,
            None => messages
                .iter_mut()
                .map(|new| Ok(JudgedMessage { input: new.rule_input.take(), ..JudgedMessage::default() }))
                .collect(),
        };
        for ((new, judged), unroutable) in messages.iter().zip(&mut judged).zip(unroutable) {
            if judged.is_ok()
                && let Some(error) = unroutable.or_else(|| self.content_refused(tenant, &config, new))
            {
                *judged = Err(error);
            }
        }
        self.excuse_known(tenant, messages, &mut judged).await?;
        Ok((judged, config))
    }

    fn content_refused(&self, tenant: TenantId, config: &TenantConfig, new: &NewMessage) -> Option<AdmitError> {
        let problems = self.content_problems(tenant, config, new);
        (!problems.is_empty()).then_some(AdmitError::Content(problems))
    }

    /// Returns the messages, each with the plan of its first attempt, if this node may deliver it at once.
    async fn first_attempt(
        &self,
        tenant: TenantId,
        config: &Arc<TenantConfig>,
        messages: Vec<(NewMessage, JudgedMessage)>,
    ) -> Vec<Accepted> {
        let (now, until) = (clock::now(), Some(patience(messages.len())));
        let mut accepted = Vec::with_capacity(messages.len());
        for (mut new, known) in messages {
            let known = JudgedMessage { until, ..known };
            let planner = self.planner.as_ref().filter(|_| may_start(&new.message, now));
            let first_attempt = match planner {
                // Boxed, so that a request's future stays small.
                Some(planner) => Box::pin(planner.plan_first_attempt(tenant, config, &new.message, known)).await,
                None => None,
            };
            let first_attempt = first_attempt.map(Box::new);
            new.message.body.first = first_attempt.as_ref().and_then(|it| it.first);
            accepted.push(Accepted { new, first_attempt });
            // Scripts may take their time, and a request may have a thousand messages: others are let through between.
            tokio::task::coop::consume_budget().await;
        }
        accepted
    }

    /// Returns for each message whether its channel has no active route. Before a refusal, the node reads its
    /// configuration again, because another node may just have created the route.
    async fn unroutable(
        &self,
        tenant: TenantId,
        messages: &[NewMessage],
    ) -> Result<(Vec<Option<AdmitError>>, Arc<TenantConfig>), AdmitError> {
        let mut config = self.tenant_configs.tenant(tenant).await.map_err(|_| AdmitError::Unavailable)?;
        if messages.iter().any(|new| no_route(&config, &new.message).is_some()) {
            config = self.tenant_configs.reload(tenant).await.map_err(|_| AdmitError::Unavailable)?;
        }
        let unroutable = messages.iter().map(|new| no_route(&config, &new.message)).collect();
        Ok((unroutable, config))
    }
}

/// The first of a message's channels for which there is neither a connection nor a route.
fn no_route(config: &TenantConfig, message: &Message) -> Option<AdmitError> {
    let lacks = |channel: &Channel, connection: Option<_>| connection.is_none() && !config.routes.contains_key(channel);
    let refusal = |channel: &Channel, leg| AdmitError::NoRoute { channel: channel.clone(), leg };
    match &message.legs {
        None => lacks(&message.channel, message.connection).then(|| refusal(&message.channel, None)),
        Some(several) => {
            let at = several.legs.iter().position(|leg| lacks(&leg.channel, leg.connection))?;
            Some(refusal(&several.legs[at].channel, Some(at)))
        }
    }
}

/// Whether this node may deliver it at once: it is due, and waits for no turn.
fn may_start(message: &Message, now: Timestamp) -> bool {
    message.ordering_key.is_none() && message.due_at() <= now
}

/// Separates the messages for the writers from the finished answers, with a gap for each of them.
fn split(
    messages: Vec<NewMessage>,
    known: Vec<Result<JudgedMessage, AdmitError>>,
) -> (Vec<(NewMessage, JudgedMessage)>, Answers) {
    let mut accepted = Vec::with_capacity(messages.len());
    let answers = messages
        .into_iter()
        .zip(known)
        .map(|(message, known)| match known {
            Err(error) => Some(Err(error)),
            Ok(known) => {
                accepted.push((message, known));
                None
            }
        })
        .collect();
    (accepted, answers)
}
