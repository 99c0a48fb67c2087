//! A webhook endpoint that counts, and fails on demand. It verifies nothing: that is for the tests' real peers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use crate::http::{Reply, Request, Server};

/// An endpoint: paths below `/flaky` answer 503 to the first try of every `webhook-id`, all others 204.
#[derive(Debug)]
pub struct WebhookEndpoint {
    server: Server,
    tries: Arc<Mutex<HashMap<String, u32>>>,
}

impl WebhookEndpoint {
    /// Listens on a free loopback port.
    pub async fn start() -> Result<Self> {
        let tries: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
        let seen = Arc::clone(&tries);
        let server = Server::start(move |request: &Request<'_>| answer(request, &seen)).await?;
        Ok(Self { server, tries })
    }

    /// Its address with that path.
    pub fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// How many tries arrived, of how many deliveries.
    pub fn counts(&self) -> (u32, usize) {
        let tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        (tries.values().sum(), tries.len())
    }
}

fn answer(request: &Request<'_>, tries: &Mutex<HashMap<String, u32>>) -> Reply {
    let id = request.header("webhook-id").unwrap_or("none").to_owned();
    let mut tries = tries.lock().unwrap_or_else(PoisonError::into_inner);
    let tried = tries.entry(id).or_default();
    *tried += 1;
    if request.path.starts_with("/flaky") && *tried == 1 {
        return Reply::new(503, "not yet");
    }
    Reply::new(204, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Client;

    #[tokio::test]
    async fn a_flaky_path_fails_once_for_each_delivery() {
        let endpoint = WebhookEndpoint::start().await.unwrap();
        let mut client = Client::connect(endpoint.server.address()).await.unwrap();
        for (path, id, status) in [("/flaky", "1", 503), ("/flaky", "1", 204), ("/flaky", "2", 503), ("/ok", "3", 204)]
        {
            let answer = client.request("POST", path, &[("webhook-id", id)], b"{}").await.unwrap();
            assert_eq!(answer.status, status);
        }
        assert_eq!(endpoint.counts(), (4, 3));
    }
}
