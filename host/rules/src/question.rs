//! The questions of the hooks, each with all of its input, so that the live versions, the canaries and the shadows are
//! asked the same. Nothing here follows an answer.

use std::{borrow::Cow, slice, sync::Arc};

use super::{
    allowance::Spent,
    experiment::ShadowQuestion,
    rulebook::{Failure, Heard, Routed, Rulebook, ScriptFollowUp},
    ruling::{Canary, Ruling},
    script::{
        Given, Hook, RetryAnswer,
        facts::{AttemptFacts, CandidateFacts, ContextFacts, DeliveryFacts},
    },
};
use angarium_domain::{message::Message, rule_input::RuleInput};

/// A hook's question about one message.
pub trait HookQuestion: Sync {
    type Answer: Send;

    fn hook(&self) -> Hook;

    fn message(&self) -> &Message;

    /// The only script that is asked; `None` for all that define the hook.
    fn script(&self) -> Option<&str> {
        None
    }

    /// Returns the rule book that answers: with the canaries that decided at acceptance.
    fn serving<'b>(&self, book: &'b Rulebook) -> Cow<'b, Rulebook> {
        book.for_message(self.message())
    }

    /// Asks the rules and scripts of a book.
    fn ask(&self, book: &Rulebook, given: &Given) -> Self::Answer;

    /// Returns the failures of the scripts that were asked.
    fn failures<'a>(&self, answer: &'a Self::Answer) -> &'a [Failure];

    /// Returns the canaries that had a part in the answer.
    fn canaries(&self, _: &Self::Answer) -> Vec<Canary> {
        Ruling::of(self.message()).map(|ruling| ruling.canaries).unwrap_or_default()
    }

    /// Describes what happens in place of a failed script's answer.
    fn instead(&self, _: &Self::Answer) -> &'static str {
        "the route decides"
    }

    /// Returns the question as shadows are asked it later; `None` if they are not.
    fn for_shadows(&self) -> Option<ShadowQuestion>;
}

/// Whether an incoming message is accepted, when, and how.
#[derive(Debug)]
pub struct AdmitQuestion<'a> {
    pub message: &'a Message,
    pub input: &'a RuleInput,
}

impl HookQuestion for AdmitQuestion<'_> {
    type Answer = Heard;

    fn hook(&self) -> Hook {
        Hook::Admit
    }

    fn message(&self) -> &Message {
        self.message
    }

    /// The canaries are chosen with the answer.
    fn serving<'b>(&self, book: &'b Rulebook) -> Cow<'b, Rulebook> {
        Cow::Borrowed(book)
    }

    fn ask(&self, book: &Rulebook, given: &Given) -> Heard {
        book.hear(self.input, self.message, given)
    }

    fn failures<'a>(&self, answer: &'a Heard) -> &'a [Failure] {
        &answer.failures
    }

    fn canaries(&self, answer: &Heard) -> Vec<Canary> {
        answer.canaries.clone()
    }

    fn instead(&self, answer: &Heard) -> &'static str {
        let closed = answer.refused.is_some() || answer.on_hold.is_some();
        if closed { "the message is not let through" } else { "the message is taken as without it" }
    }

    fn for_shadows(&self) -> Option<ShadowQuestion> {
        Some(ShadowQuestion::admit(self.message))
    }
}

/// The same about a message that waits for the answer since its acceptance.
#[derive(Debug)]
pub struct HoldQuestion<'a> {
    pub message: &'a Message,
}

impl HookQuestion for HoldQuestion<'_> {
    type Answer = Heard;

    fn hook(&self) -> Hook {
        Hook::Admit
    }

    fn message(&self) -> &Message {
        self.message
    }

    fn ask(&self, book: &Rulebook, given: &Given) -> Heard {
        book.hear_again(self.message, given)
    }

    fn failures<'a>(&self, answer: &'a Heard) -> &'a [Failure] {
        &answer.failures
    }

    fn instead(&self, _: &Heard) -> &'static str {
        "the message waits on"
    }

    /// They were asked at acceptance.
    fn for_shadows(&self) -> Option<ShadowQuestion> {
        None
    }
}

/// The order and selection of a route's candidates.
#[derive(Debug)]
pub struct RouteQuestion<'a> {
    pub message: &'a Message,
    pub input: &'a RuleInput,
    pub candidates: &'a [CandidateFacts],
}

impl HookQuestion for RouteQuestion<'_> {
    type Answer = Routed;

    fn hook(&self) -> Hook {
        Hook::Route
    }

    fn message(&self) -> &Message {
        self.message
    }

    fn ask(&self, book: &Rulebook, given: &Given) -> Routed {
        book.route(self.input, self.candidates, given)
    }

    fn failures<'a>(&self, answer: &'a Routed) -> &'a [Failure] {
        &answer.failures
    }

    fn for_shadows(&self) -> Option<ShadowQuestion> {
        let (message, candidates) = (Arc::new(self.message.clone()), self.candidates.to_vec());
        Some(ShadowQuestion::Route { message, candidates })
    }
}

/// The next step after an attempt, by the script of a name.
#[derive(Debug)]
pub struct RetryQuestion<'a> {
    pub message: &'a Arc<Message>,
    pub script: &'a str,
    pub attempt: &'a AttemptFacts,
}

impl HookQuestion for RetryQuestion<'_> {
    /// `None` if the script is not in service.
    type Answer = Option<Result<RetryAnswer, Failure>>;

    fn hook(&self) -> Hook {
        Hook::Retry
    }

    fn message(&self) -> &Message {
        self.message
    }

    fn script(&self) -> Option<&str> {
        Some(self.script)
    }

    fn ask(&self, book: &Rulebook, given: &Given) -> Self::Answer {
        book.retry(self.script, self.attempt, given)
    }

    fn failures<'a>(&self, answer: &'a Self::Answer) -> &'a [Failure] {
        failure_of(answer.as_ref())
    }

    fn for_shadows(&self) -> Option<ShadowQuestion> {
        let (message, script) = (Arc::clone(self.message), self.script.to_owned());
        Some(ShadowQuestion::Retry { message, script, attempt: Box::new(self.attempt.clone()) })
    }
}

/// Whether a message goes now, by the script of a name.
#[derive(Debug)]
pub struct ConditionQuestion<'a> {
    pub message: &'a Arc<Message>,
    pub script: &'a str,
    pub context: &'a ContextFacts,
}

impl HookQuestion for ConditionQuestion<'_> {
    /// `None` if the script is not in service.
    type Answer = Option<Result<bool, Failure>>;

    fn hook(&self) -> Hook {
        Hook::Condition
    }

    fn message(&self) -> &Message {
        self.message
    }

    fn script(&self) -> Option<&str> {
        Some(self.script)
    }

    fn ask(&self, book: &Rulebook, given: &Given) -> Self::Answer {
        book.condition(self.script, self.context, given)
    }

    fn failures<'a>(&self, answer: &'a Self::Answer) -> &'a [Failure] {
        failure_of(answer.as_ref())
    }

    fn instead(&self, answer: &Self::Answer) -> &'static str {
        let no_time = self.failures(answer).iter().any(Failure::had_no_time);
        if no_time { "the message waits" } else { "the message goes without it" }
    }

    fn for_shadows(&self) -> Option<ShadowQuestion> {
        let (message, script) = (Arc::clone(self.message), self.script.to_owned());
        Some(ShadowQuestion::Condition { message, script, context: Box::new(self.context.clone()) })
    }
}

/// The follow-ups of a delivery that ended.
#[derive(Debug)]
pub struct OutcomeQuestion<'a> {
    pub message: &'a Message,
    pub delivery: &'a DeliveryFacts,
}

impl HookQuestion for OutcomeQuestion<'_> {
    type Answer = (Vec<ScriptFollowUp>, Vec<Failure>);

    fn hook(&self) -> Hook {
        Hook::OnOutcome
    }

    fn message(&self) -> &Message {
        self.message
    }

    fn ask(&self, book: &Rulebook, given: &Given) -> Self::Answer {
        book.on_outcome(self.delivery, given)
    }

    fn failures<'a>(&self, (_, failures): &'a Self::Answer) -> &'a [Failure] {
        failures
    }

    fn instead(&self, _: &Self::Answer) -> &'static str {
        "nothing follows"
    }

    fn for_shadows(&self) -> Option<ShadowQuestion> {
        Some(ShadowQuestion::on_outcome(self.message, self.delivery.clone()))
    }
}

fn failure_of<T>(answer: Option<&Result<T, Failure>>) -> &[Failure] {
    answer.and_then(|it| it.as_ref().err()).map_or(&[], slice::from_ref)
}

impl Failure {
    /// Whether the script was not asked, since its tenant had no time left.
    #[must_use]
    pub fn had_no_time(&self) -> bool {
        self.fault.unasked() == Some(Spent::TenantTime)
    }

    /// Describes the failure for the record of an attempt.
    #[must_use]
    pub fn describe(&self) -> String {
        let what = if self.fault.unasked().is_some() { "was not asked" } else { "failed" };
        format!("the script {what}: {}", self.fault)
    }
}
