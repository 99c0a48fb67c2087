//! schemathesis, which makes requests out of the OpenAPI document and checks the answers against it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{gateway::TestGateway, messages::hook, peer, seed, sink::Sink};

/// Cases of each operation in each phase: a run takes a minute or two.
const EXAMPLES: &str = "25";

/// No server error; no status, kind, header or body that the document doesn't have.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,unsupported_method,ignored_auth";

/// schemathesis can't write a component (`tests/api/providers.rs` has what uploads can answer), and waits for the
/// end of a stream, which has none.
const UNTESTED: [&str; 2] = ["installProvider", "streamEvents"];

struct Schemathesis {
    program: PathBuf,
    seed: String,
}

impl Schemathesis {
    fn new() -> Option<Self> {
        let program = peer::python()?.with_file_name("schemathesis");
        // It takes no longer ones.
        let seed = (seed::seed() % (1 << 32)).to_string();
        Some(Self { program, seed })
    }

    /// Runs it in a folder that may hold its configuration.
    async fn run(&self, gateway: &TestGateway, folder: &Path, phases: &str) {
        let mut command = Command::new(&self.program);
        command.args(["--no-color", "run", &gateway.url("/openapi.json"), "--phases", phases, "--checks", CHECKS]);
        command.args(UNTESTED.iter().flat_map(|id| ["--exclude-operation-id", id]));
        command.args(["--max-examples", EXAMPLES, "--seed", &self.seed]);
        command.args(["--request-timeout", "20", "--continue-on-failure"]);
        command.args(["--header", &format!("Authorization:Bearer {}", gateway.key)]);
        command.current_dir(folder).env("HYPOTHESIS_STORAGE_DIRECTORY", folder.join("hypothesis"));
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        eprintln!("{said}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ANGARIUM_SEED={}\n{said}\n{errors}", self.seed);
    }
}

#[tokio::test]
async fn every_answer_is_as_the_document_says() {
    let Some(schemathesis) = Schemathesis::new() else { return };
    let (gateway, folder) = (TestGateway::start().await, tempfile::tempdir().unwrap());
    schemathesis.run(&gateway, folder.path(), "examples,coverage,fuzzing,stateful").await;
}

/// Names that schemathesis can't guess, so that it gets beyond 404.
#[tokio::test]
async fn every_answer_about_what_exists_is_as_the_document_says() {
    let Some(schemathesis) = Schemathesis::new() else { return };
    let (gateway, sink, folder) = (TestGateway::start().await, Sink::start().await, tempfile::tempdir().unwrap());
    let connection = gateway.webhook(&sink, "/in").await;
    let routes = gateway.get("/v1/routes").await;
    let message = gateway.send(&hook()).await;
    gateway.settled(&message).await;
    let config = format!(
        "[parameters]\n\"path.id\" = \"{message}\"\n\"path.connection\" = \"{connection}\"\n\"path.route\" = {}\n",
        routes["data"][0]["id"]
    );
    std::fs::write(folder.path().join("schemathesis.toml"), config).unwrap();
    schemathesis.run(&gateway, folder.path(), "coverage,fuzzing").await;
}
