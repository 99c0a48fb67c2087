//! The tenants' rules and scripts, compiled once for as long as they stay the same: other changes of
//! a tenant's configuration are frequent, and a script's breaker belongs to its version.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    domain::{
        ids::{RuleId, TenantId},
        rule::RuleSpec,
        trial::Kind,
    },
    rules::{
        RuleSet,
        language::Language,
        rulebook::{Rulebook, Running},
        script::{Modules, Script, may_import},
        trial::{Candidate, Trial},
    },
    store::{
        self, Connection as Db,
        rule::{rule_specs, rulebook_stamp},
        script::{LiveScript, module_list, script_live_list, script_resets},
        trial::{self, TrialRow, trial_running},
    },
};

/// A tenant's rules as they were read.
pub(super) struct Read {
    stamp: String,
    /// `None` where nothing changed.
    sources: Option<Sources>,
}

struct Sources {
    rules: Arc<Vec<(RuleId, String)>>,
    scripts: Vec<LiveScript>,
    trials: Vec<trial::Running>,
    modules: Arc<BTreeMap<String, String>>,
    /// How often each script was switched on again by hand.
    resets: HashMap<String, i32>,
}

/// What stands of a tenant.
#[derive(Clone)]
struct Known {
    stamp: String,
    book: Arc<Rulebook>,
    /// What its rules were compiled from.
    rules: Arc<Vec<(RuleId, String)>>,
    /// What its scripts were compiled with.
    modules: Arc<BTreeMap<String, String>>,
    compiled_modules: Modules,
}

type Spec = (RuleId, RuleSpec);

/// What is known, with what tells it from what comes later.
#[derive(Default)]
pub(super) struct Rulebooks(Mutex<HashMap<TenantId, Known>>);

impl Rulebooks {
    /// Reads what this node does not know yet; `None` for a tenant without rules.
    pub async fn read(&self, db: &mut Db, tenant: TenantId) -> store::Result<Option<Read>> {
        let Some(stamp) = rulebook_stamp(db, tenant).await? else { return Ok(None) };
        if self.known(tenant).is_some_and(|known| known.stamp == stamp) {
            return Ok(Some(Read { stamp, sources: None }));
        }
        let (rules, scripts) = (rule_specs(db, tenant).await?, script_live_list(db, tenant).await?);
        let trials = trial_running(db, tenant).await?;
        let (modules, resets) = (module_list(db, tenant).await?.into(), script_resets(db, tenant).await?);
        let rules = rules.into();
        Ok(Some(Read { stamp, sources: Some(Sources { rules, scripts, trials, modules, resets }) }))
    }

    /// What a tenant's messages are decided by. What does not compile, as a later version of the gateway may have
    /// stored it, is left as it was.
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

    fn known(&self, tenant: TenantId) -> Option<Known> {
        self.books().get(&tenant).cloned()
    }

    fn books(&self) -> MutexGuard<'_, HashMap<TenantId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What did not change is not compiled again.
fn compile(sources: Sources, before: Option<&Known>, stamp: String) -> Result<Known, String> {
    let Sources { rules, scripts, trials, modules, resets } = sources;
    let same_rules = before.filter(|it| it.rules == rules).and_then(|it| it.book.rules.clone());
    let compiled = match same_rules {
        Some(same) => same,
        None => rule_set(specs(&rules)?)?,
    };
    let same_modules = before.filter(|it| it.modules == modules).map(|it| it.compiled_modules.clone());
    let workshop = Workshop {
        before,
        same_modules: same_modules.is_some(),
        modules: same_modules.unwrap_or_else(|| Modules::stored(&modules)),
        rules: &rules,
        resets,
    };
    // What is tried in an operators' script's place is held to the same.
    let is_operators = |name: &str| scripts.iter().any(|(it, .., operators)| it == name && *operators);
    let trials = trials.into_iter().filter_map(|trial| workshop.trial(trial, is_operators)).collect();
    let scripts = scripts.into_iter().filter_map(|script| workshop.running(script)).collect();
    let compiled_modules = workshop.modules;
    let book = Arc::new(Rulebook { rules: Some(compiled), scripts, trials, rehearses: false });
    Ok(Known { stamp, book, rules, modules, compiled_modules })
}

fn specs(rules: &[(RuleId, String)]) -> Result<Vec<Spec>, String> {
    rules.iter().map(|(id, json)| Ok((*id, parsed(&id.to_string(), json)?))).collect()
}

/// Where scripts are made ready.
struct Workshop<'a> {
    before: Option<&'a Known>,
    modules: Modules,
    same_modules: bool,
    rules: &'a [(RuleId, String)],
    resets: HashMap<String, i32>,
}

impl<'a> Workshop<'a> {
    /// A script in service: as it is known, with its failures, or made anew; what does not compile goes on as it was.
    fn running(&self, (name, version, source, operators): LiveScript) -> Option<Arc<Running>> {
        self.known_or_new(&name, version, &source, operators).or_else(|| {
            let last = self.before?.book.scripts.iter().find(|it| it.name == name)?;
            Some(Arc::clone(last))
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

    /// What stood in service, and what was tried.
    fn known(&self) -> impl Iterator<Item = &'a Arc<Running>> {
        self.before
            .into_iter()
            .flat_map(|known| known.book.scripts.iter().chain(known.book.trials.iter().filter_map(Trial::script)))
    }

    /// A candidate; one that is not fit to be asked is left out.
    fn trial(&self, (row, source): trial::Running, is_operators: impl Fn(&str) -> bool) -> Option<Trial> {
        let TrialRow { id, kind, subject, version, mode, spec, .. } = row;
        let candidate = match kind {
            Kind::Script => {
                Candidate::Script(self.known_or_new(&subject, version, &source?, is_operators(&subject))?)
            }
            Kind::Rule => match tried_rules(&subject, &spec.unwrap_or_default(), self.rules) {
                Ok(rules) => Candidate::Rules(rules),
                Err(error) => {
                    tracing::error!(error, "a candidate that was stored does not compile: it is not tried");
                    return None;
                }
            },
        };
        Some(Trial { id, kind, subject, version, mode, candidate })
    }
}

/// All rules, with one of them as it would be.
fn tried_rules(of: &str, spec: &str, rules: &[(RuleId, String)]) -> Result<Arc<RuleSet>, String> {
    let spec = parsed(of, spec)?;
    let of: RuleId = of.parse().map_err(|error| format!("{error}"))?;
    let mut all = specs(rules)?;
    all.retain(|(id, _)| *id != of);
    all.push((of, spec));
    rule_set(all)
}

fn rule_set(specs: Vec<Spec>) -> Result<Arc<RuleSet>, String> {
    RuleSet::stored(specs, Box::new(Language::stored())).map(Arc::new).map_err(|problems| {
        let each = problems.iter().take(5).map(|it| format!("{}: {}", it.pointer, it.detail));
        each.collect::<Vec<_>>().join("; ")
    })
}

fn parsed(id: &str, json: &str) -> Result<RuleSpec, String> {
    serde_json::from_str(json).map_err(|error| format!("{id}: {error}"))
}
