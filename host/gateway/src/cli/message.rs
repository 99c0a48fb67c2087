//! `angarium message …`

use std::{convert::Infallible, path::PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    CliError,
    client::{ApiClient, segment},
    job::JobCommand,
    output::{Column, Output},
};

#[derive(Debug, Args)]
pub struct MessageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show messages, the newest first.
    List(List),
    /// Show one.
    Get(One),
    /// Show every try.
    Attempts(One),
    /// Show what happened to it.
    Events(One),
    /// Show the reasons for each attempt's connection.
    Decision(One),
    /// Show the content that was sent, or write one of its attachments into a file; the reading is in the audit.
    Content(ContentArgs),
    /// Cancel a message that has not begun.
    Cancel(One),
    /// Move a waiting message to another time, end or priority.
    Reschedule(RescheduleArgs),
    /// Cancel, retry or resolve many messages.
    #[command(subcommand)]
    Job(JobCommand),
    /// Try again by hand.
    Retry {
        #[command(flatten)]
        one: One,
        /// The channel of several, from 0.
        #[arg(long)]
        leg: Option<u8>,
    },
    /// Resolve a message that is `unknown`.
    Resolve(Resolve),
    /// Take recipient, content and attachments of one that has ended out of the ledger.
    Purge(One),
}

/// Its fields are the request's.
#[derive(Debug, Args)]
struct List {
    /// Only in this state, such as `queued`, `sent` or `failed`.
    #[arg(long)]
    state: Option<String>,
    /// Only of this channel.
    #[arg(long)]
    channel: Option<String>,
    /// Only with this reference of yours.
    #[arg(long)]
    reference: Option<String>,
    /// Only to this recipient.
    #[arg(long)]
    recipient: Option<String>,
    /// Only with the last attempt through this connection: its id or uid.
    #[arg(long)]
    connection: Option<String>,
    /// Only with the last attempt through this provider.
    #[arg(long)]
    provider: Option<String>,
    /// Only with a delivery that did not succeed, with this code.
    #[arg(long)]
    code: Option<String>,
    /// Only those accepted at this time or later, such as 2027-01-31T09:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// Only those accepted before this time.
    #[arg(long)]
    until: Option<String>,
    /// Only of this batch.
    #[arg(long)]
    batch: Option<String>,
    /// Only with this member of the metadata, such as `order:A-1001`.
    #[arg(long, value_name = "NAME:VALUE")]
    metadata: Option<String>,
    /// The entries of a page: 1 to 250; 50 by default.
    #[arg(long)]
    limit: Option<u32>,
    /// The page to show: the cursor of the previous one.
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    client: ApiClient,
}

#[derive(Debug, Args)]
struct ContentArgs {
    #[command(flatten)]
    one: One,
    /// The number of an attachment, as the content lists it.
    #[arg(long, value_name = "NUMBER", requires = "to")]
    attachment: Option<u32>,
    /// The channel of several that the attachment belongs to, from 0.
    #[arg(long, requires = "attachment")]
    leg: Option<u8>,
    /// A new file for the attachment.
    #[arg(long, value_name = "FILE", requires = "attachment")]
    to: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RescheduleArgs {
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    to: NewTimes,
}

/// Its fields are the request's.
#[derive(Debug, Args, Serialize)]
#[group(required = true, multiple = true)]
struct NewTimes {
    /// The earliest time to send, such as 2027-01-31T09:00:00Z; `none`: as soon as possible.
    #[arg(long, value_parser = time_or_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    send_at: Option<TimeOrNone>,
    /// The latest time to send; `none`: it never expires.
    #[arg(long, value_parser = time_or_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<TimeOrNone>,
    /// `low`, `normal`, `high` or `urgent`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<String>,
}

/// A time as the API reads it; null clears it.
#[derive(Debug, Clone, Serialize)]
struct TimeOrNone(Option<String>);

fn time_or_none(text: &str) -> Result<TimeOrNone, Infallible> {
    Ok(TimeOrNone((text != "none").then(|| text.to_owned())))
}

/// The columns of a message's content for one channel.
const CONTENT: [Column<'_>; 7] = [
    ("leg", "/leg"),
    ("channel", "/channel"),
    ("to", "/to"),
    ("subject", "/content/subject"),
    ("text", "/content/text"),
    ("payload", "/content/payload"),
    ("attachments", "/attachments"),
];

/// Its fields are the request's.
#[derive(Debug, Args, Serialize)]
struct Resolve {
    #[command(flatten)]
    #[serde(skip)]
    one: One,
    /// It was taken; it was not; or it is to be sent again, through the same connection with the same key.
    #[arg(long = "as", value_name = "OUTCOME", value_parser = ["sent", "failed", "again"])]
    #[serde(rename = "as")]
    outcome: String,
    /// The reason; the audit has it, with the key.
    #[arg(long)]
    reason: String,
    /// The provider's own id for it, with `--as sent`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<String>,
    /// The delivery, if several of the message are unknown.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<String>,
}

/// `angarium attempts`: as `message attempts`.
#[derive(Debug, Args)]
pub struct Attempts {
    #[command(flatten)]
    one: One,
}

#[derive(Debug, Args)]
struct One {
    /// `msg_…`
    message: String,
    #[command(flatten)]
    client: ApiClient,
}

const COLUMNS: [Column<'_>; 8] = [
    ("id", "/id"),
    ("state", "/state"),
    ("channel", "/channel"),
    ("to", "/to"),
    ("code", "/delivery/code"),
    ("created", "/created_at"),
    ("provider", "/delivery/provider"),
    ("attempts", "/delivery/attempts"),
];

/// The columns of a single message, with more space.
pub const WHOLE: [Column<'_>; 19] = [
    ("id", "/id"),
    ("state", "/state"),
    ("channel", "/channel"),
    ("to", "/to"),
    ("reference", "/reference"),
    ("ordering key", "/ordering_key"),
    ("condition", "/condition"),
    ("follows", "/follows/message"),
    ("connection", "/delivery/connection"),
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

const LEGS: [Column<'_>; 7] = [
    ("leg", "/leg"),
    ("channel", "/channel"),
    ("state", "/state"),
    ("provider", "/provider"),
    ("attempts", "/attempts"),
    ("code", "/code"),
    ("receipt until", "/receipt_until"),
];

const RECIPIENTS: [Column<'_>; 5] =
    [("recipient", "/address"), ("outcome", "/outcome"), ("code", "/code"), ("detail", "/detail"), ("at", "/at")];

const LEG: [Column<'_>; 2] = [("leg", "/leg"), ("channel", "/channel")];

const EVENTS: [Column<'_>; 3] = [("at", "/at"), ("type", "/type"), ("data", "/data")];

const DECISIONS: [Column<'_>; 5] = [
    ("attempt", "/attempt"),
    ("connection", "/connection"),
    ("reason", "/reason"),
    ("part", "/part"),
    ("trigger", "/trigger"),
];

const CANDIDATES: [Column<'_>; 2] = [("candidate", "/connection"), ("reason", "/reason")];

const PASSED_OVER: [Column<'_>; 2] = [("passed over", "/connection"), ("reason", "/reason")];

/// Columns of HTTP and of SMTP: those that a request lacks are left out.
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

pub const ATTEMPTS: [Column<'_>; 11] = [
    ("number", "/number"),
    ("disposition", "/disposition"),
    ("code", "/code"),
    ("connection", "/connection"),
    ("detail", "/detail"),
    ("status", "/status"),
    ("provider", "/provider"),
    ("trigger", "/trigger"),
    ("channel", "/channel"),
    ("cost", "/cost"),
    ("started", "/started_at"),
];

/// Shows a message, and below it a row for each recipient of a mail with copies, and for each of several channels.
pub fn show(message: &Value, output: &Output) {
    output.one(message, &WHOLE);
    let recipients = &message["delivery"]["recipients"];
    if !output.json && recipients.as_array().is_some_and(|recipients| !recipients.is_empty()) {
        output.rows(recipients, &RECIPIENTS);
    }
    if !output.json && message["deliveries"].is_array() {
        output.rows(&message["deliveries"], &LEGS);
    }
}

/// Shows the plan, then each request that would leave; for each of several channels.
pub fn preview(answer: &Value, output: &Output) {
    match answer["legs"].as_array() {
        Some(legs) => legs.iter().for_each(|leg| {
            output.one(leg, &LEG);
            preview_one(leg, output);
        }),
        None => preview_one(answer, output),
    }
}

fn preview_one(answer: &Value, output: &Output) {
    output.rows(&answer["plan"]["candidates"], &CANDIDATES);
    if answer["plan"]["skipped"].as_array().is_some_and(|skipped| !skipped.is_empty()) {
        output.rows(&answer["plan"]["skipped"], &PASSED_OVER);
    }
    for request in answer["requests"].as_array().into_iter().flatten() {
        output.one(request, &REQUEST);
    }
}

impl MessageArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::List(list) => output.list(&list.client.get(&list.path()).await?, &COLUMNS),
            Command::Get(one) => show(&one.get("").await?, output),
            Command::Attempts(one) => one.attempts(output).await?,
            Command::Events(one) => output.list(&one.get("/events").await?, &EVENTS),
            Command::Decision(one) => {
                let answer = one.get("/decision").await?;
                match output.json {
                    true => output.one(&answer, &[]),
                    false => {
                        output.rows(&considered(&answer["decisions"]), &DECISIONS);
                        let said = said(&answer);
                        if said.as_array().is_some_and(|said| !said.is_empty()) {
                            output.rows(&said, &SAID);
                        }
                    }
                }
            }
            Command::Content(content) => content.run(output).await?,
            Command::Reschedule(RescheduleArgs { one, to }) => {
                let path = format!("{PATH}/{}", segment(&one.message));
                show(&one.client.patch(&path, &to).await?, output);
            }
            Command::Job(job) => job.run(output).await?,
            Command::Cancel(one) => show(&one.post("/cancel").await?, output),
            Command::Retry { one, leg } => {
                let query = leg.map_or_else(String::new, |leg| format!("?leg={leg}"));
                show(&one.post(&format!("/retry{query}")).await?, output);
            }
            Command::Resolve(resolve) => {
                let path = format!("{PATH}/{}/resolve", segment(&resolve.one.message));
                show(&resolve.one.client.post(&path, &resolve).await?, output);
            }
            Command::Purge(one) => output.one(&one.delete("/content").await?, &WHOLE),
        }
        Ok(())
    }
}

impl ContentArgs {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        let Self { one, attachment, leg, to } = self;
        if let (Some(number), Some(file)) = (attachment, to) {
            let leg = leg.unwrap_or_default();
            let path = format!("{PATH}/{}/attachments/{leg}/{number}", segment(&one.message));
            let size = one.client.download(&path, &file).await?;
            output.one(&json!({"file": file, "size": size}), &[("file", "/file"), ("size", "/size")]);
            return Ok(());
        }
        let answer = one.get("/content").await?;
        match output.json {
            true => output.one(&answer, &[]),
            false => answer["parts"].as_array().into_iter().flatten().for_each(|part| output.one(part, &CONTENT)),
        }
        Ok(())
    }
}

impl List {
    fn path(&self) -> String {
        let limit = self.limit.map(|limit| limit.to_string());
        let filters = [
            ("state", &self.state),
            ("channel", &self.channel),
            ("reference", &self.reference),
            ("recipient", &self.recipient),
            ("connection", &self.connection),
            ("provider", &self.provider),
            ("code", &self.code),
            ("since", &self.since),
            ("until", &self.until),
            ("batch", &self.batch),
            ("metadata", &self.metadata),
            ("limit", &limit),
            ("cursor", &self.cursor),
        ];
        let given = filters.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish();
        if query.is_empty() { PATH.to_owned() } else { format!("{PATH}?{query}") }
    }
}

impl Attempts {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        self.one.attempts(output).await
    }
}

/// Shows connections by uid, if they have one.
pub fn name_connections(attempts: &mut Value) {
    for attempt in attempts.as_array_mut().into_iter().flatten() {
        if attempt["connection_uid"].is_string() {
            attempt["connection"] = attempt["connection_uid"].take();
        }
    }
}

const SAID: [Column<'_>; 5] =
    [("at", "/at"), ("script", "/script"), ("version", "/version"), ("hook", "/hook"), ("said", "/said")];

/// A row for each thing that a script said: of the candidates of an attempt, or of an end.
fn said(answer: &Value) -> Value {
    let row = |at: String, word: &Value, hook: Value, said: Value| {
        let said = if word["fault"].is_string() { word["fault"].clone() } else { said };
        json!({"at": at, "script": word["script"], "version": word["version"], "hook": hook, "said": said})
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut rows = Vec::new();
    for word in list(&answer["ruling"]["scripts"]) {
        rows.push(row("acceptance".to_owned(), &word, word["hook"].clone(), word["answer"].clone()));
    }
    for decision in list(&answer["decisions"]) {
        for word in list(&decision["plan"]["scripts"]) {
            rows.push(row(
                format!("attempt {}", decision["attempt"]),
                &word,
                word["hook"].clone(),
                word["answer"].clone(),
            ));
        }
    }
    for end in list(&answer["follow_ups"]) {
        for word in list(&end["scripts"]) {
            let said = json!({"messages": word["messages"], "tags": word["tags"]});
            rows.push(row(end["state"].as_str().unwrap_or_default().to_owned(), &word, json!("on_outcome"), said));
        }
    }
    Value::Array(rows)
}

/// Returns a row for each connection that a decision considered: the asked, the next and the skipped ones, with
/// reasons.
fn considered(decisions: &Value) -> Value {
    let mut rows = Vec::new();
    for decision in decisions.as_array().into_iter().flatten() {
        let part = |list: &str| decision["plan"][list].as_array().cloned().unwrap_or_default();
        let asked = part("candidates")
            .into_iter()
            .enumerate()
            .map(|(place, it)| (if place == 0 { "asked" } else { "next" }, it));
        let mut considered: Vec<_> = asked.chain(part("skipped").into_iter().map(|it| ("passed over", it))).collect();
        if considered.is_empty() {
            considered
                .push(("", json!({"connection": decision["connection"], "reason": "no connection could be asked"})));
        }
        for (place, (part, it)) in considered.into_iter().enumerate() {
            let reason = it["reason"].as_str().unwrap_or_default().replace('_', " ");
            let mut row = json!({"connection": it["connection"], "part": part, "reason": reason});
            if place == 0 {
                row["attempt"] = decision["attempt"].clone();
                row["trigger"] = trigger(decision);
            }
            rows.push(row);
        }
    }
    Value::Array(rows)
}

/// With the reason of a fallback.
fn trigger(decision: &Value) -> Value {
    match (decision["trigger"].as_str(), decision["fallback_reason"].as_str()) {
        (Some(trigger), Some(reason)) => json!(format!("{trigger}: {}", reason.replace('_', " "))),
        _ => decision["trigger"].clone(),
    }
}

impl One {
    async fn attempts(&self, output: &Output) -> Result<(), CliError> {
        let mut answer = self.get("/attempts").await?;
        if !output.json {
            name_connections(&mut answer["data"]);
        }
        output.list(&answer, &ATTEMPTS);
        Ok(())
    }

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

pub const PATH: &str = "/v1/messages";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        list: List,
    }

    #[derive(Parser)]
    struct ReschedulingLine {
        #[command(flatten)]
        to: RescheduleArgs,
    }

    #[test]
    fn a_message_is_moved_by_at_least_one_value_and_none_clears_a_time() {
        let body = |line: &[&str]| {
            let line = ["reschedule", "--key", "ak_x", "msg_1"].iter().chain(line);
            ReschedulingLine::try_parse_from(line).ok().map(|it| serde_json::to_value(it.to.to).unwrap())
        };
        assert_eq!(body(&[]), None);
        assert_eq!(body(&["--send-at=none"]), Some(json!({"send_at": null})));
        let both = body(&["--expires-at=2027-01-31T09:00:00Z", "--priority=high"]);
        assert_eq!(both, Some(json!({"expires_at": "2027-01-31T09:00:00Z", "priority": "high"})));
    }

    #[test]
    fn a_list_takes_the_filters_of_the_api() {
        let path = |line: &[&str]| Line::parse_from(["list", "--key", "ak_x"].iter().chain(line)).list.path();
        assert_eq!(path(&[]), "/v1/messages");
        let all = ["--state=failed", "--channel=sms", "--reference=invoice:7&x", "--limit=5", "--cursor=c"];
        assert_eq!(path(&all), "/v1/messages?state=failed&channel=sms&reference=invoice%3A7%26x&limit=5&cursor=c");
    }

    #[test]
    fn what_scripts_said_is_a_row_each() {
        let answer = json!({
            "ruling": {"scripts": [{"script": "gate", "version": 1, "hook": "admit", "answer": {"action": "allow"}}]},
            "decisions": [{"attempt": 2, "plan": {"scripts": [{"script": "order", "version": 3, "hook": "route", "fault": "no"}]}}],
            "follow_ups": [{"state": "failed", "scripts": [{"script": "again", "version": 1, "tags": ["x"], "messages": []}]}]});
        let said = said(&answer);
        let at: Vec<_> = said.as_array().unwrap().iter().map(|it| it["at"].as_str().unwrap()).collect();
        assert_eq!(at, ["acceptance", "attempt 2", "failed"]);
        assert_eq!((&said[1]["said"], &said[2]["said"]["tags"]), (&json!("no"), &json!(["x"])));
        assert_eq!(said_of(&json!({})), 0);
    }

    fn said_of(answer: &Value) -> usize {
        said(answer).as_array().map_or(0, Vec::len)
    }

    #[test]
    fn a_decision_is_a_row_for_each_connection() {
        let decisions = json!([
            {"attempt": 2, "trigger": "fallback", "fallback_reason": "provider_unavailable", "plan": {
                "candidates": [{"connection": "b", "reason": "first"}, {"connection": "c", "reason": "stands in"}],
                "skipped": [{"connection": "a", "reason": "asked_this_round"}]}},
            {"attempt": 3, "trigger": "retry", "connection": null, "fallback_reason": null, "plan": {}},
        ]);
        assert_eq!(
            considered(&decisions),
            json!([
                {"attempt": 2, "trigger": "fallback: provider unavailable", "connection": "b", "part": "asked", "reason": "first"},
                {"connection": "c", "part": "next", "reason": "stands in"},
                {"connection": "a", "part": "passed over", "reason": "asked this round"},
                {"attempt": 3, "trigger": "retry", "connection": null, "part": "", "reason": "no connection could be asked"},
            ])
        );
    }
}
