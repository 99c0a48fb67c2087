//! Clients that are generated from the OpenAPI document: they have every operation, and the Python one sends a batch.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::{
    gateway::{TestGateway, client},
    peer,
    sink::Sink,
};

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().expect("the peer can be run")
}

/// Returns the printed text of a program that has ended well.
#[track_caller]
fn said(output: &Output) -> String {
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{errors}");
    format!("{out}{errors}")
}

/// Writes the document into a folder; answers its operations.
async fn document(gateway: &TestGateway, folder: &Path) -> BTreeSet<String> {
    let text = client().get(gateway.url("/openapi.json")).send().await.unwrap().text().await.unwrap();
    std::fs::write(folder.join("openapi.json"), &text).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let items = document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    items.map(|operation| operation["operationId"].as_str().unwrap().to_owned()).collect()
}

/// `createMessages` as a module is named: `create_messages`.
fn in_snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn modules(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(modules(&path));
        } else if path.extension().is_some_and(|it| it == "py") && name != "__init__" {
            found.insert(name);
        }
    }
    found
}

#[tokio::test]
async fn a_generated_python_client_has_every_operation_and_sends_a_batch() {
    let Some(python) = peer::python() else { return };
    let (gateway, sink, folder) = (TestGateway::start().await, Sink::start().await, tempfile::tempdir().unwrap());
    gateway.webhook(&sink, "/in").await;
    let operations = document(&gateway, folder.path()).await;

    let programs = python.parent().unwrap();
    let path = std::env::join_paths(
        [programs.to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut generator = Command::new(programs.join("openapi-python-client"));
    generator.args(["generate", "--meta", "none", "--path", "openapi.json", "--output-path", "angarium_client"]);
    generator.arg("--config").arg(peer::script("openapi-python-client.json"));
    generator.current_dir(folder.path()).env("PATH", path.unwrap());
    let told = said(&output(generator).await);
    assert!(!told.to_lowercase().contains("warning") && !told.contains("Unable"), "{told}");
    let expected: BTreeSet<_> = operations.iter().map(|name| in_snake_case(name)).collect();
    assert_eq!(modules(&folder.path().join("angarium_client/api")), expected);

    let mut program = Command::new(&python);
    program.arg(peer::script("send_batch.py")).args([gateway.url(""), gateway.key.clone()]);
    program.env("PYTHONPATH", folder.path()).env("PYTHONDONTWRITEBYTECODE", "1");
    let result = said(&output(program).await);
    let result: Value = serde_json::from_str(result.trim()).unwrap_or_else(|error| panic!("{error}: {result}"));
    let answers = result["answers"].as_array().unwrap();
    for place in [0, 1] {
        assert_eq!(answers[0][place]["status"], 202, "{result}");
        assert_eq!(answers[0][place]["message"]["id"], answers[1][place]["message"]["id"], "the key goes along");
        gateway.settled(answers[0][place]["message"]["id"].as_str().unwrap()).await;
    }
    assert_eq!((&answers[0][2]["status"], &answers[0][2]["error"]["code"]), (&422.into(), &"invalid_request".into()));
    assert_eq!((&result["reference"], &result["missing"]), (&"batch:0".into(), &"not_found".into()));
    assert_eq!(sink.received().len(), 2);
}

#[tokio::test]
async fn generated_typescript_types_have_every_operation() {
    let Some(node) = peer::node() else { return };
    let (gateway, folder) = (TestGateway::start().await, tempfile::tempdir().unwrap());
    let operations = document(&gateway, folder.path()).await;
    let programs = node.join("node_modules/.bin");

    let mut generator = Command::new(programs.join("openapi-typescript"));
    generator.args(["openapi.json", "--output", "types.ts"]).current_dir(folder.path());
    said(&output(generator).await);
    let types = std::fs::read_to_string(folder.path().join("types.ts")).unwrap();
    let lacking: Vec<_> = operations.iter().filter(|name| !types.contains(&format!("\n    {name}: {{"))).collect();
    assert_eq!(lacking, Vec::<&String>::new());

    std::fs::copy(peer::script("client.ts"), folder.path().join("client.ts")).unwrap();
    let mut compiler = Command::new(programs.join("tsc"));
    compiler.args(["--noEmit", "--strict", "--target", "es2022", "--moduleResolution", "node", "client.ts"]);
    compiler.current_dir(folder.path());
    said(&output(compiler).await);
}
