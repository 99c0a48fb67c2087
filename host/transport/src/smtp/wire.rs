//! The connection to a mail server: commands, data and replies in lock-step, each step within its time. It never sends
//! a command while an unrequested reply is there: matching replies to commands would be a guess.

use std::{io, time::Duration};

use futures_util::FutureExt;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    time::timeout,
};

use super::reply::{NotSmtp, ReplyParser, ServerReply};

/// The most bytes of a command, its end included (RFC 5321, 4.5.3.1.4).
pub(super) const MAX_COMMAND: usize = 512;
/// The bytes of a mail's data that are written at a time: the unit of the time for a block.
const BLOCK: usize = 64 << 10;
/// Replies are short, and many connections wait for one.
const READ_BUFFER: usize = 1 << 10;
/// The time for the rest of a reply that has begun.
const REST_OF_REPLY: Duration = Duration::from_secs(5);

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An open connection to a mail server.
pub(super) struct SmtpWire {
    stream: BufReader<Box<dyn Stream>>,
    is_secure: bool,
}

/// Why a step of the conversation has no reply of its own.
#[derive(Debug)]
pub(super) enum Broken {
    Io(io::Error),
    /// The server closed the connection.
    Closed,
    /// The server took longer than this.
    Late(Duration),
    NotSmtp,
    /// A reply came before it was asked for.
    OutOfStep(ServerReply),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl SmtpWire {
    pub(super) fn plain(stream: impl Stream + 'static) -> Self {
        Self { stream: BufReader::with_capacity(READ_BUFFER, Box::new(stream)), is_secure: false }
    }

    /// Over TLS.
    pub(super) fn secure(stream: impl Stream + 'static) -> Self {
        Self { is_secure: true, ..Self::plain(stream) }
    }

    pub(super) const fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// Returns the stream itself. Bytes that were read and not requested are lost.
    pub(super) fn into_stream(self) -> Box<dyn Stream> {
        self.stream.into_inner()
    }

    /// Sends a command, and answers its reply.
    pub(super) async fn command(&mut self, command: &str, within: Duration) -> Result<ServerReply, Broken> {
        self.in_step().await?;
        timeout(within, self.send(command)).await.map_err(|_| Broken::Late(within))??;
        self.reply(within).await
    }

    /// Writes a mail's data, each block within this time, as long as the server says nothing. Its lines end in CRLF; those
    /// that begin with a dot get another one (RFC 5321, 4.5.2).
    pub(super) async fn data(&mut self, data: &[u8], within: Duration) -> Result<(), Broken> {
        for piece in between_dots(data) {
            if piece.starts_with(b".") {
                self.block(b".", within).await?;
            }
            for block in piece.chunks(BLOCK) {
                self.block(block, within).await?;
            }
        }
        timeout(within, self.stream.flush()).await.map_err(|_| Broken::Late(within))??;
        self.in_step().await
    }

    /// Sends the line that ends a mail's data, and answers the reply that decides. The data was written a moment ago, and
    /// nothing was said to it.
    pub(super) async fn end_of_data(&mut self, within: Duration) -> Result<ServerReply, Broken> {
        timeout(within, self.send(".")).await.map_err(|_| Broken::Late(within))??;
        self.reply(within).await
    }

    /// Fails if the server sent something unrequested, or hung up. It does not wait.
    pub(super) async fn in_step(&mut self) -> Result<(), Broken> {
        match self.stream.fill_buf().now_or_never().map(|read| read.map(<[u8]>::len)) {
            None => Ok(()),
            Some(Ok(0)) => Err(Broken::Closed),
            Some(Ok(_)) => Err(Broken::OutOfStep(self.reply(REST_OF_REPLY).await?)),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Reads the last reply of a server that takes no more data: it may hang up before the end.
    pub(super) async fn last_words(&mut self) -> Option<ServerReply> {
        self.reply(REST_OF_REPLY).await.ok()
    }

    /// Reads a reply. Of one that breaks off, the code decides if it came.
    pub(super) async fn reply(&mut self, within: Duration) -> Result<ServerReply, Broken> {
        let mut parser = ReplyParser::default();
        let why = match timeout(within, self.read_into(&mut parser)).await {
            Ok(Ok(())) => Broken::NotSmtp,
            Ok(Err(Broken::NotSmtp)) => return Err(Broken::NotSmtp),
            Ok(Err(why)) => why,
            Err(_) => Broken::Late(within),
        };
        parser.finish().ok_or(why)
    }

    async fn read_into(&mut self, parser: &mut ReplyParser) -> Result<(), Broken> {
        loop {
            let bytes = self.stream.fill_buf().await?;
            if bytes.is_empty() {
                return Err(Broken::Closed);
            }
            let (taken, has_ended) = parser.feed(bytes).map_err(|NotSmtp| Broken::NotSmtp)?;
            self.stream.consume(taken);
            if has_ended {
                return Ok(());
            }
        }
    }

    async fn send(&mut self, command: &str) -> io::Result<()> {
        self.stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        self.stream.flush().await
    }

    async fn block(&mut self, block: &[u8], within: Duration) -> Result<(), Broken> {
        self.in_step().await?;
        Ok(timeout(within, self.stream.write_all(block)).await.map_err(|_| Broken::Late(within))??)
    }
}

/// Returns the data in pieces, of which each but the first begins with a dot that begins a line.
fn between_dots(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let data = rest?;
        let (piece, more) = match memchr::memmem::find(data, b"\r\n.") {
            Some(at) => (&data[..at + 2], Some(&data[at + 2..])),
            None => (data, None),
        };
        rest = more;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn dots_that_begin_a_line_are_doubled() {
        for (data, sent) in [
            ("a\r\nb.\r\n", "a\r\nb.\r\n"),
            (".a\r\n.\r\n..b\r\n", "..a\r\n..\r\n...b\r\n"),
            ("\r\n.\r\n.", "\r\n..\r\n.."),
            ("", ""),
        ] {
            let (ours, mut theirs) = duplex(1024);
            let mut wire = SmtpWire::plain(ours);
            assert!(wire.data(data.as_bytes(), SECOND).await.is_ok());
            drop(wire);
            let mut seen = String::new();
            theirs.read_to_string(&mut seen).await.unwrap();
            assert_eq!(seen, sent);
        }
    }

    #[tokio::test]
    async fn blocks_end_anywhere() {
        for length in [BLOCK - 3, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK] {
            let data = format!("{}\r\n.b\r\n", "a".repeat(length - 2));
            let (ours, mut theirs) = duplex(8 * BLOCK);
            let mut wire = SmtpWire::plain(ours);
            assert!(wire.data(data.as_bytes(), SECOND).await.is_ok());
            drop(wire);
            let mut seen = String::new();
            theirs.read_to_string(&mut seen).await.unwrap();
            assert!(seen == data.replace("\n.", "\n.."), "{length}");
        }
    }

    #[tokio::test]
    async fn a_reply_that_nobody_asked_for_stops_the_next_command() {
        let (ours, mut theirs) = duplex(1024);
        let mut wire = SmtpWire::plain(ours);
        theirs.write_all(b"250 one\r\n250 two\r\n").await.unwrap();
        assert_eq!(wire.reply(SECOND).await.unwrap().text, "one");
        let broken = wire.command("DATA", SECOND).await.unwrap_err();
        assert!(matches!(&broken, Broken::OutOfStep(reply) if reply.text == "two"), "{broken:?}");
        assert!(theirs.read(&mut [0; 16]).now_or_never().is_none(), "nothing was sent");
    }

    #[tokio::test]
    async fn a_closed_connection_is_found_before_a_command() {
        let (ours, theirs) = duplex(1024);
        let mut wire = SmtpWire::plain(ours);
        assert!(wire.in_step().await.is_ok());
        drop(theirs);
        assert!(matches!(wire.command("NOOP", SECOND).await, Err(Broken::Closed)));
    }

    #[tokio::test]
    async fn a_reply_that_breaks_off_is_told_by_its_code() {
        let (ours, mut theirs) = duplex(1024);
        let mut wire = SmtpWire::plain(ours);
        theirs.write_all(b"250-2.0.0 queued\r\n").await.unwrap();
        drop(theirs);
        let reply = wire.reply(SECOND).await.unwrap();
        assert_eq!((reply.code, reply.is_whole), (250, false));
        assert!(matches!(wire.reply(SECOND).await, Err(Broken::Closed)));
    }
}
