//! An SMTP server that accepts every mail and keeps it (RFC 5321's minimum, plain text only).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A mail as it was handed over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mail {
    pub sender: String,
    pub recipients: Vec<String>,
    /// Header and body, without SMTP's dots.
    pub content: Vec<u8>,
}

/// A listening server; [`MailServer::go_down`] or dropping it closes all connections.
#[derive(Debug)]
pub struct MailServer {
    address: SocketAddr,
    accepting: JoinHandle<()>,
    mails: Arc<Mutex<Vec<Mail>>>,
}

const LARGEST_MAIL: usize = 64 * 1024 * 1024;
const IDLE: Duration = Duration::from_secs(300);

impl MailServer {
    /// Listens on a free loopback port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let mails = Arc::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&mails)));
        Ok(Self { address, accepting, mails })
    }

    /// Returns its present or last address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every mail so far.
    pub fn mails(&self) -> Vec<Mail> {
        self.mails.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops listening, and closes open connections.
    pub async fn go_down(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, mails: Arc<Mutex<Vec<Mail>>>) {
    let mut sessions = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let session = Session::new(stream, Arc::clone(&mails));
            sessions.spawn(async move {
                let _ = tokio::time::timeout(IDLE, session.run()).await;
            });
        }
        while sessions.try_join_next().is_some() {}
    }
}

struct Session {
    stream: BufReader<TcpStream>,
    mails: Arc<Mutex<Vec<Mail>>>,
    sender: Option<String>,
    recipients: Vec<String>,
}

impl Session {
    fn new(stream: TcpStream, mails: Arc<Mutex<Vec<Mail>>>) -> Self {
        Self { stream: BufReader::new(stream), mails, sender: None, recipients: vec![] }
    }

    async fn run(mut self) -> Result<()> {
        self.stream.get_ref().set_nodelay(true)?;
        self.say("220 sink.invalid ESMTP\r\n").await?;
        while let Some(line) = self.line().await? {
            let text = String::from_utf8_lossy(&line).into_owned();
            let verb = text.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            if verb == "QUIT" {
                return self.say("221 2.0.0 Bye\r\n").await;
            }
            if verb == "DATA" && !self.recipients.is_empty() {
                self.take_data().await?;
                continue;
            }
            let answer = self.answer(&verb, &text);
            self.say(answer).await?;
        }
        Ok(())
    }

    fn answer(&mut self, verb: &str, line: &str) -> &'static str {
        match verb {
            "EHLO" => {
                self.reset();
                "250-sink.invalid\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 67108864\r\n"
            }
            "HELO" => {
                self.reset();
                "250 sink.invalid\r\n"
            }
            "MAIL" => match path(line, "FROM:") {
                Some(sender) if self.sender.is_none() => {
                    self.sender = Some(sender);
                    "250 2.1.0 Ok\r\n"
                }
                Some(_) => "503 5.5.1 Nested MAIL command\r\n",
                None => "501 5.5.4 Syntax: MAIL FROM:<address>\r\n",
            },
            "RCPT" if self.sender.is_none() => "503 5.5.1 Need MAIL command\r\n",
            "RCPT" => match path(line, "TO:") {
                Some(recipient) => {
                    self.recipients.push(recipient);
                    "250 2.1.5 Ok\r\n"
                }
                None => "501 5.5.4 Syntax: RCPT TO:<address>\r\n",
            },
            "DATA" => "503 5.5.1 Need RCPT command\r\n",
            "RSET" => {
                self.reset();
                "250 2.0.0 Ok\r\n"
            }
            "NOOP" => "250 2.0.0 Ok\r\n",
            _ => "502 5.5.2 Command not recognized\r\n",
        }
    }

    async fn take_data(&mut self) -> Result<()> {
        self.say("354 End data with <CR><LF>.<CR><LF>\r\n").await?;
        let mut content = Vec::new();
        while let Some(line) = self.line().await? {
            if line == b"." {
                let mail = Mail {
                    sender: self.sender.take().unwrap_or_default(),
                    recipients: std::mem::take(&mut self.recipients),
                    content,
                };
                let number = self.keep(mail);
                let answer = format!("250 2.0.0 Ok: queued as {number}\r\n");
                return self.say(&answer).await;
            }
            ensure!(content.len() + line.len() < LARGEST_MAIL, "the mail is too large");
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            content.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn keep(&self, mail: Mail) -> usize {
        let mut mails = self.mails.lock().unwrap_or_else(PoisonError::into_inner);
        mails.push(mail);
        mails.len()
    }

    fn reset(&mut self) {
        self.sender = None;
        self.recipients.clear();
    }

    /// A line without its CRLF; only CRLF ends one, so that a smuggled lone LF or CR stays inside.
    async fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        while self.stream.read_until(b'\n', &mut line).await? > 0 {
            ensure!(line.len() < LARGEST_MAIL, "the line is too long");
            if line.ends_with(b"\r\n") {
                line.truncate(line.len() - 2);
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    async fn say(&mut self, answer: &str) -> Result<()> {
        Ok(self.stream.get_mut().write_all(answer.as_bytes()).await?)
    }
}

/// The address in `MAIL FROM:<address> PARAMETERS`.
fn path(line: &str, keyword: &str) -> Option<String> {
    let rest = line.get(5..)?;
    let named = rest.get(..keyword.len())?.eq_ignore_ascii_case(keyword);
    let rest = rest.get(keyword.len()..).filter(|_| named)?.trim_start();
    let (address, _) = rest.strip_prefix('<')?.split_once('>')?;
    Some(address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn talk(server: &MailServer, script: &str) -> String {
        use tokio::io::AsyncReadExt;
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(script.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_mail_arrives_without_smtps_dots() {
        let server = MailServer::start().await.unwrap();
        let script = "EHLO me\r\nMAIL FROM:<a@example.org> SIZE=9\r\nRCPT TO:<b@example.org>\r\nRCPT TO:<c@example.org>\r\n\
                      DATA\r\nSubject: x\r\n\r\n..dot\r\nlone\nfeed\r\n.\r\nQUIT\r\n";
        let answer = talk(&server, script).await;
        assert!(answer.ends_with("250 2.0.0 Ok: queued as 1\r\n221 2.0.0 Bye\r\n"), "{answer}");
        let expected = Mail {
            sender: "a@example.org".into(),
            recipients: vec!["b@example.org".into(), "c@example.org".into()],
            content: b"Subject: x\r\n\r\n.dot\r\nlone\nfeed\r\n".to_vec(),
        };
        assert_eq!(server.mails(), [expected]);
    }

    #[tokio::test]
    async fn commands_out_of_order_are_refused() {
        let server = MailServer::start().await.unwrap();
        let answer = talk(&server, "RCPT TO:<b@x>\r\nDATA\r\nMAIL FROM:x\r\nWHAT\r\nNOOP\r\nRSET\r\nQUIT\r\n").await;
        let codes: Vec<_> = answer.lines().map(|line| &line[..3]).collect();
        assert_eq!(codes, ["220", "503", "503", "501", "502", "250", "250", "221"]);
    }

    #[tokio::test]
    async fn a_server_that_went_down_refuses_connections() {
        let mut server = MailServer::start().await.unwrap();
        let mut open = TcpStream::connect(server.address()).await.unwrap();
        server.go_down().await;
        assert!(TcpStream::connect(server.address()).await.is_err());
        let mut rest = vec![];
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut open, &mut rest).await;
    }
}
