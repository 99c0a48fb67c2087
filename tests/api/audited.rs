//! Every change is in the audit: the OpenAPI document says which operations there are, and each is performed.

use std::{collections::BTreeSet, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    component::as_version,
    gateway::{ALL_SCOPES, TestGateway, client},
    messages::hook,
    sink::{Reply, Sink},
};

/// Operations that leave no entry, with the reason.
const UNAUDITED: [(&str, &str); 5] = [
    ("createMessage", "the message is its own record"),
    ("createMessages", "the messages are their own records"),
    ("evaluateRules", "it changes nothing"),
    ("backtestRules", "it changes nothing"),
    ("postCallback", "a provider's service calls it, and the receipt is the record"),
];

const CONFIG: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\npoll_ms = 50\n";

/// A walk through the operations of the document.
struct Walk {
    gateway: TestGateway,
    /// May do what every key may, and what operators may.
    key: String,
    document: Value,
    audited: BTreeSet<String>,
}

impl Walk {
    async fn start() -> (Self, Sink) {
        let (gateway, sink) = (TestGateway::with(1, CONFIG).await, Sink::start().await);
        let key = gateway.key_with(&format!("{ALL_SCOPES},operator"));
        let document = gateway.get("/openapi.json").await;
        (Self { gateway, key, document, audited: BTreeSet::new() }, sink)
    }

    /// The operations that change something: their ids, methods and paths.
    fn operations(&self) -> Vec<(String, Method, String)> {
        let mut found = Vec::new();
        for (path, item) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let Some(id) = operation["operationId"].as_str().filter(|_| method != "get") else { continue };
                found.push((id.to_owned(), method.to_uppercase().parse().unwrap(), path.clone()));
            }
        }
        found
    }

    /// Performs an operation, whose path has these values in their order, and finds its entry.
    async fn does(&mut self, operation: &str, values: &[&str], body: Option<Value>) -> Value {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.sends(operation, values, "", body).await
    }

    async fn sends(&mut self, operation: &str, values: &[&str], query: &str, body: Option<(&str, Vec<u8>)>) -> Value {
        let known = self.operations().into_iter().find(|(id, ..)| id == operation);
        let (_, method, path) = known.unwrap_or_else(|| panic!("the document has no operation `{operation}`"));
        let mut values = values.iter();
        let parts = path.split('/').map(|part| if part.starts_with('{') { values.next().unwrap() } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        let request_id = format!("walk-{operation}-{}", self.audited.len());
        let request = client().request(method, self.gateway.url(&format!("{path}{query}"))).bearer_auth(&self.key);
        let request = request.header("x-request-id", &request_id);
        let request = match body {
            Some((kind, bytes)) => request.header("content-type", kind).body(bytes),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let (status, bytes) = (answer.status(), answer.bytes().await.unwrap());
        assert!(status.is_success(), "{operation}: {status} {}", String::from_utf8_lossy(&bytes));
        self.has_entry(operation, &request_id).await;
        self.audited.insert(operation.to_owned());
        if status == StatusCode::NO_CONTENT { Value::Null } else { serde_json::from_slice(&bytes).unwrap() }
    }

    async fn has_entry(&self, operation: &str, request_id: &str) {
        let mut entries = Vec::new();
        for path in ["/v1/audit?limit=250", "/v1/operator/audit?limit=250"] {
            let page = self.gateway.call_as(&self.key, Method::GET, path, None).await.expect(200);
            entries.extend(page["data"].as_array().unwrap().clone());
        }
        let entry = entries.into_iter().find(|entry| entry["request_id"] == json!(request_id));
        let entry = entry.unwrap_or_else(|| panic!("`{operation}` leaves no entry in the audit"));
        assert_eq!(entry["actor"]["kind"], "api_key", "{entry}");
        assert!(entry["actor"]["id"].as_str().unwrap().starts_with("key_"), "{entry}");
        for secret in SECRETS {
            assert!(!entry.to_string().contains(secret), "a secret is in {entry}");
        }
    }

    /// A message whose only attempt is refused.
    async fn failed(&self, sink: &Sink) -> String {
        sink.answers("/in", [Reply::status(400)]);
        let id = self.gateway.send(&hook()).await;
        assert_eq!(self.gateway.settled(&id).await.state, "failed");
        sink.answers("/in", [Reply::status(200)]);
        id
    }

    /// A message whose request began and was never answered.
    async fn unknown(&self, sink: &Sink) -> String {
        sink.answers("/in", [Reply::status(200).after(Duration::from_secs(60)), Reply::status(200)]);
        let id = self.gateway.send(&hook()).await;
        assert_eq!(self.gateway.settled(&id).await.state, "unknown");
        id
    }
}

/// The secrets that the walk sets: they occur in no entry.
const SECRETS: [&str; 4] = [
    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "Bearer hidden-in-the-walk",
    "a-token-in-a-header",
];

#[tokio::test]
async fn every_operation_that_changes_something_leaves_an_entry_with_its_request_id() {
    let (mut walk, sink) = Walk::start().await;
    configures(&mut walk, &sink).await;
    rules(&mut walk).await;
    scripts(&mut walk).await;
    messages(&mut walk, &sink).await;
    dead_letters(&mut walk, &sink).await;
    walk.sends("deleteRoute", &["way"], "?force=true", None).await;
    walk.does("deleteConnection", &["hook"], None).await;
    providers(&mut walk).await;

    let all: BTreeSet<_> = walk.operations().into_iter().map(|(id, ..)| id).collect();
    let unaudited = BTreeSet::from(UNAUDITED.map(|(id, _)| id.to_owned()));
    assert!(unaudited.is_subset(&all), "{unaudited:?}");
    let missing: Vec<_> = all.iter().filter(|id| !walk.audited.contains(*id) && !unaudited.contains(*id)).collect();
    assert!(missing.is_empty(), "perform these in the walk, or say why they leave no entry: {missing:?}");
}

async fn configures(walk: &mut Walk, sink: &Sink) {
    let config = json!({"url": sink.url("/in"), "headers": {"x-token": SECRETS[3]}});
    let secrets = json!({"signing_key": SECRETS[0]});
    let new = json!({"uid": "hook", "provider": "webhook", "config": config, "secrets": secrets});
    walk.does("createConnection", &[], Some(new)).await;
    let change = json!({"name": "The hook", "secrets": {"authorization": SECRETS[2]}});
    walk.does("updateConnection", &["hook"], Some(change)).await;
    walk.does("rotateSecret", &["hook", "signing_key"], Some(json!({"value": SECRETS[1]}))).await;
    for action in ["open", "close"] {
        walk.does("setBreaker", &["hook"], Some(json!({"action": action}))).await;
    }
    let spec = json!({"candidates": [{"connection": "hook"}], "retry": {"type": "none"}, "on_unknown": "hold"});
    walk.does("createRoute", &[], Some(json!({"uid": "way", "channel": "webhook", "spec": spec}))).await;
    walk.does("createRouteVersion", &["way"], Some(json!({"spec": spec}))).await;
    for version in [1, 2] {
        walk.does("activateRoute", &["way"], Some(json!({"version": version}))).await;
    }
    walk.does("rollbackRoute", &["way"], None).await;
    walk.does("putSettings", &[], Some(json!({"overrides": {"21610": "permanent"}}))).await;
}

async fn rules(walk: &mut Walk) {
    let rule = |segment: &str| json!({"rule": {"name": "Dear ones", "when": {"customer": {"segment": segment}}, "then": {"priority": "high"}}});
    let mut new = rule("vip");
    new["uid"] = json!("dear");
    walk.does("createRule", &[], Some(new)).await;
    walk.does("putRule", &["dear"], Some(rule("gold"))).await;
    walk.does("patchRule", &["dear"], Some(json!({"rule": {"name": "Dearest"}}))).await;
    let added = walk.does("createRuleVersion", &["dear"], Some(rule("silver"))).await;
    let shadow = json!({"version": added["version"], "mode": "shadow"});
    walk.does("beginRuleExperiment", &["dear"], Some(shadow)).await;
    walk.does("endRuleExperiment", &["dear"], None).await;
    walk.does("activateRule", &["dear"], Some(json!({"version": added["version"]}))).await;
    walk.does("rollbackRule", &["dear"], None).await;
    walk.does("deleteRule", &["dear"], None).await;
}

async fn scripts(walk: &mut Walk) {
    for priority in ["high", "low", "normal"] {
        let source = format!("fn admit(message) {{ #{{priority: \"{priority}\"}} }}");
        walk.does("createScriptVersion", &["gate"], Some(json!({"source": source}))).await;
    }
    for version in [1, 2] {
        walk.does("activateScript", &["gate"], Some(json!({"version": version}))).await;
    }
    walk.does("resetScript", &["gate"], None).await;
    walk.does("beginScriptExperiment", &["gate"], Some(json!({"version": 3, "mode": "shadow"}))).await;
    walk.does("endScriptExperiment", &["gate"], None).await;
    walk.does("rollbackScript", &["gate"], None).await;
    walk.does("retireScript", &["gate"], None).await;
}

async fn messages(walk: &mut Walk, sink: &Sink) {
    let mut later = hook();
    later["send_at"] = json!("2099-01-01T00:00:00Z");
    let scheduled = walk.gateway.send(&later).await;
    walk.does("rescheduleMessage", &[&scheduled], Some(json!({"send_at": "2098-01-01T00:00:00Z"}))).await;
    walk.does("cancelMessage", &[&scheduled], None).await;
    // Enough for a job that is not done before it is stopped.
    let many: Vec<_> = (0..300).map(|_| later.clone()).collect();
    walk.gateway.post("/v1/messages/batch", &json!({"messages": many})).await.expect(200);
    let wanted = json!({"action": "cancel", "filter": {"state": "scheduled"}, "reason": "the offer has ended"});
    let job = walk.does("startMessageJob", &[], Some(wanted)).await;
    walk.does("cancelMessageJob", &[job["id"].as_str().unwrap()], None).await;
    let failed = walk.failed(sink).await;
    walk.does("retryMessage", &[&failed], None).await;
    walk.gateway.settled(&failed).await;
    walk.does("purgeMessage", &[&failed], None).await;
    let unknown = walk.unknown(sink).await;
    walk.does("resolveMessage", &[&unknown], Some(json!({"as": "sent", "reason": "seen"}))).await;
}

async fn dead_letters(walk: &mut Walk, sink: &Sink) {
    let first = walk.failed(sink).await;
    walk.does("replayDeadLetter", &[&first], Some(json!({}))).await;
    let second = walk.failed(sink).await;
    walk.does("discardDeadLetter", &[&second], Some(json!({"reason": "not needed"}))).await;
    walk.does("discardDeadLetters", &[], Some(json!({"filter": {}, "reason": "none is needed"}))).await;
    for _ in 0..3 {
        walk.failed(sink).await;
    }
    let replay = walk.does("startReplay", &[], Some(json!({"filter": {}, "rate_per_second": 1}))).await;
    walk.does("cancelReplay", &[replay["id"].as_str().unwrap()], None).await;
}

async fn providers(walk: &mut Walk) {
    let file = std::fs::read(walk.gateway.settings().providers.join("webhook.wasm")).unwrap();
    let first = walk.gateway.get("/v1/providers/webhook").await["active_digest"].as_str().unwrap().to_owned();
    let other = Some(("application/wasm", as_version(&file, "0.1.1")));
    let installed = walk.sends("installProvider", &[], "", other).await;
    let digest = installed["versions"][0]["digest"].as_str().unwrap().to_owned();
    let activation = json!({"digest": digest, "grants": "keep"});
    walk.does("activateProvider", &["webhook"], Some(activation)).await;
    walk.does("rollbackProvider", &["webhook"], None).await;
    walk.does("grantHosts", &["webhook"], Some(json!({"hosts": []}))).await;
    assert_eq!(walk.gateway.get("/v1/providers/webhook").await["active_digest"], json!(first));
    walk.does("uninstallProviderVersion", &["webhook", &digest], None).await;
    walk.does("uninstallProvider", &["webhook"], None).await;
}

#[tokio::test]
async fn commands_on_the_database_leave_entries_with_the_systems_user() {
    let gateway = TestGateway::start().await;
    let command = |arguments: &[&str]| gateway.settings().command_line(arguments).unwrap();
    command(&["tenant", "create", "third"]);
    command(&["tenant", "classify", "third", "default"]);
    let made = command(&["key", "create", "--tenant", "third", "--scopes", "audit:read", "--json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let (text, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    let spent = command(&["key", "create", "--tenant", "third", "--name", "spent", "--json"]);
    let spent: Value = serde_json::from_str(&spent).unwrap();
    command(&["key", "revoke", spent["id"].as_str().unwrap()]);

    let entries = gateway.call_as(text, Method::GET, "/v1/audit", None).await.expect(200)["data"].clone();
    let told: Vec<_> = entries.as_array().unwrap().iter().rev().map(|it| (&it["action"], &it["subject"])).collect();
    let tenant = made["tenant"].as_str().unwrap();
    assert_eq!(
        json!(told),
        json!([
            ["tenant.created", tenant],
            ["tenant.classified", tenant],
            ["key.created", id],
            ["key.created", spent["id"]],
            ["key.revoked", spent["id"]],
        ])
    );
    for entry in entries.as_array().unwrap() {
        assert_eq!((&entry["actor"]["kind"], &entry["actor"]["id"]), (&json!("command_line"), &Value::Null));
        assert!(!entry["actor"]["name"].as_str().unwrap().is_empty(), "{entry}");
        assert!(!entry.to_string().contains(text), "{entry}");
    }
    let operator = gateway.key_of("operations", "operator");
    let entries = gateway.call_as(&operator, Method::GET, "/v1/operator/audit?action=schema.migrated", None).await;
    assert_eq!(entries.expect(200)["data"][0]["actor"]["kind"], "command_line");
}
