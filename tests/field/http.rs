//! HTTP servers: throttles, refused streams, long and broken answers, one customer among many.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::{
    support::{
        answers::{Attempt, Seen},
        database::eventually,
        gateway::TestGateway,
        messages::hook,
        sink::{Reply, Sink},
    },
    transport::{read_request, serve},
};

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("no time: {value}")).parse().unwrap()
}

/// A message to a customer's endpoint.
fn message_to(url: &str) -> Value {
    json!({"channel": "webhook", "to": url, "content": {"payload": {}}})
}

/// A connection without an address of its own: each message names its customer's.
async fn customers(retry: Value, guards: Value) -> TestGateway {
    let gateway = TestGateway::start().await;
    let body = json!({"uid": "hooks", "provider": "webhook", "config": {}, "guards": guards});
    gateway.post("/v1/connections", &body).await.expect(201);
    gateway.route("webhook", json!({"candidates": [{"connection": "hooks"}], "retry": retry})).await;
    gateway
}

fn quickly(max_attempts: u32) -> Value {
    json!({"type": "linear", "delay_ms": 20, "max_attempts": max_attempts})
}

/// Returns a message's attempts, once there is this number of them.
async fn attempts(gateway: &TestGateway, id: &str, count: usize) -> Vec<Seen<Attempt>> {
    eventually(&format!("{count} attempts"), || async {
        let list = gateway.attempt_list(id).await;
        (list.len() >= count).then_some(list)
    })
    .await
}

#[tokio::test]
async fn a_200_is_sent_once_however_long_or_broken_what_follows_it_is() {
    let headers: String = (0..101).map(|n| format!("X-{n}: v\r\n")).collect();
    let long = format!("Content-Length: 1100000\r\n\r\n{}", "x".repeat(1_100_000));
    for (name, rest, cut) in [
        ("a body of more than 1 MiB", long, true),
        ("more than 100 headers", format!("{headers}Content-Length: 0\r\n\r\n"), false),
        ("a connection that ends in the body", "Content-Length: 9\r\n\r\nhalf".to_owned(), true),
        ("a chunk that is none", "Transfer-Encoding: chunked\r\n\r\nnonsense\r\n".to_owned(), true),
    ] {
        let gateway = TestGateway::start().await;
        let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{rest}");
        let address = serve(move |mut stream| {
            let answer = answer.clone();
            async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        })
        .await;
        gateway.connection("hook", "webhook", json!({"url": format!("http://{address}/")}), json!({})).await;
        gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": quickly(3)})).await;
        let id = gateway.send(&hook()).await;
        assert_eq!(gateway.settled(&id).await.state, "sent", "{name}");
        let attempts = gateway.attempt_list(&id).await;
        assert_eq!((attempts.len(), &attempts[0]["disposition"]), (1, &json!("accepted")), "{name}: {attempts:?}");
        let detail = attempts[0].detail();
        assert_eq!(detail.contains("was cut after"), cut, "{name}: {detail}");
    }
}

#[tokio::test]
async fn a_message_that_twilio_has_created_is_sent_though_its_id_is_cut_off() {
    let gateway = TestGateway::start().await;
    let body = "{\"body\": \"x\", \"num_segments\"";
    let answer = format!("HTTP/1.1 201 Created\r\nContent-Length: 900\r\nConnection: close\r\n\r\n{body}");
    let address = serve(move |mut stream| {
        let answer = answer.clone();
        async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let config = json!({"account_sid": "AC1", "from": "+14155550100", "base_url": format!("http://{address}")});
    gateway.connection("texts", "sms-twilio", config, json!({"auth_token": "token"})).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}]})).await;
    let id = gateway.send(&json!({"channel": "sms", "to": "+14155550123", "content": {"text": "x"}})).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let attempts = gateway.attempt_list(&id).await;
    let detail = attempts[0].detail();
    assert_eq!((attempts.len(), &attempts[0]["external_id"]), (1, &Value::Null));
    assert!(detail.contains("does not hold the message's sid") && detail.contains("was cut after"), "{detail}");
}

#[tokio::test]
async fn a_throttle_without_a_time_is_waited_out_longer_and_longer_and_holds_the_others() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": quickly(2)})).await;
    sink.answers("/in", [429, 429, 429, 200].map(Reply::status));
    let first = gateway.send(&hook()).await;
    attempts(&gateway, &first, 1).await;
    let other = gateway.send(&hook()).await;
    for id in [&first, &other] {
        assert_eq!(gateway.settled(id).await.state, "sent", "no throttled round consumes an attempt");
    }
    let received = sink.received_at("/in");
    assert_eq!(received.len(), 5, "one request after each pause, whoever it is for");
    let gaps: Vec<_> = received.windows(2).map(|pair| (pair[1].at - pair[0].at).as_millis()).collect();
    for (gap, least) in gaps.iter().zip([1_000, 2_000, 4_000]) {
        assert!(*gap >= least - 100, "{gaps:?}");
    }
}

#[tokio::test]
async fn a_throttle_ends_with_the_routes_time() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    let mut retry = quickly(3);
    retry["max_elapsed_ms"] = json!(2_000);
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
    sink.answers("/in", [Reply::status(429)]);
    let id = gateway.send(&hook()).await;
    let view = gateway.settled(&id).await;
    assert_eq!(view.state, "failed");
    assert!(view.delivery.detail().contains("max_elapsed_ms"), "{view}");
    assert!(sink.received_at("/in").len() <= 3, "{}", sink.received_at("/in").len());
}

#[tokio::test]
async fn one_customers_endpoint_stops_nobody_elses() {
    let (ill, well) = (Sink::start().await, Sink::start().await);
    let guards = json!({"breaker": {"consecutive_failures": 3, "open_ms": 3_600_000}});
    let gateway = customers(quickly(50), guards).await;
    for path in ["/401", "/500", "/429"] {
        // Each on an origin of its own, since what one says holds back all that goes there.
        let ill = if path == "/500" { ill.clone() } else { Sink::start().await };
        let answer = Reply::status(path[1..].parse().unwrap());
        ill.answers(path, [if path == "/429" { answer.header("retry-after", "3600") } else { answer }]);
        let stuck = gateway.send(&message_to(&ill.url(path))).await;
        attempts(&gateway, &stuck, if path == "/429" { 1 } else { 3 }).await;
        let fine = gateway.send(&message_to(&well.url("/in"))).await;
        assert_eq!(gateway.settled(&fine).await.state, "sent", "{path}");
        assert_eq!(gateway.attempts(&fine).await, ["hooks:accepted"], "{path}");
    }
    // The failing endpoint itself is not asked.
    gateway.logged(0, "an endpoint that messages name fails").await;
    let waits = gateway.send(&message_to(&ill.url("/other"))).await;
    let uuid = uuid::Uuid::try_parse(waits.trim_start_matches("msg_")).unwrap();
    let due = format!("select count(*) from queue where delivery_id = '{uuid}' and due_at > now() + interval '5 s'");
    eventually("it waits in the queue", || async { (gateway.db.sql(&due).await.trim() == "1").then_some(()) }).await;
    assert!(gateway.attempt_list(&waits).await.is_empty(), "waiting is no attempt");
    let health = gateway.health_of("hooks").await;
    let left_alone: Vec<_> = health["endpoints"].as_array().unwrap().iter().map(|it| &it["reason"]).collect();
    assert!(left_alone.contains(&&json!("circuit_open")), "{health}");
    assert!(left_alone.contains(&&json!("rate_limited")), "{health}");
    assert_eq!(health["breaker"]["state"], "closed", "{health}");
    assert_eq!(health["windows"]["5m"]["success_rate"], 1.0, "{health}");
}

#[tokio::test]
async fn a_webhook_is_tried_again_whatever_is_no_success_but_410() {
    let sink = Sink::start().await;
    let gateway = customers(quickly(20), json!({})).await;
    sink.answers("/in", [404, 401, 403, 409, 400, 413, 422, 500, 204].map(Reply::status));
    let id = gateway.send(&message_to(&sink.url("/in"))).await;
    assert_eq!(gateway.settled(&id).await.state, "sent");
    let codes: Vec<_> = gateway.attempt_list(&id).await.iter().map(|it| it["unified_code"].clone()).collect();
    let expected = [
        "not_found",
        "unauthorized",
        "forbidden",
        "rejected",
        "rejected",
        "too_large",
        "rejected",
        "provider_error",
        "ok",
    ];
    assert_eq!(codes, expected);
    sink.answers("/gone", [Reply::status(410)]);
    let id = gateway.send(&message_to(&sink.url("/gone"))).await;
    assert_eq!(gateway.settled(&id).await.state, "failed");
    assert_eq!(gateway.attempts(&id).await, ["hooks:rejected_permanent"]);
}

#[tokio::test]
async fn a_retry_after_is_read_in_every_form() {
    let sink = Sink::start().await;
    let gateway = customers(quickly(20), json!({})).await;
    let (minutes, hours) = (SignedDuration::from_mins(5), SignedDuration::from_hours(6));
    let at = |form: &str| (angarium::clock::now() + minutes).strftime(form).to_string();
    let forms = [
        ("300".to_owned(), minutes),
        (at("%a, %d %b %Y %H:%M:%S GMT"), minutes),
        (at("%A, %d-%b-%y %H:%M:%S GMT"), minutes),
        (at("%a %b %e %H:%M:%S %Y"), minutes),
        ("4294967296".to_owned(), hours),
        ("9".repeat(400), hours),
    ];
    for (number, (value, expected)) in forms.into_iter().enumerate() {
        let path = format!("/{number}");
        sink.answers(&path, [Reply::status(503).header("retry-after", &value)]);
        let id = gateway.send(&message_to(&sink.url(&path))).await;
        let attempt = attempts(&gateway, &id, 1).await.remove(0);
        let view = gateway.message(&id).await;
        let wait = time(&view["delivery"]["next_attempt_at"]).duration_since(time(&attempt["finished_at"]));
        assert!((wait - expected).abs() < SignedDuration::from_secs(20), "{value}: {wait:#}");
        gateway.post(&format!("/v1/messages/{id}/cancel"), &json!({})).await.expect(200);
    }
}
