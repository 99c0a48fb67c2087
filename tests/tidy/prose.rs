//! Plain English: sentences of docs and doc comments begin with their subject. It does not judge code.

use std::{
    fs,
    path::{Path, PathBuf},
};

use xtask::project::root;

/// Words that hide the subject when they open a sentence.
const OPENERS: [&str; 4] = ["Who", "Whoever", "Whom", "Whose"];
/// The folders with sources and pages of this repository.
const FOLDERS: [&str; 7] = ["address", "docs", "host", "operations", "plugins", "tests", "xtask"];

#[test]
fn no_sentence_opens_with_who() {
    let mut found = Vec::new();
    for file in files() {
        let text = fs::read_to_string(&file).unwrap();
        let paragraphs = if is_page(&file) { page(&text) } else { comments(&text) };
        for sentence in paragraphs.iter().flat_map(|it| sentences(it)).filter(|it| hides_its_subject(it)) {
            found.push(format!("{}: {sentence}", file.strip_prefix(root()).unwrap().display()));
        }
    }
    assert!(found.is_empty(), "begin these sentences with their subject:\n{}", found.join("\n"));
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let mut broken = Vec::new();
    for file in files().into_iter().filter(|it| is_page(it)) {
        let text = page(&fs::read_to_string(&file).unwrap()).join("\n");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|it| !it.contains(':') && !it.contains(' ')) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            if !target.exists()
                || !anchor.is_empty() && is_page(&target) && !anchors(&target).contains(&anchor.to_owned())
            {
                broken.push(format!("{}: {link}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "these links lead nowhere:\n{}", broken.join("\n"));
}

fn is_page(file: &Path) -> bool {
    file.extension().is_some_and(|it| it == "md")
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(file: &Path) -> Vec<String> {
    let headings = page(&fs::read_to_string(file).unwrap()).into_iter().filter(|it| it.starts_with('#'));
    let anchor = |heading: String| {
        let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn sentences_are_told_apart() {
    let hidden = |paragraph: &str| sentences(paragraph).into_iter().filter(|it| hides_its_subject(it)).count();
    assert_eq!(hidden("Who asks. The node answers. Whose it is: Whom it asks"), 3);
    assert_eq!(hidden("**Whoever** asks waits; - Whose lease it is"), 2);
    assert_eq!(hidden("The node, whose lease ended, asks who has it. Whole weeks are dropped."), 0);
    assert_eq!(comments("/// Who\n/// asks.\n///\n/// It waits.\nfn a() {} // Who\n"), ["Who asks.", "It waits."]);
    assert_eq!(page("| Who | asks |\n```\nWho\n```\nIt\nwaits."), ["Who", "asks", "It waits."]);
}

fn hides_its_subject(sentence: &str) -> bool {
    let word: String = sentence.chars().take_while(|c| c.is_alphabetic()).collect();
    OPENERS.contains(&word.as_str())
}

/// Sentences of a paragraph, without the marks before their first word.
fn sentences(paragraph: &str) -> Vec<&str> {
    let parts = paragraph.split_inclusive(['.', '?', '!', ':', ';']);
    parts.map(|part| part.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '`')).collect()
}

/// Paragraphs of doc comments: runs of `///` or `//!` up to an empty one.
fn comments(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let line = line.trim_start();
        line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(|it| it.trim().to_owned())
    };
    joined(text.lines().map(|it| line(it).unwrap_or_default()))
}

/// Paragraphs, list entries and cells of a page, without its blocks of code.
fn page(text: &str) -> Vec<String> {
    let mut is_code = false;
    let prose = text.lines().map(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if is_fence || is_code { "" } else { line.trim() }
    });
    let cells = prose.flat_map(|line| match line.starts_with('|') {
        true => line.split('|').flat_map(|cell| [cell.trim(), ""]).collect(),
        false if line.starts_with(['-', '#']) => vec!["", line],
        false => vec![line],
    });
    joined(cells.map(str::to_owned))
}

/// Lines that follow one another, up to an empty one, as one text.
fn joined(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut found = vec![String::new()];
    for line in lines {
        match (line.is_empty(), found.last_mut()) {
            (false, Some(last)) if last.is_empty() => *last = line,
            (false, Some(last)) => *last = format!("{last} {line}"),
            _ => found.push(String::new()),
        }
    }
    found.retain(|it| !it.is_empty());
    found
}

fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root().join(folder), &mut files);
    }
    let pages = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    files.extend(pages.filter(|it| is_page(it)));
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true if name != "target" && name != "node_modules" && !name.starts_with('.') => collect(&path, files),
            true => {}
            false if path.extension().is_some_and(|it| it == "rs" || it == "md") => files.push(path),
            false => {}
        }
    }
}
