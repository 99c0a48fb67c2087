//! One tenant's things do not exist for another.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::{ALL_SCOPES, TestGateway},
    sink::{Reply, Sink},
};

/// A text in all that the first tenant has.
const MARK: &str = "mine-and-nobody-elses";

/// The values of the document's path parameters: things of the first tenant.
struct Things(Vec<(&'static str, String)>);

impl Things {
    async fn make(gateway: &TestGateway, sink: &Sink) -> Self {
        let connection = gateway.webhook(sink, "/in").await;
        let route = gateway.get("/v1/routes").await["data"][0]["id"].as_str().unwrap().to_owned();
        sink.answers("/in", [Reply::status(400)]);
        let message =
            json!({"channel": "webhook", "content": {"payload": MARK}, "reference": MARK, "metadata": {"a": MARK}});
        let id = gateway.send(&message).await;
        assert_eq!(gateway.settled(&id).await.state, "failed");
        let rule = json!({"uid": MARK, "rule": {"name": MARK, "when": {"customer": {"segment": MARK}}, "then": {"priority": "high"}}});
        let rule = gateway.post("/v1/rules", &rule).await.expect(201);
        let source = format!("// {MARK}\nfn admit(message) {{ #{{}} }}");
        gateway.post(&format!("/v1/scripts/{MARK}/versions"), &json!({"source": source})).await.expect(201);
        let job = json!({"action": "cancel", "filter": {"reference": MARK, "state": "scheduled"}, "reason": MARK});
        let job = gateway.post("/v1/message-jobs", &job).await.expect(202);
        let replay = json!({"filter": {"channel": "sms"}, "reason": MARK});
        let replay = gateway.post("/v1/dead-letters/replays", &replay).await.expect(202);
        let id_of = |value: &Value| value["id"].as_str().unwrap().to_owned();
        for path in ["message-jobs", "dead-letters/replays"] {
            eventually("the jobs end", async || {
                let page = gateway.get(&format!("/v1/{path}")).await;
                (!page.to_string().contains("running")).then_some(())
            })
            .await;
        }
        Self(vec![
            ("/v1/messages/", id.clone()),
            ("/v1/dead-letters/replays/", id_of(&replay)),
            ("/v1/dead-letters/", id),
            ("/v1/message-jobs/", id_of(&job)),
            ("/v1/connections/", connection),
            ("/v1/routes/", route),
            ("/v1/rules/", id_of(&rule)),
            ("/v1/scripts/", MARK.to_owned()),
        ])
    }

    /// The path with the first tenant's thing, and any value for what is part of it; `None` without parameters.
    fn path(&self, template: &str) -> Option<String> {
        let (_, rest) = template.split_once('{')?;
        let (prefix, thing) = self.0.iter().find(|(prefix, _)| template.starts_with(&format!("{prefix}{{")))?;
        let after = rest.split_once('}').unwrap().1;
        let after = after.replace("{name}", "signing_key").replace("{version}", "1");
        Some(format!("{prefix}{thing}{}", after.replace("{leg}", "0").replace("{number}", "0")))
    }
}

/// Operations of the document that a tenant's key opens: method, template of the path, example of a body.
fn operations(document: &Value) -> Vec<(Method, String, Option<Value>)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Some(method) =
                method.to_uppercase().parse::<Method>().ok().filter(|_| operation["operationId"].is_string())
            else {
                continue;
            };
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            let name = body["$ref"].as_str().and_then(|it| it.rsplit('/').next());
            let example = name.map(|name| document["components"]["schemas"][name]["example"].clone());
            found.push((method, path.clone(), example.or(body.is_object().then(|| json!({})))));
        }
    }
    found
}

/// What the first tenant sees of each of its things.
async fn seen(gateway: &TestGateway, document: &Value, things: &Things) -> Vec<(String, Value)> {
    let mut seen = Vec::new();
    for (method, template, _) in operations(document) {
        if let Some(path) = things.path(&template).filter(|_| method == Method::GET) {
            let answer = gateway.call(method, &path, None).await;
            if answer.status == 200 {
                seen.push((path, answer.body));
            }
        }
    }
    seen
}

#[tokio::test]
async fn no_operation_opens_another_tenants_things() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let things = Things::make(&gateway, &sink).await;
    let document = gateway.get("/openapi.json").await;
    let before = seen(&gateway, &document, &things).await;
    assert!(before.len() > 15, "{before:?}");
    let other = gateway.key_of("two", ALL_SCOPES);
    let foreign = ["/v1/operator", "/v1/providers", "/v1/callbacks", "/v1/events/stream"];
    let mut tried = 0;
    for (method, template, body) in operations(&document) {
        if !template.starts_with("/v1/") || foreign.iter().any(|it| template.starts_with(it)) {
            continue;
        }
        let path = things.path(&template);
        assert!(path.is_some() || !template.contains('{'), "say in `Things` what `{template}` means");
        // A script's name is each tenant's own: this makes one of the other's.
        if template == "/v1/scripts/{script}/versions" && method == Method::POST {
            continue;
        }
        let is_list = path.is_none();
        let called = path.unwrap_or_else(|| template.clone());
        let answer = gateway.call_as(&other, method.clone(), &called, body.as_ref()).await;
        let shown = answer.body.to_string();
        assert!(
            !things.0.iter().any(|(_, thing)| thing != MARK && shown.contains(thing)),
            "{method} {called}: {shown}"
        );
        assert!(!shown.contains(MARK), "{method} {called}: {shown}");
        let refused = answer.status == 404 || body.is_some() && answer.status == 422;
        assert!(is_list || refused, "{method} {called}: {} {shown}", answer.status);
        tried += 1;
    }
    assert!(tried > 50, "{tried} operations were tried");
    assert_eq!(seen(&gateway, &document, &things).await, before, "another tenant changed something");
}

#[tokio::test]
async fn another_tenants_connection_can_be_neither_routed_nor_used() {
    let gateway = TestGateway::start().await;
    let id = gateway.connection("hook", "webhook", json!({"url": "https://example.com"}), json!({})).await;
    let other = gateway.key_of("two", ALL_SCOPES);
    let route = json!({"channel": "webhook", "spec": {"candidates": [{"connection": id}]}});
    let refused = gateway.call_as(&other, Method::POST, "/v1/routes", Some(&route)).await.problem(422);
    assert_eq!(refused.errors[0].code, "unknown_connection");
    let message = json!({"channel": "webhook", "connection": id});
    let refused = gateway.call_as(&other, Method::POST, "/v1/messages", Some(&message)).await.problem(422);
    assert_eq!(refused.errors[0].code, "unknown_connection");
    // A uid is each tenant's own.
    let same = json!({"uid": "hook", "provider": "webhook"});
    gateway.call_as(&other, Method::POST, "/v1/connections", Some(&same)).await.expect(201);
}

#[tokio::test]
async fn nobody_assigns_what_is_the_gateways() {
    let gateway = TestGateway::start().await;
    let smuggled = json!({"tenant_id": "B", "price": 0, "status": "delivered"});
    let merged = |mut body: Value| {
        body.as_object_mut().unwrap().extend(smuggled.as_object().unwrap().clone());
        body
    };
    gateway.connection("hook", "webhook", json!({"url": "https://example.com"}), json!({})).await;
    let spec = json!({"candidates": [{"connection": "hook"}]});
    for (method, path, body) in [
        (Method::POST, "/v1/messages", json!({"channel": "webhook"})),
        (Method::POST, "/v1/connections", json!({"provider": "webhook"})),
        (Method::PATCH, "/v1/connections/hook", json!({})),
        (Method::POST, "/v1/routes", json!({"channel": "webhook", "spec": spec})),
    ] {
        let problem = gateway.call(method, path, Some(&merged(body))).await.expect(422);
        let unknown = problem["errors"].as_array().unwrap().iter().filter(|it| it["code"] == "unknown_field").count();
        assert_eq!(unknown, 3, "{path}: {problem}");
    }
}
