//! As much HTTP/1.1 as a loopback receiver and a load generator need, at a few microseconds a request.
//!
//! Written by hand because the load and the sink share two cores with the measured processes. Not for the network: no
//! TLS, no chunked bodies, and the connection of a misbehaving peer is closed.

mod client;
mod server;

pub use client::{Client, Response};
pub use server::{Reply, Request, Server};

/// A head longer than this is refused.
const LONGEST_HEAD: usize = 64 * 1024;

/// The end of a head, just past its empty line.
fn head_end(buffer: &[u8]) -> Option<usize> {
    memchr::memmem::find(buffer, b"\r\n\r\n").map(|at| at + 4)
}

/// A header's value, trimmed; `head` is a head without its first line, or with it.
fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let name = name.as_bytes();
    let mut rest = head;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        let named =
            line.len() > name.len() && line[name.len()] == b':' && line[..name.len()].eq_ignore_ascii_case(name);
        if named {
            return std::str::from_utf8(&line[name.len() + 1..]).ok().map(str::trim);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn headers_are_found_whatever_their_case() {
        let head = b"POST / HTTP/1.1\r\nContent-length: 12\r\nX: y \r\n\r\n";
        assert_eq!(header(head, "content-length"), Some("12"));
        assert_eq!(header(head, "x"), Some("y"));
        assert_eq!(header(head, "content"), None);
        assert_eq!(head_end(head), Some(head.len()));
    }

    #[tokio::test]
    async fn client_and_server_speak() {
        let server = Server::start(|request: &Request<'_>| {
            let text = format!("{} {} {}", request.method, request.path, request.body.len());
            Reply::new(201, text).header("x-was", request.header("x-is").unwrap_or("missing"))
        })
        .await
        .unwrap();
        let mut client = Client::connect(server.address()).await.unwrap();
        for size in [0, 10, 200_000] {
            let body = vec![b'x'; size];
            let answer = client.request("POST", "/a?b=c", &[("X-Is", "here")], &body).await.unwrap();
            assert_eq!((answer.status, answer.text()), (201, format!("POST /a?b=c {size}")));
            assert_eq!(answer.header("X-Was"), Some("here"));
        }
    }

    #[tokio::test]
    async fn a_reply_may_take_its_time_without_blocking_others() {
        let server = Server::start(|request: &Request<'_>| match request.path {
            "/slow" => Reply::new(200, "").after(Duration::from_secs(30)),
            _ => Reply::new(200, ""),
        })
        .await
        .unwrap();
        let mut slow = Client::connect(server.address()).await.unwrap();
        let mut quick = Client::connect(server.address()).await.unwrap();
        let slow = tokio::spawn(async move { slow.request("GET", "/slow", &[], b"").await });
        assert_eq!(quick.request("GET", "/", &[], b"").await.unwrap().status, 200);
        assert!(!slow.is_finished());
        slow.abort();
    }

    #[tokio::test]
    async fn pipelined_requests_are_answered_in_order() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let server = Server::start(|request: &Request<'_>| Reply::new(200, request.path.to_owned())).await.unwrap();
        let mut stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.find("/1").unwrap() < answer.find("/2").unwrap());
    }
}
