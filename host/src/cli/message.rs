//! `angarium send` and `angarium message …`

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    CliError,
    client::{Client, segment},
    connection::{as_object, paged, pair, raw_json},
    output::{Column, Output},
};

/// `angarium send`: its fields are the request's.
#[derive(Debug, Args, Serialize)]
pub struct Send {
    /// The recipient: a mail address, a telephone number, a URL.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// `email`, `sms`, `webhook`, …
    #[arg(long)]
    channel: String,
    #[command(flatten)]
    content: Content,
    /// Past the routes: a connection's id or uid.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    /// `low`, `normal`, `high` or `urgent`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<String>,
    /// Not before, such as 2027-01-31T09:00:00Z.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    send_at: Option<String>,
    /// Not after: what was not sent by then expires.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// The same key sends once.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    /// Your own object, such as invoice:INV-7.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    /// Show what would leave, and send nothing.
    #[arg(long)]
    #[serde(skip)]
    dry_run: bool,
    #[command(flatten)]
    #[serde(skip)]
    client: Client,
}

#[derive(Debug, Args, Serialize)]
struct Content {
    /// The sender, as the channel has it: a mail address, a telephone number.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// A mail's subject.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    /// The text: of a mail, or the whole of a text message.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// A mail's HTML.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<String>,
    /// Any JSON, for a webhook; its bytes arrive as they are.
    #[arg(long, value_parser = raw_json)]
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    /// `name=value`; more than once for several.
    #[arg(long = "header", value_parser = pair)]
    #[serde(serialize_with = "as_object")]
    headers: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct Message {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show messages, the newest first.
    List {
        /// Where the page before ended, as it says.
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        client: Client,
    },
    /// Show one.
    Get(One),
    /// Show every try.
    Attempts(One),
    /// Show what happened to it.
    Events(One),
    /// Show why each attempt went where it went.
    Decision(One),
    /// Stop what has not begun.
    Cancel(One),
    /// Try again by hand.
    Retry(One),
    /// Take recipient, content and attachments of one that has ended out of the ledger.
    Purge(One),
}

#[derive(Debug, Args)]
struct One {
    /// `msg_…`
    message: String,
    #[command(flatten)]
    client: Client,
}

const COLUMNS: [Column<'_>; 8] = [
    ("id", "/id"),
    ("state", "/state"),
    ("channel", "/channel"),
    ("to", "/to"),
    ("provider", "/delivery/provider"),
    ("attempts", "/delivery/attempts"),
    ("code", "/delivery/code"),
    ("created", "/created_at"),
];

/// Of one message there is room for more.
const WHOLE: [Column<'_>; 15] = [
    ("id", "/id"),
    ("state", "/state"),
    ("channel", "/channel"),
    ("to", "/to"),
    ("reference", "/reference"),
    ("provider", "/delivery/provider"),
    ("attempts", "/delivery/attempts"),
    ("code", "/delivery/code"),
    ("detail", "/delivery/detail"),
    ("next attempt", "/delivery/next_attempt_at"),
    ("provider's id", "/delivery/external_id"),
    ("created", "/created_at"),
    ("expires", "/expires_at"),
    ("finished", "/delivery/finished_at"),
    ("content purged", "/content_purged_at"),
];

const EVENTS: [Column<'_>; 3] = [("at", "/at"), ("type", "/type"), ("data", "/data")];

const DECISIONS: [Column<'_>; 7] = [
    ("attempt", "/attempt"),
    ("trigger", "/trigger"),
    ("connection", "/connection"),
    ("provider", "/provider"),
    ("why not the one before", "/fallback_reason"),
    ("candidates", "/plan/candidates"),
    ("passed over", "/plan/skipped"),
];

const CANDIDATES: [Column<'_>; 2] = [("candidate", "/connection"), ("reason", "/reason")];

const PASSED_OVER: [Column<'_>; 2] = [("passed over", "/connection"), ("reason", "/reason")];

/// Of HTTP and of SMTP: what a request lacks is left out.
const REQUEST: [Column<'_>; 16] = [
    ("connection", "/connection"),
    ("provider", "/provider"),
    ("refused", "/refused"),
    ("method", "/request/method"),
    ("url", "/request/url"),
    ("host", "/request/host"),
    ("port", "/request/port"),
    ("tls", "/request/tls"),
    ("from", "/request/mail_from"),
    ("to", "/request/rcpt_to"),
    ("headers", "/request/headers"),
    ("body", "/request/body"),
    ("body (base64)", "/request/body_base64"),
    ("text", "/request/text"),
    ("html", "/request/html"),
    ("attachments", "/request/attachments"),
];

const ATTEMPTS: [Column<'_>; 9] = [
    ("number", "/number"),
    ("trigger", "/trigger"),
    ("provider", "/provider"),
    ("disposition", "/disposition"),
    ("status", "/status"),
    ("code", "/code"),
    ("detail", "/detail"),
    ("cost", "/cost"),
    ("started", "/started_at"),
];

impl Send {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        let path = if self.dry_run { "/v1/messages?dry_run=true" } else { PATH };
        let answer = self.client.post(path, &self).await?;
        match self.dry_run && !output.json {
            true => preview(&answer, output),
            false => output.one(&answer, &WHOLE),
        }
        Ok(())
    }
}

/// The plan, then each request that would leave.
fn preview(answer: &Value, output: &Output) {
    output.rows(&answer["plan"]["candidates"], &CANDIDATES);
    if answer["plan"]["skipped"].as_array().is_some_and(|skipped| !skipped.is_empty()) {
        output.rows(&answer["plan"]["skipped"], &PASSED_OVER);
    }
    for request in answer["requests"].as_array().into_iter().flatten() {
        output.one(request, &REQUEST);
    }
}

impl Message {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::List { cursor, client } => output.list(&client.get(&paged(PATH, cursor)).await?, &COLUMNS),
            Command::Get(one) => output.one(&one.get("").await?, &WHOLE),
            Command::Attempts(one) => output.list(&one.get("/attempts").await?, &ATTEMPTS),
            Command::Events(one) => output.list(&one.get("/events").await?, &EVENTS),
            Command::Decision(one) => {
                let answer = one.get("/decision").await?;
                match output.json {
                    true => output.one(&answer, &[]),
                    false => output.rows(&answer["decisions"], &DECISIONS),
                }
            }
            Command::Cancel(one) => output.one(&one.post("/cancel").await?, &WHOLE),
            Command::Retry(one) => output.one(&one.post("/retry").await?, &WHOLE),
            Command::Purge(one) => output.one(&one.delete("/content").await?, &WHOLE),
        }
        Ok(())
    }
}

impl One {
    async fn get(&self, rest: &str) -> Result<Value, CliError> {
        self.client.get(&format!("{PATH}/{}{rest}", segment(&self.message))).await
    }

    async fn delete(&self, rest: &str) -> Result<Value, CliError> {
        self.client.delete(&format!("{PATH}/{}{rest}", segment(&self.message))).await
    }

    async fn post(&self, rest: &str) -> Result<Value, CliError> {
        self.client.post(&format!("{PATH}/{}{rest}", segment(&self.message)), &json!({})).await
    }
}

const PATH: &str = "/v1/messages";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        send: Send,
    }

    #[test]
    fn a_payload_keeps_its_bytes() {
        let payload = r#"{"z": 1.0,  "a":"\u00e9"}"#;
        let line = ["send", "--key", "ak_x", "--channel", "webhook", "--payload", payload, "--header", "X-A=1"];
        let body = serde_json::to_string(&Line::parse_from(line).send).unwrap();
        assert_eq!(
            body,
            format!(r#"{{"channel":"webhook","content":{{"payload":{payload},"headers":{{"X-A":"1"}}}}}}"#)
        );
    }
}
