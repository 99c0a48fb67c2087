//! A mail server that does as its script says: late, long, out of step, cut off or silent.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
};

/// Closes the connection instead of answering.
pub const HANG_UP: &str = "";
/// Sends nothing and stays.
pub const SILENCE: &str = "…";
/// The prefix of an answer that waits until it is released.
pub const HELD: &str = "held: ";
/// The suffix of an answer that is cut off there: no line end, and the connection closes.
pub const CUT: &str = "(cut)";

/// The first step of a connection.
pub const GREETING: &str = "greeting";
/// The first step if the client speaks first.
pub const NOTHING: &str = "nothing";

/// A server that answers each step as usual, except those in its script: `greeting`, a command's beginning, or `dot`
/// for a whole mail.
pub struct MailScript {
    pub port: u16,
    /// The received lines; a mail is one line, and `end` is the end of a connection.
    pub told: UnboundedReceiver<String>,
    pub connections: Arc<AtomicUsize>,
    /// Releases an answer that is held.
    pub release: Arc<Notify>,
}

/// One connection's part.
#[derive(Clone)]
pub struct Script {
    steps: Arc<Vec<(String, String)>>,
    seen: UnboundedSender<String>,
    release: Arc<Notify>,
}

impl MailScript {
    pub async fn start(script: &[(&str, &str)]) -> Self {
        let (script, told, release) = Script::new(script);
        let connections = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(script.clone().follow_until(stream, GREETING, ""));
            }
        });
        Self { port, told, connections, release }
    }

    /// Returns the lines that were received until now.
    pub fn heard(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.told.try_recv().ok()).collect()
    }

    /// The mails among it.
    pub fn mails(&mut self) -> Vec<String> {
        self.heard().into_iter().filter(|line| line.ends_with("\r\n.")).collect()
    }
}

impl Script {
    pub fn new(script: &[(&str, &str)]) -> (Self, UnboundedReceiver<String>, Arc<Notify>) {
        let (seen, told) = unbounded_channel();
        let release = Arc::new(Notify::new());
        let steps = script.iter().map(|(step, answer)| ((*step).to_owned(), (*answer).to_owned())).collect();
        (Self { steps: Arc::new(steps), seen, release: Arc::clone(&release) }, told, release)
    }

    /// Serves a connection, beginning with this step, until it answered a command; `None` if the connection ends first.
    pub async fn follow_until<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        stream: S,
        first: &str,
        last: &str,
    ) -> Option<S> {
        let mut stream = BufReader::new(stream);
        let mut step = first.to_owned();
        loop {
            let (answer, end) = if step == NOTHING { Some((String::new(), "")) } else { self.answer(&step).await }?;
            let _ = stream.write_all(format!("{answer}{end}").as_bytes()).await;
            let _ = stream.flush().await;
            if step == last {
                return Some(stream.into_inner());
            }
            if end.is_empty() && step != NOTHING {
                return None;
            }
            let in_data = answer.starts_with("354");
            let mut text = String::new();
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                    let _ = self.seen.send("end".to_owned());
                    return None;
                }
                text.push_str(&line);
                if !in_data || line == ".\r\n" {
                    break;
                }
            }
            step = if in_data { "dot".to_owned() } else { text.trim_end().to_owned() };
            let _ = self.seen.send(text.trim_end().to_owned());
        }
    }

    /// Returns the answer to a step and its end; `None` if the connection closes.
    async fn answer(&self, step: &str) -> Option<(String, &'static str)> {
        let usual = match step {
            GREETING => "220 test ESMTP",
            "DATA" => "354 go",
            _ if step.starts_with("EHLO") => "250-test\r\n250 SIZE 5000",
            _ => "250 2.0.0 fine",
        };
        let known = self.steps.iter().find(|(key, _)| step.starts_with(key.as_str()));
        let answer = known.map_or(usual, |(_, answer)| answer.as_str());
        match answer {
            HANG_UP => return None,
            SILENCE => std::future::pending().await,
            _ => {}
        }
        let answer = match answer.strip_prefix(HELD) {
            Some(answer) => {
                self.release.notified().await;
                answer
            }
            None => answer,
        };
        Some(match answer.strip_suffix(CUT) {
            Some(cut) => (cut.to_owned(), ""),
            None => (answer.to_owned(), "\r\n"),
        })
    }
}
