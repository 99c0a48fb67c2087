//! A provider that misbehaves: one total deadline, a bounded read, and a true report of the result.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::{
    support::{
        gateway::TestGateway,
        messages::hook,
        sink::{Reply, Sink},
    },
    transport::{read_request, serve},
};

const BRIEF: &str = "[dispatch]\ndeadline_ms = 600\n[queue]\nlease_ms = 3000\n";

/// A server that answers each request with these bytes, and then holds or closes the connection.
async fn answering(answer: Vec<u8>, hold: bool) -> SocketAddr {
    serve(move |mut stream| {
        let answer = answer.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(&answer).await;
                if !hold {
                    return;
                }
            }
        }
    })
    .await
}

fn ok(kind: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Returns the end of a message to this address on a route that holds unknown deliveries.
async fn held(gateway: &TestGateway, provider: &str, address: SocketAddr) -> Value {
    let uid = format!("bad-{}", address.port());
    let (channel, config, secrets) = match provider {
        "webhook" => ("webhook", json!({"url": format!("http://{address}/")}), json!({})),
        _ => (
            "sms",
            json!({"account_sid": "AC1", "from": "+14155550100", "base_url": format!("http://{address}")}),
            json!({"auth_token": "token"}),
        ),
    };
    gateway.connection(&uid, provider, config, secrets).await;
    let spec = json!({"candidates": [{"connection": uid}], "on_unknown": "hold", "retry": {"type": "none"}});
    let route = gateway.post("/v1/routes", &json!({"channel": channel, "spec": spec})).await.expect(201);
    let route = route["id"].as_str().unwrap().to_owned();
    gateway.post(&format!("/v1/routes/{route}/activate"), &json!({"version": 1})).await.expect(200);
    let message = if channel == "sms" {
        json!({"channel": "sms", "to": "+14155550123", "content": {"text": "x"}})
    } else {
        hook()
    };
    let id = gateway.send(&message).await;
    let state = gateway.settled(&id).await["state"].clone();
    let attempts = gateway.attempt_list(&id).await;
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    json!([state, attempts[0]["disposition"], attempts[0]["code"]])
}

#[tokio::test]
async fn a_provider_that_says_nothing_or_a_byte_a_second_is_unknown_at_one_deadline() {
    let gateway = TestGateway::with(1, BRIEF).await;
    let silent = serve(|mut stream| async move {
        read_request(&mut stream).await;
        std::future::pending().await
    })
    .await;
    assert_eq!(held(&gateway, "webhook", silent).await, json!(["unknown", "unknown", "timeout"]));

    let gateway = TestGateway::with(1, BRIEF).await;
    let slow = serve(|mut stream| async move {
        read_request(&mut stream).await;
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert_eq!(held(&gateway, "webhook", slow).await, json!(["unknown", "unknown", "timeout"]));
}

#[tokio::test]
async fn garbage_with_200_and_half_of_what_a_provider_goes_by_are_unknown() {
    let page = ok("text/html", "<html><body>Welcome to the captive portal</body></html>");
    let cut_off_json = ok("application/json", r#"{"sid": "SM0123", "num_segm"#);
    let cut_off_body = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"sid\"".to_vec();
    for (name, answer, hold) in
        [("a page", page, true), ("half of JSON", cut_off_json, true), ("half", cut_off_body, false)]
    {
        let gateway = TestGateway::with(1, BRIEF).await;
        let outcome = held(&gateway, "sms-twilio", answering(answer, hold).await).await;
        assert_eq!((&outcome[0], &outcome[1]), (&json!("unknown"), &json!("unknown")), "{name}: {outcome}");
    }
}

#[tokio::test]
async fn a_reset_after_the_request_is_unknown() {
    let gateway = TestGateway::with(1, BRIEF).await;
    let reset = answering(Vec::new(), false).await;
    assert_eq!(held(&gateway, "webhook", reset).await, json!(["unknown", "unknown", "reset"]));
}

#[tokio::test]
async fn a_429_is_waited_out_as_it_asks_and_consumes_no_attempt() {
    let (gateway, sink) = (TestGateway::start().await, Sink::start().await);
    gateway.connection("hook", "webhook", json!({"url": sink.url("/in")}), json!({})).await;
    let retry = json!({"type": "linear", "delay_ms": 10, "max_attempts": 2});
    gateway.route("webhook", json!({"candidates": [{"connection": "hook"}], "retry": retry})).await;
    let busy = || Reply::status(429);
    sink.answers("/in", [busy().header("retry-after", "1"), busy(), busy(), Reply::status(200)]);
    let id = gateway.send(&hook()).await;
    assert_eq!(gateway.settled(&id).await.state, "sent", "the policy's two attempts were not touched");
    let attempts = gateway.attempt_list(&id).await;
    assert_eq!(gateway.attempts(&id).await, [vec!["hook:throttled"; 3], vec!["hook:accepted"]].concat());
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let waited = time(&attempts[1]["started_at"]).duration_since(time(&attempts[0]["finished_at"]));
    assert!(waited.as_millis() >= 1_000, "it waited {waited}");
}
