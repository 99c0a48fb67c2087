//! Operators' scripts: a file that is saved is live on every node, and one that is bad changes nothing.

use std::{fs, path::Path};

use reqwest::Method;
use serde_json::{Value, json};

use super::add;
use crate::support::{database::eventually, gateway::TestGateway, messages::hook, sink::Sink};

fn save(folder: &Path, file: &str, text: &str) {
    let file = folder.join(file);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

/// A folder of scripts, and two gateways that read it.
async fn with_folder() -> (tempfile::TempDir, TestGateway, Sink) {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("[rules]\nfolder = '{}'\n", folder.path().display());
    let (gateway, sink) = (TestGateway::with(2, &config).await, Sink::start().await);
    gateway.webhook(&sink, "/hook").await;
    (folder, gateway, sink)
}

/// Waits until a message to each node is refused with these words; without any, until none is.
async fn refuse(gateway: &TestGateway, words: &str) {
    let message = hook();
    for node in gateway.nodes.iter().flatten() {
        let url = format!("http://{}/v1/messages", node.address());
        eventually(&format!("`{words}` of each node"), || async {
            let request = crate::support::gateway::client().post(&url).bearer_auth(&gateway.key).json(&message);
            let answer: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
            let detail = answer["detail"].as_str().unwrap_or_default();
            (detail.contains(words) && detail.is_empty() == words.is_empty()).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_module_is_live_on_every_node_and_one_that_breaks_a_script_changes_nothing() {
    let (folder, gateway, _sink) = with_folder().await;
    let words = |text: &str| format!("fn words() {{ \"{text}\" }}");
    let gate = "import \"market\" as market;\nfn admit(message) { refuse(market::words()) }";
    save(folder.path(), "modules/market.rhai", &words("first"));
    save(folder.path(), "gate.rhai", gate);
    refuse(&gateway, "first").await;
    save(folder.path(), "modules/market.rhai", &words("second"));
    refuse(&gateway, "second").await;
    save(folder.path(), "modules/market.rhai", "fn words() {\n  let x = ;\n}");
    gateway.logged(0, "market:2:11: ").await;
    save(folder.path(), "modules/market.rhai", "fn other() { 1 }");
    gateway.logged(0, "it breaks the script `gate`").await;
    refuse(&gateway, "second").await;
    // A tenant's own, of its folder and of the API.
    save(folder.path(), "modules/market.rhai", &words("third"));
    save(folder.path(), "one/modules/local.rhai", &words("for one"));
    refuse(&gateway, "third").await;
    let own = json!({"source": gate.replace("market", "local")});
    eventually("the tenant's module", || async {
        let made = gateway.post("/v1/scripts/gate/versions", &own).await;
        (made.status == 201).then_some(())
    })
    .await;
    gateway.post("/v1/scripts/gate/activate", &json!({"version": 1})).await.expect(200);
    refuse(&gateway, "for one").await;
    let missing = json!({"source": "import \"nowhere\" as nowhere;\nfn admit(message) { () }"});
    let refused = gateway.post("/v1/scripts/gate/versions", &missing).await.problem(422);
    assert!(refused.errors[0].detail.starts_with("must compile: line 1, column "), "{refused}");
    std::fs::remove_file(folder.path().join("one/modules/local.rhai")).unwrap();
    gateway.logged(0, "an operators' module is refused").await;
    save(folder.path(), "modules/another.rhai", &words("taken in the meantime"));
    eventually("the other module", || async {
        let live = gateway.db.sql("select string_agg(name, ' ' order by name) from operator_script where live").await;
        (live.trim() == "another gate local market").then_some(())
    })
    .await;
    refuse(&gateway, "for one").await;
}

#[tokio::test]
async fn a_saved_file_is_live_on_every_node_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("[rules]\nfolder = '{}'\n", folder.path().display());
    let (gateway, sink) = (TestGateway::with(2, &config).await, Sink::start().await);
    gateway.webhook(&sink, "/hook").await;
    let message = hook();
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

#[tokio::test]
async fn operators_scripts_are_listed_with_their_origin() {
    let (folder, gateway, _sink) = with_folder().await;
    let listed = async || {
        let list = gateway.get("/v1/scripts").await;
        let text = |script: &Value, member: &str| script[member].as_str().unwrap().to_owned();
        let of = |it: &Value| format!("{} {} {}", text(it, "name"), text(it, "origin"), text(it, "state"));
        list["data"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, Vec::<String>::new());
    save(folder.path(), "gate.rhai", "fn admit(message) { allow() }");
    save(folder.path(), "one/night.rhai", "fn admit(message) { allow() }");
    save(folder.path(), "two/other.rhai", "fn admit(message) { allow() }");
    save(folder.path(), "modules/market.rhai", "fn words() { 1 }");
    eventually("all files in service", || async {
        let live = gateway.db.sql("select count(*) from operator_script where live").await;
        (live.trim() == "4").then_some(())
    })
    .await;
    let version = add(&gateway, "gate", "fn admit(message) { allow() }").await;
    let both = ["gate tenant draft", "gate operators live", "night operators live"];
    assert_eq!(listed().await, both, "a draft takes nobody's place");
    gateway.post("/v1/scripts/gate/activate", &json!({"version": version})).await.expect(200);
    assert_eq!(listed().await, ["gate tenant live", "night operators live"]);
}

#[tokio::test]
async fn a_change_of_a_folders_script_is_tried_on_a_tenant_first() {
    let (folder, gateway, sink) = with_folder().await;
    let source = |priority: &str| format!("fn admit(message) {{ #{{priority: \"{priority}\"}} }}");
    let priority_of = async |recipient: usize| {
        let to = sink.url(&format!("/to/{recipient}"));
        let id = gateway.send(&json!({"channel": "webhook", "to": to, "content": {"payload": {}}})).await;
        gateway.message(&id).await["priority"].clone()
    };
    let is_live = async |priority: &str| {
        eventually("the file", || async { (priority_of(0).await == priority).then_some(()) }).await;
    };
    save(folder.path(), "gate.rhai", &source("high"));
    is_live("high").await;
    let version = add(&gateway, "gate", &source("low")).await;
    gateway.post("/v1/scripts/gate/experiment", &json!({"version": version, "mode": "shadow"})).await.expect(200);
    assert_eq!(priority_of(1).await, "high", "a shadow changes nothing");
    let difference = eventually("the difference", || async {
        let list = gateway.get("/v1/scripts/gate/experiment/differences").await;
        list["data"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(
        (&difference["live"], &difference["variant"]),
        (&json!({"priority": "high"}), &json!({"priority": "low"}))
    );
    let canary = json!({"version": version, "mode": "canary", "percentage": 50});
    gateway.post("/v1/scripts/gate/experiment", &canary).await.expect(200);
    let mut seen: Vec<Value> = Vec::new();
    for recipient in 0..20 {
        seen.push(priority_of(recipient).await);
    }
    assert!(seen.contains(&json!("high")) && seen.contains(&json!("low")), "{seen:?}");
    gateway.call(Method::DELETE, "/v1/scripts/gate/experiment", None).await.expect(204);
    is_live("high").await;
    save(folder.path(), "gate.rhai", &source("low"));
    is_live("low").await;
}
