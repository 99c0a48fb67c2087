//! Results of experiments: counts of canaries and of the live versions beside them, and shadows' differences. No
//! delivery waits for them: a node counts in memory, asks shadows after the answer on a thread of their own, and writes
//! its counts each second. A node that dies loses its unwritten counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;

use crate::{clock, engine::rule_runner::RuleRunner, node::telemetry};
use angarium_domain::{
    experiment::{Arm, ExperimentCount, ExperimentKind},
    ids::{DifferenceId, ExperimentId, MessageId, TenantId},
    message::Message,
};
use angarium_rules::{
    experiment::{Comparison, Experiment, Said, ShadowQuestion, compare},
    rulebook::{MessageJudgement, Rulebook},
    ruling::{Canary, Ruling},
    script::Given,
};
use angarium_store::{
    self as store, Store,
    experiment::{DifferenceRow, ExperimentKey, difference_insert, experiment_count_add, experiment_message_add},
};

/// The most questions that wait for shadows; further ones are dropped, and counted.
const WAITING: usize = 4096;
/// The same of one tenant, so that there is room for others.
const WAITING_OF_TENANT: usize = WAITING / 4;
/// Questions that are answered in one go.
const AT_ONCE: usize = 64;
/// How long counts gather.
const PAUSE: Duration = Duration::from_secs(1);
/// The most differences, and the most messages to follow, that a node writes down at a time.
const MOST: usize = 1000;

/// A question, and the shadows to ask.
struct Asked {
    tenant: TenantId,
    book: Arc<Rulebook>,
    question: ShadowQuestion,
    given: Given,
}

/// The counts that are not written yet.
#[derive(Default)]
struct Gathered {
    counts: HashMap<(ExperimentKey, Arm, ExperimentCount), i64>,
    messages: Vec<(ExperimentKey, MessageId, Arm)>,
    differences: Vec<(ExperimentKey, DifferenceRow)>,
}

impl Gathered {
    fn count(&mut self, experiment: ExperimentKey, arm: Arm, what: ExperimentCount, number: usize) {
        if number > 0 {
            *self.counts.entry((experiment, arm, what)).or_default() += i64::try_from(number).unwrap_or(i64::MAX);
        }
    }

    fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.messages.is_empty() && self.differences.is_empty()
    }
}

/// This node's experiments.
pub struct Experiments {
    gathered: Mutex<Gathered>,
    /// Questions of each tenant that wait.
    waiting: Mutex<HashMap<TenantId, usize>>,
    questions: mpsc::Sender<Asked>,
}

/// Asks the shadows, and writes the gathered counts.
pub struct Recorder {
    experiments: Arc<Experiments>,
    rules: Arc<RuleRunner>,
    store: Store,
    questions: mpsc::Receiver<Asked>,
}

impl Experiments {
    #[must_use]
    pub fn new(store: Store, rules: Arc<RuleRunner>) -> (Arc<Self>, Recorder) {
        let (sender, questions) = mpsc::channel(WAITING);
        let experiments = Arc::new(Self { gathered: Mutex::default(), waiting: Mutex::default(), questions: sender });
        let recorder = Recorder { experiments: Arc::clone(&experiments), rules, store, questions };
        (experiments, recorder)
    }

    /// Counts, for each canary, the result of an incoming message.
    pub fn judged(&self, tenant: TenantId, book: &Rulebook, message: &Message, judgement: &MessageJudgement) {
        if book.canaries().next().is_none() {
            return;
        }
        let Ruling { original, canaries, .. } = &judgement.ruling;
        let (refused, held) = (judgement.refused.is_some(), original.send_at.is_some());
        let mut gathered = self.gathered();
        for experiment in book.canaries() {
            let (key, arm) = ((tenant, experiment.id), experiment.arm(canaries));
            gathered.count(key, arm, ExperimentCount::Asked, 1);
            gathered.count(key, arm, ExperimentCount::Refused, usize::from(refused));
            gathered.count(key, arm, ExperimentCount::Held, usize::from(held && !refused));
            gathered.count(key, arm, ExperimentCount::Faults, rule_faults(experiment, judgement));
            if !refused && gathered.messages.len() < MOST {
                gathered.messages.push((key, message.id, arm));
            }
        }
    }

    /// Counts a failure of a script, for the variant if it is among the canaries that decided.
    pub fn failed(&self, tenant: TenantId, book: &Rulebook, canaries: &[Canary], script: &str) {
        let Some(experiment) = book.canaries().find(|it| it.subject == script) else { return };
        self.gathered().count((tenant, experiment.id), experiment.arm(canaries), ExperimentCount::Faults, 1);
    }

    /// Asks shadows the question of the live versions; the caller continues at once.
    pub fn ask(&self, tenant: TenantId, book: &Arc<Rulebook>, question: ShadowQuestion, given: Given) {
        let asked = Asked { tenant, book: Arc::clone(book), question, given };
        if !self.wait(tenant) {
            return self.dropped(&asked);
        }
        let Err(TrySendError::Full(asked) | TrySendError::Closed(asked)) = self.questions.try_send(asked) else {
            return;
        };
        self.waits_no_more(tenant);
        self.dropped(&asked);
    }

    /// Counts one more question of a tenant's that waits, unless it has as many as one tenant may have.
    fn wait(&self, tenant: TenantId) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(tenant).or_default();
        let fits = *count < WAITING_OF_TENANT;
        *count += usize::from(fits);
        fits
    }

    fn waits_no_more(&self, tenant: TenantId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&tenant) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&tenant);
            }
        }
    }

    /// Counts a question that the shadows are not asked.
    fn dropped(&self, asked: &Asked) {
        asked.question.shadows(&asked.book).for_each(|experiment| self.count_dropped(asked, experiment.id));
    }

    fn count_dropped(&self, asked: &Asked, experiment: ExperimentId) {
        self.gathered().count((asked.tenant, experiment), Arm::Variant, ExperimentCount::Dropped, 1);
        telemetry::shadow_dropped();
    }

    fn compared(&self, asked: &Asked, experiment: ExperimentId, comparison: Comparison) {
        let (key, mut gathered) = ((asked.tenant, experiment), self.gathered());
        gathered.count(key, Arm::Variant, ExperimentCount::Asked, 1);
        gathered.count(key, Arm::Variant, ExperimentCount::Faults, comparison.faults);
        let Some(difference) = comparison.difference else { return };
        gathered.count(key, Arm::Variant, ExperimentCount::Different, 1);
        if gathered.differences.len() < MOST {
            let row = DifferenceRow {
                id: DifferenceId::new(),
                message: asked.question.message().id,
                hook: asked.question.hook().as_str().to_owned(),
                live: json(&difference.live),
                variant: json(&difference.variant),
                at: clock::now(),
            };
            gathered.differences.push((key, row));
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how often the rule of an experiment failed. Failures of scripts are counted where they are asked.
fn rule_faults(experiment: &Experiment, judgement: &MessageJudgement) -> usize {
    let faults = judgement.ruling.decision.iter().flat_map(|decision| &decision.faults);
    faults.filter(|it| experiment.kind == ExperimentKind::Rule && it.rule.to_string() == experiment.subject).count()
}

fn json(said: &Said) -> String {
    // Texts with plain data always have a JSON form.
    serde_json::to_string(said).unwrap_or_default()
}

impl Recorder {
    /// Runs until it is stopped, and then writes the remaining counts.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut next = tokio::time::interval(PAUSE);
        next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut asked = Vec::with_capacity(AT_ONCE);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = next.tick() => self.write().await,
                count = self.questions.recv_many(&mut asked, AT_ONCE) => {
                    if count == 0 {
                        break;
                    }
                    self.answer(std::mem::take(&mut asked)).await;
                }
            }
        }
        self.write().await;
    }

    async fn answer(&self, asked: Vec<Asked>) {
        for asked in asked {
            self.experiments.waits_no_more(asked.tenant);
            for experiment in asked.question.shadows(&asked.book) {
                let compare = |time| compare(&asked.book, experiment, &asked.question, &asked.given, time);
                match self.rules.shadow(asked.tenant, compare).await {
                    Some(comparison) => self.experiments.compared(&asked, experiment.id, comparison),
                    None => self.experiments.count_dropped(&asked, experiment.id),
                }
            }
        }
    }

    async fn write(&self) {
        let gathered = std::mem::take(&mut *self.experiments.gathered());
        if gathered.is_empty() {
            return;
        }
        if let Err(error) = write(&self.store, &gathered).await {
            tracing::warn!(%error, "the results of experiments are not written yet; they are tried again");
            let mut later = self.experiments.gathered();
            for (what, number) in gathered.counts {
                *later.counts.entry(what).or_default() += number;
            }
        }
    }
}

async fn write(store: &Store, gathered: &Gathered) -> store::Result<()> {
    let counts: Vec<_> =
        gathered.counts.iter().map(|((experiment, arm, what), number)| (*experiment, *arm, *what, *number)).collect();
    let mut txn = store.worker().await?;
    experiment_count_add(&mut txn, &counts).await?;
    experiment_message_add(&mut txn, &gathered.messages).await?;
    difference_insert(&mut txn, &gathered.differences).await?;
    txn.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::engine::rule_runner::RuleTimes;
    use angarium_domain::{
        experiment::ExperimentMode,
        legs::Leg,
        message::{Address, Body},
    };
    use angarium_rules::{
        experiment::Variant,
        rulebook::Running,
        script::{Modules, Script},
    };

    const GIVEN: Given = Given { now: Timestamp::UNIX_EPOCH, chance: 0.5 };

    fn book(mode: ExperimentMode, source: &str) -> Arc<Rulebook> {
        let running = |version, source: &str| {
            let script = Script::compile("gate", source, &Modules::none()).unwrap();
            Arc::new(Running::new("gate".into(), version, source.into(), script.allowing(Duration::from_secs(5))))
        };
        let variant = Variant::Script(running(2, source));
        let experiment = Experiment {
            id: ExperimentId::new(),
            kind: ExperimentKind::Script,
            subject: "gate".into(),
            version: 2,
            mode,
            variant,
        };
        let live = running(1, "fn admit(message) { allow() }");
        Arc::new(Rulebook { rules: None, scripts: vec![live], experiments: vec![experiment], rehearses: false })
    }

    fn message(to: &str) -> Message {
        let to = Some(Address { address: to.into(), name: None });
        Message::with(Leg { to, ..Leg::on("sms".parse().unwrap()) }, Body::default())
    }

    fn experiments() -> (Arc<Experiments>, Recorder) {
        let times = RuleTimes { message: Duration::from_secs(5), tenant: Duration::from_secs(60) };
        let rules = RuleRunner::new(times);
        // Nothing is connected before the first use.
        Experiments::new(Store::new("postgres://nobody@localhost/none", 1).unwrap(), rules)
    }

    fn counted(experiments: &Experiments, arm: Arm, what: ExperimentCount) -> i64 {
        let gathered = experiments.gathered();
        gathered.counts.iter().filter(|((_, it, of), _)| *it == arm && *of == what).map(|(_, count)| count).sum()
    }

    #[tokio::test]
    async fn what_a_shadow_cannot_keep_up_with_is_dropped_and_counted() {
        let ((experiments, mut recorder), tenant) = (experiments(), TenantId::new());
        let book = book(ExperimentMode::Shadow, "fn admit(message) { refuse(\"no\") }");
        for _ in 0..WAITING_OF_TENANT + 3 {
            experiments.ask(tenant, &book, ShadowQuestion::admit(&message("+4670")), GIVEN);
        }
        assert_eq!(counted(&experiments, Arm::Variant, ExperimentCount::Dropped), 3);
        experiments.ask(TenantId::new(), &book, ShadowQuestion::admit(&message("+4670")), GIVEN);
        assert_eq!(counted(&experiments, Arm::Variant, ExperimentCount::Dropped), 3, "there is room for others");
        let mut waiting = Vec::new();
        recorder.questions.recv_many(&mut waiting, 5).await;
        recorder.answer(waiting).await;
        let both =
            [ExperimentCount::Asked, ExperimentCount::Different].map(|what| counted(&experiments, Arm::Variant, what));
        assert_eq!((both, experiments.gathered().differences.len()), ([5, 5], 5));
    }

    #[tokio::test]
    async fn a_canary_and_what_is_live_are_counted_apart() {
        let ((experiments, _recorder), tenant) = (experiments(), TenantId::new());
        let book = book(
            ExperimentMode::Canary { percentage: 50 },
            "fn admit(message) { hold_until(add_seconds(now(), 60), \"later\") }",
        );
        for number in 0..100 {
            let mut message = message(&format!("+4670{number}"));
            let judgement = book.admit(&mut message, &GIVEN);
            experiments.judged(tenant, &book, &message, &judgement);
        }
        let of = |arm| {
            [ExperimentCount::Asked, ExperimentCount::Held, ExperimentCount::Refused]
                .map(|what| counted(&experiments, arm, what))
        };
        let ([variant, held, refused], [live, held_live, _]) = (of(Arm::Variant), of(Arm::Live));
        assert_eq!((variant + live, held, held_live, refused), (100, variant, 0, 0));
        assert!((20..80).contains(&variant), "{variant}");
        assert_eq!(experiments.gathered().messages.len(), 100);
    }
}
