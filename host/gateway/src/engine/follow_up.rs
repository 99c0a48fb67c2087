//! Follow-ups of ended deliveries: scripts' `on_outcome` is asked, and its messages are accepted like a client's.
//!
//! An end is in the database since the transaction that wrote it. The messages that follow are written in the
//! transaction that takes the end out of there, with the event about them: [`FollowUpClaim`]. After a crash at any point,
//! or if two nodes handle one end, no message is sent twice or lost; scripts may be asked again, and one answer counts.

mod plan;

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    engine::admission::{Admission, AdmitError, ClaimEnd, MessageSource, ParseContext, ProducerClaim, Unparsed},
    engine::experiments::Experiments,
    engine::rule_hooks::RuleHooks,
    engine::rule_runner::{PATIENCE, RuleRunner},
    node::telemetry,
    node::tenant_config::{TenantConfig, TenantConfigs},
};
use angarium_domain::{
    ids::MessageId,
    message::{Content, DEEPEST_FOLLOW_UP, Follows, Idempotency, Message, NewMessage},
    rule_input::RuleInput,
};
use angarium_rules::{
    question::OutcomeQuestion,
    rulebook::{Failure, ScriptFollowUp},
    script::{
        FollowUpMessage, Given,
        facts::{DeliveryFacts, MessageFacts},
    },
};
use angarium_store::{
    self as store, Connection, Store, StoreError,
    event::event_insert_all,
    failpoint,
    follow_up::{DueFollowUp, EndedDelivery, follow_up_claim, follow_up_end},
    message::{DeliveryView, MessageView, content_size, message_get, message_whole},
};
use angarium_transport::byte_budget::{ByteBudget, BytePermit};

/// How often ends are looked for.
const PAUSE: Duration = Duration::from_millis(500);

/// The most ends of one look, which go side by side.
const BATCH: i64 = 32;

/// Messages that could not be accepted after so many tries are given up, and the event says so.
const TRIES: u32 = 10;

/// Asks scripts about ends.
pub struct FollowUps {
    pub store: Store,
    pub tenant_configs: Arc<TenantConfigs>,
    pub admission: Admission,
    pub experiments: Arc<Experiments>,
    /// The memory for the contents of large messages.
    pub bytes: Arc<ByteBudget>,
    pub rules: Arc<RuleRunner>,
}

/// How often a large content is in memory for each message that follows, at the most, until it is stored.
const COPIES: usize = 3;

/// The answer of one script to an end.
#[derive(Debug, Default)]
struct ScriptAnswer {
    script: String,
    version: i32,
    tags: Vec<String>,
    messages: Vec<FollowUpMessage>,
    fault: Option<String>,
}

/// A message that is to follow, as it is handed over.
struct FollowUpDraft {
    message: Result<Message, AdmitError>,
    key: String,
}

/// Takes an end out of those that are to be followed up, together with what follows: only one try finds it there.
struct FollowUpClaim {
    ended: EndedDelivery,
    answers: Arc<[ScriptAnswer]>,
}

/// A delivery that ended, with its message.
struct Scene<'a> {
    due: &'a DueFollowUp,
    config: &'a TenantConfig,
    /// The whole message.
    whole: &'a Message,
    /// The same as the delivery's channel sees it.
    message: Message,
    delivery: &'a DeliveryView,
}

impl FollowUps {
    /// Looks for ends until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        while !stop.is_cancelled() {
            let full = match Arc::clone(&this).look().await {
                Ok(count) => count >= BATCH as usize,
                Err(error) => {
                    tracing::warn!(%error, "ends can't be followed up; the next look is in a moment");
                    false
                }
            };
            if !full {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }

    /// Looks once; returns the number of ends.
    async fn look(self: Arc<Self>) -> store::Result<usize> {
        let mut txn = self.store.worker().await?;
        let due = follow_up_claim(&mut txn, BATCH).await?;
        txn.commit().await?;
        let count = due.len();
        let mut each: JoinSet<()> = JoinSet::new();
        for due in due {
            let this = Arc::clone(&self);
            each.spawn(async move {
                if let Err(error) = this.follow(&due).await {
                    tracing::warn!(%error, delivery.id = %due.ended.delivery, "an end can't be followed up yet");
                }
            });
        }
        while each.join_next().await.is_some() {}
        Ok(count)
    }

    async fn follow(&self, due: &DueFollowUp) -> store::Result<()> {
        let config = self.tenant_configs.tenant(due.ended.tenant).await?;
        let mut txn = self.store.tenant(due.ended.tenant).await?;
        let view = message_get(&mut txn, due.ended.tenant, due.ended.message).await?;
        txn.commit().await?;
        let Some(view) = view.filter(|view| view.content_purged_at.is_none()) else { return self.end(due).await };
        let scene = Scene::of(due, &config, &view);
        let asked_at = clock::now();
        let Some(answers) = self.ask(&scene, asked_at).await else { return Ok(()) };
        if answers.is_empty() {
            return self.end(due).await;
        }
        failpoint!(FollowUpAfterAnswer);
        match self.send(&scene, answers, asked_at).await {
            Ok(ClaimEnd::Taken(accepted)) => accepted.iter().for_each(|it| telemetry::followed_up(it.is_ok())),
            Ok(ClaimEnd::Missed) => {
                tracing::info!(delivery.id = %due.ended.delivery, "an end was followed up already")
            }
            Err(error) => {
                tracing::warn!(%error, delivery.id = %due.ended.delivery, tries = due.tries, "an end is followed up later");
            }
        }
        Ok(())
    }

    /// Returns the scripts' answers, without those that want nothing; `None` if the tenant has no time left for them,
    /// and they are asked later.
    async fn ask(&self, scene: &Scene<'_>, asked_at: Timestamp) -> Option<Vec<ScriptAnswer>> {
        let Some(book) = scene.config.rulebook.as_ref().filter(|_| scene.message.depth() < DEEPEST_FOLLOW_UP) else {
            return Some(Vec::new());
        };
        let given = Given { now: asked_at, chance: fastrand::f64() };
        let facts = scene.facts();
        let hooks = RuleHooks { store: &self.store, experiments: &self.experiments, runner: &self.rules };
        let (tenant, until) = (scene.due.ended.tenant, Instant::now() + PATIENCE);
        let question = OutcomeQuestion { message: &scene.message, delivery: &facts };
        let (followed, failures) = hooks.ask(tenant, book, until, given, &question).await;
        if scene.due.tries < TRIES && failures.iter().any(Failure::had_no_time) {
            return None;
        }
        let followed = followed.into_iter().filter(|it| !it.is_silent()).map(ScriptAnswer::from);
        Some(followed.chain(failures.into_iter().map(ScriptAnswer::from)).collect())
    }

    /// Has all messages accepted together with the end's claim.
    async fn send(
        &self,
        scene: &Scene<'_>,
        answers: Vec<ScriptAnswer>,
        asked_at: Timestamp,
    ) -> Result<ClaimEnd, AdmitError> {
        let (ended, answers): (_, Arc<[ScriptAnswer]>) = (scene.due.ended, answers.into());
        let claim = || FollowUpClaim { ended, answers: Arc::clone(&answers) };
        let (drafts, _permits) = self.drafts(scene, &answers, asked_at).await?;
        let accepted = self.admission.admit_with(ended.tenant, claim(), drafts).await;
        match accepted {
            Err(error) if scene.due.tries >= TRIES && !error.is_of_the_node() => {
                let refused = |key| FollowUpDraft { message: Err(AdmitError::Unsendable(error.to_string())), key };
                let drafts = keys(&ended, &answers).map(refused).collect();
                self.admission.admit_with(ended.tenant, claim(), drafts).await
            }
            accepted => accepted,
        }
    }

    /// Returns the messages that scripts want, and the memory of a large content.
    async fn drafts(
        &self,
        scene: &Scene<'_>,
        answers: &[ScriptAnswer],
        asked_at: Timestamp,
    ) -> Result<(Vec<FollowUpDraft>, Option<BytePermit>), AdmitError> {
        let wanted = || answers.iter().flat_map(|answer| answer.messages.iter().map(|it| (answer.script.as_str(), it)));
        let (content, permit) = self.content(scene, wanted().count()).await?;
        let made = |(script, wanted)| {
            let Some(content) = &content else { return Err("its content is no longer in the database".to_owned()) };
            let before = plan::Before { whole: scene.whole, message: &scene.message, content };
            plan::follow_up(before, MessageId::with_legs(), wanted, scene.follows(script), asked_at)
        };
        let drafts = wanted().map(made).zip(keys(&scene.due.ended, answers));
        let draft =
            |(made, key): (Result<_, _>, _)| FollowUpDraft { message: made.map_err(AdmitError::Unsendable), key };
        Ok((drafts.map(draft).collect(), permit))
    }

    /// Returns the whole content of the delivery's channel, for this number of messages; `None` if it is gone. Where it
    /// is large and there is no memory for it now, the end is looked at again later.
    async fn content<'a>(
        &self,
        scene: &'a Scene<'_>,
        messages: usize,
    ) -> Result<(Option<Cow<'a, Content>>, Option<BytePermit>), AdmitError> {
        let message = &scene.message;
        if !message.abridged || messages == 0 {
            return Ok((Some(Cow::Borrowed(&message.first().content)), None));
        }
        let EndedDelivery { tenant, delivery, .. } = scene.due.ended;
        let mut txn = self.store.tenant(tenant).await?;
        let size = content_size(&mut txn, tenant, message.id, delivery).await?;
        let bytes = size.map_or(0, |(body, _)| (1 + COPIES * messages) * body);
        let permit = self.bytes.try_take(tenant, bytes).ok_or(AdmitError::Busy)?;
        let whole = message_whole(&mut txn, tenant, message.id).await?;
        let leg = delivery.leg_of(message.id);
        let content = whole.and_then(|whole| whole.legs.into_iter().nth(leg.into())).map(|leg| Cow::Owned(leg.content));
        Ok((content, Some(permit)))
    }

    /// Marks an end as done that nothing follows.
    async fn end(&self, due: &DueFollowUp) -> store::Result<()> {
        let mut txn = self.store.worker().await?;
        follow_up_end(&mut txn, &due.ended).await?;
        txn.commit().await.map_err(StoreError::from)
    }
}

/// Returns the idempotency key of each message: a delivery that comes to the same end again within a day sends nothing
/// again.
fn keys(ended: &EndedDelivery, answers: &[ScriptAnswer]) -> impl Iterator<Item = String> {
    let EndedDelivery { delivery, state, .. } = *ended;
    let count = answers.iter().map(|answer| answer.messages.len()).sum::<usize>();
    (1..=count).map(move |number| format!("follow-up:{delivery}:{}:{number}", state.as_str()))
}

impl MessageSource for FollowUpDraft {
    fn named_connections(&self) -> Vec<&str> {
        Vec::new()
    }

    fn wants_channel(&self) -> bool {
        false
    }

    fn parse(self, context: &ParseContext<'_>) -> Result<NewMessage, Unparsed> {
        let message = self.message.map_err(|error| Unparsed { error, key: None })?;
        let message = Message { created_at: context.now, ..message };
        let fingerprint = Sha256::digest(&self.key).into();
        let idempotency = Some(Idempotency { key: self.key, fingerprint, former: Vec::new() });
        Ok(NewMessage { message, idempotency, attachments: Vec::new(), rule_input: None })
    }
}

impl ProducerClaim for FollowUpClaim {
    async fn take(&self, db: &mut Connection) -> store::Result<Option<Vec<NewMessage>>> {
        Ok(follow_up_end(db, &self.ended).await?.then(Vec::new))
    }

    async fn record(&self, db: &mut Connection, results: &[Result<MessageId, AdmitError>]) -> store::Result<()> {
        let of = [(self.ended.message, self.ended.delivery)];
        let data = self.described(results).to_string();
        event_insert_all(db, self.ended.tenant, &of, "message.followed_up", Some(&data)).await
    }
}

impl FollowUpClaim {
    /// Returns the data of the event: each script's answer, with the messages that followed or why they did not.
    fn described(&self, results: &[Result<MessageId, AdmitError>]) -> Value {
        let mut results = results.iter();
        let result = |result: &Result<MessageId, AdmitError>| match result {
            Ok(id) => json!({"message": id}),
            Err(error) => json!({"refused": error.to_string()}),
        };
        let answers = self.answers.iter();
        let scripts = answers.map(|it| it.described(results.by_ref().take(it.messages.len()).map(result).collect()));
        json!({"state": self.ended.state, "scripts": scripts.collect::<Vec<_>>()})
    }
}

impl<'a> Scene<'a> {
    fn of(due: &'a DueFollowUp, config: &'a TenantConfig, view: &'a MessageView) -> Self {
        let whole = &view.message;
        let leg = due.ended.delivery.leg_of(whole.id);
        let delivery = view.legs.iter().find(|it| it.id == due.ended.delivery).unwrap_or(&view.delivery);
        Self { due, config, whole, message: whole.as_leg(leg, whole.due_at()), delivery }
    }

    fn facts(&self) -> DeliveryFacts {
        let cost = self.delivery.cost.as_ref();
        DeliveryFacts {
            state: self.due.ended.state.as_str().to_owned(),
            channel: self.message.first().channel.as_str().to_owned(),
            attempts: self.delivery.attempts,
            connection: self.delivery.connection.map(|it| self.config.name_of(it)),
            provider: self.delivery.provider.clone(),
            code: self.delivery.code.clone(),
            cost: cost.map(|cost| cost.micros as f64 / 1e6),
            currency: cost.map(|cost| cost.currency.clone()),
            seconds: self.due.ended_at.duration_since(self.whole.created_at).as_secs_f64(),
            follow_up: self.message.depth(),
            message: MessageFacts::of(RuleInput::of(&self.message)),
        }
    }

    fn follows(&self, script: &str) -> Follows {
        Follows {
            message: self.due.ended.message,
            delivery: self.due.ended.delivery,
            script: script.to_owned(),
            depth: self.message.depth() + 1,
        }
    }
}

impl From<ScriptFollowUp> for ScriptAnswer {
    fn from(ScriptFollowUp { script, version, said }: ScriptFollowUp) -> Self {
        Self { script, version, tags: said.tags, messages: said.messages, fault: None }
    }
}

impl From<Failure> for ScriptAnswer {
    fn from(Failure { script, version, fault, .. }: Failure) -> Self {
        Self { script, version, fault: Some(fault.to_string()), ..Self::default() }
    }
}

impl ScriptAnswer {
    fn described(&self, messages: Vec<Value>) -> Value {
        let mut described = json!({"script": self.script, "version": self.version});
        if let Some(fault) = &self.fault {
            described["fault"] = json!(fault);
        } else {
            described["tags"] = json!(self.tags);
            described["messages"] = Value::Array(messages);
        }
        described
    }
}
