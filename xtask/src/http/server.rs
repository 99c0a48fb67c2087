//! A receiver on a free loopback port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{LONGEST_HEAD, head_end, header};

const LARGEST_BODY: usize = 32 * 1024 * 1024;

/// A request that arrived.
#[derive(Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    /// With its query.
    pub path: &'a str,
    pub body: &'a [u8],
    head: &'a [u8],
}

impl Request<'_> {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.head, name)
    }
}

/// The answer, and its delay.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: String,
    body: Vec<u8>,
    delay: Duration,
}

impl Reply {
    /// An answer of that status and body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: String::new(), body: body.into(), delay: Duration::ZERO }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Holds the answer back, without holding up other connections.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn write_to(&self, bytes: &mut Vec<u8>) {
        if self.status == 204 && self.headers.is_empty() {
            bytes.extend_from_slice(b"HTTP/1.1 204 \r\n\r\n");
            return;
        }
        let head = format!("HTTP/1.1 {} \r\n{}content-length: {}\r\n\r\n", self.status, self.headers, self.body.len());
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(&self.body);
    }
}

/// A listening receiver; dropping it stops listening and closes all connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Listens on a free loopback port and answers every request by `handler`.
    pub async fn start<H>(handler: H) -> Result<Self>
    where
        H: Fn(&Request<'_>) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, Arc::new(handler)));
        Ok(Self { address, accepting })
    }

    /// Returns its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL, with that path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept<H>(listener: TcpListener, handler: Arc<H>)
where
    H: Fn(&Request<'_>) -> Reply + Send + Sync + 'static,
{
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    let _ = serve(stream, handler.as_ref()).await;
                });
            }
            // Out of file handles, mostly: the connections that end meanwhile free some.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<H>(mut stream: TcpStream, handler: &H) -> Result<()>
where
    H: Fn(&Request<'_>) -> Reply,
{
    stream.set_nodelay(true)?;
    let mut input = Vec::with_capacity(4096);
    let mut output = Vec::with_capacity(512);
    loop {
        let Some(frame) = Frame::find(&input)? else {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let closing = frame.closes(&input);
        let reply = handler(&frame.request(&input)?);
        if !reply.delay.is_zero() {
            tokio::time::sleep(reply.delay).await;
        }
        output.clear();
        reply.write_to(&mut output);
        stream.write_all(&output).await?;
        input.drain(..frame.end);
        if closing {
            return Ok(());
        }
    }
}

/// A complete request at the beginning of a buffer.
struct Frame {
    head: usize,
    end: usize,
}

impl Frame {
    fn find(input: &[u8]) -> Result<Option<Self>> {
        let Some(head) = head_end(input) else {
            anyhow::ensure!(input.len() <= LONGEST_HEAD, "a head is too long");
            return Ok(None);
        };
        anyhow::ensure!(header(&input[..head], "transfer-encoding").is_none(), "chunked requests are not read");
        let length: usize = header(&input[..head], "content-length").map_or(Ok(0), str::parse)?;
        anyhow::ensure!(length <= LARGEST_BODY, "a body is too large");
        let end = head + length;
        Ok((input.len() >= end).then_some(Self { head, end }))
    }

    fn closes(&self, input: &[u8]) -> bool {
        header(&input[..self.head], "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    fn request<'a>(&self, input: &'a [u8]) -> Result<Request<'a>> {
        let head = &input[..self.head];
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let mut words = std::str::from_utf8(line)?.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Ok(Request { method, path, head, body: &input[self.head..self.end] })
    }
}
