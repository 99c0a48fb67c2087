//! The HTTP server against clients that hold connections, guess keys and break the protocol.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::{
    database::eventually,
    gateway::{TestGateway, client},
    process,
    sink::Sink,
};

/// For what holds bodies back on purpose, on however slow a machine.
const BODIES_TAKE_LONG: (&str, &str) = ("ANGARIUM_HTTP__BODY_TIMEOUT_MS", "600000");

/// A gateway with these settings of `http` as its only node.
async fn with_http(settings: &[(&'static str, &str)]) -> TestGateway {
    let mut gateway = TestGateway::with(0, "").await;
    let environment = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let node = gateway.new_node_with(environment).await;
    gateway.nodes.push(Some(node));
    gateway
}

fn address(gateway: &TestGateway) -> SocketAddr {
    gateway.nodes[0].as_ref().unwrap().address()
}

/// A socket on which this was said.
async fn said(gateway: &TestGateway, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address(gateway)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Returns the bytes until the gateway closes the socket.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let closed = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    closed
        .unwrap_or_else(|_| panic!("the socket stays open: {text}"))
        .unwrap_or_else(|error| panic!("{error}: {text}"));
    text
}

/// Returns the bytes of one answer with a `Content-Length`; empty if the socket is closed.
async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |it| it.parse().unwrap()) {
                    return;
                }
            }
            if !matches!(stream.read_buf(&mut answer).await, Ok(1..)) {
                return;
            }
        }
    };
    timeout(Duration::from_secs(60), read).await.expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
}

/// Returns the head of a message whose body is to follow.
fn message_head(key: &str, length: usize) -> Vec<u8> {
    format!(
        "POST /v1/messages HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    )
    .into_bytes()
}

/// A socket on which the gateway waits for the body of a message: it has asked for it.
async fn taken(gateway: &TestGateway) -> TcpStream {
    let head = message_head(&gateway.key, 10);
    let head = String::from_utf8(head).unwrap().replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let mut stream = said(gateway, head.as_bytes()).await;
    assert_eq!(answer(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// The resident memory of the gateway, in bytes.
fn resident(gateway: &TestGateway) -> usize {
    process::resident_memory(gateway.nodes[0].as_ref().unwrap().process())
}

/// Lets a process open this number of files.
fn limit_files(process: u32, files: usize) {
    let limit = format!("--nofile={files}:");
    let done = Command::new("prlimit").args(["--pid", &process.to_string(), &limit]).status().unwrap();
    assert!(done.success());
}

#[tokio::test]
async fn requests_that_a_proxy_may_read_differently_are_refused() {
    let gateway = TestGateway::start().await;
    let smuggled = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
    for request in [
        format!(
            "POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!("POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n{smuggled}"),
        format!("GET /livez HTTP/1.1\nHost: a\r\n\r\n{smuggled}"),
        format!("GET /livez HTTP/1.1\r\nHost: a\n\n{smuggled}"),
        format!("GET /livez HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n{smuggled}"),
        format!("GET /livez HTTP/1.1\r\nHost : a\r\n\r\n{smuggled}"),
        format!("GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{smuggled}"),
        format!("GET /livez HTTP/1.1\r\nHost: a\r\nX: y\rZ: z\r\n\r\n{smuggled}"),
        format!("GET /livez HTTP/1.1\r\n\r\n{smuggled}"),
        format!("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n{smuggled}"),
    ] {
        let answer = rest(&mut said(&gateway, request.as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        assert!(answer.contains("\"code\":\"malformed_request\""), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}: {answer}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(20 << 10));
    assert!(rest(&mut said(&gateway, long.as_bytes()).await).await.starts_with("HTTP/1.1 414 "));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(40 << 10));
    assert!(rest(&mut said(&gateway, large.as_bytes()).await).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn chunks_are_read_in_their_strict_form() {
    let gateway = TestGateway::start().await;
    let head = format!(
        "POST /v1/rules/evaluate HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        gateway.key
    );
    let good = format!("{head}1\r\n{{\r\n1\r\n}}\r\n0\r\n\r\n");
    let mut stream = said(&gateway, good.as_bytes()).await;
    let first = answer(&mut stream).await;
    assert!(first.starts_with("HTTP/1.1 422 "), "{first}");
    stream.write_all(&get("/livez")).await.unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200 "), "the connection goes on");
    for chunks in ["1;a=b\r\n{\r\n", "1\n{\r\n", "1\r\n{\n", "1\r\n{}\r\n", "0\r\nX: y\r\n\r\n"] {
        let answer = rest(&mut said(&gateway, format!("{head}{chunks}").as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks:?}: {answer}");
        // The same if the head is with its handler before the chunk comes.
        let mut stream = said(&gateway, format!("{head}2\r\n{{ \r\n").as_bytes()).await;
        tokio::task::yield_now().await;
        stream.write_all(chunks.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{chunks:?}: {answer}");
    }
}

#[tokio::test]
async fn a_header_that_decides_is_not_read_twice() {
    let gateway = TestGateway::start().await;
    for twice in [
        format!("Authorization: Bearer {}\r\nAuthorization: Bearer ak_other\r\n", gateway.key),
        format!("Authorization: Bearer {}\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n", gateway.key),
    ] {
        let request = format!("GET /v1/messages HTTP/1.1\r\nHost: a\r\n{twice}Connection: close\r\n\r\n");
        let answer = rest(&mut said(&gateway, request.as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("header_repeated"), "{answer}");
    }
}

/// Streams of one HTTP/2 connection would replace as many connections, each with an unread answer.
#[tokio::test]
async fn http2_is_not_spoken() {
    let gateway = TestGateway::start().await;
    let settings_frame = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut stream = said(&gateway, &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings_frame].concat()).await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 505 "), "{answer}");
}

/// Sends requests with this key without reading their answers, over sockets that are kept open.
async fn asked_and_not_taken(gateway: &TestGateway, path: &str, key: &str, sockets: usize) -> Vec<TcpStream> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..sockets {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        let mut stream = socket.connect(address(gateway)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        open.push(stream);
    }
    open
}

/// The first line of an answer.
async fn first_line(stream: &mut TcpStream) -> String {
    let mut line = [0; 12];
    timeout(Duration::from_secs(60), stream.read_exact(&mut line)).await.unwrap().unwrap();
    String::from_utf8_lossy(&line).into_owned()
}

#[tokio::test]
async fn answers_that_nobody_takes_hold_little_memory() {
    let gateway = TestGateway::start().await;
    let before = resident(&gateway);
    let mut open = asked_and_not_taken(&gateway, "/openapi.json", "none", 500).await;
    for stream in &mut open {
        assert_eq!(first_line(stream).await, "HTTP/1.1 200");
    }
    let grown = resident(&gateway).saturating_sub(before);
    println!("{} answers that are not taken: {} MiB", open.len(), grown >> 20);
    assert!(grown < 64 << 20, "{grown} bytes");
}

/// Creates connections whose configs are nearly as large as allowed.
async fn large_connections(gateway: &TestGateway, count: usize) -> Value {
    let headers: serde_json::Map<String, Value> =
        (0..15).map(|number| (format!("x-{number}"), "v".repeat(4000).into())).collect();
    let mut last = Value::Null;
    for _ in 0..count {
        let config = json!({"url": "https://example.com/", "headers": headers});
        last = gateway.post("/v1/connections", &json!({"provider": "webhook", "config": config})).await.body;
    }
    last
}

#[tokio::test]
async fn a_page_of_large_entries_ends_early_and_goes_on() {
    let gateway = TestGateway::start().await;
    large_connections(&gateway, 40).await;
    let (mut seen, mut pages, mut path) = (0, 0, "/v1/connections?limit=250".to_owned());
    loop {
        let page = gateway.page(&path).await;
        assert!(page.to_string().len() < 4 << 20);
        (seen, pages) = (seen + page.data.len(), pages + 1);
        let Some(cursor) = &page.next_cursor else { break };
        path = format!("/v1/connections?limit=250&cursor={cursor}");
    }
    assert!(seen >= 40 && pages > 1, "{seen} on {pages} pages");
}

#[tokio::test]
async fn a_tenants_configuration_in_service_is_limited() {
    let gateway = TestGateway::start().await;
    let refused = large_connections(&gateway, 600).await;
    assert_eq!(refused["code"], "configuration_too_large", "{refused}");
    let too_long = json!({"url": "https://example.com/", "headers": {"x": "v".repeat(70_000)}});
    let answer = gateway.post("/v1/connections", &json!({"provider": "webhook", "config": too_long})).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body["errors"][0]["code"].as_str()),
        (422, Some("too_long")),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn what_comes_too_slowly_ends() {
    let gateway = with_http(&[
        ("ANGARIUM_HTTP__HEADER_TIMEOUT_MS", "500"),
        ("ANGARIUM_HTTP__BODY_TIMEOUT_MS", "900"),
        ("ANGARIUM_HTTP__IDLE_TIMEOUT_MS", "500"),
    ])
    .await;
    let mut silent = said(&gateway, b"").await;
    assert_eq!(rest(&mut silent).await, "");
    let late = rest(&mut said(&gateway, b"GET /livez HTTP/1.1\r\nHost:").await).await;
    assert!(late.starts_with("HTTP/1.1 408 ") && late.contains("http.header_timeout_ms"), "{late}");
    let mut half = said(&gateway, &[message_head(&gateway.key, 10), b"{".to_vec()].concat()).await;
    let late = rest(&mut half).await;
    assert!(late.starts_with("HTTP/1.1 408 ") && late.contains("http.body_timeout_ms"), "{late}");
    let mut idle = said(&gateway, &get("/livez")).await;
    assert_eq!(rest(&mut idle).await.matches("HTTP/1.1 ").count(), 1);
}

#[tokio::test]
async fn a_body_that_drips_ends_too() {
    let gateway = with_http(&[("ANGARIUM_HTTP__BODY_TIMEOUT_MS", "1500")]).await;
    let stream = said(&gateway, &message_head(&gateway.key, 1_000_000)).await;
    let (mut read, mut write) = stream.into_split();
    let drips = tokio::spawn(async move {
        while write.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(60), read.read_to_end(&mut answer)).await;
    read.expect("the body ends").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    drips.abort();
}

#[tokio::test]
async fn where_all_connections_are_taken_the_operator_is_answered() {
    let gateway = with_http(&[
        ("ANGARIUM_HTTP__MAX_CONNECTIONS", "8"),
        ("ANGARIUM_HTTP__MAX_CONNECTIONS_PER_ADDRESS", "8"),
        BODIES_TAKE_LONG,
    ])
    .await;
    let mut all = join_all((0..8).map(|_| taken(&gateway))).await;
    let refused = answer(&mut said(&gateway, &get("/v1/messages")).await).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1"), "{refused}");
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = rest(&mut said(&gateway, &get(path)).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    }
    // A finished connection waits for its next request, and makes room for a new one.
    let mut done = all.pop().unwrap();
    done.write_all(b"          ").await.unwrap();
    assert!(answer(&mut done).await.starts_with("HTTP/1.1 400 "));
    for _ in 0..20 {
        // A client may have its answer a moment before the gateway has put it behind itself.
        eventually("room for a new connection", || async {
            let answer = answer(&mut said(&gateway, &get("/v1/messages")).await).await;
            answer.starts_with("HTTP/1.1 401 ").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn one_address_does_not_take_all_connections() {
    let gateway = with_http(&[
        ("ANGARIUM_HTTP__MAX_CONNECTIONS", "8"),
        ("ANGARIUM_HTTP__MAX_CONNECTIONS_PER_ADDRESS", "4"),
        BODIES_TAKE_LONG,
    ])
    .await;
    let _all = join_all((0..4).map(|_| taken(&gateway))).await;
    let refused = answer(&mut said(&gateway, &get("/v1/messages")).await).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    // Every address of 127.0.0.0/8 is this machine.
    let other = client_of("127.0.0.2");
    let answer = other.get(gateway.url("/v1/messages")).bearer_auth(&gateway.key).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

fn client_of(address: &str) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60));
    builder.local_address(address.parse::<std::net::IpAddr>().unwrap()).build().unwrap()
}

#[tokio::test]
async fn without_a_free_descriptor_the_gateway_goes_on() {
    let gateway = TestGateway::start().await;
    gateway.get("/v1/messages").await;
    let process = gateway.nodes[0].as_ref().unwrap().process();
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    limit_files(process, open + 20);
    let _idle = join_all((0..60).map(|_| said(&gateway, b""))).await;
    gateway.logged(0, "a connection could not be accepted").await;
    for _ in 0..20 {
        let answer = answer(&mut said(&gateway, &get("/livez")).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_costs_little_memory() {
    const CONNECTIONS: usize = 500;
    let gateway = TestGateway::start().await;
    let many = || async {
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS / 50 {
            open.extend(
                join_all((0..50).map(|_| async {
                    let mut stream = said(&gateway, &get("/livez")).await;
                    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
                    stream
                }))
                .await,
            );
        }
        open
    };
    // Memory that the allocator keeps for the next requests does not belong to the connections.
    let request = get("/livez");
    drop(join_all((0..50).map(|_| said(&gateway, &request))).await);
    let before = resident(&gateway);
    let open = many().await;
    let each = resident(&gateway).saturating_sub(before) / open.len();
    println!("an idle connection costs {each} bytes");
    assert!(each < 32 << 10, "{each} bytes");
}

#[tokio::test]
async fn half_sent_callbacks_are_few_and_small() {
    let sink = Sink::start().await;
    let gateway = TestGateway::start().await;
    let secrets = json!({"token": "5ecret", "public_key": STANDARD.encode([0; 32])});
    gateway.connection("texts", "fixture", json!({"url": sink.url("/texts")}), secrets).await;
    gateway.route("sms", json!({"candidates": [{"connection": "texts"}]})).await;
    let url = gateway.callback_url("texts").await;
    let path = &url[url.find("/v1/callbacks/").unwrap()..];
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").into_bytes();

    let unknown = rest(&mut said(&gateway, &head("/v1/callbacks/nobody")).await).await;
    assert!(unknown.starts_with("HTTP/1.1 404 "), "the token goes before the body: {unknown}");

    let before = resident(&gateway);
    let half = [head(path), vec![b'x'; 900_000]].concat();
    let mut held = join_all((0..200).map(|_| async {
        let mut stream = TcpStream::connect(address(&gateway)).await.unwrap();
        // It is refused before all of it is read.
        let _ = timeout(Duration::from_secs(5), stream.write_all(&half)).await;
        stream
    }))
    .await;
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    // The accepted requests wait for the rest of their bodies until their time is over.
    let answers = join_all(held.iter_mut().map(answer)).await;
    let full = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 503 ")).count();
    assert!(full > 100, "{full} were refused");
    let message = json!({"channel": "sms", "to": "+46700000001", "content": {"text": "hello"}});
    // Keys have bytes of their own.
    gateway.send(&message).await;
}

#[tokio::test]
async fn a_tenants_half_sent_bodies_leave_room_for_others() {
    let gateway = with_http(&[
        ("ANGARIUM_HTTP__MAX_BODY_BYTES", "1048576"),
        ("ANGARIUM_HTTP__MAX_BODY_BYTES_IN_FLIGHT", "8388608"),
        BODIES_TAKE_LONG,
    ])
    .await;
    let other = gateway.key_of("two", "messages:write");
    let half = [message_head(&gateway.key, 1_000_000), vec![b' '; 900_000]].concat();
    let mut held = Vec::new();
    // One after the other: several that are refused at the same time leave room for another.
    loop {
        let mut stream = said(&gateway, &half).await;
        let mut start = [0; 12];
        if let Ok(read) = timeout(Duration::from_secs(1), stream.read_exact(&mut start)).await {
            read.unwrap();
            assert_eq!(&start, b"HTTP/1.1 503", "the tenant has its share");
            break;
        }
        held.push(stream);
        assert!(held.len() < 9, "all bytes are held");
    }
    assert!(held.len() > 3, "{} are held", held.len());
    let large = json!({"channel": "sms", "to": "+46700000001", "content": {"text": "x".repeat(500_000)}});
    let answer = gateway.call_as(&other, Method::POST, "/v1/messages", Some(&large)).await;
    assert!([202, 422].contains(&answer.status.as_u16()), "{}", answer.body);
    drop(held);
}

#[tokio::test]
async fn guessed_keys_do_not_delay_known_ones() {
    let (gateway, proxy) = TestGateway::behind_a_proxy("").await;
    gateway.get("/v1/messages").await;
    // One after the other, so many look-ups would take ten seconds and more.
    proxy.slow(Duration::from_millis(20));
    let client = client();
    let rounds = (0..4).map(|round| {
        let (client, gateway) = (&client, &gateway);
        async move {
            let guesses = (0..100).map(|at| async move {
                let key = format!("ak_{:043}", 100 * round + at);
                client.get(gateway.url("/v1/messages")).bearer_auth(key).send().await.unwrap().status().as_u16()
            });
            join_all(guesses).await
        }
    });
    let known = async {
        let mut answers = Vec::new();
        for _ in 0..20 {
            answers.push(gateway.call(Method::GET, "/v1/messages", None).await.status.as_u16());
        }
        answers
    };
    let (guesses, known) = futures_util::future::join(join_all(rounds), known).await;
    assert!(guesses.concat().iter().all(|status| *status == 401), "{guesses:?}");
    assert!(known.iter().all(|status| *status == 200), "{known:?}");
}

/// Waits for a stream's end, which comes long before a stream ends by itself.
async fn ends(mut stream: reqwest::Response) {
    let read = async { while let Ok(Some(_)) = stream.chunk().await {} };
    assert!(timeout(Duration::from_secs(30), read).await.is_ok(), "the stream goes on without its key");
}

#[tokio::test]
async fn a_stream_of_events_ends_with_its_key() {
    let gateway = TestGateway::start().await;
    let key = gateway.key_of("two", "messages:read");
    let stream = client().get(gateway.url("/v1/events/stream")).bearer_auth(&key).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let listed = gateway.settings().command_line(&["key", "list", "--tenant", "two", "--json"]).unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    gateway.settings().command_line(&["key", "revoke", listed[0]["id"].as_str().unwrap()]).unwrap();
    ends(stream).await;
}

#[tokio::test]
async fn a_stream_of_events_ends_when_its_key_expires() {
    let gateway = TestGateway::start().await;
    gateway.key_of("two", "messages:read");
    let soon = (angarium::clock::now() + jiff::SignedDuration::from_secs(8)).to_string();
    let arguments = ["key", "create", "--tenant", "two", "--expires-at", &soon, "--json"];
    let made: Value = serde_json::from_str(&gateway.settings().command_line(&arguments).unwrap()).unwrap();
    let key = made["key"].as_str().unwrap();
    let stream = client().get(gateway.url("/v1/events/stream")).bearer_auth(key).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    ends(stream).await;
}

#[tokio::test]
async fn a_stream_of_events_ends_with_its_tenants_key_row() {
    let gateway = TestGateway::start().await;
    let key = gateway.key_of("two", "messages:read");
    let stream = client().get(gateway.url("/v1/events/stream")).bearer_auth(&key).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    gateway
        .db
        .sql("delete from api_key using tenant where tenant.id = api_key.tenant_id and tenant.name = 'two'")
        .await;
    ends(stream).await;
}

async fn headers(gateway: &TestGateway, path: &str) -> HeaderMap {
    client().get(gateway.url(path)).send().await.unwrap().headers().clone()
}

#[tokio::test]
async fn answers_tell_browsers_to_keep_frame_and_guess_nothing() {
    let gateway = with_http(&[("ANGARIUM_HTTP__PUBLIC_URL", "https://gateway.example.org")]).await;
    for path in ["/v1/messages", "/livez", "/openapi.json", "/docs/", "/nowhere", "/v1/callbacks/nobody"] {
        let headers = headers(&gateway, path).await;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["x-frame-options"], "DENY", "{path}");
        assert_eq!(headers["strict-transport-security"], "max-age=31536000", "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}");
        let is_kept = path.starts_with("/docs");
        assert_eq!(headers.get("cache-control").is_none_or(|it| it != "no-store"), is_kept, "{path}");
        assert!(headers.get("access-control-allow-origin").is_none(), "{path}");
    }
    let plain = TestGateway::start().await;
    assert!(headers(&plain, "/livez").await.get("strict-transport-security").is_none());
}

#[tokio::test]
async fn only_configured_origins_may_call_from_a_browser() {
    let console = "https://console.example.org";
    let gateway = with_http(&[("ANGARIUM_HTTP__CORS_ORIGINS", console)]).await;
    let asked = |method: Method, path: &str, origin: &'static str| {
        let request = client().request(method, gateway.url(path)).header("origin", origin);
        async move { request.header("access-control-request-method", "POST").send().await.unwrap() }
    };
    let preflight = asked(Method::OPTIONS, "/v1/messages", console).await;
    assert_eq!(preflight.status(), 204);
    let headers = preflight.headers();
    assert_eq!(headers["access-control-allow-origin"], console);
    assert_eq!(headers["vary"], "origin");
    assert!(headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    assert!(headers.get("access-control-allow-credentials").is_none());
    let refused = asked(Method::GET, "/v1/messages", console).await;
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["access-control-allow-origin"], console, "a page may read why");
    assert!(refused.headers()["access-control-expose-headers"].to_str().unwrap().contains("idempotency-replayed"));
    for (method, path, origin) in [
        (Method::OPTIONS, "/v1/messages", "https://console.example.org.evil.example"),
        (Method::OPTIONS, "/v1/messages", "http://console.example.org"),
        (Method::OPTIONS, "/v1/messages", "null"),
        (Method::GET, "/v1/messages", "https://evil.example"),
        (Method::OPTIONS, "/v1/callbacks/x", console),
        (Method::GET, "/metrics", console),
    ] {
        let answer = asked(method.clone(), path, origin).await;
        assert_ne!(answer.status(), 204, "{method} {path} {origin}");
        assert!(answer.headers().get("access-control-allow-origin").is_none(), "{method} {path} {origin}");
    }
}
