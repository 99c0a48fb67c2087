//! Operators: secrets that cannot be opened, folders that are not there, grants that are missing, providers that change.

use std::fs;

use angarium_transport::sealing::Keyring;
use reqwest::Method;
use serde_json::{Value, json};
use xtask::gateway::{Gateway, Settings};

use crate::support::{
    answers::{Attempt, Seen},
    database::eventually,
    gateway::{TestGateway, client},
    sink::Sink,
};

// ── Secrets that cannot be opened (n8n#15164, infisical: "Mismatching encryption keys") ───────────

/// Puts another key-encryption key in the place of the gateway's and restarts its node; answers the old key.
async fn with_a_wrong_key(gateway: &mut TestGateway) -> String {
    let file = gateway.settings().folder.join("secrets.key");
    let old = fs::read_to_string(&file).unwrap();
    fs::write(&file, Keyring::generate().unwrap().as_bytes()).unwrap();
    gateway.kill(0);
    let node = gateway.spawned_node();
    gateway.nodes[0] = Some(node);
    old
}

/// Puts the key back after a current one, and restarts the node.
async fn with_both_keys(gateway: &mut TestGateway, old: &str) {
    let file = gateway.settings().folder.join("secrets.key");
    let new = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{new}\n{old}")).unwrap();
    gateway.kill(0);
    gateway.take_over().await;
}

/// Waits until `/readyz` refuses with this text.
async fn unready(gateway: &TestGateway, text: &str) {
    let client = client();
    eventually(&format!("`/readyz` saying `{text}`"), || async {
        let answer = client.get(gateway.url("/readyz")).send().await.ok()?;
        let (status, body) = (answer.status().as_u16(), answer.text().await.ok()?);
        (status == 503 && body.contains(text)).then_some(())
    })
    .await;
}

/// The one event of a type: an event is shown some seconds after it happened.
async fn only_event(gateway: &TestGateway, kind: &str) -> Value {
    eventually(kind, || async {
        let page = gateway.get(&format!("/v1/events?type={kind}")).await;
        let events = page["data"].as_array().unwrap();
        assert!(events.len() <= 1, "{page}");
        events.first().cloned()
    })
    .await
}

/// The first attempt of a message, once it is on record.
async fn first_attempt(gateway: &TestGateway, message: &str) -> Seen<Attempt> {
    eventually("an attempt", || async { gateway.attempt_list(message).await.into_iter().next() }).await
}

fn hook() -> Value {
    json!({"channel": "webhook", "content": {"payload": {"a": 1}}})
}

#[tokio::test]
async fn nothing_leaves_unsigned_while_a_secret_cannot_be_opened() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/").await;
    let old = with_a_wrong_key(&mut gateway).await;
    unready(&gateway, "none of the 1 stored secrets can be opened").await;

    let message = gateway.send(&hook()).await;
    let attempt = first_attempt(&gateway, &message).await;
    assert_eq!((attempt.disposition.as_str(), attempt.code.as_deref()), ("not_sent", Some("secret_unavailable")));
    assert!(attempt.detail().contains("`signing_key`"), "{attempt}");
    // The route's policy allows five attempts, 50 ms apart: waiting for the operator is none of them.
    let waits = eventually("a second look", || async {
        let view = gateway.message(&message).await;
        (gateway.attempt_list(&message).await.len() > 1).then_some(view)
    })
    .await;
    assert_eq!(waits["state"], "queued", "{waits}");
    assert!(sink.received().is_empty(), "it left unsigned");

    let event = only_event(&gateway, "connection.secrets_unavailable").await;
    assert_eq!(event["data"]["secrets"], json!(["signing_key"]), "{event}");
    let metrics = gateway.call(Method::GET, "/metrics", None).await.expect(200);
    for line in ["angarium_secrets_unavailable 1\n", "angarium_withheld_total{reason=\"secret_unavailable\"} "] {
        assert!(metrics.as_str().unwrap().contains(line), "{line}");
    }
    let health = gateway.get("/v1/health/providers").await;
    assert_eq!(health["data"][0]["unavailable_secrets"], json!(["signing_key"]), "{health}");
    let preview = gateway.post("/v1/messages?dry_run=true", &hook()).await.expect(200);
    assert!(preview.to_string().contains("do not open"), "{preview}");

    let counted = gateway.settings().command_line(&["secret", "check"]).unwrap_err().to_string();
    assert!(counted.contains("1 of 1 stored secrets"), "{counted}");

    with_both_keys(&mut gateway, &old).await;
    assert_eq!(gateway.settled(&message).await.state, "sent");
    assert!(sink.received()[0].header("webhook-signature").starts_with("v1,"), "it is signed now");
}

#[tokio::test]
async fn another_candidate_takes_what_a_closed_secret_holds_back() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/").await;
    with_a_wrong_key(&mut gateway).await;
    unready(&gateway, "none of the 1").await;
    gateway.connection("other", "webhook", json!({"url": sink.url("/other")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}, {"connection": "other"}]})).await;
    let message = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&message).await.state, "sent");
    assert_eq!(gateway.attempts(&message).await, ["hook:not_sent", "other:accepted"]);
    assert_eq!(sink.received_at("/other").len(), 1);
}

/// A secret that is set again uses the node's own key: the old value is not missed, and the node serves.
#[tokio::test]
async fn a_secret_that_is_set_anew_opens_again() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/").await;
    with_a_wrong_key(&mut gateway).await;
    unready(&gateway, "none of the 1").await;
    let message = gateway.send(&hook()).await;
    first_attempt(&gateway, &message).await;
    let value = json!({"value": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"});
    gateway.call(Method::PUT, "/v1/connections/hook/secrets/signing_key", Some(&value)).await.expect(200);
    assert_eq!(gateway.settled(&message).await.state, "sent");
    only_event(&gateway, "connection.secrets_available").await;
}

#[tokio::test]
async fn a_mail_does_not_leave_without_its_login_or_its_signature() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let port: u16 = sink.url("").rsplit(':').next().unwrap().parse().unwrap();
    let config = json!({"host": "127.0.0.1", "port": port, "username": "shop", "from": "shop@example.org"});
    gateway.connection("mail", "email-smtp", config, json!({"password": "hunter2"})).await;
    gateway.route("email", json!({"candidates": [{"connection": "mail"}]})).await;
    with_a_wrong_key(&mut gateway).await;
    unready(&gateway, "none of the 1").await;
    let mail = json!({"channel": "email", "to": "ann@example.org",
        "content": {"subject": "Hello", "text": "Ann"}});
    let message = gateway.send(&mail).await;
    assert_eq!(first_attempt(&gateway, &message).await["code"], "secret_unavailable");
}

#[tokio::test]
async fn a_callback_that_cannot_be_checked_is_asked_for_again() {
    let mut gateway = TestGateway::start().await;
    let sink = Sink::start().await;
    gateway.connection("texts", "fixture", json!({"url": sink.url("/texts")}), json!({"token": "t0ken"})).await;
    let path = gateway.callback_url("texts").await;
    let path = path[path.find("/v1/callbacks/").unwrap()..].to_owned();
    let says = async |gateway: &TestGateway, token: &str| {
        let request = client().post(gateway.url(&path)).header("x-token", token).body("[]");
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(says(&gateway, "another").await, 401);
    let old = with_a_wrong_key(&mut gateway).await;
    unready(&gateway, "none of the 1").await;
    assert_eq!(says(&gateway, "t0ken").await, 503, "a service sends it again after 503, and not after 401");
    with_both_keys(&mut gateway, &old).await;
    assert_eq!(says(&gateway, "t0ken").await, 200);
}

// ── Folders and filters that cannot be right ──────────────────────────────────────────────────────

#[tokio::test]
async fn a_start_names_every_folder_and_filter_that_cannot_be_right() {
    let gateway = TestGateway::with(0, "").await;
    let folder = gateway.settings().folder.join("nowhere");
    let settings = Settings {
        providers: folder.clone(),
        extra: format!("[rules]\nfolder = '{}'\n", folder.display()),
        name: "wrong".to_owned(),
        ..gateway.settings().clone()
    };
    let checked = settings.command_line(&["config", "check"]).unwrap_err().to_string();
    let mut node = Gateway::spawn(settings.clone()).unwrap();
    let ended = eventually("the end of the start", || {
        let ended = node.ended().unwrap();
        async move { ended }
    })
    .await;
    assert!(!ended.success());
    for key in ["`rules.folder`", "`providers.folder`"] {
        assert!(checked.contains(key), "{checked}");
        assert!(node.log_tail().contains(key), "{}", node.log_tail());
    }
    let settings = Settings { log_filter: "inof", name: "filter".to_owned(), ..gateway.settings().clone() };
    let checked = settings.command_line(&["config", "check"]).unwrap_err().to_string();
    assert!(checked.contains("`log.filter`") && checked.contains("(got `inof`)"), "{checked}");
}

#[tokio::test]
async fn a_folder_that_vanishes_makes_the_node_not_ready_until_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules");
    fs::create_dir(&rules).unwrap();
    fs::write(rules.join("gate.rhai"), "fn admit(message) { refuse(\"closed\") }").unwrap();
    let gateway = TestGateway::with(1, &format!("[rules]\nfolder = '{}'\n", rules.display())).await;
    gateway.logged(0, "an operators' script is live").await;
    let away = folder.path().join("away");
    fs::rename(&rules, &away).unwrap();
    unready(&gateway, "`rules.folder` names it").await;
    // The folder's content stays live: the folder may only be unmounted for a moment.
    gateway.webhook(&Sink::start().await, "/").await;
    let refused = gateway.post("/v1/messages", &hook()).await;
    assert_eq!(refused.status.as_u16(), 422, "{}", refused.body);
    fs::rename(&away, &rules).unwrap();
    let client = client();
    eventually("readiness", || async {
        let answer = client.get(gateway.url("/readyz")).send().await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    let log = fs::read_to_string(gateway.nodes[0].as_ref().unwrap().log()).unwrap();
    assert_eq!(log.matches("`rules.folder` names it").count(), 1, "it is said once");
    assert_eq!(log.matches("are not in service yet").count(), 1, "it is said once");
}

// ── A component without a gateway ─────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_component_is_checked_without_a_gateway_and_without_a_database() {
    let gateway = TestGateway::with(0, "").await;
    let settings = gateway.settings();
    let check = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&settings.binary);
        command.env_clear().args(["provider", "check", "--json"]).args(arguments);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(), text)
    };
    let file = settings.providers.join("webhook.wasm").display().to_string();
    let (fine, report, said) = check(&[&file, "--config", r#"{"url": "https://example.org/in"}"#]);
    assert!(fine, "{said}");
    assert_eq!((&report["name"], &report["problems"]), (&json!("webhook"), &json!([])), "{report}");
    assert_eq!(report["calls"][0]["result"], "sends", "{report}");
    assert!(report["calls"][0]["detail"].to_string().contains("https://example.org/in"), "{report}");

    let (fine, _, said) = check(&[&file, "--config", r#"{"ulr": 1}"#]);
    assert!(!fine && said.contains("the configuration is refused"), "{said}");
    let broken = settings.folder.join("broken.wasm");
    fs::write(&broken, b"not a component").unwrap();
    let (fine, _, said) = check(&[&broken.display().to_string()]);
    assert!(!fine && said.contains("not a WebAssembly component"), "{said}");
}

// ── Old and new versions on one schema ────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_new_binary_does_not_start_on_an_old_schema_and_an_old_one_does_on_a_new() {
    let gateway = TestGateway::with(0, "").await;
    let version = gateway.db.sql("select max(version) from _sqlx_migrations").await.trim().parse::<i64>().unwrap();
    // As a later binary would have left it.
    gateway.db.sql("insert into _sqlx_migrations values (9999, 'later', now(), true, '\\x00', 1)").await;
    let migrated = gateway.settings().command_line(&["migrate", "--json"]).unwrap();
    assert!(migrated.contains("9999"), "a way back does not fail at the schema: {migrated}");
    let node = gateway.new_node().await;
    drop(node);
    gateway.db.sql(&format!("delete from _sqlx_migrations where version >= {version}")).await;
    let said = refusal(&gateway).await;
    assert!(said.contains(&format!("needs {version}: run `angarium migrate`")), "{said}");
}

/// As the tables of a development version, whose migrations were written anew.
#[tokio::test]
async fn a_schema_with_another_history_is_refused_by_nodes_and_migrations() {
    let gateway = TestGateway::with(0, "").await;
    gateway.db.sql("update _sqlx_migrations set checksum = '\\x00' where version = 2").await;
    let why = "migration 2 of the database is not this gateway's migration 2";
    let said = refusal(&gateway).await;
    assert!(said.contains(why), "{said}");
    let said = gateway.settings().command_line(&["migrate"]).unwrap_err().to_string();
    assert!(said.contains(why), "{said}");
}

/// The words of a node that does not start.
async fn refusal(gateway: &TestGateway) -> String {
    let mut settings = gateway.settings().clone();
    settings.name = "refused".to_owned();
    let mut node = Gateway::spawn(settings).unwrap();
    let ended = eventually("the end of the start", || {
        let ended = node.ended().unwrap();
        async move { ended }
    })
    .await;
    assert!(!ended.success());
    node.log_tail()
}
