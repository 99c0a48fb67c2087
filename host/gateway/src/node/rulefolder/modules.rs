//! Selects the changes of modules that are applied: those that compile, and break no importing script. Pure: the live
//! sources and the folder's are arguments.

use std::collections::{BTreeMap, BTreeSet};

use angarium_rules::{
    cases::{CaseOutcome, Suite},
    script::{Modules, Script, ScriptError, may_import},
};

/// Modules' sources by their scope (a tenant's name, empty for all) and their own name.
pub type Sources = BTreeMap<(String, String), String>;

/// A script that may import modules.
#[derive(Debug, Clone)]
pub struct User {
    /// The tenant that it is for, by name; empty for all.
    pub scope: String,
    pub name: String,
    /// The sources with which it may run: from the folder, or as it is in service.
    pub sources: Vec<String>,
    /// The text of its cases, if there are any.
    pub cases: Option<String>,
}

/// A change that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub scope: String,
    pub name: String,
    pub reason: String,
}

/// Returns the new modules, and the refused changes: their live versions stay.
///
/// Each change is looked at by itself, as often as another was taken: one may need the other.
pub fn review(live: &Sources, found: &Sources, users: &[User]) -> (Sources, Vec<Refused>) {
    let mut now = live.clone();
    let mut open: Vec<_> = live.keys().chain(found.keys()).collect::<BTreeSet<_>>().into_iter().collect();
    open.retain(|key| live.get(*key) != found.get(*key));
    loop {
        let (before, mut refused) = (open.len(), Vec::new());
        open.retain(|key| match changed(&now, key, found.get(*key), users) {
            Ok(next) => {
                now = next;
                false
            }
            Err(reason) => {
                let (scope, name) = (*key).clone();
                refused.push(Refused { scope, name, reason });
                true
            }
        });
        if open.len() == before || open.is_empty() {
            return (now, refused);
        }
    }
}

/// Returns the modules that a script of this scope can import.
pub fn of_scope(sources: &Sources, scope: &str) -> Result<Modules, ScriptError> {
    with_changed(sources, scope, "")
}

/// Returns the modules with a changed one of this name: the others are in service, and stay.
fn with_changed(sources: &Sources, scope: &str, name: &str) -> Result<Modules, ScriptError> {
    if sources.is_empty() {
        return Ok(Modules::none());
    }
    let own = |wanted: &str| {
        let of = |((scope, name), source): (&(String, String), &String)| {
            (scope == wanted).then(|| (name.clone(), source.clone()))
        };
        sources.iter().filter_map(of).collect::<BTreeMap<_, _>>()
    };
    let mut all = own("");
    all.extend(own(scope));
    Modules::changed(&all, name)
}

/// The modules with one change, if nothing is worse with it.
fn changed(now: &Sources, key: &(String, String), source: Option<&String>, users: &[User]) -> Result<Sources, String> {
    let mut next = now.clone();
    match source {
        Some(source) => drop(next.insert(key.clone(), source.clone())),
        None => drop(next.remove(key)),
    }
    for scope in affected(&key.0, &next, users) {
        let after = with_changed(&next, scope, &key.1).map_err(|error| error.to_string())?;
        let before = of_scope(now, scope);
        // If the live version no longer compiles, any version that does is better.
        let before = before.unwrap_or_else(|_| Modules::none());
        let importing = |user: &&User| {
            (user.scope.is_empty() || user.scope == scope) && user.sources.iter().any(|it| may_import(it))
        };
        for user in users.iter().filter(importing) {
            let (was, is) = (user.standing(&before), user.standing(&after));
            if is.0 < was.0 {
                return Err(format!("it breaks the script `{}`: {}", user.name, is.1));
            }
        }
    }
    Ok(next)
}

fn affected<'a>(scope: &'a str, next: &'a Sources, users: &'a [User]) -> BTreeSet<&'a str> {
    let mut scopes = BTreeSet::from([scope]);
    if scope.is_empty() {
        scopes.extend(next.keys().map(|(scope, _)| scope.as_str()));
        scopes.extend(users.iter().map(|user| user.scope.as_str()));
    }
    scopes
}

impl User {
    /// Returns the rank of the best of its sources with these modules, and the faults of the first.
    fn standing(&self, modules: &Modules) -> (Standing, String) {
        let each: Vec<_> = self.sources.iter().map(|source| self.standing_of(source, modules)).collect();
        let best = each.iter().map(|(standing, _)| *standing).max().unwrap_or(Standing::Broken);
        (best, each.into_iter().next().map(|(_, reason)| reason).unwrap_or_default())
    }

    fn standing_of(&self, source: &str, modules: &Modules) -> (Standing, String) {
        let script = match Script::stored(&self.name, source, modules) {
            Ok(script) => script,
            Err(error) => return (Standing::Broken, error.to_string()),
        };
        match self.cases.as_deref().map(Suite::parse) {
            None => (Standing::Passes, String::new()),
            Some(Err(reason)) => (Standing::Compiles, reason),
            Some(Ok(suite)) => match suite.run(&script).into_iter().find(|it: &CaseOutcome| !it.passed()) {
                Some(failed) => (Standing::Compiles, failed.to_string()),
                None => (Standing::Passes, String::new()),
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Broken,
    Compiles,
    Passes,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(modules: &[(&str, &str)]) -> Sources {
        let source = |(path, source): &(&str, &str)| {
            let (scope, name) = path.split_once('/').unwrap_or(("", path));
            ((scope.to_owned(), name.to_owned()), (*source).to_owned())
        };
        modules.iter().map(source).collect()
    }

    fn user(scope: &str, source: &str, expected: &str) -> User {
        let cases = format!(r#"{{"cases": [{{"name": "c", "hook": "admit", "expect": {{"action": "{expected}"}}}}]}}"#);
        User { scope: scope.into(), name: "gate".into(), sources: vec![source.into()], cases: Some(cases) }
    }

    const GATE: &str = "import \"market\" as market;\nfn admit(message) { market::verdict() }";
    const OPEN: &str = "fn verdict() { allow() }";

    fn refused(live: &[(&str, &str)], found: &[(&str, &str)], users: &[User]) -> Vec<String> {
        let (now, refused) = review(&sources(live), &sources(found), users);
        for it in &refused {
            let key = (it.scope.clone(), it.name.clone());
            assert_eq!(now.get(&key), sources(live).get(&key), "the last good one goes on");
        }
        refused.into_iter().map(|it| format!("{}/{}: {}", it.scope, it.name, it.reason)).collect()
    }

    #[test]
    fn what_does_not_compile_is_refused_with_its_place() {
        let found = refused(&[("market", OPEN)], &[("market", "fn verdict() {\n  let x = ;\n}")], &[]);
        assert!(found[0].starts_with("/market: market:2:11: "), "{found:?}");
    }

    #[test]
    fn what_breaks_a_script_or_its_cases_is_refused() {
        let users = [user("", GATE, "allow")];
        let with = |module: &str| refused(&[("market", OPEN)], &[("market", module)], &users);
        assert!(with("fn verdict() { allow() } fn other() { 1 }").is_empty());
        assert!(with("fn verdict() { refuse(\"no\") }")[0].contains("breaks the script `gate`: FAILED  c"));
        assert!(with("fn another() { 1 }")[0].contains("breaks the script `gate`"));
        assert!(refused(&[("market", OPEN)], &[], &users)[0].contains("breaks the script `gate`"), "one that is gone");
        let untested = [User { cases: None, ..users[0].clone() }];
        let found = refused(&[("market", OPEN)], &[("market", "fn another() { 1 }")], &untested);
        assert!(
            found[0].contains("gate:2:")
                && found[0].contains("the function `market::verdict` of 0 arguments does not exist"),
            "{found:?}"
        );
        let mut with_it = users[0].clone();
        with_it.sources.insert(0, GATE.replace("verdict", "another"));
        let renamed = [("market", "fn another() { allow() }")];
        assert!(refused(&[("market", OPEN)], &renamed, &[with_it]).is_empty(), "the script changed with it");
    }

    #[test]
    fn a_module_in_service_that_would_be_refused_today_holds_no_other_up() {
        let live = [("old", "fn old() { nowhere() }"), ("market", OPEN)];
        let changed = [live[0], ("market", "fn verdict() { refuse(\"no\") }")];
        assert!(refused(&live, &changed, &[]).is_empty());
        let both = [("old", "fn old() { nowhere(1) }"), changed[1]];
        let found = refused(&live, &both, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("/old: old:1:12: the function `nowhere` of 1 argument"), "{found:?}");
        let users = [user("", GATE, "allow")];
        assert!(refused(&live, &[live[0], ("market", "fn verdict() { allow() } fn more() { 1 }")], &users).is_empty());
    }

    #[test]
    fn changes_that_need_one_another_are_taken_together() {
        let live = [("a", "import \"b\" as b; fn one() { b::old() }"), ("b", "fn old() { 1 }")];
        let found = [("a", "import \"c\" as c; fn one() { c::fresh() }"), ("c", "fn fresh() { 1 }")];
        assert!(refused(&live, &found, &[]).is_empty());
    }

    #[test]
    fn a_tenants_module_is_its_own() {
        let (now, _) =
            review(&Sources::new(), &sources(&[("market", OPEN), ("shop/market", "fn verdict() { 1 }")]), &[]);
        assert_eq!(now.len(), 2);
        let gate = |scope: &str| Script::compile("gate", GATE, &of_scope(&now, scope).unwrap()).unwrap();
        let (message, given) = Default::default();
        assert!(gate("").admit(&message, &given).is_ok());
        assert!(gate("other").admit(&message, &given).is_ok());
        assert!(gate("shop").admit(&message, &given).is_err(), "its own stands in place of that for all");
        let late = [user("shop", GATE, "allow")];
        let found = refused(&[("market", OPEN)], &[("market", OPEN), ("shop/market", "fn verdict() { 1 }")], &late);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
