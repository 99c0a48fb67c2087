//! Scripts: what operators and tenants decide in the Rhai language.
//!
//! A script is a source with functions of known names, the [`Hook`]s. It receives plain data and returns plain data;
//! time and chance are arguments, and nothing else can be reached. It runs on its caller's thread, within [`limits`],
//! and each failure is a [`ScriptFault`], after which the caller uses its declared default.

mod answer;
mod breaker;
mod budget;
mod compile;
mod engine;
mod expression;
pub mod facts;
mod guarded;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod hostile_programs;
mod modules;
mod shared;
mod top;
mod vocabulary;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rhai::{AST, Dynamic, Engine, EvalAltResult, ParseError, Position};
use serde::Serialize;

pub use answer::{AdmitAnswer, AdmitVerdict, Choice, FollowUp, FollowUpMessage, RetryAnswer, Routing};
pub use breaker::{FailureBreaker, MAX_FAILURES, WINDOW};
pub use engine::limits;
pub use expression::{Expression, Seen};
pub use modules::{Modules, may_import};

use super::allowance::{self, Spent};
use angarium_domain::rule::Fails;
use answer::AnswerFault;
use facts::{AttemptFacts, CandidateFacts, ContextFacts, DeliveryFacts, MessageFacts};
use top::Top;

// The sources of the generated reference.
pub(super) use engine::{build as build_engine, vocabulary_only as vocabulary_engine};
pub(super) use expression::variables as expression_variables;
pub(super) use modules::Library;
// By which canaries split recipients too.
pub(super) use vocabulary::bucket;

/// The input of a decision beside its facts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Given {
    pub now: Timestamp,
    /// In 0..1.
    pub chance: f64,
}

/// A function that a script may define.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Admit,
    Route,
    Retry,
    OnOutcome,
    Condition,
    Score,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Admit, Self::Route, Self::Retry, Self::OnOutcome, Self::Condition, Self::Score];

    /// The function's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Route => "route",
            Self::Retry => "retry",
            Self::OnOutcome => "on_outcome",
            Self::Condition => "condition",
            Self::Score => "score",
        }
    }

    /// Returns the names of its parameters.
    #[must_use]
    pub const fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Admit => &["message"],
            Self::Route => &["message", "candidates"],
            Self::Retry => &["attempt"],
            Self::OnOutcome => &["delivery"],
            Self::Condition => &["context"],
            Self::Score => &["candidate"],
        }
    }
}

/// Why a source is no script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{script}{}: {reason}", place(*.line, *.column))]
pub struct ScriptError {
    pub script: String,
    /// From 1; `None` if it concerns the whole source.
    pub line: Option<u16>,
    pub column: Option<u16>,
    pub reason: String,
}

fn place(line: Option<u16>, column: Option<u16>) -> String {
    [line, column].into_iter().flatten().map(|number| format!(":{number}")).collect()
}

fn line_of(position: Position) -> Option<u16> {
    position.line().and_then(|it| u16::try_from(it).ok())
}

fn column_of(position: Position) -> Option<u16> {
    position.position().and_then(|it| u16::try_from(it).ok())
}

impl ScriptError {
    fn of_parse(script: &str, error: &ParseError) -> Self {
        let position = error.position();
        let reason = error.err_type().to_string().chars().take(MAX_REASON).collect();
        Self { script: script.to_owned(), line: line_of(position), column: column_of(position), reason }
    }

    fn of_run(script: &str, error: &EvalAltResult) -> Self {
        let (position, reason) = innermost(error);
        Self { script: script.to_owned(), line: line_of(position), column: column_of(position), reason }
    }
}

/// Returns the origin of an error, and its text without the place.
fn innermost(error: &EvalAltResult) -> (Position, String) {
    let mut error = error;
    let mut position = error.position();
    while let EvalAltResult::ErrorInFunctionCall(.., inner, _) | EvalAltResult::ErrorInModule(_, inner, _) = error {
        error = inner;
        position = if error.position().is_none() { position } else { error.position() };
    }
    let text = match error {
        // The language would print all that closures within the value hold.
        EvalAltResult::ErrorRuntime(value, _) if !value.is_unit() => {
            format!("Runtime error: {}", guarded::beginning(value, MAX_REASON))
        }
        EvalAltResult::ErrorDataRace(..) => IN_USE.to_owned(),
        error => error.to_string(),
    };
    let place = format!(" ({position})");
    let reason = text.strip_suffix(place.as_str()).unwrap_or(&text);
    (position, reason.chars().take(MAX_REASON).collect())
}

/// The language calls this a data race: a method holds the variable on whose part it is called.
const IN_USE: &str = "a function that is asked of a part of a variable is not allowed to use that variable: hand it over \
    as in `some(list, function)`, or keep the part in a variable of its own";

/// The longest reason of a fault, in characters: a script may throw a long text.
const MAX_REASON: usize = 512;

/// A limit that a script met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScriptLimit {
    Operations,
    Time,
    Calls,
    Size,
    Variables,
    Modules,
    Memory,
    /// The shared limit of a message or of a tenant.
    Together(Spent),
}

impl ScriptLimit {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operations => "it takes too many operations",
            Self::Time => "it takes too long",
            Self::Calls => "its functions call one another too deeply",
            Self::Size => "a text, list or map of it is too large",
            Self::Variables => "it has too many variables",
            Self::Modules => "it imports too many modules",
            Self::Memory => "it uses too much memory",
            Self::Together(spent) => spent.as_str(),
        }
    }

    fn of(error: &EvalAltResult) -> Option<Self> {
        match error.unwrap_inner() {
            EvalAltResult::ErrorTooManyOperations(_) => Some(Self::Operations),
            EvalAltResult::ErrorTerminated(..) => Some(Self::Time),
            EvalAltResult::ErrorStackOverflow(_) => Some(Self::Calls),
            EvalAltResult::ErrorDataTooLarge(..) => Some(Self::Size),
            EvalAltResult::ErrorTooManyVariables(_) => Some(Self::Variables),
            EvalAltResult::ErrorTooManyModules(_) => Some(Self::Modules),
            _ => None,
        }
    }
}

/// The kind of a fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScriptFaultKind {
    /// It threw, or did something impossible.
    Thrown,
    Limit(ScriptLimit),
    /// Its answer is not one: the field that is wrong, empty for the whole of it.
    Answer(String),
    /// The interpreter failed.
    Broken,
}

/// Whether a source is about to be stored, or is in service: a live source continues although a later version of the
/// gateway would refuse it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Age {
    #[default]
    New,
    Stored,
}

/// A script's fault in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{script}{} in `{function}`: {reason}", place(*.line, *.column))]
pub struct ScriptFault {
    pub script: String,
    pub function: String,
    pub kind: ScriptFaultKind,
    pub reason: String,
    pub line: Option<u16>,
    pub column: Option<u16>,
}

impl ScriptFault {
    /// Returns the reason for which it was not asked, or not to the end, if that is no fault of its own.
    #[must_use]
    pub const fn unasked(&self) -> Option<Spent> {
        match self.kind {
            ScriptFaultKind::Limit(ScriptLimit::Together(spent)) => Some(spent),
            ScriptFaultKind::Thrown
            | ScriptFaultKind::Limit(_)
            | ScriptFaultKind::Answer(_)
            | ScriptFaultKind::Broken => None,
        }
    }
}

/// A compiled script.
#[derive(Clone)]
pub struct Script {
    name: Arc<str>,
    engine: Arc<Engine>,
    tree: Arc<AST>,
    top: Arc<Top>,
    hooks: Vec<Hook>,
    /// The value of its constant [`FAILS`].
    fails: Option<Fails>,
    time: Duration,
}

/// The constant by which a script states the fate of a message if its `admit` fails.
const FAILS: &str = "FAILS";

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("name", &self.name).field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl Script {
    /// Compiles a source; `modules` is all that it can import.
    pub fn compile(name: &str, source: &str, modules: &Modules) -> Result<Self, ScriptError> {
        Self::compile_as(Age::New, name, source, modules)
    }

    /// The same of one that is in service.
    pub fn stored(name: &str, source: &str, modules: &Modules) -> Result<Self, ScriptError> {
        Self::compile_as(Age::Stored, name, source, modules)
    }

    fn compile_as(age: Age, name: &str, source: &str, modules: &Modules) -> Result<Self, ScriptError> {
        let tree = compile::statements(modules.engine(), name, source)?;
        let hooks = hooks_of(name, source, &tree)?;
        modules.check(name, &tree, age)?;
        let engine = Arc::clone(modules.engine_for(&tree));
        let evaluate = || Top::evaluate(&engine, &tree).map_err(|error| ScriptError::of_run(name, &error));
        let evaluate = || catch_unwind(AssertUnwindSafe(evaluate));
        let top = match budget::within(limits::OPERATIONS, compile::TIME, Given::default(), evaluate) {
            (Ok(Ok(top)), None) => top,
            (Ok(Err(error)), None) => return Err(error),
            (Ok(Err(error)), Some(limit)) => return Err(ScriptError { reason: limit.as_str().to_owned(), ..error }),
            (_, spent) => {
                let reason = spent.map_or("the interpreter failed", ScriptLimit::as_str).to_owned();
                return Err(ScriptError { script: name.to_owned(), line: None, column: None, reason });
            }
        };
        let fails = top.constant(FAILS).map(|value| fails_of(name, source, &value)).transpose()?;
        Ok(Self {
            name: name.into(),
            engine,
            fails,
            tree: Arc::new(tree),
            top: Arc::new(top),
            hooks,
            time: limits::TIME,
        })
    }

    /// Returns the same with another limit on time than [`limits::TIME`]: for runs that no message waits for.
    #[must_use]
    pub const fn allowing(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the hooks that it defines.
    #[must_use]
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    #[must_use]
    pub fn has(&self, hook: Hook) -> bool {
        self.hooks.contains(&hook)
    }

    /// Returns the script's own `FAILS`: the fate of a message if its `admit` fails.
    #[must_use]
    pub const fn fails(&self) -> Option<Fails> {
        self.fails
    }

    /// Whether a message is accepted, when, and how.
    pub fn admit(&self, message: &MessageFacts, given: &Given) -> Result<AdmitAnswer, ScriptFault> {
        self.ask(Hook::Admit, given, || Ok(vec![handed(message)?]), AdmitAnswer::read)
    }

    /// Orders the candidates and chooses the channels.
    pub fn route(
        &self,
        message: &MessageFacts,
        candidates: &[CandidateFacts],
        given: &Given,
    ) -> Result<Routing, ScriptFault> {
        self.ask(Hook::Route, given, || Ok(vec![handed(message)?, handed(candidates)?]), Routing::read)
    }

    /// Decides the reaction to an attempt that did not succeed.
    pub fn retry(&self, attempt: &AttemptFacts, given: &Given) -> Result<RetryAnswer, ScriptFault> {
        self.ask(Hook::Retry, given, || Ok(vec![handed(attempt)?]), RetryAnswer::read)
    }

    /// Decides the follow-ups of a delivery that ended.
    pub fn on_outcome(&self, delivery: &DeliveryFacts, given: &Given) -> Result<FollowUp, ScriptFault> {
        self.ask(Hook::OnOutcome, given, || Ok(vec![handed(delivery)?]), FollowUp::read)
    }

    /// Whether a scheduled send goes out.
    pub fn condition(&self, context: &ContextFacts, given: &Given) -> Result<bool, ScriptFault> {
        self.ask(Hook::Condition, given, || Ok(vec![handed(context)?]), answer::read_condition)
    }

    /// How good a candidate is: higher is better.
    pub fn score(&self, candidate: &CandidateFacts, given: &Given) -> Result<f64, ScriptFault> {
        self.ask(Hook::Score, given, || Ok(vec![handed(candidate)?]), answer::read_score)
    }

    /// Calls the hook's function. The facts become values of the language within the limits of the run.
    fn ask<T>(
        &self,
        hook: Hook,
        given: &Given,
        facts: impl FnOnce() -> Fallible<Vec<Dynamic>>,
        read: fn(&Dynamic) -> Result<T, AnswerFault>,
    ) -> Result<T, ScriptFault> {
        let function = hook.as_str();
        allowance::enter().map_err(|spent| limit_fault(&self.name, function, ScriptLimit::Together(spent)))?;
        let call = || self.top.call(&self.engine, &self.tree, function, facts()?);
        run(&self.name, function, self.time, given, call, read)
    }
}

/// Converts facts to a value of the language.
fn handed(facts: &(impl Serialize + ?Sized)) -> Fallible<Dynamic> {
    rhai::serde::to_dynamic(facts)
}

/// The result of the language's functions.
type Fallible<T> = Result<T, Box<EvalAltResult>>;

/// Runs one function within its limits, and reads its answer there too. A limit that was met counts, whatever the
/// function returned; and a panic in the interpreter ends the run, not the process.
fn run<T>(
    script: &str,
    function: &str,
    time: Duration,
    given: &Given,
    work: impl FnOnce() -> Fallible<Dynamic>,
    read: impl FnOnce(&Dynamic) -> Result<T, AnswerFault>,
) -> Result<T, ScriptFault> {
    let whole = || {
        let answer = work().map_err(|error| fault_of(script, function, &error))?;
        read(&answer).map_err(|fault| fault.of(script, function))
    };
    let time_here = allowance::at_most(time);
    let (result, spent) =
        budget::within(limits::OPERATIONS, time_here, *given, || catch_unwind(AssertUnwindSafe(whole)));
    let together =
        spent.filter(|limit| *limit == ScriptLimit::Time && time_here < time).and_then(|_| allowance::ended());
    let spent = together.map(ScriptLimit::Together).or(spent);
    match (result, spent) {
        (Ok(Ok(answer)), None) => Ok(answer),
        (Ok(Ok(_)), Some(limit)) => Err(limit_fault(script, function, limit)),
        (Ok(Err(fault)), None) => Err(fault),
        (Ok(Err(ScriptFault { line, column, .. })), Some(limit)) => {
            Err(ScriptFault { line, column, ..limit_fault(script, function, limit) })
        }
        (Err(_), _) => Err(ScriptFault {
            script: script.to_owned(),
            function: function.to_owned(),
            kind: ScriptFaultKind::Broken,
            reason: "the interpreter failed".to_owned(),
            line: None,
            column: None,
        }),
    }
}

fn limit_fault(script: &str, function: &str, limit: ScriptLimit) -> ScriptFault {
    ScriptFault {
        script: script.to_owned(),
        function: function.to_owned(),
        kind: ScriptFaultKind::Limit(limit),
        reason: limit.as_str().to_owned(),
        line: None,
        column: None,
    }
}

fn fault_of(script: &str, function: &str, error: &EvalAltResult) -> ScriptFault {
    let (position, reason) = innermost(error);
    let limit = ScriptLimit::of(error);
    ScriptFault {
        script: script.to_owned(),
        function: function.to_owned(),
        kind: limit.map_or(ScriptFaultKind::Thrown, ScriptFaultKind::Limit),
        reason: limit.map_or(reason, |limit| limit.as_str().to_owned()),
        line: line_of(position),
        column: column_of(position),
    }
}

/// The hooks that a script defines, each with its parameters.
fn hooks_of(name: &str, source: &str, tree: &AST) -> Result<Vec<Hook>, ScriptError> {
    let mut found = Vec::new();
    for function in tree.iter_functions() {
        let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.as_str() == function.name) else { continue };
        if function.params.len() != hook.parameters().len() {
            let reason = format!(
                "`{}` must have {} parameters ({}; got {})",
                hook.as_str(),
                hook.parameters().len(),
                hook.parameters().join(", "),
                function.params.len(),
            );
            let line = definition_line(source, hook);
            return Err(ScriptError { script: name.to_owned(), line, column: line.map(|_| 1), reason });
        }
        found.push(hook);
    }
    if found.is_empty() {
        let names = Hook::ALL.map(Hook::as_str).join("`, `");
        let reason = format!("must define a function of `{names}`");
        return Err(ScriptError { script: name.to_owned(), line: None, column: None, reason });
    }
    found.sort_by_key(|hook| Hook::ALL.iter().position(|it| it == hook));
    Ok(found)
}

/// Reads a script's [`FAILS`].
fn fails_of(name: &str, source: &str, value: &Dynamic) -> Result<Fails, ScriptError> {
    let text = value.as_immutable_string_ref().ok();
    let fails = [Fails::Open, Fails::Refuse, Fails::Hold];
    let said = text.and_then(|text| fails.into_iter().find(|it| it.as_str() == text.as_str()));
    said.ok_or_else(|| {
        let line = source.lines().position(|line| line.contains(FAILS)).and_then(|at| u16::try_from(at + 1).ok());
        let reason = format!("`{FAILS}` must be \"open\", \"refuse\" or \"hold\"");
        ScriptError { script: name.to_owned(), line, column: line.map(|_| 1), reason }
    })
}

fn definition_line(source: &str, hook: Hook) -> Option<u16> {
    let defines = |line: &str| {
        let after = line.trim_start().trim_start_matches("private ").strip_prefix("fn ");
        after.is_some_and(|it| {
            it.trim_start().strip_prefix(hook.as_str()).is_some_and(|it| it.trim_start().starts_with('('))
        })
    };
    source.lines().position(defines).and_then(|at| u16::try_from(at + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given {
        Given { now: "2026-03-02T12:00:00Z".parse().unwrap(), chance: 0.25 }
    }

    fn script(source: &str) -> Script {
        Script::compile("test.rhai", source, &Modules::none())
            .unwrap_or_else(|error| panic!("{error}"))
            .allowing(Duration::from_secs(5))
    }

    fn refused(source: &str) -> ScriptError {
        Script::compile("test.rhai", source, &Modules::none()).expect_err("it is refused")
    }

    fn message() -> MessageFacts {
        MessageFacts {
            channel: "sms".into(),
            to: "+46701234567".into(),
            priority: "normal".into(),
            attributes: serde_json::from_str(r#"{"amount": 12.5, "tags": ["a", "b"], "nothing": null}"#).unwrap(),
            ..MessageFacts::default()
        }
    }

    fn candidate(connection: &str, cost: f64) -> CandidateFacts {
        CandidateFacts { connection: connection.into(), cost: Some(cost), ..CandidateFacts::default() }
    }

    #[test]
    fn a_source_that_does_not_compile_is_refused_with_its_place() {
        let error = refused("fn admit(message) {\n    let x = ;\n}");
        assert_eq!((error.line, error.column), (Some(2), Some(13)), "{error}");
        assert!(error.to_string().starts_with("test.rhai:2:13: "), "{error}");
        let error = refused("fn admit(message) {\n    mesage.to\n}");
        assert_eq!(error.line, Some(2), "{error}");
        assert!(error.reason.contains("mesage"), "{error}");
        let error = refused("const X = 1;\n\n  fn route(message) { () }");
        assert_eq!(error.line, Some(3), "{error}");
        assert!(error.reason.contains("`route` must have 2 parameters (message, candidates; got 1)"), "{error}");
        assert!(refused("fn amdit(message) { () }").reason.contains("must define a function of `admit`"));
        assert_eq!(refused("throw \"no\"; fn admit(message) { () }").line, Some(1));
    }

    #[test]
    fn a_script_says_which_hooks_it_has() {
        let script = script("fn score(candidate) { 1 } fn admit(message) { () } fn helper(x) { x }");
        assert_eq!(script.hooks(), [Hook::Admit, Hook::Score]);
        assert!(!script.has(Hook::Route));
    }

    #[test]
    fn admission_is_read_strictly() {
        let admit = |body: &str| script(&format!("fn admit(message) {{ {body} }}")).admit(&message(), &given());
        assert_eq!(admit("()"), Ok(AdmitAnswer::default()));
        assert_eq!(admit("allow()"), Ok(AdmitAnswer::default()));
        assert_eq!(admit("refuse(\"no\")").unwrap().verdict, AdmitVerdict::Refuse { reason: "no".into() });
        let held = admit("hold_until(add_seconds(now(), 60))").unwrap().verdict;
        assert_eq!(held, AdmitVerdict::Hold { at: "2026-03-02T12:01:00Z".parse().unwrap(), reason: None });
        let changed = admit("#{priority: \"high\", attributes: #{seen: message.attributes.amount}}").unwrap();
        assert_eq!(changed.priority, Some(angarium_domain::message::Priority::High));
        assert_eq!(changed.attributes["seen"], 12.5);
        for (body, field) in [
            ("7", ""),
            ("\"perhaps\"", "action"),
            ("#{action: \"refuse\"}", "reason"),
            ("#{action: \"hold\", at: 7}", "at"),
            ("#{action: \"hold\", at: \"tomorrow\"}", "at"),
            ("#{priorty: \"high\"}", "priorty"),
            ("#{priority: \"highest\"}", "priority"),
            ("#{attributes: []}", "attributes"),
            ("#{attributes: #{f: |x| x}}", "attributes.f"),
        ] {
            let fault = admit(body).expect_err(body);
            assert_eq!(fault.kind, ScriptFaultKind::Answer(field.into()), "{body}: {fault}");
        }
    }

    #[test]
    fn a_route_is_reordered_cut_and_extended() {
        let route = |body: &str| {
            let script = script(&format!("fn route(message, candidates) {{ {body} }}"));
            script.route(&message(), &[candidate("a", 3.0), candidate("b", 1.0), candidate("c", 2.0)], &given())
        };
        let names = |routing: Routing| -> Vec<String> {
            routing.candidates.unwrap().into_iter().map(|it| it.connection).collect()
        };
        assert_eq!(route("()"), Ok(Routing::default()));
        assert_eq!(names(route("candidates.sorted_by(\"cost\")").unwrap()), ["b", "c", "a"]);
        assert_eq!(names(route("candidates.filter(|it| it.cost < 2.5)").unwrap()), ["b", "c"]);
        assert_eq!(names(route("let most = 1.5; candidates.filter(|it| it.cost > most)").unwrap()), ["a", "c"]);
        assert_eq!(names(route("candidates.sort(|x, y| y.cost - x.cost); candidates").unwrap()), ["a", "c", "b"]);
        assert_eq!(names(route("[\"z\", \"a\"]").unwrap()), ["z", "a"]);
        let routing = route("#{channel: \"email\", reason: \"dear\"}").unwrap();
        assert_eq!(routing.channels.unwrap()[0].as_str(), "email");
        assert_eq!(routing.reason.as_deref(), Some("dear"));
        for (body, field) in [
            ("[\"a\", 7]", "candidates[1]"),
            ("[\"a\", \"a\"]", "candidates[1]"),
            ("[#{connection: \"a\", scor: 1}]", "candidates[0].scor"),
            ("#{channel: \"Mail\"}", "channel"),
            ("#{channels: []}", "channels"),
            ("#{channel: \"sms\", channels: [\"sms\"]}", "channel"),
        ] {
            assert_eq!(route(body).expect_err(body).kind, ScriptFaultKind::Answer(field.into()), "{body}");
        }
    }

    #[test]
    fn a_retry_waits_gives_up_or_falls_back() {
        let retry = |body: &str| {
            let attempt = AttemptFacts { number: 3, ..AttemptFacts::default() };
            script(&format!("fn retry(attempt) {{ {body} }}")).retry(&attempt, &given())
        };
        assert_eq!(retry("()"), Ok(RetryAnswer::Default));
        assert_eq!(retry("attempt.number * 10"), Ok(RetryAnswer::Retry { after: Duration::from_secs(30) }));
        assert_eq!(retry("retry_after(0.5)"), Ok(RetryAnswer::Retry { after: Duration::from_millis(500) }));
        assert_eq!(retry("give_up(\"enough\")"), Ok(RetryAnswer::GiveUp { reason: Some("enough".into()) }));
        assert_eq!(retry("\"fall_back\""), Ok(RetryAnswer::FallBack { reason: None }));
        assert_eq!(retry("-1").expect_err("negative").kind, ScriptFaultKind::Answer("after".into()));
        assert_eq!(retry("1e12").expect_err("too long").kind, ScriptFaultKind::Answer("after".into()));
        assert_eq!(retry("true").expect_err("no answer").kind, ScriptFaultKind::Answer(String::new()));
    }

    #[test]
    fn an_outcome_has_follow_ups() {
        let outcome = |body: &str| {
            let delivery = DeliveryFacts { state: "failed".into(), ..DeliveryFacts::default() };
            script(&format!("fn on_outcome(delivery) {{ {body} }}")).on_outcome(&delivery, &given())
        };
        assert_eq!(outcome("()"), Ok(FollowUp::default()));
        let follow = outcome("#{channel: \"email\", after: 60, text: \"It \" + delivery.state, tags: [\"late\"]}");
        let follow = follow.unwrap();
        assert_eq!(follow.tags, ["late"]);
        assert_eq!(follow.messages[0].channel.as_ref().unwrap().as_str(), "email");
        assert_eq!(follow.messages[0].after, Duration::from_secs(60));
        assert_eq!(follow.messages[0].text.as_deref(), Some("It failed"));
        assert_eq!(outcome("#{tags: [\"late\"]}").unwrap().messages, []);
        assert_eq!(outcome("[#{to: \"x\"}, #{to: \"y\"}]").unwrap().messages.len(), 2);
        let many = outcome("let all = []; for n in 0..30 { all.push(#{text: \"x\"}); } all");
        assert_eq!(many.expect_err("too many").kind, ScriptFaultKind::Answer("messages".into()));
        let fault = outcome("[#{txt: \"x\"}]").expect_err("no such field");
        assert_eq!(fault.kind, ScriptFaultKind::Answer("messages[0].txt".into()));
    }

    #[test]
    fn conditions_and_scores_are_what_they_say() {
        let condition = |body: &str| {
            let context = ContextFacts { run: 2, ..ContextFacts::default() };
            script(&format!("fn condition(context) {{ {body} }}")).condition(&context, &given())
        };
        assert_eq!(condition("context.run < 3"), Ok(true));
        assert_eq!(condition("1").expect_err("no boolean").kind, ScriptFaultKind::Answer(String::new()));
        let score =
            |body: &str| script(&format!("fn score(candidate) {{ {body} }}")).score(&candidate("a", 4.0), &given());
        assert_eq!(score("10 - candidate.cost"), Ok(6.0));
        assert_eq!(score("0.0 / 0.0").expect_err("not a number").kind, ScriptFaultKind::Answer(String::new()));
    }

    #[test]
    fn what_a_script_throws_says_where() {
        let script = script("fn check(x) {\n  throw `no ${x}`;\n}\nfn admit(message) {\n  check(message.channel)\n}");
        let fault = script.admit(&message(), &given()).expect_err("it throws");
        assert_eq!((fault.kind, fault.line), (ScriptFaultKind::Thrown, Some(2)));
        assert!(fault.reason.contains("no sms"), "{}", fault.reason);
    }

    #[test]
    fn constants_that_ask_for_the_time_or_for_chance_have_those_of_each_run() {
        let script = script(
            "const FIXED = #{b: 1, list: [1, 2]};
             const AT = add_seconds(now(), 60);
             fn admit(message) { global::FIXED.list.push(3); #{action: \"hold\", at: global::AT} }",
        );
        assert!(script.admit(&message(), &given()).is_err(), "a constant stays what it is");
        let script = self::script("const AT = add_seconds(now(), 60); fn admit(message) { hold_until(global::AT) }");
        for now in ["2026-03-02T12:00:00Z", "2026-03-02T13:00:00Z"] {
            let given = Given { now: now.parse().unwrap(), chance: 0.0 };
            let at = given.now + jiff::SignedDuration::from_secs(60);
            assert_eq!(script.admit(&message(), &given).unwrap().verdict, AdmitVerdict::Hold { at, reason: None });
        }
    }

    #[test]
    fn a_module_reads_the_facts_that_it_is_handed() {
        let module = "fn segment(message) { message.contact.get(\"segment\") ?? message.attributes.tags[1] }";
        let modules = Modules::compile(&[("people".to_owned(), module.to_owned())].into()).unwrap();
        let source = "import \"people\" as people; fn admit(message) { refuse(people::segment(message)) }";
        let script = Script::compile("test.rhai", source, &modules).unwrap().allowing(Duration::from_secs(5));
        for segment in ["vip", "gold"] {
            let contact = [("segment".to_owned(), segment.into())].into_iter().collect();
            let answer = script.admit(&MessageFacts { contact, ..message() }, &given()).unwrap();
            assert_eq!(answer.verdict, AdmitVerdict::Refuse { reason: segment.into() });
        }
        assert_eq!(refusal(&script), "b");
    }

    #[test]
    fn one_run_leaves_nothing_to_the_next() {
        let script = script(
            "const LIST = [1];
             fn admit(message) { let list = global::LIST; list.push(2); refuse(`${list.len()} of ${global::LIST.len()}`) }",
        );
        for _ in 0..2 {
            let verdict = script.admit(&message(), &given()).unwrap().verdict;
            assert_eq!(verdict, AdmitVerdict::Refuse { reason: "2 of 1".into() });
        }
        let source = "const KNOWN = 1;
            fn admit(message) {
                let before = \"nothing\";
                try { let seen = global::SEEN; before = \"something\"; } catch { }
                const SEEN = 1;
                refuse(before)
            }";
        let script = self::script(source);
        for _ in 0..2 {
            let verdict = script.admit(&message(), &given()).unwrap().verdict;
            assert_eq!(verdict, AdmitVerdict::Refuse { reason: "nothing".into() });
        }
    }

    #[test]
    fn constants_and_modules_serve_every_run() {
        let sources = [
            ("base".to_owned(), "const MOST = 5; fn dear(cost) { cost > global::MOST }".to_owned()),
            ("market".to_owned(), "import \"base\" as base; fn dear(cost) { base::dear(cost) }".to_owned()),
        ];
        let modules = Modules::compile(&sources.into()).unwrap();
        let source = "import \"market\" as market;\nconst CODE = \"too dear\";\n\
            fn admit(message) { if market::dear(message.attributes.amount) { refuse(global::CODE) } else { allow() } }";
        let script = Script::compile("test.rhai", source, &modules).unwrap().allowing(Duration::from_secs(5));
        for _ in 0..2 {
            let answer = script.admit(&message(), &given()).unwrap_or_else(|fault| panic!("{fault}"));
            assert_eq!(answer.verdict, AdmitVerdict::Refuse { reason: "too dear".into() });
        }
        let typo = source.replace("market::dear(message", "\n  market::daer(message");
        let typo = Script::compile("test.rhai", &typo, &modules).expect_err("there is no such function");
        assert_eq!(typo.line, Some(4), "{typo}");
        assert!(typo.reason.contains("the function `market::daer` of 1 argument does not exist"), "{typo}");
        let missing = refused("import \"market\" as market;\nfn admit(message) { () }");
        assert!(missing.reason.contains("market") && missing.line == Some(1), "{missing}");
        let circle = [("a", "import \"b\" as b;"), ("b", "import \"a\" as a;")];
        let circle = circle.map(|(name, source)| (name.to_owned(), source.to_owned())).into();
        assert!(Modules::compile(&circle).is_err(), "modules that import one another in a circle");
    }

    fn refusal(script: &Script) -> String {
        match script.admit(&message(), &given()).unwrap_or_else(|fault| panic!("{fault}")).verdict {
            AdmitVerdict::Refuse { reason } => reason,
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn a_name_means_the_same_in_every_run_whoever_else_has_it() {
        let of = |name: &str| {
            script(&format!(
                "fn name() {{ \"{name}\" }}
                 fn called(text) {{ text + name() }}
                 fn admit(message) {{
                     let named = [1, 2].map(|it| called(`${{it}}`) + [3].map(|it| called(`${{it}}`))[0]);
                     refuse(named[0] + named[1] + called(\"\"))
                 }}"
            ))
        };
        let (one, other) = (of("a"), of("b"));
        for _ in 0..4 {
            assert_eq!(refusal(&one), "1a3a2a3aa");
            assert_eq!(refusal(&other), "1b3b2b3bb");
        }
        let throws = script("fn admit(message) { [1].map(|it| { if it == 1 { throw \"no\" } }) }");
        assert!(throws.admit(&message(), &given()).is_err());
        assert_eq!(refusal(&one), "1a3a2a3aa");
    }

    #[test]
    fn a_modules_own_functions_are_not_the_scripts() {
        let compiled = |source: &str| Modules::compile(&[("other".to_owned(), source.to_owned())].into()).unwrap();
        let module = "fn name() { \"module\" } fn said() { name() + [1].map(|it| name())[0] + name() }";
        let (ambiguous, clear) = (compiled(module), compiled(&module.replace("name()", "its_name()")));
        for import in
            ["import \"other\" as other; fn admit(message) {", "fn admit(message) { import \"other\" as other;"]
        {
            let source = format!(
                "fn name() {{ \"own\" }} {import} refuse(name() + name() + other::said() + name() + other::said() + name()) }}"
            );
            let refused = Script::compile("test.rhai", &source, &ambiguous).expect_err("the interpreter mixes them up");
            assert!(
                refused.reason.contains("`name` of 0 arguments is called in `other` and in `test.rhai`"),
                "{refused}"
            );
            assert_eq!(refused.line, Some(1));
            let script = Script::compile("test.rhai", &source, &clear).unwrap().allowing(Duration::from_secs(5));
            for _ in 0..3 {
                assert_eq!(refusal(&script), "ownownmodulemodulemoduleownmodulemodulemoduleown", "{source}");
            }
        }
    }

    #[test]
    fn a_closure_takes_a_member_and_its_place_or_has_it_as_this() {
        let chosen = |body: &str| {
            let source = format!("fn route(message, candidates) {{ {body} }}");
            let candidates = ["a", "b", "c"].map(|it| candidate(it, 1.0));
            let routing = script(&source).route(&message(), &candidates, &given());
            let choices = routing.unwrap_or_else(|fault| panic!("{body}: {fault}")).candidates.unwrap_or_default();
            choices.into_iter().map(|it| it.connection).collect::<Vec<_>>()
        };
        for (body, expected) in [
            ("candidates.filter(|it| it.connection != \"a\")", vec!["b", "c"]),
            ("candidates.filter(|it, at| at != 1)", vec!["a", "c"]),
            ("candidates.filter(|| this.connection != \"c\")", vec!["a", "b"]),
            ("let out = \"b\"; candidates.filter(|it| it.connection != out)", vec!["a", "c"]),
            ("let out = 0; candidates.filter(|it, at| at != out)", vec!["b", "c"]),
            ("[candidates.find(|it| it.connection > \"a\").connection]", vec!["b"]),
            ("if candidates.all(|it| it.connection < \"c\") { [\"a\"] } else { [\"b\"] }", vec!["b"]),
            ("candidates.filter(|it| { it.connection = \"x\"; true }) ; candidates", vec!["a", "b", "c"]),
        ] {
            assert_eq!(chosen(body), expected, "{body}");
        }
    }
}
