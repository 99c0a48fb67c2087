//! HTTP/2 over TLS, with a server that is written by hand: it refuses unprocessed requests, goes away, or falls silent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use angarium_domain::transmission::FaultKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::{
    Sender, Transmission, ok, post, read_request, serve,
    tls::{acceptor_for, trusting},
};
use crate::support::authority::Authority;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const HTTP_1_1_REQUIRED: u32 = 13;
const NO_ERROR: u32 = 0;

/// The server's reaction to a complete request.
#[derive(Debug, Clone, Copy)]
enum Act {
    Answer,
    /// A head, half of the body that it announces, and an error.
    HalfAnAnswer,
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with the last processed stream: this one, or the one before it. Then it closes.
    GoAway {
        processed: bool,
    },
    /// It reads on and sends nothing any more, not even to a PING.
    FallSilent,
}

struct Server {
    url: String,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    sender: Sender,
}

impl Server {
    /// Starts a server that acts in this order, on any connection, and answers from then on.
    async fn acting(acts: &'static [Act]) -> Self {
        let authority = Authority::new();
        let acceptor = acceptor_for(&authority, &[b"h2", b"http/1.1"]);
        let (connections, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counts = (Arc::clone(&connections), Arc::clone(&requests));
        let address = serve(move |stream| {
            let (acceptor, (connections, requests)) = (acceptor.clone(), counts.clone());
            async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                let http1 = stream.get_ref().1.alpn_protocol() == Some(b"http/1.1");
                let next = move || acts.get(requests.fetch_add(1, Ordering::SeqCst)).copied().unwrap_or(Act::Answer);
                let _ = if http1 { converse_http1(stream, next).await } else { converse(stream, next).await };
            }
        })
        .await;
        let sender = Sender::with(trusting(&authority));
        Self { url: format!("https://127.0.0.1:{}/", address.port()), connections, requests, sender }
    }

    async fn post(&self) -> Result<u16, (FaultKind, bool)> {
        let reply = self.sender.post(&self.url, vec![]).await;
        reply.map(|reply| reply.status()).map_err(|fault| (fault.kind, fault.may_have_been_sent))
    }

    /// How many connections and requests there were.
    fn seen(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
    }
}

/// Serves one connection until it ends.
async fn converse(mut stream: TlsStream<TcpStream>, next: impl Fn() -> Act) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // A window of 1 MiB for each stream (SETTINGS_INITIAL_WINDOW_SIZE) and for all of them.
    write(&mut stream, SETTINGS, 0, 0, &[0, 4, 0, 0x10, 0, 0]).await?;
    write(&mut stream, WINDOW_UPDATE, 0, 0, &[0, 0x10, 0, 0]).await?;
    loop {
        let (kind, flags, id) = read(&mut stream).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => write(&mut stream, SETTINGS, ACK, 0, &[]).await?,
            PING if flags & ACK == 0 => write(&mut stream, PING, ACK, 0, &[0; 8]).await?,
            HEADERS | DATA if flags & END_STREAM != 0 => match next() {
                // `:status: 200` of HPACK's static table.
                Act::Answer => write(&mut stream, HEADERS, END_HEADERS | END_STREAM, id, &[0x88]).await?,
                Act::HalfAnAnswer => {
                    write(&mut stream, HEADERS, END_HEADERS, id, &[0x88]).await?;
                    write(&mut stream, DATA, 0, id, b"half").await?;
                    write(&mut stream, RST_STREAM, 0, id, &INTERNAL_ERROR.to_be_bytes()).await?;
                }
                Act::Reset(code) => write(&mut stream, RST_STREAM, 0, id, &code.to_be_bytes()).await?,
                Act::GoAway { processed } => {
                    let last = if processed { id } else { id.saturating_sub(2) };
                    let payload = [last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat();
                    write(&mut stream, GOAWAY, 0, 0, &payload).await?;
                    return stream.shutdown().await;
                }
                Act::FallSilent => loop {
                    read(&mut stream).await?;
                },
            },
            _ => {}
        }
    }
}

/// The same for one that speaks HTTP/1.1, which only answers.
async fn converse_http1(mut stream: TlsStream<TcpStream>, next: impl Fn() -> Act) -> std::io::Result<()> {
    while read_request(&mut stream).await.is_some() {
        next();
        stream.write_all(ok("").as_bytes()).await?;
        stream.flush().await?;
    }
    Ok(())
}

/// The kind, the flags and the stream of the next frame.
async fn read(stream: &mut TlsStream<TcpStream>) -> std::io::Result<(u8, u8, u32)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await?;
    Ok((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]])))
}

async fn write(stream: &mut TlsStream<TcpStream>, kind: u8, flags: u8, id: u32, payload: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &id.to_be_bytes()].concat();
    stream.write_all(&[&head, payload].concat()).await?;
    stream.flush().await
}

#[tokio::test]
async fn requests_share_a_connection() {
    let server = Server::acting(&[]).await;
    for _ in 0..3 {
        assert_eq!(server.post().await, Ok(200));
    }
    assert_eq!(server.seen(), (1, 3));
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_at_once_on_a_new_connection() {
    let server = Server::acting(&[Act::Answer, Act::Reset(REFUSED_STREAM)]).await;
    assert_eq!(server.post().await, Ok(200));
    assert_eq!(server.post().await, Ok(200), "not processed, so it is nobody's second");
    assert_eq!(server.seen(), (2, 3));
}

#[tokio::test]
async fn a_stream_beyond_the_last_of_a_goaway_is_sent_again_at_once_on_a_new_connection() {
    let server = Server::acting(&[Act::Answer, Act::GoAway { processed: false }]).await;
    assert_eq!(server.post().await, Ok(200));
    assert_eq!(server.post().await, Ok(200));
    assert_eq!(server.seen(), (2, 3));
}

/// Servers that ask for a client's certificate by renegotiation, or for NTLM, take HTTP/1.1 alone for it.
#[tokio::test]
async fn who_requires_http_1_1_is_spoken_to_by_it() {
    let server = Server::acting(&[Act::Reset(HTTP_1_1_REQUIRED)]).await;
    for _ in 0..3 {
        assert_eq!(server.post().await, Ok(200));
    }
    assert_eq!(server.seen(), (2, 4), "it is asked once");
}

#[tokio::test]
async fn who_refuses_again_was_sent_nothing() {
    let server = Server::acting(&[Act::Reset(REFUSED_STREAM); 10]).await;
    assert_eq!(server.post().await, Err((FaultKind::Reset, false)));
    assert_eq!(server.seen(), (2, 2));
    let server = Server::acting(&[Act::GoAway { processed: false }; 10]).await;
    assert_eq!(server.post().await, Err((FaultKind::Reset, false)));
    assert_eq!(server.seen(), (2, 2));
}

#[tokio::test]
async fn what_may_have_been_processed_is_not_sent_again() {
    for act in [&[Act::Reset(INTERNAL_ERROR)], &[Act::GoAway { processed: true }]] {
        let server = Server::acting(act).await;
        let fault = server.post().await.unwrap_err();
        assert!(fault.1, "{act:?}: {fault:?}");
        assert_eq!(server.seen(), (1, 1), "{act:?}");
        assert_eq!(server.post().await, Ok(200), "{act:?}: and the next goes on");
    }
}

#[tokio::test]
async fn a_long_body_that_is_refused_is_not_kept_for_another_try() {
    let server = Server::acting(&[Act::Reset(REFUSED_STREAM)]).await;
    let mut request = post(&server.url, vec![]);
    request.body = vec![super::Segment::Text("x".repeat(65 * 1024))];
    let fault = server.sender.send(Transmission::Http(Box::new(request))).await.unwrap_err();
    assert_eq!((fault.kind, fault.may_have_been_sent), (FaultKind::Reset, false));
}

#[tokio::test]
async fn half_an_answer_is_read_by_its_status() {
    let server = Server::acting(&[Act::HalfAnAnswer]).await;
    let reply = server.sender.post(&server.url, vec![]).await.unwrap();
    assert!(reply.status() == 200 && reply.cut().is_some(), "{reply:?}");
    assert_eq!(server.post().await, Ok(200));
    assert_eq!(server.seen(), (1, 2), "the connection is sound");
}

/// A path that is cut off without a word: the system would take it for open for a quarter of an hour.
#[tokio::test]
async fn a_connection_that_fell_silent_does_not_swallow_what_comes_after() {
    let server = Server::acting(&[Act::Answer, Act::FallSilent]).await;
    assert_eq!(server.post().await, Ok(200));
    let began = tokio::time::Instant::now();
    let sender = server.sender.within(Duration::from_secs(60));
    let fault = sender.post(&server.url, vec![]).await.unwrap_err();
    assert!(fault.may_have_been_sent && began.elapsed() < Duration::from_secs(50), "{fault:?}");
    assert_eq!(sender.post(&server.url, vec![]).await.unwrap().status(), 200);
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}
