//! A client's stream whose bytes are checked against the strict form of HTTP/1 before hyper reads them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    sockets::Socket,
    strict::{Strict, StrictRefusal},
};

/// The stream.
#[derive(Debug)]
pub struct CheckedStream {
    stream: TcpStream,
    socket: Arc<Socket>,
    strict: Strict,
    refusal: Option<StrictRefusal>,
    /// A handler has the request whose body was refused: its answer reports it.
    is_refusal_answered: bool,
}

impl CheckedStream {
    pub fn new(stream: TcpStream, socket: Arc<Socket>) -> Self {
        Self { stream, socket, strict: Strict::new(), refusal: None, is_refusal_answered: false }
    }

    /// Waits for the first byte; `false` if the stream ends or fails before.
    pub async fn begins(&mut self) -> bool {
        // This waits for readiness alone: hyper's reads take and check the bytes.
        let mut first = [0];
        let begins = matches!(self.stream.peek(&mut first).await, Ok(1));
        self.socket.set_in_head(begins);
        begins
    }

    /// Returns the reason for which nothing more is read of it, if no handler answers for it.
    pub fn refusal(&self) -> Option<StrictRefusal> {
        self.refusal.filter(|_| !self.is_refusal_answered)
    }

    /// Whether the client may have more to say.
    pub fn is_unread(&self) -> bool {
        self.refusal.is_some() || self.strict.is_in_body()
    }

    /// The bare stream, once hyper is done with it.
    pub fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn check(&mut self, bytes: &[u8]) -> io::Result<()> {
        let is_handled = self.strict.is_in_body();
        let fed = self.strict.feed(bytes);
        self.socket.set_in_head(self.strict.is_in_head());
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
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let checked = self.check(&buf.filled()[before..]);
        if checked.is_err() {
            buf.set_filled(before);
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
