//! Rules and scripts that are changed while the gateway runs.

mod backtest;
mod conditions;
mod declarative;
mod experiments;
mod folder;
mod follow_ups;
mod scripts;
mod try_out;

use serde_json::json;

use crate::support::gateway::TestGateway;

/// Adds a version of a script, a draft; returns its number.
async fn add(gateway: &TestGateway, name: &str, source: &str) -> i64 {
    let path = format!("/v1/scripts/{name}/versions");
    let made = gateway.post(&path, &json!({"source": source})).await.expect(201);
    assert_eq!(made["state"], "draft");
    made["version"].as_i64().unwrap()
}

/// Adds a version and makes it live.
pub async fn live(gateway: &TestGateway, name: &str, source: &str) -> i64 {
    let version = add(gateway, name, source).await;
    let path = format!("/v1/scripts/{name}/activate");
    let live = gateway.post(&path, &json!({"version": version})).await.expect(200);
    assert_eq!(live["state"], "live");
    version
}
