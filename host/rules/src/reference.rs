//! The language reference, generated from the interpreter: it lists exactly the existing functions.

use std::{collections::BTreeSet, fmt::Write};

use serde::Deserialize;

use super::script::{
    Hook, Library, MAX_FAILURES, WINDOW, build_engine, expression_variables,
    facts::{ATTEMPT, CANDIDATE, CONTEXT, DELIVERY, FactField, MESSAGE},
    limits, vocabulary_engine,
};

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    functions: Vec<Function>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Function {
    name: String,
    #[serde(default)]
    params: Vec<Parameter>,
    #[serde(default)]
    return_type: String,
    #[serde(default)]
    doc_comments: Vec<String>,
}

#[derive(Deserialize)]
struct Parameter {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

/// The whole reference, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(HEAD);
    hooks(&mut out);
    fields(&mut out);
    limits_table(&mut out);
    let own = functions(&vocabulary_engine());
    let known: BTreeSet<_> = own.iter().map(Function::signature).collect();
    let _ = write!(out, "\n## What the gateway adds\n\n{OWN}\n");
    for function in &own {
        let _ = write!(out, "\n#### `{}`\n\n{}\n", function.signature(), function.text());
    }
    let _ = write!(out, "\n## What the language has\n\n{LANGUAGE}\n\n| function | |\n|---|---|\n");
    for function in functions(&build_engine(Library::default())) {
        if !known.contains(&function.signature()) {
            let _ = writeln!(out, "| `{}` | {} |", function.signature().replace('|', "\\|"), function.summary());
        }
    }
    out
}

const HEAD: &str =
    "<!-- Generated from the interpreter: ANGARIUM_WRITE_REFERENCE=1 cargo test -p angarium-rules reference -->

# Rules: language reference

Scripts are written in [Rhai](https://rhai.rs/book/language/). This page lists their hooks, \
fields, limits and functions; [Rule scripts](rule-scripts.md) explains their use. Times are texts such as \
`2026-03-01T12:00:00Z`; `()` is a missing value.
";

const OWN: &str = "A function may be called as a method of its first argument: `mail_domain(message.to)` is \
`message.to.mail_domain()`.";

const LANGUAGE: &str = "Beside operators, `if`, `switch`, loops, closures, `try` and functions of the script's own. \
`eval`, `sleep`, `timestamp`, `exit` and functions that reach the machine do not exist; `import` finds only the modules \
of `rules/modules`; `print` and `debug` write a few lines to the gateway's log at its level `debug`.";

fn hooks(out: &mut String) {
    out.push_str("\n## Hooks\n\n| function | decides | returns |\n|---|---|---|\n");
    for hook in Hook::ALL {
        let (decides, answers) = described(hook);
        let _ = writeln!(out, "| `{}({})` | {decides} | {answers} |", hook.as_str(), hook.parameters().join(", "));
    }
    out.push_str("\nAn answer with another member, or a member of another type, is a fault that names it.\n");
}

const fn described(hook: Hook) -> (&'static str, &'static str) {
    match hook {
        Hook::Admit => (
            "whether a message is accepted, and how",
            "`()` or `allow()`; `refuse(reason)`; `hold_until(time)`; or a map of `action` (`allow`, `refuse`, `hold`), \
             `reason`, `at`, `priority` and `attributes` (added to the message's)",
        ),
        Hook::Route => (
            "the candidates, their order, and the channels",
            "`()`: as the route says; a list of candidates or of connections' names: these, in this order, and no \
             others; or a map of `candidates`, `channel` or `channels`, and `reason`. A candidate has `connection`, and \
             may have `score` and `reason`",
        ),
        Hook::Retry => (
            "the next step after an attempt that did not succeed",
            "`()`: as the route says; a number of seconds or `retry_after(seconds)`; `give_up(reason)`; \
             `fall_back(reason)`; or a map of `action` (`default`, `retry`, `give_up`, `fall_back`), `after` and `reason`",
        ),
        Hook::OnOutcome => (
            "the follow-ups of a delivery that ended",
            "`()`; a message, or a list of at most 10: maps of `channel`, `to`, `after` (seconds), `template`, `subject`, \
             `text`, `priority` and `attributes`, where members that are left out are as in the message before; or a map \
             of `messages` and `tags` (at most 16 words that mark the delivery)",
        ),
        Hook::Condition => ("whether a message goes now that is due and names the script", "`true` or `false`"),
        Hook::Score => ("the quality of a candidate", "a number; higher is better"),
    }
}

fn fields(out: &mut String) {
    for (title, fields) in [
        ("`message`", MESSAGE),
        ("`candidate`, and each of `candidates`", CANDIDATE),
        ("`attempt`", ATTEMPT),
        ("`delivery`", DELIVERY),
        ("`context`", CONTEXT),
    ] {
        field_table(out, &format!("### {title}"), fields);
    }
    out.push_str(
        "\n### In an expression\n\nThe expression of a `custom` rule is one condition, without statements, over:\n",
    );
    field_table(out, "", &expression_variables());
}

fn field_table(out: &mut String, title: &str, fields: &[FactField]) {
    let title = if title.is_empty() { String::new() } else { format!("\n{title}\n") };
    let _ = write!(out, "{title}\n| field | type | meaning |\n|---|---|---|\n");
    for (name, kind, text) in fields {
        let _ = writeln!(out, "| `{name}` | {kind} | {text} |");
    }
}

fn limits_table(out: &mut String) {
    let _ = write!(
        out,
        "\n## Limits\n\n| limit | at most |\n|---|---|\n\
         | operations of a run | {} |\n\
         | time of a run, including its calls | {} ms |\n\
         | depth of function calls | {} |\n\
         | depth of expressions and blocks | {} |\n\
         | parts of an expression or a chain | {} |\n\
         | characters of a source | {} |\n\
         | bytes that a run holds at once, measured | {} |\n\
         | bytes that the constants at the top of a script hold | {} |\n\
         | bytes of the texts and names of an answer | {} |\n\
         | bytes of a text, or of all texts of a list or map | {} |\n\
         | members of a list, including those of nested lists | {} |\n\
         | members of a map, including those of nested maps | {} |\n\
         | variables at one time | {} |\n\
         | functions of a script | {} |\n\
         | modules imported in a run | {} |\n\
         | depth of a value that is printed, compared or answered | {} |\n\
         \nA limit that a script met ends the run, and no `try` catches it. {MAX_FAILURES} faults within {} seconds \
         switch a script off.\n",
        limits::OPERATIONS,
        limits::TIME.as_millis(),
        limits::CALLS,
        limits::DEPTH,
        limits::TREE,
        limits::SOURCE,
        limits::MEMORY,
        limits::CONSTANTS,
        limits::ANSWER,
        limits::TEXT,
        limits::LIST,
        limits::MAP,
        limits::VARIABLES,
        limits::FUNCTIONS,
        limits::MODULES,
        limits::VALUE_DEPTH,
        WINDOW.as_secs(),
    );
}

/// Numbers that the interpreter knows and no script ever holds: its own are `i64` and `f64`.
const NEVER_MET: [&str; 10] = ["i8", "u8", "i16", "u16", "i32", "u32", "u64", "i128", "u128", "f32"];

/// Returns each function once, by name; operators, the interpreter's internal functions, and those that no script can
/// call are left out.
fn functions(engine: &rhai::Engine) -> Vec<Function> {
    let text = engine.gen_fn_metadata_to_json(true).unwrap_or_default();
    let mut functions = serde_json::from_str::<Metadata>(&text).map(|it| it.functions).unwrap_or_default();
    functions.retain(|it| it.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && it.can_be_met());
    // Of functions with the same signature, the one with a text comes first.
    functions.sort_by_cached_key(|it| (it.signature(), it.doc_comments.is_empty(), it.text()));
    functions.dedup_by_key(|it| it.signature());
    functions
}

impl Function {
    /// Whether a script can have the function's arguments.
    fn can_be_met(&self) -> bool {
        let kinds = self.params.iter().filter_map(|it| it.kind.as_deref());
        let mut words = kinds.flat_map(|kind| kind.split(|c: char| !c.is_ascii_alphanumeric()));
        words.all(|word| !NEVER_MET.contains(&word))
    }

    fn signature(&self) -> String {
        let of = |it: &Parameter| match (it.name.as_deref().unwrap_or("_"), it.kind.as_deref().map(friendly)) {
            (name, Some(kind)) => format!("{name}: {kind}"),
            (name, None) => name.to_owned(),
        };
        let parameters: Vec<_> = self.params.iter().map(of).collect();
        let answer = friendly(&self.return_type);
        let answer = if answer.is_empty() || answer == "()" { String::new() } else { format!(" -> {answer}") };
        format!("{}({}){answer}", self.name, parameters.join(", "))
    }

    fn text(&self) -> String {
        let lines = self.doc_comments.iter().flat_map(|comment| comment.lines());
        let lines = lines.map(|line| line.trim_start().trim_start_matches("///").trim());
        lines.collect::<Vec<_>>().join("\n").trim().to_owned()
    }

    /// Its text's first paragraph, on one line.
    fn summary(&self) -> String {
        let text = self.text();
        let paragraph: Vec<_> =
            text.lines().take_while(|line| !line.is_empty() && !line.starts_with(['#', '*'])).collect();
        paragraph.join(" ").replace('|', "\\|")
    }
}

/// A type as authors know it.
fn friendly(kind: &str) -> String {
    let bare = kind.trim().trim_start_matches("&mut ").trim_start_matches('&');
    let bare = ["RhaiResultOf<", "Fallible<", "Result<"]
        .iter()
        .find_map(|wrapper| bare.strip_prefix(wrapper))
        .map_or(bare, |inner| inner.split([',', '>']).next().unwrap_or(inner));
    let name = bare.rsplit("::").next().unwrap_or(bare).trim();
    if let Some(kind) = ["Range", "StepRange", "BitRange", "CharsStream"].iter().find(|it| name.starts_with(**it)) {
        return if *kind == "Range" { "range" } else { "iterator" }.to_owned();
    }
    match name {
        "str" | "String" | "ImmutableString" | "string" => "text",
        "INT" | "i64" | "int" => "whole number",
        "FLOAT" | "f64" | "float" => "number",
        "bool" => "boolean",
        "char" => "character",
        "Map" | "map" => "map",
        "Array" | "array" => "list",
        "Dynamic" | "RhaiResult" | "?" => "value",
        "FnPtr" | "Fn" => "function",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// `ANGARIUM_WRITE_REFERENCE=1` writes it in place of comparing.
    #[test]
    fn the_reference_is_that_of_the_interpreter() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/rules-reference.md");
        let reference = markdown();
        if std::env::var_os("ANGARIUM_WRITE_REFERENCE").is_some() {
            fs::write(&file, &reference).unwrap();
        }
        let written = fs::read_to_string(&file).unwrap_or_default();
        let differs = written.lines().zip(reference.lines()).find(|(old, new)| old != new);
        assert!(
            written == reference,
            "docs/rules-reference.md is stale at {differs:?}: ANGARIUM_WRITE_REFERENCE=1 cargo test -p angarium-rules reference"
        );
    }

    #[test]
    fn it_lists_no_types_that_no_script_meets() {
        let reference = markdown();
        let listed = reference.lines().filter(|line| line.starts_with("| `"));
        let odd: Vec<_> =
            listed.filter(|line| NEVER_MET.iter().any(|kind| line.contains(&format!(": {kind}")))).collect();
        assert!(odd.is_empty(), "{odd:?}");
        assert!(reference.contains("| `abs(x: whole number) -> whole number` |"));
        assert!(reference.contains("| `abs(x: number) -> number` |"));
    }

    #[test]
    fn every_function_of_the_gateway_says_what_it_does() {
        let functions = functions(&vocabulary_engine());
        assert!(functions.len() > 30, "{}", functions.len());
        let silent: Vec<_> = functions.iter().filter(|it| it.text().is_empty()).map(Function::signature).collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}
