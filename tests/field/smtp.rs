//! Mail servers that reply late, long, out of step, or as of old.

use serde_json::json;

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    mail_script::{HANG_UP, HELD, MailScript, SILENCE},
};

/// A deadline and leases that are soon over.
const SHORT: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";

/// A gateway that sends mail to this server, without an `on_unknown` of its own.
async fn gateway_for(server: &MailScript, retry: serde_json::Value) -> TestGateway {
    let gateway = TestGateway::with(1, SHORT).await;
    let config = json!({"host": "127.0.0.1", "port": server.port, "tls": "none", "from": "shop@example.com"});
    let connection = gateway.connection("mx", "email-smtp", config, json!({})).await;
    gateway.without_breaker(&connection).await;
    gateway.route("email", json!({"candidates": [{"connection": "mx"}], "retry": retry})).await;
    gateway
}

async fn send(gateway: &TestGateway) -> String {
    gateway.send(&json!({"channel": "email", "to": "ann@example.org", "content": {"text": "x"}})).await
}

#[tokio::test]
async fn a_server_that_takes_data_with_250_has_taken_nothing() {
    let mut server = MailScript::start(&[("DATA", "250 Ok")]).await;
    let gateway = gateway_for(&server, json!({"type": "linear", "delay_ms": 50, "max_attempts": 2})).await;
    let id = send(&gateway).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "failed", "{view}");
    assert_eq!(gateway.attempts(&id).await, ["mx:not_sent", "mx:not_sent"]);
    assert!(server.mails().is_empty());
}

#[tokio::test]
async fn a_last_reply_that_takes_longer_than_leases_last_makes_one_mail() {
    let mut server = MailScript::start(&[("dot", &format!("{HELD}250 2.0.0 queued"))]).await;
    let gateway = gateway_for(&server, json!({"type": "linear", "delay_ms": 50, "max_attempts": 5})).await;
    let id = send(&gateway).await;
    let outlived = "select count(*) from lease, intent where expires_at > started_at + interval '5 seconds'";
    eventually("the lease being renewed over and over", || async {
        (gateway.db.sql(outlived).await.trim() == "1").then_some(())
    })
    .await;
    let state = gateway.message(&id).await["state"].clone();
    server.release.notify_one();
    let view = gateway.settled(&id).await;
    assert_eq!((state, &view["state"]), (json!("queued"), &json!("sent")), "{view}");
    assert_eq!(gateway.attempts(&id).await, ["mx:accepted"]);
    assert_eq!(server.mails().len(), 1);
}

#[tokio::test]
async fn a_mail_that_may_have_been_taken_is_held_and_not_sent_again() {
    let mut server = MailScript::start(&[("dot", HANG_UP)]).await;
    let gateway = gateway_for(&server, json!({"type": "linear", "delay_ms": 50, "max_attempts": 5})).await;
    let id = send(&gateway).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "unknown", "{view}");
    assert_eq!(gateway.attempts(&id).await, ["mx:unknown"]);
    assert_eq!(server.mails().len(), 1);
}

#[tokio::test]
async fn a_node_that_dies_before_the_last_reply_leaves_one_mail_and_says_that_it_is_unknown() {
    let mut server = MailScript::start(&[("dot", SILENCE)]).await;
    let mut gateway = gateway_for(&server, json!({"type": "linear", "delay_ms": 50, "max_attempts": 5})).await;
    let id = send(&gateway).await;
    let mut mails = 0;
    while mails == 0 {
        mails += usize::from(server.told.recv().await.unwrap().ends_with("\r\n."));
    }
    gateway.kill(0);
    gateway.take_over().await;
    let view = gateway.settled(&id).await;
    assert_eq!((view.state.as_str(), server.mails().len()), ("unknown", 0), "{view}");
}

#[tokio::test]
async fn a_node_that_stops_gives_a_mail_back_that_the_server_never_had() {
    let mut server = MailScript::start(&[("RCPT", SILENCE)]).await;
    let mut gateway = gateway_for(&server, json!({"type": "linear", "delay_ms": 50, "max_attempts": 5})).await;
    let id = send(&gateway).await;
    while !server.told.recv().await.unwrap().starts_with("RCPT") {}
    let node = gateway.nodes[0].take().unwrap();
    tokio::task::spawn_blocking(move || node.stop()).await.unwrap().expect("it stops by itself");
    gateway.take_over().await;
    let attempts = eventually("the first attempt on record", || async {
        let attempts = gateway.attempts(&id).await;
        (!attempts.is_empty()).then_some(attempts)
    })
    .await;
    assert_eq!(attempts[0], "mx:not_sent");
}

#[tokio::test]
async fn a_last_reply_of_many_lines_is_read_by_its_code() {
    let long = format!("250-2.0.0 {}\r\n", "x".repeat(90)).repeat(50);
    let mut server = MailScript::start(&[("dot", &format!("{long}250 2.0.0 queued"))]).await;
    let gateway = gateway_for(&server, json!({"type": "none"})).await;
    let id = send(&gateway).await;
    let view = gateway.settled(&id).await;
    assert_eq!((view.state.as_str(), server.mails().len()), ("sent", 1), "{view}");
    assert_eq!(gateway.attempts(&id).await, ["mx:accepted"]);
}

#[tokio::test]
async fn a_server_that_knows_no_ehlo_gets_its_mail() {
    let mut server = MailScript::start(&[("EHLO", "502 5.5.1 command not implemented")]).await;
    let gateway = gateway_for(&server, json!({"type": "none"})).await;
    let id = send(&gateway).await;
    let view = gateway.settled(&id).await;
    assert_eq!((view.state.as_str(), server.mails().len()), ("sent", 1), "{view}");
}

#[tokio::test]
async fn a_long_enhanced_code_is_kept_and_matches_an_override() {
    let server = MailScript::start(&[("RCPT", "550 5.7.708 Access denied")]).await;
    let gateway = gateway_for(&server, json!({"type": "none"})).await;
    let id = send(&gateway).await;
    gateway.settled(&id).await;
    assert_eq!(gateway.attempt_list(&id).await[0].code.as_deref(), Some("550 5.7.708"));
    let overridden = json!({"550 5.7.708": "auth_failed"});
    let spec = json!({"candidates": [{"connection": "mx"}], "retry": {"type": "none"}, "overrides": overridden});
    gateway.route("email", spec).await;
    let id = send(&gateway).await;
    gateway.settled(&id).await;
    assert_eq!(gateway.attempts(&id).await, ["mx:auth_failed"]);
}
