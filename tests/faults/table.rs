//! The table of `docs/faults.md`: every row is linked to tests that exist.

use std::{collections::HashSet, fs};

use xtask::project::root;

/// The links `[name](../path#name)` of a line.
fn links(line: &str) -> Vec<(String, String)> {
    line.split("](../")
        .collect::<Vec<_>>()
        .windows(2)
        .map(|pair| {
            let name = pair[0].rsplit('[').next().unwrap_or_default().trim_matches('`').to_owned();
            (name, pair[1].split(')').next().unwrap_or_default().to_owned())
        })
        .collect()
}

#[test]
fn every_row_of_the_fault_matrix_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let mut wrong = Vec::new();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Fault")).collect();
    for row in &rows {
        let links = links(row);
        if links.is_empty() && !row.contains("not there yet") {
            wrong.push(format!("no test: {row}"));
        }
        for (name, path) in links {
            let text = fs::read_to_string(root().join(&path)).unwrap_or_default();
            let defined = text.lines().any(|line| line.trim_end().contains(&format!("fn {name}(")));
            if !defined || !text.contains("#[test]") && !text.contains("#[tokio::test") {
                wrong.push(format!("{path} has no test `{name}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rows.len() >= 20, "the matrix has {} rows", rows.len());
}

#[test]
fn every_scenario_of_the_folder_stands_in_the_table() {
    let page = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let linked: HashSet<_> = page.lines().flat_map(links).map(|(name, _)| name).collect();
    let mut missing = Vec::new();
    for entry in
        fs::read_dir(root().join("tests/faults")).unwrap().filter(|it| it.as_ref().unwrap().file_name() != "table.rs")
    {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let after_test = text.split("#[tokio::test").skip(1);
        let names = after_test.filter_map(|part| part.split("async fn ").nth(1)?.split('(').next());
        missing.extend(names.filter(|name| !linked.contains(*name)).map(str::to_owned));
    }
    assert!(missing.is_empty(), "docs/faults.md lacks {missing:?}");
}
