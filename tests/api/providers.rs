//! `/v1/providers`

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    component::{another_build, as_version},
    database::eventually,
    gateway::{TestGateway, client},
    messages::hook,
    sink::Sink,
};

async fn upload(gateway: &TestGateway, key: &str, bytes: Vec<u8>) -> (u16, Value) {
    let client = client();
    let request = client.post(gateway.url("/v1/providers?activate=true")).bearer_auth(key);
    let answer = request.header("content-type", "application/wasm").body(bytes).send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

#[tokio::test]
async fn the_folders_providers_serve_with_their_grants() {
    let gateway = TestGateway::start().await;
    let list = gateway.get("/v1/providers").await;
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    for name in ["email-smtp", "sms-twilio", "webhook"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let webhook = gateway.get("/v1/providers/webhook").await;
    assert_eq!(webhook["channels"], json!(["webhook"]));
    assert_eq!(webhook["granted_hosts"], webhook["declared_hosts"]);
    assert_eq!(webhook["versions"][0]["digest"], webhook["active_digest"]);
}

#[tokio::test]
async fn only_an_operator_changes_providers() {
    let gateway = TestGateway::start().await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    assert_eq!(upload(&gateway, &gateway.key, vec![]).await.0, 403);
    let (status, problem) = upload(&gateway, &operator, b"not a component".to_vec()).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("invalid_request")), "{problem}");
    assert_eq!(problem["errors"][0]["code"], "component_refused");
    assert_eq!(problem["source"], "provider");

    let grants = async |hosts: Value| {
        let body = json!({"hosts": hosts});
        gateway.call_as(&operator, Method::PUT, "/v1/providers/webhook/grants", Some(&body)).await
    };
    assert_eq!(grants(json!([])).await.expect(200)["granted_hosts"], json!([]));
    assert_eq!(grants(json!(["evil.example"])).await.problem(422).errors[0].code, "undeclared_host");
    let answer = gateway.call_as(&operator, Method::POST, "/v1/providers/webhook/rollback", None).await;
    assert_eq!(answer.problem(409).code, "no_previous_version");
    gateway.call_as(&operator, Method::POST, "/v1/providers/pigeon/rollback", None).await.expect(404);
}

#[tokio::test]
async fn a_component_that_is_known_can_be_uploaded_again() {
    let gateway = TestGateway::start().await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    let before = gateway.get("/v1/providers/webhook").await;
    let file = std::fs::read(gateway.settings().providers.join("webhook.wasm")).unwrap();
    let (status, after) = upload(&gateway, &operator, file).await;
    assert_eq!((status, &after["active_digest"]), (201, &before["active_digest"]), "{after}");
    assert_eq!(after["versions"].as_array().unwrap().len(), 1);
}

fn webhook(gateway: &TestGateway) -> Vec<u8> {
    std::fs::read(gateway.settings().providers.join("webhook.wasm")).unwrap()
}

#[tokio::test]
async fn the_same_version_with_other_bytes_is_refused() {
    let gateway = TestGateway::start().await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    let (own, other) = (webhook(&gateway), another_build(&webhook(&gateway)));
    let before = gateway.get("/v1/providers/webhook").await;
    for how in ["", "?activate=true&grants=keep"] {
        let problem = gateway.upload(&operator, &format!("/v1/providers{how}"), other.clone()).await.problem(409);
        assert_eq!(problem.code, "version_taken", "{problem}");
        assert!(problem.detail.contains(before["active_digest"].as_str().unwrap()), "{problem}");
    }
    assert_eq!(gateway.get("/v1/providers/webhook").await["versions"], before["versions"], "nothing was stored");
    let replaced = gateway.upload(&operator, "/v1/providers?replace=true", other.clone()).await.expect(201);
    assert_eq!(
        (replaced["versions"].as_array().unwrap().len(), &replaced["active_digest"]),
        (2, &before["active_digest"])
    );
    gateway.upload(&operator, "/v1/providers?activate=true&replace=true", own).await.expect(201);
}

#[tokio::test]
async fn an_installed_version_is_activated_by_its_digest_and_uninstalled() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    let before = gateway.get("/v1/providers/webhook").await;
    let installed =
        gateway.upload(&operator, "/v1/providers", as_version(&webhook(&gateway), "0.2.0")).await.expect(201);
    let new = installed["versions"][0].clone();
    assert_eq!((&new["version"], &installed["version"]), (&json!("0.2.0"), &json!("0.1.0")), "it does not serve yet");
    let activate = async |body: Value| {
        gateway.call_as(&operator, Method::POST, "/v1/providers/webhook/activate", Some(&body)).await
    };
    assert_eq!(activate(json!({"digest": "0".repeat(64)})).await.problem(404).code, "not_found");
    assert_eq!(activate(json!({"digest": new["digest"]})).await.problem(409).code, "grants_unconfirmed");
    let body = json!({"digest": new["digest"], "grants": "keep"});
    assert_eq!(gateway.post("/v1/providers/webhook/activate", &body).await.status.as_u16(), 403);
    let active = activate(body).await.expect(200);
    assert_eq!((&active["version"], &active["granted_hosts"]), (&json!("0.2.0"), &before["granted_hosts"]));
    assert_eq!(
        activate(json!({"digest": before["active_digest"], "grants": "keep"})).await.expect(409)["code"],
        "downgrade"
    );

    // A version that serves stays while connections need it; any other may go.
    let uninstall = async |path: String| {
        gateway.call_as(&operator, Method::DELETE, &format!("/v1/providers/webhook{path}"), None).await
    };
    let version = |digest: &Value| format!("/versions/{}", digest.as_str().unwrap());
    for path in [String::new(), version(&new["digest"])] {
        let problem = uninstall(path).await.problem(409);
        assert_eq!(problem.code, "provider_in_use", "{problem}");
        assert!(problem.detail.starts_with("1 enabled connections"), "{problem}");
    }
    uninstall(version(&before["active_digest"])).await.expect(204);
    let left = gateway.get("/v1/providers/webhook").await;
    assert_eq!((left["versions"].as_array().unwrap().len(), &left["previous_digest"]), (1, &Value::Null));
    uninstall(version(&before["active_digest"])).await.expect(404);

    gateway.call(Method::PATCH, "/v1/connections/hook", Some(&json!({"enabled": false}))).await.expect(200);
    uninstall(String::new()).await.expect(204);
    gateway.call(Method::GET, "/v1/providers/webhook", None).await.expect(404);
    let connection = gateway.shown_connection("hook").await;
    assert_eq!(connection.warnings[0].code, "provider_not_serving", "{connection}");
    assert_eq!(connection.warnings[0].detail, "the provider is not installed");
    let back = gateway.upload(&operator, "/v1/providers?activate=true", webhook(&gateway)).await.expect(201);
    assert_eq!(back["granted_hosts"], json!([]), "what was granted went with it");
    let records = gateway.call_as(&operator, Method::GET, "/v1/operator/audit?subject=webhook", None).await.expect(200);
    let actions: Vec<_> = records["data"].as_array().unwrap().iter().map(|it| it["action"].as_str().unwrap()).collect();
    assert_eq!(actions[..3], ["provider.activated", "provider.uninstalled", "provider.uninstalled"]);
}

#[tokio::test]
async fn a_force_takes_a_provider_away_and_deliveries_say_so() {
    let (gateway, sink) = (TestGateway::with(2, "").await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let operator = gateway.key_of("operations", "operator,providers:read");
    gateway.call_as(&operator, Method::DELETE, "/v1/providers/webhook?force=true", None).await.expect(204);
    let message = hook();
    for node in [0, 1] {
        eventually("the node to let it go", || async {
            let id = gateway.send_to(node, &message).await;
            let attempt = gateway.attempt_list(&id).await.into_iter().next()?;
            attempt.detail().contains("hook: the provider is not installed").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_missing_grant_is_told_everywhere_and_waited_for() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let operator = gateway.key_of("operations", "operator,providers:read");
    let grant = async |hosts: Value| {
        let body = json!({ "hosts": hosts });
        gateway.call_as(&operator, Method::PUT, "/v1/providers/webhook/grants", Some(&body)).await.expect(200)
    };
    let provider = grant(json!(["{to}"])).await;
    assert_eq!(provider["missing_grants"], json!(["{config.url}"]), "{provider}");
    assert_eq!(provider["versions"][0]["missing_grants"], json!(["{config.url}"]), "{provider}");
    gateway.webhook(&sink, "/in").await;
    let connection = gateway.shown_connection("hook").await;
    assert_eq!(connection.warnings[0].code, "host_not_granted", "{connection}");
    let remedy = "angarium provider grant webhook '{to}' '{config.url}'";
    assert!(connection.warnings[0].detail.contains(remedy), "{connection}");

    let id = gateway.send(&hook()).await;
    eventually("two looks", || async { (gateway.attempt_list(&id).await.len() > 1).then_some(()) }).await;
    assert!(gateway.attempt_list(&id).await.iter().all(|it| it["code"] == "host_not_granted"));
    let health = gateway.get("/v1/health/providers").await;
    assert_eq!(health["data"][0]["breaker"]["state"], "closed", "the connection is not to blame: {health}");
    let whole = grant(json!(["{config.url}", "{to}"])).await;
    assert_eq!(whole["missing_grants"], json!([]));
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert!(gateway.shown_connection("hook").await.warnings.is_empty());
}
