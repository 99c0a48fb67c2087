//! The operator's view: metrics, traces, events, and the effective configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use angarium::node::telemetry::{METRICS, MeasureKind};
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{
    collector::{Collector, Span},
    database::eventually,
    gateway::{Answer, TestGateway, client},
    messages::hook,
    sink::{Reply, Sink},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const SHORT: &str = "[dispatch]\ndeadline_ms = 500\n[queue]\nlease_ms = 1500\n";

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

/// Returns the trace once it has this number of spans.
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
    // Two attempts: each has its wait, the plugin twice, and the transport.
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
    let shown = gateway.message(&id).await.to_string();
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
    // A later span is exported, so an earlier one would have been, too.
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

/// A collector that hangs, or is away, affects nothing else.
#[tokio::test]
async fn a_collector_that_is_away_delays_nothing() {
    let sink = Sink::start().await;
    let gateway = TestGateway::with(1, "[telemetry]\notlp_endpoint = \"http://127.0.0.1:1\"\n").await;
    gateway.webhook(&sink, "/in").await;
    let (id, _) = send_within(&gateway, &[("traceparent", PARENT)]).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let log = gateway.nodes[0].as_ref().unwrap().log();
    eventually("a word of it in the log", || async {
        std::fs::read_to_string(&log).unwrap().contains("BatchSpanProcessor.ExportError").then_some(())
    })
    .await;
}

/// A sample of `/metrics`.
struct Sample {
    family: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Parses the text format, in which the gateway writes no escapes.
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
    assert_eq!(gateway.settled(&sent).await.state, "sent");
    // A channel and a method that a client thought of.
    let odd = gateway.send(&json!({"channel": "smoke_signal", "connection": "hook", "content": {}})).await;
    assert_eq!(gateway.settled(&odd).await.state, "unroutable");
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
    assert_eq!(sum(&text, "angarium_slots_max", &[]), 16_384.0);
    assert_eq!(sum(&text, "angarium_slots_taken", &[]), 0.0);
    assert!(sum(&text, "angarium_db_connections", &[]) > 0.0, "{text}");
    assert_eq!(sum(&text, "angarium_http_client_connections", &[]), 1.0, "one is kept");
    let methods = sum(&text, "angarium_http_seconds_count", &[("method", "other"), ("status", "405")]);
    assert_eq!(methods, 1.0, "{text}");
    for word in ["smoke_signal", "BREW", "nowhere", "ten_", "msg_", "conn_", "127.0.0.1"] {
        assert!(!text.contains(word), "a label holds `{word}`: {text}");
    }
    described(&text);
}

#[tokio::test]
async fn dead_letters_are_counted_until_somebody_has_dealt_with_them() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.webhook(&sink, "/in").await;
    sink.answers("/in", [Reply::status(410)]);
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    // They are counted once a minute, and when a node starts.
    let labels = [("channel", "webhook"), ("state", "failed")];
    for count in [1.0, 0.0] {
        gateway.kill(0);
        gateway.take_over().await;
        let counted = async || {
            let text = scrape(&gateway).await;
            let told = samples(&text).iter().any(|it| it.family == "angarium_queue_depth");
            (told && sum(&text, "angarium_dead_letters", &labels) == count).then_some(())
        };
        eventually(&format!("{count} dead letters"), counted).await;
        sink.answers("/in", [Reply::status(200)]);
        if count > 0.0 {
            gateway.post(&format!("/v1/messages/{id}/retry"), &json!({})).await.expect(202);
            gateway.settled(&id).await;
        }
    }
}

/// Every series is one that the manual has, with its help, its kind and its labels.
#[track_caller]
fn described(text: &str) {
    for sample in samples(text) {
        let family = |name: &str| METRICS.iter().find(|metric| metric.name == name);
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.family.strip_suffix(suffix));
        let histogram = base.and_then(family).filter(|metric| metric.kind == MeasureKind::Histogram);
        let metric = histogram.or_else(|| family(&sample.family));
        let metric = metric.unwrap_or_else(|| panic!("`{}` is not in METRICS", sample.family));
        let kind = format!("# TYPE {} {}", metric.name, format!("{:?}", metric.kind).to_lowercase());
        assert!(text.contains(&kind), "{kind}");
        assert!(text.contains(&format!("# HELP {} {}", metric.name, metric.what)), "no help of {}", metric.name);
        let labels: BTreeSet<_> = sample.labels.keys().map(String::as_str).filter(|it| *it != "le").collect();
        assert_eq!(labels, metric.labels.iter().copied().collect(), "{}", metric.name);
    }
}

/// The events' types with their messages, as a list shows them.
fn told(events: &Value) -> Vec<(String, String)> {
    let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
    events["data"].as_array().unwrap().iter().map(|it| (text(it, "type"), text(it, "message"))).collect()
}

/// Two messages: one is sent at once, one after a retry.
async fn two_messages(gateway: &TestGateway, sink: &Sink) -> [String; 2] {
    gateway.webhook(sink, "/in").await;
    sink.answers("/in", [Reply::status(200), Reply::status(503), Reply::status(200)]);
    let first = gateway.send(&hook()).await;
    gateway.settled(&first).await;
    let second = gateway.send(&hook()).await;
    gateway.settled(&second).await;
    [first, second]
}

#[tokio::test]
async fn events_are_listed_in_the_order_of_time() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let [first, second] = two_messages(&gateway, &sink).await;
    let all = eventually("the events", || async {
        let all = gateway.get("/v1/events").await;
        (all["data"].as_array().unwrap().len() == 3).then_some(all)
    })
    .await;
    let what = |kind: &str, message: &String| (format!("message.{kind}"), message.clone());
    let expected = [what("sent", &first), what("retry_scheduled", &second), what("sent", &second)];
    assert_eq!(told(&all), expected);
    assert_eq!(all["next_cursor"], Value::Null);

    // Page by page it is the same.
    let mut paged = Vec::new();
    let mut path = "/v1/events?limit=1".to_owned();
    loop {
        let page = gateway.get(&path).await;
        paged.extend(told(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/events?limit=1&cursor={cursor}");
    }
    assert_eq!(paged, expected);

    let some = gateway.get("/v1/events?type=message.retry_scheduled,message.failed").await;
    assert_eq!(told(&some), expected[1..2]);
    let id = all["data"][1]["id"].as_str().unwrap();
    assert_eq!(told(&gateway.get(&format!("/v1/events?after={id}")).await), expected[2..]);
    let at = all["data"][0]["at"].as_str().unwrap();
    assert_eq!(told(&gateway.get(&format!("/v1/events?after={at}")).await).len(), 3);

    let other = gateway.key_of("other", "messages:read");
    let others = gateway.call_as(&other, reqwest::Method::GET, "/v1/events", None).await.expect(200);
    assert_eq!(told(&others), []);
    for (path, part) in [
        ("/v1/events?after=yesterday", "query/after"),
        ("/v1/events?type=Message", "query/type"),
        ("/v1/events/stream?limit=1", "query/limit"),
    ] {
        let problem = gateway.call(reqwest::Method::GET, path, None).await.expect(400);
        assert_eq!(problem["errors"][0]["pointer"], part, "{path}");
    }
    let blind = gateway.key_of("blind", "messages:write");
    for path in ["/v1/events", "/v1/events/stream"] {
        gateway.call_as(&blind, reqwest::Method::GET, path, None).await.expect(403);
    }
}

/// Returns the `id` and `event` fields of this number of server-sent events.
async fn followed(gateway: &TestGateway, path: &str, last: Option<&str>, count: usize) -> Vec<(String, String)> {
    let mut request = client().get(gateway.url(path)).bearer_auth(&gateway.key);
    if let Some(last) = last {
        request = request.header("Last-Event-ID", last);
    }
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let read = async {
        while text.matches("\n\n").count() < count {
            text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().expect("more")).unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.expect("the events come within 30 s");
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().to_owned()
    };
    text.split("\n\n").filter(|it| !it.is_empty()).map(|it| (field(it, "id:"), field(it, "event:"))).collect()
}

#[tokio::test]
async fn a_stream_of_events_goes_on_where_another_ended() {
    let (mut gateway, sink) = (TestGateway::start().await, Sink::start().await);
    two_messages(&gateway, &sink).await;
    let stream = "/v1/events/stream?after=2020-01-01T00:00:00Z";
    let first = followed(&gateway, stream, None, 3).await;
    let kinds: Vec<_> = first.iter().map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(kinds, ["message.sent", "message.retry_scheduled", "message.sent"]);
    let rest = followed(&gateway, stream, Some(&first[0].0), 2).await;
    assert_eq!(rest, first[1..]);

    // A stream does not keep a node from stopping.
    let open = client().get(gateway.url("/v1/events/stream")).bearer_auth(&gateway.key).send().await.unwrap();
    let node = gateway.nodes[0].take().unwrap();
    let began = std::time::Instant::now();
    tokio::task::spawn_blocking(move || node.stop()).await.unwrap().expect("it stops by itself");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    open.bytes().await.expect("the stream ends as it should");
}

/// `angarium tail` as a process, read line by line.
struct Tail {
    _process: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Tail {
    fn start(gateway: &TestGateway, url: &str, arguments: &[&str]) -> Self {
        let mut command = tokio::process::Command::new(&gateway.settings().binary);
        command.args(["tail", "--url", url, "--key", &gateway.key]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, lines }
    }

    /// The next line; `None` once the command has ended.
    async fn line(&mut self) -> Option<String> {
        let line = tokio::time::timeout(Duration::from_secs(30), self.lines.next_line());
        line.await.expect("a line within 30 s").unwrap()
    }
}

#[tokio::test]
async fn tail_prints_a_line_an_event() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    let [first, second] = two_messages(&gateway, &sink).await;
    let (url, since) = (gateway.url(""), ["--after", "2020-01-01T00:00:00Z"]);
    let mut people = Tail::start(&gateway, &url, &since);
    let line = people.line().await.unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[1..5], ["message.sent", &first, "attempt", "1"], "{line}");
    let mut programs =
        Tail::start(&gateway, &url, &[&since[..], &["--json", "--type", "message.retry_scheduled"]].concat());
    let event: Value = serde_json::from_str(&programs.line().await.unwrap()).unwrap();
    let names: Vec<_> = event.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["at", "channel", "connection", "data", "delivery", "id", "message", "metadata", "reference", "type"]
    );
    assert_eq!(event["message"], second);
    assert_eq!(event["data"]["attempt"], 1);
    // Later events arrive, too.
    let third = gateway.send(&hook()).await;
    let mut rest = String::new();
    while !rest.contains(&third) {
        rest = people.line().await.expect("it goes on");
    }
}

/// A gateway that ends its streams, and then refuses the key.
#[tokio::test]
async fn tail_comes_again_where_it_was_and_ends_when_it_is_refused() {
    let gateway = TestGateway::start().await;
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let answer = move |headers: axum::http::HeaderMap| async move {
        let last = headers.get("last-event-id").map(|it| it.to_str().unwrap().to_owned()).unwrap_or_default();
        let mut seen = seen.lock().unwrap();
        seen.push(last);
        let event = |id: u32| format!("id: evt_{id}\ndata: {{\"id\":\"evt_{id}\"}}\n\n");
        match seen.len() {
            1 => (StatusCode::OK, event(1) + event(2).as_str() + "data: {\"cut"),
            2 => (StatusCode::SERVICE_UNAVAILABLE, "{}".to_owned()),
            3 => (StatusCode::OK, event(3)),
            _ => (StatusCode::UNAUTHORIZED, "{\"code\":\"unauthorized\"}".to_owned()),
        }
    };
    let app = axum::Router::new().route("/v1/events/stream", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut tail = Tail::start(&gateway, &url, &["--json"]);
    for id in 1..=3 {
        assert_eq!(tail.line().await.unwrap(), format!("{{\"id\":\"evt_{id}\"}}"));
    }
    assert_eq!(tail.line().await, None);
    assert_eq!(*asked.lock().unwrap(), ["", "evt_2", "evt_2", "evt_3"]);
}

#[tokio::test]
async fn config_check_shows_what_is_effective_or_names_what_is_wrong() {
    let gateway = TestGateway::with(0, "[queue]\nlease_ms = 120000\n").await;
    let settings = gateway.settings();
    let shown: Value = serde_json::from_str(&settings.command_line(&["config", "check", "--json"]).unwrap()).unwrap();
    assert_eq!(shown["queue"], json!({"lease_ms": 120_000, "poll_ms": 100}));
    assert_eq!(shown["providers"]["grant"], "declared");
    assert_eq!(shown["telemetry"], json!({"otlp_endpoint": null, "trace_sample_ratio": 1.0}));
    let sections: Vec<_> = shown.as_object().unwrap().keys().map(String::as_str).collect();
    for section in ["database", "dispatch", "egress", "http", "log", "node", "roles", "secrets", "tls"] {
        assert!(sections.contains(&section), "{section}");
    }
    let table = settings.command_line(&["config", "check"]).unwrap();
    assert!(table.contains("queue.lease_ms") && table.contains("120000"), "{table}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    let toml = "[queue]\nlease_mss = 1\npoll_ms = 0\n[http]\nlisten = 'here'\n[secrets]\nkey_file = '/nowhere/key'\n";
    std::fs::write(&file, toml).unwrap();
    let mut command = std::process::Command::new(&settings.binary);
    let output = command.env_clear().args(["config", "check", "--config"]).arg(&file).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    for key in ["`queue.lease_mss`", "`queue.poll_ms`", "`http.listen`", "`database.url`", "`secrets.key_file`"] {
        assert!(said.contains(key), "{key}: {said}");
    }
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn shells_get_their_completions() {
    let gateway = TestGateway::with(0, "").await;
    for (shell, mark) in [("bash", "complete -F"), ("zsh", "#compdef angarium"), ("fish", "complete -c angarium")] {
        let script = gateway.settings().command_line(&["completions", shell]).unwrap();
        assert!(script.contains(mark) && script.contains("tail"), "{shell}");
    }
}
