//! A stand-in for Twilio's Messages API, as far as a first delivery shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::http::{Reply, Request, Server};

/// The provider: one account, whose credentials it checks.
#[derive(Debug)]
pub struct SmsProvider {
    server: Server,
    accepted: Arc<AtomicU32>,
}

impl SmsProvider {
    /// The account that it knows.
    pub const ACCOUNT: &str = "ACdeadbeefdeadbeefdeadbeefdeadbeef";
    /// The account's token.
    pub const TOKEN: &str = "demo-token";

    /// Listens on a free loopback port.
    pub async fn start() -> Result<Self> {
        let accepted: Arc<AtomicU32> = Arc::default();
        let counter = Arc::clone(&accepted);
        let server = Server::start(move |request: &Request<'_>| answer(request, &counter)).await?;
        Ok(Self { server, accepted })
    }

    /// Its address with that path.
    pub fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// How many messages it took.
    pub fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::Relaxed)
    }
}

fn answer(request: &Request<'_>, accepted: &AtomicU32) -> Reply {
    let expected = STANDARD.encode(format!("{}:{}", SmsProvider::ACCOUNT, SmsProvider::TOKEN));
    if request.header("authorization") != Some(&format!("Basic {expected}")) {
        return error(401, 20003, "Authenticate");
    }
    let path = format!("/2010-04-01/Accounts/{}/Messages.json", SmsProvider::ACCOUNT);
    if request.method != "POST" || request.path != path {
        return error(404, 20404, "The requested resource was not found");
    }
    let form = form_fields(request.body);
    let field = |name: &str| form.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
    let Some(to) = field("To") else { return error(400, 21604, "A 'To' phone number is required.") };
    if !to.starts_with('+') {
        return error(400, 21211, "Invalid 'To' Phone Number");
    }
    let media = form.iter().filter(|(name, _)| name == "MediaUrl").count();
    let body = field("Body").unwrap_or_default();
    if body.is_empty() && media == 0 {
        return error(400, 21602, "Message body is required.");
    }
    let number = accepted.fetch_add(1, Ordering::Relaxed) + 1;
    let message = json!({
        "sid": format!("{}{number:032x}", if media > 0 { "MM" } else { "SM" }),
        "account_sid": SmsProvider::ACCOUNT,
        "to": to,
        "from": field("From"),
        "messaging_service_sid": field("MessagingServiceSid"),
        "body": body,
        "status": "queued",
        "direction": "outbound-api",
        "num_segments": segments(body).to_string(),
        "num_media": media.to_string(),
        "price": null,
        "price_unit": "USD",
        "error_code": null,
        "error_message": null,
    });
    Reply::new(201, message.to_string()).header("content-type", "application/json")
}

fn error(status: u16, code: u32, message: &str) -> Reply {
    let body = json!({ "status": status, "code": code, "message": message, "more_info": "" });
    Reply::new(status, body.to_string()).header("content-type", "application/json")
}

/// Returns the segments: 160 characters of ASCII fit one segment, 70 of any others; 153 and 67 if there are several.
fn segments(body: &str) -> usize {
    let (alone, several, length) =
        if body.is_ascii() { (160, 153, body.len()) } else { (70, 67, body.encode_utf16().count()) };
    if length <= alone { 1 } else { length.div_ceil(several) }
}

fn form_fields(body: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(body);
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(n, v)| (decode(n), decode(v))).collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Client;

    async fn post(provider: &SmsProvider, token: &str, body: &str) -> (u16, serde_json::Value) {
        let mut client = Client::connect(provider.server.address()).await.unwrap();
        let credentials = STANDARD.encode(format!("{}:{token}", SmsProvider::ACCOUNT));
        let path = format!("/2010-04-01/Accounts/{}/Messages.json", SmsProvider::ACCOUNT);
        let headers = [("authorization", &*format!("Basic {credentials}"))];
        let answer = client.request("POST", &path, &headers, body.as_bytes()).await.unwrap();
        (answer.status, serde_json::from_slice(&answer.body).unwrap())
    }

    #[tokio::test]
    async fn messages_are_taken_and_mistakes_named() {
        let provider = SmsProvider::start().await.unwrap();
        let (status, message) = post(&provider, SmsProvider::TOKEN, "To=%2B46700000001&From=%2B1&Body=a+%C3%A5").await;
        assert_eq!((status, message["body"].as_str()), (201, Some("a å")));
        assert_eq!(message["num_segments"], "1");
        assert_eq!(message["price"], serde_json::Value::Null);
        assert_eq!(post(&provider, "wrong", "To=%2B1&Body=a").await.0, 401);
        assert_eq!(post(&provider, SmsProvider::TOKEN, "To=12&Body=a").await.1["code"], 21211);
        assert_eq!(provider.accepted(), 1);
    }

    #[test]
    fn segments_are_counted() {
        assert_eq!((segments("a"), segments(&"a".repeat(161)), segments(&"å".repeat(71))), (1, 2, 2));
    }
}
