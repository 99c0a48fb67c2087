//! Servers that do not behave: each ends as the fault that it is, and says whether the request
//! may have been taken.

use std::{net::IpAddr, time::Duration};

use angarium_domain::transmission::{FaultKind, Kv};
use angarium_transport::{
    Egress, Transport,
    egress::{NameLookup, Resolver},
};
use tokio::{io::AsyncWriteExt, net::TcpListener};

use super::{Auth, Reply, Segment, Sender, Transmission, answering, ok, post, read_request, serve, settings};

const MIB: usize = 1 << 20;
const BRIEF: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_byte_at_a_time_hits_the_deadline() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Pad: ").await;
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

/// Expects a 200 whose body was cut after this length, and the reason.
fn cut_after(reply: Reply, length: usize, why: &str) {
    let Reply::Http { status: 200, body, cut: Some(cut), .. } = reply else { panic!("{reply:?}") };
    assert_eq!(body.len(), length, "{cut}");
    assert!(cut.contains(&format!("cut after {length} bytes")) && cut.contains(why), "{cut}");
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
    let reply = Sender::new().post(&format!("http://{address}/"), vec![]).await.unwrap();
    cut_after(reply, MIB, "at most 1048576 bytes");
}

#[tokio::test]
async fn a_body_of_exactly_the_cap_is_whole_and_one_byte_more_is_cut() {
    for (length, is_cut) in [(MIB, false), (MIB + 1, true)] {
        let (address, _requests) = answering(move |_| ok(&"x".repeat(length))).await;
        let reply = Sender::new().post(&format!("http://{address}/"), vec![]).await.unwrap();
        let Reply::Http { body, cut, .. } = reply else { panic!("{reply:?}") };
        assert_eq!((body.len(), cut.is_some()), (MIB, is_cut), "{cut:?}");
    }
}

#[tokio::test]
async fn a_body_that_announces_more_than_comes_is_cut_at_the_deadline() {
    let (address, _requests) =
        answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nabc".to_owned()).await;
    let reply = Sender::new().within(BRIEF).post(&format!("http://{address}/"), vec![]).await.unwrap();
    cut_after(reply, 3, "before the deadline");
}

#[tokio::test]
async fn a_chunk_that_is_none_is_where_the_body_is_cut() {
    let (address, _requests) =
        answering(|_| "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n".to_owned()).await;
    let reply = Sender::new().post(&format!("http://{address}/"), vec![]).await.unwrap();
    cut_after(reply, 3, "chunk");
}

#[tokio::test]
async fn many_headers_are_read_and_too_many_are_no_answer() {
    let answer = |count: usize| {
        let headers: String = (0..count).map(|n| format!("X-{n}: v\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: 0\r\n\r\n")
    };
    let (address, _requests) = answering(move |_| answer(999)).await;
    let reply = Sender::new().post(&format!("http://{address}/"), vec![]).await.unwrap();
    assert!(matches!(&reply, Reply::Http { status: 200, headers, cut: None, .. } if headers.len() == 1_000));
    let (address, _requests) = answering(move |_| answer(1_000)).await;
    assert_eq!(Sender::new().fault(&format!("http://{address}/")).await, (FaultKind::UnreadableAnswer, true));
}

/// Heads that servers in the field write, though RFC 9112 does not allow all of them.
#[tokio::test]
async fn an_odd_head_is_read_by_its_status() {
    for (name, answer) in [
        ("no reason", "HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx"),
        ("an empty reason", "HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx"),
        ("bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 1\n\nx"),
        ("a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\nx"),
        ("a folded header", "HTTP/1.1 200 OK\r\nX-Long: a\r\n b\r\nContent-Length: 1\r\n\r\nx"),
        ("a line that is no header", "HTTP/1.1 200 OK\r\nnot a header\r\nContent-Length: 1\r\n\r\nx"),
        ("Latin-1", "HTTP/1.1 200 OK\r\nX-Name: M\u{fc}ller\r\nContent-Length: 1\r\n\r\nx"),
        ("the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
        ("hints first", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"),
        ("leave to go on first", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"),
        ("trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n"),
        ("a chunk's extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n"),
    ] {
        let (address, _requests) = answering(move |_| answer.to_owned()).await;
        let reply = Sender::new().within(BRIEF).post(&format!("http://{address}/"), vec![]).await;
        let reply = reply.unwrap_or_else(|fault| panic!("{name}: {fault:?}"));
        let Reply::Http { status: 200, body, cut: None, .. } = &reply else { panic!("{name}: {reply:?}") };
        assert_eq!(body.as_ref(), b"x", "{name}");
    }
}

#[tokio::test]
async fn interim_answers_without_end_are_not_read_on() {
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let address = serve(move |mut stream| {
        let ended = ended.clone();
        async move {
            read_request(&mut stream).await;
            let many = "HTTP/1.1 102 Processing\r\nLink: a\r\n\r\n".repeat(1_000);
            while stream.write_all(many.as_bytes()).await.is_ok() {}
            let _ = ended.send(());
        }
    })
    .await;
    // Nothing but the limit ends it.
    let sender = Sender::new().within(Duration::from_secs(3_600));
    let (kind, may_have_left) = sender.fault(&format!("http://{address}/")).await;
    assert!(may_have_left && kind != FaultKind::Timeout, "{kind:?}");
    end.recv().await.unwrap();
}

/// Servers whose connection ends with the body, and servers that send too much.
#[tokio::test]
async fn where_a_body_ends_is_no_reason_to_doubt_its_status() {
    for (name, answer, status) in [
        ("HTTP/1.0 until it closes", "HTTP/1.0 200 OK\r\n\r\nx", 200),
        ("until it closes", "HTTP/1.1 200 OK\r\n\r\nx", 200),
        ("a body with 204", "HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\nx", 204),
        ("more than it announced", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxyz", 200),
        ("a status of its own", "HTTP/1.1 599 Whatever\r\nContent-Length: 0\r\n\r\n", 599),
    ] {
        let address = serve(move |mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await;
        let reply = Sender::new().within(BRIEF).post(&format!("http://{address}/"), vec![]).await;
        assert_eq!(reply.map(|reply| reply.status()), Ok(status), "{name}");
    }
}

/// Bytes beyond an answer must not be read as the next one's.
#[tokio::test]
async fn what_is_said_beyond_an_answer_is_nobodys() {
    let (address, _requests) = answering(|_| {
        "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()
    })
    .await;
    let sender = Sender::new();
    for _ in 0..5 {
        let reply = sender.post(&format!("http://{address}/"), vec![]).await;
        assert!(reply.as_ref().map_or(true, |reply| reply.status() == 500), "{reply:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The server that has seen enough answers before it has read all.
#[tokio::test]
async fn an_answer_before_the_request_was_read_decides() {
    let address = serve(|mut stream| async move {
        let mut head = [0; 64];
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
        let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        // It goes on reading for a while, as RFC 9112 (9.6) asks for.
        let mut rest = vec![0; 1 << 16];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut rest).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let mut request = post(&format!("http://{address}/"), vec![]);
    request.body = vec![Segment::Text("x".repeat(8 * MIB))];
    let reply = Sender::new().send(Transmission::Http(Box::new(request))).await.unwrap();
    assert_eq!(reply.status(), 413);
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
async fn a_reset_in_the_body_leaves_the_status() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await;
    })
    .await;
    let reply = Sender::new().post(&format!("http://{address}/"), vec![]).await.unwrap();
    cut_after(reply, 3, "end of file");
}

#[tokio::test]
async fn a_reset_in_the_head_is_unknown() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await;
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

/// Answers the test's addresses for any name.
enum Names {
    Are(&'static str),
    Fail,
    Hang,
}

impl Resolver for Names {
    fn lookup(&self, _: &str) -> NameLookup {
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
async fn an_address_that_refuses_leaves_the_next() {
    let (address, mut requests) = answering(|_| ok("")).await;
    let url = format!("http://some.example:{}", address.port());
    resolving(Names::Are("::1 127.0.0.1")).post(&url, vec![]).await.unwrap();
    assert!(requests.recv().await.unwrap().starts_with("POST / HTTP/1.1\r\n"), "a URL without a path has one");
}

#[tokio::test]
async fn an_international_name_is_asked_for_as_the_dns_has_it() {
    let (address, mut requests) = answering(|_| ok("")).await;
    let url = format!("http://b\u{fc}cher.example:{}/", address.port());
    assert!(resolving(Names::Are("127.0.0.1")).post(&url, vec![]).await.is_ok());
    assert!(requests.recv().await.unwrap().contains("host: xn--bcher-kva.example:"));
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
    let closed = Sender::with(angarium_transport::TransportSettings::default());
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
