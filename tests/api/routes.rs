//! `/v1/routes`

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::{Answer, TestGateway},
    sink::{Reply, Sink},
};

async fn with_hooks() -> TestGateway {
    let gateway = TestGateway::start().await;
    for uid in ["one", "two"] {
        gateway.connection(uid, "webhook", json!({"url": "https://example.com"}), json!({})).await;
    }
    gateway
}

fn over(connections: &[&str]) -> Value {
    let candidates: Vec<_> = connections.iter().map(|uid| json!({"connection": uid})).collect();
    json!({"candidates": candidates})
}

/// `pointer:code` of each bad field, in order.
#[track_caller]
fn named(answer: Answer) -> Vec<String> {
    let problem = answer.expect(422);
    let errors = problem["errors"].as_array().unwrap().iter();
    let mut found: Vec<_> =
        errors.map(|it| format!("{}:{}", it["pointer"].as_str().unwrap(), it["code"].as_str().unwrap())).collect();
    found.sort();
    found
}

#[tokio::test]
async fn a_version_does_nothing_until_activated_and_can_be_rolled_back() {
    let gateway = with_hooks().await;
    let body = json!({"uid": "hooks", "channel": "webhook", "spec": over(&["one"])});
    let made = gateway.post("/v1/routes", &body).await.expect(201);
    assert_eq!((&made["active_version"], &made["latest_version"]), (&Value::Null, &json!(1)));
    gateway.post("/v1/routes/hooks/versions", &json!({"spec": over(&["two", "one"])})).await.expect(201);
    for (version, previous) in [(1, Value::Null), (2, json!(1))] {
        let active = gateway.post("/v1/routes/hooks/activate", &json!({"version": version})).await.expect(200);
        assert_eq!((&active["active_version"], &active["previous_version"]), (&json!(version), &previous));
    }
    let back = gateway.post("/v1/routes/hooks/rollback", &json!({})).await.expect(200);
    assert_eq!((&back["active_version"], &back["previous_version"]), (&json!(1), &json!(2)));
    gateway.post("/v1/routes/hooks/activate", &json!({"version": 9})).await.expect(422);
}

#[tokio::test]
async fn one_route_a_channel_is_active() {
    let gateway = with_hooks().await;
    let first = gateway.route("webhook", over(&["one"])).await;
    let second = gateway.route("webhook", over(&["two"])).await;
    assert_eq!(gateway.get(&format!("/v1/routes/{first}")).await["active_version"], Value::Null);
    assert_eq!(gateway.get(&format!("/v1/routes/{second}")).await["active_version"], 1);
}

/// Routes that share connections wait for each other, whatever is activated at once; none meets a deadlock.
#[tokio::test]
async fn activations_of_a_channel_at_once_all_succeed_and_leave_one_route_active() {
    const ROUTES: [&str; 3] = ["a", "b", "c"];
    let gateway = with_hooks().await;
    for (uid, connections) in ROUTES.iter().zip([["one", "two"], ["two", "one"], ["one", "two"]]) {
        let route = json!({"uid": uid, "channel": "webhook", "spec": over(&connections)});
        gateway.post("/v1/routes", &route).await.expect(201);
        gateway.post(&format!("/v1/routes/{uid}/versions"), &json!({"spec": over(&["one"])})).await.expect(201);
    }
    for _ in 0..10 {
        let both = ROUTES.iter().flat_map(|uid| [(uid, 1), (uid, 2)]);
        let activated = join_all(both.map(|(uid, version)| {
            let gateway = &gateway;
            async move {
                gateway.post(&format!("/v1/routes/{uid}/activate"), &json!({"version": version})).await.expect(200);
            }
        }));
        activated.await;
        let routes = gateway.get("/v1/routes?channel=webhook").await;
        let active = routes["data"].as_array().unwrap().iter().filter(|it| !it["active_version"].is_null());
        assert_eq!(active.count(), 1, "{routes}");
    }
}

#[tokio::test]
async fn every_bad_part_of_a_specification_is_named() {
    let gateway = with_hooks().await;
    let spec = json!({"candidates": [{"connection": "one"}, {"connection": "one"}, {"connection": "nobody"}],
        "retry": {"type": "exponential", "initial_ms": 0, "max_ms": 0, "max_attempts": 0}});
    let answer = gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await;
    assert_eq!(
        named(answer),
        [
            "/spec/candidates/1/connection:repeated",
            "/spec/candidates/2/connection:unknown_connection",
            "/spec/retry/initial_ms:out_of_range",
            "/spec/retry/max_attempts:out_of_range",
            "/spec/retry/max_ms:out_of_range",
        ]
    );
    let problem = gateway.post("/v1/routes", &json!({"channel": "email", "spec": over(&["one"])})).await.problem(422);
    assert_eq!(problem.errors[0].code, "wrong_channel");
}

#[tokio::test]
async fn a_specification_that_cannot_be_read_is_checked_as_far_as_it_goes() {
    let gateway = with_hooks().await;
    let body = json!({"uid": "conn_x", "chanel": "webhook", "spec": {"fallback": "yes",
        "candidates": [{"connection": 1}, {"connection": "one"}, {"connection": "nobody"}],
        "retry": {"type": "exponential", "initial_ms": 10, "max_ms": 5, "max_attempts": "many"}}});
    assert_eq!(
        named(gateway.post("/v1/routes", &body).await),
        [
            "/chanel:unknown_field",
            "/channel:missing",
            "/spec/candidates/0/connection:wrong_type",
            "/spec/candidates/2/connection:unknown_connection",
            "/spec/fallback:wrong_type",
            "/spec/retry/max_attempts:wrong_type",
            "/uid:reserved",
        ]
    );
    let spec = json!({"candidates": [{"connection": "nobody"}], "retry": {"type": "sometimes"}});
    assert_eq!(
        named(gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await),
        ["/spec/candidates/0/connection:unknown_connection", "/spec/retry/type:not_a_choice"]
    );
    assert_eq!(named(gateway.post("/v1/routes", &json!({})).await), ["/channel:missing", "/spec:missing"]);
}

#[tokio::test]
async fn a_version_whose_connection_is_gone_cannot_be_activated() {
    let gateway = with_hooks().await;
    let body = json!({"uid": "hooks", "channel": "webhook", "spec": over(&["one"])});
    gateway.post("/v1/routes", &body).await.expect(201);
    gateway.call(Method::DELETE, "/v1/connections/one", None).await.expect(204);
    let refused = gateway.post("/v1/routes/hooks/activate", &json!({"version": 1})).await.problem(409);
    assert_eq!(refused.code, "connection_gone");
    assert_eq!(gateway.post("/v1/routes/hooks/rollback", &json!({})).await.problem(409).code, "no_previous_version");
}

#[tokio::test]
async fn a_strategy_with_its_numbers_comes_back_as_it_was_given() {
    let gateway = with_hooks().await;
    let money = |micros: i64| json!({"micros": micros, "currency": "EUR"});
    let spec = json!({
        "candidates": [{"connection": "one", "weight": 3, "cost": money(7900), "max_cost": money(9000)},
            {"connection": "two", "weight": 0}],
        "strategy": {"type": "least_cost"}, "max_cost": money(50_000), "min_success_rate": 0.9});
    let made = gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await.expect(201);
    let stored = &made["versions"][0]["spec"];
    for member in ["strategy", "max_cost", "min_success_rate"] {
        assert_eq!(stored[member], spec[member]);
    }
    for member in ["weight", "cost", "max_cost"] {
        assert_eq!(stored["candidates"][0][member], spec["candidates"][0][member]);
    }
    assert_eq!(stored["candidates"][1]["weight"], 0);
}

#[tokio::test]
async fn every_bad_number_of_a_strategy_is_named() {
    let gateway = with_hooks().await;
    let money = |micros: i64, currency: &str| json!({"micros": micros, "currency": currency});
    let spec = json!({
        "candidates": [{"connection": "nobody"}, {"connection": "one", "weight": 101, "cost": money(-1, "USD")},
            {"connection": "two", "max_cost": money(1, "EUR")}],
        "max_cost": money(1, "USD"), "min_success_rate": 1.5});
    let problem = gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await.expect(422);
    let mut found: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| format!("{}:{}", it["pointer"].as_str().unwrap(), it["code"].as_str().unwrap()))
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "/spec/candidates/0/connection:unknown_connection",
            "/spec/candidates/1/cost/micros:out_of_range",
            "/spec/candidates/1/weight:out_of_range",
            "/spec/candidates/2/max_cost/currency:mixed_currencies",
            "/spec/min_success_rate:out_of_range",
        ]
    );
    let unknown = json!({"candidates": [{"connection": "one"}], "strategy": {"type": "luck"}});
    gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": unknown})).await.expect(422);
    let further = json!({"candidates": [{"connection": "one"}], "strategy": {"type": "round_robin", "weight": 1}});
    gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": further})).await.expect(422);
}

#[tokio::test]
async fn limits_and_overrides_come_back_as_they_were_given() {
    let gateway = with_hooks().await;
    let mut spec = over(&["one"]);
    spec["retry"] = json!({"type": "linear", "delay_ms": 5, "max_attempts": 3, "max_elapsed_ms": 60_000,
        "budget": {"share": 0.5}});
    spec["overrides"] = json!({"21610": "permanent", "webhook": {"503": "throttled"}});
    let made = gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await.expect(201);
    let shown = &made["versions"][0]["spec"];
    assert_eq!(shown["overrides"], spec["overrides"]);
    assert_eq!(shown["retry"]["max_elapsed_ms"], 60_000);
    assert_eq!(shown["retry"]["budget"], json!({"share": 0.5, "min_per_second": 10.0}));
}

#[tokio::test]
async fn limits_and_overrides_that_cannot_be_are_named() {
    let gateway = with_hooks().await;
    let mut spec = over(&["one"]);
    spec["retry"] = json!({"type": "schedule", "delays_ms": [1], "max_elapsed_ms": 0,
        "budget": {"share": -1, "min_per_second": 0}});
    spec["overrides"] = json!({"": "permanent", "nobody": {"503": "throttled"}});
    assert_eq!(
        named(gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await),
        [
            "/spec/overrides/:wrong_format",
            "/spec/overrides/nobody:unknown_provider",
            "/spec/retry/budget/min_per_second:out_of_range",
            "/spec/retry/budget/share:out_of_range",
            "/spec/retry/max_elapsed_ms:out_of_range",
        ]
    );
    spec["retry"] = json!({"type": "none"});
    spec["overrides"] = json!({"200": "accepted", "webhook": {"503": "accepted"}, "7": 7});
    assert_eq!(
        named(gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await),
        [
            "/spec/overrides/200:not_a_choice",
            "/spec/overrides/7:wrong_type",
            "/spec/overrides/webhook/503:not_a_choice"
        ]
    );
}

#[tokio::test]
async fn a_rule_that_nobody_wrote_decides_nothing() {
    let gateway = with_hooks().await;
    let mut spec = over(&["one"]);
    spec["retry"] = json!({"type": "custom", "rule": "by_customer",
        "otherwise": {"type": "linear", "delay_ms": 5, "max_attempts": 0, "max_elapsed_ms": 0}});
    assert_eq!(
        named(gateway.post("/v1/routes", &json!({"channel": "webhook", "spec": spec})).await),
        [
            "/spec/retry/otherwise/max_attempts:out_of_range",
            "/spec/retry/otherwise/max_elapsed_ms:out_of_range",
            "/spec/retry/rule:unknown_rule",
        ]
    );
}

#[tokio::test]
async fn the_only_active_route_of_a_channel_is_deleted_only_by_force() {
    let gateway = with_hooks().await;
    let first = gateway.route("webhook", over(&["one"])).await;
    let second = gateway.route("webhook", over(&["two"])).await;
    let listed = async |query: &str| {
        let page = gateway.get(&format!("/v1/routes{query}")).await;
        page["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed("?channel=webhook").await, [second.clone(), first.clone()]);
    assert_eq!(listed("?channel=email").await, Vec::<String>::new());
    gateway.call(Method::GET, "/v1/routes?channel=No", None).await.expect(400);
    // The other one has taken the channel, so that nothing holds the first.
    gateway.call(Method::DELETE, &format!("/v1/routes/{first}"), None).await.expect(204);
    gateway.call(Method::GET, &format!("/v1/routes/{first}"), None).await.expect(404);
    let path = format!("/v1/routes/{second}");
    assert_eq!(gateway.call(Method::DELETE, &path, None).await.problem(409).code, "route_active");
    gateway.call(Method::DELETE, &format!("{path}?force=1"), None).await.expect(400);
    assert_eq!(gateway.get(&path).await["active_version"], 1);
    let access = [gateway.url(""), gateway.key.clone()];
    let arguments = ["route", "delete", &second, "--force", "--url", &access[0], "--key", &access[1]];
    gateway.settings().command_line(&arguments).unwrap();
    gateway.call(Method::DELETE, &path, None).await.expect(404);
    assert_eq!(listed("").await, Vec::<String>::new());
    let message = json!({"channel": "webhook", "content": {"payload": 1}});
    let refused = gateway.post("/v1/messages", &message).await.problem(422);
    assert_eq!(refused.errors[0].code, "no_route");
    let entry = gateway.get("/v1/audit").await["data"][0].clone();
    assert_eq!((&entry["action"], &entry["subject"]), (&json!("route.deleted"), &json!(second)));
    assert_eq!(entry["before"]["version"], 1);
}

#[tokio::test]
async fn a_delivery_that_waits_when_its_route_goes_ends_as_unroutable_and_its_attempts_keep_it() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    gateway.without_breaker("hook").await;
    let mut spec = over(&["hook"]);
    spec["retry"] = json!({"type": "linear", "delay_ms": 200, "max_attempts": 100});
    let route = gateway.route("webhook", spec).await;
    sink.answers("/in", [Reply::status(503)]);
    let id = gateway.send(&json!({"channel": "webhook", "content": {"payload": 1}})).await;
    eventually("an attempt", || async { (!gateway.attempts(&id).await.is_empty()).then_some(()) }).await;
    gateway.call(Method::DELETE, &format!("/v1/routes/{route}?force=true"), None).await.expect(204);
    assert_eq!(gateway.settled(&id).await.state, "unroutable");
    let attempts = gateway.get(&format!("/v1/messages/{id}/attempts")).await;
    assert_eq!((&attempts["data"][0]["route"], &attempts["data"][0]["route_version"]), (&json!(route), &json!(1)));
    // Another route of the channel serves it again.
    sink.answers("/in", [Reply::status(200)]);
    gateway.route("webhook", over(&["hook"])).await;
    gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
    assert_eq!(gateway.settled(&id).await.state, "sent");
}

#[tokio::test]
async fn versions_are_listed_compared_and_activated_in_place_of_an_expected_one() {
    let gateway = with_hooks().await;
    let body = json!({"uid": "hooks", "channel": "webhook", "spec": over(&["one"])});
    gateway.post("/v1/routes", &body).await.expect(201);
    let refused = gateway.call(Method::GET, "/v1/routes/hooks/versions/1/compare", None).await.problem(409);
    assert_eq!(refused.code, "no_active_version");
    let mut spec = over(&["one", "two"]);
    spec["fallback"] = json!(false);
    gateway.post("/v1/routes/hooks/versions", &json!({"spec": spec})).await.expect(201);
    gateway.post("/v1/routes/hooks/activate", &json!({"version": 1})).await.expect(200);
    let two = gateway.get("/v1/connections/two").await["id"].clone();
    let compared = gateway.get("/v1/routes/hooks/versions/2/compare").await;
    assert_eq!((&compared["version"], &compared["against"]), (&json!(2), &json!(1)));
    let differences = compared["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 2, "{compared}");
    assert_eq!((&differences[0]["pointer"], &differences[0]["after"]["connection"]), (&json!("/candidates/1"), &two));
    assert_eq!(differences[1], json!({"pointer": "/fallback", "before": true, "after": false}));
    let alike = gateway.get("/v1/routes/hooks/versions/2/compare?against=2").await;
    assert_eq!(alike["differences"], json!([]));
    gateway.call(Method::GET, "/v1/routes/hooks/versions/9/compare", None).await.expect(404);
    let passed = gateway.post("/v1/routes/hooks/activate", &json!({"version": 2, "replaces": 2})).await.problem(409);
    assert_eq!(passed.code, "version_passed");
    gateway.post("/v1/routes/hooks/activate", &json!({"version": 2, "replaces": 1})).await.expect(200);
    let versions = gateway.get("/v1/routes/hooks/versions").await;
    let numbers: Vec<_> = versions["data"].as_array().unwrap().iter().map(|it| it["version"].clone()).collect();
    assert_eq!(numbers, [json!(2), json!(1)]);
    assert!(versions["data"][0]["activated_at"].is_string());
    let audit = gateway.get("/v1/audit?action=route.activated").await;
    let (before, after) = (&audit["data"][0]["before"], &audit["data"][0]["after"]);
    assert_eq!((&before["version"], &after["version"]), (&json!(1), &json!(2)));
    assert_eq!(after["spec"]["fallback"], false);
}
