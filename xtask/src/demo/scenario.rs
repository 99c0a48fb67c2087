//! The demo's messages, and their expected ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::api::Api;
use crate::receivers::{MailServer, SmsProvider, WebhookEndpoint};

/// The other side of the three channels.
#[derive(Debug)]
pub struct Receivers {
    mail: MailServer,
    backup_mail: MailServer,
    webhook: WebhookEndpoint,
    sms: SmsProvider,
}

impl Receivers {
    pub async fn start() -> Result<Self> {
        Ok(Self {
            mail: MailServer::start().await?,
            backup_mail: MailServer::start().await?,
            webhook: WebhookEndpoint::start().await?,
            sms: SmsProvider::start().await?,
        })
    }

    pub fn webhook_url(&self) -> String {
        self.webhook.url("/orders")
    }

    pub fn summary(&self) -> String {
        let (tries, deliveries) = self.webhook.counts();
        format!(
            "received: {} mails and {} at the backup, {deliveries} webhooks in {tries} requests, {} SMS",
            self.mail.mails().len(),
            self.backup_mail.mails().len(),
            self.sms.accepted()
        )
    }
}

/// The expected result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expected {
    Direct,
    Retried,
    FellBack,
}

/// A message that ended, or didn't in time.
#[derive(Debug)]
pub struct Outcome {
    pub title: &'static str,
    pub state: String,
    pub attempts: Vec<Value>,
    expected: Expected,
}

impl Outcome {
    /// Returns its fault, if there is one.
    pub fn complaint(&self) -> Option<String> {
        let title = self.title;
        if self.state != "sent" && self.state != "delivered" {
            return Some(format!("{title}: it is {}", self.state));
        }
        let has = |trigger: &str| self.attempts.iter().any(|attempt| attempt["trigger"] == trigger);
        match self.expected {
            Expected::Direct if self.attempts.len() != 1 => {
                Some(format!("{title}: {} attempts instead of one", self.attempts.len()))
            }
            Expected::Retried if !has("retry") => Some(format!("{title}: it was not retried")),
            Expected::FellBack if !has("fallback") => Some(format!("{title}: it did not fall back")),
            _ => None,
        }
    }
}

/// Creates connections and routes, sends, and follows every message to its end.
pub async fn play(api: &Api, receivers: &mut Receivers) -> Result<Vec<Outcome>> {
    set_up(api, receivers).await?;
    let first = send_all(api, &early_messages(receivers)).await?;
    let mut outcomes = follow_all(api, first).await?;
    receivers.mail.go_down().await;
    let late = send_all(api, &[late_message()]).await?;
    outcomes.extend(follow_all(api, late).await?);
    Ok(outcomes)
}

async fn set_up(api: &Api, receivers: &Receivers) -> Result<()> {
    for connection in connections(receivers) {
        api.post("/v1/connections", &connection).await?;
    }
    for route in routes() {
        let created = api.post("/v1/routes", &route).await?;
        let id = created["id"].as_str().context("a new route has no id")?;
        api.post(&format!("/v1/routes/{id}/activate"), &json!({ "version": 1 })).await?;
    }
    Ok(())
}

fn connections(receivers: &Receivers) -> [Value; 4] {
    let mail = |uid: &str, server: &MailServer| {
        json!({
            "uid": uid,
            "provider": "email-smtp",
            "config": { "host": "127.0.0.1", "port": server.address().port(), "tls": "none" },
        })
    };
    [
        mail("mail-primary", &receivers.mail),
        mail("mail-backup", &receivers.backup_mail),
        json!({
            "uid": "orders-hook",
            "provider": "webhook",
            "config": { "url": receivers.webhook_url() },
            "secrets": { "signing_key": "whsec_ZGVtby1vbmx5LWRlbW8tb25seS1kZW1vLW9ubHk=" },
        }),
        json!({
            "uid": "sms",
            "provider": "sms-twilio",
            "config": {
                "account_sid": SmsProvider::ACCOUNT,
                "from": "+15005550006",
                "base_url": receivers.sms.url(""),
            },
            "secrets": { "auth_token": SmsProvider::TOKEN },
        }),
    ]
}

fn routes() -> [Value; 3] {
    let route = |channel: &str, connections: &[&str], retry: Value| {
        let candidates: Vec<_> = connections.iter().map(|uid| json!({ "connection": uid })).collect();
        json!({
            "channel": channel,
            "spec": { "candidates": candidates, "strategy": { "type": "primary" }, "retry": retry, "fallback": true },
        })
    };
    [
        route("email", &["mail-primary", "mail-backup"], json!({ "type": "none" })),
        route("webhook", &["orders-hook"], json!({ "type": "schedule", "delays_ms": [300, 1000, 3000] })),
        route("sms", &["sms"], json!({ "type": "linear", "delay_ms": 500, "max_attempts": 3 })),
    ]
}

struct Message {
    title: &'static str,
    body: Value,
    expected: Expected,
}

fn early_messages(receivers: &Receivers) -> Vec<Message> {
    let direct = |title, body| Message { title, body, expected: Expected::Direct };
    let mail = |subject: &str, content: Value| {
        let mut body = json!({
            "channel": "email",
            "to": { "address": "ann@example.org", "name": "Ann" },
            "content": { "from": "shop@example.com", "subject": subject },
        });
        if let (Some(all), Some(more)) = (body["content"].as_object_mut(), content.as_object()) {
            all.extend(more.clone());
        }
        body
    };
    let sms = |text: &str| json!({ "channel": "sms", "to": "+46700000001", "content": { "text": text } });
    let webhook = |order: u32| json!({ "channel": "webhook", "content": { "payload": { "type": "order.paid", "data": { "order": order } } } });
    let mut flaky = webhook(1003);
    flaky["to"] = receivers.webhook.url("/flaky").into();
    vec![
        direct("welcome mail", mail("Welcome", json!({ "text": "Welcome, Ann.", "html": "<p>Welcome, Ann.</p>" }))),
        direct(
            "invoice mail",
            mail(
                "Invoice 7",
                json!({
                    "text": "Your invoice is attached.",
                    "attachments": [{ "name": "invoice.txt", "media_type": "text/plain", "content": "VG90YWw6IDQyCg==" }],
                }),
            ),
        ),
        direct("order 1001", webhook(1001)),
        direct("order 1002", webhook(1002)),
        Message { title: "order 1003, receiver busy", body: flaky, expected: Expected::Retried },
        direct("sms code", sms("Your code is 4711")),
        direct("sms in two parts", sms(&"Grüße aus Göteborg. ".repeat(5))),
    ]
}

fn late_message() -> Message {
    Message {
        title: "mail, first server down",
        body: json!({
            "channel": "email",
            "to": "bob@example.org",
            "content": { "from": "shop@example.com", "subject": "Shipped", "text": "Your order is on its way." },
        }),
        expected: Expected::FellBack,
    }
}

struct Sent {
    title: &'static str,
    id: String,
    expected: Expected,
}

async fn send_all(api: &Api, messages: &[Message]) -> Result<Vec<Sent>> {
    let mut sent = Vec::new();
    for message in messages {
        let answer = api.post("/v1/messages", &message.body).await.with_context(|| message.title)?;
        let id = answer["id"].as_str().context("an accepted message has no id")?.to_owned();
        sent.push(Sent { title: message.title, id, expected: message.expected });
    }
    Ok(sent)
}

async fn follow_all(api: &Api, sent: Vec<Sent>) -> Result<Vec<Outcome>> {
    let deadline = Instant::now() + Duration::from_secs(45);
    let mut outcomes = Vec::new();
    for message in sent {
        let state = follow(api, &message.id, deadline).await?;
        let attempts = api.get(&format!("/v1/messages/{}/attempts", message.id)).await?;
        let attempts = attempts["data"].as_array().context("attempts come as `data`")?.clone();
        ensure!(state != "sent" || !attempts.is_empty(), "{}: sent without an attempt", message.title);
        outcomes.push(Outcome { title: message.title, state, attempts, expected: message.expected });
    }
    Ok(outcomes)
}

const ENDS: [&str; 9] =
    ["sent", "delivered", "failed", "bounced", "expired", "canceled", "suppressed", "unroutable", "partially_failed"];

async fn follow(api: &Api, id: &str, deadline: Instant) -> Result<String> {
    loop {
        let message = api.get(&format!("/v1/messages/{id}")).await?;
        let state = message["state"].as_str().context("a message has no state")?.to_owned();
        if ENDS.contains(&state.as_str()) || Instant::now() > deadline {
            return Ok(state);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::http::{Reply, Request, Server};

    fn outcome(state: &str, triggers: &[&str], expected: Expected) -> Outcome {
        let attempts = triggers.iter().map(|trigger| json!({ "trigger": trigger })).collect();
        Outcome { title: "it", state: state.into(), attempts, expected }
    }

    #[test]
    fn what_did_not_end_as_it_should_is_named() {
        assert_eq!(outcome("sent", &["scheduled"], Expected::Direct).complaint(), None);
        assert_eq!(outcome("sent", &["scheduled", "retry"], Expected::Retried).complaint(), None);
        assert!(outcome("failed", &["scheduled"], Expected::Direct).complaint().is_some());
        assert!(outcome("sent", &["scheduled"], Expected::Retried).complaint().is_some());
        assert!(outcome("sent", &["scheduled", "retry"], Expected::FellBack).complaint().is_some());
    }

    /// Answers as the gateway's API does, without delivering anything.
    async fn stand_in(calls: Arc<Mutex<Vec<String>>>) -> Server {
        let messages: Mutex<Vec<Value>> = Mutex::default();
        let answer = move |request: &Request<'_>| {
            calls.lock().unwrap().push(format!("{} {}", request.method, request.path));
            assert_eq!(request.header("authorization"), Some("Bearer ak_1"));
            let mut messages = messages.lock().unwrap();
            let body = match (request.method, request.path) {
                ("POST", "/v1/messages") => {
                    messages.push(serde_json::from_slice(request.body).unwrap());
                    json!({ "id": format!("msg_{}", messages.len() - 1), "state": "accepted" })
                }
                ("GET", path) if path.ends_with("/attempts") => {
                    let number: usize = path.trim_end_matches("/attempts").rsplit('_').next().unwrap().parse().unwrap();
                    let to = messages[number]["to"].as_str().unwrap_or_default();
                    let second = match to {
                        "bob@example.org" => Some("fallback"),
                        to if to.ends_with("/flaky") => Some("retry"),
                        _ => None,
                    };
                    let triggers = std::iter::once("scheduled").chain(second);
                    json!({ "data": triggers.map(|trigger| json!({ "trigger": trigger })).collect::<Vec<_>>() })
                }
                ("GET", _) => json!({ "state": "sent" }),
                _ => json!({ "id": "route_1" }),
            };
            Reply::new(200, body.to_string())
        };
        Server::start(answer).await.unwrap()
    }

    #[tokio::test]
    async fn the_whole_scenario_is_played() {
        let calls = Arc::default();
        let server = stand_in(Arc::clone(&calls)).await;
        let mut receivers = Receivers::start().await.unwrap();
        let outcomes = play(&Api::new(server.address(), "ak_1"), &mut receivers).await.unwrap();
        assert_eq!(outcomes.iter().filter_map(Outcome::complaint).collect::<Vec<_>>(), [""; 0]);
        assert_eq!(outcomes.len(), 8);
        let calls = calls.lock().unwrap();
        let count = |call: &str| calls.iter().filter(|made| made.as_str() == call).count();
        assert_eq!((count("POST /v1/connections"), count("POST /v1/routes")), (4, 3));
        assert_eq!(count("POST /v1/routes/route_1/activate"), 3);
    }
}
