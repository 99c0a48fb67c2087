//! A mail server that answers each command as a scenario says, by the recipients of the transaction so far, and keeps the
//! mails that it took.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// Closes the connection instead of answering.
pub const HANG_UP: &str = "";

/// The server.
pub struct ScriptedMail {
    pub port: u16,
    mails: Arc<Mutex<Vec<TakenMail>>>,
}

/// A mail that it took.
#[derive(Debug, Clone)]
pub struct TakenMail {
    /// The envelope's sender; empty for none.
    pub from: String,
    pub recipients: Vec<String>,
    pub text: String,
}

impl ScriptedMail {
    /// The answer to a line if it is not the usual one; `.` is a whole mail.
    pub async fn start(answer: impl Fn(&str, &[String]) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mails = Arc::new(Mutex::new(Vec::new()));
        let (answer, taken) = (Arc::new(answer), Arc::clone(&mails));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answer), Arc::clone(&taken)));
            }
        });
        Self { port, mails }
    }

    /// The mails that it took, in order.
    pub fn mails(&self) -> Vec<TakenMail> {
        self.mails.lock().unwrap().clone()
    }

    /// How many of them went to this address.
    pub fn mails_for(&self, address: &str) -> usize {
        self.mails().iter().filter(|mail| mail.recipients.iter().any(|it| it == address)).count()
    }
}

async fn serve(
    stream: TcpStream,
    answer: Arc<impl Fn(&str, &[String]) -> Option<String>>,
    mails: Arc<Mutex<Vec<TakenMail>>>,
) {
    let mut stream = BufReader::new(stream);
    let (mut from, mut recipients, mut text, mut in_data) = (String::new(), Vec::new(), String::new(), false);
    if stream.write_all(b"220 test ESMTP\r\n").await.is_err() {
        return;
    }
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end_matches(['\r', '\n']);
        if in_data && line != "." {
            text.push_str(line);
            text.push_str("\r\n");
            continue;
        }
        let usual = match line {
            "DATA" => "354 go",
            _ => "250 2.0.0 fine",
        };
        let reply = answer(line, &recipients).unwrap_or_else(|| usual.to_owned());
        if reply == HANG_UP {
            return;
        }
        let is_positive = reply.starts_with('2');
        if in_data {
            if is_positive {
                let (recipients, text) = (std::mem::take(&mut recipients), std::mem::take(&mut text));
                let mail = TakenMail { from: std::mem::take(&mut from), recipients, text };
                mails.lock().unwrap().push(mail);
            }
            text.clear();
        }
        match line.split([' ', ':']).next().unwrap_or_default() {
            "MAIL" => {
                recipients.clear();
                from = address_of(line).unwrap_or_default();
            }
            "RSET" => recipients.clear(),
            "RCPT" if is_positive => recipients.extend(address_of(line)),
            _ => {}
        }
        in_data = reply.starts_with("354");
        if stream.write_all(format!("{reply}\r\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

fn address_of(line: &str) -> Option<String> {
    Some(line.split_once('<')?.1.split_once('>')?.0.to_owned())
}
