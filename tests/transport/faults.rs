//! Servers that do not behave: each ends as the fault that it is, and says whether the request
//! may have been taken.

use std::{net::IpAddr, time::Duration};

use angarium::{
    domain::transmission::{FaultKind, Kv},
    transport::{
        Egress, Transport,
        egress::{Lookup, Resolver},
    },
};
use tokio::{io::AsyncWriteExt, net::TcpListener};

use super::{Auth, Sender, Transmission, answering, ok, post, read_request, serve, settings};

const BRIEF: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_byte_at_a_time_hits_the_deadline() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let began = std::time::Instant::now();
    let fault = Sender::new().within(BRIEF).fault(&format!("http://{address}/")).await;
    assert_eq!(fault, (FaultKind::Timeout, true));
    assert!(began.elapsed() < BRIEF * 3);
}

#[tokio::test]
async fn a_server_that_says_nothing_may_have_taken_it() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        std::future::pending().await
    })
    .await;
    let sender = Sender::new().within(BRIEF);
    assert_eq!(sender.fault(&format!("http://{address}/")).await, (FaultKind::Timeout, true));
}

#[tokio::test]
async fn the_transmission_may_ask_for_less_time() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        std::future::pending().await
    })
    .await;
    let mut request = post(&format!("http://{address}/"), vec![]);
    request.timeout_ms = Some(100);
    let began = std::time::Instant::now();
    let fault = Sender::new().send(Transmission::Http(Box::new(request))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Timeout);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await;
    assert_eq!(Sender::new().fault(&format!("http://{address}/")).await, (FaultKind::UnreadableAnswer, true));
}

#[tokio::test]
async fn a_body_that_announces_too_much_is_not_read() {
    let (address, _) = answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_owned()).await;
    assert_eq!(Sender::new().fault(&format!("http://{address}/")).await, (FaultKind::UnreadableAnswer, true));
}

#[tokio::test]
async fn endless_headers_are_cut_off() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        let line = format!("X-Pad: {}\r\n", "x".repeat(8000));
        while stream.write_all(line.as_bytes()).await.is_ok() {}
    })
    .await;
    assert_eq!(Sender::new().fault(&format!("http://{address}/")).await, (FaultKind::UnreadableAnswer, true));
}

#[tokio::test]
async fn garbage_is_unreadable() {
    let (address, _) = answering(|_| "220 mail.example ESMTP\r\n\r\n".to_owned()).await;
    assert_eq!(Sender::new().fault(&format!("http://{address}/")).await, (FaultKind::UnreadableAnswer, true));
}

#[tokio::test]
async fn a_reset_in_the_answer_is_unknown() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await;
    })
    .await;
    assert_eq!(Sender::new().fault(&format!("http://{address}/")).await, (FaultKind::Reset, true));
}

#[tokio::test]
async fn a_reset_before_the_answer_is_unknown() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
    })
    .await;
    assert_eq!(Sender::new().fault(&format!("http://{address}/")).await, (FaultKind::Reset, true));
}

#[tokio::test]
async fn a_refused_connection_was_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(Sender::new().fault(&format!("http://{address}/")).await, (FaultKind::Connect, false));
}

/// Answers what the test says for any name.
enum Names {
    Are(&'static str),
    Fail,
    Hang,
}

impl Resolver for Names {
    fn lookup(&self, _: &str) -> Lookup {
        let answer = match self {
            Self::Are(list) => Ok(list.split(' ').map(|text| text.parse::<IpAddr>().unwrap()).collect()),
            Self::Fail => Err("no such name".to_owned()),
            Self::Hang => return Box::pin(std::future::pending()),
        };
        Box::pin(async move { answer })
    }
}

fn resolving(names: Names) -> Sender {
    let egress = Egress::with_resolver(settings().allow, Box::new(names));
    Sender::over(Transport::with_egress(settings(), egress).unwrap())
}

#[tokio::test]
async fn names_are_checked_where_the_client_connects() {
    let (address, mut requests) = answering(|_| ok("")).await;
    let url = format!("http://some.example:{}/", address.port());
    assert!(resolving(Names::Are("127.0.0.1")).post(&url, vec![]).await.is_ok());
    assert!(requests.recv().await.unwrap().contains("host: some.example:"));
    for denied in ["10.0.0.1", "93.184.216.34 169.254.169.254", "::ffff:10.0.0.1", "fd00:ec2::254"] {
        assert_eq!(resolving(Names::Are(denied)).fault(&url).await, (FaultKind::EgressRefused, false), "{denied}");
    }
    assert_eq!(resolving(Names::Fail).fault(&url).await, (FaultKind::Dns, false));
}

#[tokio::test]
async fn a_deadline_while_connecting_was_not_sent() {
    let sender = resolving(Names::Hang).within(BRIEF);
    assert_eq!(sender.fault("http://some.example/").await, (FaultKind::Timeout, false));
}

#[tokio::test]
async fn a_deadline_in_the_past_sends_nothing() {
    let (address, mut requests) = answering(|_| ok("")).await;
    let sender = Sender::new().within(Duration::ZERO);
    assert_eq!(sender.fault(&format!("http://{address}/")).await, (FaultKind::Timeout, false));
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn closed_networks_and_other_hosts_are_refused() {
    let (address, mut requests) = answering(|_| ok("")).await;
    let closed = Sender::with(angarium::transport::TransportSettings::default());
    let fault = closed.post(&format!("http://{address}/"), vec![]).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::EgressRefused);
    assert!(fault.detail.contains("egress.allow"), "{fault}");
    let mut ungranted = Sender::new();
    ungranted.granted.clear();
    assert_eq!(ungranted.fault(&format!("http://{address}/")).await, (FaultKind::EgressRefused, false));
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn a_redirect_is_an_answer() {
    let (target, mut reached) = answering(|_| ok("")).await;
    let (address, _) =
        answering(move |_| format!("HTTP/1.1 302 Found\r\nLocation: http://{target}/\r\nContent-Length: 0\r\n\r\n"))
            .await;
    let reply = Sender::new().post(&format!("http://{address}/"), vec![]).await.unwrap();
    assert_eq!(reply.status(), 302);
    assert!(reached.try_recv().is_err());
}

#[tokio::test]
async fn headers_that_would_smuggle_are_refused() {
    let (address, mut requests) = answering(|_| ok("")).await;
    for (name, value) in [
        ("X-A", "b\r\nX-Evil: c"),
        ("X-A", "b\nX-Evil: c"),
        ("X-A\r\nX-Evil", "c"),
        ("Host", "internal.example"),
        ("Content-Length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "upgrade"),
    ] {
        let mut request = post(&format!("http://{address}/"), vec![]);
        request.headers.push(Kv { name: name.to_owned(), value: value.to_owned() });
        let fault = Sender::new().send(Transmission::Http(Box::new(request))).await.unwrap_err();
        assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::InvalidTransmission, false), "{name}");
    }
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn a_secret_that_would_smuggle_is_refused_and_untold() {
    let sender = Sender::new().secret("bad", "canary-7f3e9a\r\nX-Evil: 1");
    let fault = sender.post("http://127.0.0.1:9/", vec![Auth::Bearer { secret: "bad".to_owned() }]).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::InvalidTransmission);
}
