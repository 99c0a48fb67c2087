//! The rules of the map in `ARCHITECTURE.md` that a compiler does not check: the allowed imports, and the places of
//! third-party crates.

mod prose;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// For each part of the gateway crate, what it may import with `use crate::`. The other crates' edges are in their
/// `Cargo.toml`. A part is a module, or a folder's module in `engine`, `jobs` and `node`. Everything may import
/// `clock`.
const EDGES: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("credential", &[]),
    // The configuration and state of a node.
    ("config", &[]),
    ("telemetry", &["config"]),
    ("health", &["telemetry"]),
    ("providers", &["telemetry"]),
    ("tenant_config", &["guards"]),
    ("rulefolder", &[]),
    // The engine.
    ("observations", &[]),
    ("lookup", &[]),
    ("legs", &[]),
    ("guards", &["telemetry"]),
    ("script_failures", &["telemetry"]),
    ("capacity", &[]),
    ("small_tenant_priority", &["capacity"]),
    ("queue", &["capacity", "small_tenant_priority"]),
    ("fair_semaphore", &["small_tenant_priority"]),
    ("rule_runner", &["fair_semaphore"]),
    ("experiments", &["rule_runner", "telemetry"]),
    ("rule_hooks", &["experiments", "rule_runner", "script_failures"]),
    (
        "planning",
        &["experiments", "observations", "providers", "rule_hooks", "rule_runner", "script_failures", "tenant_config"],
    ),
    (
        "admission",
        &[
            "capacity",
            "experiments",
            "planning",
            "providers",
            "queue",
            "rule_hooks",
            "rule_runner",
            "script_failures",
            "small_tenant_priority",
            "telemetry",
            "tenant_config",
        ],
    ),
    (
        "follow_up",
        &["admission", "experiments", "rule_hooks", "rule_runner", "script_failures", "telemetry", "tenant_config"],
    ),
    ("ledger", &["legs", "queue", "small_tenant_priority"]),
    (
        "dispatch",
        &[
            "experiments",
            "fair_semaphore",
            "guards",
            "ledger",
            "observations",
            "planning",
            "providers",
            "queue",
            "rule_runner",
            "script_failures",
            "telemetry",
            "tenant_config",
        ],
    ),
    ("recovery", &["legs"]),
    ("callbacks", &["fair_semaphore", "legs", "lookup", "providers", "tenant_config"]),
    // Jobs.
    ("job_runner", &["app", "legs"]),
    ("maintenance", &["config", "telemetry"]),
    // Use cases, and their callers.
    (
        "app",
        &[
            "admission",
            "callbacks",
            "config",
            "credential",
            "dispatch",
            "guards",
            "legs",
            "lookup",
            "planning",
            "providers",
            "rule_runner",
            "telemetry",
            "tenant_config",
        ],
    ),
    ("api", &["app", "callbacks", "credential", "fair_semaphore", "guards", "health", "telemetry"]),
    (
        "gateway",
        &[
            "admission",
            "api",
            "app",
            "callbacks",
            "capacity",
            "config",
            "dispatch",
            "experiments",
            "fair_semaphore",
            "follow_up",
            "guards",
            "health",
            "job_runner",
            "ledger",
            "legs",
            "maintenance",
            "observations",
            "planning",
            "providers",
            "queue",
            "recovery",
            "rule_runner",
            "rulefolder",
            "small_tenant_priority",
            "telemetry",
            "tenant_config",
        ],
    ),
    ("cli", &["app", "config", "credential", "gateway", "rulefolder", "telemetry"]),
];

/// The folders of the gateway crate whose modules are parts.
const FOLDERS: [&str; 3] = ["engine", "jobs", "node"];

/// The allowed places of a third-party crate: crates of the host, or parts of the gateway crate.
const FENCES: &[(&str, &[&str])] = &[
    ("axum", &["api"]),
    // The vocabulary describes itself for the OpenAPI document.
    ("utoipa", &["api", "app", "domain"]),
    ("sqlx", &["store"]),
    ("wasmtime", &["runtime"]),
    ("rhai", &["rules"]),
    ("h2", &["transport"]),
    ("hyper", &["api", "transport"]),
    ("hyper_util", &["api", "transport"]),
    ("reqwest", &["cli", "telemetry"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_http", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("mail_builder", &["transport"]),
    ("unicase", &["domain"]),
    ("unicode_normalization", &["domain"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("indicatif", &["cli"]),
];

/// A file of the host: its part, its path within `host`, its text.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = xtask::project::root().join("host");
    let mut files = Vec::new();
    for krate in fs::read_dir(&root).unwrap() {
        collect(&krate.unwrap().path().join("src"), &mut files);
    }
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            let inner = file.strip_prefix(&root).unwrap().to_path_buf();
            (part_of(&inner), inner, text)
        })
        .collect()
}

/// `gateway/src/engine/queue/claim.rs` is of `queue`, `gateway/src/api/route.rs` of `api`, `rules/src/index.rs` of `rules`.
fn part_of(file: &Path) -> String {
    let names: Vec<_> = file.iter().map(|it| it.to_string_lossy().trim_end_matches(".rs").to_owned()).collect();
    let place = match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["gateway", _, folder, _, ..] if FOLDERS.contains(&folder) => 3,
        ["gateway", ..] => 2,
        _ => 0,
    };
    names[place].clone()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
}

/// The parts of the gateway crate that a file names, with the line: `use crate::{a, b::c}` over several lines, and
/// `crate::a::…` in place.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let line = text[..at].matches('\n').count() + 1;
        let mut paths = Vec::new();
        leaves(&text[at + "crate::".len()..], &mut Vec::new(), &mut paths);
        found.extend(paths.into_iter().map(|path| {
            let place = usize::from(path.len() > 1 && FOLDERS.contains(&path[0].as_str()));
            (line, path[place].clone())
        }));
    }
    found
}

/// The paths that a tree of imports begins with, two names of each.
fn leaves(tree: &str, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    let depth = prefix.len();
    let mut rest = tree;
    while prefix.len() < depth + 2 {
        let name = name_of(rest);
        if name.is_empty() {
            break;
        }
        rest = &rest[name.len()..];
        prefix.push(name);
        let Some(further) = rest.strip_prefix("::") else { break };
        rest = further;
    }
    match rest.strip_prefix('{') {
        Some(group) if prefix.len() < 2 => {
            for part in top_level(&group[..closing(group)]) {
                leaves(part, prefix, paths);
            }
        }
        _ if !prefix.is_empty() => paths.push(prefix.clone()),
        _ => {}
    }
    prefix.truncate(depth);
}

fn closing(group: &str) -> usize {
    let mut depth = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    group.len()
}

fn top_level(group: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = group.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn name_of(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

#[test]
fn imports_follow_the_flow() {
    let mut wrong = Vec::new();
    for (part, file, text) in sources() {
        let no_part = ["main", "lib"].contains(&part.as_str()) || FOLDERS.contains(&part.as_str());
        if !file.starts_with("gateway") || no_part {
            continue;
        }
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == part) else {
            wrong.push(format!(
                "{}: `{part}` has no place in the map: give it one here and in ARCHITECTURE.md",
                file.display()
            ));
            continue;
        };
        let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (line, name) in imports(shipped) {
            let free = name == part || name == "clock";
            if !free && EDGES.iter().any(|(known, _)| *known == name) && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{}:{line}: `{part}` may not import `{name}`", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn third_party_crates_stay_behind_their_fences() {
    let mut wrong = Vec::new();
    for (part, file, text) in sources() {
        for (krate, allowed) in FENCES {
            let named = text.lines().enumerate().find(|(_, line)| {
                let code = line.split("//").next().unwrap_or_default();
                code.contains(&format!("{krate}::"))
            });
            if let Some((line, _)) = named
                && !allowed.contains(&part.as_str())
            {
                wrong.push(format!("{}:{}: `{krate}` belongs in {}", file.display(), line + 1, allowed.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Handlers call use cases, which own transactions; a use case commits by `app/change.rs`, which audits and announces.
#[test]
fn handlers_have_no_store_and_use_cases_no_commit_of_their_own() {
    let mut wrong = Vec::new();
    for (part, file, text) in sources() {
        let forbidden: &[&str] = match part.as_str() {
            "api" => &["angarium_store", "app.store"],
            "app" if !file.ends_with("app/change.rs") => &[".commit().await", "audit_insert"],
            _ => continue,
        };
        let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (line, code) in shipped.lines().enumerate() {
            let code = code.split("//").next().unwrap_or_default();
            if let Some(name) = forbidden.iter().find(|name| code.contains(**name)) {
                wrong.push(format!("{}:{}: `{part}` may not use `{name}`", file.display(), line + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_named_for_what_they_hold() {
    let vague = sources().into_iter().filter(|(_, file, _)| {
        let name = file.file_stem().unwrap().to_string_lossy();
        ["mod", "utils", "util", "helpers", "common", "misc"].contains(&name.as_ref())
    });
    let vague: Vec<_> = vague.map(|(_, file, _)| file).collect();
    assert!(vague.is_empty(), "{vague:?}");
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> = sources().into_iter().filter(|(_, _, text)| !text.starts_with("//!")).map(|it| it.1).collect();
    assert!(silent.is_empty(), "no `//!` at the top of {silent:?}");
}

/// Every randomised test is in the list that `cargo xtask fuzz` runs with fresh seeds.
#[test]
fn every_test_that_draws_its_cases_is_run_with_fresh_seeds() {
    for (folder, listed) in [("host", xtask::fuzz::PROPERTIES), ("tests", xtask::fuzz::SCENARIOS)] {
        let root = xtask::project::root().join(folder);
        let mut files = Vec::new();
        collect(&root, &mut files);
        let draws = |file: &PathBuf| fs::read_to_string(file).unwrap().contains("seed::");
        let module = |file: &PathBuf| file.strip_prefix(&root).unwrap().with_extension("").display().to_string();
        let mut found: Vec<_> = files.iter().filter(|file| draws(file)).map(module).collect();
        found.retain(|module| module != "tidy");
        found.sort();
        assert_eq!(found, listed, "{folder}: bring the list in xtask/src/fuzz.rs up to date");
    }
}

/// The map in `ARCHITECTURE.md` names every part, and nothing that is not there.
#[test]
fn the_map_matches_the_tree() {
    let root = xtask::project::root();
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let map = &page[page.find("## Layout").unwrap()..page.find("## Three walks").unwrap()];
    let rows = map.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let named: Vec<_> = rows.map(|(path, _)| path.trim_end_matches('/').to_owned()).collect();
    let source = root.join("host/gateway/src");
    let is_there = |path: &String| {
        let part = source.join(path);
        root.join(path).exists() || part.exists() || part.with_extension("rs").exists()
    };
    let gone: Vec<_> = named.iter().filter(|path| !is_there(path)).collect();
    assert!(gone.is_empty(), "the map names what is not there: {gone:?}");
    let parts = sources().into_iter().filter(|(part, file, _)| {
        file.starts_with("gateway") && !["main", "lib"].contains(&part.as_str()) && !FOLDERS.contains(&part.as_str())
    });
    let unnamed: std::collections::BTreeSet<_> = parts
        .map(|(part, ..)| part)
        .filter(|part| !named.iter().any(|path| path == part || path.ends_with(&format!("/{part}"))))
        .collect();
    assert!(unnamed.is_empty(), "the map lacks the parts {unnamed:?}");
}

/// One name, one thing: a reader who searches for a type finds one.
#[test]
fn a_public_types_name_stands_once() {
    let mut places: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    for (_, file, text) in sources() {
        for line in text.lines() {
            let Some((before, after)) = line.trim_start().split_once(' ') else { continue };
            if !before.starts_with("pub") {
                continue;
            }
            let kind =
                ["struct ", "enum ", "trait ", "type ", "union "].iter().find_map(|kind| after.strip_prefix(kind));
            if let Some(name) = kind.map(name_of).filter(|name| !name.is_empty() && name != "Result") {
                places.entry(name).or_default().push(file.display().to_string());
            }
        }
    }
    let twice: Vec<_> = places.into_iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
