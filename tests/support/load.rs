//! Clients that send as long as a scenario lasts, and never give a message up.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::header::RETRY_AFTER;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::gateway::TestGateway;

/// Clients at work. A message that was not accepted is sent again with the same key, as a careful client does.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    addresses: Mutex<Vec<SocketAddr>>,
    key: String,
    next: AtomicUsize,
    stop: AtomicBool,
    /// Idempotency keys by the ids that they were answered with.
    accepted: Mutex<HashMap<String, String>>,
    refusals: Mutex<Vec<Refusal>>,
}

/// An answer that told a client to come again.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub detail: String,
    pub retry_after: Option<String>,
    pub took: Duration,
}

impl Load {
    /// Starts a number of clients of the gateway's nodes.
    pub fn start(gateway: &TestGateway, clients: usize) -> Self {
        let shared = Arc::new(Shared {
            addresses: Mutex::new(gateway.nodes.iter().flatten().map(|node| node.address()).collect()),
            key: gateway.key.clone(),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            accepted: Mutex::default(),
            refusals: Mutex::default(),
        });
        let clients = (0..clients).map(|_| tokio::spawn(Arc::clone(&shared).run())).collect();
        Self { shared, clients }
    }

    /// A node that is asked from now on.
    pub fn join(&self, address: SocketAddr) {
        self.shared.addresses.lock().unwrap().push(address);
    }

    /// A node that is asked no more.
    pub fn leave(&self, address: SocketAddr) {
        self.shared.addresses.lock().unwrap().retain(|it| *it != address);
    }

    /// How many messages were accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.lock().unwrap().len()
    }

    /// The answers so far that told a client to come again.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.shared.refusals.lock().unwrap().clone()
    }

    /// Ends it once every message that was begun is accepted: their keys by their ids.
    pub async fn stop(self) -> HashMap<String, String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut self.shared.accepted.lock().unwrap())
    }
}

impl Shared {
    async fn run(self: Arc<Self>) {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            let key = format!("order-{}", self.next.fetch_add(1, Ordering::Relaxed));
            let id = self.send(&client, &key).await;
            self.accepted.lock().unwrap().insert(id, key);
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    }

    async fn send(&self, client: &reqwest::Client, key: &str) -> String {
        let body = json!({"channel": "webhook", "content": {"payload": {"key": key}}});
        loop {
            let address = {
                let addresses = self.addresses.lock().unwrap();
                addresses[fastrand::usize(0..addresses.len())]
            };
            let asked = Instant::now();
            let request = client.post(format!("http://{address}/v1/messages")).bearer_auth(&self.key);
            if let Ok(answer) = request.header("idempotency-key", key).json(&body).send().await {
                let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
                match answer.json::<Value>().await {
                    Ok(body) if status == 202 => return text(&body["id"]),
                    Ok(body) => {
                        assert!(status == 503 || status == 409, "{status}: {body}");
                        let retry_after = headers.get(RETRY_AFTER).map(|it| it.to_str().unwrap().to_owned());
                        let took = asked.elapsed();
                        let (code, detail) = (text(&body["code"]), text(&body["detail"]));
                        self.refusals.lock().unwrap().push(Refusal { status, code, detail, retry_after, took });
                    }
                    Err(_) => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
