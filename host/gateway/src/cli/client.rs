//! The command line's one way to a gateway: HTTP with a key.

use std::{path::Path, time::Duration};

use clap::Args;
use reqwest::{Method, header};
use serde::Serialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::CliError;

/// Time for a call of the API, its body included.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Time for the answer about readiness: the node itself waits up to two seconds for its database.
const READY_TIMEOUT: Duration = Duration::from_secs(4);

/// The address of a gateway.
#[derive(Debug, Args)]
pub struct GatewayAddress {
    /// The gateway's address.
    #[arg(long, env = "ANGARIUM_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

impl GatewayAddress {
    /// Asks the node whether it can serve; the error says why it cannot.
    pub async fn ready(&self) -> Result<Value, CliError> {
        let address = self.of("/readyz");
        answer(&address, builder().timeout(READY_TIMEOUT), |http| http.get(&address)).await
    }

    fn of(&self, path: &str) -> String {
        format!("{}{path}", self.url.trim_end_matches('/'))
    }
}

/// The address of a gateway, and the key.
#[derive(Args)]
pub struct ApiClient {
    #[command(flatten)]
    gateway: GatewayAddress,
    /// The API key.
    #[arg(long, env = "ANGARIUM_KEY", hide_env_values = true)]
    key: String,
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiClient").field("gateway", &self.gateway).field("key", &"***").finish()
    }
}

impl ApiClient {
    pub async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, CliError> {
        self.call(Method::POST, path, Some(("application/json", written(body)?))).await
    }

    pub async fn patch(&self, path: &str, body: &impl Serialize) -> Result<Value, CliError> {
        self.call(Method::PATCH, path, Some(("application/json", written(body)?))).await
    }

    pub async fn put(&self, path: &str, body: &impl Serialize) -> Result<Value, CliError> {
        self.call(Method::PUT, path, Some(("application/json", written(body)?))).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, CliError> {
        self.call(Method::DELETE, path, None).await
    }

    /// Sends a component's bytes.
    pub async fn upload(&self, path: &str, file: &Path) -> Result<Value, CliError> {
        let bytes = std::fs::read(file)
            .map_err(|error| CliError::said(format!("the component {}: {error}", file.display())))?;
        self.call(Method::POST, path, Some(("application/wasm", bytes))).await
    }

    /// Opens a stream of events, from behind `last` on.
    pub async fn follow(&self, path: &str, last: Option<&str>) -> Result<Followed, NotFollowed> {
        self.open(path, last).await.map(Followed)
    }

    /// Writes the bytes of an answer into a new file; returns their number. There is no file if some are missing.
    pub async fn download(&self, path: &str, file: &Path) -> Result<u64, CliError> {
        let answer = self.open(path, None).await.map_err(|refused| refused.reason)?;
        let unwritten = |error: std::io::Error| CliError::said(format!("the file {}: {error}", file.display()));
        let new = tokio::fs::File::create_new(file).await.map_err(unwritten)?;
        let size = write_all(answer, new).await;
        if size.is_err() {
            // The error says what matters.
            let _ = tokio::fs::remove_file(file).await;
        }
        size.map_err(unwritten)
    }

    /// Begins to read an answer of any length.
    async fn open(&self, path: &str, last: Option<&str>) -> Result<reqwest::Response, NotFollowed> {
        let address = self.gateway.of(path);
        let passing = |error: reqwest::Error| NotFollowed { reason: unreachable(&address, &error), is_final: false };
        // Longer than the gateway is ever silent.
        let http = builder().connect_timeout(Duration::from_secs(10)).read_timeout(Duration::from_secs(60));
        let mut request = http.build().map_err(passing)?.get(&address).bearer_auth(&self.key);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let answer = request.send().await.map_err(passing)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let bytes = answer.bytes().await.map_err(passing)?;
        let reason = parse(&address, &bytes).map_or_else(|error| error, |problem| refusal(status.as_u16(), &problem));
        Err(NotFollowed { reason, is_final: status.is_client_error() })
    }

    async fn call(&self, method: Method, path: &str, body: Option<(&str, Vec<u8>)>) -> Result<Value, CliError> {
        let address = self.gateway.of(path);
        answer(&address, builder().timeout(CALL_TIMEOUT), |http| {
            let request = http.request(method, &address).bearer_auth(&self.key);
            match body {
                Some((media_type, bytes)) => request.header(header::CONTENT_TYPE, media_type).body(bytes),
                None => request,
            }
        })
        .await
    }
}

/// Writes the bytes of an answer into a file, until they are on the disk; returns their number.
async fn write_all(mut answer: reqwest::Response, mut file: tokio::fs::File) -> std::io::Result<u64> {
    let mut size = 0;
    while let Some(piece) = answer.chunk().await.map_err(std::io::Error::other)? {
        file.write_all(&piece).await?;
        size += piece.len() as u64;
    }
    file.sync_all().await?;
    Ok(size)
}

/// A stream that is being read.
pub struct Followed(reqwest::Response);

impl Followed {
    /// Returns the next bytes; `None` when the stream has ended or broke.
    pub async fn next(&mut self) -> Option<bytes::Bytes> {
        self.0.chunk().await.ok().flatten()
    }
}

/// Why there is no stream.
pub struct NotFollowed {
    pub reason: CliError,
    /// Asking again would not help.
    pub is_final: bool,
}

fn builder() -> reqwest::ClientBuilder {
    // An error says that a crypto provider is installed already, which is the aim.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// Sends a request and reads its answer; a problem is an error.
async fn answer(
    address: &str,
    http: reqwest::ClientBuilder,
    request: impl FnOnce(&reqwest::Client) -> reqwest::RequestBuilder,
) -> Result<Value, CliError> {
    let unreachable = |error: reqwest::Error| unreachable(address, &error);
    let http = http.build().map_err(unreachable)?;
    let answer = request(&http).send().await.map_err(unreachable)?;
    let status = answer.status();
    let bytes = answer.bytes().await.map_err(unreachable)?;
    let value: Value = if bytes.is_empty() { Value::Null } else { parse(address, &bytes)? };
    if status.is_success() { Ok(value) } else { Err(refusal(status.as_u16(), &value)) }
}

fn written(body: &impl Serialize) -> Result<Vec<u8>, CliError> {
    serde_json::to_vec(body).map_err(|error| CliError::said(format!("the request can't be written: {error}")))
}

/// A text as one segment of a path.
pub fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

fn parse(address: &str, bytes: &[u8]) -> Result<Value, CliError> {
    serde_json::from_slice(bytes)
        .map_err(|_| CliError::said(format!("{address} answers something other than JSON: is it a gateway?")))
}

fn unreachable(address: &str, error: &reqwest::Error) -> CliError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    CliError::said(format!("{address} can't be asked: {reason}; `--url` or ANGARIUM_URL names the gateway"))
}

/// Returns the problem as lines: its title, then each invalid field.
fn refusal(status: u16, problem: &Value) -> CliError {
    let text = |pointer: &str| problem.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let mut lines = format!("{status} {}: {}", text("/code"), text("/detail"));
    for field in problem.get("errors").and_then(Value::as_array).into_iter().flatten() {
        let part = |name: &str| field.get(name).and_then(Value::as_str).unwrap_or_default();
        // The empty pointer is the whole body.
        let place = Some(part("pointer")).filter(|it| !it.is_empty()).map_or_else(String::new, |it| format!("{it}: "));
        lines.push_str(&format!("\n  {place}{}", part("detail")));
    }
    CliError::said(lines)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_names_every_field() {
        let problem = json!({"code": "invalid_request", "detail": "2 fields are wrong",
            "errors": [{"pointer": "/to", "detail": "is missing"}, {"pointer": "", "detail": "is no component"}]});
        let said = refusal(422, &problem).to_string();
        assert_eq!(said, "422 invalid_request: 2 fields are wrong\n  /to: is missing\n  is no component");
    }

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("a b/../c"), "a%20b%2F..%2Fc");
    }
}
