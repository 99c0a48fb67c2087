//! The gateway's HTTP API, as a client of it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::http::Client;

/// One tenant's access to a gateway.
#[derive(Clone, Debug)]
pub struct Api {
    pub address: SocketAddr,
    authorization: String,
}

impl Api {
    /// The API at that address, with that key.
    pub fn new(address: SocketAddr, key: &str) -> Self {
        Self { address, authorization: format!("Bearer {key}") }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None).await
    }

    /// POST.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", path, Some(body)).await
    }

    /// PUT.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.call("PUT", path, Some(body)).await
    }

    /// A request for [`Client::send`].
    pub fn prepare(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        Client::prepare(method, path, self.address, &self.headers(), body)
    }

    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut client = Client::connect(self.address).await?;
        let answer = client
            .request(method, path, &self.headers(), body.as_bytes())
            .await
            .with_context(|| format!("{method} {path}"))?;
        ensure!(answer.status < 300, "{method} {path} was answered {}: {}", answer.status, answer.text());
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body).with_context(|| format!("{method} {path} was answered by no JSON"))
    }

    fn headers(&self) -> [(&str, &str); 2] {
        [("authorization", &self.authorization), ("content-type", "application/json")]
    }
}
