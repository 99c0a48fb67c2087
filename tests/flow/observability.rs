//! What an operator sees: traces.

use std::time::Duration;

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
