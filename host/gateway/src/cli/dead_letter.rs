//! `angarium dead-letters …`

use std::io::IsTerminal;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    CliError,
    client::{ApiClient, segment},
    connection::paged,
    job::{JobName, PROGRESS, watch},
    message::{ATTEMPTS, name_connections},
    output::{Column, Output},
};

const PATH: &str = "/v1/dead-letters";
const REPLAYS: &str = "/v1/dead-letters/replays";

#[derive(Debug, Args)]
pub struct DeadLetters {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show dead letters, those of the newest messages first.
    List(Box<List>),
    /// Show one with every try.
    Show(One),
    /// Try one again, or all that match.
    Replay(Box<Replay>),
    /// Take one off the list, or all that match.
    Discard(Box<Discard>),
    /// Show replays of all that match, the newest first.
    Replays {
        /// The page to show: the cursor of the previous one.
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        client: ApiClient,
    },
    /// Watch a replay until it ends.
    Watch(JobName),
    /// Stop a replay; deliveries that it has opened stay open.
    Stop(JobName),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    filter: Filter,
    /// The page to show: the cursor of the previous one.
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    client: ApiClient,
}

#[derive(Debug, Args)]
struct One {
    /// `dlv_…`, or the message's `msg_…`
    id: String,
    #[command(flatten)]
    client: ApiClient,
}

#[derive(Debug, Args)]
struct Replay {
    /// `dlv_…`, or the message's `msg_…`
    #[arg(required_unless_present = "all", conflicts_with_all = ["all", "Filter"])]
    id: Option<String>,
    /// All that match; without a filter, all but those that are `unknown`.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// How many become due in a second at most.
    #[arg(long, requires = "all", conflicts_with = "id", value_parser = clap::value_parser!(u32).range(1..=1000), default_value_if("all", "true", "50"))]
    rate: Option<u32>,
    /// The most deliveries, the oldest first.
    #[arg(long, requires = "all", conflicts_with = "id")]
    limit: Option<u64>,
    /// Begin it, and don't wait for its end.
    #[arg(long, requires = "all", conflicts_with = "id")]
    detach: bool,
    /// The reason; the audit has it, with the key.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    client: ApiClient,
}

#[derive(Debug, Args)]
struct Discard {
    /// `dlv_…`, or the message's `msg_…`
    #[arg(required_unless_present = "all", conflicts_with_all = ["all", "Filter"])]
    id: Option<String>,
    /// All that match; without a filter, all of them.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// The reason; the audit has it, with the key.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    client: ApiClient,
}

/// Its fields are the request's.
#[derive(Debug, Args, Serialize)]
struct Filter {
    /// Only in these states, with commas between: `failed`, `bounced`, `expired`, `unroutable`, `unknown`.
    #[arg(long = "state", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    states: Vec<String>,
    /// Only this channel.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    /// Only this connection: its id or uid.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    /// Only this provider.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// Only this route: its id or uid.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// Only this code: the provider's, or the gateway's word for it.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// Only those that ended at this time or later, such as 2027-01-31T09:00:00Z.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    /// Only those that ended before.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    /// Only those for this recipient.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    /// Only dead letters of messages with this reference.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
}

const COLUMNS: [Column<'_>; 8] = [
    ("id", "/id"),
    ("state", "/state"),
    ("code", "/code"),
    ("to", "/to"),
    ("ended", "/finished_at"),
    ("channel", "/channel"),
    ("attempts", "/attempts"),
    ("connection", "/connection"),
];

const WHOLE: [Column<'_>; 16] = [
    ("id", "/id"),
    ("message", "/message"),
    ("state", "/state"),
    ("channel", "/channel"),
    ("to", "/to"),
    ("reference", "/reference"),
    ("connection", "/connection"),
    ("provider", "/provider"),
    ("code", "/code"),
    ("detail", "/detail"),
    ("created", "/created_at"),
    ("ended", "/finished_at"),
    ("expires", "/expires_at"),
    ("content purged", "/content_purged_at"),
    ("discarded", "/discarded_at"),
    ("reason", "/discard_reason"),
];

impl DeadLetters {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::List(list) => list.run(output).await?,
            Command::Show(one) => one.show(output).await?,
            Command::Replay(replay) => replay.run(output).await?,
            Command::Discard(discard) => discard.run(output).await?,
            Command::Replays { cursor, client } => {
                output.list(&client.get(&paged(REPLAYS, cursor)).await?, &PROGRESS);
            }
            Command::Watch(job) => output.one(&job.watch().await?, &PROGRESS),
            Command::Stop(job) => output.one(&job.cancel().await?, &PROGRESS),
        }
        Ok(())
    }
}

impl List {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        let mut answer = self.client.get(&path(&self.filter, self.cursor)?).await?;
        if !output.json {
            name_connections(&mut answer["data"]);
        }
        output.list(&answer, &COLUMNS);
        Ok(())
    }
}

/// The list's path with its query.
fn path(filter: &Filter, cursor: Option<String>) -> Result<String, CliError> {
    let mut members = members(filter)?;
    if let Some(states) = members.remove("states") {
        let words: Vec<_> = states.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        members.insert("state".to_owned(), json!(words.join(",")));
    }
    if let Some(cursor) = cursor {
        members.insert("cursor".to_owned(), json!(cursor));
    }
    let pairs = members.iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_str()?))));
    let query = pairs.collect::<Vec<_>>().join("&");
    Ok(if query.is_empty() { PATH.to_owned() } else { format!("{PATH}?{query}") })
}

fn members(filter: &Filter) -> Result<serde_json::Map<String, Value>, CliError> {
    match serde_json::to_value(filter) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(CliError::said("the filter can't be written")),
    }
}

impl One {
    async fn show(self, output: &Output) -> Result<(), CliError> {
        let mut letter = self.client.get(&format!("{PATH}/{}", segment(&self.id))).await?;
        if output.json {
            output.one(&letter, &[]);
            return Ok(());
        }
        if letter["connection_uid"].is_string() {
            letter["connection"] = letter["connection_uid"].take();
        }
        name_connections(&mut letter["history"]);
        output.one(&letter, &WHOLE);
        output.rows(&letter["history"], &ATTEMPTS);
        Ok(())
    }
}

impl Replay {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        let mut body = json!({});
        if let Some(reason) = &self.reason {
            body["reason"] = json!(reason);
        }
        if let Some(id) = &self.id {
            let message = self.client.post(&format!("{PATH}/{}/replay", segment(id)), &body).await?;
            output.one(&message, &super::message::WHOLE);
            return Ok(());
        }
        body["filter"] = Value::Object(members(&self.filter)?);
        body["rate_per_second"] = json!(self.rate);
        body["limit"] = json!(self.limit);
        let replay = self.client.post(REPLAYS, &body).await?;
        let replay = if self.detach { replay } else { watch(&self.client, replay).await? };
        output.one(&replay, &PROGRESS);
        Ok(())
    }
}

impl Discard {
    async fn run(self, output: &Output) -> Result<(), CliError> {
        if let Some(id) = &self.id {
            let path = format!("{PATH}/{}/discard", segment(id));
            let letter = self.client.post(&path, &json!({"reason": self.reason})).await?;
            output.one(&letter, &WHOLE);
            return Ok(());
        }
        let body = json!({"filter": members(&self.filter)?, "reason": self.reason});
        let bar = spinner();
        let mut discarded = 0;
        loop {
            let answer = self.client.post(&format!("{PATH}/discards"), &body).await?;
            discarded += answer["discarded"].as_u64().unwrap_or_default();
            bar.set_message(format!("{discarded} discarded"));
            if answer["more"] != json!(true) {
                break;
            }
        }
        bar.finish_and_clear();
        output.one(&json!({"discarded": discarded}), &[("discarded", "/discarded")]);
        Ok(())
    }
}

fn spinner() -> ProgressBar {
    if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        letters: DeadLetters,
    }

    fn parse(arguments: &[&str]) -> Result<Command, clap::Error> {
        let arguments = ["x"].iter().chain(arguments).chain(&["--key", "ak_x"]);
        Line::try_parse_from(arguments).map(|line| line.letters.command)
    }

    #[test]
    fn a_list_asks_with_its_filter() {
        let Ok(Command::List(list)) = parse(&["list", "--state", "failed,unknown", "--code", "a b"]) else { panic!() };
        let path = path(&list.filter, Some("next".to_owned())).unwrap();
        assert_eq!(path, "/v1/dead-letters?code=a%20b&cursor=next&state=failed%2Cunknown");
    }

    #[test]
    fn all_has_to_be_said() {
        for bad in [
            &["replay"][..],
            &["replay", "--code", "x"],
            &["replay", "dlv_1", "--all"],
            &["replay", "dlv_1", "--code", "x"],
            &["replay", "dlv_1", "--rate", "3"],
            &["discard", "dlv_1"],
            &["discard", "--reason", "x"],
            &["discard", "dlv_1", "--reason", "x", "--channel", "sms"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let Ok(Command::Replay(replay)) = parse(&["replay", "--all", "--channel", "sms"]) else { panic!() };
        assert_eq!((replay.rate, members(&replay.filter).unwrap().len()), (Some(50), 1));
        assert!(matches!(parse(&["replay", "dlv_1"]), Ok(Command::Replay(one)) if one.rate.is_none()));
        assert!(parse(&["discard", "--all", "--reason", "x"]).is_ok());
    }
}
