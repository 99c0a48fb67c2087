//! The tenants' rules and scripts, compiled once for as long as they stay the same: other changes of
//! a tenant's configuration are frequent, and a script's breaker belongs to its version.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use angarium_domain::{
    experiment::ExperimentKind,
    ids::{ExperimentId, RuleId, TenantId},
    rule::RuleSpec,
};
use angarium_rules::{
    RuleSet,
    experiment::{Experiment, Variant},
    language::Language,
    rulebook::{Rulebook, Running},
    script::{Modules, Script, may_import},
};
use angarium_store::{
    self as store, Connection as Db,
    experiment::{ExperimentRow, RunningExperiment, experiment_running},
    rule::{rule_set_number, rule_specs, rulebook_stamp},
    script::{LiveScript, module_list, script_live_list, script_resets},
};

/// A tenant's rules as they were read.
pub(super) struct Read {
    stamp: String,
    /// `None` if nothing changed.
    sources: Option<Sources>,
}

struct Sources {
    rules: Vec<(RuleId, String)>,
    /// The number of the rule set.
    number: i64,
    scripts: Vec<LiveScript>,
    experiments: Vec<RunningExperiment>,
    modules: Arc<BTreeMap<String, String>>,
    /// How often each script was switched on again by hand.
    resets: HashMap<String, i32>,
}

/// The compiled rules and scripts of a tenant.
#[derive(Clone)]
struct LoadedRulebook {
    stamp: String,
    book: Arc<Rulebook>,
    /// The number of its rule set.
    number: i64,
    /// The modules of its scripts.
    modules: Arc<BTreeMap<String, String>>,
    compiled_modules: Modules,
}

type Spec = (RuleId, RuleSpec);

/// The compiled rule books, each with its version.
#[derive(Default)]
pub(super) struct Rulebooks(Mutex<HashMap<TenantId, LoadedRulebook>>);

impl Rulebooks {
    /// Reads the unknown parts; `None` for a tenant without rules.
    pub async fn read(&self, db: &mut Db, tenant: TenantId) -> store::Result<Option<Read>> {
        let Some(stamp) = rulebook_stamp(db, tenant).await? else { return Ok(None) };
        if self.known(tenant).is_some_and(|known| known.stamp == stamp) {
            return Ok(Some(Read { stamp, sources: None }));
        }
        let (rules, scripts) = (rule_specs(db, tenant).await?, script_live_list(db, tenant).await?);
        let experiments = experiment_running(db, tenant).await?;
        let (modules, resets) = (module_list(db, tenant).await?.into(), script_resets(db, tenant).await?);
        let number = rule_set_number(db, tenant).await?;
        Ok(Some(Read { stamp, sources: Some(Sources { rules, number, scripts, experiments, modules, resets }) }))
    }

    /// Returns the rules and scripts of a tenant. A source that does not compile, perhaps stored by a later version of
    /// the gateway, leaves the previous one in service.
    pub async fn of(&self, tenant: TenantId, read: Option<Read>) -> Option<Arc<Rulebook>> {
        let Some(Read { stamp, sources }) = read else {
            self.books().remove(&tenant);
            return None;
        };
        let standing = self.known(tenant);
        let before = standing.as_ref().map(|known| Arc::clone(&known.book));
        let Some(sources) = sources else { return before };
        let compiled = tokio::task::spawn_blocking(move || compile(sources, standing.as_ref(), stamp)).await;
        match compiled.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(known) => {
                let book = Arc::clone(&known.book);
                self.books().insert(tenant, known);
                Some(book)
            }
            Err(error) => {
                tracing::error!(tenant.id = %tenant, error, "rules that were stored don't compile: the last good ones go on");
                before
            }
        }
    }

    fn known(&self, tenant: TenantId) -> Option<LoadedRulebook> {
        self.books().get(&tenant).cloned()
    }

    fn books(&self) -> MutexGuard<'_, HashMap<TenantId, LoadedRulebook>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compiles only changed sources.
fn compile(sources: Sources, before: Option<&LoadedRulebook>, stamp: String) -> Result<LoadedRulebook, String> {
    let Sources { rules, number, scripts, experiments, modules, resets } = sources;
    let same_rules = before.filter(|it| it.number == number).and_then(|it| it.book.rules.clone());
    let compiled = match same_rules {
        Some(same) => same,
        None => specs(&rules).and_then(|specs| rule_set(specs, number, None)).or_else(|error| match before {
            Some(_) => Err(error),
            None => rules_as_far(&rules, number),
        })?,
    };
    let same_modules = before.filter(|it| it.modules == modules).map(|it| it.compiled_modules.clone());
    let workshop = Workshop {
        before,
        same_modules: same_modules.is_some(),
        modules: same_modules.unwrap_or_else(|| Modules::stored(&modules)),
        rules: &rules,
        number,
        resets,
    };
    // A variant of an operators' script follows the same rule.
    let is_operators = |name: &str| scripts.iter().any(|(it, .., operators)| it == name && *operators);
    let experiments =
        experiments.into_iter().filter_map(|experiment| workshop.experiment(experiment, is_operators)).collect();
    let scripts = scripts.into_iter().filter_map(|script| workshop.running(script)).collect();
    let compiled_modules = workshop.modules;
    let book = Arc::new(Rulebook { rules: Some(compiled), scripts, experiments, rehearses: false });
    Ok(LoadedRulebook { stamp, book, number, modules, compiled_modules })
}

/// Returns a replacement for a script that does not compile and has no known good version. If it may let nothing
/// through unasked, every message meets a fault; otherwise the script counts as absent.
fn stand_in(name: &str, version: i32, source: &str, operators: bool) -> Option<Arc<Running>> {
    let fails = fails_of(source).or(operators.then_some("refuse"))?;
    let closed =
        format!("const FAILS = \"{fails}\"; fn admit(message) {{ throw \"the stored script does not compile\" }}");
    let script = Script::stored(name, &closed, &Modules::none()).ok().filter(|_| source.contains("fn admit"))?;
    let running = Running::new(name.to_owned(), version, source.into(), script);
    Some(Arc::new(if operators { running.of_operators() } else { running }))
}

/// Returns the `FAILS` of a source that cannot be compiled.
fn fails_of(source: &str) -> Option<&'static str> {
    let said = source.split_once("FAILS")?.1.split('"').nth(1)?;
    ["refuse", "hold", "open"].into_iter().find(|word| *word == said)
}

/// Returns the readable rules, if some are not readable and none are known here: one that may let nothing through
/// unasked is replaced by one that fails.
fn rules_as_far(rules: &[(RuleId, String)], number: i64) -> Result<Arc<RuleSet>, String> {
    let readable = |rule: &(RuleId, String)| {
        let alone = specs(std::slice::from_ref(rule)).and_then(|specs| rule_set(specs, number, None).map(drop));
        let Err(error) = alone else { return specs(std::slice::from_ref(rule)).ok()?.pop() };
        tracing::error!(rule.id = %rule.0, error, "a rule that was stored does not compile");
        closed_rule(rule)
    };
    rule_set(rules.iter().filter_map(readable).collect(), number, None)
}

fn closed_rule((id, json): &(RuleId, String)) -> Option<Spec> {
    let stored: serde_json::Value = serde_json::from_str(json).ok()?;
    let fails = ["refuse", "hold"].into_iter().find(|word| stored["fails"] == **word)?;
    let closed = serde_json::json!({
        "name": stored["name"].as_str().unwrap_or("a rule"), "active": stored["active"].as_bool().unwrap_or(true),
        "fails": fails, "when": {"custom": {"expression": "[][0] == 1"}},
        "then": {"refuse": {"reason": "the stored rule does not compile"}},
    });
    Some((*id, serde_json::from_value(closed).ok()?))
}

fn specs(rules: &[(RuleId, String)]) -> Result<Vec<Spec>, String> {
    rules.iter().map(|(id, json)| Ok((*id, parsed(&id.to_string(), json)?))).collect()
}

/// The place where scripts are compiled.
struct Workshop<'a> {
    before: Option<&'a LoadedRulebook>,
    modules: Modules,
    same_modules: bool,
    rules: &'a [(RuleId, String)],
    number: i64,
    resets: HashMap<String, i32>,
}

impl<'a> Workshop<'a> {
    /// Returns a live script: the known one with its failures, or a new one; a source that does not compile leaves the
    /// previous one.
    fn running(&self, (name, version, source, operators): LiveScript) -> Option<Arc<Running>> {
        self.known_or_new(&name, version, &source, operators).or_else(|| {
            let last = self.before.and_then(|it| it.book.scripts.iter().find(|it| it.name == name));
            last.map(Arc::clone).or_else(|| stand_in(&name, version, &source, operators))
        })
    }

    fn known_or_new(&self, name: &str, version: i32, source: &str, operators: bool) -> Option<Arc<Running>> {
        let resets = self.resets.get(name).copied().unwrap_or_default();
        let stays = |it: &&Arc<Running>| {
            let same = it.name == name && it.version == version && *it.source == *source && it.resets == resets;
            same && it.operators == operators && (self.same_modules || !may_import(source))
        };
        if let Some(known) = self.known().find(stays) {
            return Some(Arc::clone(known));
        }
        match Script::stored(name, source, &self.modules) {
            Ok(script) => {
                let running = Running::new(name.to_owned(), version, source.into(), script).after_resets(resets);
                Some(Arc::new(if operators { running.of_operators() } else { running }))
            }
            Err(error) => {
                tracing::error!(%error, "a script that was stored does not compile: the last good version goes on");
                None
            }
        }
    }

    /// Returns the live scripts and the variants.
    fn known(&self) -> impl Iterator<Item = &'a Arc<Running>> {
        self.before.into_iter().flat_map(|known| {
            known.book.scripts.iter().chain(known.book.experiments.iter().filter_map(Experiment::script))
        })
    }

    /// Returns a running experiment; `None` if its variant does not compile.
    fn experiment(&self, running: RunningExperiment, is_operators: impl Fn(&str) -> bool) -> Option<Experiment> {
        let RunningExperiment { experiment: row, uid, body } = running;
        let ExperimentRow { id, kind, document, version, mode, .. } = row;
        let subject = match kind {
            ExperimentKind::Script => uid.unwrap_or_default(),
            ExperimentKind::Rule => RuleId::from(document).to_string(),
        };
        let variant = match kind {
            ExperimentKind::Script => {
                Variant::Script(self.known_or_new(&subject, version, &body, is_operators(&subject))?)
            }
            ExperimentKind::Rule => match self.tried_rules(id, &subject, &body) {
                Ok(rules) => Variant::Rules(rules),
                Err(error) => {
                    tracing::error!(error, "a variant that was stored does not compile: it is not tried");
                    return None;
                }
            },
        };
        Some(Experiment { id, kind, subject, version, mode, variant })
    }

    /// All rules, with a variant in place of one of them.
    fn tried_rules(&self, experiment: ExperimentId, of: &str, spec: &str) -> Result<Arc<RuleSet>, String> {
        let spec = parsed(of, spec)?;
        let of: RuleId = of.parse().map_err(|error| format!("{error}"))?;
        let mut all = specs(self.rules)?;
        all.retain(|(id, _)| *id != of);
        all.push((of, spec));
        rule_set(all, self.number, Some(experiment))
    }
}

fn rule_set(specs: Vec<Spec>, number: i64, variant: Option<ExperimentId>) -> Result<Arc<RuleSet>, String> {
    let compiled = RuleSet::stored(specs, Box::new(Language::stored()));
    compiled.map(|rules| Arc::new(rules.numbered(number, variant))).map_err(|problems| {
        let each = problems.iter().take(5).map(|it| format!("{}: {}", it.pointer, it.detail));
        each.collect::<Vec<_>>().join("; ")
    })
}

fn parsed(id: &str, json: &str) -> Result<RuleSpec, String> {
    serde_json::from_str(json).map_err(|error| format!("{id}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rules: &[&str], scripts: &[(&str, bool)]) -> LoadedRulebook {
        let rules: Vec<_> = rules.iter().map(|json| (RuleId::new(), (*json).to_owned())).collect();
        let scripts = scripts.iter().enumerate();
        let sources = Sources {
            rules,
            number: 1,
            scripts: scripts
                .map(|(at, (source, operators))| (format!("s{at}"), 1, (*source).to_owned(), *operators))
                .collect(),
            experiments: Vec::new(),
            modules: Arc::default(),
            resets: HashMap::new(),
        };
        compile(sources, None, "stamp".to_owned()).unwrap()
    }

    /// A node that starts with unreadable rules must not let through the messages that they were to stop.
    #[test]
    fn what_lets_nothing_through_unasked_stands_there_although_it_does_not_compile() {
        let known = read(
            &[
                r#"{"name": "Good", "then": {"refuse": {"reason": "x"}}}"#,
                r#"{"name": "Later", "fails": "refuse", "when": {"moon": "full"}, "then": {"refuse": {"reason": "x"}}}"#,
                r#"{"name": "Open", "when": {"moon": "full"}, "then": {"refuse": {"reason": "x"}}}"#,
            ],
            &[
                ("fn admit(message) { let x = ; }", true),
                ("const FAILS = \"hold\";\nfn admit(message) { let x = ; }", false),
                ("fn admit(message) { let x = ; }", false),
                ("fn route(message, candidates) { let x = ; }", true),
            ],
        );
        assert_eq!(known.book.rules.as_ref().unwrap().len(), 2, "the good one, and the one that must be asked");
        let scripts: Vec<_> = known.book.scripts.iter().map(|it| (it.name.as_str(), it.fails.as_str())).collect();
        assert_eq!(scripts, [("s0", "refuse"), ("s1", "hold")]);
    }
}
