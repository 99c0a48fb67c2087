//! Rules and scripts share a budget, and a key does not see data that it may not read.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::{ALL_SCOPES, TestGateway},
    sink::{Reply, Sink},
};

/// A text in the recipient's address, the content, the attributes, the contact, and a provider's answers.
const CANARY: &str = "canary7314";

async fn activated(gateway: &TestGateway, name: &str, source: &str) -> i64 {
    let path = format!("/v1/scripts/{name}");
    let version = gateway.post(&format!("{path}/versions"), &json!({"source": source})).await.expect(201);
    let version = version["version"].as_i64().expect("a number");
    gateway.post(&format!("{path}/activate"), &json!({"version": version})).await.expect(200);
    version
}

/// Every GET of the document with what there is in place of its parameters.
async fn every_get(gateway: &TestGateway, known: &[(&str, String)]) -> Vec<String> {
    let document = gateway.get("/openapi.json").await;
    let paths = document["paths"].as_object().expect("paths");
    let gets = paths.iter().filter(|(_, item)| item["get"].is_object()).map(|(path, _)| path);
    let of_tenants =
        gets.filter(|path| path.starts_with("/v1/") && !path.contains("callbacks") && !path.ends_with("stream"));
    of_tenants.map(|path| known.iter().fold(path.clone(), |path, (from, to)| path.replace(from, to))).collect()
}

#[tokio::test]
async fn recipients_and_content_need_the_scope_that_reads_messages() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let told = Reply { body: format!("no such user {CANARY}"), ..Reply::status(410) };
    sink.answers(&format!("/{CANARY}"), [told]);
    gateway.webhook(&sink, "/in").await;
    activated(&gateway, "gate", "fn admit(message) { #{priority: \"high\"} }").await;
    let tells = "fn admit(message) { refuse(\"to \" + message.to + \": \" + message.text) }";
    let shadow = gateway.post("/v1/scripts/gate/versions", &json!({"source": tells})).await.expect(201);
    gateway
        .post("/v1/scripts/gate/experiment", &json!({"version": shadow["version"], "mode": "shadow"}))
        .await
        .expect(200);
    let rule = json!({"name": "x", "then": {"priority": "low"}});
    let rule = gateway.post("/v1/rules", &json!({"rule": rule})).await.expect(201)["id"].as_str().unwrap().to_owned();
    let message = json!({"channel": "webhook", "to": sink.url(&format!("/{CANARY}")), "content": {"text": CANARY},
        "attributes": {"note": CANARY}, "contact": {"id": CANARY}, "metadata": {"note": CANARY}});
    let id = gateway.send(&message).await;
    let delivery = gateway.settled(&id).await["delivery"]["id"].as_str().unwrap().to_owned();
    eventually("the shadow's difference", || async {
        let page = gateway.get("/v1/scripts/gate/experiment/differences").await;
        (!page["data"].as_array()?.is_empty()).then_some(())
    })
    .await;

    let known = [
        ("/v1/dead-letters/{id}", format!("/v1/dead-letters/{delivery}")),
        ("/v1/messages/{id}", format!("/v1/messages/{id}")),
        ("{connection}", "hook".to_owned()),
        ("{script}", "gate".to_owned()),
        ("{rule}", rule),
        ("{provider}", "webhook".to_owned()),
    ];
    let paths = every_get(&gateway, &known).await;
    let mut seen = 0;
    for scope in ALL_SCOPES.split(',') {
        let key = gateway.key_with(scope);
        for path in &paths {
            let answer = gateway.call_as(&key, Method::GET, path, None).await;
            assert!(answer.status != 500, "{path}: {}", answer.body);
            let shows = answer.body.to_string().contains(CANARY);
            // The content that was sent has a scope of its own.
            let may = scope == "messages:read" || (scope == "content:read" && path.ends_with("/content"));
            assert!(!shows || may, "{path} shows a key with {scope} alone: {}", answer.body);
            seen += usize::from(shows);
        }
    }
    assert!(seen >= 4, "what is hidden is there to be seen: {seen}");
}

#[tokio::test]
async fn a_backtest_needs_the_scope_that_reads_messages() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let id = gateway.send(&json!({"channel": "webhook", "content": {"text": CANARY}})).await;
    gateway.settled(&id).await;
    // A script may ask any question: its counts reveal the answer.
    let source = format!("fn admit(message) {{ if message.text.contains(\"{CANARY}\") {{ refuse(message.text) }} }}");
    let body = json!({"since": "2020-01-01T00:00:00Z", "script": {"name": "ask", "source": source}});
    let both = gateway.call(Method::POST, "/v1/rules/backtest", Some(&body)).await.expect(200);
    assert_eq!(both["refused"]["newly"], 1);
    let key = gateway.key_with("rules:read");
    let refused = gateway.call_as(&key, Method::POST, "/v1/rules/backtest", Some(&body)).await.problem(403);
    assert_eq!(refused.code, "missing_scope");
    assert!(refused.detail.contains("messages:read"), "{refused}");
}

#[tokio::test]
async fn who_changes_a_message_is_not_told_what_it_says() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let later = json!({"channel": "webhook", "to": sink.url(&format!("/{CANARY}")), "content": {"text": CANARY},
        "metadata": {"note": CANARY}, "send_at": "2099-01-01T00:00:00Z"});
    let (one, other) = (gateway.send(&later).await, gateway.send(&later).await);
    let writes = gateway.key_with("messages:write");
    let cancel = |id: &str| format!("/v1/messages/{id}/cancel");
    let told = gateway.call_as(&writes, Method::POST, &cancel(&one), None).await.expect(200);
    assert_eq!((&told["state"], &told["to"]), (&json!("canceled"), &Value::Null));
    assert!(!told.to_string().contains(CANARY), "{told}");
    let told = gateway.call(Method::POST, &cancel(&other), None).await.expect(200);
    assert_eq!(told["metadata"]["note"], CANARY, "a key that reads messages is told");
    for path in ["", "/replay"] {
        let answer = gateway.call_as(&writes, Method::POST, &format!("/v1/messages/{one}{path}"), None).await;
        assert!(!answer.body.to_string().contains(CANARY), "{}", answer.body);
    }
    let told =
        gateway.call_as(&writes, Method::DELETE, &format!("/v1/messages/{other}/content"), None).await.expect(200);
    assert!(!told.to_string().contains(CANARY), "{told}");
    for (path, extra) in [("replays", json!({})), ("discards", json!({"reason": "gone"}))] {
        let mut body = extra;
        body["filter"] = json!({"recipient": CANARY});
        let path = format!("/v1/dead-letters/{path}");
        let answer = gateway.call_as(&writes, Method::POST, &path, Some(&body)).await;
        assert_eq!((answer.status.as_u16(), &answer.body["code"]), (403, &json!("missing_scope")), "{path}");
    }
}

/// Holds of no message, and takes about as long as an expression may.
const SLOW: &str = "message.attributes.list.some(|a| attributes.list.some(|b| a + b < 0))";

/// Waits for the list that it is going through, in vain.
const WAITS: &str = "attributes.list.some(|a| attributes.list.some(|b| a + b < 0))";

fn slow_message() -> Value {
    let list: Vec<u32> = (0..200).collect();
    json!({"channel": "webhook", "content": {"payload": {}}, "attributes": {"list": list}})
}

async fn slow_rules(gateway: &TestGateway, count: usize) {
    for number in 0..count {
        let rule = json!({"name": format!("slow {number}"), "when": {"custom": {"expression": SLOW}},
            "then": {"priority": "high"}});
        gateway.post("/v1/rules", &json!({"rule": rule})).await.expect(201);
    }
}

async fn ruling(gateway: &TestGateway, message: &str) -> Value {
    gateway.get(&format!("/v1/messages/{message}/decision")).await["ruling"].clone()
}

#[tokio::test]
async fn slow_rules_end_at_the_messages_time_and_hold_nobody_up() {
    let (gateway, sink) = (TestGateway::with(1, "[rules]\ntenant_time_ms = 50\n").await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    slow_rules(&gateway, 60).await;
    let alone = gateway.send(&slow_message()).await;
    let told = ruling(&gateway, &alone).await;
    assert_eq!(told["ended"]["reason"], "message_time", "{told}");
    assert!(told["ended"]["at"].as_str().unwrap().starts_with("rule_"), "{told}");
    let decision = gateway.get(&format!("/v1/messages/{alone}/decision")).await;
    let whys: Vec<_> = decision["rules"].as_array().unwrap().iter().map(|it| it["why"].as_str().unwrap()).collect();
    assert!(whys.iter().any(|why| why.contains("it was not asked")), "{whys:?}");
    eventually("an event of it", || async {
        let events = gateway.get(&format!("/v1/messages/{alone}/events")).await;
        events.to_string().contains("rules.unasked").then_some(())
    })
    .await;

    // Another tenant is served while this one's batches are.
    let other = gateway.key_of("two", ALL_SCOPES);
    let hook = json!({"uid": "hook", "provider": "webhook", "config": {"url": sink.url("/two")}});
    gateway.call_as(&other, Method::POST, "/v1/connections", Some(&hook)).await.expect(201);
    let route = json!({"channel": "webhook", "spec": {"candidates": [{"connection": "hook"}]}});
    let route = gateway.call_as(&other, Method::POST, "/v1/routes", Some(&route)).await.expect(201);
    let activate = format!("/v1/routes/{}/activate", route["id"].as_str().unwrap());
    gateway.call_as(&other, Method::POST, &activate, Some(&json!({"version": 1}))).await.expect(200);
    let batch = json!({"messages": vec![slow_message(); 100]});
    let mut batches =
        Box::pin(futures_util::future::join_all((0..8).map(|_| gateway.post("/v1/messages/batch", &batch))));
    let meanwhile = async {
        for _ in 0..20 {
            gateway.call_as(&other, Method::GET, "/livez", None).await.expect(200);
            let message = json!({"channel": "webhook", "content": {"payload": {}}});
            gateway.call_as(&other, Method::POST, "/v1/messages", Some(&message)).await.expect(202);
        }
    };
    tokio::select! {
        biased;
        _ = &mut batches => panic!("the batches hold the other tenant up"),
        () = meanwhile => {}
    }
    let mut reasons = std::collections::BTreeSet::new();
    for answer in batches.await {
        for result in answer.expect(200)["data"].as_array().unwrap() {
            assert_eq!(result["status"], 202, "{result}");
        }
    }
    for message in gateway.list("/v1/messages?limit=250").await.iter().step_by(10) {
        let told = ruling(&gateway, message["id"].as_str().unwrap()).await;
        reasons.insert(told["ended"]["reason"].as_str().unwrap_or("none").to_owned());
    }
    assert!(reasons.contains("tenant_time"), "beyond the tenant's time messages go unasked, and say so: {reasons:?}");
}

#[tokio::test]
async fn no_time_is_no_way_round_a_script_that_refuses() {
    let (gateway, sink) = (TestGateway::with(1, "[rules]\ntenant_time_ms = 20\n").await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    slow_rules(&gateway, 40).await;
    activated(&gateway, "gate", "const FAILS = \"refuse\"; fn admit(message) { refuse(\"not \" + message.to) }").await;
    let batch = json!({"messages": vec![slow_message(); 60]});
    let answers = futures_util::future::join_all((0..4).map(|_| gateway.post("/v1/messages/batch", &batch))).await;
    let results: Vec<_> =
        answers.into_iter().flat_map(|it| it.expect(200)["data"].as_array().unwrap().clone()).collect();
    let mut codes = std::collections::BTreeSet::new();
    for result in &results {
        codes.insert(result["error"]["code"].as_str().unwrap_or("accepted").to_owned());
    }
    assert!(!codes.contains("accepted"), "{codes:?}");
    assert!(codes.contains("script_failed") && codes.contains("rules_busy"), "{codes:?}");
    let page = gateway.get("/v1/messages").await;
    assert_eq!(page["data"], json!([]), "nothing was stored");
}

#[tokio::test]
async fn a_rule_that_would_wait_for_itself_is_refused() {
    let gateway = TestGateway::start().await;
    let rule = json!({"name": "waits", "fails": "refuse", "when": {"custom": {"expression": WAITS}},
        "then": {"refuse": {"reason": "x"}}});
    let problem = gateway.post("/v1/rules", &json!({"rule": rule})).await.problem(422);
    assert_eq!(problem.errors[0].code, "does_not_compile", "{problem}");
}

#[tokio::test]
async fn an_operators_script_that_fails_lets_nothing_through() {
    let folder = tempfile::tempdir().unwrap();
    let source = "fn admit(message) { if message.attributes.dear { refuse(\"too dear\") } }";
    fs::write(folder.path().join("gate.rhai"), source).unwrap();
    let config = format!("[rules]\nfolder = '{}'\n", folder.path().display());
    let (gateway, sink) = (TestGateway::with(1, &config).await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let message = |dear: Value| json!({"channel": "webhook", "content": {"payload": {}}, "attributes": {"dear": dear}});
    eventually("the script in service", || async {
        (gateway.post("/v1/messages", &message(json!(true))).await.status == 422).then_some(())
    })
    .await;
    // Messages that make the script fail, more often than it may.
    for _ in 0..25 {
        let refused = gateway.post("/v1/messages", &message(json!("perhaps"))).await.problem(422);
        assert_eq!(refused.code, "script_failed", "{refused}");
    }
    let refused = gateway.post("/v1/messages", &message(json!(true))).await.problem(422);
    assert_eq!(refused.code, "refused_by_rule", "it is still asked: {refused}");
    gateway.send(&message(json!(false))).await;
    let script = gateway.get("/v1/scripts/gate").await;
    assert_eq!((&script["off_since"], &script["fails"]), (&Value::Null, &json!("refuse")));
    eventually("an event of it", || async {
        let page = gateway.get("/v1/events?type=script.keeps_failing").await;
        (!page["data"].as_array()?.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_waits_for_a_script_that_fails_and_is_asked_about_again() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let gate = |body: &str| format!("const FAILS = \"hold\"; fn admit(message) {{ {body} }}");
    activated(&gateway, "gate", &gate("throw \"no\"")).await;
    let message = |reference: &str| json!({"channel": "webhook", "content": {"payload": {}}, "reference": reference});
    let (good, bad) = (gateway.send(&message("good")).await, gateway.send(&message("bad")).await);
    for id in [&good, &bad] {
        assert_eq!(gateway.message(id).await.state, "scheduled");
        let told = ruling(&gateway, id).await;
        assert_eq!(told["on_hold"]["by"], "gate", "{told}");
    }
    let due = "update queue set due_at = now()";
    gateway.db.sql(due).await;
    // It is asked, and waits on.
    eventually("another minute", || async {
        let later = gateway.db.sql("select count(*) from queue where due_at > now() + interval '30 s'").await;
        (later.trim() == "2").then_some(())
    })
    .await;
    assert!(sink.received().is_empty());
    activated(&gateway, "gate", &gate("if message.reference == \"bad\" { refuse(\"not ours\") }")).await;
    gateway.db.sql(due).await;
    assert_eq!(gateway.settled(&good).await.state, "sent");
    let ended = gateway.settled(&bad).await;
    assert_eq!((ended.state.as_str(), ended.delivery.code.as_deref()), ("failed", Some("refused_by_rule")), "{ended}");
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn a_rule_that_refuses_by_an_expression_may_let_nothing_through_where_that_fails() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let rule = |fails: &str| {
        json!({"name": "dear", "fails": fails, "when": {"custom": {"expression": "attributes.dear"}},
            "then": {"refuse": {"reason": "too dear"}}})
    };
    let open = json!({"name": "x", "fails": "refuse", "then": {"priority": "high"}});
    let refused = gateway.post("/v1/rules", &json!({"rule": open})).await.problem(422);
    assert_eq!(refused.errors[0].pointer, "/rule/fails");
    let made = gateway.post("/v1/rules", &json!({"rule": rule("refuse")})).await.expect(201);
    assert_eq!(made["rule"]["fails"], "refuse", "{made}");
    let message = |dear: Value| json!({"channel": "webhook", "content": {"payload": {}}, "attributes": {"dear": dear}});
    for _ in 0..25 {
        let refused = gateway.post("/v1/messages", &message(json!("perhaps"))).await.problem(422);
        assert_eq!(refused.code, "script_failed", "{refused}");
    }
    let refused = gateway.post("/v1/messages", &message(json!(true))).await.problem(422);
    assert_eq!(refused.code, "refused_by_rule");
    gateway.send(&message(json!(false))).await;
    // Without a word of it a message is taken, and after twenty failures the rule is switched off.
    let path = format!("/v1/rules/{}", made["id"].as_str().unwrap());
    gateway.call(Method::PATCH, &path, Some(&json!({"rule": {"fails": "open"}}))).await.expect(200);
    for _ in 0..20 {
        gateway.send(&message(json!("perhaps"))).await;
    }
    gateway.logged(0, "fails too often").await;
    let taken = gateway.send(&message(json!(true))).await;
    let told = ruling(&gateway, &taken).await;
    assert!(told["decision"]["faults"][0]["reason"].as_str().unwrap().contains("switched off"), "{told}");
}
