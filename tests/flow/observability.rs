//! What an operator sees: metrics and traces.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use angarium::telemetry::{Kind, METRICS};
use serde_json::{Value, json};

use crate::support::{
    collector::{Collector, Span},
    database::eventually,
    gateway::{Answer, TestGateway},
    sink::{Reply, Sink},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const SHORT: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\n";

fn hook() -> Value {
    json!({"channel": "webhook", "content": {"payload": {}}})
}

/// A gateway that exports its spans within a moment.
async fn traced(collector: &Collector, extra: &str) -> TestGateway {
    let telemetry = format!("{extra}[telemetry]\notlp_endpoint = \"{}\"\n", collector.url);
    TestGateway::with(1, &telemetry).await
}

async fn send_within(gateway: &TestGateway, headers: &[(&str, &str)]) -> (String, String) {
    let answer: Answer = gateway.post_with("/v1/messages", headers, &hook()).await;
    let parent = answer.headers.get("traceparent").map(|it| it.to_str().unwrap().to_owned()).unwrap_or_default();
    (answer.expect(202)["id"].as_str().unwrap().to_owned(), parent)
}

/// The trace once it has so many spans.
async fn spans(collector: &Collector, trace: &str, count: usize) -> Vec<Span> {
    eventually("the export of the spans", || async {
        let spans = collector.trace(trace);
        (spans.len() >= count).then_some(spans)
    })
    .await
}

#[track_caller]
fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert!(!found.is_empty(), "no span `{name}` in {spans:#?}");
    found
}

#[tokio::test]
async fn one_trace_leads_from_the_client_through_the_attempt_to_the_provider() {
    let (collector, sink) = (Collector::start().await, Sink::start().await);
    let gateway = traced(&collector, "").await;
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(503), Reply::status(200)]);
    let (id, answered) = send_within(&gateway, &[("traceparent", PARENT), ("tracestate", "shop=7")]).await;
    gateway.settled(&id).await;
    // Of two attempts: each has its wait, the plugin twice, and the transport.
    let spans = spans(&collector, TRACE, 12).await;
    assert_eq!(spans.len(), 12, "{spans:#?}");

    let request = named(&spans, "POST /v1/messages")[0];
    assert_eq!(request.parent, "00f067aa0ba902b7", "the client's span");
    assert_eq!(answered, format!("00-{TRACE}-{}-01", request.id));
    assert_eq!(request.attributes["http.response.status_code"], "202");
    assert_eq!(request.resource["service.name"], "angarium");
    assert_eq!(request.state, "shop=7");
    let accept = named(&spans, "accept")[0];
    assert_eq!((&accept.parent, &accept.attributes["message.id"]), (&request.id, &id));

    let attempts = named(&spans, "attempt");
    let what: Vec<_> = attempts.iter().map(|it| (it.attributes["disposition"].as_str(), it.failed)).collect();
    assert_eq!(what, [("rejected_transient", true), ("accepted", false)]);
    let delivery = id.replace("msg_", "dlv_");
    for (number, attempt) in (1..).zip(&attempts) {
        assert_eq!(attempt.parent, accept.id);
        assert_eq!(attempt.attributes["delivery.id"], delivery);
        assert_eq!(attempt.attributes["attempt.number"], number.to_string());
        assert!(attempt.attributes["tenant.id"].starts_with("ten_"));
        let inner: Vec<_> = spans.iter().filter(|it| it.parent == attempt.id).map(|it| it.name.as_str()).collect();
        assert_eq!(inner, ["plugin.prepare", "transport", "plugin.interpret"]);
    }
    let waits = named(&spans, "queue");
    assert_eq!(waits.len(), 2);
    assert!(waits.iter().zip(&attempts).all(|(wait, attempt)| wait.ended_ns <= attempt.began_ns));
    assert!(waits.iter().all(|it| it.parent == accept.id));

    let received = sink.received_at("/in");
    let transports = named(&spans, "transport");
    for (received, transport) in received.iter().zip(&transports) {
        assert_eq!(received.header("traceparent"), format!("00-{TRACE}-{}-01", transport.id));
        assert_eq!(received.header("tracestate"), "shop=7");
    }
    assert_eq!(received.len(), 2);
    let shown = gateway.get(&format!("/v1/messages/{id}")).await.to_string();
    assert!(!shown.contains(TRACE), "the trace is not the client's to see: {shown}");
}

#[tokio::test]
async fn a_broken_traceparent_counts_as_none_and_a_trace_begins_here() {
    let (collector, sink) = (Collector::start().await, Sink::start().await);
    let gateway = traced(&collector, "").await;
    gateway.webhook(&sink, "/in").await;
    let broken = PARENT.replace("4736-", "4736");
    let (id, answered) = send_within(&gateway, &[("traceparent", &broken), ("tracestate", "a=1")]).await;
    gateway.settled(&id).await;
    let trace = answered.split('-').nth(1).unwrap().to_owned();
    assert_ne!(trace, TRACE);
    let spans = spans(&collector, &trace, 7).await;
    assert_eq!(named(&spans, "POST /v1/messages")[0].parent, "", "the first of its trace");
    let received = sink.received_at("/in").remove(0);
    assert!(received.header("traceparent").contains(&trace));
    assert!(received.headers.get("tracestate").is_none(), "it belongs to the one that was refused");
}

#[tokio::test]
async fn a_trace_survives_the_queue_and_the_node_that_accepted() {
    let (collector, sink) = (Collector::start().await, Sink::start().await);
    let mut gateway = traced(&collector, SHORT).await;
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(200).after(Duration::from_secs(30)), Reply::status(200)]);
    let (id, _) = send_within(&gateway, &[("traceparent", PARENT)]).await;
    sink.arrived(1).await;
    let second = gateway.new_node().await;
    gateway.nodes.push(Some(second));
    gateway.kill(0);
    gateway.settled(&id).await;
    let spans = spans(&collector, TRACE, 5).await;
    let attempt = named(&spans, "attempt")[0];
    assert_eq!(
        (attempt.attributes["message.id"].as_str(), attempt.attributes["attempt.trigger"].as_str()),
        (&*id, "recovery")
    );
    for received in sink.received_at("/in") {
        assert!(received.header("traceparent").contains(TRACE));
    }
}

#[tokio::test]
async fn what_its_caller_does_not_record_is_handed_on_and_not_exported() {
    let (collector, sink) = (Collector::start().await, Sink::start().await);
    let gateway = traced(&collector, "").await;
    gateway.webhook(&sink, "/in").await;
    let unrecorded = PARENT.replace("-01", "-00");
    let (id, _) = send_within(&gateway, &[("traceparent", &unrecorded)]).await;
    gateway.settled(&id).await;
    assert_eq!(sink.received_at("/in")[0].header("traceparent"), unrecorded);
    // What came after it is exported, so that it would have been, too.
    let (_, later) = send_within(&gateway, &[]).await;
    spans(&collector, later.split('-').nth(1).unwrap(), 2).await;
    assert!(collector.trace(TRACE).is_empty());
}

#[tokio::test]
async fn without_a_collector_a_trace_is_handed_on_and_none_begins() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    let (first, answered) = send_within(&gateway, &[("traceparent", PARENT)]).await;
    assert_eq!(answered, PARENT);
    gateway.settled(&first).await;
    let (second, answered) = send_within(&gateway, &[]).await;
    assert_eq!(answered, "");
    gateway.settled(&second).await;
    let received = sink.received_at("/in");
    assert_eq!(received[0].header("traceparent"), PARENT);
    assert!(received[1].headers.get("traceparent").is_none());
}

/// One that hangs, or is not there, is the collector's trouble alone.
#[tokio::test]
async fn a_collector_that_is_away_delays_nothing() {
    let sink = Sink::start().await;
    let gateway = TestGateway::with(1, "[telemetry]\notlp_endpoint = \"http://127.0.0.1:1\"\n").await;
    gateway.webhook(&sink, "/in").await;
    let (id, _) = send_within(&gateway, &[("traceparent", PARENT)]).await;
    assert_eq!(gateway.settled(&id).await["state"], "sent");
}

/// A sample of `/metrics`.
struct Sample {
    family: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// The text format, of which the gateway writes no escapes.
fn samples(text: &str) -> Vec<Sample> {
    let parse = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let pairs = labels.trim_end_matches('}').split("\",").filter(|it| !it.is_empty());
        let labels = pairs.map(|pair| pair.split_once("=\"").unwrap());
        let labels = labels.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()));
        Sample { family: name.to_owned(), labels: labels.collect(), value: value.parse().unwrap() }
    };
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse).collect()
}

/// The sum over the series of this name that have these labels.
fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted = |it: &Sample| {
        it.family == name && labels.iter().all(|(name, value)| it.labels.get(*name).is_some_and(|found| found == value))
    };
    samples(text).into_iter().filter(wanted).map(|it| it.value).sum()
}

async fn scrape(gateway: &TestGateway) -> String {
    let body = gateway.call(reqwest::Method::GET, "/metrics", None).await.body;
    body.as_str().expect("a text").to_owned()
}

#[test]
fn every_metric_is_in_the_manual() {
    let manual = std::fs::read_to_string(xtask::project::root().join("docs/operators.md")).unwrap();
    let found: BTreeSet<_> = manual.lines().filter(|line| line.starts_with("| `angarium_")).collect();
    let rows: BTreeSet<_> = METRICS
        .iter()
        .map(|metric| {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("; {}", labels.join(", ")) };
            format!("| `{}` | {kind}{labels} | {} |", metric.name, metric.what)
        })
        .collect();
    let rows: BTreeSet<_> = rows.iter().map(String::as_str).collect();
    assert_eq!(found, rows, "the table in docs/operators.md and METRICS differ");
}

#[tokio::test]
async fn what_happens_is_measured_and_no_client_makes_a_series() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(503), Reply::status(200)]);
    let sent = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&sent).await["state"], "sent");
    // A channel and a method that a client thought of.
    let odd = gateway.send(&json!({"channel": "smoke_signal", "connection": "hook", "content": {}})).await;
    assert_eq!(gateway.settled(&odd).await["state"], "unroutable");
    let brew = reqwest::Method::from_bytes(b"BREW").unwrap();
    gateway.call(brew, "/v1/messages", None).await.expect(405);
    gateway.call(reqwest::Method::GET, "/v1/nowhere/at/all", None).await.expect(404);

    let text = eventually("the queue's measure", || async {
        let text = scrape(&gateway).await;
        text.contains("angarium_queue_depth").then_some(text)
    })
    .await;
    let by = |disposition| [("channel", "webhook"), ("provider", "webhook"), ("disposition", disposition)];
    assert_eq!(sum(&text, "angarium_attempts_total", &by("accepted")), 1.0);
    assert_eq!(sum(&text, "angarium_attempts_total", &by("rejected_transient")), 1.0);
    assert_eq!(sum(&text, "angarium_retries_total", &[("provider", "webhook")]), 1.0);
    assert_eq!(sum(&text, "angarium_deliveries_ended_total", &[("channel", "webhook"), ("state", "sent")]), 1.0);
    assert_eq!(sum(&text, "angarium_deliveries_ended_total", &[("channel", ""), ("state", "unroutable")]), 1.0);
    for name in ["angarium_provider_seconds", "angarium_plugin_seconds", "angarium_plugin_memory_bytes"] {
        assert_eq!(sum(&text, &format!("{name}_count"), &[("provider", "webhook")]), 2.0, "{name}");
    }
    assert_eq!(sum(&text, "angarium_queue_wait_seconds_count", &[("priority", "normal")]), 2.0);
    assert_eq!(sum(&text, "angarium_accept_seconds_count", &[]), 2.0);
    assert_eq!(sum(&text, "angarium_ledger_writable", &[]), 1.0);
    assert_eq!(sum(&text, "angarium_room_capacity", &[]), 16_384.0);
    assert_eq!(sum(&text, "angarium_room_taken", &[]), 0.0);
    assert!(sum(&text, "angarium_db_connections", &[]) > 0.0, "{text}");
    assert_eq!(sum(&text, "angarium_http_client_connections", &[]), 1.0, "one is kept");
    let methods = sum(&text, "angarium_http_seconds_count", &[("method", "other"), ("status", "405")]);
    assert_eq!(methods, 1.0, "{text}");
    for word in ["smoke_signal", "BREW", "nowhere", "ten_", "msg_", "conn_", "127.0.0.1"] {
        assert!(!text.contains(word), "a label holds `{word}`: {text}");
    }
    described(&text);
}

/// Every series is one that the manual has, with its help, its kind and its labels.
#[track_caller]
fn described(text: &str) {
    for sample in samples(text) {
        let family = |name: &str| METRICS.iter().find(|metric| metric.name == name);
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.family.strip_suffix(suffix));
        let histogram = base.and_then(family).filter(|metric| metric.kind == Kind::Histogram);
        let metric = histogram.or_else(|| family(&sample.family));
        let metric = metric.unwrap_or_else(|| panic!("`{}` is not in METRICS", sample.family));
        let kind = format!("# TYPE {} {}", metric.name, format!("{:?}", metric.kind).to_lowercase());
        assert!(text.contains(&kind), "{kind}");
        assert!(text.contains(&format!("# HELP {} {}", metric.name, metric.what)), "no help of {}", metric.name);
        let labels: BTreeSet<_> = sample.labels.keys().map(String::as_str).filter(|it| *it != "le").collect();
        assert_eq!(labels, metric.labels.iter().copied().collect(), "{}", metric.name);
    }
}
