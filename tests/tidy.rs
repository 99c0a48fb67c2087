//! The rules of the map in `ARCHITECTURE.md` that a compiler does not check: who may import whom,
//! and where third-party crates may be named.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// For each part of the gateway, what it may import with `use crate::`. Everything may import
/// `domain`, `clock`, `failpoint` and `seed`.
const EDGES: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("clock", &[]),
    ("failpoint", &[]),
    // For tests alone.
    ("seed", &[]),
    ("credential", &[]),
    ("byte_budget", &[]),
    ("routing", &[]),
    ("allocator", &[]),
    ("rules", &["allocator"]),
    ("outcome", &["routing"]),
    ("observations", &["routing"]),
    ("runtime", &[]),
    ("sealing", &[]),
    ("transport", &["byte_budget", "sealing"]),
    ("store", &["sealing"]),
    ("config", &["sealing"]),
    // As `clock`: whoever does something worth a look may say so.
    ("telemetry", &["config"]),
    ("guards", &["store", "routing", "telemetry"]),
    ("directory", &["store", "guards", "rules", "sealing", "transport"]),
    ("providers", &["store", "runtime", "config", "telemetry"]),
    ("queue", &["store", "directory", "routing", "rules"]),
    ("gate", &["queue"]),
    ("rule_runner", &["gate", "queue", "rules"]),
    ("experiments", &["rule_runner", "rules", "store", "telemetry"]),
    ("script_failures", &["rules", "store", "telemetry"]),
    (
        "admission",
        &[
            "byte_budget",
            "store",
            "directory",
            "providers",
            "queue",
            "rule_runner",
            "rules",
            "runtime",
            "script_failures",
            "telemetry",
            "experiments",
        ],
    ),
    ("rulefolder", &["rules", "store"]),
    (
        "follow_up",
        &[
            "admission",
            "byte_budget",
            "store",
            "directory",
            "rule_runner",
            "rules",
            "script_failures",
            "telemetry",
            "experiments",
        ],
    ),
    ("legs", &["store"]),
    ("lookup", &["store"]),
    ("ledger", &["legs", "store", "queue"]),
    (
        "dispatch",
        &[
            "byte_budget",
            "store",
            "directory",
            "gate",
            "guards",
            "providers",
            "queue",
            "routing",
            "runtime",
            "transport",
            "outcome",
            "rule_runner",
            "rules",
            "ledger",
            "observations",
            "script_failures",
            "telemetry",
            "experiments",
        ],
    ),
    ("recovery", &["legs", "store", "outcome"]),
    ("control", &["legs", "store"]),
    ("replay", &["legs", "store"]),
    ("callbacks", &["gate", "legs", "lookup", "store", "directory", "providers", "runtime", "sealing", "transport"]),
    ("maintenance", &["config", "store", "telemetry"]),
    ("node_health", &["sealing", "store", "telemetry"]),
    (
        "api",
        &[
            "admission",
            "callbacks",
            "config",
            "control",
            "credential",
            "directory",
            "dispatch",
            "gate",
            "guards",
            "lookup",
            "node_health",
            "providers",
            "queue",
            "routing",
            "rule_runner",
            "rules",
            "runtime",
            "sealing",
            "store",
            "telemetry",
        ],
    ),
    (
        "gateway",
        &[
            "admission",
            "api",
            "byte_budget",
            "callbacks",
            "config",
            "directory",
            "dispatch",
            "follow_up",
            "gate",
            "guards",
            "ledger",
            "legs",
            "maintenance",
            "node_health",
            "providers",
            "queue",
            "recovery",
            "replay",
            "rule_runner",
            "rulefolder",
            "runtime",
            "sealing",
            "store",
            "telemetry",
            "transport",
            "experiments",
        ],
    ),
    (
        "cli",
        &[
            "config",
            "credential",
            "gateway",
            "rulefolder",
            "runtime",
            "sealing",
            "store",
            "telemetry",
            // To show the request that a component describes; nothing is sent.
            "transport",
        ],
    ),
];

/// Where a third-party crate may be named.
const FENCES: &[(&str, &[&str])] = &[
    ("axum", &["api"]),
    ("utoipa", &["api"]),
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
    ("mail_auth", &["transport"]),
    ("unicase", &["domain"]),
    ("unicode_normalization", &["domain"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("indicatif", &["cli"]),
];

fn sources() -> Vec<(String, PathBuf, String)> {
    let root = xtask::project::root().join("host/src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files
        .into_iter()
        .map(|file| {
            let inner = file.strip_prefix(&root).unwrap().to_path_buf();
            let part = inner.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&file).unwrap();
            (part, inner, text)
        })
        .collect()
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

/// The parts of the gateway that a file names, with the line: `use crate::{a, b::c}` over several
/// lines, and `crate::a::…` in place.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(at) = rest.find("crate::") {
        line += rest[..at].matches('\n').count();
        rest = &rest[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let end = closing(group);
            found.extend(top_level(&group[..end]).into_iter().map(|name| (line, name)));
        } else {
            found.push((line, name_of(rest)));
        }
    }
    found
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

fn top_level(group: &str) -> Vec<String> {
    let mut depth = 0;
    let parts = group.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(|part| name_of(part.trim())).filter(|name| !name.is_empty()).collect()
}

fn name_of(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

#[test]
fn imports_follow_the_flow() {
    let mut wrong = Vec::new();
    for (part, file, text) in sources() {
        if part == "main" || part == "lib" {
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
            let free = name == part
                || name == "domain"
                || (["clock", "failpoint", "seed"].contains(&name.as_str()) && part != "domain");
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

/// What `cargo xtask fuzz` runs with fresh seeds is what draws its cases.
#[test]
fn every_test_that_draws_its_cases_is_run_with_fresh_seeds() {
    for (folder, listed) in [("host/src", xtask::fuzz::PROPERTIES), ("tests", xtask::fuzz::SCENARIOS)] {
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
