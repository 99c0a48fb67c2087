//! Operators' scripts: files of a folder, for all tenants or for one. A file that was saved is live
//! within a second, on every node: the database carries it there. One that does not compile, or
//! whose cases fail, changes nothing.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;

use crate::{
    rules::{
        cases::Suite,
        script::{Modules, Script},
    },
    store::{
        self, Store,
        script::{operator_script_list, operator_script_put, operator_script_retire},
    },
};

/// Between two looks at the folder.
const PAUSE: Duration = Duration::from_millis(300);
const CASES: &str = "cases";

/// A script of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The tenant that it is for, by name; empty for all.
    pub scope: String,
    pub name: String,
    pub file: PathBuf,
    pub source: String,
    /// The text of its cases, where there are some.
    pub cases: Option<String>,
}

/// What trying a script came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// A line for each case that passed.
    pub passed: Vec<String>,
    /// What is wrong: it does not compile, or a case fails.
    pub problems: Vec<String>,
}

/// Reads the scripts of a folder, and of the folders of tenants in it.
///
/// # Errors
/// Where something can't be read.
pub fn read(folder: &Path) -> io::Result<Vec<Found>> {
    let mut found = read_scope(folder, "")?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let scope = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && scope != CASES && !scope.starts_with('.') {
            found.extend(read_scope(&entry.path(), &scope)?);
        }
    }
    found.sort_by(|a, b| (&a.scope, &a.name).cmp(&(&b.scope, &b.name)));
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

impl Found {
    /// Compiles it and runs its cases.
    #[must_use]
    pub fn tried(&self) -> Tried {
        let mut tried = Tried { passed: Vec::new(), problems: Vec::new() };
        let file = self.file.display().to_string();
        let script = match Script::compile(&file, &self.source, &Modules::none()) {
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

/// Puts what the folder has into service, at the start and whenever a file of it changes, until `stop`.
pub async fn watch(folder: PathBuf, store: Store, stop: CancellationToken) {
    let mut seen = None;
    while !stop.is_cancelled() {
        let look = folder.clone();
        let now = tokio::task::spawn_blocking(move || signature(&look)).await.ok();
        if now.is_some() && now != seen {
            match put_in_service(&folder, &store).await {
                Ok(()) => seen = now,
                Err(error) => {
                    tracing::warn!(%error, folder = %folder.display(), "operators' scripts are not in service yet")
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

async fn put_in_service(folder: &Path, store: &Store) -> Result<(), Failed> {
    let look = folder.to_path_buf();
    let scripts = tokio::task::spawn_blocking(move || {
        let found = read(&look)?;
        io::Result::Ok(found.into_iter().map(|script| (script.tried(), script)).collect::<Vec<_>>())
    })
    .await??;
    let mut changed = false;
    let mut txn = store.worker().await?;
    for (scope, name) in operator_script_list(&mut txn).await? {
        if !scripts.iter().any(|(_, it)| it.scope == scope && it.name == name) {
            operator_script_retire(&mut txn, &scope, &name).await?;
            tracing::info!(scope, script = name, "an operators' script is out of service: its file is gone");
            changed = true;
        }
    }
    for (tried, script) in &scripts {
        if let Some(problem) = tried.problems.first() {
            tracing::error!(problem, file = %script.file.display(), "an operators' script is refused: the last good version goes on");
        } else if operator_script_put(&mut txn, &script.scope, &script.name, &script.source).await? {
            tracing::info!(scope = script.scope, script = script.name, "an operators' script is live");
            changed = true;
        }
    }
    txn.commit().await.map_err(store::StoreError::from)?;
    if changed {
        store.announce_config_of_all().await?;
    }
    Ok(())
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
        let found = read(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|it| (it.scope.as_str(), it.name.as_str())).collect();
        assert_eq!(names, [("", "gate"), ("shop", "order")]);
        assert!(found[0].tried().problems[0].starts_with("FAILED  all"), "{:?}", found[0].tried());
        assert!(found[1].tried().problems[0].contains("order.rhai:2:"), "{:?}", found[1].tried());
    }

    #[test]
    fn the_ready_scripts_pass_their_cases() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rules");
        for script in read(&folder).unwrap() {
            let tried = script.tried();
            assert!(tried.problems.is_empty() && !tried.passed.is_empty(), "{}: {tried:?}", script.name);
        }
    }
}
