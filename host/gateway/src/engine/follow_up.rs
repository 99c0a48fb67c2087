//! Follow-ups of ended deliveries: scripts' `on_outcome` is asked, and its messages are accepted like a client's.
//!
//! An end is in the database since the transaction that wrote it. The scripts' answers are stored there, with the ids
//! of the messages, before the first message is accepted. After a crash at any point, no script is asked twice, and no
//! message is sent twice or lost.

mod plan;

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    engine::admission::{Admission, AdmitError},
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
    self as store, Store, StoreError,
    event::event_insert_all,
    failpoint,
    follow_up::{DueFollowUp, EndedDelivery, follow_up_answer, follow_up_claim, follow_up_end},
    message::{DeliveryView, MessageView, body_load, content_size, message_exists, message_get},
};
use angarium_transport::byte_budget::{ByteBudget, BytePermit};

/// How often ends are looked for.
const PAUSE: Duration = Duration::from_millis(500);

/// The most ends of one look, which go side by side.
const BATCH: i64 = 32;

/// A message that the database refuses so often is given up, and the event says so.
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

/// How often a large content is in memory at a time, at the most, until the message that follows is stored.
const COPIES: usize = 4;

/// The scripts' answers to an end.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    asked_at: Timestamp,
    scripts: Vec<Said>,
}

/// The answer of one script.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Said {
    script: String,
    version: i32,
    tags: Vec<String>,
    messages: Vec<Wanted>,
    fault: Option<String>,
}

/// The known state of the scripts' answers.
enum WasSaid {
    Words(Answer),
    /// No script answers.
    Nothing,
    /// There was no time to ask.
    Later,
    /// A later version wrote it.
    Unreadable(serde_json::Error),
}

/// A message that is to follow.
#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    id: MessageId,
    message: FollowUpMessage,
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
        let Some(view) = view.filter(|view| view.content_purged_at.is_none()) else { return self.end(due, None).await };
        let scene = Scene::of(due, &config, &view);
        let answer = match self.answer(&scene).await? {
            WasSaid::Words(answer) => answer,
            WasSaid::Unreadable(error) => {
                tracing::error!(%error, delivery.id = %due.ended.delivery, "what scripts said can't be read: a later version wrote it");
                return Ok(());
            }
            WasSaid::Later => return Ok(()),
            WasSaid::Nothing => return self.end(due, None).await,
        };
        failpoint!(FollowUpAfterAnswer);
        let Some(told) = self.send_all(&scene, &answer).await? else { return Ok(()) };
        failpoint!(FollowUpBeforeCommit);
        self.end(due, Some(told)).await
    }

    /// Returns the scripts' answers, asking them now if they were not asked yet.
    async fn answer(&self, scene: &Scene<'_>) -> store::Result<WasSaid> {
        let kept = match &scene.due.answer {
            Some(kept) => Some(kept.clone()),
            None => {
                let Some(answer) = self.ask(scene).await else { return Ok(WasSaid::Later) };
                if answer.scripts.is_empty() {
                    return Ok(WasSaid::Nothing);
                }
                // Plain data always has a JSON form.
                let json = serde_json::to_string(&answer).unwrap_or_default();
                let mut txn = self.store.worker().await?;
                let kept = follow_up_answer(&mut txn, &scene.due.ended, &json).await?;
                txn.commit().await?;
                kept
            }
        };
        Ok(match kept.map(|json| serde_json::from_str(&json)) {
            None => WasSaid::Nothing,
            Some(Ok(answer)) => WasSaid::Words(answer),
            Some(Err(error)) => WasSaid::Unreadable(error),
        })
    }

    /// Returns the scripts' answers; `None` if the tenant has no time left for them, and they are asked later.
    async fn ask(&self, scene: &Scene<'_>) -> Option<Answer> {
        let asked_at = clock::now();
        let mut answer = Answer { asked_at, scripts: Vec::new() };
        let Some(book) = scene.config.rulebook.as_ref().filter(|_| scene.message.depth() < DEEPEST_FOLLOW_UP) else {
            return Some(answer);
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
        answer.scripts = followed.into_iter().filter(|it| !it.is_silent()).map(Said::from).collect();
        for failure in failures {
            let fault = Some(failure.fault.to_string());
            let (script, version) = (failure.script.clone(), failure.version);
            answer.scripts.push(Said { script, version, fault, ..Said::default() });
        }
        Some(answer)
    }

    /// Has all messages accepted, and returns the results; `None` if it is to be tried again.
    async fn send_all(&self, scene: &Scene<'_>, answer: &Answer) -> store::Result<Option<Value>> {
        let known = self.known(scene, answer).await?;
        let (mut scripts, mut number) = (Vec::new(), 0);
        for said in &answer.scripts {
            let mut messages = Vec::new();
            for wanted in &said.messages {
                number += 1;
                if known.contains(&wanted.id) {
                    messages.push(json!({"message": wanted.id}));
                    continue;
                }
                match self.send(scene, answer, said, wanted, number).await {
                    Ok(id) => {
                        telemetry::followed_up(true);
                        messages.push(json!({"message": id}));
                    }
                    Err(AdmitError::Unavailable | AdmitError::Busy | AdmitError::DiskFull) => return Ok(None),
                    Err(AdmitError::Failed(_)) if scene.due.tries < TRIES => return Ok(None),
                    Err(error) => {
                        telemetry::followed_up(false);
                        messages.push(json!({"refused": error.to_string()}));
                    }
                }
            }
            scripts.push(said.told(messages));
        }
        Ok(Some(json!({"state": scene.due.ended.state, "scripts": scripts})))
    }

    /// Returns the messages that an earlier try had accepted, however long ago.
    async fn known(&self, scene: &Scene<'_>, answer: &Answer) -> store::Result<Vec<MessageId>> {
        if scene.due.tries <= 1 {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = answer.scripts.iter().flat_map(|said| &said.messages).map(|wanted| wanted.id).collect();
        let mut txn = self.store.tenant(scene.due.ended.tenant).await?;
        message_exists(&mut txn, scene.due.ended.tenant, &ids).await
    }

    async fn send(
        &self,
        scene: &Scene<'_>,
        answer: &Answer,
        said: &Said,
        wanted: &Wanted,
        number: u32,
    ) -> Result<MessageId, AdmitError> {
        let ended = &scene.due.ended;
        let follows = Follows {
            message: ended.message,
            delivery: ended.delivery,
            script: said.script.clone(),
            depth: scene.message.depth() + 1,
        };
        let (content, _permit) = self.content(scene).await?;
        let of = plan::Before { whole: scene.whole, message: &scene.message, content: &content };
        let made = plan::follow_up(of, wanted.id, &wanted.message, follows, answer.asked_at);
        let message = Message { created_at: clock::now(), ..made.map_err(AdmitError::Unsendable)? };
        let key = format!("follow-up:{}:{}:{number}", ended.delivery, ended.state.as_str());
        let fingerprint = Sha256::digest(&key).into();
        let idempotency = Some(Idempotency { key, fingerprint, former: None });
        let new = NewMessage { message, idempotency, attachments: Vec::new(), rule_input: None };
        let admitted =
            self.admission.admit(ended.tenant, vec![new]).await.pop().unwrap_or(Err(AdmitError::Unavailable));
        admitted.map(|it| it.message.id)
    }

    /// The whole content of the message that ended. Where that is large and there is no memory for it now, the end is
    /// looked at again later.
    async fn content<'a>(&self, scene: &'a Scene<'_>) -> Result<(Cow<'a, Content>, Option<BytePermit>), AdmitError> {
        let message = &scene.message;
        if !message.abridged {
            return Ok((Cow::Borrowed(&message.body.content), None));
        }
        let EndedDelivery { tenant, delivery, .. } = scene.due.ended;
        let later = |_| AdmitError::Unavailable;
        let mut txn = self.store.tenant(tenant).await.map_err(later)?;
        let size = content_size(&mut txn, tenant, message.id, delivery).await.map_err(later)?;
        let bytes = size.map_or(0, |(body, _)| COPIES * body);
        let permit = self.bytes.try_take(tenant, bytes).ok_or(AdmitError::Busy)?;
        let body = body_load(&mut txn, tenant, message.id).await.map_err(later)?;
        let body = body.ok_or_else(|| AdmitError::Unsendable("its content is no longer in the database".to_owned()))?;
        Ok((Cow::Owned(body.content_of(delivery.leg_of(message.id))), Some(permit)))
    }

    /// Marks an end as done; the message's events record the results.
    async fn end(&self, due: &DueFollowUp, told: Option<Value>) -> store::Result<()> {
        let mut txn = self.store.worker().await?;
        if follow_up_end(&mut txn, &due.ended).await?
            && let Some(told) = told
        {
            let of = [(due.ended.message, due.ended.delivery)];
            let kind = "message.followed_up";
            event_insert_all(&mut txn, due.ended.tenant, &of, kind, Some(&told.to_string())).await?;
        }
        txn.commit().await.map_err(StoreError::from)
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
            channel: self.message.channel.as_str().to_owned(),
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
}

impl From<ScriptFollowUp> for Said {
    fn from(ScriptFollowUp { script, version, said }: ScriptFollowUp) -> Self {
        let wanted = |message| Wanted { id: MessageId::with_legs(), message };
        let messages = said.messages.into_iter().map(wanted).collect();
        Self { script, version, tags: said.tags, messages, fault: None }
    }
}

impl Said {
    fn told(&self, messages: Vec<Value>) -> Value {
        let mut told = json!({"script": self.script, "version": self.version});
        if let Some(fault) = &self.fault {
            told["fault"] = json!(fault);
        } else {
            told["tags"] = json!(self.tags);
            told["messages"] = Value::Array(messages);
        }
        told
    }
}
