//! schemathesis, which makes requests out of the OpenAPI document and checks the answers against it.

use std::process::Command;

use crate::support::{gateway::TestGateway, peer};

/// Cases of each operation in each phase: the whole run takes a minute or two.
const EXAMPLES: &str = "25";

/// No server error, no status, header or body that the document doesn't have, nothing taken that it forbids.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,unsupported_method,ignored_auth";

#[tokio::test]
async fn every_answer_is_as_the_document_says() {
    let Some(python) = peer::python() else { return };
    let gateway = TestGateway::start().await;
    let folder = tempfile::tempdir().unwrap();
    // ANGARIUM_SEED repeats a run.
    let seed = std::env::var("ANGARIUM_SEED").unwrap_or_else(|_| fastrand::u32(..).to_string());
    eprintln!("ANGARIUM_SEED={seed}");
    let mut command = Command::new(python.with_file_name("schemathesis"));
    command.args(["--no-color", "run", &gateway.url("/openapi.json"), "--checks", CHECKS]);
    command.args(["--max-examples", EXAMPLES, "--seed", &seed, "--workers", "2", "--request-timeout", "20"]);
    command.args(["--continue-on-failure", "--header", &format!("Authorization:Bearer {}", gateway.key)]);
    command.current_dir(folder.path()).env("HYPOTHESIS_STORAGE_DIRECTORY", folder.path().join("hypothesis"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "ANGARIUM_SEED={seed}\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
