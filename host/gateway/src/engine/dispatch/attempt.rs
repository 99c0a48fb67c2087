//! One attempt through one connection: prepare, perform, interpret, as often as the provider asks.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Dispatcher, HeldPermit, PAUSE, add_reason, copies, item,
    payload::{BLOB_COPIES, Lost, Payload},
};
use crate::{
    clock,
    engine::planning::{EffectiveRoute, country},
    engine::queue::{Lease, Work},
    node::providers::Serving,
    node::telemetry::{self, Lane, Side, Span},
    node::tenant_config::Endpoint,
};
use angarium_domain::{
    attempt::{Attempt, HOST_NOT_GRANTED, Origin, SECRET_UNAVAILABLE, Trigger, Verdict},
    ids::AttemptId,
    outcome::{host_verdict, judge_fault},
    overrides::EffectiveOverrides,
    price::Price,
    provider::{CallContext, Cost, Disposition, Item, Judgement, Step},
    recipients::Recipients,
    route::OnUnknown,
    trace::TraceContext,
    transmission::{RecipientAnswer, RecipientReply, Reply, Transmission},
};
use angarium_runtime::{CallError, Called, GuestFault, GuestFaultKind, Usage};
use angarium_store::attempt::NewIntent;
use angarium_transport::{Call, Hold, HostGrant, Parcel, byte_budget::BytePermit};

/// The most transmissions and pauses of one attempt.
pub const MAX_STEPS: usize = 8;

/// The parts that an attempt's conversation uses.
pub(super) struct Conversation<'a> {
    pub dispatcher: &'a Dispatcher,
    pub work: &'a Work,
    pub overrides: EffectiveOverrides<'a>,
    pub endpoint: &'a Endpoint,
    pub serving: &'a Serving,
    pub context: CallContext,
    pub payload: Payload,
    pub deadline: Instant,
    /// The attempt's place in its trace.
    pub trace: Option<&'a TraceContext>,
    pub lane: Arc<Lane>,
    pub usage: Usage,
    /// HTTP status or SMTP code of the last answer.
    pub status: Option<u16>,
    /// Why some of the last answer is missing, if so.
    pub cut: Option<Box<str>>,
    /// The provider's answer for each recipient of a mail.
    pub recipients: Vec<RecipientReply>,
    /// Whether the attempt speaks for the component or against it; `None` while it says nothing.
    pub sound: Option<bool>,
}

/// The lease under which a mail is handed over, which may take longer than the lease was long when it began: it is renewed
/// meanwhile, as long as the database can be reached.
#[derive(Debug)]
struct LeaseHold<'a> {
    lease: &'a Lease,
    /// The time that the last line of the mail may take to arrive.
    margin: Duration,
}

impl Hold for LeaseHold<'_> {
    fn stands(&self) -> bool {
        self.lease.covers(Instant::now() + self.margin)
    }
}

/// The result of a conversation.
struct Conversed {
    verdict: Verdict,
    usage: Usage,
    recipients: Vec<RecipientReply>,
}

impl Conversed {
    /// A verdict without a request.
    fn nothing(verdict: Verdict) -> Self {
        Self { verdict, usage: Usage::default(), recipients: Vec::new() }
    }
}

impl Dispatcher {
    /// Makes one attempt; the caller holds the connection's permit, and passes on the permit for the content. `Lost` if
    /// the delivery no longer belongs to this node: its new owner makes the attempt.
    pub(super) async fn attempt(
        &self,
        work: &Work,
        route: &EffectiveRoute<'_>,
        endpoint: &Endpoint,
        permit: Option<BytePermit>,
        held: &mut HeldPermit,
    ) -> Result<Attempt, Lost> {
        let mut span = self.begun(work, endpoint);
        let serving = self.providers.serving_for(&endpoint.connection.provider, work.tenant);
        let started_at = clock::now();
        let number = work.attempts + 1;
        let Conversed { verdict, usage, recipients } = match &serving {
            None => {
                let absence = self.providers.absence(&endpoint.connection.provider, work.tenant);
                Conversed::nothing(host_verdict(Disposition::NotSent, "provider_missing", absence))
            }
            Some(serving) => match held.during(pin!(self.payload(work, permit))).await? {
                Ok(payload) => self.converse(work, route, endpoint, serving, payload, span.context(), held).await?,
                Err(verdict) => Conversed::nothing(verdict),
            },
        };
        judged(&mut span, number, &verdict);
        let finished_at = clock::now();
        let further = recipients.iter().any(|it| it.answer == RecipientAnswer::TooMany);
        Ok(Attempt {
            id: AttemptId::new(),
            number,
            trigger: work.trigger,
            origin: Some(origin(endpoint, serving.as_ref(), route)),
            plan: Arc::from(""),
            started_at,
            finished_at,
            verdict,
            fallback_reason: None,
            plugin_micros: u32::try_from(usage.cpu.as_micros()).unwrap_or(u32::MAX),
            plugin_memory: usage.peak_memory,
            recipients: copies::of_attempt(work, recipients, number, finished_at),
            further,
        })
    }

    /// The attempt of a delivery that does not leave, since a secret of its connection cannot be opened: without it the
    /// request would go unsigned, or without its credentials. No guard is asked: the connection is not to blame.
    pub(super) fn withheld(&self, work: &Work, route: &EffectiveRoute<'_>, endpoint: &Endpoint) -> Option<Attempt> {
        let verdict = secrets_closed(endpoint)?;
        telemetry::withheld(SECRET_UNAVAILABLE);
        let serving = self.providers.serving_for(&endpoint.connection.provider, work.tenant);
        let mut span = self.begun(work, endpoint);
        judged(&mut span, work.attempts + 1, &verdict);
        let now = clock::now();
        Some(Attempt {
            id: AttemptId::new(),
            number: work.attempts + 1,
            trigger: work.trigger,
            origin: Some(origin(endpoint, serving.as_ref(), route)),
            plan: Arc::from(""),
            started_at: now,
            finished_at: now,
            verdict,
            fallback_reason: None,
            plugin_micros: 0,
            plugin_memory: 0,
            recipients: Recipients::default(),
            further: false,
        })
    }

    /// Begins the span of an attempt, after that of the wait for it.
    fn begun(&self, work: &Work, endpoint: &Endpoint) -> Span {
        let trace = work.message.body.trace.as_ref();
        if work.trigger != Trigger::Fallback {
            let waited = clock::now().duration_since(work.due_at);
            telemetry::waited(work.message.priority, waited.try_into().unwrap_or_default());
            let mut wait = self.tracer.child_since("queue", work.due_at, trace);
            wait.set(|| [("message.priority", work.message.priority.as_str().into())]);
        }
        let mut span = self.tracer.child("attempt", Side::Internal, trace);
        span.set(|| {
            [
                ("tenant.id", work.tenant.to_string().into()),
                ("message.id", work.message.id.to_string().into()),
                ("delivery.id", work.delivery.to_string().into()),
                ("connection.id", endpoint.connection.id.to_string().into()),
                ("provider.name", endpoint.connection.provider.clone().into()),
                ("channel", work.message.first().channel.as_str().to_owned().into()),
                ("attempt.trigger", work.trigger.as_str().into()),
            ]
        });
        span
    }

    /// Returns the deadline, once the lease lasts beyond it and the intent is committed if necessary. An intent is
    /// necessary for a provider that cannot recognise a repetition, if an unknown outcome is to be held, and for a
    /// connection that is neither on record nor certain to be asked first for a fresh delivery. So an unknown request
    /// is never repeated through another connection.
    async fn may_begin(&self, work: &Work, route: &EffectiveRoute<'_>, endpoint: &Endpoint) -> Option<Instant> {
        let deadline = self.covered(work).await?;
        let first = route.certain_first(&work.message) == Some(endpoint.connection.id);
        if first && work.attempts == 0 && self.planner.may_be_asked_again(&route.spec, endpoint) {
            return Some(deadline);
        }
        let intent = NewIntent {
            tenant: work.tenant,
            delivery: work.delivery,
            lease: work.lease.id,
            number: work.attempts + 1,
            connection: endpoint.connection.id,
            provider: endpoint.connection.provider.clone(),
            hold: self.planner.on_unknown(&route.spec, endpoint) == OnUnknown::Hold,
            trigger: work.trigger,
            started_at: clock::now(),
        };
        if !self.ledger.intend(intent).await {
            return None;
        }
        self.covered(work).await
    }

    /// Returns a deadline within the lease. While the database is away no lease is renewed, and the wait ends when it
    /// is back; `None` once the lease is lost.
    async fn covered(&self, work: &Work) -> Option<Instant> {
        loop {
            let deadline = Instant::now() + self.deadline;
            if work.lease.covers(deadline) {
                return Some(deadline);
            }
            if work.lease.is_lost() {
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is another part of what an attempt goes by")]
    async fn converse(
        &self,
        work: &Work,
        route: &EffectiveRoute<'_>,
        endpoint: &Endpoint,
        serving: &Serving,
        payload: Payload,
        trace: Option<&TraceContext>,
        held: &mut HeldPermit,
    ) -> Result<Conversed, Lost> {
        let deadline = held.during(pin!(self.may_begin(work, route, endpoint))).await.ok_or(Lost)?;
        let mut conversation = Conversation {
            dispatcher: self,
            work,
            overrides: route.overrides(),
            endpoint,
            serving,
            context: context(endpoint, serving, work.attempts + 1),
            payload,
            deadline,
            trace,
            lane: telemetry::lane(work.message.first().channel.as_str(), &endpoint.connection.provider),
            usage: Usage::default(),
            status: None,
            cut: None,
            recipients: Vec::new(),
            sound: None,
        };
        let mut verdict = conversation.run(held).await;
        if let Some(cut) = &conversation.cut {
            add_reason(&mut verdict.detail, cut);
        }
        if let Some(sound) = conversation.sound {
            self.providers.report(serving, work.tenant, sound);
        }
        conversation.lane.ran(conversation.usage.cpu, conversation.usage.peak_memory);
        let recipients = copies::judged(conversation.recipients, &verdict);
        Ok(Conversed { verdict, usage: conversation.usage, recipients })
    }
}

impl Conversation<'_> {
    async fn run(&mut self, held: &mut HeldPermit) -> Verdict {
        let mut answered: Option<Reply> = None;
        let mut step = self.prepare(held).await;
        for _ in 0..MAX_STEPS {
            match step {
                Ok(Step::Done(judgements)) => return self.judged(judgements.into_iter().next()),
                Ok(Step::Send { transmission, state }) => match self.perform(transmission).await {
                    Ok(mut reply) => {
                        self.status = Some(reply.status());
                        self.recipients = reply.take_recipients();
                        self.cut = reply.cut().map(Into::into);
                        step = self.interpret(&state, &reply).await;
                        answered = Some(reply);
                    }
                    Err(verdict) => return verdict,
                },
                Ok(Step::Wait { ms, state }) => {
                    self.pause(ms).await;
                    let Some(reply) = &answered else { return self.broken("it waits before it has sent anything") };
                    step = self.interpret(&state, reply).await;
                }
                Err(CallError::Judged(judgement)) => return self.judged(Some(*judgement)),
                Err(CallError::Broken(fault)) => return self.fault(&fault),
            }
        }
        self.broken(&format!("it asked for more than {MAX_STEPS} steps"))
    }

    /// The item is gone before the request is under way: ten thousand may wait at a time.
    async fn prepare(&mut self, held: &mut HeldPermit) -> Result<Step, CallError> {
        let _pass = held.permit(&self.dispatcher.semaphore, self.work.tenant).await;
        let config = self.endpoint.connection.config.get();
        let item = self.item();
        let span = self.dispatcher.tracer.child("plugin.prepare", Side::Internal, self.trace);
        let called = self.serving.component.prepare(&self.context, config, std::slice::from_ref(&item));
        self.called(called, span)
    }

    /// The whole content, if it was read, is dropped with this.
    fn item(&mut self) -> Item {
        let (work, files) = (self.work, self.payload.files.clone());
        match self.payload.content.take() {
            Some(content) => item::item(work.delivery, work.message.first(), &content, files),
            None => item::item(work.delivery, work.message.first(), &work.message.first().content, files),
        }
    }

    async fn interpret(&mut self, state: &[u8], reply: &Reply) -> Result<Step, CallError> {
        let _pass = self.dispatcher.semaphore.enter(self.work.tenant).await;
        let config = self.endpoint.connection.config.get();
        self.context.now_ms = clock::now().as_millisecond() as f64;
        let span = self.dispatcher.tracer.child("plugin.interpret", Side::Internal, self.trace);
        let called = self.serving.component.interpret(&self.context, config, state, reply);
        self.called(called, span)
    }

    fn called(&mut self, called: Called<Step>, mut span: Span) -> Result<Step, CallError> {
        span.set(|| {
            let component = self.serving.component.descriptor();
            [
                ("provider.name", component.name.clone().into()),
                ("provider.version", component.version.clone().into()),
                ("plugin.cpu_seconds", called.usage.cpu.as_secs_f64().into()),
                ("plugin.memory_bytes", i64::try_from(called.usage.peak_memory).unwrap_or(i64::MAX).into()),
            ]
        });
        if let Err(CallError::Broken(fault)) = &called.result {
            span.fail(|| fault.to_string());
            self.lane.failed(fault.kind.as_str());
        }
        self.usage.cpu += called.usage.cpu;
        self.usage.wall += called.usage.wall;
        self.usage.peak_memory = self.usage.peak_memory.max(called.usage.peak_memory);
        called.result
    }

    async fn perform(&mut self, transmission: Transmission) -> Result<Reply, Verdict> {
        let transmission = copies::to_those_left(transmission, &self.work.recipients).map_err(|refused| *refused)?;
        let parcel = self.parcel(transmission).await?;
        let descriptor = self.serving.component.descriptor();
        let mut span = self.dispatcher.tracer.child("transport", Side::Client, self.trace);
        let hold = LeaseHold { lease: &self.work.lease, margin: self.dispatcher.deadline };
        let call = Call {
            tenant: self.work.tenant,
            connection: self.endpoint.connection.id,
            secrets: &self.endpoint.secrets,
            grant: HostGrant {
                provider: &descriptor.name,
                declared: &descriptor.hosts,
                granted: &self.serving.granted,
                config: &self.endpoint.config,
                to: self.work.message.first().to.as_ref().map(|to| to.address.as_str()),
            },
            deadline: self.deadline.into(),
            hold: Some(&hold),
            now: clock::now(),
            trace: span.context(),
        };
        let began = Instant::now();
        let performed = self.dispatcher.transport.perform(parcel, &call).await;
        self.lane.exchanged(began.elapsed());
        match &performed {
            Ok(reply) => span.set(|| [("response.status_code", i64::from(reply.status()).into())]),
            Err(fault) => span.fail(|| fault.detail.clone()),
        }
        let performed = performed.map_err(|fault| judge_fault(&fault));
        if performed.as_ref().is_err_and(|verdict| verdict.code == HOST_NOT_GRANTED) {
            telemetry::withheld(HOST_NOT_GRANTED);
        }
        performed
    }

    /// The transmission with the attachments that it carries. The permit goes with it; a later one that carries
    /// attachments waits for another.
    async fn parcel(&mut self, transmission: Transmission) -> Result<Parcel, Verdict> {
        let permit = self.payload.permit.take();
        let carried = transmission.blobs();
        if carried.is_empty() {
            return Ok(Parcel { transmission, blobs: Vec::new(), permit });
        }
        // Rare: boxed, so that every delivery's future stays small.
        Box::pin(async {
            let files: Vec<_> = self.payload.files.iter().filter(|it| carried.contains(&it.id)).cloned().collect();
            let of = (self.work.tenant, self.work.delivery);
            let permit = match permit {
                Some(permit) => permit,
                None => {
                    let size = files.iter().map(|file| file.size as usize).sum::<usize>();
                    self.dispatcher.bytes.take(of.0, BLOB_COPIES * size).await
                }
            };
            match self.dispatcher.blobs(of, &files, self.deadline).await {
                Ok(blobs) => Ok(Parcel { transmission, blobs, permit: Some(permit) }),
                Err(verdict) => Err(self.after_what_was_sent(verdict)),
            }
        })
        .await
    }

    /// Returns the verdict on an attempt that did not reach its end: earlier requests of it are not judged.
    fn after_what_was_sent(&self, mut verdict: Verdict) -> Verdict {
        if let Some(status) = self.status {
            (verdict.disposition, verdict.status) = (Disposition::Unknown, Some(status));
        }
        verdict
    }

    async fn pause(&self, ms: f64) {
        let wanted = Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default();
        let until = (Instant::now() + wanted).min(self.deadline);
        tokio::time::sleep_until(until.into()).await;
    }

    fn judged(&mut self, judgement: Option<Judgement>) -> Verdict {
        match judgement {
            Some(judgement) => {
                self.sound = Some(true);
                let verdict = verdict(judgement, self.status, |units| self.modelled_cost(units));
                self.overrides.apply(&self.endpoint.connection.provider, verdict)
            }
            None => self.broken("it judged nothing"),
        }
    }

    /// Returns the cost model's price for this number of units, or for the message's own.
    fn modelled_cost(&self, units: Option<u32>) -> Option<Cost> {
        let message = &self.work.message;
        let price = Price::at(self.serving.component.descriptor(), message.first().channel.as_str(), country(message))?;
        price.unit.times(units.unwrap_or_else(|| price.units(message)))
    }

    /// Returns the verdict on a guest's failure. Before any answer, nothing was sent; after one, the request stays
    /// unjudged. A delivery that cannot be sent at all fails the same way next time.
    fn fault(&mut self, fault: &GuestFault) -> Verdict {
        if fault.kind.is_the_guests() {
            self.sound = Some(false);
        }
        let disposition = match self.status {
            Some(_) => Disposition::Unknown,
            None if fault.kind == GuestFaultKind::InvalidTransmission => Disposition::RejectedPermanent,
            None => Disposition::NotSent,
        };
        let code = format!("plugin_{}", fault.kind.as_str());
        let mut verdict = host_verdict(disposition, &code, fault.detail.clone());
        verdict.status = self.status;
        verdict
    }

    fn broken(&mut self, what: &str) -> Verdict {
        self.sound = Some(false);
        let disposition = if self.status.is_some() { Disposition::Unknown } else { Disposition::NotSent };
        let mut verdict = host_verdict(disposition, "plugin_steps", format!("the provider's plugin failed: {what}"));
        verdict.status = self.status;
        verdict
    }
}

/// Returns the verdict if a secret of the connection cannot be opened.
pub(super) fn secrets_closed(endpoint: &Endpoint) -> Option<Verdict> {
    let closed = endpoint.secrets.closed();
    let names = closed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let detail = format!(
        "nothing was sent: this node's key-encryption keys do not open the connection's secret {names}; the delivery \
         waits until the operator adds the key, or the secret is set anew"
    );
    (!closed.is_empty()).then(|| host_verdict(Disposition::NotSent, SECRET_UNAVAILABLE, detail))
}

/// Records an attempt's result in its trace.
fn judged(span: &mut Span, number: u32, verdict: &Verdict) {
    span.set(|| {
        [
            ("attempt.number", i64::from(number).into()),
            ("disposition", verdict.disposition.as_str().into()),
            ("code", verdict.code.clone().into()),
        ]
    });
    if verdict.disposition != Disposition::Accepted {
        span.fail(|| verdict.detail.clone());
    }
}

fn context(endpoint: &Endpoint, serving: &Serving, attempt: u32) -> CallContext {
    let mut seed = [0; 32];
    fastrand::Rng::new().fill(&mut seed);
    CallContext {
        now_ms: clock::now().as_millisecond() as f64,
        attempt,
        seed,
        secrets: endpoint.secret_names.clone(),
        callback_url: endpoint.callback_url.clone().filter(|_| serving.component.reads_callbacks()),
        redactor: Arc::clone(endpoint.secrets.redactor()),
    }
}

fn origin(endpoint: &Endpoint, serving: Option<&Serving>, route: &EffectiveRoute<'_>) -> Origin {
    Origin {
        connection: endpoint.connection.id,
        provider: endpoint.connection.provider.as_str().into(),
        provider_version: serving.map(|it| it.component.descriptor().version.as_str().into()),
        provider_digest: serving.map(|it| it.component.digest().into()),
        route: route.route,
        at_recipient: false,
    }
}

/// A provider's judgement as a verdict; a cost that the answer did not tell is taken from the
/// provider's cost model.
fn verdict(judgement: Judgement, status: Option<u16>, modelled: impl Fn(Option<u32>) -> Option<Cost>) -> Verdict {
    let accepted = judgement.disposition == Disposition::Accepted;
    let cost = judgement.cost.or_else(|| accepted.then(|| modelled(judgement.units)).flatten());
    Verdict {
        disposition: judgement.disposition,
        status,
        code: judgement.code,
        unified_code: judgement.unified_code,
        detail: judgement.message,
        external_id: judgement.external_id,
        retry_after_ms: judgement.retry_after_ms.map(|ms| ms.max(0.0) as u64),
        cost,
        units: judgement.units,
        overridden: None,
    }
}
