//! Operators' scripts and the modules that scripts import: files of a folder, for all tenants or for one. A saved file
//! is live within a second, on every node: the database carries it there. A file that does not compile, or whose cases
//! fail, changes nothing.

mod modules;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use self::modules::{Refused, Sources, User, of_scope, review};
use angarium_domain::audit::{Action, Actor};
use angarium_rules::{
    cases::Suite,
    script::{Modules, Script},
};
use angarium_store::{
    self as store, Store,
    audit::{AuditEntry, operator_audit_insert},
    script::{
        Importer, OperatorScript, ScriptKind, operator_script_list, operator_script_put, operator_script_retire,
        script_importers,
    },
    task_lease::{LeasedTask, task_lease_return},
};

/// Between two looks at the folder.
const PAUSE: Duration = Duration::from_millis(300);
const CASES: &str = "cases";
const MODULES: &str = "modules";
/// The folder at the root of a separate volume, which only root may read.
const LOST_AND_FOUND: &str = "lost+found";

/// The content of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Folder {
    pub scripts: Vec<Found>,
    /// The modules that scripts import.
    pub modules: Vec<Found>,
}

/// A script or module of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The tenant that it is for, by name; empty for all.
    pub scope: String,
    pub name: String,
    pub file: PathBuf,
    pub source: String,
    /// The text of its cases, if there are any.
    pub cases: Option<String>,
}

/// The result of trying a script or a module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tried {
    /// A line for each case that passed.
    pub passed: Vec<String>,
    /// The faults: it does not compile, or a case fails.
    pub problems: Vec<String>,
}

/// Reads the scripts and modules of a folder, and of the folders of tenants in it.
///
/// # Errors
/// If a file cannot be read.
pub fn read(folder: &Path) -> io::Result<Folder> {
    let mut found = Folder::default();
    found.add(folder, "")?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let scope = entry.file_name().to_string_lossy().into_owned();
        let is_tenants = ![CASES, MODULES, LOST_AND_FOUND].contains(&scope.as_str()) && !scope.starts_with('.');
        if entry.path().is_dir() && is_tenants {
            found.add(&entry.path(), &scope)?;
        }
    }
    for list in [&mut found.scripts, &mut found.modules] {
        list.sort_by(|a, b| (&a.scope, &a.name).cmp(&(&b.scope, &b.name)));
    }
    Ok(found)
}

fn read_scope(folder: &Path, scope: &str) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        let Some(name) = file.file_stem().map(|it| it.to_string_lossy().into_owned()) else { continue };
        if file.extension().is_none_or(|it| it != "rhai") || name.starts_with('.') {
            continue;
        }
        let cases = match fs::read_to_string(folder.join(CASES).join(format!("{name}.json"))) {
            Ok(cases) => Some(cases),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        found.push(Found { scope: scope.to_owned(), source: fs::read_to_string(&file)?, name, file, cases });
    }
    Ok(found)
}

impl Folder {
    fn add(&mut self, folder: &Path, scope: &str) -> io::Result<()> {
        self.scripts.extend(read_scope(folder, scope)?);
        let modules = folder.join(MODULES);
        if modules.is_dir() {
            self.modules.extend(read_scope(&modules, scope)?);
        }
        Ok(())
    }

    /// Compiles all of it and runs its cases, by itself.
    #[must_use]
    pub fn tried(&self) -> Vec<(&Found, Tried)> {
        let (sources, refused) = review(&Sources::new(), &self.sources(), &[]);
        let module = |it| (it, Tried { problems: refusal(&refused, it).into_iter().collect(), ..Tried::default() });
        let modules = self.modules.iter().map(module);
        modules.chain(self.scripts.iter().map(|script| (script, script.tried(&sources)))).collect()
    }

    fn sources(&self) -> Sources {
        let key = |it: &Found| (it.scope.clone(), it.name.clone());
        self.modules.iter().map(|it| (key(it), it.source.clone())).collect()
    }
}

fn refusal(refused: &[Refused], module: &Found) -> Option<String> {
    let same = |it: &&Refused| it.scope == module.scope && it.name == module.name;
    Some(format!("{}: {}", module.file.display(), refused.iter().find(same)?.reason))
}

impl Found {
    /// Compiles it with its imports, and runs its cases.
    #[must_use]
    pub fn tried(&self, modules: &Sources) -> Tried {
        let mut tried = Tried::default();
        let file = self.file.display().to_string();
        // Modules that were taken compile.
        let modules = of_scope(modules, &self.scope).unwrap_or_else(|_| Modules::none());
        let script = match Script::compile(&file, &self.source, &modules) {
            Ok(script) => script,
            Err(error) => {
                tried.problems.push(error.to_string());
                return tried;
            }
        };
        match self.cases.as_deref().map(Suite::parse) {
            None => {}
            Some(Err(reason)) => tried.problems.push(format!("{file}: its cases: {reason}")),
            Some(Ok(suite)) => {
                for outcome in suite.run(&script) {
                    let list = if outcome.passed() { &mut tried.passed } else { &mut tried.problems };
                    list.push(outcome.to_string());
                }
            }
        }
        tried
    }
}

/// Puts the folder's files into service, at the start and whenever one changes, until `stop`.
pub async fn watch(folder: PathBuf, store: Store, stop: CancellationToken) {
    let (mut seen, mut said) = (None, String::new());
    while !stop.is_cancelled() {
        let look = folder.clone();
        let now = tokio::task::spawn_blocking(move || signature(&look)).await.ok();
        if now.is_some() && now != seen {
            match store_folder(&folder, &store).await {
                Ok(()) => (seen, said) = (now, String::new()),
                Err(error) => {
                    // A folder that is gone stays so for a while: the same is said once.
                    let error = error.to_string();
                    if error != said {
                        tracing::warn!(error, folder = %folder.display(), "operators' scripts are not in service yet");
                        said = error;
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Changes whenever a file does.
fn signature(folder: &Path) -> BTreeSet<(PathBuf, Option<SystemTime>, u64)> {
    let mut files = BTreeSet::new();
    let mut folders = vec![(folder.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(about) = entry.metadata() else { continue };
            if about.is_dir() && depth < 2 {
                folders.push((entry.path(), depth + 1));
            } else {
                files.insert((entry.path(), about.modified().ok(), about.len()));
            }
        }
    }
    files
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("{0}")]
    Store(#[from] store::StoreError),
    #[error("{0}")]
    Task(#[from] tokio::task::JoinError),
}

async fn store_folder(folder: &Path, store: &Store) -> Result<(), Failed> {
    let look = folder.to_path_buf();
    let found = tokio::task::spawn_blocking(move || read(&look)).await??;
    // Two nodes that read the same folder store it once.
    let mut txn = store.worker_with(LeasedTask::OperatorScripts).await?;
    let live = operator_script_list(&mut txn).await?;
    let importers = script_importers(&mut txn).await?;
    let judge = move || judged(&found, live, importers);
    let Judged { puts, gone } = tokio::task::spawn_blocking(judge).await?;
    let by = Actor::gateway("rules.folder");
    for it in &gone {
        operator_script_retire(&mut txn, it.kind, &it.scope, &it.name).await?;
        let entry = AuditEntry::new(Action::OperatorScriptRetired, &it.name);
        operator_audit_insert(&mut txn, &by, &entry.before(recorded(it))).await?;
        tracing::info!(
            scope = it.scope,
            script = it.name,
            kind = it.kind.as_str(),
            "an operators' script is out of service: its file is gone"
        );
    }
    for it in &puts {
        operator_script_put(&mut txn, it).await?;
        let entry = AuditEntry::new(Action::OperatorScriptActivated, &it.name);
        operator_audit_insert(&mut txn, &by, &entry.after(recorded(it))).await?;
        tracing::info!(scope = it.scope, script = it.name, kind = it.kind.as_str(), "an operators' script is live");
    }
    task_lease_return(&mut txn, LeasedTask::OperatorScripts, store.holder()).await?;
    txn.commit().await.map_err(store::StoreError::from)?;
    if !puts.is_empty() || !gone.is_empty() {
        store.announce_config_of_all().await?;
    }
    Ok(())
}

/// A script or module as the audit records it: by the digest of its source.
fn recorded(it: &OperatorScript) -> Value {
    let digest = hex::encode(Sha256::digest(it.source.as_bytes()));
    json!({"kind": it.kind.as_str(), "scope": it.scope, "sha256": digest})
}

/// The changes to make in the database.
struct Judged {
    puts: Vec<OperatorScript>,
    gone: Vec<OperatorScript>,
}

/// Selects the files of a folder that replace live ones. A file that fails is logged, and the last good version stays.
fn judged(found: &Folder, live: Vec<OperatorScript>, importers: Vec<Importer>) -> Judged {
    let (live_modules, live_scripts): (Vec<_>, Vec<_>) = live.into_iter().partition(|it| it.kind == ScriptKind::Module);
    let before = live_modules.iter().map(|it| ((it.scope.clone(), it.name.clone()), it.source.clone())).collect();
    let (modules, refused) = review(&before, &found.sources(), &users(found, &live_scripts, importers));
    for Refused { scope, name, reason } in &refused {
        tracing::error!(
            scope,
            module = name,
            problem = reason,
            "an operators' module is refused: the last good version goes on"
        );
    }
    let mut puts: Vec<_> = modules
        .iter()
        .filter(|(key, source)| before.get(*key) != Some(*source))
        .map(|((scope, name), source)| operators(ScriptKind::Module, scope, name, source))
        .collect();
    for script in &found.scripts {
        let same = |it: &&OperatorScript| it.scope == script.scope && it.name == script.name;
        let tried = script.tried(&modules);
        if let Some(problem) = tried.problems.first() {
            tracing::error!(problem, file = %script.file.display(), "an operators' script is refused: the last good version goes on");
        } else if live_scripts.iter().find(same).is_none_or(|it| it.source != script.source) {
            puts.push(operators(ScriptKind::Script, &script.scope, &script.name, &script.source));
        }
    }
    let is_found = |it: &OperatorScript| found.scripts.iter().any(|s| s.scope == it.scope && s.name == it.name);
    let is_module = |it: &OperatorScript| modules.contains_key(&(it.scope.clone(), it.name.clone()));
    let gone_scripts = live_scripts.into_iter().filter(|it| !is_found(it));
    let gone_modules = live_modules.into_iter().filter(|it| !is_module(it));
    Judged { puts, gone: gone_scripts.chain(gone_modules).collect() }
}

fn operators(kind: ScriptKind, scope: &str, name: &str, source: &str) -> OperatorScript {
    OperatorScript { kind, scope: scope.to_owned(), name: name.to_owned(), source: source.to_owned() }
}

/// Returns the scripts that may import modules: the folder's, as they are there and as they are in service, and
/// tenants' own.
fn users(found: &Folder, live: &[OperatorScript], importers: Vec<Importer>) -> Vec<User> {
    let of_folder = found.scripts.iter().map(|script| {
        let same = |it: &&OperatorScript| it.scope == script.scope && it.name == script.name;
        let in_service = live.iter().find(same).map(|it| it.source.clone());
        let sources = std::iter::once(script.source.clone()).chain(in_service).collect();
        User { scope: script.scope.clone(), name: script.name.clone(), sources, cases: script.cases.clone() }
    });
    let of_tenants = importers.into_iter().map(|it| User {
        cases: it.cases.map(|cases| format!("{{\"cases\": {cases}}}")),
        scope: it.tenant,
        name: it.name,
        sources: vec![it.source],
    });
    of_folder.chain(of_tenants).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_of_tenants_are_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("gate.rhai", "fn admit(message) { refuse(\"no\") }");
        write(
            "cases/gate.json",
            r#"{"cases": [{"name": "all", "hook": "admit", "message": {}, "expect": {"action": "allow"}}]}"#,
        );
        write("shop/order.rhai", "fn route(message, candidates) {\n  let x = ;\n}");
        write("README.md", "");
        write("modules/market.rhai", "fn verdict() { allow() }");
        write("shop/modules/bad.rhai", "fn verdict() {\n  let x = ;\n}");
        let found = read(folder.path()).unwrap();
        let names = |list: &[Found]| list.iter().map(|it| format!("{}/{}", it.scope, it.name)).collect::<Vec<_>>();
        assert_eq!(names(&found.scripts), ["/gate", "shop/order"]);
        assert_eq!(names(&found.modules), ["/market", "shop/bad"]);
        let problems: Vec<_> = found.tried().into_iter().map(|(_, tried)| tried.problems.concat()).collect();
        assert_eq!(problems[0], "");
        assert!(problems[1].contains("bad:2:11: "), "{problems:?}");
        assert!(problems[2].starts_with("FAILED  all"), "{problems:?}");
        assert!(problems[3].contains("order.rhai:2:"), "{problems:?}");
    }

    /// Kubernetes changes a mounted ConfigMap by putting another folder behind the link `..data`; the files themselves are
    /// links through it, and stay.
    #[test]
    #[cfg(unix)]
    fn a_mounted_configuration_that_changes_behind_its_link_is_seen() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let put = |version: &str, source: &str| {
            let data = folder.path().join(version);
            fs::create_dir(&data).unwrap();
            fs::write(data.join("gate.rhai"), source).unwrap();
            symlink(version, folder.path().join("..new")).unwrap();
            fs::rename(folder.path().join("..new"), folder.path().join("..data")).unwrap();
        };
        put("..2026_1", "fn admit(message) { allow() }");
        symlink("..data/gate.rhai", folder.path().join("gate.rhai")).unwrap();
        let lost = folder.path().join(LOST_AND_FOUND);
        fs::create_dir(&lost).unwrap();
        fs::set_permissions(&lost, fs::Permissions::from_mode(0o000)).unwrap();
        let before = signature(folder.path());
        assert_eq!(read(folder.path()).unwrap().scripts[0].source, "fn admit(message) { allow() }");
        // The text has the same length, so that only the link differs.
        put("..2026_2", "fn admit(message) { above() }");
        assert_ne!(signature(folder.path()), before);
        let found = read(folder.path()).unwrap();
        assert_eq!((found.scripts.len(), found.scripts[0].source.as_str()), (1, "fn admit(message) { above() }"));
        fs::set_permissions(&lost, fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn the_ready_scripts_pass_their_cases() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rules");
        let found = read(&folder).unwrap();
        let scripts = found.tried().into_iter().filter(|(it, _)| found.scripts.contains(it));
        for (script, tried) in scripts {
            assert!(tried.problems.is_empty() && !tried.passed.is_empty(), "{}: {tried:?}", script.name);
        }
    }
}
