//! Experiments: a variant that decides in place of the live version for a stable part of the recipients, or is asked
//! beside it without being followed; and the differences of two answers.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    RuleSet,
    allowance::{Grant, within},
    rulebook::{Failure, MessageJudgement, Rulebook, Running},
    ruling::{Canary, Ruling},
    script::{
        Given, Hook, bucket,
        facts::{AttemptFacts, CandidateFacts, ContextFacts, DeliveryFacts},
    },
};
use angarium_domain::{
    experiment::{Arm, ExperimentKind, ExperimentMode},
    ids::{ExperimentId, MessageId},
    message::{Body, Message, address::comparable},
    rule_input::RuleInput,
};

/// A running experiment.
#[derive(Debug, Clone)]
pub struct Experiment {
    pub id: ExperimentId,
    pub kind: ExperimentKind,
    /// The script's name, or the rule's id.
    pub subject: String,
    /// The variant's.
    pub version: i32,
    pub mode: ExperimentMode,
    pub variant: Variant,
}

/// The version that replaces the live one.
#[derive(Debug, Clone)]
pub enum Variant {
    /// The script of its name.
    Script(Arc<Running>),
    /// All rules: the same with one of them changed.
    Rules(Arc<RuleSet>),
}

impl Experiment {
    /// The version of a script that it is.
    #[must_use]
    pub const fn script(&self) -> Option<&Arc<Running>> {
        match &self.variant {
            Variant::Script(script) => Some(script),
            Variant::Rules(_) => None,
        }
    }

    /// Whether it was switched off by its own failures: the live version decides then.
    #[must_use]
    pub fn is_off(&self) -> bool {
        match &self.variant {
            Variant::Script(script) => script.off_since().is_some(),
            Variant::Rules(_) => false,
        }
    }

    /// Whether it decides about messages to this recipient. The version is not part of the hash, so that a recipient
    /// stays in while the percentage grows.
    #[must_use]
    pub fn takes(&self, recipient: &str) -> bool {
        let share = |percentage: u8| bucket(&comparable(recipient), &self.subject) < i64::from(percentage) * 100;
        self.mode.percentage().is_some_and(share) && !self.is_off()
    }

    /// The same with a breaker of its own.
    #[must_use]
    pub fn rehearsal(&self) -> Self {
        let variant = match &self.variant {
            Variant::Script(script) => Variant::Script(Arc::new(script.rehearsal())),
            Variant::Rules(rules) => Variant::Rules(Arc::clone(rules)),
        };
        Self { variant, ..self.clone() }
    }

    /// Returns the arm that decided about a message.
    #[must_use]
    pub fn arm(&self, canaries: &[Canary]) -> Arm {
        if canaries.iter().any(|it| it.experiment == self.id) { Arm::Variant } else { Arm::Live }
    }

    fn canary(&self) -> Canary {
        Canary { experiment: self.id, of: self.subject.clone(), version: self.version }
    }

    /// Whether it, or the live version in its place, has this hook; scores belong to the route.
    fn has(&self, book: &Rulebook, hook: Hook) -> bool {
        match &self.variant {
            Variant::Rules(_) => hook == Hook::Admit,
            Variant::Script(script) => {
                let live = |it: &Arc<Running>| it.name == script.name && it.takes_part(hook);
                script.takes_part(hook) || book.scripts.iter().any(live)
            }
        }
    }
}

impl Rulebook {
    /// Returns the same with a variant in place of the live version.
    #[must_use]
    pub fn trying(&self, variant: &Variant) -> Self {
        let mut book = self.clone();
        match variant {
            Variant::Rules(rules) => book.rules = Some(Arc::clone(rules)),
            Variant::Script(script) => {
                book.scripts.retain(|it| it.name != script.name);
                let after = book.scripts.iter().position(|it| it.name > script.name);
                book.scripts.insert(after.unwrap_or(book.scripts.len()), Arc::clone(script));
            }
        }
        book
    }

    /// Returns the same without its experiments.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.experiments.clear();
        self
    }

    /// Returns the rule book for a recipient, and the canaries that include it.
    #[must_use]
    pub fn for_recipient(&self, input: &RuleInput) -> (Cow<'_, Self>, Vec<Canary>) {
        let taken = self.experiments.iter().filter(|experiment| experiment.takes(input.recipient()));
        let in_place = |(book, mut canaries): (Cow<'_, Self>, Vec<Canary>), experiment: &Experiment| {
            canaries.push(experiment.canary());
            (Cow::Owned(book.trying(&experiment.variant)), canaries)
        };
        taken.fold((Cow::Borrowed(self), Vec::new()), in_place)
    }

    /// Returns the rule book that continues to decide about a message: with the canaries of its acceptance, while they
    /// run.
    #[must_use]
    pub fn for_message(&self, message: &Message) -> Cow<'_, Self> {
        if self.canaries().next().is_none() {
            return Cow::Borrowed(self);
        }
        let met = Ruling::of(message).map(|ruling| ruling.canaries).unwrap_or_default();
        let serving = self.canaries().filter(|experiment| experiment.arm(&met) == Arm::Variant && !experiment.is_off());
        serving.fold(Cow::Borrowed(self), |book, experiment| Cow::Owned(book.trying(&experiment.variant)))
    }

    /// The experiments whose variants decide about a part of the recipients.
    pub fn canaries(&self) -> impl Iterator<Item = &Experiment> {
        self.experiments.iter().filter(|it| it.mode.percentage().is_some())
    }

    /// The experiments whose variants are asked about this and not followed.
    pub fn shadows(&self, hook: Hook) -> impl Iterator<Item = &Experiment> {
        self.experiments
            .iter()
            .filter(move |it| it.mode == ExperimentMode::Shadow && !it.is_off() && it.has(self, hook))
    }
}

/// A hook's question, with all of its input.
#[derive(Debug, Clone)]
pub enum ShadowQuestion {
    /// A message before rules had their say.
    Admit(Box<Message>),
    Route {
        message: Arc<Message>,
        candidates: Vec<CandidateFacts>,
    },
    Retry {
        message: Arc<Message>,
        script: String,
        attempt: Box<AttemptFacts>,
    },
    /// Whether a message goes now, as the script that it names says.
    Condition {
        message: Arc<Message>,
        script: String,
        context: Box<ContextFacts>,
    },
    /// Asks for the follow-ups of a delivery that ended.
    OnOutcome {
        message: Box<Message>,
        delivery: Box<DeliveryFacts>,
    },
}

impl ShadowQuestion {
    /// Asks whether an incoming message is to be accepted, without the parts that no rule reads.
    #[must_use]
    pub fn admit(message: &Message) -> Self {
        Self::Admit(Box::new(slim(message)))
    }

    /// Returns the question after a delivery's end, without the parts that no script reads.
    #[must_use]
    pub fn on_outcome(message: &Message, delivery: DeliveryFacts) -> Self {
        Self::OnOutcome { message: Box::new(slim(message)), delivery: Box::new(delivery) }
    }

    #[must_use]
    pub fn message(&self) -> &Message {
        match self {
            Self::Admit(message) | Self::OnOutcome { message, .. } => message,
            Self::Route { message, .. } | Self::Retry { message, .. } | Self::Condition { message, .. } => message,
        }
    }

    /// Returns the shadows to ask, whose answers are not followed.
    pub fn shadows<'a>(&'a self, book: &'a Rulebook) -> impl Iterator<Item = &'a Experiment> {
        book.shadows(self.hook()).filter(|experiment| match self {
            Self::Admit(_) | Self::Route { .. } | Self::OnOutcome { .. } => true,
            Self::Retry { script, .. } | Self::Condition { script, .. } => experiment.subject == *script,
        })
    }

    #[must_use]
    pub const fn hook(&self) -> Hook {
        match self {
            Self::Admit(_) => Hook::Admit,
            Self::Route { .. } => Hook::Route,
            Self::Retry { .. } => Hook::Retry,
            Self::Condition { .. } => Hook::Condition,
            Self::OnOutcome { .. } => Hook::OnOutcome,
        }
    }
}

/// Returns the parts of a message that rules and scripts read.
fn slim(message: &Message) -> Message {
    let Body { attributes, contact, context, ruling, .. } = &message.body;
    let (attributes, contact, context, ruling) = (attributes.clone(), contact.clone(), context.clone(), ruling.clone());
    Message {
        id: message.id,
        created_at: message.created_at,
        priority: message.priority,
        send_at: message.send_at,
        expires_at: message.expires_at,
        reference: message.reference.clone(),
        batch: None,
        ordering_key: None,
        legs: message.legs.with_only(message.first().excerpt()),
        body: Body { attributes, contact, context, ruling, ..Body::default() },
        abridged: message.abridged,
    }
}

/// The answers of all scripts together, by members of known names.
pub type Said = BTreeMap<&'static str, Value>;

/// A differing answer of a shadow.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    pub live: Said,
    pub variant: Said,
}

/// The result of asking a shadow.
#[derive(Debug, Default)]
pub struct Comparison {
    /// `None` if it answers the same.
    pub difference: Option<Difference>,
    /// How often the variant failed.
    pub faults: usize,
}

/// Asks a shadow, and the live version once more, on the same facts and at the same time. Failures of the live version
/// do not count; the variant's own failures switch it off in time. Each has the time of a message.
#[must_use]
pub fn compare(
    book: &Rulebook,
    experiment: &Experiment,
    question: &ShadowQuestion,
    given: &Given,
    time: Duration,
) -> Comparison {
    let serving = match question {
        ShadowQuestion::Admit(message) => book.for_recipient(&RuleInput::of(message)).0,
        decided => book.for_message(decided.message()),
    };
    let live = serving.rehearsal().alone();
    let variant = live.trying(&experiment.variant);
    let said = |book| within(Grant::of_message(time), || said(book, question, given)).0;
    let ((live, _), (variant, failures)) = (said(&live), said(&variant));
    let is_its = |script: &&String| experiment.kind == ExperimentKind::Script && **script == experiment.subject;
    Comparison { difference: difference(&live, &variant), faults: failures.iter().filter(is_its).count() }
}

/// Returns the members in which two answers differ, with both values; `None` if they are equal.
#[must_use]
pub fn difference(live: &Said, variant: &Said) -> Option<Difference> {
    let other = |one: &Said, other: &Said| -> Said {
        let differs = |(name, value): &(&&'static str, &Value)| other.get(*name) != Some(*value);
        one.iter().filter(differs).map(|(name, value)| (*name, value.clone())).collect()
    };
    let (live, variant) = (other(live, variant), other(variant, live));
    (!live.is_empty() || !variant.is_empty()).then_some(Difference { live, variant })
}

/// Returns a book's answer to a question, and the names of the scripts that failed.
fn said(book: &Rulebook, question: &ShadowQuestion, given: &Given) -> (Said, Vec<String>) {
    match question {
        ShadowQuestion::Admit(message) => {
            let mut message = Message::clone(message);
            let judgement = book.admit(&mut message, given);
            let failed = judgement.failures.iter().map(|it| it.script.clone()).collect();
            (said_of(&message, &judgement), failed)
        }
        ShadowQuestion::Route { message, candidates } => {
            let routed = book.route(&RuleInput::of(message), candidates, given);
            let mut said = Said::new();
            said.extend(routed.order.map(|order| ("candidates", json!(order))));
            faults(&mut said, routed.failures.iter().map(|it| it.fault.to_string()));
            (said, routed.failures.into_iter().map(|it| it.script).collect())
        }
        ShadowQuestion::Retry { script, attempt, .. } => of_one("retry", book.retry(script, attempt, given)),
        ShadowQuestion::Condition { script, context, .. } => of_one("goes", book.condition(script, context, given)),
        ShadowQuestion::OnOutcome { delivery, .. } => {
            let (followed, failures) = book.on_outcome(delivery, given);
            let speaking = followed.iter().filter(|it| !it.is_silent());
            let mut said: Said = Said::new();
            let follows: BTreeMap<_, _> = speaking.map(|it| (&it.script, &it.said)).collect();
            said.extend((!follows.is_empty()).then(|| ("follows", json!(follows))));
            faults(&mut said, failures.iter().map(|it| it.fault.to_string()));
            (said, failures.into_iter().map(|it| it.script).collect())
        }
    }
}

/// Returns the answer of one script, if there is one.
fn of_one<T: Serialize>(member: &'static str, answer: Option<Result<T, Failure>>) -> (Said, Vec<String>) {
    match answer {
        None => (Said::new(), Vec::new()),
        Some(Ok(answer)) => (Said::from([(member, json!(answer))]), Vec::new()),
        Some(Err(failure)) => {
            let mut said = Said::new();
            faults(&mut said, [failure.fault.to_string()]);
            (said, vec![failure.script])
        }
    }
}

/// Returns the decision about an incoming message.
#[must_use]
pub fn said_of(message: &Message, judgement: &MessageJudgement) -> Said {
    let mut said = Said::new();
    if let Some(refused) = &judgement.refused {
        said.insert("refused", json!({"by": refused.by, "name": refused.name, "reason": refused.reason}));
    }
    said.insert("priority", json!(message.priority));
    said.extend(message.send_at.map(|at| ("send_at", json!(at))));
    said.extend(message.first().content.from.as_ref().map(|from| ("sender", json!(from.address))));
    let attributes = message.body.attributes.as_deref().and_then(|raw| serde_json::from_str(raw.get()).ok());
    said.extend(attributes.map(|attributes: Value| ("attributes", attributes)));
    if let Some(decision) = &judgement.ruling.decision {
        said.extend(decision.channels.as_ref().map(|it| ("channels", json!(it.value))));
        said.extend(decision.template.as_ref().map(|it| ("template", json!(it.value))));
        let order: Vec<_> = decision.candidates.iter().map(|it| &it.connection).collect();
        said.extend((!order.is_empty()).then(|| ("connections", json!(order))));
    }
    faults(&mut said, judgement.failures.iter().map(|it| it.fault.to_string()));
    said
}

fn faults(said: &mut Said, faults: impl IntoIterator<Item = String>) {
    let faults: Vec<_> = faults.into_iter().collect();
    said.extend((!faults.is_empty()).then(|| ("faults", json!(faults))));
}

/// Returns a number from 0 to below 1 that depends only on the message: for playing it again.
#[must_use]
pub fn chance_of(message: MessageId) -> f64 {
    bucket(&message.to_string(), "chance") as f64 / 10_000.0
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        language::Language,
        script::{Modules, Script},
    };
    use angarium_domain::{
        ids::RuleId,
        legs::Leg,
        message::{Address, Priority},
    };

    const GIVEN: Given = Given { now: Timestamp::UNIX_EPOCH, chance: 0.5 };
    const TIME: Duration = Duration::from_secs(5);

    fn message(to: &str) -> Message {
        let to = Some(Address { address: to.into(), name: None });
        Message::with(Leg { to, ..Leg::on("sms".parse().unwrap()) }, Body::default())
    }

    fn running(name: &str, version: i32, source: &str) -> Arc<Running> {
        let script = Script::compile(name, source, &Modules::none()).unwrap();
        let script = script.allowing(std::time::Duration::from_secs(5));
        Arc::new(Running::new(name.to_owned(), version, source.into(), script))
    }

    fn experiment(mode: ExperimentMode, source: &str) -> Experiment {
        let variant = Variant::Script(running("gate", 2, source));
        Experiment {
            id: ExperimentId::new(),
            kind: ExperimentKind::Script,
            subject: "gate".into(),
            version: 2,
            mode,
            variant,
        }
    }

    fn book(experiment: Experiment) -> Rulebook {
        let live = running("gate", 1, "fn admit(message) { #{priority: \"high\"} }");
        Rulebook { rules: None, scripts: vec![live], experiments: vec![experiment], rehearses: false }
    }

    fn set(then: Value) -> Arc<RuleSet> {
        let spec = serde_json::from_value(json!({"name": "All", "then": then})).unwrap();
        Arc::new(RuleSet::compile(vec![(RuleId::new(), spec)], Box::<Language>::default()).unwrap())
    }

    fn recipients() -> impl Iterator<Item = String> {
        (0..1000).map(|number| format!("+4670{number:07}"))
    }

    #[test]
    fn a_canary_keeps_who_was_in_when_it_grows() {
        let source = "fn admit(message) { #{priority: \"low\"} }";
        let (small, large) = (
            experiment(ExperimentMode::Canary { percentage: 10 }, source),
            experiment(ExperimentMode::Canary { percentage: 40 }, source),
        );
        let taken: Vec<_> = recipients().filter(|it| small.takes(it)).collect();
        assert!((60..140).contains(&taken.len()), "{}", taken.len());
        assert!(taken.iter().all(|it| large.takes(it)));
        assert!((340..460).contains(&recipients().filter(|it| large.takes(it)).count()));
    }

    #[test]
    fn without_an_address_the_contact_decides() {
        let source = "fn admit(message) { #{priority: \"low\"} }";
        let book = book(experiment(ExperimentMode::Canary { percentage: 50 }, source));
        let taken = (0..100).filter(|number| {
            let mut message = message("");
            message.first_mut().to = None;
            message.body.contact =
                serde_json::value::to_raw_value(&serde_json::json!({"id": format!("c{number}")})).ok();
            book.admit(&mut message, &GIVEN);
            message.priority == Priority::Low
        });
        assert!((25..75).contains(&taken.count()));
    }

    #[test]
    fn a_message_meets_the_same_version_in_every_hook() {
        let source = "fn admit(message) { #{priority: \"low\"} }";
        let mut book = book(experiment(ExperimentMode::Canary { percentage: 50 }, source));
        let mut met = [0, 0];
        for recipient in recipients().take(50) {
            let mut message = message(&recipient);
            let judgement = book.admit(&mut message, &GIVEN);
            let taken = book.experiments[0].takes(&recipient);
            assert_eq!(message.priority, if taken { Priority::Low } else { Priority::High });
            assert_eq!(judgement.ruling.scripts[0].version, if taken { 2 } else { 1 });
            assert_eq!(book.for_message(&message).scripts[0].version, judgement.ruling.scripts[0].version);
            met[usize::from(taken)] += 1;
            // Later versions of the same rule do not change the recorded one.
            book.experiments[0].mode = ExperimentMode::Canary { percentage: 1 };
            assert_eq!(book.for_message(&message).scripts[0].version, judgement.ruling.scripts[0].version);
            book.experiments[0].mode = ExperimentMode::Canary { percentage: 50 };
        }
        assert!(met.iter().all(|it| *it > 10), "{met:?}");
    }

    #[test]
    fn a_shadow_tells_its_differences_and_changes_nothing() {
        let refuses =
            "fn admit(message) { if message.to.ends_with(\"1\") { return refuse(\"odd\") } #{priority: \"high\"} }";
        let book = book(experiment(ExperimentMode::Shadow, refuses));
        let asked = |to: &str| {
            compare(&book, &book.experiments[0], &ShadowQuestion::admit(&message(to)), &GIVEN, TIME).difference
        };
        assert_eq!(asked("+46700000002"), None);
        let Difference { live, variant } = asked("+46700000001").unwrap();
        assert_eq!(live, Said::from([("priority", json!("high"))]));
        assert_eq!(variant["refused"]["reason"], "odd");
        let mut kept = message("+46700000001");
        assert!(book.admit(&mut kept, &GIVEN).refused.is_none());
    }

    #[test]
    fn a_shadow_that_fails_is_switched_off_alone() {
        let book = book(experiment(ExperimentMode::Shadow, "fn admit(message) { throw \"no\" }"));
        let question = ShadowQuestion::admit(&message("+46700000001"));
        let faults: usize = (0..20).map(|_| compare(&book, &book.experiments[0], &question, &GIVEN, TIME).faults).sum();
        assert_eq!((faults, book.shadows(Hook::Admit).count()), (20, 0));
        assert_eq!(book.scripts[0].off_since(), None);
    }

    #[test]
    fn differences_of_rules_are_members_of_the_decision() {
        let (live, variant) = (set(json!({"channels": "sms"})), set(json!({"channels": "email", "sender": "ACME"})));
        let experiment = Experiment {
            id: ExperimentId::new(),
            kind: ExperimentKind::Rule,
            subject: "rule_1".into(),
            version: 1,
            mode: ExperimentMode::Shadow,
            variant: Variant::Rules(variant),
        };
        let book = Rulebook { rules: Some(live), scripts: Vec::new(), experiments: vec![experiment], rehearses: false };
        let compared =
            compare(&book, &book.experiments[0], &ShadowQuestion::admit(&message("+46700000001")), &GIVEN, TIME);
        let Difference { live, variant } = compared.difference.unwrap();
        assert_eq!(live, Said::from([("channels", json!(["sms"]))]));
        assert_eq!(variant, Said::from([("channels", json!(["email"])), ("sender", json!("ACME"))]));
    }
}
