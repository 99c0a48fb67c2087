//! Retries: overrides of a provider's codes by tenant and route, their longest time, the provider's `Retry-After`, and
//! the number of retries to a failing provider.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::eventually,
    gateway::TestGateway,
    messages::hook,
    sink::{Reply, Sink},
};

fn quickly(attempts: u32) -> Value {
    json!({"type": "linear", "delay_ms": 20, "max_attempts": attempts})
}

/// A gateway with a connection to `/in` of a sink, and a route of this specification over it.
async fn routed(mut spec: Value) -> (TestGateway, Sink) {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    spec["candidates"] = json!([{"connection": "hook"}]);
    gateway.route("webhook", spec).await;
    (gateway, sink)
}

async fn set_overrides(gateway: &TestGateway, overrides: Value) {
    gateway.call(Method::PUT, "/v1/settings", Some(&json!({"overrides": overrides}))).await.expect(200);
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("no time: {value}")).parse().unwrap()
}

#[tokio::test]
async fn a_tenant_says_what_a_code_means_and_the_attempt_shows_it() {
    let (gateway, sink) = routed(json!({"retry": quickly(3)})).await;
    sink.answers("/in", [Reply::status(503)]);
    let before = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&before).await.state, "failed");
    assert_eq!(gateway.attempt_list(&before).await.len(), 3, "the provider calls it transient");
    assert_eq!(gateway.attempt_list(&before).await[0]["overridden"], Value::Null);

    set_overrides(&gateway, json!({"503": "permanent"})).await;
    let after = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&after).await.state, "failed");
    let attempts = gateway.attempt_list(&after).await;
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].disposition, "rejected_permanent");
    assert_eq!(attempts[0]["overridden"], json!({"disposition": "rejected_transient", "by": "tenant"}));
    assert_eq!(
        (attempts[0].code.as_deref(), attempts[0].unified_code.as_deref()),
        (Some("503"), Some("provider_error"))
    );

    set_overrides(&gateway, json!({})).await;
    let again = gateway.send(&hook()).await;
    gateway.settled(&again).await;
    assert_eq!(gateway.attempt_list(&again).await.len(), 3, "it is as it was");
}

#[tokio::test]
async fn what_a_tenant_says_of_a_code_holds_on_every_node() {
    let (gateway, sink) = (TestGateway::with(2, "").await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    gateway.without_breaker("hook").await;
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": quickly(2)})).await;
    sink.answers("/in", [Reply::status(503)]);
    let tries = async || {
        let id = gateway.send_to(1, &hook()).await;
        gateway.settled(&id).await;
        gateway.attempt_list(&id).await.len()
    };
    assert_eq!(tries().await, 2, "the other node knows the tenant as it was");
    set_overrides(&gateway, json!({"503": "permanent"})).await;
    eventually("the change on the other node", async || (tries().await == 1).then_some(())).await;
}

#[tokio::test]
async fn a_route_goes_before_the_tenant_and_a_named_provider_before_all_others() {
    let overrides = json!({"503": "permanent", "webhook": {"503": "throttled"}});
    let (gateway, sink) =
        routed(json!({"retry": {"type": "schedule", "delays_ms": [20]}, "overrides": overrides})).await;
    set_overrides(&gateway, json!({"webhook": {"503": "auth_failed", "410": "transient"}, "404": "transient"})).await;
    let replies = [503, 503, 503, 410, 200].map(Reply::status);
    sink.answers("/in", replies);
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "sent", "throttling consumes none of the two attempts");
    let attempts = gateway.attempt_list(&id).await;
    let shown: Vec<_> = attempts.iter().map(|it| (it["disposition"].clone(), it["overridden"]["by"].clone())).collect();
    assert_eq!(
        shown,
        [
            (json!("throttled"), json!("route")),
            (json!("throttled"), json!("route")),
            (json!("throttled"), json!("route")),
            (json!("rejected_transient"), json!("tenant")),
            (json!("accepted"), Value::Null),
        ]
    );
}

#[tokio::test]
async fn what_was_accepted_or_may_have_been_is_never_called_refused() {
    let overrides = json!({"200": "permanent", "timeout": "permanent"});
    let brief = "[dispatch]\ndeadline_ms = 300\n[queue]\nlease_ms = 3000\n";
    let (gateway, sink) = (TestGateway::with(1, brief).await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    let spec = json!({"candidates": [{"connection": "hook"}], "overrides": overrides, "on_unknown": "hold"});
    gateway.route("webhook", spec).await;
    let taken = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&taken).await.state, "sent");
    sink.answers("/in", [Reply::status(200).after(Duration::from_secs(60))]);
    let silent = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&silent).await.state, "unknown");
    assert_eq!(gateway.attempt_list(&silent).await[0].code.as_deref(), Some("timeout"));
}

#[tokio::test]
async fn a_retry_that_would_begin_after_the_time_is_not_made_and_the_delivery_says_why() {
    let mut retry = quickly(100);
    retry["max_elapsed_ms"] = json!(300);
    let (gateway, sink) = routed(json!({"retry": retry})).await;
    sink.answers("/in", [Reply::status(503)]);
    let id = gateway.send(&hook()).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "failed");
    let detail = view.delivery.detail();
    assert!(detail.contains("`max_elapsed_ms` (300)"), "{detail}");
    assert_eq!(view.delivery.code.as_deref(), Some("503"), "and what the provider said last");
    let attempts = gateway.attempt_list(&id).await;
    assert!(attempts.len() > 1 && attempts.len() < 100, "{}", attempts.len());

    // A retry by hand starts over.
    sink.answers("/in", [Reply::status(503), Reply::status(200)]);
    gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
    assert_eq!(gateway.settled(&id).await.state, "sent");
    assert_eq!(gateway.attempt_list(&id).await.len(), attempts.len() + 2);
}

#[tokio::test]
async fn a_retry_after_is_waited_for_in_seconds_or_until_a_date() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let two_hours = SignedDuration::from_hours(2);
    let date = (angarium::clock::now() + two_hours).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let cases = [("7200", 503), ("7200", 429), (date.as_str(), 503), (date.as_str(), 429)];
    for (number, (value, status)) in cases.into_iter().enumerate() {
        // One each: a 429 holds all of a connection's deliveries back.
        let (uid, path) = (format!("hook-{number}"), format!("/{number}"));
        gateway.connection(&uid, "webhook", json!({"url": sink.url(&path)}), json!({})).await;
        sink.answers(&path, [Reply::status(status).header("retry-after", value)]);
        let pinned = json!({"channel": "webhook", "connection": uid, "content": {"payload": {}}});
        let id = gateway.send(&pinned).await;
        let attempt =
            eventually("the first attempt", || async { gateway.attempt_list(&id).await.first().cloned() }).await;
        let view = gateway.message(&id).await;
        assert_eq!(view["state"], "queued");
        let wait = time(&view["delivery"]["next_attempt_at"]).duration_since(time(&attempt["finished_at"]));
        // A date has whole seconds, and the attempt began a moment after it was made.
        let off = (wait - two_hours).abs();
        assert!(off < SignedDuration::from_secs(20), "{value} with {status}: {wait:#}");
        gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(200);
    }
}

#[tokio::test]
async fn a_retry_after_beyond_the_time_limit_ends_it_at_once() {
    let mut retry = quickly(5);
    retry["max_elapsed_ms"] = json!(60_000);
    let (gateway, sink) = routed(json!({"retry": retry})).await;
    sink.answers("/in", [Reply::status(503).header("retry-after", "120")]);
    let id = gateway.send(&hook()).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "failed");
    assert!(view.delivery.detail().contains("max_elapsed_ms"), "{view}");
}

/// How many retries were put off so far.
async fn postponed(gateway: &TestGateway) -> f64 {
    let text = gateway.call(Method::GET, "/metrics", None).await.body;
    let text = text.as_str().unwrap_or_default();
    let samples = text.lines().filter(|line| line.starts_with("angarium_retries_postponed_total{"));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn a_failing_provider_gets_no_more_retries_than_their_share_and_nothing_is_lost() {
    // Each postponed one has its place at three a second: all have theirs well within the wait for an end.
    const MESSAGES: usize = 80;
    let mut retry = quickly(100);
    retry["budget"] = json!({"share": 0.1, "min_per_second": 3});
    let (gateway, sink) = routed(json!({"retry": retry})).await;
    gateway.without_breaker("hook").await;
    sink.answers("/in", [Reply::status(503)]);
    let began = Instant::now();
    let mut ids = Vec::new();
    for _ in 0..MESSAGES {
        ids.push(gateway.send(&hook()).await);
    }
    eventually("most retries being put off", || async { (postponed(&gateway).await >= 50.0).then_some(()) }).await;
    let requests = sink.received_at("/in").len();
    // The share, the minimum of the time so far, and ten seconds of it that were saved up.
    let most = 0.1 * MESSAGES as f64 + 3.0 * (began.elapsed().as_secs_f64() + 10.0);
    let retries = requests.saturating_sub(MESSAGES);
    assert!(retries as f64 <= most, "{retries} retries of {MESSAGES} messages, at most {most} are allowed");
    assert!(retries > 10, "those that are allowed are made: {retries}");

    sink.answers("/in", [Reply::status(200)]);
    for id in &ids {
        assert_eq!(gateway.settled(id).await.state, "sent");
    }
    let mut attempts = 0;
    for id in &ids {
        let list = gateway.attempt_list(id).await;
        assert_eq!(list.last().unwrap().number as usize, list.len(), "the numbers have no gaps");
        attempts += list.len();
        assert_eq!(gateway.event_types(id).await.len(), list.len() + 1, "one an attempt, and the acceptance");
    }
    assert_eq!(attempts, sink.received_at("/in").len(), "a retry that is put off is no attempt");
    assert_eq!(gateway.db.sql("select count(*) from queue").await.trim(), "0");
    eventually("the last lease's end", || async {
        (gateway.db.sql("select count(*) from lease").await.trim() == "0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_retry_that_is_put_off_still_ends_in_time() {
    let mut retry = quickly(100);
    retry["max_elapsed_ms"] = json!(2_000);
    retry["budget"] = json!({"share": 0, "min_per_second": 0.1});
    let (gateway, sink) = routed(json!({"retry": retry})).await;
    sink.answers("/in", [Reply::status(503)]);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(gateway.send(&hook()).await);
    }
    for id in &ids {
        let view = gateway.settled(id).await;
        assert_eq!(view.state, "failed");
        let detail = view.delivery.detail();
        assert!(detail.contains("max_elapsed_ms"), "{detail}");
    }
    assert!(sink.received_at("/in").len() <= 4, "one retry in ten seconds");
}
