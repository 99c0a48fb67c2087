//! The tenants' rules and scripts, compiled once for as long as they stay the same: other changes of
//! a tenant's configuration are frequent, and a script's breaker belongs to its version.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    domain::ids::{RuleId, TenantId},
    rules::{
        RuleSet,
        language::Language,
        rulebook::{Rulebook, Running},
        script::{Modules, Script},
    },
    store::{
        self, Connection as Db,
        rule::{rule_specs, rulebook_stamp},
        script::{LiveScript, script_live_list},
    },
};

/// A tenant's rules as they were read.
pub(super) struct Read {
    stamp: String,
    /// `None` where nothing changed.
    sources: Option<Sources>,
}

struct Sources {
    rules: Vec<(RuleId, String)>,
    scripts: Vec<LiveScript>,
}

/// What is known, with what tells it from what comes later.
#[derive(Default)]
pub(super) struct Rulebooks(Mutex<HashMap<TenantId, (String, Arc<Rulebook>)>>);

impl Rulebooks {
    /// Reads what this node does not know yet; `None` for a tenant without rules.
    pub async fn read(&self, db: &mut Db, tenant: TenantId) -> store::Result<Option<Read>> {
        let Some(stamp) = rulebook_stamp(db, tenant).await? else { return Ok(None) };
        if self.known(tenant).is_some_and(|(known, _)| known == stamp) {
            return Ok(Some(Read { stamp, sources: None }));
        }
        let (rules, scripts) = (rule_specs(db, tenant).await?, script_live_list(db, tenant).await?);
        Ok(Some(Read { stamp, sources: Some(Sources { rules, scripts }) }))
    }

    /// What a tenant's messages are decided by. What does not compile, as a later version of the gateway may have
    /// stored it, is left as it was.
    pub async fn of(&self, tenant: TenantId, read: Option<Read>) -> Option<Arc<Rulebook>> {
        let Some(Read { stamp, sources }) = read else {
            self.books().remove(&tenant);
            return None;
        };
        let before = self.known(tenant).map(|(_, book)| book);
        let Some(sources) = sources else { return before };
        let standing = before.clone();
        let compiled = tokio::task::spawn_blocking(move || compile(sources, standing.as_deref())).await;
        match compiled.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(book) => {
                let book = Arc::new(book);
                self.books().insert(tenant, (stamp, Arc::clone(&book)));
                Some(book)
            }
            Err(error) => {
                tracing::error!(tenant.id = %tenant, error, "rules that were stored don't compile: the last good ones go on");
                before
            }
        }
    }

    fn known(&self, tenant: TenantId) -> Option<(String, Arc<Rulebook>)> {
        self.books().get(&tenant).cloned()
    }

    fn books(&self) -> MutexGuard<'_, HashMap<TenantId, (String, Arc<Rulebook>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compile(sources: Sources, before: Option<&Rulebook>) -> Result<Rulebook, String> {
    let spec = |(id, json): (RuleId, String)| match serde_json::from_str(&json) {
        Ok(spec) => Ok((id, spec)),
        Err(error) => Err(format!("{id}: {error}")),
    };
    let specs: Vec<_> = sources.rules.into_iter().map(spec).collect::<Result<_, _>>()?;
    let rules = RuleSet::compile(specs, Box::<Language>::default()).map_err(|problems| {
        let each = problems.iter().take(5).map(|it| format!("{}: {}", it.pointer, it.detail));
        each.collect::<Vec<_>>().join("; ")
    })?;
    let running = |(name, version, source): LiveScript| {
        let same = |it: &&Arc<Running>| it.name == name && it.version == version && *it.source == *source;
        let known = before.and_then(|book| book.scripts.iter().find(same));
        match known {
            Some(known) => Ok(Arc::clone(known)),
            None => Script::compile(&name, &source, &Modules::none())
                .map(|script| Arc::new(Running::new(name.clone(), version, source.as_str().into(), script)))
                .map_err(|error| error.to_string()),
        }
    };
    let scripts = sources.scripts.into_iter().map(running).collect::<Result<_, _>>()?;
    Ok(Rulebook { rules: Some(Arc::new(rules)), scripts })
}
