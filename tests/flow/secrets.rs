//! The rotation of the key-encryption key.

use std::fs;

use angarium_transport::sealing::Keyring;
use serde_json::{Value, json};

use crate::support::{gateway::TestGateway, sink::Sink};

#[tokio::test]
async fn a_retired_key_is_not_missed_after_a_rewrap() {
    let mut gateway = TestGateway::start().await;
    let sink = Sink::start().await;
    gateway.webhook(&sink, "/").await;
    let file = gateway.settings().folder.join("secrets.key");
    let (old, new) = (fs::read_to_string(&file).unwrap(), Keyring::generate().unwrap());

    fs::write(&file, format!("{}\n{old}", new.as_str())).unwrap();
    let rewrap =
        || serde_json::from_str::<Value>(&gateway.settings().command_line(&["secret", "rewrap", "--json"]).unwrap());
    let answer = rewrap().unwrap();
    assert_eq!((&answer["rewrapped"], &answer["left"]), (&json!(1), &json!(0)));
    assert_eq!(rewrap().unwrap()["rewrapped"], 0);

    fs::write(&file, new.as_bytes()).unwrap();
    gateway.kill(0);
    let node = gateway.new_node().await;
    gateway.nodes.push(Some(node));
    let message = gateway.send(&json!({"channel": "webhook", "content": {"payload": {"a": 1}}})).await;
    assert_eq!(gateway.settled(&message).await.state, "sent");
}
