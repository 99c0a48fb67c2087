//! A client's stream whose bytes are held against the strict form of HTTP/1 before hyper reads them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    sockets::Socket,
    strict::{Refusal, Strict},
};

/// What a client sends first that speaks HTTP/2 without having asked (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The stream.
#[derive(Debug)]
pub struct CheckedStream {
    stream: TcpStream,
    socket: Arc<Socket>,
    /// What was read to tell the versions apart, and is not handed on yet.
    first: Vec<u8>,
    /// `None` for HTTP/2, which has frames.
    strict: Option<Strict>,
    refusal: Option<Refusal>,
    /// A handler has the request whose body was refused: its answer says so.
    is_refusal_answered: bool,
}

impl CheckedStream {
    pub fn new(stream: TcpStream, socket: Arc<Socket>) -> Self {
        Self {
            stream,
            socket,
            first: Vec::new(),
            strict: Some(Strict::new()),
            refusal: None,
            is_refusal_answered: false,
        }
    }

    /// Reads until it is sure whether the client speaks HTTP/2.
    ///
    /// # Errors
    /// When the stream fails or ends.
    pub async fn begins_http2(&mut self) -> io::Result<bool> {
        let mut part = [0; PREFACE.len()];
        while self.first.len() < PREFACE.len() {
            let read = self.stream.read(&mut part[self.first.len()..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let from = self.first.len();
            self.first.extend_from_slice(&part[from..from + read]);
            self.socket.set_in_head(true);
            if !PREFACE.starts_with(&self.first) {
                return Ok(false);
            }
        }
        self.strict = None;
        self.socket.set_in_head(false);
        Ok(true)
    }

    /// Why nothing more is read of it, where no handler answers for it.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal.filter(|_| !self.is_refusal_answered)
    }

    /// Whether the client may have more to say.
    pub fn is_unread(&self) -> bool {
        self.refusal.is_some() || self.strict.as_ref().is_some_and(Strict::is_in_body)
    }

    /// The bare stream, once hyper is done with it.
    pub fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn check(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(strict) = &mut self.strict else { return Ok(()) };
        let is_handled = strict.is_in_body();
        let fed = strict.feed(bytes);
        self.socket.set_in_head(strict.is_in_head());
        fed.map_err(|refusal| {
            self.refusal = Some(refusal);
            self.is_refusal_answered = is_handled;
            io::Error::new(io::ErrorKind::InvalidData, refusal)
        })
    }
}

impl AsyncRead for CheckedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(refusal) = self.refusal {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal)));
        }
        let before = buf.filled().len();
        if self.first.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            let taken = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..taken]);
            self.first.drain(..taken);
        }
        let checked = self.check(&buf.filled()[before..]);
        if checked.is_err() {
            buf.set_filled(before);
        }
        if self.first.is_empty() {
            self.first = Vec::new();
        }
        Poll::Ready(checked)
    }
}

impl AsyncWrite for CheckedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
