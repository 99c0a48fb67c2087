//! `angarium send` and `angarium message …`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CliError,
    client::{Client, segment},
    connection::{json_value, paged, pair, set},
    output::{Column, Output},
};

/// `angarium send`
#[derive(Debug, Args)]
pub struct Send {
    /// The recipient: a mail address, a telephone number, a URL.
    #[arg(long)]
    to: Option<String>,
    /// `email`, `sms`, `webhook`, …
    #[arg(long)]
    channel: String,
    #[arg(long)]
    from: Option<String>,
    #[arg(long)]
    subject: Option<String>,
    #[arg(long)]
    text: Option<String>,
    #[arg(long)]
    html: Option<String>,
    /// Any JSON, for a webhook.
    #[arg(long, value_parser = json_value)]
    payload: Option<Value>,
    /// `name=value`; more than once for several.
    #[arg(long = "header", value_parser = pair)]
    headers: Vec<(String, String)>,
    /// Past the routes: a connection's id or uid.
    #[arg(long)]
    connection: Option<String>,
    /// `low`, `normal`, `high` or `urgent`.
    #[arg(long)]
    priority: Option<String>,
    /// Not before, such as 2027-01-31T09:00:00Z.
    #[arg(long)]
    send_at: Option<String>,
    #[arg(long)]
    expires_at: Option<String>,
    /// The same key sends once.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Your own object, such as invoice:INV-7.
    #[arg(long)]
    reference: Option<String>,
    /// Show what would leave, and send nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: Client,
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
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        client: Client,
    },
    /// Show one.
    Get(One),
    /// Show every try.
    Attempts(One),
    /// Stop what has not begun.
    Cancel(One),
    /// Try again by hand.
    Retry(One),
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
        let answer = self.client.post(path, &self.body()).await?;
        if self.dry_run {
            output.list(&answer["requests"], &[("request", "")]);
        } else {
            output.one(&answer, &COLUMNS);
        }
        Ok(())
    }

    fn body(&self) -> Value {
        let text = |field: &Option<String>| field.clone().map(Value::String);
        let mut content = json!({});
        set(&mut content, "from", text(&self.from));
        set(&mut content, "subject", text(&self.subject));
        set(&mut content, "text", text(&self.text));
        set(&mut content, "html", text(&self.html));
        set(&mut content, "payload", self.payload.clone());
        for (name, value) in &self.headers {
            content["headers"][name] = json!(value);
        }
        let mut body = json!({"channel": self.channel, "content": content});
        for (field, value) in [
            ("to", &self.to),
            ("connection", &self.connection),
            ("priority", &self.priority),
            ("send_at", &self.send_at),
            ("expires_at", &self.expires_at),
            ("idempotency_key", &self.idempotency_key),
            ("reference", &self.reference),
        ] {
            set(&mut body, field, text(value));
        }
        body
    }
}

impl Message {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        match self.command {
            Command::List { cursor, client } => output.list(&client.get(&paged(PATH, cursor)).await?, &COLUMNS),
            Command::Get(one) => output.one(&one.get("").await?, &COLUMNS),
            Command::Attempts(one) => output.list(&one.get("/attempts").await?, &ATTEMPTS),
            Command::Cancel(one) => output.one(&one.post("/cancel").await?, &COLUMNS),
            Command::Retry(one) => output.one(&one.post("/retry").await?, &COLUMNS),
        }
        Ok(())
    }
}

impl One {
    async fn get(&self, rest: &str) -> Result<Value, CliError> {
        self.client.get(&format!("{PATH}/{}{rest}", segment(&self.message))).await
    }

    async fn post(&self, rest: &str) -> Result<Value, CliError> {
        self.client.post(&format!("{PATH}/{}{rest}", segment(&self.message)), &json!({})).await
    }
}

const PATH: &str = "/v1/messages";
