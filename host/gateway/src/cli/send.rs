//! `angarium send`

use std::{convert::Infallible, path::Path, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use serde::{Serialize, Serializer};
use serde_json::{json, value::RawValue};

use super::{
    CliError,
    client::ApiClient,
    connection::{as_object, pair, raw_json},
    message::{PATH, preview, show},
    output::Output,
};

/// Its fields are the request's.
#[derive(Debug, Args, Serialize)]
pub struct Send {
    /// The recipient: a mail address, a telephone number, a URL; `Name <address>` with a name.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Recipient>,
    /// `email`, `sms`, `webhook`, …; rules choose one if it is left out.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    #[command(flatten)]
    #[serde(skip_serializing_if = "Content::is_empty")]
    content: Content,
    /// Several channels in order of preference, as JSON: [{"channel": "email", "to": "…", "content": {…}}, …].
    #[arg(long, value_parser = raw_json, conflicts_with_all = ["channel", "to", "connection"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<Box<RawValue>>,
    /// `first`: one after another; `all`: all at once.
    #[arg(long, requires = "channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    /// The result that stops the next channel: `sent` or `delivered`.
    #[arg(long, requires = "channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    wants: Option<String>,
    /// Seconds to wait for a receipt before the next channel, with `--wants delivered`.
    #[arg(long, requires = "wants")]
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt_window: Option<u32>,
    /// Past the routes: a connection's id or uid.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    /// `low`, `normal`, `high` or `urgent`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<String>,
    /// The earliest time to send, such as 2027-01-31T09:00:00Z.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    send_at: Option<String>,
    /// The latest time to send: after it the message expires.
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
    /// Messages with the same key go one after another.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ordering_key: Option<String>,
    /// The subject matter, for rules: a JSON object.
    #[arg(long, value_parser = raw_json)]
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<Box<RawValue>>,
    /// The recipient's data, for rules: a JSON object.
    #[arg(long, value_parser = raw_json)]
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<Box<RawValue>>,
    /// The circumstances, for rules: a JSON object.
    #[arg(long, value_parser = raw_json)]
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Box<RawValue>>,
    /// Your own, handed back as it came: a JSON object.
    #[arg(long, value_parser = raw_json)]
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    /// A script whose `condition` is asked when the message is due.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<String>,
    /// Show what would leave, and send nothing.
    #[arg(long)]
    #[serde(skip)]
    dry_run: bool,
    #[command(flatten)]
    #[serde(skip)]
    client: ApiClient,
}

#[derive(Debug, Args, Serialize)]
struct Content {
    /// The sender, as the channel has it: a mail address, a telephone number.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Recipient>,
    /// An address for answers; repeat it for several.
    #[arg(long)]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "one_or_more")]
    reply_to: Vec<Recipient>,
    /// A recipient of a copy; repeat it for several.
    #[arg(long)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cc: Vec<Recipient>,
    /// A recipient of a blind copy; repeat it for several.
    #[arg(long)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bcc: Vec<Recipient>,
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
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_object")]
    headers: Vec<(String, String)>,
    /// A file, with its media type if the extension does not imply it: `invoice.pdf`, `data.bin;application/x-data`.
    /// Repeat it for several.
    #[arg(long = "attach", value_name = "FILE[;TYPE]", value_parser = attached)]
    #[serde(rename = "attachments", skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Attachment>,
    /// A file that the HTML shows as `cid:ID`: `logo=logo.png`. More than once for several.
    #[arg(long = "inline", value_name = "ID=FILE[;TYPE]", value_parser = inline)]
    #[serde(skip)]
    inline: Vec<Attachment>,
    /// The address of a picture or another medium; more than once for several.
    #[arg(long = "media-url")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    media_urls: Vec<String>,
    /// The provider's own parameter, `name=value`; more than once for several.
    #[arg(long = "param", value_parser = pair)]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_object")]
    params: Vec<(String, String)>,
}

/// An address, with a name or without.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
enum Recipient {
    Text(String),
    Named { address: String, name: String },
}

#[derive(Debug, Clone, Serialize)]
struct Attachment {
    name: String,
    media_type: String,
    /// In base64.
    content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_id: Option<String>,
}

impl Send {
    pub async fn run(mut self, output: &Output) -> Result<(), CliError> {
        self.content.attachments.append(&mut self.content.inline);
        let path = if self.dry_run { "/v1/messages?dry_run=true" } else { PATH };
        let answer = self.client.post(path, &self).await?;
        match self.dry_run && !output.json {
            true => preview(&answer, output),
            false => show(&answer, output),
        }
        Ok(())
    }
}

impl Content {
    fn is_empty(&self) -> bool {
        serde_json::to_value(self).is_ok_and(|it| it == json!({}))
    }
}

/// Writes one value without a list, several as a list.
fn one_or_more<S: Serializer>(list: &[Recipient], serializer: S) -> Result<S::Ok, S::Error> {
    match list {
        [one] => one.serialize(serializer),
        several => several.serialize(serializer),
    }
}

/// `address`, or `Name <address>`.
impl FromStr for Recipient {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let named = text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<'));
        Ok(match named {
            Some((name, address)) if !name.trim().is_empty() => {
                Self::Named { address: address.trim().to_owned(), name: name.trim().trim_matches('"').to_owned() }
            }
            _ => Self::Text(text.to_owned()),
        })
    }
}

/// `FILE` or `FILE;TYPE`.
fn attached(text: &str) -> Result<Attachment, String> {
    let (file, kind) = match text.split_once(';') {
        Some((file, kind)) => (file, Some(kind)),
        None => (text, None),
    };
    let file = Path::new(file);
    let name = file.file_name().ok_or("must name a file")?.to_string_lossy().into_owned();
    let bytes = std::fs::read(file).map_err(|error| format!("{} can't be read: {error}", file.display()))?;
    let media_type = kind.unwrap_or_else(|| media_type_of(file)).to_owned();
    Ok(Attachment { name, media_type, content: STANDARD.encode(bytes), content_id: None })
}

/// `ID=FILE` or `ID=FILE;TYPE`.
fn inline(text: &str) -> Result<Attachment, String> {
    let (id, file) = text.split_once('=').ok_or("must have the form `id=file`")?;
    Ok(Attachment { content_id: Some(id.to_owned()), ..attached(file)? })
}

/// Returns the usual media type of a file's extension.
fn media_type_of(file: &Path) -> &'static str {
    let ending = file.extension().map(|it| it.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "csv" => "text/csv",
        "gif" => "image/gif",
        "htm" | "html" => "text/html",
        "ics" => "text/calendar",
        "jpeg" | "jpg" => "image/jpeg",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "txt" => "text/plain",
        "xml" => "application/xml",
        "zip" => "application/zip",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        send: Send,
    }

    fn body(line: &[&str]) -> Value {
        let mut send = Line::parse_from(["send", "--key", "ak_x"].iter().chain(line)).send;
        send.content.attachments.append(&mut send.content.inline);
        serde_json::to_value(send).unwrap()
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

    #[test]
    fn addresses_may_have_names() {
        let line = ["--to", "Ann <ann@example.org>", "--reply-to", "b@x", "--cc", "c@x", "--cc", "\"D, E\" <d@x>"];
        assert_eq!(
            body(&line),
            json!({"to": {"address": "ann@example.org", "name": "Ann"}, "content": {
                "reply_to": "b@x", "cc": ["c@x", {"address": "d@x", "name": "D, E"}]}})
        );
        assert_eq!(body(&["--to", "<ann@example.org>"])["to"], "<ann@example.org>", "the gateway says what is wrong");
    }

    #[test]
    fn files_travel_with_the_message() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "hi").unwrap();
            path.display().to_string()
        };
        let (pdf, data, logo) = (file("Invoice.PDF"), file("data") + ";text/x; charset=utf-8", file("logo.png"));
        let inline = format!("logo={logo}");
        let files = body(&["--attach", &pdf, "--attach", &data, "--inline", &inline])["content"]["attachments"].take();
        assert_eq!(
            files,
            json!([
                {"name": "Invoice.PDF", "media_type": "application/pdf", "content": "aGk="},
                {"name": "data", "media_type": "text/x; charset=utf-8", "content": "aGk="},
                {"name": "logo.png", "media_type": "image/png", "content": "aGk=", "content_id": "logo"},
            ])
        );
        assert!(Line::try_parse_from(["send", "--key", "ak_x", "--attach", "/nowhere/x"]).is_err());
    }

    /// Every field of the document's `NewMessage` has a flag.
    #[test]
    fn every_field_of_a_message_can_be_given() {
        let document = serde_json::to_value(crate::api::openapi()).unwrap();
        let given = body(&[
            "--to=x",
            "--channel=sms",
            "--connection=c",
            "--priority=high",
            "--send-at=t",
            "--expires-at=t",
            "--idempotency-key=k",
            "--reference=r",
            "--ordering-key=o",
            "--attributes={}",
            "--contact={}",
            "--context={}",
            "--metadata={}",
            "--condition=c",
            "--from=f",
            "--reply-to=r",
            "--cc=c",
            "--bcc=b",
            "--subject=s",
            "--text=t",
            "--html=h",
            "--payload=1",
            "--header=a=b",
            "--media-url=u",
            "--param=a=b",
            "--attach=/dev/null",
        ]);
        let several = body(&["--channels=[]", "--mode=all", "--wants=delivered", "--receipt-window=5"]);
        let schemas = &document["components"]["schemas"];
        for name in schemas["NewMessage"]["properties"].as_object().unwrap().keys() {
            assert!(given.get(name).or_else(|| several.get(name)).is_some(), "{name}");
        }
        for name in schemas["NewContent"]["properties"].as_object().unwrap().keys() {
            assert!(given["content"].get(name).is_some(), "content.{name}");
        }
    }
}
