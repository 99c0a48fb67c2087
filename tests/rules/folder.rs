//! Operators' scripts: a file that is saved is live on every node, and one that is bad changes nothing.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::{database::eventually, gateway::TestGateway, sink::Sink};

fn save(folder: &Path, file: &str, text: &str) {
    let file = folder.join(file);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

#[tokio::test]
async fn a_saved_file_is_live_on_every_node_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("[rules]\nfolder = '{}'\n", folder.path().display());
    let (gateway, sink) = (TestGateway::with(2, &config).await, Sink::start().await);
    gateway.webhook(&sink, "/hook").await;
    let message = json!({"channel": "webhook", "content": {"payload": {}}});
    let words = async |node: usize| {
        let address = gateway.nodes[node].as_ref().unwrap().address();
        let request = crate::support::gateway::client().post(format!("http://{address}/v1/messages"));
        let answer = request.bearer_auth(&gateway.key).json(&message).send().await.unwrap();
        answer.json::<serde_json::Value>().await.unwrap()["detail"].as_str().unwrap_or_default().to_owned()
    };
    let refuses = async |text: &str| {
        for node in [0, 1] {
            eventually(&format!("`{text}` of node {node}"), || async {
                words(node).await.contains(text).then_some(())
            })
            .await;
        }
    };
    assert_eq!(words(0).await, "");
    save(folder.path(), "gate.rhai", "fn admit(message) { refuse(\"for everybody\") }");
    refuses("for everybody").await;
    // The tenant's own takes its place.
    save(folder.path(), "one/gate.rhai", "fn admit(message) { refuse(\"for one\") }");
    refuses("for one").await;
    save(folder.path(), "one/gate.rhai", "fn admit(message) { let x = ; }");
    gateway.logged(0, "the last good version goes on").await;
    refuses("for one").await;
    save(folder.path(), "two/gate.rhai", "fn admit(message) { refuse(\"for two\") }");
    fs::remove_file(folder.path().join("one/gate.rhai")).unwrap();
    refuses("for everybody").await;
    fs::remove_file(folder.path().join("gate.rhai")).unwrap();
    for node in [0, 1] {
        eventually("nobody refusing", || async { words(node).await.is_empty().then_some(()) }).await;
    }
}
