//! `angarium tail`: follows the stream of events, line by line, and comes again when it ends.

use std::{collections::VecDeque, time::Duration};

use clap::Args;
use serde_json::Value;

use super::{
    CliError,
    client::{ApiClient, Followed, segment},
    output::Output,
};

/// How long it waits before it asks again; twice as long after each failure, up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub struct Tail {
    /// Only this type, such as message.failed; more than once for several.
    #[arg(long = "type")]
    types: Vec<String>,
    /// From here on: an event's id, or a time; left out, from now on.
    #[arg(long)]
    after: Option<String>,
    #[command(flatten)]
    client: ApiClient,
}

impl Tail {
    /// Prints events until it is interrupted. An invalid request ends it; a gateway that is away does not, once it has
    /// answered.
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        let mut last: Option<String> = None;
        let mut answered = false;
        let mut pause = PAUSE;
        loop {
            match self.client.follow(&self.path(), last.as_deref()).await {
                Ok(stream) => {
                    (answered, pause) = (true, PAUSE);
                    print(stream, output, &mut last).await;
                }
                Err(error) if error.is_final || !answered => return Err(error.reason),
                Err(error) => {
                    eprintln!("waiting: {}", error.reason);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn path(&self) -> String {
        let after = self.after.as_ref().map(|after| format!("after={}", segment(after)));
        let types = (!self.types.is_empty()).then(|| format!("type={}", segment(&self.types.join(","))));
        let query: Vec<_> = after.into_iter().chain(types).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        format!("/v1/events/stream{mark}{}", query.join("&"))
    }
}

/// Prints events until the stream ends, however it ends.
async fn print(mut stream: Followed, output: &Output, last: &mut Option<String>) {
    let mut reader = Reader::default();
    while let Some(bytes) = stream.next().await {
        for event in reader.read(&bytes) {
            if let Some(id) = event["id"].as_str() {
                *last = Some(id.to_owned());
            }
            output.line(&event, line);
        }
    }
}

/// `when  what  which  (attempt n: code, detail)`
fn line(event: &Value) -> String {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let whose = [text("/message"), text("/connection")].concat();
    let mut line = format!("{}  {:<24} {whose}", text("/at"), text("/type"));
    if let Some(attempt) = event.pointer("/data/attempt").and_then(Value::as_u64) {
        line.push_str(&format!("  attempt {attempt}"));
    }
    let words = [text("/data/code"), text("/data/cause"), text("/data/detail")];
    for word in words.into_iter().filter(|word| !word.is_empty()) {
        line.push_str(&format!("  {word}"));
    }
    line
}

/// Reads server-sent events with JSON data from bytes that end anywhere.
#[derive(Default)]
struct Reader {
    rest: Vec<u8>,
    data: String,
}

impl Reader {
    fn read(&mut self, bytes: &[u8]) -> VecDeque<Value> {
        self.rest.extend_from_slice(bytes);
        let mut events = VecDeque::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            events.extend(self.line(line.trim_end_matches(['\r', '\n'])));
        }
        events
    }

    /// An empty line ends an event; comments and other fields say nothing that the data has not.
    fn line(&mut self, line: &str) -> Option<Value> {
        if line.is_empty() {
            return serde_json::from_str(&std::mem::take(&mut self.data)).ok();
        }
        if let Some(data) = line.strip_prefix("data:") {
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_read_wherever_the_bytes_end() {
        let text = "id: evt_1\nevent: message.sent\ndata: {\"id\":\"evt_1\"}\n\n: still here\n\ndata:{\"id\":\r\ndata:\"evt_2\"}\r\n\r\n";
        for size in 1..text.len() {
            let mut reader = Reader::default();
            let found: Vec<_> = text.as_bytes().chunks(size).flat_map(|bytes| reader.read(bytes)).collect();
            assert_eq!(found, [json!({"id": "evt_1"}), json!({"id": "evt_2"})], "{size}");
        }
    }

    #[test]
    fn a_line_says_what_happened_to_what() {
        let event = json!({"id": "evt_1", "type": "message.retry_scheduled", "message": "msg_1",
            "at": "2026-01-02T03:04:05Z", "data": {"attempt": 2, "code": "http_503", "detail": "busy"}});
        let expected = "2026-01-02T03:04:05Z  message.retry_scheduled  msg_1  attempt 2  http_503  busy";
        assert_eq!(line(&event), expected);
        let event = json!({"type": "connection.breaker_opened", "message": null, "connection": "conn_1",
            "at": "2026-01-02T03:04:05Z", "data": {"cause": "manual", "detail": "maintenance"}});
        let expected = "2026-01-02T03:04:05Z  connection.breaker_opened conn_1  manual  maintenance";
        assert_eq!(line(&event), expected);
    }
}
