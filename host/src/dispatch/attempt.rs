//! One attempt through one connection: prepare, perform, interpret, as often as the provider asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Course, Dispatcher, PAUSE, item};
use crate::{
    clock,
    directory::Endpoint,
    domain::{
        attempt::{Attempt, Origin, Verdict},
        ids::AttemptId,
        provider::{CallContext, Cost, Deduplication, Descriptor, Disposition, Item, Judgement, Step},
        route::OnUnknown,
        transmission::{Blob, Reply, Transmission},
    },
    outcome::{host_verdict, judge_fault},
    providers::Serving,
    queue::Work,
    runtime::{CallError, Called, GuestFault, Usage},
    store::{attempt::NewIntent, message::attachment_list},
    transport::{Call, HostGrant},
};

/// The most transmissions and pauses of one attempt.
pub const MAX_STEPS: usize = 8;

/// What an attempt's conversation works with.
pub(super) struct Conversation<'a> {
    pub dispatcher: &'a Dispatcher,
    pub work: &'a Work,
    pub endpoint: &'a Endpoint,
    pub serving: &'a Serving,
    pub context: CallContext,
    pub blobs: Vec<Blob>,
    pub deadline: Instant,
    pub usage: Usage,
    /// HTTP status or SMTP code of the last answer.
    pub status: Option<u16>,
}

impl Dispatcher {
    /// Makes one attempt. `None` when the delivery is no longer this node's: whoever has it now
    /// makes it.
    pub(super) async fn attempt(&self, work: &Work, course: &Course<'_>, endpoint: &Endpoint) -> Option<Attempt> {
        // Closed only when the process ends.
        let _slot = endpoint.slots.acquire().await.ok()?;
        self.ledger.writable().await;
        let serving = self.providers.serving(&endpoint.connection.provider);
        let started_at = clock::now();
        let number = work.attempts + 1;
        let (verdict, usage) = match &serving {
            None => (
                host_verdict(Disposition::NotSent, "provider_missing", "the provider is not installed".into()),
                Usage::default(),
            ),
            Some(serving) => {
                let deadline = self.may_begin(work, course, endpoint, serving).await?;
                self.converse(work, endpoint, serving, number, deadline).await
            }
        };
        Some(Attempt {
            id: AttemptId::new(),
            number,
            trigger: work.trigger,
            origin: Some(origin(endpoint, serving.as_ref(), course)),
            plan: Arc::from(""),
            started_at,
            finished_at: clock::now(),
            verdict,
            fallback_reason: None,
            plugin_micros: u32::try_from(usage.cpu.as_micros()).unwrap_or(u32::MAX),
            plugin_memory: usage.peak_memory,
        })
    }

    /// The deadline, once the lease lasts beyond it, and, where it matters who was asked should this
    /// worker be lost, the intent is committed: for a provider that can't recognise a repetition,
    /// and for whoever is not the first to be asked of a fresh delivery, so that an unknown request
    /// is never repeated through another connection.
    async fn may_begin(
        &self,
        work: &Work,
        course: &Course<'_>,
        endpoint: &Endpoint,
        serving: &Serving,
    ) -> Option<Instant> {
        let deadline = self.covered(work).await?;
        let first = course.spec.candidates.first().is_some_and(|it| it.connection == endpoint.connection.id);
        let recognised = serving.component.descriptor().deduplication == Deduplication::Key;
        if recognised && first && work.attempts == 0 {
            return Some(deadline);
        }
        let intent = NewIntent {
            tenant: work.tenant,
            delivery: work.delivery,
            lease: work.lease.id,
            number: work.attempts + 1,
            connection: endpoint.connection.id,
            provider: endpoint.connection.provider.clone(),
            hold: self.on_unknown(&course.spec, endpoint) == OnUnknown::Hold,
            trigger: work.trigger,
            started_at: clock::now(),
        };
        if !self.ledger.intend(intent).await {
            return None;
        }
        self.covered(work).await
    }

    /// A deadline within the lease. While the database is away no lease is renewed, and whoever
    /// waited for it here goes on when it is; `None` once the lease is lost.
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

    async fn converse(
        &self,
        work: &Work,
        endpoint: &Endpoint,
        serving: &Serving,
        number: u32,
        deadline: Instant,
    ) -> (Verdict, Usage) {
        let blobs = match self.blobs(work).await {
            Ok(blobs) => blobs,
            Err(error) => {
                let detail = format!("its attachments can't be read: {error}");
                return (host_verdict(Disposition::NotSent, "attachments_unavailable", detail), Usage::default());
            }
        };
        let mut conversation = Conversation {
            dispatcher: self,
            work,
            endpoint,
            serving,
            context: context(endpoint, number),
            blobs,
            deadline,
            usage: Usage::default(),
            status: None,
        };
        let verdict = conversation.run().await;
        metrics::histogram!("angarium_plugin_seconds").record(conversation.usage.cpu);
        (verdict, conversation.usage)
    }

    async fn blobs(&self, work: &Work) -> crate::store::Result<Vec<Blob>> {
        if work.message.attachments == 0 {
            return Ok(Vec::new());
        }
        let mut txn = self.store.tenant(work.tenant).await?;
        Ok(item::blobs(attachment_list(&mut txn, work.tenant, work.message.id).await?))
    }
}

impl Conversation<'_> {
    async fn run(&mut self) -> Verdict {
        let item = item::item(self.work.delivery, &self.work.message, &self.blobs);
        let mut answered: Option<Reply> = None;
        let mut step = self.prepare(&item);
        for _ in 0..MAX_STEPS {
            match step {
                Ok(Step::Done(judgements)) => return self.judged(judgements.into_iter().next()),
                Ok(Step::Send { transmission, state }) => match self.perform(&transmission).await {
                    Ok(reply) => {
                        self.status = Some(reply.status());
                        step = self.interpret(&state, &reply);
                        answered = Some(reply);
                    }
                    Err(verdict) => return verdict,
                },
                Ok(Step::Wait { ms, state }) => {
                    self.pause(ms).await;
                    let Some(reply) = &answered else { return self.broken("it waits before it has sent anything") };
                    step = self.interpret(&state, reply);
                }
                Err(CallError::Judged(judgement)) => return self.judged(Some(*judgement)),
                Err(CallError::Broken(fault)) => return self.fault(&fault),
            }
        }
        self.broken(&format!("it asked for more than {MAX_STEPS} steps"))
    }

    fn prepare(&mut self, item: &Item) -> Result<Step, CallError> {
        let config = self.endpoint.connection.config.get();
        let called = self.serving.component.prepare(&self.context, config, std::slice::from_ref(item));
        self.called(called)
    }

    fn interpret(&mut self, state: &[u8], reply: &Reply) -> Result<Step, CallError> {
        let config = self.endpoint.connection.config.get();
        self.context.now_ms = clock::now().as_millisecond() as f64;
        let called = self.serving.component.interpret(&self.context, config, state, reply);
        self.called(called)
    }

    fn called(&mut self, called: Called<Step>) -> Result<Step, CallError> {
        self.usage.cpu += called.usage.cpu;
        self.usage.wall += called.usage.wall;
        self.usage.peak_memory = self.usage.peak_memory.max(called.usage.peak_memory);
        let healthy = !called.result.as_ref().is_err_and(CallError::is_the_guests);
        self.dispatcher.providers.report(self.serving, healthy);
        called.result
    }

    async fn perform(&self, transmission: &Transmission) -> Result<Reply, Verdict> {
        let descriptor = self.serving.component.descriptor();
        let call = Call {
            tenant: self.work.tenant,
            connection: self.endpoint.connection.id,
            secrets: &self.endpoint.secrets,
            grant: HostGrant {
                provider: &descriptor.name,
                declared: &descriptor.hosts,
                granted: &self.serving.granted,
                config: &self.endpoint.config,
                to: self.work.message.body.to.as_ref().map(|to| to.address.as_str()),
            },
            blobs: &self.blobs,
            deadline: self.deadline.into(),
            now: clock::now(),
        };
        self.dispatcher.transport.perform(transmission, &call).await.map_err(|fault| judge_fault(&fault))
    }

    async fn pause(&self, ms: f64) {
        let wanted = Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default();
        let until = (Instant::now() + wanted).min(self.deadline);
        tokio::time::sleep_until(until.into()).await;
    }

    fn judged(&self, judgement: Option<Judgement>) -> Verdict {
        match judgement {
            Some(judgement) => verdict(judgement, self.status, self.serving.component.descriptor()),
            None => self.broken("it judged nothing"),
        }
    }

    /// A guest's failure before anything was answered left nothing sent; one after an answer
    /// leaves what was sent unjudged.
    fn fault(&self, fault: &GuestFault) -> Verdict {
        let disposition = match self.status {
            Some(_) => Disposition::Unknown,
            None if fault.kind.is_the_guests() => Disposition::NotSent,
            None => Disposition::RejectedPermanent,
        };
        let code = format!("plugin_{}", fault.kind.as_str());
        let mut verdict = host_verdict(disposition, &code, fault.detail.clone());
        verdict.status = self.status;
        verdict
    }

    fn broken(&self, what: &str) -> Verdict {
        self.dispatcher.providers.report(self.serving, false);
        let disposition = if self.status.is_some() { Disposition::Unknown } else { Disposition::NotSent };
        let mut verdict = host_verdict(disposition, "plugin_steps", format!("the provider's plugin failed: {what}"));
        verdict.status = self.status;
        verdict
    }
}

fn context(endpoint: &Endpoint, attempt: u32) -> CallContext {
    let mut seed = [0; 32];
    fastrand::Rng::new().fill(&mut seed);
    CallContext { now_ms: clock::now().as_millisecond() as f64, attempt, seed, secrets: endpoint.secret_names.clone() }
}

fn origin(endpoint: &Endpoint, serving: Option<&Serving>, course: &Course<'_>) -> Origin {
    Origin {
        connection: endpoint.connection.id,
        provider: endpoint.connection.provider.as_str().into(),
        provider_version: serving.map(|it| it.component.descriptor().version.as_str().into()),
        provider_digest: serving.map(|it| it.component.digest().into()),
        route: course.route,
    }
}

/// A provider's judgement as a verdict; a cost that the answer did not tell is taken from the
/// provider's cost model.
fn verdict(judgement: Judgement, status: Option<u16>, descriptor: &Descriptor) -> Verdict {
    let cost = judgement.cost.or_else(|| {
        (judgement.disposition == Disposition::Accepted).then(|| modelled_cost(descriptor, judgement.units)).flatten()
    });
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
    }
}

/// The cost model's price for so many units (one, where the answer did not say).
fn modelled_cost(descriptor: &Descriptor, units: Option<u32>) -> Option<Cost> {
    let micros = descriptor.cost_model.get("micros")?.as_i64()?;
    let currency = descriptor.cost_model.get("currency")?.as_str()?.to_owned();
    Some(Cost { micros: micros.checked_mul(units.unwrap_or(1).into())?, currency })
}
