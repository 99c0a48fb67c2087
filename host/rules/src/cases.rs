//! Cases: facts and the decision that is expected of them, as files beside the scripts.
//!
//! ```json
//! {"cases": [{
//!     "name": "it is night in Stockholm",
//!     "hook": "admit",
//!     "now": "2026-03-02T22:30:00Z",
//!     "message": {"channel": "sms", "to": "+46701234567", "timezone": "Europe/Stockholm"},
//!     "expect": {"action": "hold", "at": "2026-03-03T07:00:00Z"}
//! }]}
//! ```
//!
//! The expected value may name a part of the decision: other members are ignored.

use std::{
    fmt,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::script::{
    Given, Hook, Script, ScriptFault,
    facts::{AttemptFacts, CandidateFacts, ContextFacts, DeliveryFacts, MessageFacts},
};

/// The time of a case: no delivery waits for it, and the machine may be busy. The limit on operations is that of a real
/// run.
const TIME: Duration = Duration::from_millis(250);

/// The time of all cases of a suite together.
const TOGETHER: Duration = Duration::from_secs(10);

/// The most cases of a suite.
const MOST: usize = 500;

/// The shown characters of an unexpected value.
const SHOWN: usize = 1_000;

/// The cases of one file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// The script that they are for; left out: the one of the file's own name.
    #[serde(default)]
    pub script: Option<String>,
    pub cases: Vec<ScriptCase>,
}

/// One case. Each hook takes its own facts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptCase {
    pub name: String,
    pub hook: String,
    #[serde(default)]
    pub now: Option<Timestamp>,
    #[serde(default)]
    pub chance: f64,
    #[serde(default)]
    pub message: Option<MessageFacts>,
    #[serde(default)]
    pub candidates: Option<Vec<CandidateFacts>>,
    #[serde(default)]
    pub candidate: Option<CandidateFacts>,
    #[serde(default)]
    pub attempt: Option<AttemptFacts>,
    #[serde(default)]
    pub delivery: Option<DeliveryFacts>,
    #[serde(default)]
    pub context: Option<ContextFacts>,
    /// The decision, or a part of it.
    #[serde(default)]
    pub expect: Option<Value>,
    /// A part of the words of the fault that is expected in place of a decision.
    #[serde(default)]
    pub expect_fault: Option<String>,
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseOutcome {
    pub case: String,
    /// None: it passed.
    pub differences: Vec<CaseMismatch>,
    /// The decision that was made, whole.
    pub decision: Value,
}

/// A difference from the expected decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseMismatch {
    /// The member, empty for the whole of it.
    pub at: String,
    pub expected: String,
    pub found: String,
}

impl fmt::Display for CaseMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.at.is_empty() { "decision" } else { &self.at };
        write!(f, "{at}: expected {}, found {}", self.expected, self.found)
    }
}

impl CaseOutcome {
    #[must_use]
    pub fn passed(&self) -> bool {
        self.differences.is_empty()
    }
}

impl fmt::Display for CaseOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.passed() {
            return write!(f, "ok      {}", self.case);
        }
        write!(f, "FAILED  {}", self.case)?;
        for difference in &self.differences {
            write!(f, "\n        {difference}")?;
        }
        write!(f, "\n        the whole decision: {}", self.decision)
    }
}

impl Suite {
    /// Reads a file's text; a member that does not exist is refused with its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let suite: Self = serde_json::from_str(text).map_err(|error| format!("must be valid: {error}"))?;
        if suite.cases.len() > MOST {
            return Err(format!("must be at most {MOST} cases (got {})", suite.cases.len()));
        }
        let wrong = suite
            .cases
            .iter()
            .find_map(|case| case.problem().map(|problem| format!("must be valid: `{}`: {problem}", case.name)));
        wrong.map_or(Ok(suite), Err)
    }

    /// Runs all of them, in order.
    #[must_use]
    pub fn run(&self, script: &Script) -> Vec<CaseOutcome> {
        let began = Instant::now();
        let run = |case: &ScriptCase| {
            let left = TOGETHER.saturating_sub(began.elapsed());
            case.run(&script.clone().allowing(TIME.min(left)))
        };
        self.cases.iter().map(run).collect()
    }
}

impl ScriptCase {
    fn problem(&self) -> Option<String> {
        let Some(hook) = self.hook() else { return Some(format!("the hook `{}` does not exist", self.hook)) };
        let given = [
            ("message", self.message.is_some()),
            ("candidates", self.candidates.is_some()),
            ("candidate", self.candidate.is_some()),
            ("attempt", self.attempt.is_some()),
            ("delivery", self.delivery.is_some()),
            ("context", self.context.is_some()),
        ];
        let stray = given.iter().find(|(name, is_given)| *is_given && !hook.parameters().contains(name));
        if let Some((name, _)) = stray {
            return Some(format!("`{name}` is not allowed: `{}` has {}", self.hook, hook.parameters().join(", ")));
        }
        (self.expect.is_some() == self.expect_fault.is_some())
            .then(|| "must have either a decision (`expect`) or a fault (`expect_fault`)".to_owned())
    }

    fn hook(&self) -> Option<Hook> {
        Hook::ALL.into_iter().find(|hook| hook.as_str() == self.hook)
    }

    fn run(&self, script: &Script) -> CaseOutcome {
        let decided = self.decide(script);
        let differences = match (&decided, &self.expect, &self.expect_fault) {
            (Ok(decision), Some(expected), _) => {
                let mut differences = Vec::new();
                compare("", expected, decision, &mut differences);
                differences
            }
            (Err(fault), _, Some(words)) if fault.to_string().contains(words.as_str()) => Vec::new(),
            (Err(fault), expected, words) => {
                let words = words.as_ref().map(|it| format!("a fault with `{it}`"));
                let expected = words.or_else(|| expected.as_ref().map(Value::to_string)).unwrap_or_default();
                vec![CaseMismatch { at: String::new(), expected, found: format!("the fault `{fault}`") }]
            }
            (Ok(decision), None, words) => vec![CaseMismatch {
                at: String::new(),
                expected: format!("a fault with `{}`", words.as_deref().unwrap_or_default()),
                found: decision.to_string(),
            }],
        };
        CaseOutcome { case: self.name.clone(), differences, decision: decided.unwrap_or(Value::Null) }
    }

    fn decide(&self, script: &Script) -> Result<Value, ScriptFault> {
        let given = Given { now: self.now.unwrap_or_default(), chance: self.chance };
        let message = || self.message.clone().unwrap_or_default();
        match self.hook() {
            Some(Hook::Admit) => script.admit(&message(), &given).map(|it| value(&it)),
            Some(Hook::Route) => {
                let candidates = self.candidates.as_deref().unwrap_or_default();
                script.route(&message(), candidates, &given).map(|it| value(&it))
            }
            Some(Hook::Retry) => script.retry(&self.attempt.clone().unwrap_or_default(), &given).map(|it| value(&it)),
            Some(Hook::OnOutcome) => {
                script.on_outcome(&self.delivery.clone().unwrap_or_default(), &given).map(|it| value(&it))
            }
            Some(Hook::Condition) => {
                script.condition(&self.context.clone().unwrap_or_default(), &given).map(Value::Bool)
            }
            Some(Hook::Score) => script.score(&self.candidate.clone().unwrap_or_default(), &given).map(|it| value(&it)),
            None => Ok(Value::Null),
        }
    }
}

fn value(decision: &impl Serialize) -> Value {
    serde_json::to_value(decision).unwrap_or(Value::Null)
}

/// Adds each place where `found` is not as `expected` says.
fn compare(at: &str, expected: &Value, found: &Value, differences: &mut Vec<CaseMismatch>) {
    let mut differs = |expected: String, found: String| {
        let found = found.chars().take(SHOWN).collect();
        differences.push(CaseMismatch { at: at.to_owned(), expected, found });
    };
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => compare_members(at, expected, found, differences),
        // A candidate that has no more than its name may be written as that.
        (Value::String(name), Value::Object(found))
            if found.get("connection") == Some(&Value::String(name.clone())) => {}
        (Value::Array(wanted), Value::Array(list)) if wanted.len() == list.len() => {
            for (nth, (expected, found)) in wanted.iter().zip(list).enumerate() {
                compare(&format!("{at}[{nth}]"), expected, found, differences);
            }
        }
        (Value::Array(wanted), Value::Array(list)) => {
            differs(format!("{} members: {expected}", wanted.len()), format!("{} members: {found}", list.len()));
        }
        (Value::Number(wanted), Value::Number(number)) if wanted.as_f64() == number.as_f64() => {}
        (expected, found) if expected == found => {}
        (expected, found) => differs(expected.to_string(), found.to_string()),
    }
}

fn compare_members(
    at: &str,
    expected: &Map<String, Value>,
    found: &Map<String, Value>,
    differences: &mut Vec<CaseMismatch>,
) {
    for (name, wanted) in expected {
        let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match found.get(name) {
            Some(member) => compare(&at, wanted, member, differences),
            None if wanted.is_null() => {}
            None => {
                let found = "no such member".to_owned();
                differences.push(CaseMismatch { at, expected: wanted.to_string(), found });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;
    use crate::script::Modules;

    fn script(source: &str) -> Script {
        Script::compile("test.rhai", source, &Modules::none()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn run(source: &str, case: &str) -> CaseOutcome {
        let suite = Suite::parse(&format!("{{\"cases\": [{case}]}}")).unwrap_or_else(|error| panic!("{error}"));
        suite.run(&script(source)).remove(0)
    }

    #[test]
    fn a_part_of_a_decision_may_be_expected() {
        let source =
            "fn route(message, candidates) { #{candidates: candidates.sorted_by(\"cost\"), reason: \"cheap\"} }";
        let facts = r#""name": "n", "hook": "route", "candidates": [{"connection": "a", "cost": 2}, {"connection": "b", "cost": 1}]"#;
        let passes = |expect: &str| run(source, &format!("{{{facts}, \"expect\": {expect}}}"));
        assert!(passes(r#"{"candidates": ["b", "a"]}"#).passed());
        assert!(passes(r#"{"reason": "cheap", "channels": null}"#).passed());
        let outcome = passes(r#"{"candidates": ["a", {"connection": "a"}], "reason": "dear"}"#);
        let found: Vec<_> = outcome.differences.iter().map(|it| it.at.as_str()).collect();
        assert_eq!(found, ["candidates[0]", "reason"], "{outcome}");
        let shown = outcome.to_string();
        assert!(shown.contains("reason: expected \"dear\", found \"cheap\""), "{shown}");
        assert!(!passes(r#"{"candidates": ["b"]}"#).passed(), "a list is whole");
    }

    #[test]
    fn a_fault_may_be_expected() {
        let source = "fn admit(message) { throw \"no luck\" }";
        assert!(run(source, r#"{"name": "n", "hook": "admit", "expect_fault": "no luck"}"#).passed());
        let outcome = run(source, r#"{"name": "n", "hook": "admit", "expect": {"action": "allow"}}"#);
        assert!(outcome.to_string().contains("no luck"), "{outcome}");
        let outcome = run("fn admit(message) { () }", r#"{"name": "n", "hook": "admit", "expect_fault": "x"}"#);
        assert!(!outcome.passed());
    }

    #[test]
    fn a_suite_has_so_many_cases() {
        let case = r#"{"name": "n", "hook": "admit", "expect": {}}"#;
        let suite = |times: usize| Suite::parse(&format!("{{\"cases\": [{}]}}", vec![case; times].join(",")));
        assert!(suite(MOST).is_ok());
        assert_eq!(suite(MOST + 1).expect_err("one more"), "must be at most 500 cases (got 501)");
    }

    #[test]
    fn a_case_that_says_nothing_is_refused() {
        for (case, words) in [
            (r#"{"name": "n", "hook": "admit"}"#, "either a decision"),
            (r#"{"name": "n", "hook": "admt", "expect": {}}"#, "the hook `admt` does not exist"),
            (r#"{"name": "n", "hook": "admit", "candidates": [], "expect": {}}"#, "`candidates` is not allowed"),
            (r#"{"name": "n", "hook": "admit", "message": {"chanel": "sms"}, "expect": {}}"#, "chanel"),
        ] {
            let error = Suite::parse(&format!("{{\"cases\": [{case}]}}")).expect_err(case);
            assert!(error.contains(words), "{error}");
        }
    }

    /// The scripts in the docs compile.
    #[test]
    fn the_scripts_of_the_pages_compile() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let mut compiled = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|it| it != "md") {
                continue;
            }
            let page = fs::read_to_string(&path).unwrap();
            for block in page.split("```rhai\n").skip(1) {
                let source = block.split("```").next().unwrap_or_default();
                Script::compile("page.rhai", source, &Modules::none())
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                compiled += 1;
            }
        }
        assert!(compiled >= 2, "{compiled}");
    }

    /// The scripts that come with the gateway do what their cases say, and each hook of each has one.
    #[test]
    fn the_ready_scripts_pass_their_cases() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rules");
        let mut sources = BTreeMap::new();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|it| it == "rhai") {
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                sources.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
        assert!(sources.len() >= 7, "{:?}", sources.keys());
        let mut failed = Vec::new();
        for (name, source) in &sources {
            let script = Script::compile(&format!("{name}.rhai"), source, &Modules::none());
            let script = script.unwrap_or_else(|error| panic!("{error}"));
            let file = folder.join(format!("cases/{name}.json"));
            let suite = Suite::parse(&fs::read_to_string(&file).unwrap()).unwrap_or_else(|it| panic!("{name}: {it}"));
            for hook in script.hooks() {
                let tested = suite.cases.iter().filter(|case| case.hook == hook.as_str()).count();
                assert!(tested >= 2, "{name}: `{}` has {tested} cases", hook.as_str());
            }
            let outcomes = suite.run(&script).into_iter().filter(|it| !it.passed());
            failed.extend(outcomes.map(|outcome| format!("{name}: {outcome}")));
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}
