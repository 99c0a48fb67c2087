//! One keep-alive connection.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{LONGEST_HEAD, head_end, header};

/// A keep-alive connection to one server, one request at a time.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    address: SocketAddr,
    buffer: Vec<u8>,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
    head: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

impl Client {
    /// Connects, without delaying small packets.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("could not connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address, buffer: Vec::with_capacity(4096) })
    }

    /// Sends a request and reads its answer.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        let bytes = request_bytes(method, path, self.address, headers, body);
        let (head, end, length) = self.exchange(&bytes).await?;
        let response = Response {
            status: status(&self.buffer)?,
            head: self.buffer[..head].to_vec(),
            body: self.buffer[head..head + length].to_vec(),
        };
        self.buffer.drain(..end);
        Ok(response)
    }

    /// Sends a request that was written beforehand and returns the status alone: the load generator's way.
    pub async fn send(&mut self, request: &[u8]) -> Result<u16> {
        let (_, end, _) = self.exchange(request).await?;
        let status = status(&self.buffer)?;
        self.buffer.drain(..end);
        Ok(status)
    }

    /// Returns the end of the head, the end of the answer, and the body's length.
    async fn exchange(&mut self, request: &[u8]) -> Result<(usize, usize, usize)> {
        self.stream.write_all(request).await?;
        let head = loop {
            if let Some(end) = head_end(&self.buffer) {
                break end;
            }
            if self.buffer.len() > LONGEST_HEAD {
                bail!("an answer's head is longer than {LONGEST_HEAD} bytes");
            }
            self.read().await?;
        };
        let length = body_length(&self.buffer[..head])?;
        while self.buffer.len() < head + length {
            self.read().await?;
        }
        Ok((head, head + length, length))
    }

    async fn read(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the server at {} closed the connection", self.address);
        }
        Ok(())
    }
}

/// A whole request as it goes over the wire.
pub(super) fn request_bytes(
    method: &str,
    path: &str,
    host: SocketAddr,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

impl Client {
    /// A request for [`Client::send`].
    pub fn prepare(method: &str, path: &str, host: SocketAddr, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        request_bytes(method, path, host, headers, body)
    }
}

fn status(answer: &[u8]) -> Result<u16> {
    let digits = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).context("that was no HTTP/1.1 answer")
}

fn body_length(head: &[u8]) -> Result<usize> {
    if let Some(length) = header(head, "content-length") {
        return length.parse().context("an answer's content-length is no number");
    }
    if header(head, "transfer-encoding").is_some() {
        bail!("a chunked answer, which this client doesn't read");
    }
    Ok(0)
}
