//! Requests as they arrive, with every kind of credential.

use angarium_domain::transmission::{Encoding, KeyFormat, Kv, Reply, Segment, Signature, SignatureAlgorithm};

use super::{Auth, CANARY, Sender, Transmission, answering, ok, post};

/// Returns the server's view of one request.
async fn arrived(sender: &Sender, auth: Vec<Auth>) -> String {
    let (address, mut requests) = answering(|_| ok("")).await;
    sender.post(&format!("http://{address}/in?a=b"), auth).await.unwrap();
    requests.recv().await.unwrap()
}

fn name(text: &str) -> String {
    text.to_owned()
}

#[tokio::test]
async fn a_request_arrives_and_its_answer_returns() {
    let (address, mut requests) = answering(|_| ok("thanks")).await;
    let reply = Sender::new().post(&format!("http://{address}/in"), vec![]).await.unwrap();
    let Reply::Http { status, headers, body, .. } = reply else { panic!("{reply:?}") };
    assert_eq!((status, body.as_ref()), (200, b"thanks".as_slice()));
    assert!(headers.contains(&Kv { name: name("x-answer"), value: name("Yes") }));
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("POST /in HTTP/1.1\r\n") && request.ends_with("\r\n\r\n{\"a\":1}"), "{request}");
    assert!(request.contains(&format!("user-agent: angarium/{}\r\n", env!("CARGO_PKG_VERSION"))), "{request}");
    assert!(request.contains("content-length: 7\r\n") && !request.contains("accept-encoding"), "{request}");
}

#[tokio::test]
async fn an_empty_body_has_a_length() {
    let (address, mut requests) = answering(|_| ok("")).await;
    let mut request = post(&format!("http://{address}/"), vec![]);
    request.body.clear();
    Sender::new().send(Transmission::Http(Box::new(request))).await.unwrap();
    let seen = requests.recv().await.unwrap();
    assert_eq!(seen.matches("content-length: 0\r\n").count(), 1, "{seen}");
}

#[tokio::test]
async fn connections_are_reused() {
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = connections.clone();
    let address = super::serve(move |mut stream| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            while super::read_request(&mut stream).await.is_some() {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, ok("x").as_bytes()).await;
            }
        }
    })
    .await;
    let sender = Sender::new();
    for _ in 0..5 {
        sender.post(&format!("http://{address}/"), vec![]).await.unwrap();
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    let address = super::serve(|mut stream| async move {
        super::read_request(&mut stream).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, ok("x").as_bytes()).await;
    })
    .await;
    let sender = Sender::new();
    for _ in 0..3 {
        sender.post(&format!("http://{address}/"), vec![]).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn simple_credentials_arrive() {
    let sender = Sender::new().secret("password", "open sesame");
    let basic = Auth::Basic { user: vec![Segment::Text(name("ali"))], password: name("password") };
    assert!(arrived(&sender, vec![basic]).await.contains("authorization: Basic YWxpOm9wZW4gc2VzYW1l\r\n"));
    let bearer = Auth::Bearer { secret: name("password") };
    assert!(arrived(&sender, vec![bearer]).await.contains("authorization: Bearer open sesame\r\n"));
    let header = Auth::Header { name: name("X-Api-Key"), secret: name("password") };
    assert!(arrived(&sender, vec![header]).await.contains("x-api-key: open sesame\r\n"));
    let query = Auth::Query { name: name("key"), secret: name("password") };
    assert!(arrived(&sender, vec![query]).await.starts_with("POST /in?a=b&key=open+sesame HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_signature_covers_the_body_as_it_leaves() {
    let signature = Signature {
        algorithm: SignatureAlgorithm::HmacSha256,
        key: name("key"),
        key_format: KeyFormat::Raw,
        message: vec![Segment::Text(name("id.")), Segment::Body],
        encoding: Encoding::Hex,
        prefix: name("v1="),
    };
    let auth = Auth::Signatures { header: name("X-Signature"), separator: name(","), signatures: vec![signature] };
    let request = arrived(&Sender::new().secret("key", "k"), vec![auth]).await;
    // printf 'id.{"a":1}' | openssl dgst -sha256 -hmac k
    let expected = "x-signature: v1=fefbdd264d05330075a3d0bd117f4264c2726ffa11d1cc0962ca502d7491a3a8";
    assert!(request.contains(expected), "{request}");
}

#[tokio::test]
async fn aws_requests_are_signed() {
    let sender = Sender::new().secret("id", "AKIDEXAMPLE").secret("key", "secret").secret("session", "token");
    let auth = Auth::AwsSigV4 {
        access_key: name("id"),
        secret_key: name("key"),
        session_token: Some(name("session")),
        region: name("eu-north-1"),
        service: name("ses"),
    };
    let request = arrived(&sender, vec![auth]).await;
    assert!(request.contains("x-amz-date: 20260102T030405Z\r\n"), "{request}");
    assert!(request.contains("x-amz-security-token: token\r\n"), "{request}");
    assert!(
        request.contains("authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/eu-north-1/ses/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, Signature="),
        "{request}"
    );
}

#[tokio::test]
async fn an_echo_does_not_return_the_secret() {
    let (address, mut requests) = answering(ok).await;
    let auth = vec![
        Auth::Basic { user: vec![Segment::Text(name("ali"))], password: name("canary") },
        Auth::Query { name: name("key"), secret: name("canary") },
    ];
    let reply = Sender::new().post(&format!("http://{address}/"), auth).await.unwrap();
    assert!(requests.recv().await.unwrap().contains(CANARY));
    let Reply::Http { body, .. } = reply else { panic!("{reply:?}") };
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(body.contains("key=***") && body.contains("Basic ***\r\n"), "{body}");
}
